use async_trait::async_trait;
use sqlx::PgConnection;

use super::builder::{Description, WiderKey};
use super::exchange::{exchange, index_name, lock, statements};
use super::found::{Counting, Key, find};
use super::inspection::problems;
use super::referring::{self, key_of, mirrored};
use super::unguarded::unguarded;
use crate::ledger::key_mirror::Mirrored;
use crate::ledger::{begin_work, guard_triggers, key_mirror, sides};
use crate::migration::batch::{
    ColumnType, PassKind, Scope, Span, begin, explain_table_lock, keyset, pass, rows_differ, walk,
};
use crate::migration::catalog::{OldSide, PlanProblem, quote};
use crate::migration::coordinator::{Plan, PlanError, SidesPresent};
use crate::migration::phase::{Phase, SchemaState, Task};
use crate::migration::plan::description::not_null_steps;
use crate::migration::plan::refusal::refuse;
use crate::migration::runtime::Migration;
use crate::migration::schema::{alter_all, drop_old_side};

impl WiderKey {
    /// The statements of each task, for people to read. `:migration` is the migration's id.
    pub fn sql(&self) -> Vec<(Task, String)> {
        let plan = &*self.0;
        let (id, table) = (":migration", &plan.table);
        let (column, wide, narrow) = (quote(&plan.column), quote(&plan.wide), quote(&plan.narrow));
        let key = Key {
            relation: 0,
            table: table.clone(),
            key_type: "integer".into(),
            constraint: Some("primary_key".into()),
            identity: String::new(),
            sequence: None,
            counting: Counting::default(),
            second_type: "bigint".into(),
            index: None,
            is_deferrable: false,
            default: None,
            has_wide: true,
            has_narrow: false,
            is_guarded: true,
            is_prepared: false,
        };
        let index = index_name(id, true);
        let mut enforce =
            vec![format!("create unique index concurrently {} on {table} ({wide})", quote(&index))];
        enforce.extend(not_null_steps(table, &wide, id));
        enforce.extend(statements(plan, &key, &[], id, &index).unwrap_or_default());
        let text = |statements: Vec<String>| -> String {
            statements.iter().map(|one| format!("{one};\n")).collect()
        };
        vec![
            (
                Task::Expand,
                text(vec![
                    add(plan),
                    key_mirror::install(id, &mirrored(plan, (table, "integer"), &[], false)),
                ]),
            ),
            (Task::Backfill, text(vec![format!("update {table} set {wide} = {column} where …")])),
            (Task::Enforce, text(enforce)),
            (
                Task::Contract,
                text(vec![
                    guard_triggers::disarm(table, id),
                    format!("alter table {table} drop column if exists {narrow}"),
                ]),
            ),
        ]
    }

    async fn expand(&self, migration: &Migration) -> Result<(), PlanError> {
        let plan = &*self.0;
        let pool = &plan.outline.pool;
        begin(pool, &[Phase::Off], migration).await?.rollback().await?;
        let mut tx = begin_work(pool).await?;
        refuse(&problems(plan, Some(migration.id()), &mut tx).await?)?;
        let columns = self.mirrored(migration.id(), &mut tx).await?;
        tx.rollback().await?;
        let id = migration.id().to_string();
        let record = sides::record(
            &id,
            [&plan.table; 2],
            [std::slice::from_ref(&plan.column), std::slice::from_ref(&plan.wide)],
            true,
        );
        let adds = columns.iter().map(|Mirrored { table, target, .. }| {
            format!("alter table {table} add column if not exists {target} bigint")
        });
        let statements: Vec<String> = adds.chain([key_mirror::install(&id, &columns), record]).collect();
        self.alter_tables_of(&columns, statements, Phase::Off, migration).await
    }

    /// Installs the triggers again if others dropped one.
    async fn rearm(&self, migration: &Migration) -> Result<(), PlanError> {
        let pool = &self.0.outline.pool;
        let mut tx = begin(pool, &[Phase::Backfill], migration).await?;
        if unguarded(&self.0, migration.id(), &mut tx).await?.is_empty() {
            return Ok(tx.rollback().await?);
        }
        let columns = self.mirrored(migration.id(), &mut tx).await?;
        tx.rollback().await?;
        let install = key_mirror::install(&migration.id().to_string(), &columns);
        self.alter_tables_of(&columns, vec![install], Phase::Backfill, migration).await
    }

