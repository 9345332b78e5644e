use std::sync::Arc;

use async_trait::async_trait;
use sqlx::PgConnection;

use super::contract::contract;
use super::description::{Description, Removal};
use super::enforce::{enforce, found, is_watching, relax, unwatched, watch};
use super::inspection::{before_step, of_schema, problems, without_column};
use super::rows::violations;
use crate::ledger::jobs::TableSize;
use crate::ledger::{begin_work, external_writes, sides};
use crate::migration::batch::job::{self, Measured};
use crate::migration::batch::{PassKind, begin, begin_unpaused, explain_table_lock};
use crate::migration::catalog::{OldSide, PlanProblem, quote};
use crate::migration::coordinator::{Plan, PlanError, SidesPresent};
use crate::migration::phase::{Phase, SchemaState, Task};
use crate::migration::plan::before_move::{begin_trial, in_time};
use crate::migration::plan::recent_look::RecentLook;
use crate::migration::plan::refusal::refuse;
use crate::migration::runtime::Migration;
use crate::migration::schema::alter;

/// A change of the schema that moves no data: constraints that are added to a table, and one thing that is dropped.
///
/// The fleet agrees on it as on any other migration. Constraints are added without a long lock, when every live build
/// writes rows that satisfy them. A drop waits until every live build has declared that it does not need the object, no
/// writer and no reader was seen, and a person has approved it.
///
/// A service needs no `DualWrite` for it. It declares the phases that its code can run: a build that writes only what the
/// change allows, and uses nothing that it drops, supports all of them.
///
/// ```
/// use cutover::ConfigError;
/// use cutover::migration::{MigrationSpec, PhaseRange, SchemaChange};
///
/// fn declare(pool: sqlx::PgPool) -> Result<MigrationSpec, ConfigError> {
///     let change = SchemaChange::new(pool, "orders")
///         .not_null("status")
///         .check("orders_total_positive", "total >= 0")
///         .unique("orders_number_key", &["number"])
///         .foreign_key("orders_customer_fkey", &["customer_id"], "customers (id)")
///         .drop_column("legacy_status")
///         .build()?;
///     Ok(MigrationSpec::new("orders_constraints", PhaseRange::FULL).plan(change))
/// }
/// ```
///
/// # What each phase does
///
/// Before `expand`, rows that violate a constraint are named, and nothing is changed. From `expand` on, writers that the
/// change would refuse are recorded and listed by `cutover external-writes`. In `switch`, on the way to `retire`, the
/// server begins to refuse them; a step back, or a switched-off flag, ends that within seconds. In `retire`, writes of what
/// will be dropped are refused, and the server's counts of reads are watched. `contract` has no way back.
///
/// # Limits
///
/// - Reads of a column are seen only with `pg_stat_statements`, and only if a statement names the column. Reads on standbys
///   are not seen.
/// - An index that is dropped is usable until `contract`. Whether a query is slow without it shows only then.
#[derive(Debug, Clone)]
pub struct SchemaChange {
    description: Arc<Description>,
    recent_look: Arc<RecentLook>,
    recent_trial: Arc<RecentLook>,
}

impl SchemaChange {
    pub(super) fn of(description: Description) -> Self {
        Self { description: Arc::new(description), recent_look: Arc::default(), recent_trial: Arc::default() }
    }

    /// The statements of each task, for people to read. `:migration` is the migration's id, and `key` a row's key.
    pub fn sql(&self) -> Vec<(Task, String)> {
        self.description.sql()
    }

