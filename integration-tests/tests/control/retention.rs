//! How long the ledger keeps its rows.

use cutover::ledger::Ledger;
use cutover::migration::Phase;
use cutover::migration::admin::{Actor, forget};
use cutover_testkit::{Postgres, PostgresOptions, wait_until};
use sqlx::Executor;

use super::{Instance, LIMIT, Person, full};

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

/// Rows that are past their period and rows that are not. Migration `m` ended long ago; that of the test still runs.
const ROWS: &str = "\
    insert into cutover.fleets values ('f'); \
    with ended as (insert into cutover.migrations (fleet, name, ended_at, ended_as) \
            values ('f', 'm', now() - interval '91 days', 'abandoned'), ('f', 'recent', now() - interval '89 days', 'abandoned') \
            returning id) \
        insert into cutover.epochs (migration_id, epoch, phase, actor, reason) select id, 1, 'off', 'me', '' from ended; \
    insert into cutover.history (at, fleet, event, actor) \
        select now() - days * interval '1 day', 'f', 'e', 'me' from unnest('{1097, 1000}'::integer[]) as days; \
    insert into cutover.archive (fleet, name, ended_as, archived_by, record, archived_at) \
        select 'f', 'm', 'finished', 'me', '{}', now() - years * interval '1 year' from unnest('{11, 9}'::integer[]) as years; \
    insert into cutover.approvals (migration_id, phase, actor, expires_at) \
        select id, 'contract', 'me', now() + case name when 'm' then -1 else 1 end * interval '1 hour' \
        from cutover.migrations where fleet = 'f'; \
    insert into cutover.plans (migration_id, version, tasks, desired_from, published_at) \
        select id, days::text, '[]', 'ledger', now() - days * interval '1 day' \
        from cutover.migrations, unnest('{200, 89}'::integer[]) as days where name = 'm'; \
    insert into cutover.jobs (migration_id, kind, epoch, finished_at) \
        select id, 'scan', 1, now() - days * interval '1 day' \
        from cutover.migrations, unnest('{95, 8, 6}'::integer[]) as days where name = 'm'; \
    insert into cutover.job_ranges (job_id, number, upper_bound) select id, 1, '{1}' from cutover.jobs; \
    insert into cutover.bad_rows (migration_id, kind, key, error) \
        select id, 'backfill', '{1}', 'e' from cutover.migrations where name in ('m', 'payment_status'); \
    insert into cutover.plan_problems (migration_id, problems) \
        select id, '[]' from cutover.migrations where name in ('m', 'payment_status'); \
    insert into cutover.external_write_events (migration_id, application, role, mirrored) \
        select id, 'psql', 'me', true from cutover.migrations where name = 'm'; \
    insert into cutover.external_writes (migration_id, application, role, first_seen, last_seen) \
        select id, 'psql', 'me', now(), now() from cutover.migrations where fleet = 'f'";

/// What is left of them.
const LEFT: [(&str, &str); 10] = [
    ("history", "select count(*) = 1 from cutover.history where fleet = 'f'"),
    ("archive", "select count(*) = 1 from cutover.archive"),
    ("approvals", "select count(*) = 1 from cutover.approvals"),
    ("plans", "select count(*) = 1 from cutover.plans where version in ('200', '89')"),
    ("jobs", "select count(*) = 2 from cutover.jobs"),
    ("job_ranges", "select count(*) = 1 from cutover.job_ranges"),
    ("bad_rows", "select count(*) = 1 from cutover.bad_rows"),
    ("plan_problems", "select count(*) = 1 from cutover.plan_problems"),
    ("external_write_events", "select count(*) = 0 from cutover.external_write_events"),
    ("external_writes", "select count(*) = 1 from cutover.external_writes"),
];

/// A server of its own, which publishes every table: without a key, a delete would be an error.
#[tokio::test]
async fn each_table_is_emptied_also_where_it_is_published() {
    let settings = vec![("wal_level".to_owned(), "logical".to_owned())];
    let server = Postgres::start(PostgresOptions { settings, ..PostgresOptions::default() }).await.unwrap();
    let url = server.create_database("shop").await.unwrap();
    let a = Instance::start(&url, "a", full()).await;
    a.at(Phase::Off).await;
    let person = Person::new(&url).await;
    person.0.execute("create publication everything for all tables").await.unwrap();
    person.0.execute(ROWS).await.unwrap();
    a.agent.leave().await.unwrap();
    let _b = Instance::start(&url, "b", full()).await;
    for (table, left) in LEFT {
        wait_until(&format!("rows of {table} to be deleted"), LIMIT, async || {
            sqlx::query_scalar::<_, bool>(left).fetch_one(&person.0).await
        })
        .await
        .unwrap();
    }
    // Other deletes work, too: a move, and the archive.
    let ask = "update cutover.migrations set desired = 'expand' where name = 'payment_status'";
    person.0.execute(ask).await.unwrap();
    person.until("select phase = 'expand' from cutover.migrations where name = 'payment_status'").await;
    let ledger = Ledger::open(url.parse().unwrap()).await.unwrap();
    forget(&ledger, "f/m", Actor::with_reason("me", "old"), false).await.unwrap();
}
