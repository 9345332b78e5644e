//! Random histories of writes, deletes, moves in both directions, external writes and crashes, checked against a register
//! per key.
//!
//! `TESTKIT_SEED=7` repeats the history of a seed. `TESTKIT_HISTORIES` sets the number of histories.
#![expect(clippy::print_stdout, reason = "the seed makes the history again")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use cutover::migration::{
    BatchOptions, ColumnMigration, DualWrite, Key, Rows, TableMigration, TableMigrationBuilder,
};
use cutover::migration::{Error, PinnedTx};
use fastrand::Rng;
use sqlx::Executor;
use tokio::time::sleep;

use crate::world::{Fleet, Outcome, World, interrupted};

/// A few keys are written often, so that writes conflict. Most keys stay as they are for long.
const KEYS: (i64, i64) = (10, 600);
const MOVES: u32 = 8;
/// How long to wait for a move before another phase is requested. After the death of an instance a move takes a lease.
const PATIENCE: Duration = Duration::from_secs(4);
const PHASES: [&str; 7] = ["off", "expand", "backfill", "verify", "ramp:50", "switch", "retire"];

/// The statements of a side; `$1` is the key and `$2` the value.
struct Side {
    put: &'static str,
    delete: &'static str,
    get: &'static str,
    /// How the side represents a value.
    spell: fn(u32) -> String,
}

#[derive(Clone, Copy)]
struct Sides {
    old: &'static Side,
    new: &'static Side,
    /// Half of the writes write one side only, and the guard trigger mirrors them.
    mirrors: bool,
    /// The description of tables; `None` for columns.
    tables: Option<fn(TableMigrationBuilder) -> TableMigrationBuilder>,
    /// Rows that only one of them has, in one snapshot.
    apart: &'static str,
}

const COLUMNS: Sides = Sides {
    old: &Side {
        put: "insert into orders (id, old_status) overriding system value values ($1, $2) \
            on conflict (id) do update set old_status = excluded.old_status",
        delete: "delete from orders where id = $1",
        get: "select lower(trim(old_status)) from orders where id = $1",
        spell: |value| format!(" PAID{value} "),
    },
    new: &Side {
        put: "insert into orders (id, new_status) overriding system value values ($1, $2) \
            on conflict (id) do update set new_status = excluded.new_status",
        delete: "delete from orders where id = $1",
        get: "select new_status from orders where id = $1",
        spell: |value| format!("paid{value}"),
    },
    mirrors: false,
    tables: None,
    apart: "select count(*) from orders where new_status is distinct from lower(trim(old_status))",
};

const MIRRORED: Sides = Sides { mirrors: true, ..COLUMNS };

const TABLES: Sides = Sides {
    old: COLUMNS.old,
    new: &Side {
        put: "insert into orders_2 (id, status) values ($1, $2) \
            on conflict (id) do update set status = excluded.status",
        delete: "delete from orders_2 where id = $1",
        get: "select status from orders_2 where id = $1",
        spell: |value| format!("paid{value}"),
    },
    mirrors: false,
    tables: Some(|plan| plan.create("create table orders_2 (id bigint primary key, status text)")),
    apart: "select count(*) from ((select id, lower(trim(old_status)) from orders except select id, status from orders_2) \
        union all (select id, status from orders_2 except select id, lower(trim(old_status)) from orders)) as apart",
};

const PARTITIONED: Sides = Sides {
    tables: Some(|plan| {
        plan.create("create table orders_2 (id bigint primary key, status text) partition by range (id)")
            .expand_sql("create table orders_low partition of orders_2 for values from (minvalue) to (7)")
            .expand_sql("create table orders_high partition of orders_2 default")
    }),
    ..TABLES
};

