//! Keys of text whose index has the order of another version of the operating system's library.

use cutover::migration::ColumnMigration;
use cutover_testkit::Postgres;
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, Executor};

use crate::world::{Outcome, World};

/// As after an upgrade: `aa` comes after `z`, and the index has it before `ab`. The locale is in another column in each version.
const UPGRADED: &str = "do $$ declare name text; begin \
    for name in select attname from pg_attribute where attrelid = 'pg_collation'::regclass and attname = any (case \
        when current_setting('server_version_num')::integer >= 150000 then '{colliculocale,colllocale}' \
        else '{collcollate,collctype}' end::text[]) \
    loop execute format('update pg_collation set %I = ''da'' where collname = ''upgraded''', name); end loop; \
    update pg_collation set collversion = '1.2' where collname = 'upgraded'; end $$";

fn plan(world: &World) -> Outcome<ColumnMigration> {
    let plan = ColumnMigration::new(world.pool.clone(), "words").column("a", "b", "text");
    Ok(plan.forward("a").backward("b").build()?)
}

/// Runs the statements of a refusal.
async fn correct(world: &World, refusal: &str) -> Outcome {
    for verb in ["reindex ", "alter "] {
        let mut statements = refusal.split('`').skip(1).step_by(2);
        let statement = statements.find(|part| part.starts_with(verb)).ok_or(refusal)?;
        world.pool.execute(AssertSqlSafe(statement.to_owned())).await?;
    }
    Ok(())
}

/// With sessions that sort as the server does now.
async fn again(world: World) -> Outcome<World> {
    world.pool.close().await;
    let pool = PgPoolOptions::new().max_connections(12).connect(&world.url).await?;
    Ok(World { pool, url: world.url })
}

const ROWS: &str =
    "insert into words select (array['aa', 'ab', 'z'])[1 + g % 3] || g, g from generate_series(1, 3000) g";

#[tokio::test]
async fn an_index_in_the_order_of_another_version_is_refused() -> Outcome {
    let world = World::new(0).await?;
    if world.external("create collation upgraded (provider = icu, locale = 'en')").await.is_err() {
        eprintln!("skipped: this server has no ICU");
        return Ok(());
    }
    world.external("create table words (id text collate upgraded primary key, a text)").await?;
    world.external(ROWS).await?;
    world.external(UPGRADED).await?;
    let world = again(world).await?;
    // It would copy a part of the rows, and find no difference.
    let refusals = world.refusals(&plan(&world)?).await?;
    let [refusal] = &*refusals else { return Err(format!("{refusals:?}").into()) };
    assert!(refusal.problem.contains("index words_pkey of \"words\" may be in the order of version 1.2"));
    correct(&world, &refusal.remedy).await?;
    let _a = world.brief("a", plan(&world)?).await?;
    world.go("expand").await?;
    // A standby of another system was promoted.
    world.external("update pg_collation set collversion = '1.3' where collname = 'upgraded'").await?;
    world.ask("verify").await?;
    world.waits_for("the order of version 1.3 of collation public.upgraded").await?;
    correct(&world, &world.reason().await?).await?;
    world.go("retire").await?;
    let left: i64 =
        sqlx::query_scalar("select count(*) from words where b is null").fetch_one(&world.pool).await?;
    assert_eq!(left, 0);
    Ok(())
}

#[tokio::test]
async fn the_version_of_the_default_collation_is_compared() -> Outcome {
    let url = Postgres::fresh_database().await?;
    let (server, name) = url.rsplit_once('/').ok_or("an address")?;
    let create = format!(
        "create database {name}_icu template template0 locale_provider icu icu_locale 'en' lc_collate 'C'"
    );
    // Older servers do not record it.
    if Postgres::shared().await?.execute(&create).await.is_err() {
        return Ok(());
    }
    let pool = PgPoolOptions::new().max_connections(12).connect(&format!("{server}/{name}_icu")).await?;
    let world = World { pool, url: format!("{server}/{name}_icu") };
    world.external("create table words (id text primary key, a text)").await?;
    world.external(ROWS).await?;
    assert_eq!(world.refusals(&plan(&world)?).await?, []);
    let older = "update pg_database set datcollversion = '1.2' where datname = current_database()";
    world.external(older).await?;
    let refusals = world.refusals(&plan(&world)?).await?;
    let [refusal] = &*refusals else { return Err(format!("{refusals:?}").into()) };
    correct(&world, &refusal.remedy).await?;
    assert_eq!(world.refusals(&plan(&world)?).await?, []);
    Ok(())
}
