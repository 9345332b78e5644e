//! Every advisory lock that the library takes.
//!
//! Postgres has two separate key spaces: one 64-bit number, or two 32-bit numbers. The classes below are the first of
//! the two 32-bit numbers. Each has one meaning only, and [`1.sql`](schema) repeats the numbers of the classes that its
//! functions take. A test compares both.

/// Transactions of one epoch: class plus migration id, then the epoch. Shared by writers (the fence), exclusive for the
/// driver while it waits for them to end.
pub(crate) const EPOCH: i32 = 0x4355_0000;

/// Transactions of external writers to the table of one migration: class, then migration id. Shared by the guard trigger,
/// exclusive for moves that wait for such transactions.
pub(crate) const EXTERNAL_WRITERS: i32 = 0x4356_0000;

/// Writers of one key of a mirrored migration: class plus migration id, then a hash of the key.
pub(crate) const MIRROR_KEY: i32 = 0x4357_0000;

/// The instance that builds a migration's indexes: class, then migration id. Nothing that a build waits for may take it.
pub(crate) const INDEX_BUILD: i32 = 0x4358_0000;

/// Installation and upgrade of the ledger: a 64-bit key, "cutover" read as a number.
pub(crate) const INSTALL: i64 = 0x0063_7574_6f76_6572;

/// Decisions about connection shares: a 64-bit key.
pub(crate) const SHARES: i64 = 0x0063_7574_6f76_6573;

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::path::Path;

    use super::*;

    /// Ids of migrations are below this, so classes that a migration id is added to do not overlap.
    const SPACING: i32 = 0x1_0000;

    #[test]
    fn no_two_meanings_share_a_key() {
        let classes = [EPOCH, EXTERNAL_WRITERS, MIRROR_KEY, INDEX_BUILD];
        assert_eq!(
            classes.map(|class| class / SPACING).into_iter().collect::<HashSet<_>>().len(),
            classes.len()
        );
        assert_ne!(INSTALL, SHARES);
    }

    #[test]
    fn the_schema_takes_the_locks_that_are_listed() {
        let sql = include_str!("schema/1.sql");
        let taken: Vec<&str> = sql
            .split("pg_advisory_xact_lock_shared(")
            .skip(1)
            .filter_map(|rest| rest.split([' ', ',']).next())
            .collect();
        assert_eq!(taken, [EPOCH.to_string(), EXTERNAL_WRITERS.to_string()]);
        // The transaction of `settle_share` tries it first, and then waits for it.
        let of_shares = ["pg_try_advisory_xact_lock", "pg_advisory_xact_lock"];
        for function in of_shares {
            assert_eq!(sql.matches(&format!("{function}({SHARES})")).count(), 1, "{function}");
        }
        let all = sql.matches("advisory_xact_lock").count();
        assert_eq!(all, taken.len() + of_shares.len());
        assert_eq!(all, sql.matches("pg_advisory").count() + sql.matches("pg_try_advisory").count());
    }

    #[test]
    fn lock_keys_are_only_in_this_file() {
        let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).expect("readable") {
                let path = entry.expect("readable").path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|end| end == "rs")
                    && !path.ends_with("ledger/locks.rs")
                {
                    let text = std::fs::read_to_string(&path).expect("text");
                    assert!(!text.contains("0x435") && !text.contains("11297"), "{}", path.display());
                }
            }
        }
    }
}
