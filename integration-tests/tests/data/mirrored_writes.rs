//! The service writes one side, and the guard trigger mirrors the write to the other one.

use cutover::migration::{ColumnMigrationBuilder, DualWrite, Error, Key, Migration, PinnedTx, Rows};
use sqlx::{AssertSqlSafe, Executor};

use crate::deadpool::pool_of_one;
use crate::world::{Fleet, Outcome, World};

fn text(value: &str) -> Option<String> {
    Some(value.to_owned())
}

async fn mirrored(
    world: &World,
    more: impl Fn(ColumnMigrationBuilder) -> ColumnMigrationBuilder,
) -> Outcome<Fleet> {
    world.instance("a", Some(more(world.describe().mirror_writes()).build()?)).await
}

/// A value as the side of this transaction represents it.
fn spelled(is_new: bool, value: &str) -> String {
    if is_new { value.to_owned() } else { format!(" {} ", value.to_uppercase()) }
}

async fn set(tx: &mut PinnedTx, migration: &Migration, id: i64, value: &str) -> Result<u64, Error> {
    let column = migration.columns(tx)?;
    let update = format!("update orders set {column} = $2 where id = $1 and {column} is distinct from $2");
    let value = spelled(column.is_new(), value);
    let query = sqlx::query(AssertSqlSafe(update)).bind(id).bind(value);
    Ok(query.execute(&mut **tx).await?.rows_affected())
}

async fn insert(tx: &mut PinnedTx, migration: &Migration, value: &str) -> Result<i64, Error> {
    let column = migration.columns(tx)?;
    let insert = format!("insert into orders ({column}) values ($1) returning id");
    let value = spelled(column.is_new(), value);
    Ok(sqlx::query_scalar(AssertSqlSafe(insert)).bind(value).fetch_one(&mut **tx).await?)
}

#[tokio::test]
async fn a_write_of_one_side_reaches_both_in_every_phase() -> Outcome {
    let world = World::new(20).await?;
    let a = mirrored(&world, |plan| plan).await?;
    let status = &a.migration;
    let other_pool = pool_of_one(&world)?;
    let path = [
        "off", "expand", "backfill", "verify", "ramp:50", "switch", "ramp:50", "verify", "switch", "retire",
        "switch",
    ];
    for (phase, id) in path.into_iter().zip(1_i64..) {
        world.go(phase).await?;
        let both = |value: &str| match phase {
            "off" => (text(&spelled(false, value)), None),
            "retire" => (None, text(value)),
            // A mapping back writes capitals without blanks.
            "switch" => (text(&value.to_uppercase()), text(value)),
            _ => (text(&spelled(false, value)), text(value)),
        };
        let expect = |value: &str, found: (Option<String>, Option<String>)| {
            let (old, new) = both(value);
            assert!(
                found.1 == new && (old.is_none() || found.0 == old),
                "{phase}: {found:?}, not {old:?} {new:?}"
            );
        };
        let (updated, inserted) = (format!("paid{id}"), format!("open{id}"));
        let mut tx = status.begin(&world.pool).await?;
        assert_eq!(set(&mut tx, status, id, &updated).await?, 1, "{phase}");
        let new_id = insert(&mut tx, status, &inserted).await?;
        tx.commit().await?;
        expect(&updated, world.row(id).await?);
        expect(&inserted, world.row(new_id).await?);
        // An upsert, on the other driver.
        let tx = status.begin(&other_pool).await?;
        let column = status.columns(&tx)?;
        let upsert = format!(
            "insert into orders (id, {column}) overriding system value values ($1, $2) \
             on conflict (id) do update set {column} = excluded.{column} returning {column}"
        );
        let value = spelled(column.is_new(), "closed");
        let returned: String = tx.query_one(&upsert, &[&new_id, &value]).await?.get(0);
        assert_eq!(returned, value);
        tx.commit().await?;
        expect("closed", world.row(new_id).await?);
        // A read, and a list of one owner, outside of a transaction.
        let read: String = status
            .read(async |pin| {
                let column = status.columns(pin)?.for_key(Key::of(&id));
                let select = format!("select {column} from orders where id = $1 order by {column}");
                Ok::<_, Error>(
                    sqlx::query_scalar(AssertSqlSafe(select)).bind(id).fetch_one(&world.pool).await?,
                )
            })
            .await?;
        assert_eq!(read.trim().to_lowercase(), updated, "{phase}");
        // A build that writes both sides runs beside this one.
        let dual = DualWrite::new(status.clone(), "old_status", "new_status");
        let mut tx = status.begin(&world.pool).await?;
        let write = async |side: &&str, tx: &mut PinnedTx| {
            let update = format!("update orders set {side} = $2 where id = $1");
            let value = spelled(*side == "new_status", "dual");
            sqlx::query(AssertSqlSafe(update)).bind(new_id).bind(value).execute(&mut **tx).await?;
            Ok::<_, Error>(())
        };
        dual.write_with(&mut tx, Rows::one(&new_id), write, write).await?;
        tx.commit().await?;
        assert!(phase == "off" || world.row(new_id).await?.1 == text("dual"), "{phase}");
    }
    let seen: i64 = sqlx::query_scalar("select count(*) from cutover.external_write_events")
        .fetch_one(&world.pool)
        .await?;
    let counted: i64 =
        sqlx::query_scalar("select count(*) from cutover.external_writes").fetch_one(&world.pool).await?;
    assert_eq!((seen, counted), (0, 0), "a mirrored write counts as an external one");
    // The old side is not written any more, also not by mistake.
    world.go("retire").await?;
    let mut tx = status.begin(&world.pool).await?;
    let error = tx.execute("update orders set old_status = 'LATE' where id = 1").await.expect_err("refused");
    assert_eq!(error.as_database_error().and_then(|error| error.code()).as_deref(), Some("ZC003"));
    drop(tx);
    world.approve().await?;
    world.go("contract").await?;
    world.until("the old column to go", async || !world.has_column("old_status").await).await?;
    let mut tx = status.begin(&world.pool).await?;
    insert(&mut tx, status, "after").await?;
    tx.commit().await?;
    Ok(())
}

