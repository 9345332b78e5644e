//! Work on schemas that is interrupted: the server ends the session at each statement, one after the other, and another instance
//! continues.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use cutover::fleet::FleetOptions;
use cutover::migration::{
    Migration, MigrationSpec, Phase, PhaseRange, Plan, PlanError, PlanProblem, SchemaChange,
    SchemaChangeBuilder, SchemaState, SidesPresent, Task, WiderKey,
};
use cutover_testkit::{picture, widened};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, Executor, PgConnection, PgPool};

use crate::wider_key::load;
use crate::world::{Fleet, Outcome, World};

const LONG: Duration = Duration::from_secs(300);

/// Ends the session of a plan at each place once: at the first, second, … change within each statement text. The places where
/// that was done are bits of sequences, because sequences are not rolled back.
const CUT: &str = "
    create table passed (transaction bigint not null);
    create sequence cuts;
    select setval('cuts', 1, false);
    do $$ begin for slot in 0..63 loop execute format('create sequence places_%s', slot); end loop; end $$;
    create function cut(event text) returns void language plpgsql set search_path = public as $$
    declare place bigint; slot text; bit bigint; places bigint; begin
        if current_setting('application_name') <> 'plan' then return; end if;
        select abs(hashtextextended(format('%s %s %s', event, count(*), current_query()), 1) / 2) into place
            from passed where transaction = txid_current();
        slot := format('places_%s', place % 64);
        bit := 1::bigint << (1 + (place / 64) % 60)::integer;
        execute format('select last_value from %I', slot) into places;
        if places & bit = 0 then
            perform setval(slot, places | bit), nextval('cuts');
            perform pg_terminate_backend(pg_backend_pid());
            perform pg_sleep(60);
        end if;
        insert into passed values (txid_current());
    end $$;
    create function cut_rows() returns trigger language plpgsql as $$ begin
        if exists (select from changed) then perform public.cut('rows'); end if; return null; end $$;
    create function cut_schema() returns event_trigger language plpgsql as $$ begin
        perform public.cut(tg_event || tg_tag); end $$";
/// Not before the statement as well: that leaves what a cut after the one before it leaves.
const CUT_SCHEMA: &str = "create event trigger cut_after on ddl_command_end execute function cut_schema()";

/// Two instances' plans, each with a pool of its own. What fails because of a cut is continued with the other one.
#[derive(Debug)]
struct Interrupted<P> {
    plans: [P; 2],
    calm: PgPool,
    /// How often each task had to be continued.
    continued: Continued,
}

type Continued = Arc<Mutex<BTreeMap<&'static str, usize>>>;

impl<P> Interrupted<P> {
    async fn cuts(&self) -> Result<i64, sqlx::Error> {
        sqlx::query_scalar("select last_value - 1 + is_called::int from cuts").fetch_one(&self.calm).await
    }
}

#[async_trait]
impl<P: Plan> Plan for Interrupted<P> {
    async fn problems(
        &self,
        migration: Option<i32>,
        ledger: &mut PgConnection,
    ) -> Result<Vec<PlanProblem>, sqlx::Error> {
        loop {
            let before = self.cuts().await?;
            match self.plans[0].problems(migration, ledger).await {
                Err(_) if self.cuts().await? > before => {}
                outcome => return outcome,
            }
        }
    }

    async fn before_step(
        &self,
        phase: Phase,
        migration: i32,
        is_move: bool,
        connection: &mut PgConnection,
    ) -> Result<Vec<PlanProblem>, sqlx::Error> {
        self.plans[0].before_step(phase, migration, is_move, connection).await
    }

    async fn schema_state(
        &self,
        migration: Option<i32>,
        connection: &mut PgConnection,
    ) -> Result<SchemaState, sqlx::Error> {
        self.plans[0].schema_state(migration, connection).await
    }

    async fn sides_present(
        &self,
        migration: Option<i32>,
        connection: &mut PgConnection,
    ) -> Result<SidesPresent, sqlx::Error> {
        self.plans[0].sides_present(migration, connection).await
    }

