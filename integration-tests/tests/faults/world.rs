//! A database, its instances behind proxies, and the output of the instances.

use std::collections::HashMap;
use std::process::Command;
use std::time::Duration;

use cutover_checker::{History, Recorder, Verdict};
use cutover_testkit::{Folder, Postgres, Process, Proxy, Signal, wait_until};
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, Executor, PgPool};

use super::Outcome;
use super::instance::KEYS;

/// A case that takes longer has failed to recover.
pub(crate) const BOUND: Duration = Duration::from_secs(80);

pub(crate) struct World {
    pub(crate) pool: PgPool,
    pub(crate) folder: Folder,
    pub(crate) database: String,
    pub(crate) instances: Vec<Instance>,
}

pub(crate) struct Instance {
    pub(crate) name: String,
    pub(crate) process: Process,
    pub(crate) gate: Proxy,
}

impl World {
    /// A table with a few keys.
    pub(crate) async fn new(postgres: &Postgres, database: &str) -> Outcome<Self> {
        let url = postgres.create_database(database).await?;
        let pool = connect(&url).await?;
        pool.execute("create table orders (id bigint primary key, old_status text)").await?;
        pool.execute(AssertSqlSafe(format!(
            "insert into orders select i, 'initial' from generate_series(1, {KEYS}) i"
        )))
        .await?;
        let folder = Folder::new("faults")?;
        Ok(Self { pool, folder, database: database.to_owned(), instances: Vec::new() })
    }

