//! Whether the new table can be written without the old one, as from `retire` on: what its triggers do to rows that the old
//! table does not have. Each row is written in a transaction that is rolled back.

use serde_json::{Map, Value};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row};

use super::names::{quote, split_table, unquote};
use super::problem::PlanProblem;
use super::table::{ColumnFacts, TableFacts, Trigger};
use super::trial::{AS_PINNED, identity, is_duplicate};
use super::trial_remedy::{of_postgres, triggers_of};
use crate::config::describe_without_values;
use crate::ledger::{is_refusal, literal};

/// How many rows are tried.
const SAMPLE: u32 = 20;

/// Writes of copies of some rows of the new table, with other keys.
pub(crate) struct NewRowTrial<'a> {
    /// Old and new, quoted.
    pub(crate) tables: [&'a str; 2],
    pub(crate) new: &'a TableFacts,
    /// Quoted.
    pub(crate) key: &'a [String],
    /// Columns of the old table, quoted, with the expressions over a row of the new one that compute them. `None` where they
    /// are computed in Rust.
    pub(crate) backward: Option<(&'a [String], &'a [String])>,
}

/// What the new table has after the writes, row by row without the key, or the server's refusal.
type Written = Result<Vec<Map<String, Value>>, sqlx::Error>;

impl NewRowTrial<'_> {
    pub(crate) async fn problem(
        &self,
        connection: &mut PgConnection,
    ) -> Result<Option<PlanProblem>, sqlx::Error> {
        if self.new.triggers.is_empty() {
            return Ok(None);
        }
        let Some(key) = self.other_key() else { return Ok(None) };
        let alone = self.written(&key, false, connection).await?;
        let beside = match self.backward {
            Some(_) => Some(self.written(&key, true, connection).await?),
            None => None,
        };
        match (alone, beside) {
            (Err(error), beside) if counts(&error, beside.as_ref()) => Ok(Some(self.refused(&error))),
            (Ok(alone), Some(Ok(beside))) if alone != beside => {
                let Ok(again) = self.written(&key, false, connection).await? else { return Ok(None) };
                Ok(changed(&alone, &beside, &again).map(|columns| self.changed(&columns)))
            }
            _ => Ok(None),
        }
    }

    /// A column of the key, with an expression for values that no row has.
    fn other_key(&self) -> Option<(String, String)> {
        self.key.iter().find_map(|name| {
            let column = self.new.column(&unquote(name))?;
            Some((name.clone(), self.other_value(name, column)?))
        })
    }

    fn other_value(&self, name: &str, column: &ColumnFacts) -> Option<String> {
        let base = column.sql_type.split('(').next().unwrap_or_default();
        let [old, new] = self.tables;
        let after = |distance: &str| {
            format!("greatest((select max({name}) from {old}), (select max({name}) from {new})) + {distance}")
        };
        Some(match base {
            "smallint" | "integer" | "bigint" | "numeric" if self.key.len() == 1 => after("\"c:number\""),
            "integer" | "bigint" => "floor(random() * 2147483647)".to_owned(),
            "date" => after("\"c:number\"::integer"),
            _ if base.starts_with("timestamp") => after("\"c:number\" * interval '1 day'"),
            "uuid" => "gen_random_uuid()".to_owned(),
            "text" | "character varying" | "character" | "citext" => {
                "left(md5(random()::text), 12)".to_owned()
            }
            "bytea" => "decode(md5(random()::text), 'hex')".to_owned(),
            _ => return None,
        })
    }

    /// `beside`: the old table has the rows, too.
    async fn written(
        &self,
        (name, value): &(String, String),
        beside: bool,
        connection: &mut PgConnection,
    ) -> Result<Written, sqlx::Error> {
        let [old, new] = self.tables;
        let columns = self.new.stored_columns();
        let sql_type = self.new.column(&unquote(name)).map_or("text", |column| &column.sql_type);
        let stored: Vec<String> = self
            .new
            .columns
            .iter()
            .filter(|column| !column.is_generated)
            .map(|column| quote(&column.name))
            .collect();
        let values: Vec<String> = stored
            .iter()
            .map(|column| match column == name {
                true => format!("({value})::{sql_type} as {name}"),
                false => column.clone(),
            })
            .collect();
        let key = self.key.join(", ");
        let same: Vec<String> = self.key.iter().map(|name| format!("t.{name} = r.{name}")).collect();
        let same = same.join(" and ");
        let sets: Vec<String> = stored
            .iter()
            .filter(|column| !self.key.contains(column))
            .map(|column| format!("{column} = t.{column}"))
            .collect();
        let of_old = match (beside, self.backward) {
            (true, Some((names, expressions))) => {
                let names: String = names.iter().map(|name| format!(", {name}")).collect();
                let expressions: String =
                    expressions.iter().map(|expression| format!(", ({expression}\n)")).collect();
                format!(
                    "insert into {old} ({key}{names}) overriding system value select {key}{expressions} \
                     from cutover_rows as {}; ",
                    quote(&split_table(new).1)
                )
            }
            _ => String::new(),
        };
        let update = match &*sets {
            [] => String::new(),
            _ => format!("update {new} as t set {} from cutover_rows r where {same}; ", sets.join(", ")),
        };
        let keys: Vec<String> = self.key.iter().map(|name| literal::text(&unquote(name))).collect();
        let statements = format!(
            "{AS_PINNED}create temporary table cutover_rows on commit drop as select {}, \"c:number\" \
                 from (select {columns}, row_number() over () as \"c:number\" from {new} limit {SAMPLE}) as sampled; \
             {of_old}insert into {new} ({columns}) overriding system value select {columns} from cutover_rows; {update}\
             create temporary table cutover_written on commit drop as select to_jsonb(t) - array[{}]::text[] as row, \"c:number\" \
                 from {new} t join cutover_rows r on {same}; \
             delete from {new} as t using cutover_rows r where {same}; \
             select coalesce(jsonb_agg(row order by \"c:number\"), '[]')::text from cutover_written",
            values.join(", "),
            keys.join(", ")
        );
        let mut tx = connection.begin().await?;
        let outcome = tx.fetch_all(AssertSqlSafe(statements)).await;
        tx.rollback().await?;
        match outcome {
            Ok(rows) => {
                let row = rows.last().ok_or(sqlx::Error::RowNotFound)?;
                let text: String = row.try_get(0)?;
                serde_json::from_str(&text).map(Ok).map_err(|error| sqlx::Error::Decode(error.into()))
            }
            Err(error) if is_refusal(&error) => Ok(Err(error)),
            Err(error) => Err(error),
        }
    }

    fn refused(&self, error: &sqlx::Error) -> PlanProblem {
        let [old, new] = self.tables;
        PlanProblem::blocking(
            format!(
                "a row of {new} cannot be written if {old} has no row with its key, as no new row would have from `retire` on: {}",
                describe_without_values(error)
            ),
            self.remedy(&triggers_of(error, self.new)),
        )
    }

    fn changed(&self, columns: &[String]) -> PlanProblem {
        let [old, new] = self.tables;
        let columns: Vec<String> = columns.iter().map(|name| quote(name)).collect();
        let what = match &*columns {
            [] => "discard a row".to_owned(),
            _ => format!("store another value in {}", columns.join(", ")),
        };
        PlanProblem::blocking(
            format!(
                "the triggers of {new} {what} if {old} has no row with its key, as no new row would have from `retire` on"
            ),
            self.remedy(&[]),
        )
    }

    /// Of these triggers, or of those that may do it.
    fn remedy(&self, triggers: &[&Trigger]) -> String {
        let all: Vec<&Trigger> = self.new.triggers.iter().collect();
        let triggers = if triggers.is_empty() { &*all } else { triggers };
        let each = |trigger: &&Trigger| {
            format!(
                "change function {}, or `alter table {} disable trigger {}`",
                trigger.function,
                trigger.table,
                quote(&trigger.name)
            )
        };
        triggers.iter().map(each).collect::<Vec<_>>().join("; ")
    }
}

/// Whether a refusal is due to the missing row, and not to the key or to what the row holds.
fn counts(error: &sqlx::Error, beside: Option<&Written>) -> bool {
    let is_of_values = of_postgres(error)
        .is_none_or(|error| ["22", "23"].iter().any(|class| error.code().starts_with(class)));
    match beside {
        _ if is_duplicate(error) => false,
        Some(Ok(_)) => true,
        Some(Err(other)) => !is_of_values && identity(other) != identity(error),
        None => !is_of_values,
    }
}

/// The columns that differ, unless they differ each time. Empty: a row is missing. `None`: nothing differs.
fn changed(
    alone: &[Map<String, Value>],
    beside: &[Map<String, Value>],
    again: &[Map<String, Value>],
) -> Option<Vec<String>> {
    if alone.len() != beside.len() {
        return Some(Vec::new());
    }
    let mut columns: Vec<String> = Vec::new();
    for ((row, other), again) in alone.iter().zip(beside).zip(again) {
        let differs =
            |name: &&String| row.get(*name) != other.get(*name) && row.get(*name) == again.get(*name);
        columns.extend(row.keys().filter(differs).cloned());
    }
    columns.sort();
    columns.dedup();
    Some(columns).filter(|columns| !columns.is_empty())
}
