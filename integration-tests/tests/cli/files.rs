//! `cutover plan --write-files`, and a migration whose schema a team's own files change.

use std::path::PathBuf;
use std::time::Duration;

use cutover::fleet::{Fleet, FleetOptions};
use cutover::health::Health;
use cutover::ledger::Ledger;
use cutover::migration::{
    Agent, ColumnMigration, DriverOptions, MigrationSpec, PhaseRange, Plan, SchemaChange, SchemaChangeBuilder,
};
use cutover::release::Release;
use cutover_testkit::{Folder, Postgres, wait_until};
use sqlx::PgPool;

use crate::{Outcome, database, done, execute, refused};

const LIMIT: Duration = Duration::from_secs(60);

type Started = Result<Agent, Box<dyn std::error::Error>>;

async fn instance(url: &str, pool: &PgPool) -> Started {
    let plan = ColumnMigration::new(pool.clone(), "orders")
        .column("old_status", "new_status", "text")
        .forward("lower(old_status)")
        .backward("upper(new_status)")
        .expand_sql("comment on column orders.new_status is 'in lower case'")
        .schema_by_files()
        .build()?;
    start(url, plan).await
}

async fn start(url: &str, plan: impl Plan + 'static) -> Started {
    let spec = MigrationSpec::new("order-status", PhaseRange::FULL).plan(plan).soak(Duration::ZERO);
    let health = Health::new();
    let release = Release::new("shop", "1")?;
    let fleet =
        Fleet::join(Ledger::open(url.parse()?).await?, &release, FleetOptions::default(), &health).await?;
    let agent = Agent::start(fleet, vec![spec], DriverOptions::default(), &health).await?;
    agent.admitted().await;
    Ok(agent)
}

async fn waits_for(pool: &PgPool, part: &str) -> Outcome {
    let query = "select coalesce(waits_for, '') from cutover.migrations";
    wait_until(part, LIMIT, async || {
        let text: String = sqlx::query_scalar(query).fetch_one(pool).await?;
        Ok::<_, sqlx::Error>(text.contains(part))
    })
    .await?;
    Ok(())
}

async fn is_in(pool: &PgPool, phase: &str) -> Outcome {
    let query = "select phase = $1 from cutover.migrations";
    wait_until(phase, LIMIT, async || sqlx::query_scalar::<_, bool>(query).bind(phase).fetch_one(pool).await)
        .await?;
    Ok(())
}

/// The file in the folder whose name ends like this.
fn file(folder: &Folder, end: &str) -> Result<(PathBuf, String), Box<dyn std::error::Error>> {
    let paths = std::fs::read_dir(folder.path())?.map(|entry| entry.map(|entry| entry.path()));
    let paths = paths.collect::<Result<Vec<PathBuf>, _>>()?;
    let path = paths.into_iter().find(|path| path.to_string_lossy().ends_with(end)).ok_or("a file")?;
    let text = std::fs::read_to_string(&path)?;
    Ok((path, text))
}

#[tokio::test]
async fn a_team_adds_and_drops_the_column_by_its_own_files() -> Outcome {
    let url = &database().await?;
    let pool = PgPool::connect(url).await?;
    let table = "create table orders (id bigserial primary key, old_status text); \
        insert into orders (old_status) select 'PAID' from generate_series(1, 100)";
    execute(url, table).await?;
    let agent = instance(url, &pool).await?;
    let folder = Folder::new("files")?;
    let directory = folder.path().to_string_lossy().into_owned();
    let plan = ["plan", "order-status", "--write-files", &directory];
    done(url, &plan, &["_order_status_expand.sql", "_order_status_contract.sql.later", "schema_by_files"])
        .await;
    let (_, expand) = file(&folder, "_order_status_expand.sql")?;
    let (_, contract) = file(&folder, "_order_status_contract.sql.later")?;
    assert!(
        expand.contains("add column if not exists \"new_status\"") && expand.contains("comment on"),
        "{expand}"
    );
    assert!(!expand.contains("trigger"), "the library installs it: {expand}");

    done(url, &["set-phase", "order-status", "switch"], &[]).await;
    waits_for(&pool, "--write-files").await?;
    waits_for(&pool, "column \"new_status\"").await?;
    let error = execute(url, &contract).await.expect_err("not in contract");
    assert!(error.to_string().contains("run this file after `cutover contract"), "{error}");
    execute(url, &expand).await?;
    is_in(&pool, "switch").await?;
    execute(url, "update orders set new_status = 'void' where id = 1").await?;
    let mirrored: String =
        sqlx::query_scalar("select old_status from orders where id = 1").fetch_one(&pool).await?;
    assert_eq!(mirrored, "VOID", "the guard trigger is armed");

    done(url, &["set-phase", "order-status", "retire"], &[]).await;
    is_in(&pool, "retire").await?;
    done(url, &["approve", "order-status"], &[]).await;
    done(url, &["set-phase", "order-status", "contract"], &[]).await;
    waits_for(&pool, "the drop of the old side").await?;
    // The guard trigger is gone before the column is, so no write fails in between.
    execute(url, &contract).await?;
    execute(url, "insert into orders (new_status) values ('open')").await?;
    let dropped = "select ended_as is not distinct from 'finished' from cutover.migrations";
    wait_until("the drop to be seen", LIMIT, async || {
        sqlx::query_scalar::<_, bool>(dropped).fetch_one(&pool).await
    })
    .await?;
    agent.leave().await?;
    Ok(())
}