    pub(crate) async fn start(&mut self, postgres: &Postgres, name: &str) -> Outcome {
        let gate = Proxy::start(postgres.port())?;
        let url = format!("postgres://postgres@127.0.0.1:{}/{}", gate.port(), self.database);
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["--exact", "instance::process", "--ignored", "--nocapture", "--test-threads=1"])
            .env("FAULTS_URL", url)
            .env("FAULTS_NAME", name)
            .env("FAULTS_FOLDER", self.folder.path());
        let process = Process::spawn(&self.folder, name, Signal::KILL, &command)?;
        self.instances.push(Instance { name: name.to_owned(), process, gate });
        Ok(())
    }

    pub(crate) async fn is(&self, query: &str) -> Result<bool, sqlx::Error> {
        sqlx::query_scalar(AssertSqlSafe(query)).fetch_one(&self.pool).await
    }

    /// Waits until a query returns true.
    pub(crate) async fn until(&self, query: &str) -> Outcome {
        wait_until(query, BOUND, async || match self.is(query).await {
            Ok(false) => Err(self.standing().await),
            Ok(true) => Ok(true),
            Err(error) => Err(error.to_string()),
        })
        .await?;
        Ok(())
    }

    async fn standing(&self) -> String {
        sqlx::query_scalar(
            "select format('%s %s, waits for %s; in transactions: %s', epoch, phase, waits_for, \
                 (select string_agg(format('%s, %s since %s: %s', application_name, state, xact_start, query), '; ') \
                  from pg_stat_activity where datname = current_database() and xact_start is not null \
                      and pid <> pg_backend_pid() and backend_type = 'client backend')) from cutover.migrations",
        )
        .fetch_one(&self.pool)
        .await
        .unwrap_or_else(|error| error.to_string())
    }

    pub(crate) async fn want(&self, phase: &str) -> Outcome {
        sqlx::query("update cutover.migrations set desired = $1").bind(phase).execute(&self.pool).await?;
        Ok(())
    }

    pub(crate) async fn settled(&self, phase: &str) -> Outcome {
        self.until(&format!(
            "select m.phase = '{phase}' and not exists (select from cutover.epochs e where e.epoch < m.epoch \
             and e.drained_at is null) from cutover.migrations m"
        ))
        .await
    }

    pub(crate) async fn go(&self, target: &str) -> Outcome {
        self.want(target).await?;
        self.settled(target.split(':').next().unwrap_or(target)).await
    }

    /// Waits until this many instances serve.
    pub(crate) async fn serving(&self, count: usize) -> Outcome {
        self.until(&format!(
            "select count(*) = {count} from cutover.instances where admitted and lease_until > clock_timestamp()"
        ))
        .await
    }

    pub(crate) async fn epoch(&self) -> Outcome<i32> {
        Ok(sqlx::query_scalar("select epoch from cutover.migrations").fetch_one(&self.pool).await?)
    }

    /// The index of the driver, or of an instance that is not the driver.
    pub(crate) async fn victim(&self, is_driver: bool) -> Outcome<usize> {
        let driver =
            "select exists (select from cutover.migrations m join cutover.instances i on i.id = m.driver)";
        self.until(driver).await?;
        let query = "select i.name from cutover.migrations m join cutover.instances i on i.id = m.driver";
        let driver: String = sqlx::query_scalar(query).fetch_one(&self.pool).await?;
        let place = self.instances.iter().position(|one| (one.name == driver) == is_driver);
        place.ok_or_else(|| "no such instance".into())
    }

    /// Waits until the instance writes and reads.
    pub(crate) async fn busy(&self, instance: usize) -> Outcome {
        let instance = &self.instances[instance];
        let count = || {
            let log = instance.log();
            (log.matches("\ndone ").count(), log.matches("\nread ").count())
        };
        let before = count();
        let what = format!("{} at work", instance.name);
        wait_until(&what, BOUND, async || {
            let now = count();
            if now.0 > before.0 + 5 && now.1 > before.1 + 5 {
                Ok(true)
            } else {
                Err(instance.process.log_tail())
            }
        })
        .await?;
        Ok(())
    }

    /// Ends all instances and judges what they did between two moments, from `initial` to what is there now.
    pub(crate) async fn judge(&mut self) -> Outcome<Verdict> {
        for instance in &self.instances {
            instance.process.kill().await?;
        }
        // Sessions of killed processes may still be about to commit.
        self.until(
            "select not exists (select from pg_stat_activity where datname = current_database() and xact_start is not null \
             and pid <> pg_backend_pid() and backend_type = 'client backend')",
        )
        .await?;
        let mut history = self.history(0, u64::MAX, u64::MAX);
        for key in 1..=KEYS {
            history.initial(key.unsigned_abs(), "initial");
        }
        for (key, value) in self.values().await? {
            history.last(key.unsigned_abs(), &value);
        }
        Ok(history.check())
    }

    /// What is there, on the side that is read now.
    pub(crate) async fn values(&self) -> Outcome<Vec<(i64, String)>> {
        let query = "select o.id, coalesce(case when m.phase in ('switch', 'retire') then to_jsonb(o) ->> 'new_status' \
                     else old_status end, 'none') from orders o, cutover.migrations m";
        Ok(sqlx::query_as(query).fetch_all(&self.pool).await?)
    }

    /// The operations that began after `from` and ended before `to`, and the writes of unknown outcome: those that
    /// began before `last` and did not end before `to`.
    pub(crate) fn history(&self, from: u64, to: u64, last: u64) -> History {
        let recorder = Recorder::new(1, str::to_owned);
        for instance in &self.instances {
            let log = instance.log();
            let mut writes: HashMap<&str, (u64, &str, u64, Option<u64>)> = HashMap::new();
            for line in log.lines() {
                match line.split(' ').collect::<Vec<_>>()[..] {
                    ["begin", id, key, value, start] => {
                        writes.insert(id, (number(key), value, number(start), None));
                    }
                    ["done", id, end] => {
                        if let Some(write) = writes.get_mut(id) {
                            write.3 = Some(number(end)).filter(|end| *end < to);
                        }
                    }
                    ["none", id] => drop(writes.remove(id)),
                    ["read", key, value, start, end] if number(start) >= from && number(end) < to => {
                        recorder.read(0, number(key), value, number(start), number(end));
                    }
                    _ => {}
                }
            }
            for (key, value, start, end) in writes.into_values() {
                if start < last && end.is_none_or(|end| end >= from) {
                    // One that began before may have been done by the server of before.
                    recorder.write(0, key, value, start, end.filter(|_| start >= from));
                }
            }
        }
        recorder.history()
    }
}

impl Instance {
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.process.log_path()).unwrap_or_default()
    }
}

pub(crate) async fn connect(url: &str) -> Outcome<PgPool> {
    Ok(PgPoolOptions::new().max_connections(3).connect(url).await?)
}

fn number(text: &str) -> u64 {
    text.parse().unwrap_or_default()
}
