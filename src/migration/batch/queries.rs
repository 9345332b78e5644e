//! The text of every statement that moves or compares data. Names are checked and quoted once, at construction;
//! keys and mapped values are parameters; expressions are the user's own SQL.

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection};

use super::keyset::{Keyset, Span};
use super::mapping::{Mapping, MappingCode};
use crate::ledger::unprepared;
use crate::migration::phase::Task;

/// A statement with its parameters, all of them text.
#[derive(Debug, Clone)]
pub(crate) struct Query {
    text: String,
    values: Vec<Value>,
}

#[derive(Debug, Clone)]
enum Value {
    One(String),
    Many(Vec<String>),
}

impl Query {
    pub(crate) fn new(text: String) -> Self {
        Self { text, values: Vec::new() }
    }

    pub(crate) fn bind(mut self, value: String) -> Self {
        self.values.push(Value::One(value));
        self
    }

    pub(crate) fn bind_all(mut self, values: Vec<String>) -> Self {
        self.values.push(Value::Many(values));
        self
    }

    /// Has the server plan it, and so check it, without running it.
    pub(crate) fn explained(mut self) -> Self {
        self.text.insert_str(0, "explain ");
        self
    }

    /// Returns the number of rows concerned. The statement has no name, so it is planned for these very values.
    pub(crate) async fn execute(self, tx: &mut PgConnection) -> Result<i64, sqlx::Error> {
        let done = self.values.into_iter().fold(unprepared::query(AssertSqlSafe(self.text)), bind);
        Ok(i64::try_from(done.execute(tx).await?.rows_affected()).unwrap_or(i64::MAX))
    }

    pub(crate) async fn fetch_all(self, tx: &mut PgConnection) -> Result<Vec<PgRow>, sqlx::Error> {
        let query = self.values.into_iter().fold(unprepared::query(AssertSqlSafe(self.text)), bind);
        query.fetch_all(tx).await
    }
}

type SqlxQuery<'q> = sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments>;

fn bind(query: SqlxQuery<'_>, value: Value) -> SqlxQuery<'_> {
    match value {
        Value::One(value) => query.bind(value),
        Value::Many(values) => query.bind(values),
    }
}

/// The two sides: columns of one table, or two tables with the same key.
#[derive(Debug, Clone)]
pub(crate) struct Sides {
    /// Quoted; the same where both sides are in one table.
    pub(crate) old: String,
    pub(crate) new: String,
    /// Columns of the new side from rows of the old table.
    pub(crate) forward: Mapping,
    /// Columns of the old side from rows of the new table.
    pub(crate) backward: Mapping,
}

/// What mappings in Rust made of a span's rows, as JSON: `forward` of the old rows, `backward` of the new ones, and
/// `forward` of that.
#[derive(Debug, Default)]
pub(crate) struct Mapped {
    pub(crate) forward: Option<String>,
    pub(crate) backward: Option<String>,
    pub(crate) trip: Option<String>,
}

/// The sides with what the catalog knows about them.
#[derive(Debug, Clone)]
pub(crate) struct Scope<'a> {
    pub(crate) sides: &'a Sides,
    pub(crate) key: Keyset,
    /// The types of `backward`'s columns and of `forward`'s.
    pub(crate) old_types: Vec<String>,
    pub(crate) new_types: Vec<String>,
}

/// Whether a side holds something else than it should. A value that is there proves nothing: a side that was
/// written, given up and expanded again is full of stale ones.
fn differ(found: &[String], expected: &[String]) -> String {
    if cfg!(cutover_break = "compare") {
        return format!("row({}) is null", found.join(", "));
    }
    if let ([found], [expected]) = (found, expected) {
        return format!("{found} is distinct from {expected}");
    }
    format!("row({}) is distinct from row({})", found.join(", "), expected.join(", "))
}

/// `relation."f:0"`, …: a name that no column of the user's has.
fn columns(relation: &str, letter: char, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{relation}\"{letter}:{n}\"")).collect()
}

fn of(relation: &str, names: &[String]) -> Vec<String> {
    names.iter().map(|name| format!("{relation}.{name}")).collect()
}

fn zip(one: &[String], other: &[String], each: impl Fn(&str, &str) -> String) -> String {
    one.iter().zip(other).map(|(one, other)| each(one, other)).collect::<Vec<_>>().join(", ")
}

