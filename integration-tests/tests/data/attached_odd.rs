//! Odd things that are attached to the old side: several of a kind on one column, partitions, and what does not fit the new
//! side's type.

use std::time::Duration;

use crate::world::{Outcome, World};
use cutover::fleet::FleetOptions;
use cutover::migration::{ColumnMigration, ColumnMigrationBuilder, MigrationSpec, PhaseRange};
use cutover_testkit::wait_until;
use sqlx::{AssertSqlSafe, Executor};

fn describe(world: &World) -> ColumnMigrationBuilder {
    ColumnMigration::new(world.pool.clone(), "orders")
        .column("old_status", "new_status", "text")
        .forward("old_status")
        .backward("new_status")
}

/// What the catalog says of the foreign keys of a table and of those that refer to it.
async fn foreign_keys(world: &World, table: &str) -> Outcome<Vec<String>> {
    let query = "select format('%s: %s valid %s', conrelid::regclass, pg_get_constraintdef(oid), convalidated) \
        from pg_constraint where contype = 'f' and conparentid = 0 and $1::regclass in (conrelid, confrelid) \
        order by 1";
    Ok(sqlx::query_scalar(query).bind(table).fetch_all(&world.pool).await?)
}

/// The expressions of checks and indexes on the new column, and the comments on them.
async fn on_new_status(world: &World) -> Outcome<Vec<String>> {
    let query = "select line from ( \
            select concat_ws(' ', pg_get_constraintdef(oid), obj_description(oid, 'pg_constraint')) as line from pg_constraint \
                where contype = 'c' and conrelid = 'orders'::regclass and convalidated \
            union all select concat_ws(' ', substring(pg_get_indexdef(indexrelid) from 'btree .*'), \
                obj_description(indexrelid, 'pg_class')) from pg_index where indrelid = 'orders'::regclass) as found \
        where line ~ 'new_status' order by line collate \"C\"";
    Ok(sqlx::query_scalar(query).fetch_all(&world.pool).await?)
}

/// The catalog has a constraint for each partition that a foreign key refers to.
#[tokio::test]
async fn a_foreign_key_to_partitions_is_carried_over_as_one() -> Outcome {
    let world = World::new(5).await?;
    world
        .pool
        .execute(
            "create table statuses (status text primary key) partition by list (status); \
             create table statuses_1 partition of statuses for values in ('A'); \
             create table statuses_2 partition of statuses default; \
             insert into statuses values ('A'), ('B'); update orders set old_status = 'A'; \
             alter table orders add constraint known foreign key (old_status) references statuses",
        )
        .await?;
    let plan = describe(&world).carry_over().build()?;
    let _a = world.instance("a", Some(plan)).await?;
    world.go("ramp").await?;
    assert_eq!(
        foreign_keys(&world, "orders").await?,
        [
            "orders: FOREIGN KEY (new_status) REFERENCES statuses(status) valid t",
            "orders: FOREIGN KEY (old_status) REFERENCES statuses(status) valid t"
        ]
    );
    world.pool.execute("insert into orders (old_status) values ('B')").await?;
    Ok(())
}

#[tokio::test]
async fn each_of_several_checks_of_a_column_is_carried_over() -> Outcome {
    let world = World::new(5).await?;
    world
        .pool
        .execute(
            "update orders set old_status = 'LOUD' || id; \
             alter table orders add constraint a check (old_status <> ''), add constraint b check (old_status <> 'b'), \
                 add constraint loud check (old_status ~ '^LOUD'); \
             comment on constraint a on orders is 'never empty'; \
             create index i on orders (note) where old_status = 'x'; create index j on orders (note) where old_status = 'y'; \
             comment on index j is 'of y'",
        )
        .await?;
    let describe = || {
        ColumnMigration::new(world.pool.clone(), "orders")
            .column("old_status", "new_status", "text")
            .forward("lower(old_status)")
            .backward("upper(new_status)")
            .carry_over()
    };
    let a = world.instance("a", Some(describe().build()?)).await?;
    world.go("verify").await?;
    world.ask("ramp").await?;
    world.waits_for("\"loud\"").await?;
    world
        .until("the first ones", async || on_new_status(&world).await.is_ok_and(|all| all.len() == 4))
        .await?;
    // An attempt that carries the first ones over must not make the last one look as if it were there.
    a.agent.leave().await?;
    let b = world.instance("b", Some(describe().build()?)).await?;
    world.is_held("ramp", "rows of the new side violate it").await?;
    b.agent.leave().await?;
    let _c = world.instance("c", Some(describe().without("loud").build()?)).await?;
    world.go("ramp").await?;
    assert_eq!(
        on_new_status(&world).await?,
        [
            "CHECK ((new_status <> ''::text)) never empty",
            "CHECK ((new_status <> 'b'::text))",
            "btree (note) WHERE (new_status = 'x'::text)",
            "btree (note) WHERE (new_status = 'y'::text) of y"
        ]
    );
    Ok(())
}

