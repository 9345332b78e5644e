//! How long the ledger keeps its rows.

use cutover::migration::Phase;
use cutover_testkit::Postgres;
use sqlx::Executor;

use super::{Instance, Person, full};

#[tokio::test]
async fn rows_are_deleted_after_their_retention_period() {
    let url = Postgres::fresh_database().await.unwrap();
    let a = Instance::start(&url, "a", full()).await;
    a.at(Phase::Off).await;
    let person = Person::new(&url).await;
    person
        .0
        .execute(
            "insert into cutover.history (at, fleet, migration, event, actor) values \
                 (now() - interval '1097 days', 'f', 'm', 'too old', 'me'), \
                 (now() - interval '1000 days', 'f', 'm', 'recent', 'me'); \
             insert into cutover.archive (fleet, name, ended_as, archived_by, record, archived_at) values \
                 ('f', 'm', 'finished', 'me', '{}', now() - interval '11 years'); \
             insert into cutover.approvals (migration_id, phase, actor, expires_at) \
                 select id, 'contract', 'me', now() - interval '1 s' from cutover.migrations; \
             insert into cutover.jobs (migration_id, kind, epoch, finished_at) \
                 select id, 'scan', 1, now() - days * interval '1 day' \
                 from cutover.migrations, unnest('{200, 100, 95}'::integer[]) as days",
        )
        .await
        .unwrap();
    a.agent.leave().await.unwrap();
    let _b = Instance::start(&url, "b", full()).await;
    person.until("select not exists (select from cutover.history where event = 'too old')").await;
    person.until("select not exists (select from cutover.archive)").await;
    person.until("select not exists (select from cutover.approvals)").await;
    person.until("select count(*) = 1 from cutover.jobs").await;
    assert!(person.ask::<bool>("select exists (select from cutover.history where event = 'recent')").await);
    // The latest scan is evidence, however old it is.
    assert!(person.ask::<bool>("select finished_at > now() - interval '96 days' from cutover.jobs").await);
}
