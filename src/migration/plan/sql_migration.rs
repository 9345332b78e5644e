use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::PgConnection;
use tokio::time::timeout;

use super::attached::{before_step, carry_over};
use super::attached_trial::RecentTrial;
use super::before_move::before_move;
use super::before_work::{Found, before_work};
use super::contract::contract;
use super::description::Description;
use super::expand::{expand, find_guard, rearm};
use super::inspection::{new_shape_doubt, problems, triggers_now};
use super::recent_look::RecentLook;
use super::refusal::refuse;
use super::unguarded::unguarded;
use crate::ledger::{begin_work, sides, unprepared};
use crate::migration::batch::{PassKind, explain_table_lock, keyset, pass, repair};
use crate::migration::catalog::{OldSide, PlanProblem};
use crate::migration::coordinator::{Plan, PlanError, SidesPresent};
use crate::migration::phase::{Phase, SchemaState, Task};
use crate::migration::runtime::{Migration, MirroredColumns};
use crate::migration::schema::ensure_indexes;

/// How long the look at the key of a table may delay a start.
const LOOK_AT_KEY: Duration = Duration::from_secs(2);

/// A migration within one Postgres database, ready to run. `S` says which of the two kinds:
/// [`ColumnMigration`](super::ColumnMigration) or [`TableMigration`](super::TableMigration).
#[derive(Debug, Clone)]
pub struct SqlMigration<S> {
    description: Arc<Description>,
    recent_look: Arc<RecentLook>,
    recent_rights: Arc<RecentLook>,
    recent_trial: Arc<RecentLook>,
    recent_attached: Arc<RecentTrial>,
    sides: PhantomData<fn() -> S>,
}

impl<S> SqlMigration<S> {
    pub(super) fn of(description: Description) -> Self {
        Self {
            description: Arc::new(description),
            recent_look: Arc::default(),
            recent_rights: Arc::default(),
            recent_trial: Arc::default(),
            recent_attached: Arc::default(),
            sides: PhantomData,
        }
    }

    /// The statements of each task, for people to read. `$1`, `$2`, … are the last key of a batch and, from the second
    /// batch on, the last key of the batch before. `:migration` is the migration's id.
    pub fn sql(&self) -> Vec<(Task, String)> {
        self.description.sql()
    }

    /// The key that the table has, or as much as the description says: nothing depends on what people read.
    async fn key_now(&self) -> Vec<String> {
        let outline = &self.description.outline;
        let found = async {
            let mut tx = begin_work(&outline.pool).await?;
            keyset::find(&mut tx, self.description.old_table(), &outline.key).await
        };
        match timeout(LOOK_AT_KEY, found).await {
            Ok(Ok(Ok(key))) => key.plain_names(),
            _ => outline.key.clone(),
        }
    }

    async fn pass(&self, kind: PassKind, migration: &Migration) -> Result<(), PlanError> {
        let Found { key, old_types, new_types } = before_work(&self.description, migration).await?;
        let scope = self.description.scope(key, old_types, new_types);
        pass::run(&self.description.outline, scope, kind, migration).await
    }

    async fn repair(&self, migration: &Migration) -> Result<(), PlanError> {
        let Found { key, old_types, new_types } = before_work(&self.description, migration).await?;
        let scope = self.description.scope(key, old_types, new_types);
        repair::run(&self.description.outline, &scope, migration).await
    }
}

