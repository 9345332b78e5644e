//! A person changes the desired phase while the driver makes a move.

use cutover_testkit::Postgres;
use sqlx::{Connection, Executor, PgConnection};

use super::{Instance, Person, full};

#[tokio::test]
async fn no_move_is_made_towards_a_phase_that_was_replaced() {
    let url = Postgres::fresh_database().await.unwrap();
    let _instance = Instance::start(&url, "a", full()).await;
    let person = Person::new(&url).await;
    person.wants("expand").await;
    person.settled("expand").await;

    // The driver has decided to move to `backfill`, and waits for this lock to write so.
    let mut other = PgConnection::connect(&url).await.unwrap();
    other.execute("begin; lock table cutover.epochs in share mode").await.unwrap();
    person.wants("backfill").await;
    person
        .until("select exists (select from pg_locks where not granted and relation = 'cutover.epochs'::regclass)")
        .await;
    person.wants("expand").await;
    other.execute("rollback").await.unwrap();

    person.wants("off").await;
    person.settled("off").await;
    let moves = "select string_agg(event, ', ' order by at) from cutover.history where event like '% to %'";
    assert_eq!(person.ask::<String>(moves).await, "off to expand, expand to off");
}
