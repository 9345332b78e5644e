//! Shapes of change that are columns of one table, each under load. An independent checker judges what clients wrote and
//! read.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cutover::migration::{
    ColumnMigration, ColumnMigrationBuilder, Error, Key, Migration, PlanProblem, SideColumns,
};
use cutover_checker::Recorder;
use sqlx::{AssertSqlSafe, Executor, PgPool};

use crate::world::{Outcome, World};

/// Rows of the table, and how many of them are read and written.
const ROWS: u64 = 200;
const HOT: u64 = 6;

/// A table `items` and what becomes of its columns. A value of the test is a number.
#[derive(Clone, Copy)]
struct Shape {
    /// The table's other columns, and statements that come before it.
    columns: &'static str,
    before: &'static str,
    plan: fn(ColumnMigrationBuilder) -> ColumnMigrationBuilder,
    /// What an update assigns on the old and on the new side.
    set: [fn(u32) -> String; 2],
    /// The value on the old and on the new side, as the same text.
    get: [&'static str; 2],
}

impl Shape {
    fn update(&self, is_new: bool, value: u32) -> String {
        format!("update items set {} where id = $1", self.set[usize::from(is_new)](value))
    }

    fn select(&self, is_new: bool) -> String {
        format!("select {} from items where id = $1", self.get[usize::from(is_new)])
    }
}

const SPLIT: Shape = Shape {
    before: "",
    columns: "full_name text",
    plan: |plan| {
        plan.new_column("first_name", "text", "split_part(full_name, ' ', 1)")
            .new_column("last_name", "text", "substr(full_name, length(split_part(full_name, ' ', 1)) + 2)")
            .old_column("full_name", "first_name || ' ' || last_name")
            .not_null()
    },
    set: [
        |value| format!("full_name = 'F{value} L{value}'"),
        |value| format!("first_name = 'F{value}', last_name = 'L{value}'"),
    ],
    get: ["full_name", "first_name || ' ' || last_name"],
};

const MERGE: Shape = Shape {
    before: "",
    columns: "amount numeric(12, 2), currency text",
    plan: |plan| {
        plan.old_column("amount", "split_part(price, ' ', 1)::numeric")
            .old_column("currency", "split_part(price, ' ', 2)")
            .new_column("price", "text", "amount::text || ' ' || currency")
    },
    set: [
        |value| format!("amount = {value}, currency = 'C{value}'"),
        |value| format!("price = '{value}.00 C{value}'"),
    ],
    get: ["amount::text || ' ' || currency", "price"],
};

const JSON_FIELD: Shape = Shape {
    before: "",
    columns: "data jsonb",
    plan: |plan| {
        plan.new_column("status", "text", "data ->> 'status'")
            .new_column("details", "jsonb", "data - 'status'")
            .old_column("data", "details || jsonb_build_object('status', status)")
    },
    set: [
        |value| format!("data = jsonb_build_object('status', 's{value}', 'note', {value})"),
        |value| format!("status = 's{value}', details = jsonb_build_object('note', {value})"),
    ],
    get: ["(data ->> 'status') || (data ->> 'note')", "status || (details ->> 'note')"],
};

const TIME_ZONE: Shape = Shape {
    before: "",
    columns: "starts timestamp",
    plan: |plan| {
        plan.column("starts", "starts_at", "timestamptz")
            .forward("starts at time zone 'Europe/Berlin'")
            .backward("starts_at at time zone 'Europe/Berlin'")
    },
    set: [
        |value| format!("starts = timestamp '2026-06-01' + {value} * interval '1 minute'"),
        |value| format!("starts_at = timestamptz '2026-05-31 22:00+00' + {value} * interval '1 minute'"),
    ],
    get: ["starts::text", "(starts_at at time zone 'Europe/Berlin')::text"],
};

const ENUM: Shape = Shape {
    before: "create type kind as enum ('k0', 'k1', 'k2', 'k3', 'k4', 'k5', 'k6', 'k7', 'k8', 'k9')",
    columns: "kind kind",
    plan: |plan| plan.column("kind", "kind_name", "text").forward("kind::text").backward("kind_name::kind"),
    set: [|value| format!("kind = 'k{}'", value % 10), |value| format!("kind_name = 'k{}'", value % 10)],
    get: ["kind::text", "kind_name"],
};

const LOOKUP: Shape = Shape {
    before: "",
    columns: "status text",
    plan: |plan| {
        plan.column("status", "status_id", "integer")
            .forward(
                "case status when 'open' then 1 when 'paid' then 2 when 'void' then 3 \
                 else ('no status ' || status)::integer end",
            )
            .backward("case status_id when 1 then 'open' when 2 then 'paid' when 3 then 'void' end")
            .expand_sql("create table statuses (id integer primary key, name text not null unique)")
            .expand_sql("insert into statuses values (1, 'open'), (2, 'paid'), (3, 'void')")
            .expand_sql(
                "alter table items add constraint items_status_id_fkey foreign key (status_id) references statuses not valid",
            )
            .allow("adding-foreign-key-constraint")
    },
    set: [
        |value| format!("status = '{}'", ["open", "paid", "void"][(value % 3) as usize]),
        |value| format!("status_id = {}", value % 3 + 1),
    ],
    get: ["status", "(select name from statuses where statuses.id = status_id)"],
};

async fn world_of(shape: &Shape) -> Outcome<World> {
    let world = World::new(0).await?;
    world.pool.execute(AssertSqlSafe(shape.before.to_owned())).await?;
    let create = format!("create table items (id bigint primary key, note text, {})", shape.columns);
    world.pool.execute(AssertSqlSafe(create)).await?;
    sqlx::query("insert into items select g from generate_series(1, $1) g")
        .bind(i64::try_from(ROWS)?)
        .execute(&world.pool)
        .await?;
    let fill = format!("update items set {}", shape.set[0](0));
    world.pool.execute(AssertSqlSafe(fill)).await?;
    Ok(world)
}

fn plan_of(world: &World, shape: &Shape) -> Outcome<ColumnMigration> {
    Ok((shape.plan)(ColumnMigration::new(world.pool.clone(), "items")).mirror_writes().build()?)
}

/// Clients of one instance, or an external writer that knows the old side only.
#[derive(Clone)]
struct Client {
    number: usize,
    shape: Shape,
    pool: PgPool,
    migration: Option<Migration>,
    recorder: Arc<Recorder>,
    stop: Arc<AtomicBool>,
}

impl Client {
    async fn run(self) -> Result<u32, Error> {
        let mut done = 0;
        while !self.stop.load(Ordering::Relaxed) {
            let key = fastrand::u64(1..=HOT);
            match &self.migration {
                Some(migration) if fastrand::bool() => self.read(migration, key).await?,
                Some(migration) => self.write(migration, key).await?,
                None => {
                    self.write_external(key).await?;
                    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                }
            }
            done += 1;
        }
        Ok(done)
    }

