//! Shapes of change that make another table, each under load by processes that are killed.

use cutover::migration::{
    DualWrite, Error, Key, Migration, MigrationSpec, PhaseRange, PinnedTx, Rows, TableMigration,
    TableMigrationBuilder,
};
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, Executor, PgConnection, PgPool};

use crate::shapes_killed::{Shape, begin, killed_all_the_way};
use crate::world::{Outcome, World};

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
pub(crate) struct Tables {
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

const OWN_TABLE: Tables = Tables {
    create: "create table users (id bigint primary key, name text not null, bio text, avatar text); \
        insert into users select g, 'n' || g, case when g % 2 = 0 then 'b' || g end from generate_series(1, 3000) g; \
        update users set bio = 'start', avatar = 'a' where id <= 60",
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
            and (select count(*) from profiles where id > 60) = 1470 \
            and not exists (select from pg_attribute where attrelid = 'users'::regclass and attname in ('bio', 'avatar')) \
        from users",
};

const SOME_ROWS: Tables = Tables {
    create: "create table events (id bigint primary key, kind text not null, body text); \
        insert into events select g, case when g <= 60 or g % 3 = 0 then 'audit' else 'other' end, 'start' \
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
    end: "select count(*) = 1960 and count(*) filter (where kind = 'audit') = 0 \
            and (select count(*) from audit_events where id > 60) = 980 from events",
};

const PARTITIONED: Tables = Tables {
    create: "create table visits (id bigint primary key, day date not null default '2026-01-01', page text); \
        create unique index visits_key on visits (id, day); \
        insert into visits select g, date '2026-01-01' + (g % 60)::int, 'start' from generate_series(1, 3000) g; \
        update visits set day = '2026-01-01' where id <= 60",
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
    end: "select count(*) = 2940 and to_regclass('visits') is null from visits_2 where id > 60",
};

pub(crate) const ALL: [Tables; 3] = [OWN_TABLE, SOME_ROWS, PARTITIONED];

async fn value_of(side: &Side, pool: &PgPool, key: u64) -> Result<String, Error> {
    let found: Option<Option<String>> =
        sqlx::query_scalar(side.get).bind(key.cast_signed()).fetch_optional(pool).await?;
    Ok(found.flatten().unwrap_or_else(|| NOTHING.to_owned()))
}

/// `None`: the row is deleted.
fn value(number: u32) -> Option<String> {
    match number {
        0 => Some("start".to_owned()),
        _ => (!number.is_multiple_of(5)).then(|| format!("v{number}")),
    }
}

async fn put_to(side: &Side, connection: &mut PgConnection, key: u64, number: u32) -> Result<(), Error> {
    let query = match value(number) {
        Some(value) => sqlx::query(side.put).bind(key.cast_signed()).bind(value),
        None => sqlx::query(side.delete).bind(key.cast_signed()),
    };
    query.execute(connection).await?;
    Ok(())
}

/// The keys are deleted and inserted again.
async fn lock(connection: &mut PgConnection, key: u64) -> Result<(), Error> {
    let lock = "select pg_advisory_xact_lock(hashtextextended('key ' || $1, 0))";
    sqlx::query(lock).bind(key.to_string()).execute(connection).await?;
    Ok(())
}

/// With a second unique index on a table, two upserts of one key that run at the same time may fail on that index.
fn is_duplicate(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(sqlx::error::DatabaseError::is_unique_violation)
}

fn unless_duplicate(written: Result<(), Error>) -> Result<bool, Error> {
    match written {
        Err(Error::Database(error)) if is_duplicate(&error) => Ok(false),
        written => written.map(|()| true),
    }
}

impl Shape for Tables {
    fn name(&self) -> &'static str {
        self.tables[1]
    }

    async fn create(&self, world: &World) -> Outcome {
        world.pool.execute(self.create).await?;
        Ok(())
    }

    fn spec(&self, world: &World) -> Outcome<MigrationSpec> {
        let [old, new] = self.tables;
        let plan = (self.plan)(TableMigration::new(world.pool.clone(), old, new)).build()?;
        Ok(MigrationSpec::new("status", PhaseRange::FULL).plan(plan))
    }

    fn text(&self, number: u32) -> String {
        value(number).unwrap_or_else(|| NOTHING.to_owned())
    }

    async fn get(&self, pool: &PgPool, migration: &Migration, key: u64) -> Result<String, Error> {
        let dual = DualWrite::new(migration.clone(), self.old, self.new);
        let get = async |side: &&'static Side| value_of(side, pool, key).await;
        dual.read_with(Key::of(&key.cast_signed()), get, get).await
    }

