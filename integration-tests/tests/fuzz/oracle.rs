//! What each row must hold: an independent statement of the rules, over images of values.
//!
//! An image is a digest of what the server would send for the value, so `1.0` and `1.00` have different images.

use std::collections::HashMap;

use cutover::migration::Phase;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row as _};

use crate::Outcome;
use crate::shape::Shape;

/// The settings under which every mapping has to be computed.
pub(crate) const FIXED: &str = "set timezone = 'UTC'; set datestyle = 'ISO, MDY'; set intervalstyle = 'postgres'; \
    set bytea_output = 'hex'; set extra_float_digits = 1";

pub(crate) fn image_of(column: &str) -> String {
    format!("md5(record_send(row({column})))")
}

/// A value of the old side, what the new side must hold for it, and what the way back makes of that.
#[derive(Debug, Clone)]
pub(crate) struct Value {
    pub(crate) old_text: Option<String>,
    pub(crate) new_text: Option<String>,
    pub(crate) old: String,
    pub(crate) new: String,
    pub(crate) back: String,
}

/// All values of a shape.
#[derive(Debug, Clone, Default)]
pub(crate) struct Values {
    pub(crate) all: Vec<Value>,
    /// The text of a value that has no image on the new side, and its own image.
    pub(crate) unmappable: Option<(String, String)>,
    forward: HashMap<String, String>,
    back: HashMap<String, String>,
    null_old: String,
    null_new: String,
    pub(crate) default_old: String,
    pub(crate) default_new: String,
    /// The new side has a second column, whose default is a value.
    has_second: bool,
}

impl Values {
    /// Asks the server, apart from the library. `None` if the shape makes no sense.
    pub(crate) async fn load(connection: &mut PgConnection, shape: &Shape) -> Outcome<Option<Self>> {
        let pair = &shape.pair;
        let mut values = Self { has_second: shape.has_second, ..Self::default() };
        let mut tx = connection.begin().await?;
        let mut probe =
            format!("create temp table probe (old_c {}, new_c {}) on commit drop; ", pair.old, pair.new);
        if shape.old_default {
            probe += &format!(
                "alter table probe alter old_c set default ({})::{}; ",
                pair.values[0],
                shape.old_type()
            );
        }
        tx.execute(AssertSqlSafe(probe)).await?;
        let look = format!(
            "select old_c::text, new_c::text, {}, {} from probe",
            image_of("old_c"),
            image_of("new_c")
        );
        for text in pair.values.iter().chain(&["null"]) {
            let mut attempt = tx.begin().await?;
            let steps = async {
                attempt.execute("delete from probe").await?;
                let insert = format!("insert into probe values (({text})::{}, null)", shape.old_type());
                attempt.execute(AssertSqlSafe(insert)).await?;
                let forward = format!("update probe set new_c = {}", pair.forward);
                let back = format!("update probe set old_c = {}", pair.backward);
                attempt.execute(AssertSqlSafe(&*forward)).await?;
                let one = attempt.fetch_one(AssertSqlSafe(&*look)).await?;
                attempt.execute(AssertSqlSafe(back)).await?;
                let two = attempt.fetch_one(AssertSqlSafe(&*look)).await?;
                attempt.execute(AssertSqlSafe(forward)).await?;
                let three = attempt.fetch_one(AssertSqlSafe(&*look)).await?;
                Ok::<_, sqlx::Error>((one, two, three))
            }
            .await;
            attempt.rollback().await?;
            let Ok((one, two, three)) = steps else { continue };
            let value = Value {
                old_text: one.get(0),
                new_text: one.get(1),
                old: one.get(2),
                new: one.get(3),
                back: two.get(2),
            };
            // A value whose way there and back loses something would hold the migration, and rightly so.
            if three.get::<String, _>(3) != value.new {
                continue;
            }
            values.forward.insert(value.old.clone(), value.new.clone());
            values.forward.insert(value.back.clone(), value.new.clone());
            values.back.insert(value.new.clone(), value.back.clone());
            if value.old_text.is_none() {
                values.null_old.clone_from(&value.old);
            }
            values.all.push(value);
        }
        let nulls = format!(
            "select {}, {}",
            image_of(&format!("null::{}", shape.old_type())),
            image_of(&format!("null::{}", pair.new))
        );
        let nulls = tx.fetch_one(AssertSqlSafe(nulls)).await?;
        (values.null_old, values.null_new) = (nulls.get(0), nulls.get(1));
        if let Some(text) = pair.unmappable {
            tx.execute("delete from probe").await?;
            let insert = format!("insert into probe (old_c) values (({text})::{})", shape.old_type());
            tx.execute(AssertSqlSafe(insert)).await?;
            let row = tx.fetch_one(AssertSqlSafe(&*look)).await?;
            values.unmappable = Some((row.get(0), row.get(2)));
        }
        if shape.new_default {
            let Some(first) = values.all.first() else { return Ok(None) };
            let text = literal(first.new_text.as_deref(), pair.new);
            tx.execute(AssertSqlSafe(format!("alter table probe alter new_c set default {text}"))).await?;
        }
        tx.execute("delete from probe").await?;
        tx.execute("insert into probe default values").await?;
        let row = tx.fetch_one(AssertSqlSafe(look)).await?;
        (values.default_old, values.default_new) = (row.get(2), row.get(3));
        tx.rollback().await?;
        let is_known = values.forward.contains_key(&values.default_old)
            && values.back.contains_key(&values.default_new)
            && values.all.len() > 1;
        Ok(is_known.then_some(values))
    }

