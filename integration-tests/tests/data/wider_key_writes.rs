//! The second columns of a key that moves hold its value, whatever writes the rows.

use cutover::migration::{Plan, WiderKey};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::wider_key::instance;
use crate::wider_key_odd::tells;
use crate::world::{Outcome, World};

/// A key and a column that refers to it. A trigger of the latter's table changes that column in statements that do not name it.
const DETACHED: &str = "create table nodes (id integer primary key, note text); \
    create table lines (id bigint primary key, node integer references nodes, note text); \
    create function detach() returns trigger language plpgsql as $$ begin \
        if new.note = 'detach' then new.node := null; end if; \
        if new.note = 'attach' then new.node := 7; end if; return new; end $$; \
    create trigger detach before insert or update on lines for each row execute function detach(); \
    insert into nodes select g, 'n' from generate_series(1, 9) g; \
    insert into lines select g, 1 + g % 9, 'l' from generate_series(1, 50) g";

/// The writes, and the names of the second columns at that time.
async fn second_columns_follow(world: &World, [id, node]: [&str; 2]) -> Outcome {
    let writes = [
        "update lines set note = 'detach' where id = 1".to_owned(),
        "update lines set note = 'attach' where id = 2".to_owned(),
        "insert into lines values (100, 3, 'detach') on conflict (id) do update set note = 'attach'"
            .to_owned(),
        format!("update lines set {node} = 5 where id = 3"),
        format!("update lines set {node} = null, note = 'x' where id = 4"),
        format!("update nodes set {id} = null where id = 5"),
        format!("insert into nodes (id, {id}) values (1000, 6) on conflict (id) do update set {id} = 6"),
    ];
    for write in writes {
        world.pool.execute(AssertSqlSafe(&*write)).await?;
        let differ = format!(
            "select (select count(*) from lines where {node} is distinct from node and id in (1, 2, 3, 4, 100)) \
                 + (select count(*) from nodes where {id} is distinct from id and id in (5, 1000))"
        );
        let differ: i64 = sqlx::query_scalar(AssertSqlSafe(differ)).fetch_one(&world.pool).await?;
        assert_eq!(differ, 0, "{write}");
    }
    Ok(())
}

#[tokio::test]
async fn second_columns_follow_whatever_writes_a_row() -> Outcome {
    let world = World::new(1).await?;
    world.pool.execute(DETACHED).await?;
    let _a = instance(&world, "nodes").await?;
    world.go("ramp:50").await?;
    second_columns_follow(&world, ["id_bigint", "node_bigint"]).await?;
    world.go("retire").await?;
    second_columns_follow(&world, ["id_old", "node_old"]).await?;
    world.go("ramp:50").await?;
    second_columns_follow(&world, ["id_bigint", "node_bigint"]).await?;
    world.go("retire").await?;
    world.approve().await?;
    world.go("contract").await?;
    world.ended().await
}

/// Triggers whose functions use the columns that get another type.
const USED: &str = "create table nodes (id integer primary key, note text); \
    create table lines (id bigint primary key, node integer references nodes, note text); \
    create table audit (what text); \
    create function on_nodes() returns trigger language plpgsql cost 33 as $$ begin \
        insert into audit values (new.id || ' ' || coalesce(old.id, 0)); return null; end $$; \
    create trigger on_nodes after insert or update on nodes for each row execute function on_nodes(); \
    create function on_lines() returns trigger language plpgsql as $$ begin \
        new.note := coalesce(new.node + 1, 0)::text; return new; end $$; \
    create trigger on_lines before insert or update on lines for each row execute function on_lines(); \
    create function total(since integer) returns bigint language plpgsql as $$ declare one record; found bigint := 0; begin \
        for one in select * from nodes where id > since loop found := found + one.id; end loop; return found; end $$; \
    insert into nodes select g, 'n' from generate_series(1, 9) g; insert into lines values (1, 1), (2, 2)";