/// Some of the rows move. A row is deleted for the fleet when it leaves them.
const SOME_ROWS: Sides = Sides {
    old: &Side {
        delete: "update orders set old_status = 'GONE' where id = $1 and old_status like ' PAID%'",
        get: "select lower(trim(old_status)) from orders where id = $1 and old_status like ' PAID%'",
        ..*COLUMNS.old
    },
    tables: Some(|plan| {
        plan.create("create table orders_2 (id bigint primary key, status text)")
            .rows_where("old_status like ' PAID%'")
            .without("note")
    }),
    apart: "select count(*) from ((select id, lower(trim(old_status)) from orders where old_status like ' PAID%' \
            except select id, status from orders_2) \
        union all (select id, status from orders_2 \
            except select id, lower(trim(old_status)) from orders where old_status like ' PAID%')) as apart",
    ..TABLES
};

/// A column moves, and rows are there for those that hold something.
const OWN_TABLE: Sides = Sides {
    old: &Side {
        delete: "update orders set old_status = null where id = $1 and old_status is not null",
        ..*COLUMNS.old
    },
    tables: Some(|plan| {
        plan.create(
            "create table orders_2 (id bigint primary key references orders on delete cascade, status text)",
        )
        .only_columns()
    }),
    apart: "select count(*) from orders as o full join orders_2 as n using (id) \
        where n.status is distinct from lower(trim(o.old_status))",
    ..TABLES
};

impl Side {
    async fn write(&self, tx: &mut PinnedTx, key: i64, value: Option<u32>) -> Result<(), Error> {
        match value {
            Some(value) => {
                sqlx::query(self.put).bind(key).bind((self.spell)(value)).execute(&mut **tx).await?
            }
            None => sqlx::query(self.delete).bind(key).execute(&mut **tx).await?,
        };
        Ok(())
    }
}

/// The values that a key may hold: several after a commit whose outcome is unknown.
type Register = BTreeMap<i64, BTreeSet<Option<u32>>>;

struct History {
    world: World,
    sides: Sides,
    register: Register,
    fleet: Vec<Fleet>,
    born: u32,
    values: u32,
    rng: Rng,
}

impl History {
    async fn begin(sides: Sides, seed: u64) -> Outcome<Self> {
        let world = World::new(KEYS.1).await?;
        let register = (1..=KEYS.1).map(|key| (key, BTreeSet::from([Some(0)]))).collect();
        world.pool.execute("update orders set old_status = ' PAID0 '").await?;
        let rng = Rng::with_seed(seed);
        let mut history = Self { world, sides, register, fleet: Vec::new(), born: 0, values: 0, rng };
        history.join().await?;
        history.join().await?;
        Ok(history)
    }

    async fn join(&mut self) -> Outcome {
        self.born += 1;
        let (name, pool) = (format!("i{}", self.born), self.world.pool.clone());
        let batches = BatchOptions { min_rows: 20, max_rows: 50, ..BatchOptions::default() };
        let instance = if let Some(describe) = self.sides.tables {
            let plan = TableMigration::new(pool, "orders", "orders_2")
                .without("orders_id_seq")
                .column("status", "lower(trim(old_status))")
                .column_back("old_status", "' ' || upper(status) || ' '")
                .batches(batches);
            self.world.short_lived(&name, describe(plan).build()?).await?
        } else {
            let plan = ColumnMigration::new(pool, "orders")
                .column("old_status", "new_status", "text")
                .forward("lower(trim(old_status))")
                .backward("' ' || upper(new_status) || ' '")
                .batches(batches);
            let plan = if self.sides.mirrors { plan.mirror_writes() } else { plan };
            self.world.short_lived(&name, plan.build()?).await?
        };
        self.fleet.push(instance);
        Ok(())
    }

    fn dual(&mut self) -> DualWrite<&'static Side, &'static Side> {
        let instance = &self.fleet[self.rng.usize(..self.fleet.len())];
        DualWrite::new(instance.migration.clone(), self.sides.old, self.sides.new)
    }

    fn key(&mut self) -> i64 {
        let last = if self.rng.bool() { KEYS.0 } else { KEYS.1 };
        self.rng.i64(1..=last)
    }