    async fn run(&self, task: Task, migration: &Migration) -> Result<(), PlanError> {
        for plan in self.plans.iter().cycle() {
            let before = self.cuts().await?;
            match plan.run(task, migration).await {
                Err(_) if self.cuts().await? > before => {
                    let mut continued = self.continued.lock().unwrap_or_else(PoisonError::into_inner);
                    *continued.entry(task.name()).or_default() += 1;
                }
                outcome => return outcome,
            }
        }
        Ok(())
    }
}

/// A pool whose sessions are cut.
async fn pool(world: &World) -> Outcome<PgPool> {
    let options: PgConnectOptions = world.url.parse()?;
    Ok(PgPoolOptions::new().max_connections(4).connect_with(options.application_name("plan")).await?)
}

/// An instance whose plan is cut at each statement that changes the schema, and at each that updates rows of these tables.
async fn instance<P: Plan + 'static>(
    world: &World,
    plan: impl Fn(PgPool) -> Outcome<P>,
    tables: &[&str],
) -> Outcome<(Fleet, Continued)> {
    let continued = Continued::default();
    let plan = Interrupted {
        plans: [plan(pool(world).await?)?, plan(pool(world).await?)?],
        calm: world.pool.clone(),
        continued: Arc::clone(&continued),
    };
    let spec = MigrationSpec::new("status", PhaseRange::FULL)
        .plan(plan)
        .external_write_quiet_period(Duration::from_millis(200));
    world.pool.execute(CUT).await?;
    let fleet = world.join(vec![spec], "a", FleetOptions::default()).await?;
    world.pool.execute(CUT_SCHEMA).await?;
    for table in tables {
        let trigger = format!(
            "create trigger a_cut after update on {table} referencing new table as changed for each statement \
             execute function cut_rows()"
        );
        world.pool.execute(AssertSqlSafe(trigger)).await?;
    }
    Ok((fleet, continued))
}

/// There and back, there again and to the end, with the pictures before and in `retire`. Nothing is left of any attempt.
async fn walk(world: &World, before: &[String], retire: &[String]) -> Outcome {
    for (phase, expected) in [("retire", retire), ("ramp:50", before), ("retire", retire)] {
        world.go_within(phase, LONG).await?;
        assert_eq!(picture(&world.pool, &["shop"]).await?, expected, "{phase}");
    }
    world.approve().await?;
    world.go_within("contract", LONG).await?;
    world.ended_within(LONG).await?;
    let left = "select array(select tgname::text from pg_trigger where tgname like 'zzz_cutover%') \
        || array(select conname::text from pg_constraint where conname like 'cutover%') \
        || array(select relname::text from pg_class where relname like 'cutover%' and relkind in ('i', 'I')) \
        || array(select relname::text from pg_class join pg_index on indexrelid = pg_class.oid where not indisvalid)";
    let left: Vec<String> = sqlx::query_scalar(left).fetch_one(&world.pool).await?;
    assert_eq!(left, [""; 0]);
    let locks = "select not exists (select from pg_locks l join pg_stat_activity a using (pid) \
        where a.application_name = 'plan' and a.datname = current_database())";
    let is_free = async || sqlx::query_scalar(locks).fetch_one(&world.pool).await.unwrap_or(false);
    world.until("the locks to go", is_free).await?;
    Ok(())
}

#[tokio::test]
async fn a_key_moves_although_each_statement_is_cut() -> Outcome {
    let world = World::new(1).await?;
    world
        .pool
        .execute(
            "create schema shop; \
             create table shop.nodes (id integer generated by default as identity primary key, \
                 parent integer references shop.nodes on delete set null, note text); \
             create index nodes_by_parent on shop.nodes (parent); \
             create table shop.lines (id bigserial primary key, \
                 node integer not null default 1 references shop.nodes on delete cascade); \
             create index lines_by_node on shop.lines (node); \
             create table shop.logs (id bigserial primary key, node bigint references shop.nodes); \
             insert into shop.nodes (parent, note) select nullif(g / 2, 0), 'n' from generate_series(1, 500) g; \
             insert into shop.lines (node) select id from shop.nodes; insert into shop.logs (node) select id from shop.nodes",
        )
        .await?;
    let before = picture(&world.pool, &["shop"]).await?;
    let plan = |pool| Ok(WiderKey::new(pool, "shop.nodes", "id").build()?);
    let (_a, continued) = instance(&world, plan, &["shop.nodes", "shop.lines"]).await?;
    let is_over = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn(load(world.pool.clone(), "shop.nodes", Arc::clone(&is_over)));
    walk(&world, &before, &widened(&before)).await?;
    is_over.store(true, Ordering::SeqCst);
    let (kept, _) = writer.await??;
    let there: i64 = sqlx::query_scalar("select count(*) from shop.nodes where id = any ($1) or id <= 500")
        .bind(kept.iter().map(|(id, _)| *id).collect::<Vec<_>>())
        .fetch_one(&world.pool)
        .await?;
    assert_eq!(there, 500 + kept.len() as i64);
    let continued = continued.lock().unwrap_or_else(PoisonError::into_inner).clone();
    for task in [Task::Expand, Task::Backfill, Task::Enforce, Task::Relax, Task::Contract] {
        let times = continued.get(task.name()).copied().unwrap_or_default();
        assert!(times >= 2, "{} was cut {times} times: {continued:?}", task.name());
    }
    assert!(continued[Task::Enforce.name()] > 40, "{continued:?}");
    Ok(())
}