    /// Runs statements with all tables of these columns locked.
    async fn alter_tables_of(
        &self,
        columns: &[Mirrored],
        statements: Vec<String>,
        phase: Phase,
        migration: &Migration,
    ) -> Result<(), PlanError> {
        let mut tables: Vec<&str> = columns.iter().map(|one| &*one.table).collect();
        tables.dedup();
        let statements: Vec<String> = lock(&tables).into_iter().chain(statements).collect();
        alter_all(&self.0.outline.pool, &tables, migration, phase, &statements.join(";\n")).await
    }

    /// The columns that a trigger keeps equal before the exchange.
    async fn mirrored(
        &self,
        migration: i32,
        connection: &mut PgConnection,
    ) -> Result<Vec<Mirrored>, PlanError> {
        let plan = &*self.0;
        let key = find(plan, Some(migration), &mut *connection).await?;
        let key = key.ok_or_else(|| PlanError::Refused(format!("column {:?} is gone", plan.column)))?;
        let referring = referring::find(plan, &key, Some(migration), connection).await?;
        Ok(mirrored(plan, (&key.table, &key.key_type), &referring, false))
    }

    /// Copies the columns of foreign keys, or compares them. The key's own pass comes last, because its end is that of the
    /// task.
    async fn walk_referring(&self, kind: PassKind, migration: &Migration) -> Result<(), PlanError> {
        let plan = &*self.0;
        let mut tx = migration.begin_work(&plan.outline.pool).await?;
        let mut tables = Vec::new();
        // The first one is the key's own.
        for columns in self.mirrored(migration.id(), &mut tx).await?.split_off(1) {
            match key_of(&columns.table, &mut tx).await? {
                Ok(key) => tables.push((key, columns)),
                Err(problem) => refuse(&[problem])?,
            }
        }
        tx.rollback().await?;
        for (key, Mirrored { table, column, target, .. }) in tables {
            let statement = |span: &Span| {
                let rows = format!("{} and {target} is distinct from {column}", key.within(span));
                match kind {
                    PassKind::Forward => format!("update {table} set {target} = {column} where {rows}"),
                    _ => format!("select from {table} where {rows}"),
                }
            };
            let what = match kind {
                PassKind::Forward => format!("a copy of column {column} of {table}"),
                _ => format!("a comparison of column {column} of {table}"),
            };
            let found =
                walk(&plan.outline, &what, (&*table, &key), kind.phases(), statement, migration).await?;
            if kind == PassKind::Compare && found > 0 {
                let differing = rows_differ(found.cast_signed(), &format!(" of {table}"));
                return Err(PlanError::Refused(format!(
                    "{differing} in {column} and {target}; to fix: `cutover set-phase <migration> expand`, and then forward again"
                )));
            }
        }
        Ok(())
    }

    async fn pass(&self, kind: PassKind, migration: &Migration) -> Result<(), PlanError> {
        let plan = &*self.0;
        let mut tx = migration.begin(&plan.outline.pool).await?;
        let key = keyset::find(&mut tx, &plan.table, &plan.outline.key).await?;
        let sides = &plan.outline.sides;
        let mut types = Vec::new();
        for mapping in [&sides.backward, &sides.forward] {
            types.push(ColumnType::load(&mut tx, &plan.table, &mapping.columns).await?);
        }
        tx.rollback().await?;
        let key = key.map_err(|reasons| PlanError::Refused(reasons.join("; ")))?;
        let missing = || PlanError::Refused(format!("{}: a column of the key is gone", plan.table));
        let mut types = types.into_iter().map(|found| found.into_iter().collect::<Option<Vec<_>>>());
        let mut next = || types.next().flatten().ok_or_else(missing);
        let scope = Scope { sides, key, old_types: next()?, new_types: next()? };
        pass::run(&plan.outline, scope, kind, migration).await
    }

    async fn contract(&self, migration: &Migration) -> Result<(), PlanError> {
        let plan = &*self.0;
        let pool = &plan.outline.pool;
        let mut tx = begin(pool, &[Phase::Contract], migration).await?;
        let recorded = sides::find(&mut tx, migration.id()).await?;
        tx.rollback().await?;
        let Some(old) = recorded.map(|sides| sides.old).filter(|old| old.is_there) else { return Ok(()) };
        let (Some(table), Some(column)) = (old.table, old.columns.into_iter().next()) else { return Ok(()) };
        if column.trim_matches('"') == plan.column {
            return Err(PlanError::Refused(format!(
                "column {column} of {table} is still the key, so it is not dropped; to fix: `cutover explain {}`",
                migration.name()
            )));
        }
        let drop =
            |(table, column): (String, String)| format!("alter table {table} drop column if exists {column}");
        let targets = key_mirror::targets(&mut *begin_work(pool).await?, migration.id()).await?;
        let mut statements = vec![guard_triggers::disarm(&table, &migration.id().to_string())];
        statements.extend(std::iter::once((table.clone(), column)).chain(targets).map(drop));
        drop_old_side(pool, &[&table], migration, &statements.join(";\n")).await
    }
}

