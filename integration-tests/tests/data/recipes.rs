//! The code of the pages in `docs/shapes`, which stands in `examples/recipes`, from `off` to the end of each migration.

use std::time::Duration;

use cutover::fleet::{Fleet, FleetOptions};
use cutover::health::Health;
use cutover::ledger::Ledger;
use cutover::migration::{Agent, DriverOptions, Migration, MigrationSpec, PhaseRange, Plan};
use cutover::release::Release;
use cutover_testkit::wait_until;
use sqlx::{AssertSqlSafe, PgPool};

use crate::world::{Outcome, World};

const LIMIT: Duration = Duration::from_secs(120);

fn named(plan: impl Plan + 'static) -> MigrationSpec {
    MigrationSpec::new("recipe", PhaseRange::FULL).plan(plan)
}

/// A table before its migration, and the migration of a page.
struct Recipe {
    create: &'static str,
    spec: fn(PgPool) -> Outcome<MigrationSpec>,
    /// Whether everything is as the page says when the migration has ended.
    end: &'static str,
}

async fn instance(world: &World, spec: MigrationSpec) -> Outcome<Agent> {
    let (health, ledger) = (Health::new(), Ledger::open(world.url.parse()?).await?);
    let release = Release::new("shop", "1")?.with_instance("a")?;
    let fleet = Fleet::join(ledger, &release, FleetOptions::default(), &health).await?;
    let specs = vec![spec.soak(Duration::ZERO)];
    Ok(Agent::start(fleet, specs, DriverOptions::default(), &health).await?)
}

async fn reach(pool: &PgPool, phase: &str) -> Outcome {
    sqlx::query("update cutover.migrations set desired = $1").bind(phase).execute(pool).await?;
    let ask = "select phase = split_part($1, ':', 1), phase || ' ' || coalesce(waits_for, '') from cutover.migrations";
    let look =
        async || match sqlx::query_as::<_, (Option<bool>, String)>(ask).bind(phase).fetch_one(pool).await {
            Ok((Some(true), _)) => Ok(true),
            other => Err(format!("{other:?}")),
        };
    Ok(wait_until(&format!("phase {phase}"), LIMIT, look).await?)
}

impl Recipe {
    /// `serve` uses the code of the page in each phase.
    async fn runs(self, serve: impl AsyncFn(&Migration, &PgPool) -> Outcome) -> Outcome {
        let world = World::new(0).await?;
        sqlx::raw_sql(AssertSqlSafe(self.create)).execute(&world.pool).await?;
        let agent = instance(&world, (self.spec)(world.pool.clone())?).await?;
        agent.admitted().await;
        let migration = agent.migrations().next().ok_or("declared")?.clone();
        for phase in ["expand", "backfill", "verify", "ramp:50", "switch", "retire"] {
            reach(&world.pool, phase).await?;
            serve(&migration, &world.pool).await?;
        }
        let approve = "insert into cutover.approvals (migration_id, phase, actor, reason) \
            select id, 'contract', 'test', 'test' from cutover.migrations";
        sqlx::query(approve).execute(&world.pool).await?;
        reach(&world.pool, "contract").await?;
        let ended = "select ended_as is not distinct from 'finished' from cutover.migrations";
        let ask = async || sqlx::query_scalar::<_, bool>(ended).fetch_one(&world.pool).await;
        wait_until("the end of the migration", LIMIT, ask).await?;
        serve(&migration, &world.pool).await?;
        let is_right: bool = sqlx::query_scalar(AssertSqlSafe(self.end)).fetch_one(&world.pool).await?;
        assert!(is_right, "{}", self.end);
        Ok(agent.leave().await?)
    }
}

async fn nothing(_: &Migration, _: &PgPool) -> Outcome {
    Ok(())
}

async fn phase(pool: &PgPool) -> Outcome<String> {
    Ok(sqlx::query_scalar("select phase from cutover.migrations").fetch_one(pool).await?)
}

/// The SQLSTATE with which the server refuses the statement of an external writer; `None` if it does not.
async fn refusal(pool: &PgPool, statement: &'static str) -> Option<String> {
    let error = sqlx::raw_sql(statement).execute(pool).await.err()?;
    error.as_database_error().and_then(|error| error.code()).map(Into::into)
}

mod several_columns {
    include!("../../../examples/recipes/several_columns.rs");

    use super::{Outcome, Recipe};

    #[tokio::test]
    async fn the_page_about_several_columns_runs() -> Outcome {
        let recipe = Recipe {
            create: "create table people (id bigint primary key, full_name text); \
                insert into people select g, 'Ann Lee' from generate_series(1, 500) g",
            spec: |pool| Ok(names(pool)?),
            end: "select count(*) = 500 and count(*) filter (where last_name = 'Curie') = 1 from people",
        };
        recipe.runs(async |migration, pool| Ok(rename(migration, pool, 7, "Marie", "Curie").await?)).await
    }
}