#[tokio::test]
async fn open_sessions_go_on_calling_functions_that_use_the_key() -> Outcome {
    let world = World::new(1).await?;
    world.pool.execute(USED).await?;
    let _a = instance(&world, "nodes").await?;
    let mut session = PgConnection::connect(&world.url).await?;
    for phase in ["ramp:50", "retire", "ramp:50", "retire"] {
        world.go(phase).await?;
        session.execute("update nodes set note = note || '!'").await?;
        session.execute("update lines set note = ''").await?;
        // A function that reads rows, and is no trigger's.
        session.execute("select total(0)").await?;
        let cost = "select procost = 33 from pg_proc where oid = 'on_nodes()'::regprocedure";
        assert!(sqlx::query_scalar::<_, bool>(cost).fetch_one(&world.pool).await?);
    }
    Ok(())
}

#[tokio::test]
async fn a_key_ends_whatever_a_backslash_means_to_the_role() -> Outcome {
    let world = World::new(1).await?;
    world.pool.execute("create table nodes (id integer primary key, note text)").await?;
    let settings = "alter database %I set standard_conforming_strings = off";
    let set = format!("do $$ begin execute format('{settings}', current_database()); end $$");
    world.pool.execute(AssertSqlSafe(set)).await?;
    let pool = PgPoolOptions::new().connect(&world.url).await?;
    let _a = world.instance_of("a", WiderKey::new(pool, "nodes", "id").build()?).await?;
    world.go("retire").await?;
    world.approve().await?;
    world.go("contract").await?;
    world.ended().await
}

#[tokio::test]
async fn a_trigger_function_of_another_role_is_told() -> Outcome {
    let world = World::new(1).await?;
    let role = format!("writes_owner_{}", std::process::id());
    let make = format!(
        "{USED}; create role {role} login; grant create, usage on schema public to {role}; \
         alter table nodes owner to {role}; alter table lines owner to {role}; alter function on_nodes() owner to {role}"
    );
    world.pool.execute(AssertSqlSafe(make)).await?;
    let options: PgConnectOptions = world.url.parse()?;
    let pool = PgPoolOptions::new().connect_with(options.username(&role)).await?;
    let plan = WiderKey::new(pool, "nodes", "id").build()?;
    let mut ledger = PgConnection::connect(&world.url).await?;
    let found: Vec<String> =
        plan.problems(None, &mut ledger).await?.iter().map(ToString::to_string).collect();
    let [one] = &*found else { return Err(format!("{found:?}").into()) };
    assert!(one.contains("function public.on_lines() of trigger on_lines on lines belongs to"), "{one}");
    let remedy = one.split('`').nth(3).ok_or("a remedy")?;
    world.pool.execute(AssertSqlSafe(remedy)).await?;
    assert_eq!(plan.problems(None, &mut ledger).await?.len(), 0);
    Ok(())
}

/// What keeps a copy or the trigger from a row: made, and what the plan says about it.
const BETWEEN: [(i32, &str, &str); 4] = [
    (
        0,
        "create rule quiet as on update to keys where old.note = 'n' do instead nothing",
        "rule \"quiet\" of",
    ),
    (
        0,
        "create trigger zzzz before insert on keys for each row execute function noticed()",
        "trigger \"zzzz\" of",
    ),
    (
        0,
        "create table lines (id bigint primary key, a integer references keys, b text); \
         create rule quiet as on update to lines where old.b = 'n' do instead nothing",
        "rule \"quiet\" of public.lines",
    ),
    (
        0,
        "create table lines (id bigint primary key, a integer references keys, b text); \
         create trigger zzzz before update on lines for each row execute function noticed()",
        "trigger \"zzzz\" of public.lines",
    ),
];

#[tokio::test]
async fn what_stands_between_a_write_and_its_row_is_told() -> Outcome {
    tells(&BETWEEN).await
}