#[async_trait]
impl<S: std::fmt::Debug + 'static> Plan for SqlMigration<S> {
    fn sql(&self) -> Vec<(Task, String)> {
        self.description.sql()
    }

    async fn sql_of_database(&self) -> Vec<(Task, String)> {
        self.description.sql_with(&self.key_now().await)
    }

    fn files(&self) -> Vec<(Task, String)> {
        self.description.files()
    }

    fn old_side(&self) -> Option<OldSide> {
        // Where some rows move, nothing is dropped.
        (!self.description.moves_some_rows()).then(|| self.description.old_side())
    }

    fn mirrored_columns(&self) -> Option<MirroredColumns> {
        let sides = &self.description.outline.sides;
        let columns = || MirroredColumns::new(sides.backward.columns.clone(), sides.forward.columns.clone());
        self.description.mirrors.then(columns)
    }

    async fn problems(
        &self,
        migration: Option<i32>,
        ledger: &mut PgConnection,
    ) -> Result<Vec<PlanProblem>, sqlx::Error> {
        let plan = &*self.description;
        let mut connection = begin_work(&plan.outline.pool).await?;
        let mut found = problems(plan, migration, &mut connection).await?;
        // The ledger is in the same database, but a session of the pool may have another search_path.
        for table in [plan.old_table(), plan.new_table()] {
            let here = resolved(&mut connection, table).await?;
            let there = resolved(ledger, table).await?;
            if let (Some(here), Some(there)) = (here, there)
                && here.0 != there.0
                && !found.iter().any(|problem| problem.problem.contains(&here.1))
            {
                found.push(PlanProblem::warning(
                    format!(
                        "table {table} is {} for the pool and {} for the ledger's connections",
                        here.1, there.1
                    ),
                    format!("name it with its schema: {:?}", here.1),
                ));
            }
        }
        Ok(found)
    }

    async fn before_step(
        &self,
        phase: Phase,
        migration: i32,
        is_move: bool,
        connection: &mut PgConnection,
    ) -> Result<Vec<PlanProblem>, sqlx::Error> {
        if let Some(found) = self.recent_look.found(migration, phase, is_move) {
            return Ok(found);
        }
        let recent = &self.recent_attached;
        let found = before_step(&self.description, phase, migration, recent, connection).await?;
        self.recent_look.record(migration, phase, &found);
        Ok(found)
    }

    async fn before_move(
        &self,
        phase: Phase,
        migration: i32,
        is_move: bool,
    ) -> Result<Vec<PlanProblem>, sqlx::Error> {
        let recent = if is_move { &self.recent_trial } else { &self.recent_rights };
        if let Some(found) = recent.found(migration, phase, false) {
            return Ok(found);
        }
        let found = before_move(&self.description, phase, migration, is_move).await;
        recent.record(migration, phase, &found);
        Ok(found)
    }

    async fn unguarded(
        &self,
        phase: Phase,
        migration: i32,
        connection: &mut PgConnection,
    ) -> Result<Vec<PlanProblem>, sqlx::Error> {
        unguarded(&self.description, phase, migration, connection).await
    }

    async fn schema_state(
        &self,
        migration: Option<i32>,
        connection: &mut PgConnection,
    ) -> Result<SchemaState, sqlx::Error> {
        let plan = &*self.description;
        let Some((sides, id)) = sides::find(connection, migration).await?.zip(migration) else {
            // Before `expand` only names are known.
            let (old, new) = by_name(plan, connection).await?;
            return Ok(SchemaState::new(false, new && !old));
        };
        let is_armed = match find_guard(plan, connection).await? {
            Some(guard) => guard.is_armed(connection, sides.old.relation, id).await?,
            None => !plan.has_guard,
        };
        Ok(SchemaState::new(sides.new.is_there && is_armed, !sides.old.is_there))
    }

    async fn sides_present(
        &self,
        migration: Option<i32>,
        connection: &mut PgConnection,
    ) -> Result<SidesPresent, sqlx::Error> {
        let plan = &*self.description;
        let (old, new) = by_name(plan, connection).await?;
        if let Some(recorded) = sides::find(connection, migration).await? {
            // After a dump and restore the oids are other ones.
            return Ok(SidesPresent { old: recorded.old.is_there || old, new: recorded.new.is_there || new });
        }
        if old || !new {
            return Ok(SidesPresent { old, new });
        }
        // The pool may have another search_path, or the old table may be in a schema that is on neither.
        let (old, new) = by_name(plan, &mut *begin_work(&plan.outline.pool).await?).await?;
        let hidden = !plan.moves_columns() && is_in_some_schema(plan.old_table(), connection).await?;
        Ok(SidesPresent { old: old || hidden, new })
    }

    async fn new_shape_doubt(&self) -> Result<Option<PlanProblem>, sqlx::Error> {
        new_shape_doubt(&self.description).await
    }

    async fn run(&self, task: Task, migration: &Migration) -> Result<(), PlanError> {
        let plan = &*self.description;
        match task {
            Task::Expand => {
                explain_table_lock(&plan.outline.pool, plan.old_table(), expand(plan, migration).await).await
            }
            Task::Backfill => {
                refuse(&triggers_now(plan).await?)?;
                rearm(plan, migration).await?;
                self.pass(PassKind::Forward, migration).await
            }
            Task::Repair => self.repair(migration).await,
            Task::ReverseBackfill => self.pass(PassKind::Back, migration).await,
            Task::Scan => {
                ensure_indexes(&plan.outline.pool, plan.new_table(), &plan.changes.indexes, migration)
                    .await?;
                self.pass(PassKind::Compare, migration).await
            }
            Task::CarryOver => {
                carry_over(plan, migration).await?;
                // The next step need not wait for the next look.
                self.recent_look.forget();
                Ok(())
            }
            Task::Enforce | Task::Relax => Ok(()),
            Task::Contract => contract(plan, migration).await,
        }
    }
}

/// The table's oid and full name on this connection.
async fn resolved(connection: &mut PgConnection, table: &str) -> Result<Option<(i64, String)>, sqlx::Error> {
    unprepared::query_as(
        "select c.oid::bigint, n.nspname || '.' || c.relname from pg_class c \
         join pg_namespace n on n.oid = c.relnamespace where c.oid = to_regclass($1)",
    )
    .bind(table)
    .fetch_optional(connection)
    .await
}

/// Whether any schema has a table of this name.
async fn is_in_some_schema(table: &str, connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    unprepared::query_scalar(
        "select exists (select from pg_class where relkind in ('r', 'p') \
             and relname = (select name from unnest(parse_ident($1)) with ordinality as parts (name, number) \
                 order by number desc limit 1))",
    )
    .bind(table)
    .fetch_one(connection)
    .await
}

/// Whether the old and the new side exist by their names.
async fn by_name(plan: &Description, connection: &mut PgConnection) -> Result<(bool, bool), sqlx::Error> {
    // Any column of the old side, and all of the new one.
    unprepared::query_as(
        "select to_regclass($1) is not null and (cardinality($3) = 0 or exists (select from pg_attribute \
                 where attrelid = to_regclass($1) and not attisdropped and attname = any ($3))), \
             to_regclass($2) is not null and (select count(*) = cardinality($4) from pg_attribute \
                 where attrelid = to_regclass($2) and not attisdropped and attname = any ($4))",
    )
    .bind(plan.old_table())
    .bind(plan.new_table())
    .bind(plan.old_columns())
    .bind(plan.new_columns())
    .fetch_one(connection)
    .await
}
