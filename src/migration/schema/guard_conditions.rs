//! Conditions and texts of the guard trigger. Names are quoted.

use super::guard_refusals::REFUSE_UNSEEN;
use crate::migration::batch::{MappingCode, Part};

/// Why a row is recorded if a column that the function names is not there.
pub(super) const RENAMED: &str = "'a column of the migration has another name or type, or is gone'";

/// Why a row is recorded if a transaction with an older snapshot deletes it or changes its key.
pub(super) const UNSEEN: &str =
    "'its snapshot may be older than the row of the new table, so its write may have missed that'";

/// A mapping as a `select` of its values, `v0`, `v1` and so on; `None` in Rust.
pub(super) fn written(how: &MappingCode) -> Option<String> {
    match how {
        MappingCode::Sql(expressions) => {
            let values: Vec<String> =
                expressions.iter().enumerate().map(|(n, text)| format!("({text}) as v{n}")).collect();
            Some(format!("select {}", values.join(", ")))
        }
        MappingCode::Rust(_) => None,
    }
}

/// Columns of one row of the trigger, separated by commas.
pub(super) fn listed(row: &str, columns: &[String]) -> String {
    columns.iter().map(|column| format!("{row}.{column}")).collect::<Vec<_>>().join(", ")
}

/// Conditions and statements about both sides of a row.
pub(super) struct Comparisons {
    /// An update leaves the side as it was.
    pub(super) same_old: String,
    pub(super) same_new: String,
    /// The new side of `written` is that of `new`.
    pub(super) agrees: String,
    /// Sets `named_old` and `named_new`: whether an insert named a column of the side.
    pub(super) names_old: String,
    pub(super) names_new: String,
    /// The side holds a value.
    pub(super) has_old: String,
    pub(super) has_new: String,
    /// An update leaves the key as it was.
    pub(super) same_key: String,
}

/// Whether columns of two rows are identical, by their images, because not every type has an `=`.
pub(super) fn same(one: &str, other: &str, columns: &[String]) -> String {
    format!(
        "row({})::pg_catalog.record operator(pg_catalog.*=) row({})::pg_catalog.record",
        listed(one, columns),
        listed(other, columns)
    )
}

/// [`same`] for the condition of a trigger. `pg_dump` writes out `*=` without the casts of both rows, and then the server takes
/// it for a comparison of their columns.
pub(super) fn same_for_dumps(one: &str, other: &str, columns: &[String]) -> String {
    format!(
        "pg_catalog.record_image_eq(row({})::pg_catalog.record, row({})::pg_catalog.record)",
        listed(one, columns),
        listed(other, columns)
    )
}

impl Comparisons {
    pub(super) fn of(old: &[String], new: &[String], key: &[String]) -> Self {
        // An insert named the column if it holds a value that the column's default does not give.
        let names = |variable: &str, columns: &[String]| {
            let looks = columns.iter().map(|column| {
                let name = column.trim_matches('"');
                format!(
                    "if not {variable} and new.{column} is not null then \
                         comparison := cutover.comparison_with_default(tg_relid, '{name}'); \
                         if comparison is not null then \
                             execute comparison into is_named using new.{column}; {variable} := not is_named; end if; \
                     end if;"
                )
            });
            format!("{variable} := false; {}", looks.collect::<Vec<_>>().join(" "))
        };
        // `row(…) is not null` would ask whether every column holds a value.
        let has = |columns: &[String]| format!("pg_catalog.num_nonnulls({}) > 0", listed("new", columns));
        Self {
            same_old: same("old", "new", old),
            same_new: same("old", "new", new),
            agrees: same("written", "new", new),
            names_old: names("named_old", old),
            names_new: names("named_new", new),
            has_old: has(old),
            has_new: has(new),
            same_key: same("old", "new", key),
        }
    }
}

