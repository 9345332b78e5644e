//! The statements that compare both sides.

use super::keyset::Span;
use super::mapping::MappingCode;
use super::query::Query;
use super::sides::{MappedRows, Part, Scope, Sides, cast, columns, differ, zip};

/// The longest JSON of a value in a report, in bytes. A scan reports many rows at once.
const REPORTED: u32 = 2_000;

/// JSON, or its length if it is too long for a report.
fn shortened(json: &str) -> String {
    format!(
        "(select case when octet_length(value) <= {REPORTED} then value \
            else to_jsonb(format('%s bytes', octet_length(value)))::text end from (select {json}) as json (value))"
    )
}

impl Scope<'_> {
    /// The rows of a span on which the sides differ, or whose new value is not what `forward` computes from the result of
    /// `backward`, each with the expected value and the value found.
    pub(crate) fn differences(&self, span: &Span, mapped: &MappedRows) -> Query {
        let Sides { forward, .. } = self.sides;
        let count = forward.columns.len();
        let (f, c, t) = (columns("x.", 'f', count), columns("x.", 'c', count), columns("x.", 't', count));
        let object = |values: &[String]| {
            let names: Vec<String> = forward.columns.iter().map(|name| name.replace('"', "'")).collect();
            let pairs: Vec<String> =
                names.iter().zip(values).map(|(name, value)| format!("{name}, {value}")).collect();
            // A function takes at most a hundred arguments.
            let parts = pairs.chunks(50).map(|pairs| format!("jsonb_build_object({})", pairs.join(", ")));
            shortened(&format!("({})::text", parts.collect::<Vec<_>>().join(" || ")))
        };
        let types = &self.new_types;
        let (mut different, lost) = (differ(&c, &f, types), differ(&c, &t, types));
        if !self.is_one_table() && self.key.identical("o", "n").is_some() {
            different = format!("(not x.same_key or {different})");
        }
        self.query(
            |json| {
                format!(
                    "select {} as key, case when not x.has_new then 'missing' when not x.has_old then 'extra' \
                            when {different} then 'different' else 'way_back' end as what, \
                            case when not x.has_old then null when {different} then {} else {} end as expected, \
                            case when x.has_new then {} end as found \
                     from ({}) as x where (not x.has_old or not x.has_new or not x.has_trip or {different} or {lost}){} \
                     order by {}",
                    self.key.as_text("x"),
                    object(&cast(&f, types)),
                    object(&cast(&t, types)),
                    object(&c),
                    self.compared(span, json),
                    // A row of the new table that holds nothing is the same as none.
                    if self.keeps_rows() { " and (x.has_old or x.has_trip)" } else { "" },
                    self.key.names()
                )
            },
            &[&mapped.forward, &mapped.round_trip],
        )
    }

    /// Keys, `forward` of the old side (`f`), the values of the new side (`c`), and `forward` of `backward` of these (`t`),
    /// if that was computed (`has_trip`).
    fn compared(&self, span: &Span, json: &dyn Fn(usize) -> String) -> String {
        let Sides { old, new, forward, backward, part } = self.sides;
        let (names, within, count) = (self.key.names(), self.key.within(span), forward.columns.len());
        let held =
            zip(&forward.columns, &columns("", 'c', count), |column, name| format!("{column} as {name}"));
        let sql = match (&forward.code, &backward.code) {
            (MappingCode::Sql(forward), MappingCode::Sql(backward)) => Some((forward, backward)),
            _ => None,
        };
        let back = |expressions: &[String]| {
            zip(&cast(expressions, &self.old_types), &backward.columns, |value, name| {
                format!("{value} as {name}")
            })
        };
        let values = |expressions: &[String], letter| {
            zip(expressions, &columns("", letter, count), |e, name| format!("({e}) as {name}"))
        };
        if let (true, Some((f, b))) = (self.is_one_table(), sql) {
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
                "(select {names}, {}, {}, {} as has_trip \
                 from (select {names}, {held}, {} from {new} where {within}) as back)",
                columns("", 'c', count).join(", "),
                values(f, 't'),
                part.as_ref().map_or_else(|| "true".to_owned(), Part::holds),
                back(b)
            ),
            None => format!(
                "(select held.*, {}, {} is not null as has_trip \
                 from (select {names}, {held} from {new} where {within}) as held left join {} as trip on {})",
                columns("trip.", 't', count).join(", "),
                self.first_key_column("trip"),
                self.recordset('t', &json(1), &self.new_types),
                self.key.equal("held", "trip"),
            ),
        };
        let listed = |relation, letter| columns(relation, letter, count).join(", ");
        let (old_key, new_key) = (self.first_key_column("o"), self.first_key_column("n"));
        let same_key = self.key.identical("o", "n").map_or_else(String::new, |same| {
            format!(", ({old_key} is null or {new_key} is null or {same}) as same_key")
        });
        format!(
            "select {names}, {}, {}, {}, {} is not null as has_old, {} is not null as has_new, \
                    n.has_trip is not false as has_trip{same_key} \
             from {o} as o full join {n} as n using ({names})",
            listed("o.", 'f'),
            listed("n.", 'c'),
            listed("n.", 't'),
            self.first_key_column("o"),
            self.first_key_column("n")
        )
    }

    /// The rows of the new side with the values that `backward` computes, as a mapping in Rust gets them.
    pub(crate) fn rows_back(&self, span: &Span, mapped: &MappedRows) -> Query {
        let Sides { new, backward, .. } = self.sides;
        self.query(
            |json| {
                let b = self.relation(backward, new, span, "", 'b', &json(0));
                let typed = cast(&columns("", 'b', backward.columns.len()), &self.old_types);
                let named = zip(&typed, &backward.columns, |value, name| format!("{value} as {name}"));
                format!(
                    "select {} as cutover_key, t.* from (select {}, {named} from {b} as b) as t where true{}",
                    self.key.as_text("t"),
                    self.key.names(),
                    self.and_moves(&self.sides.old)
                )
            },
            &[&mapped.backward],
        )
    }
}