    async fn put(&self, pool: &PgPool, migration: &Migration, key: u64, number: u32) -> Result<bool, Error> {
        let dual = DualWrite::new(migration.clone(), self.old, self.new);
        let Some(mut tx) = begin(migration, pool).await? else { return Ok(false) };
        lock(&mut tx, key).await?;
        let put = async |side: &&'static Side, tx: &mut PinnedTx| put_to(side, tx, key, number).await;
        let is_written =
            unless_duplicate(dual.write_with(&mut tx, Rows::one(&key.cast_signed()), put, put).await)?;
        if is_written {
            tx.commit().await?;
        }
        Ok(is_written)
    }

    async fn put_external(&self, pool: &PgPool, key: u64, number: u32) -> Result<bool, Error> {
        let mut tx = pool.begin().await?;
        lock(&mut tx, key).await?;
        let is_written = unless_duplicate(put_to(self.old, &mut tx, key, number).await)?;
        if is_written {
            tx.commit().await?;
        }
        Ok(is_written)
    }

    async fn write_elsewhere(&self, pool: &PgPool, key: u64) -> Result<(), Error> {
        if let Some(unconcerned) = self.unconcerned {
            sqlx::query(unconcerned).bind(key.cast_signed()).execute(pool).await?;
        }
        Ok(())
    }

    async fn check(&self, world: &World, phase: &str, _: &[String]) -> Outcome<Vec<String>> {
        if phase.starts_with("ramp") {
            // A row that an external write left behind is repaired soon.
            let agree = async || {
                let apart = sqlx::query_scalar::<_, i64>(self.apart).fetch_one(&world.pool).await;
                apart.is_ok_and(|apart| apart == 0)
            };
            world.until("no row that differs", agree).await?;
        }
        if phase == "contract" {
            let is_right: bool = sqlx::query_scalar(AssertSqlSafe(self.end)).fetch_one(&world.pool).await?;
            assert!(is_right, "{}", self.end);
        }
        Ok(Vec::new())
    }

    async fn last(&self, pool: &PgPool, key: u64) -> Outcome<String> {
        Ok(value_of(self.new, pool, key).await?)
    }
}

#[tokio::test]
async fn columns_move_to_a_table_of_their_own_under_load() -> Outcome {
    killed_all_the_way(&OWN_TABLE).await
}

#[tokio::test]
async fn some_rows_move_to_another_table_under_load() -> Outcome {
    killed_all_the_way(&SOME_ROWS).await
}

#[tokio::test]
async fn a_table_becomes_a_partitioned_one_under_load() -> Outcome {
    killed_all_the_way(&PARTITIONED).await
}

/// A sequence has the owner of the table that owns it.
#[tokio::test]
async fn the_sequence_of_a_table_with_another_owner_goes_to_the_new_table() -> Outcome {
    for kind in ["bigserial", "bigint generated by default as identity"] {
        let admin = World::new(0).await?;
        let database = admin.url.rsplit('/').next().unwrap_or_default();
        let (owner, role) = (format!("owner_{database}"), format!("member_{database}"));
        admin
            .external(&format!(
                "create role {owner}; create role {role} login in role {owner}; grant all on schema public to {owner}, {role}; \
                 grant create on database {database} to {role}; drop table orders; \
                 create table orders (id {kind} primary key, note text, old_status text); \
                 insert into orders (note) select 'n' from generate_series(1, 5); alter table orders owner to {owner}"
            ))
            .await?;
        let url = format!("{}?user={role}", admin.url);
        let pool = PgPoolOptions::new().max_connections(8).connect(&url).await?;
        let world = World { pool, url };
        let plan = world.to_orders_2()?;
        let lacks = async || -> Outcome<usize> {
            let found = world.problems(&plan).await?;
            Ok(found.iter().filter(|one| one.problem.contains("no right to create in schema")).count())
        };
        assert_eq!(lacks().await?, 0);
        let _a = world.instance_of("a", plan.clone()).await?;
        world.go("verify").await?;
        admin.external(&format!("revoke create on schema public from {owner}, {role}, public")).await?;
        assert_eq!(lacks().await?, 1);
        admin.external(&format!("grant create on schema public to {role}")).await?;
        assert_eq!(lacks().await?, 0);
        world.go("retire").await?;
        world.approve().await?;
        world.go("contract").await?;
        world.ended().await?;
        let next: i64 = sqlx::query_scalar("insert into orders_2 (note) values ('n') returning id")
            .fetch_one(&world.pool)
            .await?;
        assert_eq!(next, 6, "{kind}");
    }
    Ok(())
}