/// The value of an insert is the default of its column, so only the phase tells which column was meant.
#[tokio::test]
async fn a_write_follows_its_pin_and_not_the_ledger() -> Outcome {
    let world = World::new(5).await?;
    world.pool.execute("alter table orders alter old_status set default 'PENDING'").await?;
    let a =
        mirrored(&world, |plan| plan.expand_sql("alter table orders alter new_status set default 'fresh'"))
            .await?;
    let status = &a.migration;
    for (from, to, column, value, expected) in [
        ("ramp:50", "switch", "old_status", "PENDING", ("PENDING", "pending")),
        ("switch", "ramp:50", "new_status", "fresh", ("FRESH", "fresh")),
        ("ramp:50", "verify", "old_status", "PENDING", ("PENDING", "pending")),
    ] {
        world.go(from).await?;
        let mut tx = status.begin(&world.pool).await?;
        assert!(status.columns(&tx)?.to_string().contains(column), "{from}");
        world.ask(to).await?;
        world.until(to, async || world.is_at(to).await.unwrap_or(false)).await?;
        let insert = format!("insert into orders ({column}) values ($1) returning id");
        let id: i64 = sqlx::query_scalar(AssertSqlSafe(insert)).bind(value).fetch_one(&mut *tx).await?;
        tx.commit().await?;
        assert_eq!(world.row(id).await?, (text(expected.0), text(expected.1)), "{from} to {to}");
    }
    Ok(())
}

#[tokio::test]
async fn a_mapping_that_fails_fails_the_write() -> Outcome {
    let world = World::new(5).await?;
    let a = mirrored(&world, |plan| {
        plan.forward("case when old_status like 'BAD%' then old_status::integer::text else lower(trim(old_status)) end")
            .backward("case when new_status like 'bad%' then new_status::integer::text else upper(new_status) end")
    })
    .await?;
    for (phase, column, value) in
        [("expand", "old_status", "BAD"), ("ramp:50", "old_status", "BAD"), ("switch", "new_status", "bad")]
    {
        world.go(phase).await?;
        let before = world.row(1).await?;
        let mut tx = a.migration.begin(&world.pool).await?;
        let update = format!("update orders set {column} = $1 where id = 1");
        let error = sqlx::query(AssertSqlSafe(update)).bind(value).execute(&mut *tx).await.expect_err(phase);
        assert_eq!(
            error.as_database_error().and_then(|error| error.code()).as_deref(),
            Some("22P02"),
            "{phase}"
        );
        assert!(tx.commit().await.is_err(), "{phase}");
        assert_eq!(world.row(1).await?, before, "{phase}");
    }
    let noted: i64 =
        sqlx::query_scalar("select count(*) from cutover.repairs").fetch_one(&world.pool).await?;
    assert_eq!(noted, 0);
    Ok(())
}

