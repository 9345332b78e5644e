//! What a server without the library makes of the values of a column.

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row as _};

use crate::Outcome;
use crate::oracle::{Column, Value, image_of, literal};
use crate::shape::{SECOND, Shape};

/// The values of the second column on both sides.
const SECONDS: [[&str; 2]; 2] = [SECOND, ["OTHER", "other"]];

/// The column of the shape's pair of types, and its value that cannot be mapped: its text and its image. `None` if the shape
/// makes no sense.
pub(crate) async fn first_column(
    tx: &mut PgConnection,
    shape: &Shape,
) -> Outcome<(Option<Column>, Option<(String, String)>)> {
    let pair = &shape.pair;
    let mut column = Column::default();
    let mut probe =
        format!("create temp table probe (old_c {}, new_c {}) on commit drop; ", pair.old, pair.new);
    if shape.old_default {
        let default = format!("({})::{}", pair.values[0], shape.old_type());
        probe += &format!("alter table probe alter old_c set default {default}; ");
    }
    tx.execute(AssertSqlSafe(probe)).await?;
    let look = format!(
        "select old_c::text, new_c::text, {}, {} from probe",
        image_of(&["old_c"]),
        image_of(&["new_c"])
    );
    for text in pair.values.iter().chain(&["null"]) {
        let Some(value) = there_and_back(tx, shape, text, &look).await? else { continue };
        column.forward.insert(value.old.clone(), value.new.clone());
        column.forward.insert(value.back.clone(), value.new.clone());
        column.back.insert(value.new.clone(), value.back.clone());
        column.all.push(value);
    }
    let nulls = format!(
        "select {}, {}",
        image_of(&[&format!("null::{}", shape.old_type())]),
        image_of(&[&format!("null::{}", pair.new)])
    );
    let nulls = tx.fetch_one(AssertSqlSafe(nulls)).await?;
    (column.null_old, column.null_new) = (nulls.get(0), nulls.get(1));
    let mut unmappable = None;
    if let Some(text) = pair.unmappable {
        tx.execute("delete from probe").await?;
        let insert = format!("insert into probe (old_c) values (({text})::{})", shape.old_type());
        tx.execute(AssertSqlSafe(insert)).await?;
        let row = tx.fetch_one(AssertSqlSafe(&*look)).await?;
        unmappable = Some((row.get(0), row.get(2)));
    }
    if shape.new_default {
        let Some(first) = column.all.first() else { return Ok((None, None)) };
        let text = literal(first.new_texts[0].as_deref(), pair.new);
        tx.execute(AssertSqlSafe(format!("alter table probe alter new_c set default {text}"))).await?;
    }
    tx.execute("delete from probe").await?;
    tx.execute("insert into probe default values").await?;
    let row = tx.fetch_one(AssertSqlSafe(look)).await?;
    (column.default_old, column.default_new) = (row.get(2), row.get(3));
    Ok((Some(column), unmappable))
}

/// A value on the way there and back. `None` if the mapping fails or loses something: such a value would hold the migration,
/// and rightly so.
async fn there_and_back(
    tx: &mut PgConnection,
    shape: &Shape,
    text: &str,
    look: &str,
) -> Outcome<Option<Value>> {
    let pair = &shape.pair;
    let mut attempt = tx.begin().await?;
    let steps = async {
        attempt.execute("delete from probe").await?;
        let insert = format!("insert into probe values (({text})::{}, null)", shape.old_type());
        attempt.execute(AssertSqlSafe(insert)).await?;
        let forward = format!("update probe set new_c = {}", pair.forward);
        let back = format!("update probe set old_c = {}", pair.backward);
        attempt.execute(AssertSqlSafe(&*forward)).await?;
        let one = attempt.fetch_one(AssertSqlSafe(look)).await?;
        attempt.execute(AssertSqlSafe(back)).await?;
        let two = attempt.fetch_one(AssertSqlSafe(look)).await?;
        attempt.execute(AssertSqlSafe(forward)).await?;
        let three = attempt.fetch_one(AssertSqlSafe(look)).await?;
        Ok::<_, sqlx::Error>((one, two, three))
    }
    .await;
    attempt.rollback().await?;
    let Ok((one, two, three)) = steps else { return Ok(None) };
    let value = Value {
        old_texts: vec![one.get(0)],
        new_texts: vec![one.get(1)],
        old: one.get(2),
        new: one.get(3),
        back: two.get(2),
    };
    let keeps = three.get::<String, _>(3) == value.new;
    Ok(keeps.then_some(value))
}

/// The second column, whose mapping there and back changes between upper and lower case.
pub(crate) async fn second_column(tx: &mut PgConnection) -> Outcome<Column> {
    let mut column = Column::default();
    let texts = SECONDS.map(|texts| texts.map(|text| Some(text.to_owned())));
    for [old_text, new_text] in texts.into_iter().chain([[None, None]]) {
        let [old, new] = [&old_text, &new_text].map(|text| image_of(&[&literal(text.as_deref(), "text")]));
        let images = tx.fetch_one(AssertSqlSafe(format!("select {old}, {new}"))).await?;
        let (old, new): (String, String) = (images.get(0), images.get(1));
        column.forward.insert(old.clone(), new.clone());
        column.back.insert(new.clone(), old.clone());
        let back = old.clone();
        column.all.push(Value { old_texts: vec![old_text], new_texts: vec![new_text], old, new, back });
    }
    let (default, null) = (column.all[0].clone(), column.all[2].clone());
    (column.default_old, column.default_new) = (default.old, default.new);
    (column.null_old, column.null_new) = (null.old, null.new);
    Ok(column)
}
