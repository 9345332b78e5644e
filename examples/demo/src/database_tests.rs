use cutover_checker::Recorder;
use cutover_testkit::Postgres;

use super::*;

fn order(id: u64, status: Option<&str>) -> Order {
    Order { id, customer: "a\tb\\c\nd".to_owned(), amount_cents: 5, status: status.map(str::to_owned) }
}

async fn fresh() -> String {
    Postgres::fresh_database().await.unwrap()
}

async fn run(url: &str, sql: &str) {
    let mut connection = PgConnection::connect(url).await.unwrap();
    connection.execute(AssertSqlSafe(sql)).await.unwrap();
}

async fn schemas(url: &str) -> Vec<String> {
    let mut connection = PgConnection::connect(url).await.unwrap();
    sqlx::query_scalar(
        "select nspname::text from pg_namespace where nspname !~ '^pg_|information_schema' order by 1",
    )
    .fetch_all(&mut connection)
    .await
    .unwrap()
}

async fn refusal(url: &str) -> String {
    Database::prepare(url, true).await.err().expect("a refusal").to_string()
}

#[tokio::test]
async fn rows_are_loaded_unchanged_and_new_ids_follow() {
    let url = fresh().await;
    let database = Database::prepare(&url, false).await.unwrap();
    let orders = Orders::imported(vec![order(7, None), order(900, Some(" pa\\id\t")), order(3, Some(""))]);
    assert_eq!(database.load(&orders, |_| ()).await.unwrap(), 3);
    let rows: Vec<(i64, String, Option<String>)> =
        sqlx::query_as("select id, customer, old_payment_status from orders order by id")
            .fetch_all(&database.pool)
            .await
            .unwrap();
    let expected = [(3, Some("")), (7, None), (900, Some(" pa\\id\t"))];
    let expected = expected.map(|(id, status)| (id, "a\tb\\c\nd".to_owned(), status.map(str::to_owned)));
    assert_eq!(rows, expected);
    let next: i64 =
        sqlx::query_scalar("insert into orders (customer, amount_cents) values ('x', 1) returning id")
            .fetch_one(&database.pool)
            .await
            .unwrap();
    assert_eq!(next, 901);
    assert!(database.has_column("old_payment_status").await.unwrap());
    assert!(!database.has_column("new_payment_status").await.unwrap());
}

#[tokio::test]
async fn differing_columns_and_changed_rows_are_found() {
    let url = fresh().await;
    let database = Database::prepare(&url, false).await.unwrap();
    let orders = Orders::Seeded { seed: 1, rows: 100 };
    database.load(&orders, |_| ()).await.unwrap();
    run(&url, "alter table orders add new_payment_status text").await;
    let mut copy = String::from("update orders set new_payment_status = case id");
    (1..=100)
        .for_each(|id| copy.push_str(&format!(" when {id} then '{}'", orders.first_status(id).unwrap())));
    run(&url, &format!("{copy} end")).await;
    assert_eq!(database.compare_columns().await.unwrap(), Rows { seen: 100, ..Rows::default() });

    run(&url, "update orders set new_payment_status = 'strange' where id in (5, 6, 7)").await;
    run(&url, "delete from orders where id in (8, 9)").await;
    assert_eq!(database.compare_columns().await.unwrap().wrong, 3);
    // 5 was written with its current value, 6 with another one, 9 was deleted after a write; 7 and 8 were not written.
    let recorder = Recorder::new(1, str::to_owned);
    recorder.write(0, 5, "strange", 1, Some(2));
    recorder.write(0, 6, "paid", 1, Some(2));
    recorder.write(0, 9, "paid", 1, Some(2));
    let mut history = recorder.history();
    let rows = database.last_values(Side::New, &orders, &mut history).await.unwrap();
    assert_eq!((rows.wrong, rows.seen), (2, 98), "{rows:?}");
    assert!(rows.examples[0].starts_with("order 7: loaded as "), "{rows:?}");
    let verdict = history.check();
    assert_eq!(verdict.lost_writes, 2, "{verdict:?}");

    let mut nothing = Recorder::new(1, str::to_owned).history();
    let old = database.last_values(Side::Old, &orders, &mut nothing).await.unwrap();
    assert_eq!(
        old.examples,
        ["2 orders that no request wrote are gone"],
        "the old column keeps its loaded spellings"
    );
}

#[tokio::test]
async fn the_user_s_database_is_restored() {
    let url = fresh().await;
    run(&url, "create table orders (mine text); insert into orders values ('precious')").await;
    let database = Database::prepare(&url, true).await.unwrap();
    database.load(&Orders::Seeded { seed: 1, rows: 10 }, |_| ()).await.unwrap();
    run(&url, "create schema cutover; create table cutover.fleets (name text)").await;
    assert!(refusal(&url).await.contains("another demo is running"));
    database.clear().await.unwrap();
    drop(database);
    assert_eq!(schemas(&url).await, ["public"]);
    run(&url, "do $$ begin assert (select mine = 'precious' from public.orders); end $$").await;
}

#[tokio::test]
async fn only_leftovers_of_a_demo_are_removed() {
    let url = fresh().await;
    let killed = Database::prepare(&url, true).await.unwrap();
    run(&url, "create schema cutover; create table cutover.fleets (name text)").await;
    run(&url, "insert into cutover.fleets values ('payments')").await;
    drop(killed);
    // The server releases the lock when it notices the closed connection.
    let again = cutover_testkit::wait_until("lock free", std::time::Duration::from_secs(10), || async {
        Database::prepare(&url, true).await.map(drop).map(|()| true)
    });
    again.await.unwrap();
    assert_eq!(schemas(&url).await, ["cutover_demo", "public"]);
    let cleared = cutover_testkit::wait_until("cleared", std::time::Duration::from_secs(10), || async {
        Database::clear_leftovers(&url).await.unwrap();
        Ok::<_, Failure>(schemas(&url).await == ["public"])
    });
    cleared.await.unwrap();
    Database::prepare(&url, true).await.unwrap();
    assert_eq!(schemas(&url).await, ["cutover_demo", "public"]);

    run(&url, "create schema cutover; create table cutover.fleets (name text)").await;
    run(&url, "insert into cutover.fleets values ('somebody')").await;
    let refused = cutover_testkit::wait_until("refusal", std::time::Duration::from_secs(10), || async {
        Ok::<_, Failure>(refusal(&url).await.contains("belongs to another service"))
    });
    refused.await.unwrap();
    run(&url, "drop schema cutover_demo cascade").await;
    assert!(refusal(&url).await.contains("belongs to another service"));
    run(&url, "drop schema cutover cascade; create schema cutover_demo").await;
    assert!(refusal(&url).await.contains("was not created by the demo"));
    assert_eq!(schemas(&url).await, ["cutover_demo", "public"]);
}

#[tokio::test]
async fn missing_rights_are_reported_with_the_grant() {
    let url = fresh().await;
    run(&url, "create role demo_weak login").await;
    let weak = url.replace("postgres@", "demo_weak@");
    let error = refusal(&weak).await;
    assert!(error.contains("grant create on database"), "{error}");
}
