//! What each row must hold: an independent statement of the rules, over images of values.
//!
//! An image is a digest of what the server would send for the value, so `1.0` and `1.00` have different images.

use std::collections::HashMap;

use cutover::migration::Phase;
use sqlx::{Connection, PgConnection};

use crate::shape::Shape;
use crate::{Outcome, probe};

/// The settings under which every mapping has to be computed.
pub(crate) const FIXED: &str = "set timezone = 'UTC'; set datestyle = 'ISO, MDY'; set intervalstyle = 'postgres'; \
    set bytea_output = 'hex'; set extra_float_digits = 1";

/// The image of these columns together.
pub(crate) fn image_of(columns: &[&str]) -> String {
    let images: Vec<String> =
        columns.iter().map(|column| format!("md5(record_send(row({column})))")).collect();
    format!("concat_ws('{BETWEEN}', {})", images.join(", "))
}

/// A value of the old side, what the new side must hold for it, and what the way back makes of that.
///
/// The texts are those of the columns. An image is that of the whole side.
#[derive(Debug, Clone)]
pub(crate) struct Value {
    pub(crate) old_texts: Vec<Option<String>>,
    pub(crate) new_texts: Vec<Option<String>>,
    pub(crate) old: String,
    pub(crate) new: String,
    pub(crate) back: String,
}

/// The values of one column that moves, by their images.
#[derive(Debug, Clone, Default)]
pub(crate) struct Column {
    pub(crate) all: Vec<Value>,
    pub(crate) forward: HashMap<String, String>,
    pub(crate) back: HashMap<String, String>,
    pub(crate) null_old: String,
    pub(crate) null_new: String,
    pub(crate) default_old: String,
    pub(crate) default_new: String,
}

/// Between the images of columns of one side.
const BETWEEN: &str = "|";

/// All values of a shape.
#[derive(Debug, Clone, Default)]
pub(crate) struct Values {
    pub(crate) all: Vec<Value>,
    /// The text of a value that has no image on the new side, and the image of its column.
    pub(crate) unmappable: Option<(String, String)>,
    pub(crate) default_old: String,
    pub(crate) default_new: String,
    columns: Vec<Column>,
    /// The mapping back cannot try the mapping forward first, because that one is written in Rust.
    respells: bool,
}

impl Values {
    /// Asks the server, apart from the library. `None` if the shape makes no sense.
    pub(crate) async fn load(connection: &mut PgConnection, shape: &Shape) -> Outcome<Option<Self>> {
        let mut tx = connection.begin().await?;
        let (first, unmappable) = probe::first_column(&mut tx, shape).await?;
        let Some(first) = first else { return Ok(None) };
        let mut values =
            Self { unmappable, respells: shape.rust_pair.is_some(), columns: vec![first], ..Self::default() };
        if shape.has_second {
            values.columns.push(probe::second_column(&mut tx).await?);
        }
        tx.rollback().await?;
        values.all = values.columns[0].all.clone();
        for column in &values.columns[1..] {
            let both =
                values.all.iter().flat_map(|one| column.all.iter().map(move |other| one.beside(other)));
            values.all = both.collect();
        }
        let joined = |of: fn(&Column) -> &String| {
            values.columns.iter().map(|column| of(column).as_str()).collect::<Vec<_>>().join(BETWEEN)
        };
        values.default_old = joined(|column| &column.default_old);
        values.default_new = joined(|column| &column.default_new);
        let is_known = |column: &Column| {
            column.forward.contains_key(&column.default_old) && column.back.contains_key(&column.default_new)
        };
        // Where columns have a table of their own, a row that holds nothing is the same as none.
        let keeps_nulls = |value: &Value| {
            let is_null = value.new == values.columns[0].null_new;
            is_null == (value.old == values.columns[0].null_old)
                && is_null == (value.back == values.columns[0].null_old)
        };
        if shape.is_apart && !values.all.iter().all(keeps_nulls) {
            return Ok(None);
        }
        let is_known = values.columns.iter().all(is_known) && values.all.len() > 1;
        Ok(is_known.then_some(values))
    }

    /// The values of an image, for reports.
    pub(crate) fn show(&self, image: Option<&String>) -> String {
        let Some(image) = image else { return "no row".to_owned() };
        let shown = image.split(BETWEEN).zip(&self.columns).map(|(image, column)| {
            let unmappable = self.unmappable.iter().map(|(text, old)| (Some(text), old));
            let known = column.all.iter().flat_map(|one| {
                [(&one.old_texts, &one.old), (&one.new_texts, &one.new), (&one.new_texts, &one.back)]
            });
            let known = known.map(|(texts, image)| (texts.first().and_then(Option::as_ref), image));
            match unmappable.chain(known).find(|(_, known)| *known == image) {
                None => format!("unknown image {image}"),
                Some((None, _)) => "null".to_owned(),
                Some((Some(text), _)) => format!("{text:?}"),
            }
        });
        shown.collect::<Vec<_>>().join(" with ")
    }