mod two_columns_to_one {
    include!("../../../examples/recipes/two_columns_to_one.rs");

    use super::{Outcome, Recipe, named, nothing};

    #[tokio::test]
    async fn the_page_about_two_columns_that_become_one_runs() -> Outcome {
        let recipe = Recipe {
            create: "create table items (id bigint primary key, amount numeric, currency text); \
                insert into items select g, g + 0.50, 'EUR' from generate_series(1, 500) g",
            spec: |pool| Ok(named(prices(pool)?)),
            end: "select count(*) = 500 and max(price) filter (where id = 7) = '7.50 EUR' from items",
        };
        recipe.runs(nothing).await
    }
}

mod json_field {
    include!("../../../examples/recipes/json_field.rs");

    use super::{Outcome, Recipe, named, nothing};

    #[tokio::test]
    async fn the_page_about_a_field_of_a_document_runs() -> Outcome {
        let recipe = Recipe {
            create: r#"create table items (id bigint primary key, data jsonb);
                insert into items select g, jsonb_build_object('status', 'open', 'n', g) from generate_series(1, 500) g;
                update items set data = '{"n": 3}' where id = 3; update items set data = null where id = 4"#,
            spec: |pool| Ok(named(status(pool)?)),
            end: "select count(*) = 500 and count(*) filter (where status = 'open') = 498 \
                and count(*) filter (where details -> 'n' = to_jsonb(id)) = 499 from items",
        };
        recipe.runs(nothing).await
    }
}

mod another_type {
    include!("../../../examples/recipes/another_type_write.rs");

    mod column {
        include!("../../../examples/recipes/another_type.rs");

        use crate::recipes::{Outcome, Recipe, named};

        #[tokio::test]
        async fn the_page_about_another_type_runs() -> Outcome {
            let recipe = Recipe {
                create: "create table meetings (id bigint primary key, starts timestamp); \
                    insert into meetings select g, '2026-06-01 12:00' from generate_series(1, 500) g",
                spec: |pool| Ok(named(starts(pool)?)),
                // The code of the page has moved one meeting by 90 minutes in each of seven phases.
                end: "select count(*) filter (where starts_at = '2026-06-01 10:00+00') = 499 \
                    and max(starts_at) = '2026-06-01 20:30+00' from meetings",
            };
            recipe.runs(async |migration, pool| Ok(super::later(migration, pool, 7, 90).await?)).await
        }
    }
}

mod enum_to_text {
    include!("../../../examples/recipes/enum_to_text.rs");

    use cutover::migration::Phase;

    use super::{Outcome, Recipe, named};

    /// In `switch`, the service writes a value that the enum lacks. From `retire` on, it succeeds.
    #[tokio::test]
    async fn the_page_about_an_enum_runs() -> Outcome {
        let recipe = Recipe {
            create: "create type kind as enum ('book', 'map'); create table items (id bigint primary key, kind kind); \
                insert into items select g, 'book' from generate_series(1, 500) g",
            spec: |pool| Ok(named(kind(pool)?)),
            end: "select count(*) = 500 and count(*) filter (where kind_name = 'globe') = 1 from items",
        };
        recipe
            .runs(async |migration, pool| {
                let mut tx = migration.begin(pool).await?;
                let (column, phase) = (migration.columns(&tx)?, tx.phase());
                let update = format!("update items set {column} = 'globe' where id = 7");
                let done = sqlx::raw_sql(sqlx::AssertSqlSafe(update)).execute(&mut *tx).await;
                assert_eq!(done.is_ok(), phase >= Phase::Retire, "{phase}: {done:?}");
                if done.is_ok() {
                    tx.commit().await?;
                }
                Ok(())
            })
            .await
    }
}

mod lookup_table {
    include!("../../../examples/recipes/lookup_table.rs");

    use super::{Outcome, Recipe, named, nothing};

    #[tokio::test]
    async fn the_page_about_a_lookup_table_runs() -> Outcome {
        let recipe = Recipe {
            create: "create table items (id bigint primary key, status text); \
                insert into items select g, (array['open', 'paid', 'void'])[1 + g % 3] from generate_series(1, 500) g",
            spec: |pool| Ok(named(status(pool)?)),
            end: "select count(*) = 500 from items join statuses on statuses.id = status_id",
        };
        recipe.runs(nothing).await
    }
}

mod no_data {
    include!("../../../examples/recipes/no_data.rs");

    use super::{LIMIT, Outcome, Recipe, nothing, phase, refusal, wait_until};

