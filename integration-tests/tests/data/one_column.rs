//! Two changes that want one column.

use cutover::fleet::FleetOptions;
use cutover::migration::{
    ColumnMigration, MigrationSpec, PhaseRange, Plan, SchemaChange, TableMigration, WiderKey,
};
use sqlx::{Connection, Executor, PgConnection, PgPool};

use crate::world::{Outcome, World};

#[tokio::test]
async fn two_changes_of_one_column_exclude_each_other() -> Outcome {
    type Make = fn(&PgPool) -> Result<(MigrationSpec, Box<dyn Plan>), cutover::ConfigError>;
    fn both<P: Plan + Clone + 'static>(plan: P) -> (MigrationSpec, Box<dyn Plan>) {
        (MigrationSpec::new("status", PhaseRange::FULL).plan(plan.clone()), Box::new(plan))
    }
    let widens: Make = |pool| Ok(both(WiderKey::new(pool.clone(), "nodes", "id").build()?));
    let adds: Make = |pool| Ok(both(SchemaChange::new(pool.clone(), "lines").not_null("note").build()?));
    let own_table: Make = |pool| {
        let plan = TableMigration::new(pool.clone(), "lines", "line_notes")
            .create("create table line_notes (id bigint primary key, note text)");
        Ok(both(plan.only_columns().same("note").build()?))
    };
    let moves_note: Make = |pool| {
        let plan = ColumnMigration::new(pool.clone(), "lines").column("note", "text_of", "text");
        Ok(both(plan.forward("note").backward("text_of").build()?))
    };
    let moves_node: Make = |pool| {
        let plan = ColumnMigration::new(pool.clone(), "lines").column("node", "node_name", "text");
        Ok(both(plan.forward("node::text").backward("node_name::integer").build()?))
    };
    // The one that has begun, one that it excludes, and one that it does not.
    for (begun, excluded, other) in [
        (widens, moves_node, adds),
        (adds, moves_note, widens),
        (adds, own_table, adds),
        (own_table, adds, widens),
        (moves_note, own_table, moves_node),
    ] {
        let world = World::new(1).await?;
        world
            .pool
            .execute(
                "create table nodes (id integer primary key); \
                 create table lines (id bigint primary key, node integer references nodes, note text)",
            )
            .await?;
        let (spec, _) = begun(&world.pool)?;
        let _a = world.join(vec![spec], "a", FleetOptions::default()).await?;
        world.go("expand").await?;
        let mut ledger = PgConnection::connect(&world.url).await?;
        for (make, is_excluded) in [(excluded, true), (other, false)] {
            let (_, plan) = make(&world.pool)?;
            let found = plan.problems(None, &mut ledger).await?;
            let texts: Vec<String> = found.iter().map(ToString::to_string).collect();
            let is_named = texts.iter().any(|text| text.contains("/status, which is in `expand`"));
            assert_eq!(is_named, is_excluded, "{plan:?}: {texts:?}");
        }
    }
    Ok(())
}