#[tokio::test]
async fn files_create_a_database_without_a_ledger() -> Outcome {
    let url = &database().await?;
    let pool = PgPool::connect(url).await?;
    execute(url, "create table orders (id bigserial primary key, old_status text)").await?;
    refused(url, &["plan", "order-status", "--write-files", "x"], 3, &["cutover install"]).await;
    let agent = instance(url, &pool).await?;
    let folder = Folder::new("files")?;
    let directory = folder.path().to_string_lossy().into_owned();
    done(url, &["plan", "order-status", "--write-files", &directory], &[]).await;
    agent.leave().await?;
    let fresh = Postgres::fresh_database().await?;
    execute(&fresh, "create table orders (id bigserial primary key, old_status text)").await?;
    for end in ["_expand.sql", "_contract.sql.later"] {
        execute(&fresh, &file(&folder, end)?.1).await?;
    }
    execute(&fresh, "insert into orders (new_status) values ('open')").await
}

const SHAPELESS: &str = "create table orders (id bigserial primary key, total int, number int, customer int, code text); \
    create table customers (id int primary key); insert into customers values (1)";

fn constraints(pool: &PgPool) -> SchemaChangeBuilder {
    SchemaChange::new(pool.clone(), "orders")
        .not_null("total")
        .check("total_positive", "total >= 0")
        .unique("orders_number_key", &["number"])
        .foreign_key("orders_customer_fkey", &["customer"], "customers (id)")
        .quiet_period(Duration::from_millis(300))
        .without_read_check()
}

/// The constraints of the table, and its columns.
async fn shape_of(pool: &PgPool) -> Result<Vec<String>, sqlx::Error> {
    let query = "select conname || ' ' || pg_get_constraintdef(oid) from pg_constraint where conrelid = 'orders'::regclass \
             and contype <> 'n' \
         union all select attname || ' ' || attnotnull from pg_attribute where attrelid = 'orders'::regclass \
             and attnum > 0 and not attisdropped order by 1";
    sqlx::query_scalar(query).fetch_all(pool).await
}

async fn to_contract(url: &str, pool: &PgPool) -> Outcome {
    done(url, &["set-phase", "order-status", "retire"], &[]).await;
    is_in(pool, "retire").await?;
    done(url, &["approve", "order-status"], &[]).await;
    done(url, &["set-phase", "order-status", "contract"], &[]).await;
    Ok(())
}

async fn ended(pool: &PgPool) -> Outcome {
    let query = "select ended_as is not distinct from 'finished' from cutover.migrations";
    wait_until("the end", LIMIT, async || sqlx::query_scalar::<_, bool>(query).fetch_one(pool).await).await?;
    Ok(())
}

#[tokio::test]
async fn a_team_drops_an_unused_column_by_its_own_file() -> Outcome {
    let url = &database().await?;
    let pool = PgPool::connect(url).await?;
    execute(url, SHAPELESS).await?;
    let agent = start(url, constraints(&pool).drop_column("code").schema_by_files().build()?).await?;
    let folder = Folder::new("files")?;
    let directory = folder.path().to_string_lossy().into_owned();
    done(url, &["plan", "order-status", "--write-files", &directory], &["_contract.sql.later"]).await;
    assert!(file(&folder, "_expand.sql").is_err(), "there is nothing to add before `expand`");
    let (_, contract) = file(&folder, "_contract.sql.later")?;
    done(
        url,
        &["plan", "order-status"],
        &["-- in a migration file (`schema_by_files`)", "drop column if exists"],
    )
    .await;

    let error = execute(url, &contract).await.expect_err("not in contract");
    assert!(error.to_string().contains("run this file after `cutover contract"), "{error}");
    to_contract(url, &pool).await?;
    waits_for(&pool, "the drop of column").await?;
    assert!(shape_of(&pool).await?.iter().any(|line| line.starts_with("code ")), "the file makes the drop");
    // No trigger is left that names the column.
    execute(url, "insert into orders (total, number, customer) values (1, 1, 1)").await?;
    execute(url, &contract).await?;
    ended(&pool).await?;
    let after = shape_of(&pool).await?;
    execute(url, &contract).await?;
    assert_eq!(shape_of(&pool).await?, after, "the file can be run again");
    agent.leave().await?;

    let fresh = Postgres::fresh_database().await?;
    execute(&fresh, SHAPELESS).await?;
    execute(&fresh, &contract).await?;
    assert_eq!(shape_of(&PgPool::connect(&fresh).await?).await?, after, "a new database");
    Ok(())
}

#[tokio::test]
async fn a_file_repeats_what_the_library_has_changed() -> Outcome {
    let url = &database().await?;
    let pool = PgPool::connect(url).await?;
    execute(url, SHAPELESS).await?;
    execute(url, "create index by_code on orders (code)").await?;
    let agent = start(url, constraints(&pool).drop_index("by_code").build()?).await?;
    let folder = Folder::new("files")?;
    let directory = folder.path().to_string_lossy().into_owned();
    done(url, &["plan", "order-status", "--write-files", &directory], &["the library makes"]).await;
    let (_, contract) = file(&folder, "_contract.sql.later")?;
    to_contract(url, &pool).await?;
    ended(&pool).await?;
    let after = shape_of(&pool).await?;
    execute(url, &contract).await?;
    assert_eq!(shape_of(&pool).await?, after);
    agent.leave().await?;
    let refused = constraints(&pool).drop_index("by_code").schema_by_files().build();
    assert!(refused.expect_err("refused").to_string().contains("schema_by_files"));
    Ok(())
}
