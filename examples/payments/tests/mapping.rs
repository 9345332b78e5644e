//! Compares the mapping in Rust with the one in SQL.
#![allow(clippy::unwrap_used, reason = "a failed set-up is a failed test")]

use cutover_testkit::Postgres;
use payments::status::{BACKWARD, FORWARD, Status};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

const WORDS: [&str; 32] = [
    "",
    "pending",
    "new",
    "open",
    "settled",
    "captured",
    "complete",
    "paid",
    "auth",
    "authorised",
    "authorized",
    "refund",
    "refunded",
    "chargeback",
    "canceled",
    "cancelled",
    "void",
    "fail",
    "failed",
    "error",
    "declined",
    "ship",
    "shipped",
    "sent",
    "unknown",
    "pay ed",
    "0",
    "\u{e4}",
    "PA\u{130}D",
    "paid.",
    "n/a",
    "null",
];

/// Each word in upper and lower case, alone and with each kind of white space around it.
fn spellings() -> Vec<String> {
    let spaces = ["", " ", "  ", "\t", "\n", "\r", "\u{a0}", "\u{2003}"];
    let words = WORDS.iter().flat_map(|word| [word.to_lowercase(), word.to_uppercase(), (*word).to_owned()]);
    words
        .flat_map(|word| {
            let around = move |space: &str| {
                [format!("{space}{word}"), format!("{word}{space}"), format!("{space}{word}{space}")]
            };
            spaces.into_iter().flat_map(around)
        })
        .collect()
}

#[tokio::test]
async fn sql_and_rust_map_every_spelling_alike() {
    let mut connection = PgConnection::connect(&Postgres::fresh_database().await.unwrap()).await.unwrap();
    let query = format!(
        "with there as (select old_payment_status, {FORWARD} as new_payment_status \
             from unnest($1::text[]) as old_payment_status), \
         back as (select old_payment_status, new_payment_status, {BACKWARD} as restored from there) \
         select old_payment_status, new_payment_status, restored from back"
    );
    let mut values: Vec<Option<String>> = spellings().into_iter().map(Some).collect();
    values.push(None);
    let rows: Vec<(Option<String>, Option<String>, Option<String>)> =
        sqlx::query_as(AssertSqlSafe(query)).bind(&values).fetch_all(&mut connection).await.unwrap();
    assert_eq!(rows.len(), values.len());
    for (old, new, restored) in rows {
        let status = Status::from_legacy(old.as_deref());
        assert_eq!(new.as_deref(), Some(status.name()), "{old:?}");
        assert_eq!(restored, Some(status.legacy_name()), "{old:?}");
    }
}