#[tokio::test]
async fn a_constraint_that_does_not_fit_the_new_type_is_named() -> Outcome {
    let world = World::new(5).await?;
    world
        .pool
        .execute(
            "update orders set old_status = id; \
             create table statuses (status text primary key); insert into statuses select id from orders; \
             alter table orders add constraint a check (old_status <> ''), add constraint z check (old_status is not null or id > 0), \
                 add constraint known foreign key (old_status) references statuses",
        )
        .await?;
    let describe = || {
        ColumnMigration::new(world.pool.clone(), "orders")
            .column("old_status", "new_status", "integer")
            .forward("old_status::integer")
            .backward("new_status::text")
            .carry_over()
    };
    let a = world.instance("a", Some(describe().build()?)).await?;
    world.go("verify").await?;
    world.ask("ramp").await?;
    world.waits_for("cannot be carried over: operator does not exist").await?;
    let reason = world.reason().await?;
    for part in ["constraint \"a\"", "constraint \"known\"", "`.without(\"known\")`", "integer"] {
        assert!(reason.contains(part), "{part}: {reason}");
    }
    let fits = async || {
        on_new_status(&world).await.is_ok_and(|all| all == ["CHECK (((new_status IS NOT NULL) OR (id > 0)))"])
    };
    world.until("what fits", fits).await?;
    a.agent.leave().await?;
    let _b = world.instance("b", Some(describe().without("a").without("known").build()?)).await?;
    world.go("ramp").await?;
    Ok(())
}

/// Before version 18 the server has no `not valid` for these.
#[tokio::test]
async fn foreign_keys_of_partitioned_tables_are_carried_over() -> Outcome {
    let world = World::new(1).await?;
    world
        .pool
        .execute(
            "drop table orders; \
             create table orders (id bigint primary key, note text, old_status text) partition by range (id); \
             create table orders_1 partition of orders for values from (0) to (10); \
             create table \"Orders 2\" partition of orders for values from (10) to (20) partition by range (id); \
             create table orders_21 partition of \"Orders 2\" for values from (10) to (20); \
             insert into orders select g, 'n', 'S' || g from generate_series(1, 15) g; \
             create table statuses (status text primary key); insert into statuses select old_status from orders; \
             alter table orders add constraint known foreign key (old_status) references statuses deferrable",
        )
        .await?;
    let plan = describe(&world).carry_over().build()?;
    let _a = world.instance("a", Some(plan)).await?;
    world.go("ramp").await?;
    assert_eq!(
        foreign_keys(&world, "orders").await?,
        [
            "orders: FOREIGN KEY (new_status) REFERENCES statuses(status) DEFERRABLE valid t",
            "orders: FOREIGN KEY (old_status) REFERENCES statuses(status) DEFERRABLE valid t"
        ]
    );
    Ok(())
}

#[tokio::test]
async fn foreign_keys_of_partitions_follow_to_the_new_table() -> Outcome {
    let world = World::new(5).await?;
    world
        .pool
        .execute(
            "create table lines (id bigint references orders on delete cascade) partition by hash (id); \
             create table lines_0 partition of lines for values with (modulus 2, remainder 0); \
             create table lines_1 partition of lines for values with (modulus 2, remainder 1); \
             insert into lines values (1), (2)",
        )
        .await?;
    let plan = world.to_orders_2()?;
    let _a = world.instance_of("a", plan).await?;
    world.go("ramp").await?;
    assert_eq!(
        foreign_keys(&world, "orders_2").await?,
        ["lines: FOREIGN KEY (id) REFERENCES orders_2(id) ON DELETE CASCADE valid t"]
    );
    Ok(())
}