    fn value(&mut self) -> Option<u32> {
        self.values += 1;
        self.rng.u8(..).gt(&40).then_some(self.values)
    }

    async fn step(&mut self) -> Outcome<String> {
        Ok(match self.rng.u16(..4_000) {
            0..=1_599 => self.write().await?,
            1_600..=2_999 => self.read().await?,
            3_000..=3_998 => self.write_externally().await?,
            _ => {
                // It leaves without notice and counts as alive until its lease ends.
                self.fleet.remove(0);
                self.join().await?;
                "one died, another came".into()
            }
        })
    }

    /// A transaction with a few writes that is committed, rolled back, or dropped at some point.
    async fn write(&mut self) -> Outcome<String> {
        let writes: BTreeMap<i64, Option<u32>> =
            (0..self.rng.u8(1..4)).map(|_| (self.key(), self.value())).collect();
        let (commits, polls) = (self.rng.u8(..) > 40, self.rng.usize(..40));
        let dual = self.dual();
        let pool = self.world.pool.clone();
        let mirrors = self.sides.mirrors && self.rng.bool();
        let transaction = async {
            let mut tx = dual.migration().begin(&pool).await?;
            for (key, value) in &writes {
                if mirrors {
                    let is_new = dual.migration().columns(&tx)?.is_new();
                    let side = if is_new { self.sides.new } else { self.sides.old };
                    side.write(&mut tx, *key, *value).await?;
                    continue;
                }
                dual.write_with(
                    &mut tx,
                    Rows::one(key),
                    async |side, tx| side.write(tx, *key, *value).await,
                    async |side, tx| side.write(tx, *key, *value).await,
                )
                .await?;
            }
            if commits { tx.commit().await } else { tx.rollback().await }
        };
        let ended = if polls < 10 { interrupted(polls, transaction).await } else { Some(transaction.await) };
        let known = match &ended {
            Some(Ok(())) => Some(commits),
            // Refused before or inside the transaction. A failed commit may have taken place.
            Some(Err(Error::NotInFleet | Error::EpochClosed | Error::EpochUnknown)) => Some(false),
            Some(Err(_)) | None if !commits => Some(false),
            Some(Err(_)) | None => None,
        };
        for (key, value) in &writes {
            let register = self.register.entry(*key).or_default();
            match known {
                Some(true) => *register = BTreeSet::from([*value]),
                Some(false) => {}
                None => {
                    register.insert(*value);
                }
            }
        }
        Ok(format!("{writes:?} commits {commits} ended {ended:?}"))
    }

