//! Rows of the ledger that a person deletes or restores while the data stay as they are.

use std::time::Duration;

use cutover::migration::{BatchOptions, Phase, Plan, TableMigration};
use cutover_testkit::{Dump, if_installed, wait_until};
use futures_util::StreamExt;
use sqlx::{AssertSqlSafe, Executor};

use crate::world::{Fleet, Outcome, World};

/// Statements as of a role that passes over triggers and foreign keys.
const AS_REPLICA: &str = "set session_replication_role = replica; ";

async fn at(phase: &str) -> Outcome<(World, Fleet)> {
    let world = World::new(20).await?;
    let a = world.brief("a", world.describe().build()?).await?;
    world.go(phase).await?;
    Ok((world, a))
}

/// The statement between backquotes that begins with this word, in what the server or the library says.
fn advised(text: &str, verb: &str) -> Outcome<String> {
    let statement = text.split('`').skip(1).step_by(2).find(|part| part.starts_with(verb));
    Ok(statement.ok_or(format!("no statement in: {text}"))?.to_owned())
}

async fn refused(world: &World, statement: &str) -> Outcome<String> {
    let mut session = world.pool.acquire().await?;
    match session.execute(AssertSqlSafe(statement.to_owned())).await {
        Ok(_) => Err(format!("not refused: {statement}").into()),
        Err(sqlx::Error::Database(error)) => {
            let error = error.downcast::<sqlx::postgres::PgDatabaseError>();
            Ok(format!("{}; {}", error.message(), error.hint().unwrap_or_default()))
        }
        Err(error) => Err(error.into()),
    }
}

#[tokio::test]
async fn rows_that_say_which_side_is_right_stay() -> Outcome {
    for phase in ["expand", "ramp", "retire"] {
        let (world, _a) = at(phase).await?;
        let tables = ["migrations", "epochs", "sides", "guard_phases", "fleets"];
        let statements = tables.iter().flat_map(|table| {
            let delete = (*table != "fleets").then(|| format!("delete from cutover.{table}"));
            delete.into_iter().chain([format!("truncate cutover.{table} cascade")])
        });
        for statement in statements {
            let refusal = refused(&world, &statement).await?;
            assert!(refusal.contains("say which side of migration shop/status is right"), "{refusal}");
            assert_eq!(advised(&refusal, "cutover")?, "cutover set-phase shop/status off");
        }
        world.external("update orders set old_status = ' Late ' where id = 4").await.err();
        world.go("off").await?;
        world.external("truncate cutover.fleets cascade").await?;
    }
    Ok(())
}

#[tokio::test]
async fn evidence_that_is_deleted_counts_as_unseen_writes() -> Outcome {
    let function = "create function checked(text) returns text language plpgsql immutable as \
        $$ begin if $1 = 'bad' then raise exception 'bad'; end if; return lower(trim($1)); end $$";
    let (bad, found) = ("update orders set old_status = 'bad' where id = 3", "could not be mapped: 3: bad");
    for (change, delete, found) in [
        (bad, "delete from cutover.repairs", found),
        (bad, "truncate cutover.repairs", found),
        (
            "alter table orders disable trigger all; update orders set old_status = 'other' where id = 3; \
             do $$ declare name text; begin for name in select tgname from pg_trigger where tgname like 'zzz%' loop \
                 execute format('alter table orders enable always trigger %I', name); end loop; end $$",
            "truncate cutover.guard_looks, cutover.external_write_events, cutover.external_writes",
            "id in [3]",
        ),
    ] {
        let world = World::new(20).await?;
        world.external(function).await?;
        let plan = world.describe().forward("checked(old_status)").build()?;
        let _a = world.brief("a", plan).await?;
        world.go("ramp").await?;
        // The driver may hold locks on these tables in another order.
        let statements = format!("{change}; {delete}");
        world.until("the deletion", async || world.external(&statements).await.is_ok()).await?;
        world.is_held("retire", found).await.map_err(|error| format!("{delete}: {error}"))?;
        // As after other writes that nothing has seen.
        world.external("update orders set old_status = ' Good ' where id = 3").await?;
        world.go("verify").await?;
        world.go("retire").await?;
        assert_eq!(world.row(3).await?.1.as_deref(), Some("good"));
    }
    Ok(())
}

