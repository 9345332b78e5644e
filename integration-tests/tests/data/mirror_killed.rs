//! Two databases, and processes that are killed while they write, in every phase and during every move.

use std::env;
use std::process::Command;
use std::time::Duration;

use cutover::migration::mirror::{
    Mirror, MirrorMigration, MirrorSource, MirrorStore, PostgresMirror, RedisMirror,
};
use cutover_testkit::{Folder, Postgres, Process, Redis, Signal};
use sqlx::{Executor, PgPool};
use tokio::task::JoinSet;
use tokio::time::{interval, sleep};

use crate::mirror::{Accounts, Plan, balance, kept, member, notes, put, redis_store, world};
use crate::world::{Outcome, World};

const NAMES: [&str; 2] = ["a", "b"];
const WALK: [&str; 8] = ["expand", "backfill", "verify", "ramp:50", "switch", "retire", "switch", "ramp:50"];

/// The numbers that the processes write. They increase across all processes.
const BOOK: &str = "create sequence numbers; \
    create table acknowledged (key text primary key, writer text, number bigint); \
    create table complaints (what text)";

async fn postgres_at(url: &str) -> Outcome<PostgresMirror> {
    Ok(PostgresMirror::new(PgPool::connect(url).await?, "kept")?)
}

fn redis_at(url: &str) -> Outcome<RedisMirror> {
    redis_store(url, "accounts:")
}

/// Not a test: the body of a separate process with one instance.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by the tests below"]
async fn process() -> Outcome {
    let (Ok(url), Ok(name)) = (env::var("MIRROR_URL"), env::var("MIRROR_NAME")) else { return Ok(()) };
    let world = World { pool: PgPool::connect(&url).await?, url };
    match (env::var("MIRROR_POSTGRES"), env::var("MIRROR_REDIS")) {
        (Ok(other), _) => live(&world, &name, postgres_at(&other).await?).await,
        (_, Ok(other)) => live(&world, &name, redis_at(&other)?).await,
        _ => Ok(()),
    }
}

/// Writes its own keys, and some that the other process writes too, until it is killed.
async fn live<M: MirrorStore>(world: &World, name: &str, store: M) -> Outcome {
    let plan = MirrorMigration::new(world.pool.clone(), Accounts, store);
    let instance = world.short_lived(name, plan.clone()).await?;
    let mirror = Mirror::new(instance.migration.clone(), plan);
    tokio::spawn({
        let mirror = mirror.clone();
        async move { mirror.run_delivery().await }
    });
    let writer = name.trim_end_matches(char::is_numeric);
    let mut writers = JoinSet::new();
    for number in 0..3 {
        writers.spawn(write(mirror.clone(), world.pool.clone(), format!("{writer}{number}"), true));
        writers.spawn(write(mirror.clone(), world.pool.clone(), format!("shared{number}"), false));
    }
    while let Some(ended) = writers.join_next().await {
        ended??;
    }
    Ok(())
}

async fn write<M: MirrorStore>(
    mirror: Mirror<Accounts, M>,
    pool: PgPool,
    key: String,
    is_own: bool,
) -> Outcome {
    let mut pace = interval(Duration::from_millis(15));
    loop {
        pace.tick().await;
        let number: i64 = sqlx::query_scalar("select nextval('numbers')").fetch_one(&pool).await?;
        let row = (is_own || number % 5 != 0).then_some(number);
        // A failed write was not acknowledged, whatever its outcome.
        if put(&mirror, &key, row).await.is_err() || !is_own {
            continue;
        }
        sqlx::query(
            "insert into acknowledged values ($1, trim(trailing '0123456789' from $1), $2) \
             on conflict (key) do update set number = excluded.number",
        )
        .bind(&key)
        .bind(number)
        .execute(&pool)
        .await?;
        match balance(&mirror, &key).await {
            Ok(read) if read != Some(number) => {
                let what = format!("{key} was read as {read:?} after {number} was acknowledged");
                sqlx::query("insert into complaints values ($1)").bind(what).execute(&pool).await?;
            }
            _ => {}
        }
    }
}