    /// Checks everything, installs the triggers that watch writers, and records the table.
    async fn expand(&self, migration: &Migration) -> Result<(), PlanError> {
        let plan = &*self.description;
        let mut tx = begin(&plan.pool, &[Phase::Off], migration).await?;
        let is_recorded = sides::find(&mut tx, migration.id()).await?.is_some();
        let found_here = of_schema(plan, Some(migration.id()), is_recorded, &mut tx).await?;
        for problem in found_here.iter().filter(|problem| !problem.is_blocking) {
            tracing::warn!(migration = migration.name(), %problem, "the plan has a warning");
        }
        refuse(&found_here)?;
        let table = found(plan, migration, &mut tx).await?;
        let column = match &plan.removal {
            Some(Removal::Column(column)) => Some(column.as_str()),
            _ => None,
        };
        let quoted = column.map(quote);
        let watch = watch(plan, &table, quoted.as_deref(), migration.id(), &mut tx).await?;
        tx.rollback().await?;
        refuse(&violations(plan, &table, None, &mut *begin_work(&plan.pool).await?).await?)?;
        let itself = || vec![sides::TABLE_ITSELF.to_owned()];
        let (old, old_columns) = match &plan.removal {
            Some(Removal::Index(index)) => (plan.index(index), Vec::new()),
            Some(Removal::Table) => (table.name.clone(), Vec::new()),
            Some(Removal::Column(column)) => (table.name.clone(), vec![column.clone()]),
            None => (table.name.clone(), itself()),
        };
        let mut new_columns: Vec<String> =
            plan.additions.iter().flat_map(|addition| addition.columns()).cloned().collect();
        if new_columns.is_empty() && plan.removal != Some(Removal::Table) {
            new_columns = itself();
        }
        let id = migration.id().to_string();
        let record = sides::record(&id, [&old, &table.name], [&old_columns, &new_columns], false);
        let statements: Vec<String> = watch.into_iter().chain([record]).collect();
        alter(&plan.pool, &table.name, migration, Phase::Off, &statements.join(";\n")).await
    }

    /// Checks all rows, and records that the pass has ended if none violates a constraint.
    async fn look(&self, kind: PassKind, migration: &Migration) -> Result<(), PlanError> {
        let plan = &*self.description;
        if kind == PassKind::Forward {
            self.rearm(migration).await?;
        }
        let mut tx = begin_unpaused(&plan.pool, kind, migration, "").await?;
        let epoch = tx.epoch();
        let since = external_writes::open_now(&mut tx, migration.id()).await?.since;
        let table = found(plan, migration, &mut tx).await?;
        tx.rollback().await?;
        // Outside of the fence, because a check of a large table takes long and changes nothing.
        refuse(&violations(plan, &table, None, &mut *begin_work(&plan.pool).await?).await?)?;
        let mut tx = begin_unpaused(&plan.pool, kind, migration, "").await?;
        if tx.epoch() != epoch {
            return Err(PlanError::PhaseLeft);
        }
        let measure =
            async |_: &mut PgConnection| Ok(Measured { range_ends: Vec::new(), size: TableSize::default() });
        let job = job::open(&mut tx, migration.id(), epoch, kind, Some(&since), measure).await?;
        if let Some(job) = job {
            job::finish(&mut tx, &job, kind, TableSize::default()).await?;
        }
        Ok(tx.commit().await?)
    }

    /// Installs the triggers again if a build with another description has installed others.
    async fn rearm(&self, migration: &Migration) -> Result<(), PlanError> {
        let plan = &*self.description;
        let mut tx = begin(&plan.pool, &[Phase::Backfill], migration).await?;
        let table = found(plan, migration, &mut tx).await?;
        if is_watching(plan, table.relation, migration.id(), &mut tx).await?
            && unwatched(plan, migration.id(), &mut tx).await?.is_none()
        {
            return Ok(tx.rollback().await?);
        }
        let column = sides::find(&mut tx, migration.id())
            .await?
            .and_then(|sides| sides.old.columns.into_iter().next());
        let statement = watch(plan, &table, column.as_deref(), migration.id(), &mut tx).await?;
        tx.rollback().await?;
        match statement {
            Some(statement) => alter(&plan.pool, &table.name, migration, Phase::Backfill, &statement).await,
            None => Ok(()),
        }
    }
}

#[async_trait]
impl Plan for SchemaChange {
    fn sql(&self) -> Vec<(Task, String)> {
        self.description.sql()
    }