/// An attempt ended after it had built an index, and after it had added the key of one partition.
#[tokio::test]
async fn what_an_interrupted_attempt_left_out_is_added() -> Outcome {
    let world = World::new(1).await?;
    world
        .pool
        .execute(
            "drop table orders; \
             create table orders (id bigint primary key, note text, old_status text) partition by hash (id); \
             create table orders_0 partition of orders for values with (modulus 2, remainder 0); \
             create table orders_1 partition of orders for values with (modulus 2, remainder 1); \
             insert into orders select g, 'n', 'S' || g from generate_series(1, 15) g; \
             create table statuses (status text primary key); insert into statuses select old_status from orders; \
             alter table orders add constraint known foreign key (old_status) references statuses; \
             create index i on orders (old_status); comment on index i is 'of i'",
        )
        .await?;
    let plan = describe(&world).build()?;
    let a = world.instance("a", Some(plan)).await?;
    world.go("verify").await?;
    a.agent.leave().await?;
    world
        .pool
        .execute(
            "create index i_new_status on orders (new_status); \
             alter table orders_1 add constraint known_new_status foreign key (new_status) references statuses not valid",
        )
        .await?;
    let _b = world.instance("b", Some(describe(&world).carry_over().build()?)).await?;
    world.go("ramp").await?;
    assert_eq!(on_new_status(&world).await?, ["btree (new_status) of i"]);
    assert_eq!(foreign_keys(&world, "orders").await?.len(), 2);
    Ok(())
}

#[tokio::test]
async fn a_unique_index_of_an_earlier_attempt_becomes_the_constraint() -> Outcome {
    let world = World::new(5).await?;
    world
        .pool
        .execute(
            "alter table orders add constraint one_old_status unique (old_status); \
             comment on constraint one_old_status on orders is 'of one'",
        )
        .await?;
    let a = world.instance("a", Some(describe(&world).build()?)).await?;
    world.go("verify").await?;
    a.agent.leave().await?;
    world.pool.execute("create unique index one_new_status on orders (new_status)").await?;
    let _b = world.instance("b", Some(describe(&world).carry_over().build()?)).await?;
    world.go("ramp").await?;
    let query = "select concat_ws(' ', pg_get_constraintdef(oid), obj_description(oid, 'pg_constraint')) from pg_constraint \
        where conname = 'one_new_status'";
    let found: String = sqlx::query_scalar(query).fetch_one(&world.pool).await?;
    assert_eq!(found, "UNIQUE (new_status) of one");
    Ok(())
}

/// The action of the one key writes what the other one checks.
#[tokio::test]
async fn rows_that_follow_a_key_follow_it_to_the_new_table() -> Outcome {
    let world = World::new(5).await?;
    world
        .pool
        .execute(
            "create table lines (id bigint references orders on update cascade on delete cascade); \
             insert into lines values (1), (2), (3)",
        )
        .await?;
    let plan = world.to_orders_2()?;
    let _a = world.instance_of("a", plan).await?;
    world.go("ramp").await?;
    world
        .pool
        .execute("delete from orders where id = 2; alter table orders alter id set generated by default")
        .await?;
    world.pool.execute("update orders set id = 100 where id = 1").await?;
    world.go("retire").await?;
    world.pool.execute("delete from orders_2 where id = 3").await?;
    let left: Vec<i64> = sqlx::query_scalar("select id from lines").fetch_all(&world.pool).await?;
    assert_eq!(left, [100]);
    Ok(())
}