    /// The value of an image, for reports.
    pub(crate) fn show(&self, image: Option<&String>) -> String {
        let Some(image) = image else { return "no row".to_owned() };
        let unmappable = self.unmappable.iter().map(|(text, old)| (Some(text), old));
        let all = self.all.iter();
        let known = all.flat_map(|one| {
            [
                (one.old_text.as_ref(), &one.old),
                (one.new_text.as_ref(), &one.new),
                (one.new_text.as_ref(), &one.back),
            ]
        });
        let found = unmappable.chain(known).find(|(_, known)| *known == image);
        match found {
            None => format!("unknown image {image}"),
            Some((None, _)) => "null".to_owned(),
            Some((Some(text), _)) => format!("{text:?}"),
        }
    }

    fn by_old(&self, old: &str) -> Pair {
        (old.to_owned(), self.forward.get(old).cloned().unwrap_or_default())
    }

    fn by_new(&self, new: &str) -> Pair {
        (self.back.get(new).cloned().unwrap_or_default(), new.to_owned())
    }

    pub(crate) fn forward_of(&self, old: &str) -> Option<&String> {
        self.forward.get(old)
    }

    pub(crate) fn back_of(&self, new: &str) -> Option<&String> {
        self.back.get(new)
    }

    /// The new side decides, unless it is what the old side is mapped to.
    fn by_either(&self, old: &str, new: &str) -> Pair {
        match self.forward.get(old) {
            Some(mapped) if mapped == new => (old.to_owned(), new.to_owned()),
            _ => self.by_new(new),
        }
    }

    fn names_old(&self, old: &str) -> bool {
        old != self.null_old && old != self.default_old
    }

    fn names_new(&self, new: &str) -> bool {
        new != self.null_new && new != self.default_new
    }

    /// What an external insert into a table with both columns leaves. `None`: it is refused.
    pub(crate) fn inserted(&self, phase: Phase, old: &str, new: &str) -> Option<Pair> {
        match phase {
            Phase::Retire | Phase::Contract => {
                let leaves_new_out = new == self.null_new && !self.has_second;
                let is_old = self.names_old(old) || (old != self.null_old && leaves_new_out);
                (!is_old).then(|| (old.to_owned(), new.to_owned()))
            }
            Phase::Switch if self.names_old(old) && !self.names_new(new) => Some(self.by_old(old)),
            Phase::Switch => Some(self.by_either(old, new)),
            _ if self.names_new(new) && !self.names_old(old) => Some(self.by_either(old, new)),
            _ => Some(self.by_old(old)),
        }
    }

    /// What an external update leaves.
    pub(crate) fn updated(&self, phase: Phase, before: (&str, &str), after: (&str, &str)) -> Option<Pair> {
        let (old_same, new_same) = (before.0 == after.0, before.1 == after.1);
        match phase {
            _ if old_same && new_same => Some((after.0.to_owned(), after.1.to_owned())),
            Phase::Retire | Phase::Contract => old_same.then(|| (after.0.to_owned(), after.1.to_owned())),
            Phase::Switch if !new_same => Some(self.by_either(after.0, after.1)),
            Phase::Switch => Some(self.by_old(after.0)),
            _ if !old_same => Some(self.by_old(after.0)),
            _ => Some(self.by_either(after.0, after.1)),
        }
    }
}

/// Images of the old and of the new side.
pub(crate) type Pair = (String, String);

/// What is known of a row: the images that the last acknowledged write left, and which of them is behind.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) old: String,
    pub(crate) new: String,
    /// The old side was not written last time.
    pub(crate) old_behind: bool,
    /// The new side was written since the migration left `off`.
    pub(crate) new_written: bool,
    /// The new side cannot be computed.
    pub(crate) is_unmappable: bool,
    /// The phase of the last write.
    pub(crate) phase: Phase,
}

/// A literal of a type.
pub(crate) fn literal(text: Option<&str>, ty: &str) -> String {
    match text {
        None => format!("null::{ty}"),
        Some(text) => {
            let text = text.replace('\\', "\\\\").replace('\'', "''");
            format!("E'{text}'::{ty}")
        }
    }
}