#[tokio::test]
async fn ranges_that_are_gone_do_not_count_as_done() -> Outcome {
    for (phase, next) in [("backfill", "verify"), ("verify", "ramp")] {
        let world = World::new(3000).await?;
        let batches = BatchOptions { min_rows: 10, max_rows: 10, ..BatchOptions::default() };
        let _a = world.brief("a", world.describe().batches(batches).build()?).await?;
        world.go(if phase == "verify" { "backfill" } else { "expand" }).await?;
        world.ask(phase).await?;
        let begun = "select exists (select from cutover.jobs j join cutover.migrations m on m.id = j.migration_id \
            where m.phase = $1 and j.finished_at is null and j.rows_done > 0)";
        let begun = async || {
            sqlx::query_scalar::<_, bool>(begun).bind(phase).fetch_one(&world.pool).await.unwrap_or(false)
        };
        world.until("rows are done", begun).await?;
        world
            .external(
                "update cutover.migrations set paused_at = now(), paused_by = 'test' where name = 'status'",
            )
            .await?;
        world.external("delete from cutover.job_ranges").await?;
        let open: bool =
            sqlx::query_scalar("select exists (select from cutover.jobs where finished_at is null)")
                .fetch_one(&world.pool)
                .await?;
        assert!(open, "{phase}: it has ended before the test could pause it");
        if phase == "verify" {
            world
                .external(&format!(
                    "select set_config('cutover.pin_{}', 'on', false); \
                update orders set new_status = 'unseen' where id = 2990",
                    world.id().await?
                ))
                .await?;
        }
        world
            .external(
                "update cutover.migrations set paused_at = null, paused_by = null where name = 'status'",
            )
            .await?;
        if phase == "verify" {
            world.is_held(next, "id in [2990]").await?;
        } else {
            world.go(next).await?;
            let left: i64 = sqlx::query_scalar("select count(*) from orders where new_status is null")
                .fetch_one(&world.pool)
                .await?;
            assert_eq!(left, 0);
        }
    }
    Ok(())
}

/// What the new side has since `retire` is not read as if the migration were where it was at the time of the dump.
#[tokio::test]
async fn an_older_ledger_alone_is_not_followed() -> Outcome {
    for (is_running, rows_only) in [(true, true), (true, false), (false, true), (false, false)] {
        let (world, a) = at("ramp").await?;
        let options: &[&str] = match rows_only {
            true => &["--schema=cutover", "--data-only", "--disable-triggers"],
            false => &["--schema=cutover"],
        };
        let Some(dump) = if_installed(Dump::of(&world.url, options).await)?.flatten() else {
            return Ok(());
        };
        world.go("retire").await?;
        let mut tx = a.migration.begin(&world.pool).await?;
        tx.execute("update orders set new_status = 'written' where id = 3").await?;
        tx.commit().await?;
        if !is_running {
            a.agent.leave().await?;
        }
        let removal = if rows_only {
            let tables: Vec<String> =
                sqlx::query_scalar("select tablename::text from pg_tables where schemaname = 'cutover'")
                    .fetch_all(&world.pool)
                    .await?;
            let deletes: String =
                tables.iter().map(|table| format!("delete from cutover.{table}; ")).collect();
            format!("{AS_REPLICA}{deletes}")
        } else {
            "drop schema cutover cascade".to_owned()
        };
        dump.replace(&world.url, &removal).await?;
        let told = match (is_running, rows_only) {
            (true, true) => "the server has not restarted",
            (false, true) => "the rows of schema cutover were restored from a dump",
            _ => "was restored from a dump",
        };
        let b = if is_running { None } else { Some(world.seek("b", world.describe().build()?).await?) };
        let one = b.as_ref().unwrap_or(&a);
        one.says(told).await.map_err(|error| format!("{is_running} {rows_only}: {error}"))?;
        assert!(one.migration.begin(&world.pool).await.is_err());
        assert_eq!(world.row(3).await?.1.as_deref(), Some("written"));
        if rows_only && is_running {
            continue;
        }
        let reason: String = sqlx::query_scalar(
            "select refusal from cutover.instances where refusal is not null order by joined_at desc limit 1",
        )
        .fetch_one(&world.pool)
        .await?;
        world.external(&advised(&reason, "update cutover.sides")?).await?;
        if is_running {
            // It remembers the later epoch.
            a.says("restart the service").await?;
            continue;
        }
        world.until("admitted", async || one.migration.current().is_some()).await?;
    }
    Ok(())
}

/// The old side would be read again, and copied over what the new one has.
#[tokio::test]
async fn a_ledger_that_forgot_a_migration_of_tables_is_not_begun_again() -> Outcome {
    let world = World::new(20).await?;
    let plan = TableMigration::new(world.pool.clone(), "orders", "orders_2")
        .create("create table orders_2 (id bigint primary key, new_status text)")
        .use_existing_table()
        .without("orders_id_seq")
        .column("new_status", "lower(trim(old_status))")
        .column_back("old_status", "upper(new_status)")
        .build()?;
    is_not_begun_again(&world, plan, "orders_2").await
}

#[tokio::test]
async fn a_ledger_that_forgot_a_migration_of_columns_is_not_begun_again() -> Outcome {
    let world = World::new(20).await?;
    let plan = world.describe().use_existing_column().build()?;
    is_not_begun_again(&world, plan, "orders").await
}

