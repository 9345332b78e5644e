//! What the table's own triggers do to rows that a copy writes, found by a copy of some rows that is rolled back.
//!
//! The rows are copied into a temporary table with the same columns and triggers, and the copy runs there. So nothing of the
//! real table is locked or written.

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use super::names::quote;
use super::problem::PlanProblem;
use super::settings::ROW_WORK_SETTINGS;
use super::table::TableFacts;
use crate::ledger::{describe_error, is_refusal, unprepared};

/// How many rows are tried.
const SAMPLE: u32 = 100;
/// Without triggers only the server's own settings and those of the copy are in effect.
pub(crate) const SKIP_TRIGGERS: &str = "set local session_replication_role = replica; ";

/// What to do about the triggers that a copy fires.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum CopyTriggers {
    /// Not decided: a trigger that changes other columns is a problem.
    #[default]
    Undecided,
    Fire,
    Skip,
}

/// The copy that is tried.
#[derive(Debug)]
pub(crate) struct CopyTrial<'a> {
    /// Quoted.
    pub(crate) table: &'a str,
    /// As the catalog names them.
    pub(crate) key: &'a [String],
    /// The new columns, quoted, each with its type.
    pub(crate) new: &'a [(String, String)],
    /// Their values. `None` where they are computed in Rust.
    pub(crate) values: Option<&'a [String]>,
    pub(crate) triggers: CopyTriggers,
}

/// The triggers that an update of the new columns fires: their names, and the statements that make them on `cutover_trial`.
const FIRED: &str = "\
select t.tgname::text, replace(pg_get_triggerdef(t.oid), format(' ON %s ', format('%I.%I', n.nspname, c.relname)), \
        ' ON pg_temp.cutover_trial ') \
    from pg_trigger t join pg_class c on c.oid = t.tgrelid join pg_namespace n on n.oid = c.relnamespace \
    join pg_proc p on p.oid = t.tgfoid join pg_namespace f on f.oid = p.pronamespace \
    where t.tgrelid = to_regclass($1) and not t.tgisinternal and f.nspname <> 'cutover' and t.tgtype & 16 <> 0 \
        and (t.tgenabled = 'A' or t.tgenabled = 'O' and not $3) \
        and (t.tgattr::text = '' or exists (select from pg_attribute a \
            where a.attrelid = c.oid and a.attname = any ($2) and a.attnum = any (t.tgattr::int2[]))) \
    order by t.tgname";

/// Problems of the copy because of triggers, and which triggers it fires.
pub(crate) async fn try_copy(
    connection: &mut PgConnection,
    trial: &CopyTrial<'_>,
    facts: &TableFacts,
) -> Result<Vec<PlanProblem>, sqlx::Error> {
    let table = trial.table;
    let names: Vec<String> = trial.new.iter().map(|(name, _)| super::names::unquote(name)).collect();
    let skips = trial.triggers == CopyTriggers::Skip;
    let fired: Vec<(String, String)> =
        unprepared::query_as(FIRED).bind(table).bind(&names).bind(skips).fetch_all(&mut *connection).await?;
    let mut problems = Vec::new();
    if skips && let Some(problem) = may_skip(connection, facts).await? {
        problems.push(problem);
    }
    if fired.is_empty() {
        return Ok(problems);
    }
    let fired_names: Vec<String> = fired.iter().map(|(name, _)| quote(name)).collect();
    let fired_names = fired_names.join(", ");
    let mut tx = connection.begin().await?;
    let outcome = changed(&mut tx, trial, facts, &fired, &names).await;
    tx.rollback().await?;
    let decide = "let the triggers check `current_setting('cutover.copying', true) = 'on'` and return early, or use \
        `.let_triggers_fire()` or `.skip_triggers()`";
    let is_decided = trial.triggers == CopyTriggers::Fire;
    let found = match outcome {
        Err(error) if is_refusal(&error) => (
            format!(
                "a copy fires the triggers {fired_names} of {table}, and fails: {}",
                describe_error(&error)
            ),
            !is_decided,
        ),
        Err(error) => return Err(error),
        Ok(Changed { missed, of, .. }) if missed > 0 => (
            format!(
                "a copy fires the triggers {fired_names} of {table}, which keep it from {missed} of {of} rows"
            ),
            true,
        ),
        Ok(Changed { columns, .. }) if columns.is_empty() => (
            format!(
                "a copy fires the triggers {fired_names} of {table}, which change no other column of the rows"
            ),
            false,
        ),
        Ok(Changed { columns, .. }) => {
            let columns: Vec<String> = columns
                .iter()
                .map(|(column, count, of)| format!("{} in {count} of {of} rows", quote(column)))
                .collect();
            (
                format!(
                    "a copy fires the triggers {fired_names} of {table}, which change {}",
                    columns.join(", ")
                ),
                !is_decided,
            )
        }
    };
    problems.push(match found {
        (problem, true) => PlanProblem::blocking(problem, decide),
        (problem, false) if is_decided => PlanProblem::warning(problem, "nothing, if this is intended"),
        (problem, false) => {
            PlanProblem::warning(problem, format!("nothing, if this is intended; otherwise {decide}"))
        }
    });
    Ok(problems)
}