#[tokio::test]
async fn without_its_trigger_a_mirrored_write_is_refused() -> Outcome {
    let world = World::new(2).await?;
    let a = mirrored(&world, |plan| plan).await?;
    world.go("ramp:50").await?;
    let trigger = format!("zzz_cutover_{}_row", world.id().await?);
    let other_pool = pool_of_one(&world)?;
    for disable in [
        format!("alter table orders disable trigger {trigger}"),
        format!("alter table orders enable trigger {trigger}"),
        format!("drop trigger {trigger} on orders"),
    ] {
        world.pool.execute(AssertSqlSafe(disable.clone())).await?;
        let error = a.migration.begin(&world.pool).await.expect_err("refused").to_string();
        assert!(error.contains("missing or disabled"), "{disable}: {error}");
        assert!(a.migration.begin(&other_pool).await.is_err(), "{disable}");
    }
    Ok(())
}

/// Both columns are known, so the text is fixed, as for `sqlx::query!`.
#[tokio::test]
async fn static_sql_uses_the_index_of_either_side() -> Outcome {
    let world = World::new(5_000).await?;
    let a = mirrored(&world, |plan| plan.index("by_new", "(new_status)").without("by_old")).await?;
    world.pool.execute("create index by_old on orders (old_status)").await?;
    world.go("ramp:50").await?;
    world.pool.execute("vacuum analyze orders").await?;
    let or = "select id, case when $1 then new_status else old_status end from orders \
        where ($1 and new_status = $2) or (not $1 and old_status = $2)";
    let union = "select id, status from (select id, new_status as status from orders where $1 and new_status = $2 \
        union all select id, old_status from orders where not $1 and old_status = $2) as orders order by id limit 10";
    let case = "select id from orders where case when $1 then new_status else old_status end = $2";
    let mut connection = world.pool.acquire().await?;
    connection.execute("set plan_cache_mode = force_generic_plan").await?;
    for (number, (query, uses_index)) in [(or, true), (union, true), (case, false)].into_iter().enumerate() {
        let prepare = format!("prepare s{number} (boolean, text) as {query}");
        connection.execute(AssertSqlSafe(prepare)).await?;
        for is_new in [true, false] {
            let value = if is_new { "legacy77" } else { " LEGACY77 " };
            let explain =
                format!("explain (analyze, costs off, timing off) execute s{number} ({is_new}, '{value}')");
            let plan: Vec<String> =
                sqlx::query_scalar(AssertSqlSafe(explain)).fetch_all(&mut *connection).await?;
            let plan = plan.join("\n");
            assert_eq!(!plan.contains("Seq Scan"), uses_index, "{query}\n{plan}");
            // The other branch is not run at all.
            assert!(number != 1 || plan.contains("never executed"), "{plan}");
            let execute = format!("execute s{number} ({is_new}, '{value}')");
            let rows = connection.fetch_all(AssertSqlSafe(execute)).await?;
            assert_eq!(rows.len(), 1, "{query}");
        }
    }
    drop(connection);
    // The parameter is what the handle says.
    let mut tx = a.migration.begin(&world.pool).await?;
    let is_new = a.migration.columns(&tx)?.is_new();
    let update = "update orders set new_status = case when $1 then $3 else new_status end, \
        old_status = case when $1 then old_status else $3 end where id = $2";
    sqlx::query(update).bind(is_new).bind(9_i64).bind(spelled(is_new, "paid")).execute(&mut *tx).await?;
    tx.commit().await?;
    assert_eq!(world.row(9).await?, (text(" PAID "), text("paid")));
    Ok(())
}