    /// A nightly job still writes the column in `switch`. Its write is then made 27 hours older.
    #[tokio::test]
    async fn the_page_about_a_drop_runs() -> Outcome {
        let recipe = Recipe {
            create: "alter table orders add legacy_code text; \
                insert into orders (legacy_code) select 'x' from generate_series(1, 500) g",
            spec: |pool| Ok(changes(pool)?.into_iter().nth(1).ok_or("a drop")?),
            end: "select count(*) = 500 and not exists (select from pg_attribute where attrelid = 'orders'::regclass \
                and attname = 'legacy_code') from orders",
        };
        recipe
            .runs(async |_, pool| {
                let write = "update orders set legacy_code = 'y' where id = 7";
                match &*phase(pool).await? {
                    "switch" => {
                        assert_eq!(refusal(pool, write).await, None);
                        sqlx::raw_sql("update cutover.migrations set desired = 'retire'").execute(pool).await?;
                        let ask = async || {
                            let waits = "select waits_for like '%refuses to stop for 26 h 0 min: %' from cutover.migrations";
                            let waits: Option<bool> = sqlx::query_scalar(waits).fetch_one(pool).await?;
                            Ok::<_, sqlx::Error>(waits == Some(true))
                        };
                        wait_until("the quiet period", LIMIT, ask).await?;
                        let later = "update cutover.external_writes set first_seen = first_seen - interval '27 h', \
                            last_seen = last_seen - interval '27 h', last_unmirrored = last_unmirrored - interval '27 h'; \
                            update cutover.external_write_events set at = at - interval '27 h'";
                        sqlx::raw_sql(later).execute(pool).await?;
                    }
                    "retire" => assert_eq!(refusal(pool, write).await.as_deref(), Some("ZC003")),
                    _ => {}
                }
                Ok(())
            })
            .await
    }

    #[tokio::test]
    async fn the_page_about_constraints_runs() -> Outcome {
        let recipe = Recipe {
            create: "drop table orders; create table customers (id bigint primary key); insert into customers values (1); \
                create table orders (id bigint primary key, status text, total int, number int, customer_id bigint, legacy_code text); \
                insert into orders select g, 'open', 1, g, 1 from generate_series(1, 500) g",
            spec: |pool| Ok(changes(pool)?.into_iter().next().ok_or("a change")?),
            end: "select count(*) = 4 from pg_constraint where conrelid = 'orders'::regclass and contype in ('c', 'f', 'u', 'p') \
                and convalidated",
        };
        recipe.runs(nothing).await
    }
}

mod own_table {
    include!("../../../examples/recipes/own_table.rs");

    use super::{Outcome, Recipe};

    #[tokio::test]
    async fn the_page_about_a_table_of_its_own_runs() -> Outcome {
        let recipe = Recipe {
            create: "create table users (id bigint primary key, bio text, avatar text); \
                insert into users select g, 'b', 'a' from generate_series(1, 500) g",
            spec: |pool| Ok(profiles(pool)?),
            end: "select count(*) = 500 and count(*) filter (where bio = 'new') = 1 from profiles",
        };
        recipe.runs(async |migration, pool| Ok(set_bio(migration, pool, 7, "new").await?)).await
    }
}

mod partitioned {
    include!("../../../examples/recipes/partitioned.rs");

    use super::{Outcome, Recipe, nothing};

    #[tokio::test]
    async fn the_page_about_a_partitioned_table_runs() -> Outcome {
        let recipe = Recipe {
            create: "create table visits (id bigint, day date, page text, primary key (id, day)); \
                insert into visits select g, date '2026-01-01' + g % 60, 'p' from generate_series(1, 500) g",
            spec: |pool| Ok(visits(pool)?),
            end: "select count(*) = 500 and to_regclass('visits') is null from visits_by_month",
        };
        recipe.runs(nothing).await
    }
}

mod some_rows {
    include!("../../../examples/recipes/some_rows.rs");

    use super::{Outcome, Recipe, nothing};

    #[tokio::test]
    async fn the_page_about_some_rows_runs() -> Outcome {
        let recipe = Recipe {
            create: "create table events (id bigint primary key, kind text not null, at timestamptz not null, body jsonb); \
                insert into events (id, at, kind) select g, now(), case when g % 3 = 0 then 'audit' else 'x' end from generate_series(1, 600) g",
            spec: |pool| Ok(audit(pool)?),
            end: "select count(*) = 200 and (select count(*) from events) = 400 from audit_events",
        };
        recipe.runs(nothing).await
    }
}

mod wider_key {
    include!("../../../examples/recipes/wider_key.rs");

    use super::{Outcome, Recipe};

    #[tokio::test]
    async fn the_page_about_a_wider_key_runs() -> Outcome {
        let recipe = Recipe {
            create: "drop table orders; create table orders (id serial primary key, note text); \
                insert into orders (note) select 'n' from generate_series(1, 500) g",
            spec: |pool| Ok(declare(pool)?),
            end: "select pg_typeof(id) = 'bigint'::regtype from orders where id = 7",
        };
        recipe
            .runs(async |_, pool| {
                assert_eq!(note(pool, 7).await?, (7, Some("n".to_owned())));
                Ok(())
            })
            .await
    }
}
