//! Shapes of change that make another table: each from `off` to `contract` under load, half way back, and forward again.
//! An independent checker judges what clients wrote and read.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cutover::migration::{DualWrite, Error, Key, Migration, Rows, TableMigration, TableMigrationBuilder};
use cutover_checker::Recorder;
use sqlx::{AssertSqlSafe, Executor, PgPool};

use crate::world::{Fleet, Outcome, World};

/// The rows that are read and written. They are the first ones of the table.
const HOT: u64 = 6;
/// What is read of a row that holds nothing.
const NOTHING: &str = "nothing";

/// The statements of a side; `$1` is the key and `$2` the value.
#[derive(Clone, Copy)]
struct Side {
    put: &'static str,
    delete: &'static str,
    get: &'static str,
}

#[derive(Clone, Copy)]
struct Shape {
    create: &'static str,
    tables: [&'static str; 2],
    plan: fn(TableMigrationBuilder) -> TableMigrationBuilder,
    old: &'static Side,
    new: &'static Side,
    /// An external write that does not concern the old side.
    unconcerned: Option<&'static str>,
    /// Rows on which the sides differ.
    apart: &'static str,
    /// Whether everything is as it should be after `contract`.
    end: &'static str,
}

const OWN_TABLE: Shape = Shape {
    create: "create table users (id bigint primary key, name text not null, bio text, avatar text); \
        insert into users select g, 'n' || g, case when g % 2 = 0 then 'b' || g end from generate_series(1, 3000) g; \
        update users set bio = 'start', avatar = 'a' where id <= 6",
    tables: ["users", "profiles"],
    plan: |plan| {
        plan.create("create table profiles (id bigint primary key references users on delete cascade, bio text, avatar text)")
            .only_columns()
            .same("bio")
            .same("avatar")
    },
    old: &Side {
        put: "update users set bio = $2, avatar = 'a' where id = $1",
        delete: "update users set bio = null, avatar = null where id = $1",
        get: "select bio from users where id = $1",
    },
    new: &Side {
        put: "insert into profiles values ($1, $2, 'a') on conflict (id) do update set bio = excluded.bio, avatar = 'a'",
        delete: "delete from profiles where id = $1",
        get: "select bio from profiles where id = $1",
    },
    unconcerned: Some("update users set name = name || '!' where id = $1"),
    apart: "select count(*) from users u full join profiles p using (id) \
        where (u.bio, u.avatar) is distinct from (p.bio, p.avatar)",
    end: "select count(*) = 3000 and min(length(name)) > 1 \
            and (select count(*) from profiles where id > 6) = 1497 \
            and not exists (select from pg_attribute where attrelid = 'users'::regclass and attname in ('bio', 'avatar')) \
        from users",
};

const SOME_ROWS: Shape = Shape {
    create: "create table events (id bigint primary key, kind text not null, body text); \
        insert into events select g, case when g <= 6 or g % 3 = 0 then 'audit' else 'other' end, 'start' \
            from generate_series(1, 3000) g",
    tables: ["events", "audit_events"],
    plan: |plan| {
        plan.create("create table audit_events (id bigint primary key, body text)")
            .rows_where("kind = 'audit'")
            .same("body")
            .column_back("kind", "'audit'")
    },
    old: &Side {
        put: "insert into events values ($1, 'audit', $2) on conflict (id) do update set kind = 'audit', body = excluded.body",
        delete: "delete from events where id = $1 and kind = 'audit'",
        get: "select body from events where id = $1 and kind = 'audit'",
    },
    new: &Side {
        put: "insert into audit_events values ($1, $2) on conflict (id) do update set body = excluded.body",
        delete: "delete from audit_events where id = $1",
        get: "select body from audit_events where id = $1",
    },
    unconcerned: Some("update events set body = body || '!' where id = 1000 + 3 * $1"),
    apart: "select count(*) from (select * from events where kind = 'audit') e full join audit_events a using (id) \
        where e.body is distinct from a.body",
    end: "select count(*) = 1996 and count(*) filter (where kind = 'audit') = 0 \
            and (select count(*) from audit_events where id > 6) = 998 from events",
};

const PARTITIONED: Shape = Shape {
    create: "create table visits (id bigint primary key, day date not null default '2026-01-01', page text); \
        create unique index visits_key on visits (id, day); \
        insert into visits select g, date '2026-01-01' + (g % 60)::int, 'start' from generate_series(1, 3000) g; \
        update visits set day = '2026-01-01' where id <= 6",
    tables: ["visits", "visits_2"],
    plan: |plan| {
        plan.create("create table visits_2 (id bigint, day date, page text, primary key (id, day)) partition by range (day)")
            .expand_sql("create table visits_1 partition of visits_2 for values from ('2026-01-01') to ('2026-02-01')")
            .expand_sql("create table visits_3 partition of visits_2 default")
            .key("id")
            .key("day")
            .same("page")
            .without("default")
    },
    old: &Side {
        put: "insert into visits (id, page) values ($1, $2) on conflict (id) do update set page = excluded.page",
        delete: "delete from visits where id = $1",
        get: "select page from visits where id = $1",
    },
    new: &Side {
        put: "insert into visits_2 values ($1, '2026-01-01', $2) on conflict (id, day) do update set page = excluded.page",
        delete: "delete from visits_2 where id = $1",
        get: "select page from visits_2 where id = $1",
    },
    unconcerned: None,
    apart: "select count(*) from visits full join visits_2 n using (id, day) where visits.page is distinct from n.page",
    end: "select count(*) = 2994 and to_regclass('visits') is null from visits_2 where id > 6",
};

/// The instances that are alive.
type Instances = Arc<Mutex<Vec<Migration>>>;

fn handles(fleet: &[Fleet]) -> Vec<Migration> {
    fleet.iter().map(|one| one.migration.clone()).collect()
}

async fn value_of(side: &Side, pool: &PgPool, key: u64) -> Result<String, Error> {
    let found: Option<Option<String>> =
        sqlx::query_scalar(side.get).bind(key.cast_signed()).fetch_optional(pool).await?;
    Ok(found.flatten().unwrap_or_else(|| NOTHING.to_owned()))
}

/// A client of some instance, or an external writer that knows the old side only.
#[derive(Clone)]
struct Client {
    number: usize,
    shape: Shape,
    pool: PgPool,
    instances: Option<Instances>,
    recorder: Arc<Recorder>,
    stop: Arc<AtomicBool>,
    /// External writes of the old side have ended.
    is_retired: Arc<AtomicBool>,
}

impl Client {
    async fn run(self) -> Result<u32, Error> {
        let mut done = 0;
        while !self.stop.load(Ordering::Relaxed) {
            let key = fastrand::u64(1..=HOT);
            match &self.instances {
                Some(instances) => {
                    let migration = {
                        let instances = instances.lock().unwrap_or_else(PoisonError::into_inner);
                        instances[fastrand::usize(..instances.len())].clone()
                    };
                    let dual = DualWrite::new(migration, self.shape.old, self.shape.new);
                    if fastrand::bool() {
                        self.read(&dual, key).await?
                    } else {
                        self.write(&dual, key).await?
                    }
                }
                None => {
                    if let Some(unconcerned) = self.shape.unconcerned {
                        sqlx::query(unconcerned).bind(key.cast_signed()).execute(&self.pool).await?;
                    }
                    if !self.is_retired.load(Ordering::Relaxed) {
                        self.write_external(key).await?;
                    }
                    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                }
            }
            done += 1;
        }
        Ok(done)
    }