struct Lives<'a> {
    folder: Folder,
    world: &'a World,
    /// The variable with the address of the other store, and its value.
    store: (&'a str, String),
    started: usize,
    running: Vec<Process>,
}

impl Lives<'_> {
    fn start(&mut self, index: usize) -> Outcome<Process> {
        self.started += 1;
        let name = format!("{}{}", NAMES[index], self.started);
        let mut command = Command::new(env::current_exe()?);
        command
            .args(["--exact", "mirror_killed::process", "--ignored", "--nocapture", "--test-threads=1"])
            .env("MIRROR_URL", &self.world.url)
            .env("MIRROR_NAME", &name)
            .env(self.store.0, &self.store.1);
        Ok(Process::spawn(&self.folder, &name, Signal::KILL, &command)?)
    }

    async fn kill(&mut self, index: usize) -> Outcome {
        if let Some(status) = self.running[index].exited() {
            return Err(format!("it ended by itself, {status}: {}", self.running[index].log_tail()).into());
        }
        self.running[index].kill().await?;
        self.running[index] = self.start(index)?;
        Ok(())
    }

    /// Waits until both processes have had further writes acknowledged.
    async fn get_on(&self) -> Outcome {
        let now: i64 = sqlx::query_scalar("select nextval('numbers')").fetch_one(&self.world.pool).await?;
        let query = "select count(distinct writer) = 2 from acknowledged where number > $1 + 100";
        let ask =
            async || sqlx::query_scalar(query).bind(now).fetch_one(&self.world.pool).await.unwrap_or(false);
        Ok(self.world.until("writes of both processes", ask).await?)
    }
}

/// Acknowledged writes are on both sides at the end.
async fn killed_all_the_way<M: MirrorStore + Clone>(
    world: &World,
    store: M,
    variable: &str,
    address: String,
) -> Outcome {
    world.pool.execute(BOOK).await?;
    let folder = Folder::new("mirror")?;
    let mut lives = Lives { folder, world, store: (variable, address), started: 0, running: Vec::new() };
    for index in 0..NAMES.len() {
        let life = lives.start(index)?;
        lives.running.push(life);
    }
    lives.get_on().await?;
    for (turn, phase) in WALK.iter().enumerate() {
        world.ask(phase).await?;
        // At some point in the move, or right after it.
        sleep(Duration::from_millis(fastrand::u64(0..600))).await;
        lives.kill(turn % 2).await?;
        world.go(phase).await?;
        lives.get_on().await?;
    }
    for life in &lives.running {
        life.kill().await?;
    }

    let plan: Plan<M> = MirrorMigration::new(world.pool.clone(), Accounts, store.clone());
    let (_c, mirror) = member(world, "c", &plan).await?;
    let settled = async || mirror.deliver().await.is_ok() && notes(world).await == 0;
    world.until("nothing on its way", settled).await?;
    let complaints: Vec<String> =
        sqlx::query_scalar("select what from complaints").fetch_all(&world.pool).await?;
    assert!(complaints.is_empty(), "{complaints:#?}");
    let acknowledged: Vec<(String, i64)> =
        sqlx::query_as("select key, number from acknowledged order by key").fetch_all(&world.pool).await?;
    assert_eq!(acknowledged.len(), 6);
    for (key, number) in &acknowledged {
        assert!(balance(&mirror, key).await? >= Some(*number), "{key}: {number} was acknowledged");
    }
    let shared = (0..3).map(|number| format!("shared{number}"));
    let mut connection = world.pool.acquire().await?;
    for key in acknowledged.into_iter().map(|(key, _)| key).chain(shared) {
        let old = Accounts.read(&mut connection, &key).await?.map(|row| row.balance);
        assert_eq!(old, kept(&store, &key).await?, "{key} on the two sides");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_processes_lose_nothing_between_two_postgres() -> Outcome {
    let address = Postgres::fresh_database().await?;
    let store = postgres_at(&address).await?;
    killed_all_the_way(&world(50).await?, store, "MIRROR_POSTGRES", address).await
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_processes_lose_nothing_to_redis() -> Outcome {
    let redis = Redis::start().await?;
    let store = redis_at(&redis.url())?;
    killed_all_the_way(&world(50).await?, store, "MIRROR_REDIS", redis.url()).await
}
