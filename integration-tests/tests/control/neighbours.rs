//! Several migrations in one database that know of each other.

use std::time::Duration;

use cutover::fleet::FleetOptions;
use cutover::ledger::Ledger;
use cutover::migration::admin::abandon;
use cutover::migration::{ColumnMigration, DriverOptions, MigrationSpec, PhaseRange};
use sqlx::{Executor, PgPool};

use super::{Instance, NAME, Person};
use cutover_testkit::Postgres;

/// An instance of this fleet with a migration of this name, from column `old` to column `new` of `orders`.
async fn instance(url: &str, fleet: &str, name: &str, [old, new]: [&str; 2]) -> Instance {
    let plan = ColumnMigration::new(PgPool::connect(url).await.unwrap(), "orders")
        .column(old, new, "text")
        .forward(&format!("lower({old})"))
        .backward(&format!("upper({new})"))
        .build()
        .unwrap();
    let spec = MigrationSpec::new(name, PhaseRange::FULL).plan(plan).soak(Duration::ZERO);
    let options = FleetOptions { name: Some(fleet.to_owned()), ..FleetOptions::default() };
    Instance::with(url, fleet, vec![spec], options, DriverOptions::default()).await
}

#[tokio::test]
async fn two_fleets_cannot_migrate_one_column_at_once() {
    let url = Postgres::fresh_database().await.unwrap();
    let person = Person::new(&url).await;
    person.0.execute("create table orders (id bigint primary key, status text, code text)").await.unwrap();
    let _shop = instance(&url, "shop", NAME, ["status", "new_status"]).await;
    person.wants("expand").await;
    person.until("select phase = 'expand' from cutover.migrations where fleet = 'shop'").await;
    let _desk = instance(&url, "desk", NAME, ["status", "desk_status"]).await;
    person.wants("expand").await;
    person
        .until(
            "select coalesce(waits_for, '') like '%old side of migration shop/payment_status, which is in `expand`%' \
             from cutover.migrations where fleet = 'desk'",
        )
        .await;
    assert!(
        person.ask::<bool>("select count(*) = 1 from pg_trigger where tgname like 'zzz_cutover%_row'").await
    );
    // Another column of the same table is free.
    let _code = instance(&url, "third", "code", ["code", "new_code"]).await;
    person.wants("expand").await;
    person.until("select phase = 'expand' from cutover.migrations where fleet = 'third'").await;
    assert!(
        person.ask::<bool>("select count(*) = 2 from pg_trigger where tgname like 'zzz_cutover%_row'").await
    );

    person.0.execute("update cutover.migrations set desired = 'off' where fleet = 'shop'").await.unwrap();
    person
        .until(
            "select m.phase = 'off' and e.drained_at is not null from cutover.migrations m \
             join cutover.epochs e on e.migration_id = m.id and e.epoch = m.epoch - 1 where fleet = 'shop'",
        )
        .await;
    let ledger = Ledger::open(url.parse().unwrap()).await.unwrap();
    abandon(&ledger, "shop/payment_status", true, "me", false).await.unwrap();
    person.until("select phase = 'expand' from cutover.migrations where fleet = 'desk'").await;
}