    /// An image of one side after each of its columns is mapped.
    fn map(&self, image: &str, of: fn(&Column) -> &HashMap<String, String>) -> Option<String> {
        let parts = image.split(BETWEEN).zip(&self.columns);
        let mapped: Option<Vec<&str>> =
            parts.map(|(part, column)| of(column).get(part).map(String::as_str)).collect();
        mapped.map(|parts| parts.join(BETWEEN))
    }

    pub(crate) fn forward_of(&self, old: &str) -> Option<String> {
        self.map(old, |column| &column.forward)
    }

    pub(crate) fn back_of(&self, new: &str) -> Option<String> {
        self.map(new, |column| &column.back)
    }

    /// This image with the parts that a statement names.
    pub(crate) fn with(&self, image: &str, named: &[bool], parts: &str) -> String {
        let all = image.split(BETWEEN).zip(parts.split(BETWEEN)).zip(named);
        all.map(|((kept, given), named)| if *named { given } else { kept }).collect::<Vec<_>>().join(BETWEEN)
    }

    /// This image of the old side with the value that cannot be mapped.
    pub(crate) fn with_unmappable(&self, image: &str) -> Option<String> {
        let (_, unmappable) = self.unmappable.as_ref()?;
        let rest = image.split_once(BETWEEN).map_or(String::new(), |(_, rest)| format!("{BETWEEN}{rest}"));
        Some(format!("{unmappable}{rest}"))
    }

    fn by_old(&self, old: &str) -> Pair {
        (old.to_owned(), self.forward_of(old).unwrap_or_default())
    }

    fn by_new(&self, new: &str) -> Pair {
        (self.back_of(new).unwrap_or_default(), new.to_owned())
    }

    /// The new side decides, unless it is what the old side is mapped to.
    fn by_either(&self, old: &str, new: &str) -> Pair {
        match self.forward_of(old) {
            Some(mapped) if mapped == new && !self.respells => (old.to_owned(), new.to_owned()),
            _ => self.by_new(new),
        }
    }

    /// Whether some column of the image is none of these.
    fn names(&self, image: &str, not: [fn(&Column) -> &String; 2]) -> bool {
        image.split(BETWEEN).zip(&self.columns).any(|(part, column)| not.iter().all(|of| part != of(column)))
    }

    fn names_old(&self, old: &str) -> bool {
        self.names(old, [|column| &column.null_old, |column| &column.default_old])
    }

    fn names_new(&self, new: &str) -> bool {
        self.names(new, [|column| &column.null_new, |column| &column.default_new])
    }

    fn has_old(&self, old: &str) -> bool {
        self.names(old, [|column| &column.null_old, |column| &column.null_old])
    }

    fn has_new(&self, new: &str) -> bool {
        self.names(new, [|column| &column.null_new, |column| &column.null_new])
    }

    /// What an external insert into a table with both columns leaves. `None`: it is refused.
    pub(crate) fn inserted(&self, phase: Phase, old: &str, new: &str) -> Option<Pair> {
        match phase {
            Phase::Retire | Phase::Contract => {
                let is_old = self.names_old(old) || (self.has_old(old) && !self.has_new(new));
                (!is_old).then(|| (old.to_owned(), new.to_owned()))
            }
            _ if self.maps_forward(phase, old, new) => Some(self.by_old(old)),
            _ => Some(self.by_either(old, new)),
        }
    }

    /// Whether the new side of an external insert is computed from the old one.
    pub(crate) fn maps_forward(&self, phase: Phase, old: &str, new: &str) -> bool {
        match phase {
            Phase::Switch => self.names_old(old) && !self.names_new(new),
            _ => self.names_old(old) || !self.names_new(new),
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
            _ => Some(self.by_either(after.0, &self.brought_up(before, after))),
        }
    }

    /// The new side after an update of some of its columns, where the others are first computed from the old side.
    fn brought_up(&self, before: (&str, &str), after: (&str, &str)) -> String {
        let Some(current) = self.forward_of(before.0) else { return after.1.to_owned() };
        let parts = before.1.split(BETWEEN).zip(after.1.split(BETWEEN));
        let named: Vec<bool> = parts.map(|(was, is)| was != is).collect();
        self.with(&current, &named, after.1)
    }
}

impl Value {
    fn beside(&self, other: &Self) -> Self {
        let image = |one: &str, other: &str| format!("{one}{BETWEEN}{other}");
        Self {
            old_texts: [self.old_texts.as_slice(), &other.old_texts].concat(),
            new_texts: [self.new_texts.as_slice(), &other.new_texts].concat(),
            old: image(&self.old, &other.old),
            new: image(&self.new, &other.new),
            back: image(&self.back, &other.back),
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
