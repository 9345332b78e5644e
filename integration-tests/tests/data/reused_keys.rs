//! A row that another transaction inserts, changes or deletes between the two statements of a write.

use cutover::migration::map_each;
use cutover::migration::{
    DualWrite, Error, Migration, PinnedTx, Rows, TableMigration, TableMigrationBuilder,
};
use sqlx::{AssertSqlSafe, Executor, FromRow, PgPool};

use crate::world::{Fleet, Outcome, World};

struct Side {
    table: &'static str,
    column: &'static str,
    is_new: bool,
}

impl Side {
    /// The template has `{table}` and `{column}`. In the new side, values are lower case.
    async fn run(&self, tx: &mut PinnedTx, template: &str) -> Result<(), Error> {
        let template = if self.is_new { template.to_lowercase() } else { template.to_owned() };
        let statement = template.replace("{table}", self.table).replace("{column}", self.column);
        tx.execute(AssertSqlSafe(statement)).await?;
        Ok(())
    }
}

const OLD: Side = Side { table: "orders", column: "old_status", is_new: false };

struct Sides(PgPool, DualWrite<Side, Side>);

impl Sides {
    fn tables(world: &World, migration: &Migration) -> Self {
        let new = Side { table: "orders_2", column: "status", is_new: true };
        Self(world.pool.clone(), DualWrite::new(migration.clone(), OLD, new))
    }

    fn columns(world: &World, migration: &Migration) -> Self {
        let new = Side { table: "orders", column: "new_status", is_new: true };
        Self(world.pool.clone(), DualWrite::new(migration.clone(), OLD, new))
    }

    /// `between` is another write, which commits after the first of the two statements.
    async fn write(&self, template: &str, between: &[&str]) -> Result<(), Error> {
        let Self(pool, sides) = self;
        let mut tx = sides.migration().begin(pool).await?;
        let first = async |side: &Side, tx: &mut PinnedTx| {
            side.run(tx, template).await?;
            for between in between {
                let mut other = sides.migration().begin(pool).await?;
                let each = async |side: &Side, tx: &mut PinnedTx| side.run(tx, between).await;
                sides.write_with(&mut other, Rows::one(&0), each, each).await?;
                other.commit().await?;
            }
            Ok::<_, Error>(())
        };
        let second = async |side: &Side, tx: &mut PinnedTx| side.run(tx, template).await;
        sides.write_with(&mut tx, Rows::one(&0), first, second).await?;
        tx.commit().await
    }
}

const INSERT: &str = "insert into {table} (id, {column}) overriding system value values (700, 'NEW') on conflict (id) do nothing";
const INSERT_COLUMN: &str = "insert into {table} (id, {column}) overriding system value values (700, 'NEW') \
     on conflict (id) do update set {column} = excluded.{column}";
const DELETE: &str = "delete from {table} where id = 700";
const UPDATE: &str = "update {table} set {column} = 'OTHER' where id = 700";
const UPDATE_IF_NEW: &str = "update {table} set {column} = 'OTHER' where id = 700 and {column} = 'NEW'";
const PAID: &str = "update {table} set {column} = 'PAID' where id = 700";

/// What was there, a write, and what commits between its two statements.
const OF_TABLES: [(&[&str], &str, &[&str]); 5] = [
    (&[], DELETE, &[INSERT]),
    (&[], UPDATE, &[INSERT]),
    (&[INSERT, PAID], UPDATE_IF_NEW, &[DELETE, INSERT]),
    (&[INSERT, PAID], "delete from {table} where id = 700 and {column} = 'NEW'", &[DELETE, INSERT]),
    (&[INSERT], INSERT, &[DELETE]),
];
const OF_COLUMNS: [(&[&str], &str, &[&str]); 2] =
    [(&[], UPDATE, &[INSERT_COLUMN]), (&[INSERT_COLUMN, PAID], UPDATE_IF_NEW, &[DELETE, INSERT_COLUMN])];

const TABLES_DIFFER: &str = "select count(*) from orders o full join orders_2 n using (id) \
     where lower(trim(o.old_status)) is distinct from n.status or o.id is null or n.id is null";
const COLUMNS_DIFFER: &str =
    "select count(*) from orders where lower(trim(old_status)) is distinct from new_status";