/// Lets a write pass if a column that the function names was renamed or dropped, or has got another type since this session
/// compiled the function, and records it as one that was not mirrored. Nothing else of the function would work.
/// `record_repair` is the statement that records the row for repair of a side.
///
/// A pinned write that relies on the trigger fails.
pub(super) fn pass_if_renamed(columns: &[String], record_repair: impl Fn(&str) -> String) -> String {
    format!(
        "begin agrees := row({}) is null; \
         exception when undefined_column or datatype_mismatch then \
             phase := pg_catalog.current_setting('cutover.pin_' || tg_argv[0], true); \
             if phase not in ('', 'on') and pg_catalog.pg_trigger_depth() = 1 then raise; end if; \
             if phase <> '' then phase := cutover.phase_for_guard(tg_argv[0]::integer); \
             else phase := cutover.record_external_write(tg_argv[0]::integer, false); end if; \
             if phase in ('expand', 'backfill', 'verify', 'ramp', 'switch') then \
                 begin {} exception when undefined_column or datatype_mismatch then null; end; \
             end if; \
             return new; \
         end;",
        listed("new", columns),
        record_repair("case phase when 'switch' then 'old' else 'new' end")
    )
}

/// Runs `looks`, and sets `is_renamed` if a column that these statements name, or for a `truncate` one of the tables, was
/// renamed or dropped, or has got another type since this session compiled the function. Then `moved` and `moves` are true.
pub(super) fn notice_if_renamed(key: &[String], [source, target]: [&str; 2], looks: &str) -> String {
    format!(
        "begin \
             if tg_op = 'TRUNCATE' then \
                 perform {of_target} from {target} as gone limit 0; perform {of_source} from {source} as there limit 0; \
             elsif tg_op = 'DELETE' then agrees := row({old}) is null; else agrees := row({new}) is null; end if; \
             {looks} \
         exception when undefined_column or undefined_table or datatype_mismatch then \
             moved := true; moves := true; is_renamed := true; \
         end;",
        of_target = listed("gone", key),
        of_source = listed("there", key),
        old = listed("old", key),
        new = listed("new", key),
    )
}

/// Sets `moved` and `moves`: whether the row was one of the part before the write, and is after it. Other rows pass. Where rows
/// lose columns only, it sets `moves_key` if an update changes the key and no such column.
pub(super) fn looks_at_part(
    key: &[String],
    part: Option<&(Part, Vec<String>)>,
    condition: Option<&str>,
) -> String {
    let (Some((part, columns)), Some(condition)) = (part, condition) else {
        return String::new();
    };
    let holds = |row: &str| {
        format!(
            "(select mapped.v0 is true from (select {row}.*) as cutover_row cross join lateral ({condition}) as mapped)"
        )
    };
    let pass = "if tg_op = 'DELETE' then return old; end if; return new;";
    let (passes, unchanged) = match part.keeps_rows {
        true => {
            let (same_columns, same_key) = (same("old", "new", columns), same("old", "new", key));
            let unchanged = format!(
                "if tg_op = 'UPDATE' then moves_key := {same_columns}; \
                     if moves_key and {same_key} then {pass} end if; end if;"
            );
            ("tg_op <> 'DELETE' and not moves_key and ", unchanged)
        }
        false => ("", String::new()),
    };
    format!(
        "if tg_op <> 'TRUNCATE' then {unchanged} moved := false; moves := false; \
             if tg_op <> 'INSERT' then moved := {was}; end if; \
             if tg_op <> 'DELETE' then moves := {is}; end if; \
             if {passes}not moved and not moves then {pass} end if; end if;",
        was = holds("old"),
        is = holds("new"),
    )
}

/// Gives the row of `target` the row's new key, in the phases in which writes of the old side are refused. A row that only loses
/// columns may get another key in each phase. What it holds in these columns is outdated then, and is not copied again.
///
/// A row of `target` that is newer than the transaction's snapshot is not found. While both sides are written, `record` notes both
/// keys for repair.
pub(super) fn follow_key(target: &str, key: &[String], phases: &str, record: &str) -> String {
    format!(
        "if moves_key and not is_renamed and phase in ({phases}) then \
             update {target} as gone set ({}) = row({}) where ({}) = ({}); \
             if not found and pg_catalog.current_setting('transaction_isolation') <> 'read committed' then \
                 if phase in ('retire', 'contract') then {REFUSE_UNSEEN} end if; {record} end if; \
             return null; end if;",
        key.join(", "),
        listed("new", key),
        listed("gone", key),
        listed("old", key),
    )
}