#[tokio::test]
async fn two_migrations_carry_over_what_both_columns_have() -> Outcome {
    let world = World::new(5).await?;
    world
        .pool
        .execute(
            "update orders set note = id, old_status = 's' || id; alter table orders add constraint odd check (note <> old_status); \
             create unique index i on orders (note, old_status) where note <> ''",
        )
        .await?;
    let status = describe(&world).carry_over().build()?;
    let note = ColumnMigration::new(world.pool.clone(), "orders")
        .column("note", "remark", "text")
        .forward("note")
        .backward("remark")
        .carry_over()
        .build()?;
    let specs = vec![
        MigrationSpec::new("status", PhaseRange::FULL).plan(status),
        MigrationSpec::new("note", PhaseRange::FULL).plan(note),
    ];
    let _a = world.join(specs, "a", FleetOptions::default()).await?;
    let at = async |phase: &str| -> Outcome {
        world
            .pool
            .execute(AssertSqlSafe(format!(
                "update cutover.migrations set desired = '{phase}' where name <> 'other'"
            )))
            .await?;
        let query = format!(
            "select case when bool_and(phase = '{phase}') then 'there' else string_agg(concat_ws(': ', name, phase, waits_for), '; ') end \
             from cutover.migrations where name <> 'other'"
        );
        wait_until(&format!("both at {phase}"), Duration::from_secs(60), async || {
            let found = sqlx::query_scalar::<_, String>(AssertSqlSafe(&*query)).fetch_one(&world.pool).await;
            match found.map_err(|error| error.to_string())? {
                found if found == "there" => Ok(true),
                found => Err(found),
            }
        })
        .await?;
        Ok(())
    };
    at("verify").await?;
    at("ramp").await?;
    let query = "select pg_get_constraintdef(oid) as line from pg_constraint where contype = 'c' and conrelid = 'orders'::regclass \
        union all select substring(pg_get_indexdef(indexrelid) from 'btree .*') from pg_index \
            where indrelid = 'orders'::regclass and not indisprimary";
    let found: Vec<String> = sqlx::query_scalar(query).fetch_all(&world.pool).await?;
    for expected in [
        "CHECK ((remark <> new_status))",
        "CHECK ((remark <> old_status))",
        "CHECK ((note <> new_status))",
        "btree (remark, new_status) WHERE (remark <> ''::text)",
        "btree (remark, old_status) WHERE (remark <> ''::text)",
        "btree (note, new_status) WHERE (note <> ''::text)",
    ] {
        assert!(found.iter().any(|line| line == expected), "{expected}: {found:?}");
    }
    Ok(())
}

#[tokio::test]
async fn who_locks_the_table_that_a_key_refers_to_is_named() -> Outcome {
    let world = World::new(5).await?;
    world
        .pool
        .execute(
            "create table statuses (status text primary key); insert into statuses select old_status from orders; \
             alter table orders add constraint known foreign key (old_status) references statuses",
        )
        .await?;
    let mut other = world.pool.begin().await?;
    other.execute("set local application_name = 'report'; lock table statuses in row exclusive mode").await?;
    let _a = world.instance("a", Some(describe(&world).carry_over().build()?)).await?;
    world.go("verify").await?;
    world.ask("ramp").await?;
    world.waits_for("the lock on table \"orders\", statuses within 200 ms").await?;
    world.waits_for("(report)").await?;
    other.rollback().await?;
    world.go("ramp").await?;
    Ok(())
}

/// No index of a partitioned table becomes a constraint, and none is deferrable by itself.
#[tokio::test]
async fn a_deferrable_constraint_of_a_partitioned_table_has_a_statement_that_works() -> Outcome {
    let world = World::new(0).await?;
    world
        .external(
            "drop table orders; \
             create table orders (id bigint primary key, old_status text, unique (id, old_status) deferrable) \
                 partition by range (id); \
             create table orders_low partition of orders for values from (0) to (100); \
             insert into orders select g, 'A' || g from generate_series(1, 9) g",
        )
        .await?;
    let plan = describe(&world).carry_over().build()?;
    let _a = world.instance("a", Some(plan)).await?;
    world.is_held("ramp", "unique constraint").await?;
    let reason = world.reason().await?;
    let statement = reason.split('`').find(|part| part.starts_with("alter table"));
    world.external(statement.ok_or(reason.clone())?).await?;
    world.go("ramp").await?;
    let deferrable = "select pg_get_constraintdef(oid) from pg_constraint \
        where conrelid = 'orders'::regclass and condeferrable and contype = 'u' order by 1";
    let found: Vec<String> = sqlx::query_scalar(deferrable).fetch_all(&world.pool).await?;
    assert_eq!(found, ["UNIQUE (id, new_status) DEFERRABLE", "UNIQUE (id, old_status) DEFERRABLE"]);
    Ok(())
}