    /// `None`: the row is deleted.
    fn value() -> Option<String> {
        fastrand::u8(..).gt(&50).then(|| format!("v{}", fastrand::u64(..)))
    }

    async fn put(
        side: &Side,
        connection: &mut sqlx::PgConnection,
        key: u64,
        value: Option<&str>,
    ) -> Result<(), Error> {
        let query = match value {
            Some(value) => sqlx::query(side.put).bind(key.cast_signed()).bind(value.to_owned()),
            None => sqlx::query(side.delete).bind(key.cast_signed()),
        };
        query.execute(connection).await?;
        Ok(())
    }

    async fn read(&self, dual: &DualWrite<&'static Side, &'static Side>, key: u64) -> Result<(), Error> {
        let start = self.recorder.now();
        let get = async |side: &&'static Side| value_of(side, &self.pool, key).await;
        match dual.read_with(Key::of(&key.cast_signed()), get, get).await {
            Ok(text) => self.recorder.read(self.number, key, &text, start, self.recorder.now()),
            Err(Error::NotInFleet) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn write(&self, dual: &DualWrite<&'static Side, &'static Side>, key: u64) -> Result<(), Error> {
        let value = Self::value();
        let start = self.recorder.now();
        let mut tx = match dual.migration().begin(&self.pool).await {
            Ok(tx) => tx,
            Err(Error::NotInFleet | Error::EpochClosed | Error::EpochUnknown) => return Ok(()),
            Err(error) => return Err(error),
        };
        let put = async |side: &&'static Side, tx: &mut cutover::migration::PinnedTx| {
            Self::put(side, tx, key, value.as_deref()).await
        };
        match dual.write_with(&mut tx, Rows::one(&key.cast_signed()), put, put).await {
            Err(Error::Database(error)) if is_duplicate(&error) => return Ok(()),
            written => written?,
        };
        tx.commit().await?;
        let text = value.as_deref().unwrap_or(NOTHING);
        self.recorder.write(self.number, key, text, start, Some(self.recorder.now()));
        Ok(())
    }

    async fn write_external(&self, key: u64) -> Result<(), Error> {
        let value = Self::value();
        let start = self.recorder.now();
        let mut connection = self.pool.acquire().await?;
        match Self::put(self.shape.old, &mut connection, key, value.as_deref()).await {
            Err(Error::Database(error)) if is_duplicate(&error) => return Ok(()),
            written => written?,
        }
        let text = value.as_deref().unwrap_or(NOTHING);
        self.recorder.write(self.number, key, text, start, Some(self.recorder.now()));
        Ok(())
    }
}

/// With a second unique index on a table, two upserts of one key that run at the same time may fail on that index.
fn is_duplicate(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(sqlx::error::DatabaseError::is_unique_violation)
}

async fn instance(world: &World, shape: &Shape, name: &str) -> Outcome<Fleet> {
    let [old, new] = shape.tables;
    let plan = (shape.plan)(TableMigration::new(world.pool.clone(), old, new));
    world.short_lived(name, plan.build()?).await
}

/// Every phase, half way back, and forward again to the end, while clients read and write. In each phase an instance ends
/// without notice and another one joins.
async fn walks_under_load(shape: Shape) -> Outcome {
    let world = World::new(0).await?;
    world.pool.execute(shape.create).await?;
    let recorder = Arc::new(Recorder::new(5, str::to_owned));
    let [stop, is_retired] = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
    let mut fleet = vec![instance(&world, &shape, "a").await?, instance(&world, &shape, "b").await?];
    let instances: Instances = Arc::new(Mutex::new(handles(&fleet)));
    let clients = (0..4).map(|number| {
        let client = Client {
            number,
            shape,
            pool: world.pool.clone(),
            instances: (number < 3).then(|| instances.clone()),
            recorder: recorder.clone(),
            stop: stop.clone(),
            is_retired: is_retired.clone(),
        };
        client.run()
    });
    let walk = async {
        let walked = walk(&world, &shape, &mut fleet, &instances, &is_retired).await;
        stop.store(true, Ordering::Relaxed);
        walked
    };
    let (walked, done) = tokio::join!(walk, futures_util::future::try_join_all(clients));
    walked?;
    let done: u32 = done?.into_iter().sum();
    assert!(done > 100, "{done} operations are not a load");
    let is_right: bool = sqlx::query_scalar(AssertSqlSafe(shape.end)).fetch_one(&world.pool).await?;
    assert!(is_right, "{}", shape.end);
    let mut history = recorder.history();
    for key in 1..=HOT {
        history.initial(key, "start");
        history.last(key, &value_of(shape.new, &world.pool, key).await?);
    }
    let verdict = history.check();
    assert_eq!((verdict.stale_reads, verdict.lost_writes), (0, 0), "{verdict:?}");
    Ok(())
}

/// In each phase an instance ends without notice, and another one joins.
async fn walk(
    world: &World,
    shape: &Shape,
    fleet: &mut Vec<Fleet>,
    instances: &Instances,
    is_retired: &AtomicBool,
) -> Outcome {
    let phases = ["expand", "backfill", "verify", "ramp:50", "switch", "retire", "ramp:50", "retire"];
    for (number, phase) in phases.into_iter().enumerate() {
        if phase == "retire" {
            is_retired.store(true, Ordering::Relaxed);
        }
        world.ask(phase).await?;
        let dead = fleet.remove(0);
        *instances.lock().unwrap_or_else(PoisonError::into_inner) = handles(fleet);
        drop(dead);
        fleet.push(instance(world, shape, &format!("c{number}")).await?);
        *instances.lock().unwrap_or_else(PoisonError::into_inner) = handles(fleet);
        world.go(phase).await?;
        if phase.starts_with("ramp") {
            // A row that an external write left behind is repaired soon.
            let agree = async || {
                let apart = sqlx::query_scalar::<_, i64>(shape.apart).fetch_one(&world.pool).await;
                apart.is_ok_and(|apart| apart == 0)
            };
            world.until("no row that differs", agree).await?;
        }
    }
    world.approve().await?;
    world.go("contract").await?;
    world.ended().await?;
    Ok(())
}

#[tokio::test]
async fn columns_move_to_a_table_of_their_own_under_load() -> Outcome {
    walks_under_load(OWN_TABLE).await
}

#[tokio::test]
async fn some_rows_move_to_another_table_under_load() -> Outcome {
    walks_under_load(SOME_ROWS).await
}

#[tokio::test]
async fn a_table_becomes_a_partitioned_one_under_load() -> Outcome {
    walks_under_load(PARTITIONED).await
}
