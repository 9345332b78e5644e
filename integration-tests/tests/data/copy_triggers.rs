//! The table's own triggers, which a copy fires: what they change is known before `expand`, and a person decides.

use crate::world::{Outcome, World};
use cutover::migration::ColumnMigrationBuilder;
use sqlx::{AssertSqlSafe, Executor};

/// `touched` counts the updates of a row.
async fn touch(world: &World, returns_early: bool) -> Outcome {
    let early = match returns_early {
        true => "if current_setting('cutover.copying', true) = 'on' then return new; end if;",
        false => "",
    };
    let statement = format!(
        "alter table orders add touched integer not null default 0; \
         create function touch() returns trigger language plpgsql as $$ begin {early} \
             new.touched := new.touched + 1; return new; end $$; \
         create trigger touch before update on orders for each row execute function touch()"
    );
    world.pool.execute(AssertSqlSafe(statement)).await?;
    Ok(())
}

/// How many rows a whole copy has touched.
async fn touched(world: &World, plan: ColumnMigrationBuilder) -> Outcome<i64> {
    let _a = world.instance("a", Some(plan.build()?)).await?;
    world.go("verify").await?;
    assert_eq!(world.row(3).await?.1.as_deref(), Some("legacy3"));
    Ok(sqlx::query_scalar("select count(*) from orders where touched > 0").fetch_one(&world.pool).await?)
}

#[tokio::test]
async fn triggers_that_change_other_columns_are_refused() -> Outcome {
    let world = World::new(5).await?;
    touch(&world, false).await?;
    let plan = world.describe().build()?;
    let found = world.problems(&plan).await?;
    assert!(found[0].is_blocking && found[0].problem.contains("\"touch\""), "{found:?}");
    assert!(found[0].problem.contains("change \"touched\" in 5 of 5 rows"), "{found:?}");
    let a = world.instance("a", Some(plan)).await?;
    world.ask("verify").await?;
    world.waits_for("let_triggers_fire").await?;
    assert!(!world.has_column("new_status").await);
    a.agent.leave().await?;
    assert_eq!(touched(&world, world.describe().let_triggers_fire()).await?, 5);
    Ok(())
}

#[tokio::test]
async fn a_trigger_that_checks_the_setting_leaves_copied_rows_alone() -> Outcome {
    let world = World::new(5).await?;
    touch(&world, true).await?;
    let found = world.problems(&world.describe().build()?).await?;
    assert!(found.len() == 1 && !found[0].is_blocking, "{found:?}");
    assert!(found[0].problem.contains("\"touch\" of \"orders\", which change no other column"), "{found:?}");
    assert_eq!(touched(&world, world.describe()).await?, 0);
    world.pool.execute("update orders set note = 'x' where id = 1").await?;
    let touched: i32 =
        sqlx::query_scalar("select touched from orders where id = 1").fetch_one(&world.pool).await?;
    assert_eq!(touched, 1, "the setting ends with the transaction");
    Ok(())
}

#[tokio::test]
async fn a_copy_that_skips_triggers_leaves_other_columns_alone() -> Outcome {
    let world = World::new(5).await?;
    touch(&world, false).await?;
    let plan = || world.describe().skip_triggers();
    assert_eq!(world.problems(&plan().build()?).await?, []);
    assert_eq!(touched(&world, plan()).await?, 0);
    Ok(())
}

#[tokio::test]
async fn a_trigger_added_after_expand_is_found_before_the_copy() -> Outcome {
    let world = World::new(5).await?;
    let _a = world.instance("a", Some(world.plan()?)).await?;
    world.go("expand").await?;
    touch(&world, false).await?;
    world.ask("backfill").await?;
    world.waits_for("change \"touched\"").await?;
    assert_eq!(world.row(3).await?.1, None);
    world.pool.execute("drop trigger touch on orders").await?;
    world.filled().await?;
    Ok(())
}
