//! The statements that copy rows from one side to the other.

use super::keyset::Span;
use super::mapping::MappingCode;
use super::query::Query;
use super::sides::{MappedRows, Scope, Sides, columns, differ, of, zip};

impl Scope<'_> {
    /// Makes the new side of a span what `forward` computes from the old one.
    ///
    /// Each source row is locked and, if it has changed meanwhile, read again. So a concurrent delete waits or has
    /// happened, and the value written is that of the row at the time of the lock.
    pub(crate) fn copy_forward(&self, span: &Span, mapped: &MappedRows) -> Query {
        let Sides { old, new, forward, .. } = self.sides;
        let (key, targets) = (&self.key, &forward.columns);
        let within = key.within(span);
        if let (true, MappingCode::Sql(values)) = (self.is_one_table(), &forward.code) {
            let set = zip(targets, values, |target, value| format!("{target} = ({value})"));
            let changed = differ(targets, values, &self.new_types);
            let text = format!("update {old} set {set} where {within} and {changed}");
            return Query::new(text);
        }
        let values = columns("o.", 'f', targets.len());
        let changed = differ(&of("t", targets), &values, &self.new_types);
        self.query(
            |json| {
                let source = self.source(span, &json(0));
                if self.is_one_table() {
                    let set = zip(targets, &values, |target, value| format!("{target} = {value}"));
                    let same = key.equal("t", "o");
                    return format!("update {new} as t set {set} from {source} as o where {same} and {changed}");
                }
                self.upsert(
                    new,
                    targets,
                    &values,
                    &format!(
                        "{source} as o left join (select * from {new} where {within}) as t on {} where {} is null or {changed}{}",
                        key.equal("t", "o"),
                        self.first_key_column("t"),
                        self.or_keys_differ("t", "o")
                    ),
                    "o",
                )
            },
            &[&mapped.forward],
        )
    }

    /// The keys and the values that are copied forward, of rows that are locked.
    fn source(&self, span: &Span, json: &str) -> String {
        let Sides { old, forward, .. } = self.sides;
        self.relation(forward, old, span, " for share", 'f', json)
    }

    /// Inserts the rows of a span that the new table lacks. Locks each source row, as [`Scope::copy_forward`] does.
    ///
    /// Without `on conflict` an insert takes half the time. It fails on a row that has a conflict, such as one that a
    /// transaction wrote after the beginning of the statement.
    pub(crate) fn insert_missing(&self, span: &Span, mapped: &MappedRows) -> Query {
        let Sides { new, forward, .. } = self.sides;
        let values = columns("o.", 'f', forward.columns.len());
        self.query(
            |json| {
                let source = self.source(span, &json(0));
                let within = self.key.within(span);
                let missing = format!(
                    "{source} as o left join (select * from {new} where {within}) as t on {} where {} is null",
                    self.key.equal("t", "o"),
                    self.first_key_column("t")
                );
                self.insert(new, &forward.columns, &values, &missing, "o")
            },
            &[&mapped.forward],
        )
    }

    /// Makes the old side of a span what `backward` computes from the new one, where `forward` of the old value is not
    /// the new value. An old value that only has another spelling stays as it is.
    pub(crate) fn copy_back(&self, span: &Span, mapped: &MappedRows) -> Query {
        let Sides { old, new, forward, backward, .. } = self.sides;
        let (key, targets) = (&self.key, &backward.columns);
        let within = key.within(span);
        if let (true, MappingCode::Sql(f), MappingCode::Sql(b)) =
            (self.is_one_table(), &forward.code, &backward.code)
        {
            let set = zip(targets, b, |target, value| format!("{target} = ({value})"));
            let changed = differ(&forward.columns, f, &self.new_types);
            let text = format!("update {old} set {set} where {within} and {changed}");
            return Query::new(text);
        }
        let values = columns("b.", 'b', targets.len());
        let changed =
            differ(&of("t", &forward.columns), &columns("o.", 'f', forward.columns.len()), &self.new_types);
        self.query(
            |json| {
                let o = self.relation(forward, old, span, "", 'f', &json(0));
                let b = self.relation(backward, new, span, " for share", 'b', &json(1));
                if self.is_one_table() {
                    let set = zip(targets, &values, |target, value| format!("{target} = {value}"));
                    let (one, other) = (key.equal("t", "b"), key.equal("t", "o"));
                    return format!("update {old} as t set {set} from {b} as b, {o} as o where {one} and {other} and {changed}");
                }
                if self.keeps_rows() {
                    let set = zip(targets, &values, |target, value| format!("{target} = {value}"));
                    return format!(
                        "update {old} as k set {set} from {b} as b join (select * from {new} where {within}) as t on {} \
                         left join {o} as o on {} where {} and ({} is null or {changed})",
                        key.equal("t", "b"),
                        key.equal("o", "b"),
                        key.equal("k", "b"),
                        self.first_key_column("o")
                    );
                }
                self.upsert(
                    old,
                    targets,
                    &values,
                    &format!(
                        "{b} as b join (select * from {new} where {within}) as t on {} left join {o} as o on {} \
                         where {} is null or {changed}{}",
                        key.equal("t", "b"),
                        key.equal("o", "b"),
                        self.first_key_column("o"),
                        self.or_keys_differ("t", "o")
                    ),
                    "b",
                )
            },
            &[&mapped.forward, &mapped.backward],
        )
    }

    fn insert(&self, into: &str, targets: &[String], values: &[String], from: &str, keyed: &str) -> String {
        let (names, values, targets) = (self.key.names(), values.join(", "), targets.join(", "));
        let keys = self.key.columns.iter().map(|column| column.name.clone()).collect::<Vec<_>>();
        format!(
            "insert into {into} ({names}, {targets}) overriding system value select {}, {values} from {from}",
            of(keyed, &keys).join(", ")
        )
    }

    fn upsert(&self, into: &str, targets: &[String], values: &[String], from: &str, keyed: &str) -> String {
        // A key that is equal and not identical was written differently. Others must not be set: one may be an identity.
        let set = [targets, &self.key.weak()].concat();
        let set = zip(&set, &of("excluded", &set), |target, value| format!("{target} = {value}"));
        let insert = self.insert(into, targets, values, from, keyed);
        format!("{insert} on conflict ({}) do update set {set}", self.key.names())
    }

    fn or_keys_differ(&self, one: &str, other: &str) -> String {
        self.key.identical(one, other).map(|same| format!(" or not {same}")).unwrap_or_default()
    }

    /// Locks and returns the rows of `table` that are not in `other`. [`Scope::delete_orphans`] is a statement of its own,
    /// so it sees everything that was committed before the lock.
    pub(crate) fn orphans(&self, table: &str, other: &str, span: &Span) -> Query {
        let (within, equal) = (self.key.within(span), self.key.equal("t", "s"));
        // The second condition follows from the first. Without it the server looks for each row by itself.
        let text = format!(
            "select {} as key from {table} as t where {within}{} \
             and not exists (select 1 from (select * from {other} where {within}) as s where {equal}{}) for update of t",
            self.key.as_text("t"),
            self.and_moves(table),
            self.and_moves(other)
        );
        Query::new(text)
    }

    pub(crate) fn delete_orphans(&self, table: &str, other: &str, span: &Span) -> Query {
        let (within, equal) = (self.key.within(span), self.key.equal("t", "s"));
        let text = format!(
            "{} where {within}{} and not exists (select 1 from {other} as s where {equal}{})",
            self.take_out(table),
            self.and_moves(table),
            self.and_moves(other)
        );
        Query::new(text)
    }
}