fn orders(partitioned: &str) -> String {
    let partitions = match partitioned {
        "" => "",
        _ => {
            "create table shop.orders_1 partition of shop.orders for values from (0) to (100); \
             create table shop.orders_2 partition of shop.orders for values from (100) to (200);"
        }
    };
    format!(
        "create schema shop; create table shop.customers (id bigint primary key); insert into shop.customers values (1); \
         create table shop.orders (id bigint, customer bigint, note text, code text) {partitioned}; {partitions} \
         create index by_code on shop.orders (code); \
         insert into shop.orders select g, 1, 'n', 'c' from generate_series(1, 199) g"
    )
}

type Change = fn(SchemaChangeBuilder) -> SchemaChangeBuilder;

fn describe(pool: PgPool, change: Change) -> Outcome<SchemaChange> {
    let quiet = Duration::from_millis(200);
    Ok(change(SchemaChange::new(pool, "shop.orders").quiet_period(quiet).without_read_check()).build()?)
}

/// Makes a change whose statements are cut, and compares it in `retire` with the same change that is not.
async fn cut_at_each(partitioned: &str, change: Change, tasks: &[Task]) -> Outcome {
    let world = World::new(1).await?;
    world.pool.execute(AssertSqlSafe(orders(partitioned))).await?;
    let before = picture(&world.pool, &["shop"]).await?;
    let calm = World::new(1).await?;
    calm.pool.execute(AssertSqlSafe(orders(partitioned))).await?;
    let _calm = calm.instance_of("a", describe(calm.pool.clone(), change)?).await?;
    calm.go("retire").await?;
    let retire = picture(&calm.pool, &["shop"]).await?;
    let (_a, continued) = instance(&world, |pool| describe(pool, change), &[]).await?;
    walk(&world, &before, &retire).await?;
    let continued = continued.lock().unwrap_or_else(PoisonError::into_inner).clone();
    for task in tasks {
        assert!(continued.contains_key(task.name()), "{}: {continued:?}", task.name());
    }
    Ok(())
}

fn rules(change: SchemaChangeBuilder) -> SchemaChangeBuilder {
    change.not_null("note").check("short", "length(note) < 90").unique("by_id", &["id"]).foreign_key(
        "of_customer",
        &["customer"],
        "shop.customers (id) on delete restrict",
    )
}

#[tokio::test]
async fn a_column_goes_although_each_statement_is_cut() -> Outcome {
    cut_at_each("", |change| change.drop_column("code"), &[Task::Expand, Task::Contract]).await
}

#[tokio::test]
async fn an_index_goes_although_each_statement_is_cut() -> Outcome {
    cut_at_each("", |change| change.drop_index("by_code"), &[Task::Contract]).await
}

#[tokio::test]
async fn rules_come_although_each_statement_is_cut() -> Outcome {
    cut_at_each("", rules, &[Task::Expand, Task::Enforce, Task::Relax, Task::Contract]).await
}

#[tokio::test]
async fn rules_of_partitions_come_although_each_is_cut() -> Outcome {
    let tasks = [Task::Expand, Task::Enforce, Task::Relax, Task::Contract];
    cut_at_each("partition by range (id)", rules, &tasks).await
}
