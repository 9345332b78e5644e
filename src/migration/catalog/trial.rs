//! What only a trial shows: whether the service can write what it will write when the old columns are no longer written.

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use super::names::quote;
use super::problem::PlanProblem;
use super::table::TableFacts;
use super::trial_remedy::{of_postgres, remedy, triggers_of};
use crate::config::describe_without_values;
use crate::ledger::{guard_triggers, is_refusal, unprepared};

/// A duplicate of a key: every other check has passed by then.
const DUPLICATES: [&str; 2] = ["23505", "23P01"];

/// How many rows of a table are tried, and of each of its partitions.
const SAMPLE: (u32, u32) = (200, 20);
/// How many partitions are updated.
const UPDATED: usize = 20;
/// The server cannot pass over duplicates: the table has a rule, or a key that is checked at the end of the transaction.
const NO_CONFLICTS: [&str; 2] = ["0A000", "55000"];

/// What precedes each attempt. Constraints are checked at once, and no guard trigger maps what is written, as in a pinned
/// transaction.
pub(super) const AS_PINNED: &str = concat!(
    "set constraints all immediate; \
     select set_config('cutover.pin_' || id, 'on', true) from (select distinct substring(tgname::text from '^",
    guard_triggers::prefix!(),
    "([0-9]+)_') as id from pg_trigger) as armed where id is not null; "
);

/// The partitions that hold rows here. No more than these, so that the statement does not become too long.
const PARTITIONS: &str = "\
select format('%I.%I', n.nspname, c.relname) from pg_partition_tree(to_regclass($1)) p join pg_class c on c.oid = p.relid \
    join pg_namespace n on n.oid = c.relnamespace where p.isleaf and c.relkind = 'r' and c.oid <> to_regclass($1) \
    order by c.oid limit 500";

/// The triggers that an insert fires, as the statements that make them on a twin of the table, if one of them fires after it.
const AFTER_INSERT: &str = "\
with fired as (select t.tgname, t.tgtype & 2 = 0 as is_after, replace(pg_get_triggerdef(t.oid), \
        format(' ON %s ', format('%I.%I', n.nspname, c.relname)), ' ON pg_temp.cutover_written ') as statement \
    from pg_trigger t join pg_class c on c.oid = t.tgrelid join pg_namespace n on n.oid = c.relnamespace \
    join pg_proc p on p.oid = t.tgfoid join pg_namespace f on f.oid = p.pronamespace \
    where t.tgrelid = to_regclass($1) and not t.tgisinternal and f.nspname <> 'cutover' \
        and t.tgtype & 4 <> 0 and t.tgenabled in ('O', 'A') and t.tgconstrrelid = 0) \
select statement from fired where (select bool_or(is_after) from fired) order by tgname";

/// Writes of some rows of a table, as the service writes them. Each is rolled back.
///
/// Each partition has constraints of its own. In an empty table nothing can be tried, and no problem is reported.
pub(crate) struct WriteTrial<'a> {
    /// Quoted.
    pub(crate) table: &'a str,
    pub(crate) facts: &'a TableFacts,
    /// The columns that are no longer written from `retire` on, as the catalog names them.
    pub(crate) old: &'a [String],
    /// The columns of the same table that take their place, as the catalog names them, each with the expression that computes
    /// it. `None`: it is stored, and rows where it is null are not tried.
    pub(crate) new: &'a [(String, Option<String>)],
}

/// Inserts copies of some rows without these columns, as the service will from `retire` on.
pub(crate) async fn insert_without(
    connection: &mut PgConnection,
    table: &str,
    facts: &TableFacts,
    columns: &[String],
) -> Result<Option<PlanProblem>, sqlx::Error> {
    let trial = WriteTrial { table, facts, old: columns, new: &[] };
    Ok(trial.problems(connection).await?.into_iter().next())
}

/// Which columns of both sides a write names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Named {
    Old,
    Both,
    New,
}

/// Where a write goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Table,
    /// A temporary table with the same triggers. In the table itself the rows are there already, so no trigger fires after
    /// the insert.
    Twin,
}