async fn is_not_begun_again(world: &World, plan: impl Plan + Clone + 'static, new_table: &str) -> Outcome {
    let a = world.brief("a", plan.clone()).await?;
    world.go("retire").await?;
    let mut tx = a.migration.begin(&world.pool).await?;
    let write = format!("update {new_table} set new_status = 'written' where id = 3");
    tx.execute(AssertSqlSafe(write)).await?;
    tx.commit().await?;
    world
        .external(&format!(
            "{AS_REPLICA}delete from cutover.acknowledgements; delete from cutover.epochs; delete from cutover.sides; \
             delete from cutover.guard_phases; delete from cutover.migrations"
        ))
        .await?;
    a.says("is missing in the ledger").await?;
    let found: i64 = sqlx::query_scalar("select count(*) from cutover.migrations where name = 'status'")
        .fetch_one(&world.pool)
        .await?;
    assert_eq!(found, 0, "it began again");
    a.agent.leave().await?;
    // One that remembers nothing.
    let b = world.seek("b", plan).await?;
    b.says("which is not in the ledger").await?;
    let reason: String =
        sqlx::query_scalar("select refusal from cutover.instances where refusal is not null and name = 'b'")
            .fetch_one(&world.pool)
            .await?;
    world.external(&advised(&reason, "drop function")?).await?;
    Ok(world.until("admitted", async || b.migration.current().is_some()).await?)
}

/// What the service reads is what was written last, whichever table of the ledger is emptied.
#[tokio::test]
async fn no_table_of_the_ledger_that_is_emptied_loses_a_write() -> Outcome {
    let tables: Vec<String> = {
        let (world, _a) = at("off").await?;
        let query = "select tablename::text from pg_tables where schemaname = 'cutover' \
            and tablename !~ '^(connection|flag)_' order by 1";
        sqlx::query_scalar(query).fetch_all(&world.pool).await?
    };
    let phases = [("ramp", "switch"), ("retire", "contract")];
    let cases = phases.iter().flat_map(|phase| tables.iter().map(move |table| (*phase, &**table)));
    let outcomes: Vec<Result<(), String>> = futures_util::stream::iter(cases)
        .map(async |(phase, table)| {
            emptied(phase, table).await.map_err(|error| format!("{table} in {}: {error}", phase.0))
        })
        .buffer_unordered(3)
        .collect()
        .await;
    let failed: Vec<String> = outcomes.into_iter().filter_map(Result::err).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    Ok(())
}

async fn emptied((phase, next): (&str, &str), table: &str) -> Outcome {
    let (world, a) = at(phase).await?;
    let both = "update orders set old_status = 'PINNED', new_status = 'pinned' where id = 3";
    let new = "update orders set new_status = 'pinned' where id = 3";
    let mut tx = a.migration.begin(&world.pool).await?;
    tx.execute(if phase == "retire" { new } else { both }).await?;
    tx.commit().await?;
    world.approve().await?;
    world.external(&format!("{AS_REPLICA}delete from cutover.{table}")).await?;
    let external = match phase {
        "ramp" => "update orders set old_status = 'EXTERNAL' where id = 4",
        _ => "update orders set new_status = 'external' where id = 4",
    };
    let written = world.external(external).await.is_ok();
    // An old side that is no longer written refuses writes of others.
    let of_old = world.external("update orders set old_status = 'LATE' where id = 5").await;
    if phase == "retire" && of_old.is_ok() {
        return Err("an external write of the old side passed".into());
    }
    world.ask(next).await?;
    // Some of them hold, and none may do harm on the way.
    let is_there = async || world.is_at(next).await.map_err(|error| error.to_string());
    let _ = wait_until("the move", Duration::from_secs(2), is_there).await;
    let text = |value: &str| Some(value.to_owned());
    let current = a.migration.current().map(|(_, phase)| phase);
    let (pinned, other) = (world.row(3).await?, world.row(4).await?);
    let reads_old = current.is_some_and(|phase| phase < Phase::Switch);
    let reads_new = current.is_some_and(|phase| phase >= Phase::Ramp);
    if reads_old && (pinned.0 != text("PINNED") || written && other.0 != text("EXTERNAL"))
        || reads_new && (pinned.1 != text("pinned") || written && other.1 != text("external"))
    {
        return Err(format!("{current:?} reads {pinned:?} {other:?}").into());
    }
    Ok(())
}

#[tokio::test]
async fn sides_that_are_not_recorded_any_more_hold_a_move() -> Outcome {
    let (world, _a) = at("ramp").await?;
    world.external(&format!("{AS_REPLICA}delete from cutover.sides")).await?;
    let told = "does not say which";
    world.is_held("retire", told).await?;
    assert!(!world.is_at("retire").await?);
    world.external(&advised(&world.reason().await?, "insert into cutover.sides")?).await?;
    world.go("retire").await?;
    world.approve().await?;
    world.ask("contract").await?;
    world.ended().await?;
    assert!(!world.has_column("old_status").await);
    Ok(())
}
