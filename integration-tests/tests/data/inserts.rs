//! New rows whose key the database generates, in two tables.

use crate::world::{Outcome, World};
use cutover::migration::{DualWrite, Keyed};
use cutover::migration::{Error, PinnedTx};
use sqlx::{AssertSqlSafe, Executor};

/// The result of an insert.
struct Person {
    id: i64,
    name: String,
}

impl Keyed<i64> for Person {
    fn key(&self) -> i64 {
        self.id
    }
}

/// The repository's own error.
#[derive(Debug, thiserror::Error)]
enum PeopleError {
    #[error(transparent)]
    Migration(#[from] Error),
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

#[cutover::dual_write]
trait People {
    #[insert(key = id)]
    async fn add(&self, tx: &mut PinnedTx, id: Option<i64>, name: &str) -> Result<Person, PeopleError>;

    #[insert(key = id)]
    async fn add_plainly(&self, tx: &mut PinnedTx, name: String, id: Option<i64>)
    -> Result<i64, PeopleError>;

    #[write(keys = ids)]
    async fn remove(&self, tx: &mut PinnedTx, ids: &[i64]) -> Result<u64, PeopleError>;

    #[write(key = id)]
    async fn put(&self, tx: &mut PinnedTx, id: i64, name: &str) -> Result<(), PeopleError>;
}

/// A table whose rows should get their keys from the shared sequence.
struct Table {
    name: &'static str,
    spelt: fn(&str) -> String,
    obeys: bool,
}

impl People for Table {
    async fn add(&self, tx: &mut PinnedTx, id: Option<i64>, name: &str) -> Result<Person, PeopleError> {
        let id = id.filter(|_| self.obeys);
        let insert = format!(
            "insert into {} (id, name) values (coalesce($1, nextval('people_ids')), $2) returning id, name",
            self.name
        );
        let (id, name) = sqlx::query_as(AssertSqlSafe(insert))
            .bind(id)
            .bind((self.spelt)(name))
            .fetch_one(&mut **tx)
            .await?;
        Ok(Person { id, name })
    }

    async fn add_plainly(
        &self,
        tx: &mut PinnedTx,
        name: String,
        id: Option<i64>,
    ) -> Result<i64, PeopleError> {
        Ok(self.add(tx, id, &name).await?.id)
    }

    async fn remove(&self, tx: &mut PinnedTx, ids: &[i64]) -> Result<u64, PeopleError> {
        let delete = format!("delete from {} where id = any($1)", self.name);
        Ok(sqlx::query(AssertSqlSafe(delete)).bind(ids).execute(&mut **tx).await?.rows_affected())
    }

    async fn put(&self, tx: &mut PinnedTx, id: i64, name: &str) -> Result<(), PeopleError> {
        let upsert = format!(
            "insert into {} (id, name) values ($1, $2) on conflict (id) do update set name = excluded.name",
            self.name
        );
        sqlx::query(AssertSqlSafe(upsert)).bind(id).bind((self.spelt)(name)).execute(&mut **tx).await?;
        Ok(())
    }
}

const OLD: Table = Table { name: "old_people", spelt: |name| name.to_uppercase(), obeys: true };
const NEW: Table = Table { name: "new_people", spelt: str::to_owned, obeys: true };

async fn tables() -> Outcome<World> {
    let world = World::new(1).await?;
    world
        .pool
        .execute(
            "create sequence people_ids; create table old_people (id bigint primary key, name text); \
             create table new_people (id bigint primary key, name text)",
        )
        .await?;
    Ok(world)
}

type People2 = (Vec<(i64, String)>, Vec<(i64, String)>);

async fn both(world: &World) -> Outcome<People2> {
    Ok((
        sqlx::query_as("select id, name from old_people order by id").fetch_all(&world.pool).await?,
        sqlx::query_as("select id, name from new_people order by id").fetch_all(&world.pool).await?,
    ))
}

#[tokio::test]
async fn a_generated_key_is_the_same_on_both_sides() -> Outcome {
    let world = tables().await?;
    let fleet = world.instance("a", Some(world.plan()?)).await?;
    let people = DualWrite::new(fleet.migration.clone(), OLD, NEW);
    for (phase, answer) in
        [("off", "ANN"), ("expand", "ANN"), ("ramp", "ANN"), ("switch", "ann"), ("retire", "ann")]
    {
        world.go(phase).await?;
        let mut tx = fleet.migration.begin(&world.pool).await?;
        let added = people.add(&mut tx, None, "ann").await?;
        assert_eq!(added.name, answer, "{phase}: the result of the side that is read");
        let second = people.add_plainly(&mut tx, "bob".into(), None).await?;
        // A key that the caller chose goes to both sides too.
        assert_eq!(people.add_plainly(&mut tx, "cyd".into(), Some(1_000)).await?, 1_000);
        tx.commit().await?;
        let expected = |spelt: fn(&str) -> String, is_written: bool| {
            let names = [(added.id, "ann"), (second, "bob"), (1_000, "cyd")];
            let rows = names.into_iter().filter(|_| is_written).map(|(id, name)| (id, spelt(name)));
            rows.collect::<Vec<_>>()
        };
        let (old, new) = both(&world).await?;
        assert_eq!(old, expected(OLD.spelt, phase != "retire"), "{phase}");
        assert_eq!(new, expected(NEW.spelt, phase != "off"), "{phase}");
        let mut tx = fleet.migration.begin(&world.pool).await?;
        assert_eq!(people.remove(&mut tx, &[added.id, second, 1_000]).await?, 3, "{phase}");
        tx.commit().await?;
        assert_eq!(both(&world).await?, (vec![], vec![]), "{phase}");
    }
    Ok(())
}

#[tokio::test]
async fn a_side_that_generates_another_key_is_an_error() -> Outcome {
    let world = tables().await?;
    let fleet = world.instance("a", Some(world.plan()?)).await?;
    world.go("expand").await?;
    for (old, new, given) in
        [(OLD, Table { obeys: false, ..NEW }, None), (Table { obeys: false, ..OLD }, NEW, Some(1_000))]
    {
        let people = DualWrite::new(fleet.migration.clone(), old, new);
        let mut tx = fleet.migration.begin(&world.pool).await?;
        let refused = people.add_plainly(&mut tx, "ann".into(), given).await;
        assert!(matches!(refused, Err(PeopleError::Migration(Error::KeysDiffer))));
        assert!(matches!(tx.commit().await, Err(Error::Unfinished)));
        assert_eq!(both(&world).await?, (vec![], vec![]));
    }
    Ok(())
}

#[tokio::test]
async fn inserts_with_closures_run_in_a_task() -> Outcome {
    let world = tables().await?;
    let fleet = world.instance("a", Some(world.plan()?)).await?;
    world.go("expand").await?;
    let (people, pool) = (DualWrite::new(fleet.migration.clone(), OLD, NEW), world.pool.clone());
    let id = tokio::spawn(async move {
        let mut tx = people.migration().begin(&pool).await?;
        let added = people
            .insert_with(
                &mut tx,
                None,
                async |old, tx, id| old.add(tx, id, "ann").await,
                async |new, tx, id| new.add(tx, id, "ann").await,
            )
            .await?;
        tx.commit().await?;
        let id = added.id;
        let select = "select name from old_people where id = $1";
        let name: String = people
            .read_with(
                cutover::migration::Key::of(&id),
                async |_| Ok::<_, PeopleError>(sqlx::query_scalar(select).bind(id).fetch_one(&pool).await?),
                async |_| Ok("from the new side".to_owned()),
            )
            .await?;
        assert_eq!(name, "ANN");
        Ok::<_, PeopleError>(id)
    })
    .await??;
    assert_eq!(both(&world).await?, (vec![(id, "ANN".into())], vec![(id, "ann".into())]));
    Ok(())
}

#[tokio::test]
async fn several_writes_reach_both_sides_or_none() -> Outcome {
    let world = tables().await?;
    let fleet = world.instance("a", Some(world.plan()?)).await?;
    world.go("verify").await?;
    let people = DualWrite::new(fleet.migration.clone(), OLD, NEW);
    let rows = |names: &[(i64, &str)]| -> People2 {
        let spelt = |table: &Table| names.iter().map(|(id, name)| (*id, (table.spelt)(name))).collect();
        (spelt(&OLD), spelt(&NEW))
    };
    let mut tx = fleet.migration.begin(&world.pool).await?;
    people.put(&mut tx, 1, "ann").await?;
    people.put(&mut tx, 2, "bob").await?;
    people.put(&mut tx, 1, "eve").await?;
    people.remove(&mut tx, &[2, 3]).await?;
    people.put(&mut tx, 3, "cyd").await?;
    tx.commit().await?;
    assert_eq!(both(&world).await?, rows(&[(1, "eve"), (3, "cyd")]));
    // The last of several writes fails on the new side only, which rolls back the others.
    world.pool.execute("alter table new_people add check (name <> 'mallory')").await?;
    let mut tx = fleet.migration.begin(&world.pool).await?;
    people.put(&mut tx, 1, "ann").await?;
    people.remove(&mut tx, &[3]).await?;
    people.put(&mut tx, 4, "mallory").await.expect_err("refused");
    drop(tx);
    assert_eq!(both(&world).await?, rows(&[(1, "eve"), (3, "cyd")]));
    Ok(())
}
