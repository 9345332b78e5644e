//! What the constraints of the schema refuse.

use cutover_testkit::Postgres;

use super::{Outcome, execute, open};

/// A migration in `expand`, its first epoch drained.
pub(crate) const STATE: &str = "
    insert into cutover.fleets values ('shop') on conflict do nothing;
    insert into cutover.migrations (fleet, name) values ('shop', 'status');
    insert into cutover.epochs (migration_id, epoch, phase, actor, reason) values (1, 1, 'off', 'me', 'test');
    update cutover.epochs set closed_at = now(), drained_at = now();
    insert into cutover.epochs (migration_id, epoch, phase, previous_phase, actor, reason)
        values (1, 2, 'expand', 'off', 'me', 'test');
    update cutover.migrations set epoch = 2, phase = 'expand';
    insert into cutover.jobs (migration_id, kind, epoch) values (1, 'backfill', 2);";

const MOVE: &str =
    "insert into cutover.epochs (migration_id, epoch, previous_phase, phase, actor, reason) values ";

#[tokio::test]
async fn the_database_refuses_rows_that_break_a_rule() -> Outcome {
    let url = Postgres::fresh_database().await?;
    open(&url).await?;
    execute(&url, STATE).await?;
    let illegal = [
        ("two steps at once", format!("{MOVE} (1, 3, 'expand', 'verify', 'me', 'x')")),
        ("no step", format!("{MOVE} (1, 3, 'expand', 'expand', 'me', 'x')")),
        ("an epoch left out", format!("{MOVE} (1, 4, 'expand', 'backfill', 'me', 'x')")),
        ("a phase before that was another one", format!("{MOVE} (1, 3, 'verify', 'backfill', 'me', 'x')")),
        ("no phase before", format!("{MOVE} (1, 3, null, 'off', 'me', 'x')")),
        ("no phase at all", format!("{MOVE} (1, 3, 'expand', 'sideways', 'me', 'x')")),
        ("the same epoch twice", format!("{MOVE} (1, 2, 'off', 'expand', 'me', 'x')")),
        ("an epoch below one", format!("{MOVE} (1, 0, 'expand', 'backfill', 'me', 'x')")),
        (
            "three epochs in use",
            format!(
                "{MOVE} (1, 3, 'expand', 'backfill', 'me', 'x'); {MOVE} (1, 4, 'backfill', 'expand', 'me', 'x')"
            ),
        ),
        ("an epoch of no migration", format!("{MOVE} (7, 1, null, 'off', 'me', 'x')")),
        ("drained but open", "update cutover.epochs set closed_at = null where epoch = 1".into()),
        ("an epoch that is not there", "update cutover.migrations set epoch = 3".into()),
        ("another phase than the epoch's", "update cutover.migrations set phase = 'backfill'".into()),
        ("old read with gaps", "update cutover.migrations set old_complete = false".into()),
        ("a percentage above all", "update cutover.migrations set ramp_percent = 101".into()),
        ("a number outside of the lock's key", "update cutover.migrations set id = 65536".into()),
        (
            "the same migration twice",
            "insert into cutover.migrations (fleet, name) values ('shop', 'status')".into(),
        ),
        (
            "a second open job",
            "insert into cutover.jobs (migration_id, kind, epoch) values (1, 'backfill', 2)".into(),
        ),
        ("a second ledger", "insert into cutover.ledger (version, compatible_from) values (1, 1)".into()),
        ("compatible with later ones only", "update cutover.ledger set compatible_from = version + 1".into()),
        (
            "an approval of something else",
            "insert into cutover.approvals (migration_id, phase, actor) values (1, 'ramp', 'me')".into(),
        ),
        (
            "an approval by nobody",
            "insert into cutover.approvals (migration_id, phase, actor) values (1, 'contract', '')".into(),
        ),
        (
            "an acknowledgement of nobody",
            "insert into cutover.acknowledgements values (1, 1, 'off', 'contract', 2)".into(),
        ),
        ("a fleet without a name", "insert into cutover.fleets values ('')".into()),
    ];
    for (what, statements) in &illegal {
        let outcome =
            execute(&url, &format!("begin; {statements}; set constraints all immediate; commit")).await;
        let code = outcome.expect_err(what).as_database_error().unwrap().code().unwrap().into_owned();
        assert!(code.starts_with("23") || code.starts_with("428"), "{what}: {code}");
    }
    // Phases with a completeness that they may not have.
    for (phase, old, new) in [
        ("off", true, true),
        ("ramp", true, false),
        ("ramp", false, true),
        ("switch", true, false),
        ("retire", true, true),
        ("retire", false, false),
        ("contract", true, true),
    ] {
        let outcome = execute(
            &url,
            &format!(
                "update cutover.migrations set phase = '{phase}', old_complete = {old}, new_complete = {new}"
            ),
        )
        .await;
        let code = outcome.expect_err(phase).as_database_error().unwrap().code().unwrap().into_owned();
        assert_eq!(code, "23514", "{phase} {old} {new}");
    }
    // There is no way out of `contract`.
    let mut way = String::new();
    let phases = ["backfill", "verify", "ramp", "switch", "retire", "contract"];
    for (index, phase) in phases.iter().enumerate() {
        let before = index.checked_sub(1).map_or("expand", |before| phases[before]);
        way.push_str(&format!(
            "update cutover.epochs set closed_at = now(), drained_at = now(); \
             {MOVE} (1, {}, '{before}', '{phase}', 'me', 'x');",
            index + 3
        ));
    }
    execute(&url, &way).await?;
    execute(&url, "update cutover.epochs set closed_at = now(), drained_at = now()").await?;
    for phase in ["retire", "off"] {
        let outcome = execute(&url, &format!("{MOVE} (1, 9, 'contract', '{phase}', 'me', 'x')")).await;
        assert!(outcome.is_err(), "{phase}");
    }
    Ok(())
}