/// Whether this role may skip triggers.
async fn may_skip(
    connection: &mut PgConnection,
    facts: &TableFacts,
) -> Result<Option<PlanProblem>, sqlx::Error> {
    let mut tx = connection.begin().await?;
    let outcome = tx.execute(SKIP_TRIGGERS).await;
    tx.rollback().await?;
    match outcome {
        Ok(_) => Ok(None),
        Err(error) if is_refusal(&error) => Ok(Some(PlanProblem::blocking(
            format!("role {} may not skip triggers: {}", facts.role, describe_error(&error)),
            format!(
                "`grant set on parameter session_replication_role to {}` (Postgres 15 and later), or let the triggers check \
                 `cutover.copying`",
                quote(&facts.role)
            ),
        ))),
        Err(error) => Err(error),
    }
}

/// What triggers made of the copy.
struct Changed {
    /// The other columns that differ after it, each with how many rows of how many.
    columns: Vec<(String, i64, i64)>,
    /// How many rows it has not reached, of how many.
    missed: i64,
    of: i64,
}

async fn changed(
    tx: &mut PgConnection,
    trial: &CopyTrial<'_>,
    facts: &TableFacts,
    fired: &[(String, String)],
    new_names: &[String],
) -> Result<Changed, sqlx::Error> {
    let CopyTrial { table, key, new, values, .. } = trial;
    let columns = facts.stored_columns();
    let create: String = fired.iter().map(|(_, create)| format!("{create}; ")).collect();
    let set = |value: &dyn Fn(usize) -> String| {
        let sets = new.iter().enumerate().map(|(number, (name, _))| format!("{name} = {}", value(number)));
        format!("update cutover_trial set {}", sets.collect::<Vec<_>>().join(", "))
    };
    let copy = set(&|number| match values.and_then(|values| values.get(number)) {
        Some(value) => format!("({value}\n)"),
        None => "null".to_owned(),
    });
    let reset = set(&|_| "null".to_owned());
    let add: String = new
        .iter()
        .map(|(name, sql_type)| {
            format!("alter table cutover_trial add column if not exists {name} {sql_type}; ")
        })
        .collect();
    tx.execute(AssertSqlSafe(format!(
        "{}create temporary table cutover_trial (like {table} including defaults including generated) on commit drop; \
         {add}insert into cutover_trial ({columns}) overriding system value select {columns} from {table} limit {SAMPLE}; \
         {reset}; create temporary table cutover_before on commit drop as select * from cutover_trial; \
         create temporary table cutover_places on commit drop as select ctid as place from cutover_trial; {create}{copy}",
        *ROW_WORK_SETTINGS
    )))
    .await?;
    let equal: Vec<String> = key.iter().map(|name| format!("t.{0} = b.{0}", quote(name))).collect();
    // An updated row is in another place.
    let (missed, of) = unprepared::query_as(
        "select count(*), (select count(*) from cutover_places) from cutover_trial t join cutover_places p on p.place = t.ctid",
    )
    .fetch_one(&mut *tx)
    .await?;
    let columns = unprepared::query_as(AssertSqlSafe(format!(
        "select e.key, count(*), (select count(*) from cutover_before) \
         from cutover_before b join cutover_trial t on {} \
             cross join lateral jsonb_each(to_jsonb(b.*) - $1::text[]) as e \
         where to_jsonb(t.*) -> e.key is distinct from e.value group by e.key order by e.key",
        equal.join(" and ")
    )))
    .bind(new_names)
    .fetch_all(tx)
    .await?;
    Ok(Changed { columns, missed, of })
}