async fn differ(world: &World, query: &'static str) -> Outcome<bool> {
    Ok(sqlx::query_scalar::<_, i64>(query).fetch_one(&world.pool).await? > 0)
}

fn into_orders_2(world: &World) -> TableMigrationBuilder {
    TableMigration::new(world.pool.clone(), "orders", "orders_2")
        .create("create table orders_2 (id bigint primary key, status text)")
        .without("orders_id_seq")
}

fn in_sql(plan: TableMigrationBuilder) -> TableMigrationBuilder {
    plan.column("status", "lower(trim(old_status))").column_back("old_status", "upper(status)")
}

async fn until_repaired(world: &World, differ_query: &'static str) -> Outcome {
    world
        .until("the repair", async || {
            let waiting = "select count(*) from cutover.repairs";
            let waiting = sqlx::query_scalar::<_, i64>(waiting).fetch_one(&world.pool).await;
            waiting.is_ok_and(|waiting| waiting == 0)
        })
        .await?;
    assert!(!differ(world, differ_query).await?);
    Ok(())
}

async fn each_case(
    world: &World,
    sides: &Sides,
    differ_query: &'static str,
    cases: &[(&[&str], &str, &[&str])],
) -> Outcome {
    for phase in ["verify", "ramp:50", "switch"] {
        world.go(phase).await?;
        for (before, write, between) in cases {
            sides.write(DELETE, &[]).await?;
            for statement in *before {
                sides.write(statement, &[]).await?;
            }
            let outcome = sides.write(write, between).await;
            if phase == "ramp:50" {
                let is_retryable = outcome.as_ref().is_err_and(Error::is_retryable);
                assert!(is_retryable, "{write}: {outcome:?}");
                assert!(!differ(world, differ_query).await?, "{write}");
                sides.write(write, &[]).await?;
                assert!(!differ(world, differ_query).await?, "{write}");
            } else {
                outcome?;
                until_repaired(world, differ_query).await?;
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_row_that_comes_between_two_tables_is_found_at_commit() -> Outcome {
    let world = World::new(20).await?;
    let fleet = world.instance_of("a", in_sql(into_orders_2(&world)).build()?).await?;
    let sides = Sides::tables(&world, &fleet.migration);
    each_case(&world, &sides, TABLES_DIFFER, &OF_TABLES).await
}

#[tokio::test]
async fn a_row_that_comes_between_two_columns_is_found_at_commit() -> Outcome {
    let world = World::new(20).await?;
    let fleet = world.instance("a", Some(world.describe().build()?)).await?;
    let sides = Sides::columns(&world, &fleet.migration);
    each_case(&world, &sides, COLUMNS_DIFFER, &OF_COLUMNS).await
}

/// Of a partitioned table, the trigger of each partition checks.
#[tokio::test]
async fn a_row_that_comes_between_is_found_in_partitions() -> Outcome {
    let world = World::new(20).await?;
    let plan = TableMigration::new(world.pool.clone(), "orders", "orders_2")
        .create("create table orders_2 (id bigint primary key, status text) partition by range (id)")
        .expand_sql("create table orders_2_a partition of orders_2 for values from (0) to (500)")
        .expand_sql("create table orders_2_b partition of orders_2 default")
        .without("orders_id_seq");
    let fleet = world.instance_of("a", in_sql(plan).build()?).await?;
    let sides = Sides::tables(&world, &fleet.migration);
    each_case(&world, &sides, TABLES_DIFFER, &OF_TABLES).await
}

/// In a table whose partitions a row can leave, the condition of the trigger cannot read system columns.
#[tokio::test]
async fn a_row_that_comes_between_columns_is_found_in_partitions() -> Outcome {
    let world = World::new(0).await?;
    world
        .pool
        .execute(
            "drop table orders; create table orders (id bigint primary key, old_status text) partition by hash (id); \
             create table orders_a partition of orders for values with (modulus 2, remainder 0); \
             create table orders_b partition of orders for values with (modulus 2, remainder 1); \
             insert into orders select id, ' LEGACY' || id from generate_series(1, 20) as id",
        )
        .await?;
    let fleet = world.instance("a", Some(world.describe().build()?)).await?;
    let sides = Sides::columns(&world, &fleet.migration);
    each_case(&world, &sides, COLUMNS_DIFFER, &OF_COLUMNS).await?;
    world.external("alter table orders alter column old_status type varchar(40)").await?;
    let mut tx = fleet.migration.begin(&world.pool).await?;
    for n in 1..=10 {
        tx.execute(AssertSqlSafe(format!("update orders set id = {} where id = {n}", n + 1000))).await?;
    }
    tx.commit().await?;
    assert!(!differ(&world, COLUMNS_DIFFER).await?);
    Ok(())
}

#[derive(FromRow)]
struct Old {
    old_status: Option<String>,
}

/// Only the driver can compare. It repairs the side without authority.
#[tokio::test]
async fn a_row_that_comes_between_is_repaired_by_a_mapping_in_rust() -> Outcome {
    let world = World::new(20).await?;
    let lower = map_each(|row: Old| Ok::<_, String>(row.old_status.map(|text| text.trim().to_lowercase())));
    let plan = world.describe().forward_rows(lower).build()?;
    let fleet = world.instance("a", Some(plan)).await?;
    let sides = Sides::columns(&world, &fleet.migration);
    for phase in ["verify", "ramp:50", "switch"] {
        world.go(phase).await?;
        for (before, write, between) in OF_COLUMNS {
            sides.write(DELETE, &[]).await?;
            for statement in before {
                sides.write(statement, &[]).await?;
            }
            sides.write(write, between).await?;
            until_repaired(&world, COLUMNS_DIFFER).await?;
        }
    }
    Ok(())
}

/// Writes in any order, with savepoints, of rows that are locked, replaced or the same on both sides.
#[tokio::test]
async fn what_agrees_at_commit_is_no_conflict() -> Outcome {
    let world = World::new(20).await?;
    let fleet = world.instance_of("a", in_sql(into_orders_2(&world)).build()?).await?;
    let Fleet { migration, .. } = &fleet;
    for phase in ["verify", "ramp:50", "switch"] {
        world.go(phase).await?;
        for statements in [
            &[
                "update orders_2 set status = 'first' where id = 3",
                "update orders set old_status = 'FIRST' where id = 3",
            ][..],
            &[
                "savepoint a",
                "update orders set old_status = 'IN' where id = 4",
                "savepoint b",
                "update orders_2 set status = 'in' where id = 4",
                "release savepoint a",
            ],
            &[
                "update orders set old_status = 'X' where id = 5",
                "delete from orders_2 where id = 5",
                "insert into orders_2 values (5, 'x')",
            ],
            &["update orders_2 set status = status where id = 6"],
            &[
                "delete from orders_2 where id = 7",
                "insert into orders_2 select id, lower(trim(old_status)) from orders where id = 7",
            ],
            &[
                "insert into orders_2 values (800, 'late')",
                "insert into orders (id, old_status) overriding system value values (800, 'LATE')",
            ],
            &[
                "update orders_2 set id = 801 where id = 800",
                "update orders set id = default where id = 800",
                "update orders_2 set id = (select max(id) from orders) where id = 801",
            ],
            &[
                "delete from orders_2 using orders where orders_2.id = orders.id and orders.old_status = 'LATE'",
                "delete from orders where old_status = 'LATE'",
            ],
        ] {
            let mut tx = migration.begin(&world.pool).await?;
            for statement in statements {
                tx.execute(*statement).await?;
            }
            tx.commit().await.map_err(|error| format!("{phase}: {statements:?}: {error}"))?;
        }
        let recorded: i64 =
            sqlx::query_scalar("select count(*) from cutover.repairs").fetch_one(&world.pool).await?;
        assert_eq!(recorded, 0, "{phase}");
        assert!(!differ(&world, TABLES_DIFFER).await?, "{phase}");
    }
    world.go("retire").await?;
    let mut tx = migration.begin(&world.pool).await?;
    tx.execute("update orders_2 set status = 'new only' where id = 3").await?;
    tx.execute("delete from orders_2 where id = 4").await?;
    tx.execute("insert into orders_2 values (900, 'new only')").await?;
    tx.commit().await?;
    // Nothing is left on the new table.
    world.approve().await?;
    world.ask("contract").await?;
    let left = "select count(*) from pg_proc where proname ~ '^(guard|commit_check)_[0-9]+$'";
    let is_clean = async || {
        let left = sqlx::query_scalar::<_, i64>(left).fetch_one(&world.pool).await;
        left.is_ok_and(|left| left == 0)
    };
    world.until("the drop", is_clean).await?;
    Ok(())
}