impl WriteTrial<'_> {
    /// The writes that fail, or will from `retire` on. A refusal counts only if the same write in the form before is not
    /// refused in the same way.
    pub(crate) async fn problems(
        &self,
        connection: &mut PgConnection,
    ) -> Result<Vec<PlanProblem>, sqlx::Error> {
        let partitions: Vec<String> =
            unprepared::query_scalar(PARTITIONS).bind(self.table).fetch_all(&mut *connection).await?;
        let triggers: Vec<String> =
            unprepared::query_scalar(AFTER_INSERT).bind(self.table).fetch_all(&mut *connection).await?;
        let mut places = vec![Place::Table];
        if !triggers.is_empty() {
            places.push(Place::Twin);
        }
        let tables = Tables { partitions: &partitions, triggers: &triggers };
        for place in places {
            if let Some(problem) = self.of_inserts(place, &tables, connection).await? {
                return Ok(vec![problem]);
            }
        }
        Ok(self.of_updates(&tables, connection).await?.into_iter().collect())
    }

    async fn of_inserts(
        &self,
        place: Place,
        tables: &Tables<'_>,
        connection: &mut PgConnection,
    ) -> Result<Option<PlanProblem>, sqlx::Error> {
        let new = self.insert(Named::New, place, tables, connection).await?;
        let both = self.insert(Named::Both, place, tables, connection).await?;
        let table = self.table;
        if let Some(error) = refused_besides(new.as_ref(), both.as_ref()) {
            let column = names(self.old);
            let what = format!(
                "an insert into {table} without column {column} fails, as every insert would from `retire` on"
            );
            return self.problem(what, error, tables, &column, connection).await.map(Some);
        }
        if both.is_none() || self.new.is_empty() {
            return Ok(None);
        }
        let old = self.insert(Named::Old, place, tables, connection).await?;
        let Some(error) = refused_besides(both.as_ref(), old.as_ref()) else { return Ok(None) };
        if self.is_of_mapping(error, tables, connection).await? {
            return Ok(None);
        }
        let column = names(&self.new_names());
        let what = format!(
            "an insert into {table} with column {column} fails, and each insert of the service is one"
        );
        self.problem(what, error, tables, &column, connection).await.map(Some)
    }

    /// A row that is updated keeps what it has in the old columns.
    async fn of_updates(
        &self,
        tables: &Tables<'_>,
        connection: &mut PgConnection,
    ) -> Result<Option<PlanProblem>, sqlx::Error> {
        if self.new.is_empty() {
            return Ok(None);
        }
        let updated: Vec<&str> = match tables.partitions {
            [] => vec![self.table],
            some => some.iter().take(UPDATED).map(String::as_str).collect(),
        };
        for table in updated {
            let Some(new) = self.update(table, Named::New, connection).await? else { continue };
            let both = self.update(table, Named::Both, connection).await?;
            if let Some(error) = refused_besides(Some(&new), both.as_ref()) {
                let (new, old) = (names(&self.new_names()), names(self.old));
                let what = format!(
                    "an update of column {new} of {} without column {old} fails, as such updates would from `retire` on",
                    self.table
                );
                return self.problem(what, error, tables, &old, connection).await.map(Some);
            }
        }
        Ok(None)
    }

    async fn problem(
        &self,
        what: String,
        error: &sqlx::Error,
        tables: &Tables<'_>,
        column: &str,
        connection: &mut PgConnection,
    ) -> Result<PlanProblem, sqlx::Error> {
        let changed = self.to_be_changed(error, tables, connection).await?;
        let triggers = triggers_of(error, self.facts);
        let remedy = remedy(error, &changed, column, &triggers);
        Ok(PlanProblem::blocking(format!("{what}: {}", describe_without_values(error)), remedy))
    }

    fn new_names(&self) -> Vec<String> {
        self.new.iter().map(|(name, _)| name.clone()).collect()
    }

    /// A value that the mapping cannot compute, or that its column's type does not hold: a copy names its row. A mapping may
    /// raise any error, so it is computed alone.
    async fn is_of_mapping(
        &self,
        error: &sqlx::Error,
        tables: &Tables<'_>,
        connection: &mut PgConnection,
    ) -> Result<bool, sqlx::Error> {
        let computed = self.new.iter().filter_map(|(name, value)| Some((name, value.as_ref()?)));
        let values: Vec<String> = computed
            .map(|(name, value)| {
                let sql_type = self.facts.column(name).map_or("text", |column| &column.sql_type);
                format!("({value}\n)::{sql_type} as {}", quote(name))
            })
            .collect();
        if values.is_empty() {
            return Ok(false);
        }
        // A cast that is not an assignment truncates some of the values that do not fit.
        if of_postgres(error).is_some_and(|error| error.code().starts_with("22")) {
            return Ok(true);
        }
        let alone = attempt(connection, self.rows(&values, tables)).await?;
        Ok(alone.is_some_and(|alone| identity(&alone) == identity(error)))
    }

    /// The value of a column, as a query over the table's rows reads it.
    fn value(&self, name: &str) -> String {
        let computed = self.new.iter().find(|(new, _)| new == name).and_then(|(_, value)| value.as_ref());
        computed.map_or_else(|| quote(name), |value| format!("({value}\n)"))
    }

    /// These values of some rows, as a query.
    fn rows(&self, values: &[String], tables: &Tables<'_>) -> String {
        match tables.partitions {
            [] => self.rows_of(self.table, values, SAMPLE.0),
            some => {
                let each = some.iter().map(|from| self.rows_of(from, values, SAMPLE.1));
                each.collect::<Vec<_>>().join(" union all ")
            }
        }
    }

    /// Without the rows that others are writing. On a conflict, an insert would wait for the end of these transactions.
    fn rows_of(&self, from: &str, values: &[String], limit: u32) -> String {
        format!(
            "select * from (select {} from {from}{} limit {limit} for share skip locked) as sampled",
            values.join(", "),
            self.condition()
        )
    }

    /// Rows that can be tried.
    fn condition(&self) -> String {
        let stored = self.new.iter().filter(|(_, value)| value.is_none());
        let conditions: Vec<String> =
            stored.map(|(name, _)| format!("{} is not null", quote(name))).collect();
        if conditions.is_empty() { String::new() } else { format!(" where {}", conditions.join(" and ")) }
    }

    async fn insert(
        &self,
        named: Named,
        place: Place,
        tables: &Tables<'_>,
        connection: &mut PgConnection,
    ) -> Result<Option<sqlx::Error>, sqlx::Error> {
        let is_named = |name: &String| match named {
            Named::Both => true,
            Named::Old => !self.new.iter().any(|(new, _)| new == name),
            Named::New => !self.old.contains(name),
        };
        let stored =
            self.facts.columns.iter().filter(|column| !column.is_generated).map(|column| &column.name);
        let written: Vec<&String> = stored.filter(|name| is_named(name)).collect();
        let columns = names(&written);
        let values: Vec<String> =
            written.iter().map(|name| format!("{} as {}", self.value(name), quote(name))).collect();
        let source = self.rows(&values, tables);
        let insert = |into: &str, source: &str, end: &str| {
            format!(
                "insert into {into} ({columns}) overriding system value select {columns} from ({source}) as sampled{end}"
            )
        };
        if place == Place::Twin {
            let twin = "pg_temp.cutover_written";
            let like = format!(
                "create temporary table cutover_written (like {} including all) on commit drop",
                self.table
            );
            let insert = insert(twin, &source, "");
            let statements: Vec<&str> =
                [&like].into_iter().chain(tables.triggers).chain([&insert]).map(String::as_str).collect();
            return attempt(connection, statements.join("; ")).await;
        }
        let found = attempt(connection, insert(self.table, &source, " on conflict do nothing")).await?;
        match found.as_ref().and_then(of_postgres) {
            Some(error) if NO_CONFLICTS.contains(&error.code()) => {}
            _ => return Ok(found),
        }
        let found =
            attempt(connection, insert(self.table, &self.rows_of(self.table, &values, 1), "")).await?;
        Ok(found.filter(|error| !is_duplicate(error)))
    }

    /// Gives rows of a table the values of other ones.
    async fn update(
        &self,
        table: &str,
        named: Named,
        connection: &mut PgConnection,
    ) -> Result<Option<sqlx::Error>, sqlx::Error> {
        let new = self.new.iter().map(|(name, _)| name);
        let all: Vec<&String> = match named {
            Named::New => new.collect(),
            _ => self.old.iter().chain(new).collect(),
        };
        let list = |each: &dyn Fn(usize, &String) -> String| {
            all.iter().enumerate().map(|(number, name)| each(number, name)).collect::<Vec<_>>().join(", ")
        };
        let sets = list(&|number, name| format!("{} = s.v{number}", quote(name)));
        let values = list(&|number, name| format!("{} as v{number}", self.value(name)));
        let statement = |of_others: bool| {
            let moved = list(&|number, _| match of_others {
                true => format!("coalesce(lead(v{number}) over (order by place), v{number}) as v{number}"),
                false => format!("v{number}"),
            });
            format!(
                "update {table} as t set {sets} from (select place, {moved} from \
                     (select ctid as place, {values} from {table}{} limit {} for update skip locked) as locked) as s \
                 where t.ctid = s.place",
                self.condition(),
                SAMPLE.1
            )
        };
        let found = attempt(connection, statement(true)).await?;
        // The values may have to be unique.
        match found {
            Some(error) if is_duplicate(&error) => {
                Ok(attempt(connection, statement(false)).await?.filter(|error| !is_duplicate(error)))
            }
            found => Ok(found),
        }
    }

    /// The table whose constraint refused the write (quoted): a partition, if the whole table does not have it.
    async fn to_be_changed(
        &self,
        error: &sqlx::Error,
        tables: &Tables<'_>,
        connection: &mut PgConnection,
    ) -> Result<String, sqlx::Error> {
        let Some((error, partition)) = of_postgres(error).and_then(|error| Some((error, error.table()?)))
        else {
            return Ok(self.table.to_owned());
        };
        let is_of_table = match error.constraint() {
            Some(name) => unprepared::query_scalar(
                "select exists (select from pg_constraint where conrelid = to_regclass($1) and conname = $2)",
            )
            .bind(self.table)
            .bind(name)
            .fetch_one(connection)
            .await?,
            None => self.old.iter().all(|name| self.facts.column(name).is_some_and(|column| column.not_null)),
        };
        Ok(match (is_of_table || tables.partitions.is_empty(), error.schema()) {
            (false, Some(schema)) => format!("{}.{}", quote(schema), quote(partition)),
            _ => self.table.to_owned(),
        })
    }
}