    async fn read(&mut self) -> Outcome<String> {
        let key = self.key();
        let (dual, pool) = (self.dual(), self.world.pool.clone());
        let get = async |side: &&'static Side| {
            let value: Option<Option<String>> =
                sqlx::query_scalar(side.get).bind(key).fetch_optional(&pool).await?;
            Ok::<_, Error>(value.flatten())
        };
        let read = match dual.read_with(Key::of(&key), get, get).await {
            Ok(read) => read,
            Err(Error::NotInFleet) => return Ok("not in the fleet".into()),
            Err(error) => return Err(error.into()),
        };
        let value: Option<u32> = read.map(|text| text.trim_start_matches("paid").parse()).transpose()?;
        let register = &self.register[&key];
        if !register.contains(&value) {
            return Err(format!("key {key} was read as {value:?}, written was {register:?}").into());
        }
        Ok(format!("{key} read {value:?}"))
    }

    /// An external writer that knows the old side only.
    async fn write_externally(&mut self) -> Outcome<String> {
        let (key, value) = (self.key(), self.value());
        let done = match value {
            Some(value) => {
                let put = sqlx::query(self.sides.old.put).bind(key).bind((self.sides.old.spell)(value));
                put.execute(&self.world.pool).await
            }
            None => sqlx::query(self.sides.old.delete).bind(key).execute(&self.world.pool).await,
        };
        match done {
            // In `switch`, before the reverse backfill, the old side may lack the row, so nothing was deleted.
            Ok(done) if done.rows_affected() == 0 => Ok(format!("an external writer did not find {key}")),
            Ok(_) => {
                self.register.insert(key, BTreeSet::from([value]));
                Ok(format!("an external writer wrote {key} {value:?}"))
            }
            Err(error)
                if error.as_database_error().and_then(|error| error.code()).as_deref() == Some("ZC003") =>
            {
                Ok("an external writer was refused".into())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Compares both sides if they have to be complete, and checks every key.
    async fn end(&mut self, phase: &str) -> Outcome {
        self.world.go(phase).await?;
        let apart: i64 = sqlx::query_scalar(self.sides.apart).fetch_one(&self.world.pool).await?;
        if apart != 0 {
            return Err(format!("{apart} rows are apart in {phase}").into());
        }
        for (key, register) in &self.register {
            for side in [self.sides.old, self.sides.new] {
                let value: Option<Option<String>> =
                    sqlx::query_scalar(side.get).bind(key).fetch_optional(&self.world.pool).await?;
                let value: Option<u32> =
                    value.flatten().map(|text| text.trim_start_matches("paid").parse()).transpose()?;
                if !register.contains(&value) {
                    return Err(format!("key {key} holds {value:?}, written was {register:?}").into());
                }
            }
        }
        Ok(())
    }

    async fn run(&mut self) -> Outcome {
        let mut past = Vec::new();
        for _ in 0..MOVES {
            let wish = PHASES[self.rng.usize(..PHASES.len())];
            self.world.ask(wish).await?;
            past.push(format!("asked for {wish}"));
            let asked = Instant::now();
            let mut stay = self.rng.u8(..80);
            while asked.elapsed() < PATIENCE && stay > 0 {
                if self.world.is_at(wish).await? {
                    stay -= 1;
                }
                let step = self.step().await;
                past.push(step.as_ref().map_or_else(|error| format!("ERROR {error}"), Clone::clone));
                step.map_err(|error| format!("{error}\n{}", past.join("\n")))?;
                // Leaves a part of the processor to the move, and to the tests beside this one.
                sleep(Duration::from_millis(2)).await;
            }
        }
        let (epochs, external): (i32, Option<i64>) = sqlx::query_as(
            "select epoch, (select sum(transactions)::bigint from cutover.external_writes) from cutover.migrations \
             where name = 'status'",
        )
        .fetch_one(&self.world.pool)
        .await?;
        println!("{epochs} epochs, {} external transactions", external.unwrap_or(0));
        for phase in ["verify", "switch"] {
            self.end(phase).await.map_err(|error| format!("{error}\n{}", past.join("\n")))?;
        }
        Ok(())
    }
}

async fn histories(sides: Sides) -> Outcome {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("TESTKIT_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("TESTKIT_HISTORIES").unwrap_or(1)).map(|_| fastrand::u64(..)).collect(),
    };
    for seed in seeds {
        println!("TESTKIT_SEED={seed}");
        let mut history = History::begin(sides, seed).await?;
        history.run().await.map_err(|error| format!("TESTKIT_SEED={seed}: {error}"))?;
    }
    Ok(())
}

#[tokio::test]
async fn every_read_of_two_columns_returns_the_last_write() -> Outcome {
    histories(COLUMNS).await
}

#[tokio::test]
async fn every_read_of_mirrored_columns_returns_the_last_write() -> Outcome {
    histories(MIRRORED).await
}

#[tokio::test]
async fn every_read_of_two_tables_returns_the_last_write() -> Outcome {
    histories(TABLES).await
}

#[tokio::test]
async fn every_read_of_a_partitioned_table_returns_the_last_write() -> Outcome {
    histories(PARTITIONED).await
}

#[tokio::test]
async fn every_read_of_some_rows_returns_the_last_write() -> Outcome {
    histories(SOME_ROWS).await
}

#[tokio::test]
async fn every_read_of_a_table_of_its_own_returns_the_last_write() -> Outcome {
    histories(OWN_TABLE).await
}