    fn value(&self) -> (u32, String) {
        let value = fastrand::u32(1..100_000);
        (value, text_of(&self.shape, value))
    }

    async fn read(&self, migration: &Migration, key: u64) -> Result<(), Error> {
        let start = self.recorder.now();
        let read = migration
            .read(async |pin| {
                let side: SideColumns = migration.columns(pin)?.for_key(Key::of(&key));
                let select = self.shape.select(side.is_new());
                let row = sqlx::query_scalar::<_, String>(AssertSqlSafe(select)).bind(key.cast_signed());
                Ok::<_, Error>(row.persistent(false).fetch_one(&self.pool).await?)
            })
            .await;
        match read {
            Ok(text) => self.recorder.read(self.number, key, &text, start, self.recorder.now()),
            Err(Error::NotInFleet) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn write(&self, migration: &Migration, key: u64) -> Result<(), Error> {
        let (value, text) = self.value();
        let start = self.recorder.now();
        let mut tx = match migration.begin(&self.pool).await {
            Ok(tx) => tx,
            Err(Error::NotInFleet | Error::EpochClosed) => return Ok(()),
            Err(error) => return Err(error),
        };
        let update = self.shape.update(migration.columns(&tx)?.is_new(), value);
        sqlx::query(AssertSqlSafe(update))
            .persistent(false)
            .bind(key.cast_signed())
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        self.recorder.write(self.number, key, &text, start, Some(self.recorder.now()));
        Ok(())
    }

    async fn write_external(&self, key: u64) -> Result<(), Error> {
        let (value, text) = self.value();
        let start = self.recorder.now();
        let update = self.shape.update(false, value);
        let query = sqlx::query(AssertSqlSafe(update)).persistent(false).bind(key.cast_signed());
        query.execute(&self.pool).await?;
        self.recorder.write(self.number, key, &text, start, Some(self.recorder.now()));
        Ok(())
    }
}

/// The text of a value, which both sides have.
fn text_of(shape: &Shape, value: u32) -> String {
    let (minutes, status) = (value % 60, ["open", "paid", "void"][(value % 3) as usize]);
    let (hours, days) = (value / 60 % 24, value / 60 / 24);
    match shape.columns.split(' ').next() {
        Some("full_name") => format!("F{value} L{value}"),
        Some("amount") => format!("{value}.00 C{value}"),
        Some("data") => format!("s{value}{value}"),
        Some("starts") => format!("day {days} {hours:02}:{minutes:02}"),
        Some("kind") => format!("k{}", value % 10),
        _ => status.to_owned(),
    }
}

/// Forward, half way back, and forward again to the end, while clients read and write.
async fn walks_under_load(shape: Shape) -> Outcome {
    let world = world_of(&shape).await?;
    let recorder = Arc::new(Recorder::new(5, |text: &str| canonical(text)));
    // The external writer ends before `retire`. From then on the old side is outdated, and a write of the value that it holds
    // is not seen as a change.
    let stop = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
    let (a, b) = (
        world.instance("a", Some(plan_of(&world, &shape)?)).await?,
        world.instance("b", Some(plan_of(&world, &shape)?)).await?,
    );
    let mut clients = tokio::task::JoinSet::new();
    let migrations = [Some(&a), Some(&b), Some(&a), None];
    for (number, fleet) in migrations.into_iter().enumerate() {
        let client = Client {
            number,
            shape,
            pool: world.pool.clone(),
            migration: fleet.map(|fleet| fleet.migration.clone()),
            recorder: recorder.clone(),
            stop: stop[usize::from(fleet.is_none())].clone(),
        };
        clients.spawn(client.run());
    }
    for phase in ["ramp:50", "switch", "retire", "ramp:50", "retire"] {
        if phase == "retire" {
            stop[1].store(true, Ordering::Relaxed);
        }
        world.go(phase).await?;
        if phase.starts_with("ramp") {
            let [old, new] = shape.get;
            let apart = format!("select count(*) from items where {old} is distinct from {new}");
            let apart: i64 = sqlx::query_scalar(AssertSqlSafe(apart)).fetch_one(&world.pool).await?;
            assert_eq!(apart, 0, "rows differ in {phase}");
        }
    }
    world.approve().await?;
    world.go("contract").await?;
    world.ended().await?;
    stop[0].store(true, Ordering::Relaxed);
    let mut done = 0;
    while let Some(ended) = clients.join_next().await {
        done += ended??;
    }
    assert!(done > 100, "{done} operations are not a load");
    let mut history = recorder.history();
    for key in 1..=HOT {
        let last: String = sqlx::query_scalar(AssertSqlSafe(shape.select(true)))
            .bind(key.cast_signed())
            .fetch_one(&world.pool)
            .await?;
        history.initial(key, &text_of(&shape, 0));
        history.last(key, &last);
    }
    let verdict = history.check();
    assert_eq!((verdict.stale_reads, verdict.lost_writes), (0, 0), "{verdict:?}");
    Ok(())
}

/// A time of June 2026 as its day and time of day, so that it compares with what was written.
fn canonical(text: &str) -> String {
    let Some(time) = text.strip_prefix("2026-") else { return text.to_owned() };
    let days_before = [("06-", 0), ("07-", 30), ("08-", 61)];
    let day = days_before.iter().find_map(|(month, days)| {
        let (day, time) = time.strip_prefix(month)?.split_once(' ')?;
        Some(format!("day {} {}", days + day.parse::<u32>().ok()? - 1, &time[..5]))
    });
    day.unwrap_or_else(|| text.to_owned())
}

#[tokio::test]
async fn a_name_is_split_under_load() -> Outcome {
    walks_under_load(SPLIT).await
}

#[tokio::test]
async fn an_amount_and_its_currency_are_merged_under_load() -> Outcome {
    walks_under_load(MERGE).await
}

#[tokio::test]
async fn a_json_field_becomes_a_column_under_load() -> Outcome {
    walks_under_load(JSON_FIELD).await
}

#[tokio::test]
async fn a_timestamp_gets_a_time_zone_under_load() -> Outcome {
    walks_under_load(TIME_ZONE).await
}

#[tokio::test]
async fn an_enum_becomes_text_under_load() -> Outcome {
    walks_under_load(ENUM).await
}

#[tokio::test]
async fn a_text_becomes_the_id_of_a_lookup_row_under_load() -> Outcome {
    walks_under_load(LOOKUP).await
}

/// What the plan says about the table before `expand`.
async fn problems(world: &World, shape: &Shape) -> Outcome<Vec<PlanProblem>> {
    use cutover::migration::Plan;
    let mut connection = world.pool.acquire().await?;
    Ok(plan_of(world, shape)?.problems(None, &mut connection).await?)
}

#[tokio::test]
async fn a_split_that_loses_something_is_found_before_expand() -> Outcome {
    let world = world_of(&SPLIT).await?;
    assert!(problems(&world, &SPLIT).await?.is_empty());
    world.pool.execute("update items set full_name = 'Plato' where id = 7").await?;
    // It comes back with a blank, but then it is split into the same parts. One with two blanks is not lost either.
    world.pool.execute("update items set full_name = ' Ann  Lee' where id = 8").await?;
    assert!(problems(&world, &SPLIT).await?.is_empty());
    let lossy = Shape {
        plan: |plan| {
            plan.new_column("first_name", "text", "split_part(full_name, ' ', 1)")
                .new_column("last_name", "text", "split_part(full_name, ' ', 2)")
                .old_column("full_name", "last_name || ', ' || first_name")
        },
        ..SPLIT
    };
    let found = problems(&world, &lossy).await?;
    let text: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert!(text.iter().any(|text| text.contains("gives another value")), "{text:?}");
    // A value that has no row in the lookup table.
    let world = world_of(&LOOKUP).await?;
    world.pool.execute("update items set status = 'lost' where id = 9").await?;
    let text: Vec<String> = problems(&world, &LOOKUP).await?.iter().map(ToString::to_string).collect();
    assert!(
        text.iter().any(|text| text.contains("fails for 1 of 200") && text.contains("id = 9")),
        "{text:?}"
    );
    Ok(())
}

#[tokio::test]
async fn columns_of_a_group_belong_to_one_migration() -> Outcome {
    let world = world_of(&MERGE).await?;
    world
        .pool
        .execute("create index by_amount on items (amount); create index by_both on items (amount, currency)")
        .await?;
    let _a = world.instance("a", Some(plan_of(&world, &MERGE)?)).await?;
    world.ask("ramp:50").await?;
    // The price replaces neither column alone, so no statement can be derived.
    world.waits_for("by_both").await?;
    let one = ColumnMigration::new(world.pool.clone(), "items")
        .column("currency", "currency_code", "text")
        .forward("currency")
        .backward("currency_code")
        .build()?;
    let mut connection = world.pool.acquire().await?;
    let found = cutover::migration::Plan::problems(&one, None, &mut connection).await?;
    let text: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert!(
        text.iter().any(|text| text.contains("items\".currency is the old side of migration")),
        "{text:?}"
    );
    Ok(())
}