fn add(plan: &Description) -> String {
    format!("alter table {} add column if not exists {} bigint", plan.table, quote(&plan.wide))
}

#[async_trait]
impl Plan for WiderKey {
    fn sql(&self) -> Vec<(Task, String)> {
        WiderKey::sql(self)
    }

    fn old_side(&self) -> Option<OldSide> {
        Some(OldSide { table: self.0.table.clone(), columns: vec![self.0.narrow.clone()] })
    }

    async fn problems(
        &self,
        migration: Option<i32>,
        _: &mut PgConnection,
    ) -> Result<Vec<PlanProblem>, sqlx::Error> {
        problems(&self.0, migration, &mut *begin_work(&self.0.outline.pool).await?).await
    }

    async fn before_step(
        &self,
        phase: Phase,
        migration: i32,
        is_move: bool,
        connection: &mut PgConnection,
    ) -> Result<Vec<PlanProblem>, sqlx::Error> {
        if !(Phase::Backfill..=Phase::Switch).contains(&phase) {
            return Ok(Vec::new());
        }
        if let Some(found) = self.0.recent_look.found(migration, phase, is_move) {
            return Ok(found);
        }
        let mut found = unguarded(&self.0, migration, &mut *connection).await?;
        // An object that names the key may have been added. The exchange looks again.
        if phase == Phase::Ramp {
            found.extend(problems(&self.0, Some(migration), connection).await?);
        }
        self.0.recent_look.record(migration, phase, &found);
        Ok(found)
    }

    async fn unguarded(
        &self,
        _: Phase,
        migration: i32,
        connection: &mut PgConnection,
    ) -> Result<Vec<PlanProblem>, sqlx::Error> {
        unguarded(&self.0, migration, connection).await
    }

    async fn schema_state(
        &self,
        migration: Option<i32>,
        connection: &mut PgConnection,
    ) -> Result<SchemaState, sqlx::Error> {
        let key = find(&self.0, migration, &mut *connection).await?;
        let recorded = sides::find(connection, migration).await?;
        let (Some(key), Some(sides)) = (key, recorded) else { return Ok(SchemaState::new(false, false)) };
        let is_expanded = sides.new.is_there && key.is_guarded;
        let is_exchanged = key.is_exchanged();
        let is_ready = !key.is_prepared;
        Ok(SchemaState::new(is_expanded, !sides.old.is_there)
            .with_refusals(is_exchanged && is_ready, !is_exchanged && is_ready))
    }

    async fn sides_present(
        &self,
        migration: Option<i32>,
        connection: &mut PgConnection,
    ) -> Result<SidesPresent, sqlx::Error> {
        if let Some(sides) = sides::find(&mut *connection, migration).await? {
            return Ok(SidesPresent { old: sides.old.is_there, new: sides.new.is_there });
        }
        let key = find(&self.0, migration, connection).await?;
        let is_wide = key.as_ref().is_some_and(Key::is_exchanged);
        Ok(SidesPresent { old: key.is_some() && !is_wide, new: is_wide })
    }

    async fn run(&self, task: Task, migration: &Migration) -> Result<(), PlanError> {
        match task {
            Task::Expand => {
                explain_table_lock(&self.0.outline.pool, &self.0.table, self.expand(migration).await).await
            }
            Task::Backfill => {
                self.rearm(migration).await?;
                self.walk_referring(PassKind::Forward, migration).await?;
                self.pass(PassKind::Forward, migration).await
            }
            Task::Scan => {
                self.walk_referring(PassKind::Compare, migration).await?;
                self.pass(PassKind::Compare, migration).await
            }
            // The trigger has kept the old column up to date, and the exchange back has checked that.
            Task::ReverseBackfill => self.pass(PassKind::Back, migration).await,
            Task::Enforce => exchange(&self.0, true, migration).await,
            Task::Relax => exchange(&self.0, false, migration).await,
            Task::Contract => self.contract(migration).await,
            Task::Repair | Task::CarryOver => Ok(()),
        }
    }
}