    fn files(&self) -> Vec<(Task, String)> {
        let text = self.description.file().iter().map(|one| format!("{one};\n")).collect();
        vec![(Task::Expand, String::new()), (Task::Contract, text)]
    }

    fn old_side(&self) -> Option<OldSide> {
        self.description.old_side()
    }

    async fn problems(
        &self,
        migration: Option<i32>,
        _: &mut PgConnection,
    ) -> Result<Vec<PlanProblem>, sqlx::Error> {
        let plan = &*self.description;
        problems(plan, migration, &mut *begin_work(&plan.pool).await?).await
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
        let found = before_step(&self.description, phase, migration, connection).await?;
        self.recent_look.record(migration, phase, &found);
        Ok(found)
    }

    async fn before_move(
        &self,
        phase: Phase,
        migration: i32,
        is_move: bool,
    ) -> Result<Vec<PlanProblem>, sqlx::Error> {
        let plan = &*self.description;
        let Some(Removal::Column(column)) =
            plan.removal.as_ref().filter(|_| is_move && phase == Phase::Switch)
        else {
            return Ok(Vec::new());
        };
        if let Some(found) = self.recent_trial.found(migration, phase, false) {
            return Ok(found);
        }
        let look = async {
            let mut tx = begin_trial(&plan.pool).await?;
            let found = without_column(plan, column, migration, &mut tx).await;
            tx.rollback().await?;
            found
        };
        let found = in_time(&plan.table, is_move, look).await;
        self.recent_trial.record(migration, phase, &found);
        Ok(found)
    }

    async fn schema_state(
        &self,
        migration: Option<i32>,
        connection: &mut PgConnection,
    ) -> Result<SchemaState, sqlx::Error> {
        let plan = &*self.description;
        let Some(progress) = plan.progress(connection, migration).await? else {
            return Ok(SchemaState::new(false, false));
        };
        let is_expanded = match (migration, progress.is_recorded) {
            (Some(id), true) => match plan.find(connection, Some(id)).await? {
                Some(table) => is_watching(plan, table.relation, id, connection).await?,
                None => false,
            },
            _ => false,
        };
        let state = SchemaState::new(is_expanded, progress.is_complete && !progress.is_watched);
        if !progress.is_recorded {
            return Ok(state);
        }
        let all = || plan.additions.iter().zip(&progress.built);
        let enforced = all().all(|(addition, built)| built.is_in_force(addition));
        let relaxed = all().all(|(_, built)| !built.is_present);
        Ok(state.with_refusals(enforced, relaxed))
    }

    async fn unguarded(
        &self,
        _: Phase,
        migration: i32,
        connection: &mut PgConnection,
    ) -> Result<Vec<PlanProblem>, sqlx::Error> {
        Ok(unwatched(&self.description, migration, connection).await?.into_iter().collect())
    }

    async fn sides_present(
        &self,
        migration: Option<i32>,
        connection: &mut PgConnection,
    ) -> Result<SidesPresent, sqlx::Error> {
        let plan = &*self.description;
        let Some(progress) = plan.progress(connection, migration).await? else {
            return Ok(SidesPresent { old: false, new: false });
        };
        // After `expand`, constraints are in force before the change is complete.
        let is_gone = plan.removal.is_some() && progress.is_dropped;
        let old = if progress.is_recorded { !is_gone } else { !progress.is_complete };
        Ok(SidesPresent { old, new: true })
    }

    async fn run(&self, task: Task, migration: &Migration) -> Result<(), PlanError> {
        let plan = &*self.description;
        match task {
            Task::Expand => explain_table_lock(&plan.pool, &plan.table, self.expand(migration).await).await,
            Task::Backfill => self.look(PassKind::Forward, migration).await,
            Task::Scan => self.look(PassKind::Compare, migration).await,
            Task::ReverseBackfill => self.look(PassKind::Back, migration).await,
            Task::Enforce => enforce(plan, migration).await,
            Task::Relax => relax(plan, migration).await,
            Task::Contract => contract(plan, migration).await,
            Task::Repair | Task::CarryOver => Ok(()),
        }
    }
}