/// What the catalog says about the table's parts and triggers.
struct Tables<'a> {
    partitions: &'a [String],
    /// The statements of [`AFTER_INSERT`].
    triggers: &'a [String],
}

fn names<T: AsRef<str>>(columns: &[T]) -> String {
    columns.iter().map(|column| quote(column.as_ref())).collect::<Vec<_>>().join(", ")
}

/// The refusal, if the other form of the write is not refused in the same way.
fn refused_besides<'a>(
    refusal: Option<&'a sqlx::Error>,
    other: Option<&sqlx::Error>,
) -> Option<&'a sqlx::Error> {
    refusal.filter(|refusal| other.is_none_or(|other| identity(other) != identity(refusal)))
}

/// Runs a statement as a pinned transaction would, and undoes it. Returns the server's refusal.
async fn attempt(
    connection: &mut PgConnection,
    statement: String,
) -> Result<Option<sqlx::Error>, sqlx::Error> {
    let mut tx = connection.begin().await?;
    let outcome = tx.execute(AssertSqlSafe(format!("{AS_PINNED}{statement}"))).await;
    tx.rollback().await?;
    match outcome {
        Ok(_) => Ok(None),
        Err(error) if is_refusal(&error) => Ok(Some(error)),
        Err(error) => Err(error),
    }
}

pub(super) fn is_duplicate(error: &sqlx::Error) -> bool {
    of_postgres(error).is_some_and(|error| DUPLICATES.contains(&error.code()))
}

/// What makes two refusals the same.
pub(super) fn identity(error: &sqlx::Error) -> Option<(&str, Option<&str>, Option<&str>, &str)> {
    let error = of_postgres(error)?;
    // The message of a violated constraint may hold values of the row.
    let message = if error.constraint().or(error.column()).is_some() { "" } else { error.message() };
    Some((error.code(), error.constraint(), error.column(), message))
}