impl Scope<'_> {
    /// What the work of each task executes, for people to read.
    pub(crate) fn described(&self, expand: &str, contract: &str) -> Vec<(Task, String)> {
        let span = Span::Between { from: Some(vec![]), to: vec![] };
        let end = self.key.batch_end(&self.tables(), &span, ":rows");
        let in_rust =
            |mapping: &Mapping| matches!(mapping.code, MappingCode::Rust(_)).then(|| ":mapped".to_owned());
        let mapped = Mapped {
            forward: in_rust(&self.sides.forward),
            backward: in_rust(&self.sides.backward),
            trip: in_rust(&self.sides.forward),
        };
        let batch = |work: Query| format!("{};\n{}", end.text, work.text);
        vec![
            (Task::Expand, expand.to_owned()),
            (Task::Backfill, batch(self.copy_forward(&span, &mapped))),
            (Task::Scan, batch(self.differences(&span, &mapped))),
            (Task::ReverseBackfill, batch(self.copy_back(&span, &mapped))),
            (Task::Contract, contract.to_owned()),
        ]
    }

    /// Has the server check the statements of all sweeps, so that nobody learns that the way back does not work
    /// when it is needed.
    pub(crate) async fn try_out(&self, tx: &mut PgConnection) -> Result<(), sqlx::Error> {
        let (span, none) = (Span::Keys(Vec::new()), || Some("[]".to_owned()));
        let mapped = Mapped { forward: none(), backward: none(), trip: none() };
        for statement in [
            self.copy_forward(&span, &mapped),
            self.copy_back(&span, &mapped),
            self.differences(&span, &mapped),
        ] {
            statement.explained().fetch_all(&mut *tx).await?;
        }
        Ok(())
    }

    fn one_table(&self) -> bool {
        self.sides.old == self.sides.new
    }

    /// The tables whose rows are visited.
    pub(crate) fn tables(&self) -> Vec<&str> {
        if self.one_table() { vec![&self.sides.old] } else { vec![&self.sides.old, &self.sides.new] }
    }

    /// A span's statement, with the JSON that it mentions behind the span's own parameters.
    fn query(
        &self,
        span: &Span,
        text: impl Fn(&dyn Fn(usize) -> String) -> String,
        json: &[&Option<String>],
    ) -> Query {
        let first = self.key.parameters(span) + 1;
        let there: Vec<&String> = json.iter().copied().flatten().collect();
        let number = |index: usize| {
            let before = json.iter().take(index).filter(|json| json.is_some()).count();
            format!("${}", first + before)
        };
        there.into_iter().fold(self.key.query(span, text(&number)), |query, json| query.bind(json.clone()))
    }

    /// A relation of keys and mapped values.
    fn relation(
        &self,
        mapping: &Mapping,
        from: &str,
        span: &Span,
        lock: &str,
        letter: char,
        json: &str,
    ) -> String {
        let (names, count) = (self.key.names(), mapping.columns.len());
        match &mapping.code {
            MappingCode::Sql(expressions) => {
                let values =
                    zip(expressions, &columns("", letter, count), |e, name| format!("({e}) as {name}"));
                format!("(select {names}, {values} from {from} where {}{lock})", self.key.within(span))
            }
            MappingCode::Rust(_) => {
                self.recordset(letter, json, if letter == 'b' { &self.old_types } else { &self.new_types })
            }
        }
    }

    fn recordset(&self, letter: char, json: &str, types: &[String]) -> String {
        let typed =
            zip(&columns("", letter, types.len()), types, |name, sql_type| format!("{name} {sql_type}"));
        format!(
            "(select * from jsonb_to_recordset({json}::text::jsonb) as mapped ({}, {typed}))",
            self.key.declared()
        )
    }

    /// Makes the new side of a span what the old one says.
    ///
    /// Each source row is locked and, where it was changed meanwhile, read again, so that a delete waits or has
    /// happened, and what is written is what the row holds when the lock is had.
    pub(crate) fn copy_forward(&self, span: &Span, mapped: &Mapped) -> Query {
        let Sides { old, new, forward, .. } = self.sides;
        let (key, targets) = (&self.key, &forward.columns);
        let within = key.within(span);
        if let (true, MappingCode::Sql(values)) = (self.one_table(), &forward.code) {
            let values: Vec<String> = values.iter().map(|value| format!("({value})")).collect();
            let set = zip(targets, &values, |target, value| format!("{target} = {value}"));
            let text = format!("update {old} set {set} where {within} and {}", differ(targets, &values));
            return key.query(span, text);
        }
        let values = columns("o.", 'f', targets.len());
        let changed = differ(&of("t", targets), &values);
        self.query(
            span,
            |json| {
                let source = self.relation(forward, old, span, " for share", 'f', &json(0));
                if self.one_table() {
                    let set = zip(targets, &values, |target, value| format!("{target} = {value}"));
                    let same = key.equal("t", "o");
                    return format!("update {new} as t set {set} from {source} as o where {same} and {changed}");
                }
                self.upsert(
                    new,
                    targets,
                    &values,
                    &format!(
                        "{source} as o left join (select * from {new} where {within}) as t on {} where {} is null or {changed}",
                        key.equal("t", "o"),
                        self.first("t")
                    ),
                    "o",
                )
            },
            &[&mapped.forward],
        )
    }

    /// Makes the old side of a span what the new one says, where they differ by the new side's words: what the old
    /// one said in words of its own stays as it is.
    pub(crate) fn copy_back(&self, span: &Span, mapped: &Mapped) -> Query {
        let Sides { old, new, forward, backward } = self.sides;
        let (key, targets) = (&self.key, &backward.columns);
        let within = key.within(span);
        if let (true, MappingCode::Sql(f), MappingCode::Sql(b)) =
            (self.one_table(), &forward.code, &backward.code)
        {
            let f: Vec<String> = f.iter().map(|value| format!("({value})")).collect();
            let set = zip(targets, b, |target, value| format!("{target} = ({value})"));
            let text = format!("update {old} set {set} where {within} and {}", differ(&forward.columns, &f));
            return key.query(span, text);
        }
        let values = columns("b.", 'b', targets.len());
        let said = differ(&of("t", &forward.columns), &columns("o.", 'f', forward.columns.len()));
        self.query(
            span,
            |json| {
                let o = self.relation(forward, old, span, "", 'f', &json(0));
                let b = self.relation(backward, new, span, " for share", 'b', &json(1));
                if self.one_table() {
                    let set = zip(targets, &values, |target, value| format!("{target} = {value}"));
                    let (one, other) = (key.equal("t", "b"), key.equal("t", "o"));
                    return format!("update {old} as t set {set} from {b} as b, {o} as o where {one} and {other} and {said}");
                }
                self.upsert(
                    old,
                    targets,
                    &values,
                    &format!(
                        "{b} as b join (select * from {new} where {within}) as t on {} left join {o} as o on {} \
                         where {} is null or {said}",
                        key.equal("t", "b"),
                        key.equal("o", "b"),
                        self.first("o")
                    ),
                    "b",
                )
            },
            &[&mapped.forward, &mapped.backward],
        )
    }

    fn first(&self, relation: &str) -> String {
        self.key.columns.first().map(|column| format!("{relation}.{}", column.name)).unwrap_or_default()
    }

    fn upsert(&self, into: &str, targets: &[String], values: &[String], from: &str, keyed: &str) -> String {
        let (names, values, targets_text) = (self.key.names(), values.join(", "), targets.join(", "));
        let keys = self.key.columns.iter().map(|column| column.name.clone()).collect::<Vec<_>>();
        let set = zip(targets, &of("excluded", targets), |target, value| format!("{target} = {value}"));
        format!(
            "insert into {into} ({names}, {targets_text}) overriding system value select {}, {values} from {from} \
             on conflict ({names}) do update set {set}",
            of(keyed, &keys).join(", ")
        )
    }

    /// Rows of `table` that `other` does not have, locked. What is to be done with them is decided by a statement
    /// of its own, which sees what was committed until the lock was had.
    pub(crate) fn orphans(&self, table: &str, other: &str, span: &Span) -> Query {
        let (within, equal) = (self.key.within(span), self.key.equal("t", "s"));
        let text = format!(
            "select {} as key from {table} as t where {within} \
             and not exists (select 1 from {other} as s where {equal}) for update of t",
            self.key.as_text("t")
        );
        self.key.query(span, text)
    }

    pub(crate) fn delete_orphans(&self, table: &str, other: &str, span: &Span) -> Query {
        let (within, equal) = (self.key.within(span), self.key.equal("t", "s"));
        let text = format!(
            "delete from {table} as t where {within} and not exists (select 1 from {other} as s where {equal})"
        );
        self.key.query(span, text)
    }

    /// Locks a span's rows against every change.
    pub(crate) fn lock(&self, table: &str, span: &Span) -> Query {
        self.key.query(span, format!("select 1 from {table} where {} for share", self.key.within(span)))
    }

    /// The rows of a span on which the sides differ, or whose value does not survive the way back and forth again,
    /// with what the old side says and what the new one holds.
    pub(crate) fn differences(&self, span: &Span, mapped: &Mapped) -> Query {
        let Sides { forward, .. } = self.sides;
        let count = forward.columns.len();
        let (f, c, t) = (columns("x.", 'f', count), columns("x.", 'c', count), columns("x.", 't', count));
        let object = |values: &[String]| {
            let names: Vec<String> = forward.columns.iter().map(|name| name.replace('"', "'")).collect();
            let pairs: Vec<String> =
                names.iter().zip(values).map(|(name, value)| format!("{name}, {value}")).collect();
            // A function takes a hundred arguments at most.
            let parts = pairs.chunks(50).map(|pairs| format!("jsonb_build_object({})", pairs.join(", ")));
            format!("({})::text", parts.collect::<Vec<_>>().join(" || "))
        };
        let (different, lost) = (differ(&c, &f), differ(&c, &t));
        self.query(
            span,
            |json| {
                format!(
                    "select {} as key, case when not x.has_new then 'missing' when not x.has_old then 'extra' \
                            when {different} then 'different' else 'way_back' end as what, \
                            case when not x.has_old then null when {different} then {} else {} end as expected, \
                            case when x.has_new then {} end as found \
                     from ({}) as x where not x.has_old or not x.has_new or not x.has_trip or {different} or {lost} \
                     order by {}",
                    self.key.as_text("x"),
                    object(&f),
                    object(&t),
                    object(&c),
                    self.compared(span, json),
                    self.key.names()
                )
            },
            &[&mapped.forward, &mapped.trip],
        )
    }

    /// Keys, what the old side says (`f`), what the new one holds (`c`), and that once back and forth (`t`), if it comes
    /// through (`has_trip`).
    fn compared(&self, span: &Span, json: &dyn Fn(usize) -> String) -> String {
        let Sides { old, new, forward, backward } = self.sides;
        let (names, within, count) = (self.key.names(), self.key.within(span), forward.columns.len());
        let held =
            zip(&forward.columns, &columns("", 'c', count), |column, name| format!("{column} as {name}"));
        let sql = match (&forward.code, &backward.code) {
            (MappingCode::Sql(forward), MappingCode::Sql(backward)) => Some((forward, backward)),
            _ => None,
        };
        let back = |expressions: &[String]| {
            let typed: Vec<String> = expressions
                .iter()
                .zip(&self.old_types)
                .map(|(e, sql_type)| format!("({e})::{sql_type}"))
                .collect();
            zip(&typed, &backward.columns, |value, name| format!("{value} as {name}"))
        };
        let values = |expressions: &[String], letter| {
            zip(expressions, &columns("", letter, count), |e, name| format!("({e}) as {name}"))
        };
        if let (true, Some((f, b))) = (self.one_table(), sql) {
            let trip = columns("trip.", 't', count).join(", ");
            return format!(
                "select {names}, {}, {held}, {trip}, true as has_old, true as has_new, true as has_trip \
                 from {old} cross join lateral (select {} from (select {}) as back) as trip where {within}",
                values(f, 'f'),
                values(f, 't'),
                back(b)
            );
        }
        let o = self.relation(forward, old, span, "", 'f', &json(0));
        let n = match sql {
            Some((f, b)) => format!(
                "(select {names}, {}, {}, true as has_trip \
                 from (select {names}, {held}, {} from {new} where {within}) as back)",
                columns("", 'c', count).join(", "),
                values(f, 't'),
                back(b)
            ),
            None => format!(
                "(select held.*, {}, {} is not null as has_trip \
                 from (select {names}, {held} from {new} where {within}) as held left join {} as trip on {})",
                columns("trip.", 't', count).join(", "),
                self.first("trip"),
                self.recordset('t', &json(1), &self.new_types),
                self.key.equal("held", "trip"),
            ),
        };
        let listed = |relation, letter| columns(relation, letter, count).join(", ");
        format!(
            "select {names}, {}, {}, {}, {} is not null as has_old, {} is not null as has_new, \
                    n.has_trip is not false as has_trip \
             from {o} as o full join {n} as n using ({names})",
            listed("o.", 'f'),
            listed("n.", 'c'),
            listed("n.", 't'),
            self.first("o"),
            self.first("n")
        )
    }

    /// A span's rows as a mapping in Rust gets them, with their keys. `lock` where they are to be written.
    pub(crate) fn rows(&self, table: &str, span: &Span, lock: bool) -> Query {
        let text = format!(
            "select {} as cutover_key, t.* from {table} as t where {}{}",
            self.key.as_text("t"),
            self.key.within(span),
            if lock { " for share" } else { "" }
        );
        self.key.query(span, text)
    }

    /// The new side's rows as they would look on the old one.
    pub(crate) fn rows_back(&self, span: &Span, mapped: &Mapped) -> Query {
        let Sides { new, backward, .. } = self.sides;
        self.query(
            span,
            |json| {
                let b = self.relation(backward, new, span, "", 'b', &json(0));
                let typed: Vec<String> = columns("", 'b', backward.columns.len())
                    .iter()
                    .zip(&self.old_types)
                    .map(|(name, sql_type)| format!("{name}::{sql_type}"))
                    .collect();
                let named = zip(&typed, &backward.columns, |value, name| format!("{value} as {name}"));
                format!(
                    "select {} as cutover_key, t.* from (select {}, {named} from {b} as b) as t",
                    self.key.as_text("t"),
                    self.key.names()
                )
            },
            &[&mapped.backward],
        )
    }
}
