//! Shapes of change that are columns of one table, each under load by processes that are killed.

use cutover::migration::{
    ColumnMigration, ColumnMigrationBuilder, Error, Key, Migration, MigrationSpec, PhaseRange, PlanProblem,
    SideColumns,
};
use sqlx::{AssertSqlSafe, Executor, PgPool};

use crate::shapes_killed::{Shape, begin, killed_all_the_way};
use crate::world::{Outcome, World};

/// A table `items` and what becomes of its columns. A value of the test is a number.
#[derive(Clone, Copy)]
pub(crate) struct Columns {
    /// The table's other columns, and statements that come before it.
    columns: &'static str,
    before: &'static str,
    plan: fn(ColumnMigrationBuilder) -> ColumnMigrationBuilder,
    /// What an update assigns on the old and on the new side.
    set: [fn(u32) -> String; 2],
    /// The value on the old and on the new side, as the same text.
    get: [&'static str; 2],
}

impl Columns {
    fn update(&self, is_new: bool, value: u32) -> String {
        format!("update items set {} where id = $1", self.set[usize::from(is_new)](value))
    }

    async fn value(&self, pool: &PgPool, is_new: bool, key: u64) -> Result<String, sqlx::Error> {
        let select = format!("select {} from items where id = $1", self.get[usize::from(is_new)]);
        let value = sqlx::query_scalar(AssertSqlSafe(select)).bind(key.cast_signed());
        value.persistent(false).fetch_one(pool).await
    }
}

const SPLIT: Columns = Columns {
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

const MERGE: Columns = Columns {
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

const JSON_FIELD: Columns = Columns {
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

const TIME_ZONE: Columns = Columns {
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

const ENUM: Columns = Columns {
    before: "create type kind as enum ('k0', 'k1', 'k2', 'k3', 'k4', 'k5', 'k6', 'k7', 'k8', 'k9')",
    columns: "kind kind",
    plan: |plan| plan.column("kind", "kind_name", "text").forward("kind::text").backward("kind_name::kind"),
    set: [|value| format!("kind = 'k{}'", value % 10), |value| format!("kind_name = 'k{}'", value % 10)],
    get: ["kind::text", "kind_name"],
};

const LOOKUP: Columns = Columns {
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

pub(crate) const ALL: [Columns; 6] = [SPLIT, MERGE, JSON_FIELD, TIME_ZONE, ENUM, LOOKUP];

async fn fill(shape: &Columns, world: &World, rows: i64) -> Outcome {
    world.pool.execute(AssertSqlSafe(shape.before.to_owned())).await?;
    let create = format!("create table items (id bigint primary key, note text, {})", shape.columns);
    world.pool.execute(AssertSqlSafe(create)).await?;
    sqlx::query("insert into items select g from generate_series(1, $1) g")
        .bind(rows)
        .execute(&world.pool)
        .await?;
    let fill = format!("update items set {}", shape.set[0](0));
    world.pool.execute(AssertSqlSafe(fill)).await?;
    Ok(())
}

async fn world_of(shape: &Columns) -> Outcome<World> {
    let world = World::new(0).await?;
    fill(shape, &world, 200).await?;
    Ok(world)
}

fn plan_of(world: &World, shape: &Columns) -> Outcome<ColumnMigration> {
    Ok((shape.plan)(ColumnMigration::new(world.pool.clone(), "items")).mirror_writes().build()?)
}

impl Shape for Columns {
    fn name(&self) -> &'static str {
        self.columns
    }

    async fn create(&self, world: &World) -> Outcome {
        fill(self, world, 3000).await
    }

    fn spec(&self, world: &World) -> Outcome<MigrationSpec> {
        Ok(MigrationSpec::new("status", PhaseRange::FULL).plan(plan_of(world, self)?))
    }

    fn text(&self, value: u32) -> String {
        text_of(self, value)
    }

    fn canonical(&self) -> fn(&str) -> String {
        canonical
    }

    async fn get(&self, pool: &PgPool, migration: &Migration, key: u64) -> Result<String, Error> {
        migration
            .read(async |pin| {
                let side: SideColumns = migration.columns(pin)?.for_key(Key::of(&key));
                Ok(self.value(pool, side.is_new(), key).await?)
            })
            .await
    }

    async fn put(&self, pool: &PgPool, migration: &Migration, key: u64, value: u32) -> Result<bool, Error> {
        let Some(mut tx) = begin(migration, pool).await? else { return Ok(false) };
        let update = self.update(migration.columns(&tx)?.is_new(), value);
        sqlx::query(AssertSqlSafe(update))
            .persistent(false)
            .bind(key.cast_signed())
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(true)
    }

    async fn put_external(&self, pool: &PgPool, key: u64, value: u32) -> Result<bool, Error> {
        let update = self.update(false, value);
        sqlx::query(AssertSqlSafe(update)).persistent(false).bind(key.cast_signed()).execute(pool).await?;
        Ok(true)
    }

    async fn check(&self, world: &World, phase: &str, _: &[String]) -> Outcome<Vec<String>> {
        if phase.starts_with("ramp") {
            let [old, new] = self.get;
            let apart = format!("select count(*) from items where {old} is distinct from {new}");
            let apart: i64 = sqlx::query_scalar(AssertSqlSafe(apart)).fetch_one(&world.pool).await?;
            assert_eq!(apart, 0, "rows differ in {phase}");
        }
        Ok(Vec::new())
    }

    async fn last(&self, pool: &PgPool, key: u64) -> Outcome<String> {
        Ok(self.value(pool, true, key).await?)
    }
}

/// The text of a value, which both sides have.
fn text_of(shape: &Columns, value: u32) -> String {
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
    killed_all_the_way(&SPLIT).await
}

#[tokio::test]
async fn an_amount_and_its_currency_are_merged_under_load() -> Outcome {
    killed_all_the_way(&MERGE).await
}

#[tokio::test]
async fn a_json_field_becomes_a_column_under_load() -> Outcome {
    killed_all_the_way(&JSON_FIELD).await
}

#[tokio::test]
async fn a_timestamp_gets_a_time_zone_under_load() -> Outcome {
    killed_all_the_way(&TIME_ZONE).await
}

#[tokio::test]
async fn an_enum_becomes_text_under_load() -> Outcome {
    killed_all_the_way(&ENUM).await
}

#[tokio::test]
async fn a_text_becomes_the_id_of_a_lookup_row_under_load() -> Outcome {
    killed_all_the_way(&LOOKUP).await
}

/// What the plan says about the table before `expand`.
async fn problems(world: &World, shape: &Columns) -> Outcome<Vec<PlanProblem>> {
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
    let lossy = Columns {
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
