//! Sessions that know nothing of the library: a nightly job, a person with `psql`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use cutover::migration::{Phase, Side};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use super::session::outside;
use super::{After, Change, ISOLATIONS, Writer};
use crate::Outcome;
use crate::base::lock;
use crate::key::Key;
use crate::oracle::{Row, Value, literal};
use crate::shape::{Partitions, settings_of};
use crate::world::WRITERS;

impl Writer {
    /// An ordinary session that knows nothing of the library.
    pub(crate) async fn external(mut self) -> Outcome {
        let options = outside(&self.world, &mut self.rng, "nightly job")?;
        let is_super = options.get_username() == "postgres";
        let mut session = PgConnection::connect_with(&options).await?;
        while !self.world.is_over.load(Ordering::Relaxed) {
            if self.rng.u8(..).is_multiple_of(10) {
                let mut settings = vec!["reset all", "reset session_replication_role"];
                settings.extend(settings_of(&self.world.shape.pair, &mut self.rng));
                if is_super && self.rng.bool() {
                    settings.push("set session_replication_role = replica");
                }
                for setting in settings {
                    session.execute(setting).await.ok();
                }
            }
            let world = Arc::clone(&self.world);
            let quiet = world.quiet.read().await;
            self.external_write(&mut session).await?;
            drop(quiet);
            self.pause().await;
        }
        Ok(())
    }

    /// A row of this writer whose value cannot be mapped, once such values are to be corrected.
    fn to_correct(&self) -> Option<usize> {
        let rows = lock(&self.world.rows);
        let is_wrong = |number: usize, row: &Row| row.is_unmappable && number % WRITERS == self.number;
        let wrong = rows.iter().find(|(number, row)| is_wrong(**number, row));
        wrong.filter(|_| self.world.corrects.load(Ordering::Relaxed)).map(|(number, _)| *number)
    }

    /// Whether values that cannot be mapped may be written in this phase. Not while they are corrected: on a busy machine, one
    /// or another would always hold the migration.
    fn may_be_unmappable(&self, phase: Phase) -> bool {
        self.world.values.unmappable.is_some()
            && !self.world.corrects.load(Ordering::Relaxed)
            && (Phase::Expand..=Phase::Verify).contains(&phase)
    }

    async fn external_write(&mut self, session: &mut PgConnection) -> Outcome {
        let world = Arc::clone(&self.world);
        let corrected = self.to_correct();
        if world.rests.load(Ordering::Relaxed) && corrected.is_none() {
            return Ok(());
        }
        let number = corrected.unwrap_or_else(|| self.own());
        let number = if world.is_turning.load(Ordering::Relaxed) { self.without_row() } else { number };
        // When the guard trigger is gone, nothing refuses a write of a row that has moved.
        let ends = world.shape.has_part && world.ends.load(Ordering::Relaxed);
        if ends && world.moves(number) {
            return Ok(());
        }
        let (first, _) = world.phase().await?;
        let before = lock(&world.rows).get(&number).cloned();
        let is_table = world.shape.is_table;
        let (key, is_row, names) = (world.key(number), world.is_row(number), world.shape.key.names());
        let overriding = world.overriding();
        let value = self.value();
        let other = self.value();
        let (named, all) = (self.named(), self.all());
        let set_old = self.sets(Side::Old, &value, &named);
        let (old_columns, old) = self.lists(Side::Old, &value, &named);
        let (new_columns, new) = self.lists(Side::New, &value, &named);
        let values = &world.values;
        let inserted = values.with(&values.default_old, &named, &value.old);
        let inserted_new = values.with(&values.default_new, &named, &value.new);
        let updated = before.as_ref().map(|row| values.with(&row.old, &named, &value.old));
        let updated_new = |row: &Row, value: &Value| Some(values.with(&row.new, &named, &value.new));
        // A session's `array_nulls` also changes what the writer itself says.
        let says_arrays = world.shape.pair.new.contains("[]");
        // What the guard trigger cannot map is overwritten by the copy.
        let is_lost = world.shape.rust_pair.is_some() && first < Phase::Ramp;
        let knows_new = !is_table
            && !world.shape.is_apart
            && !says_arrays
            && !is_lost
            && first >= Phase::Expand
            && first <= Phase::Retire;
        let insert =
            format!("insert into public.subject ({names}, {old_columns}) {overriding} values ({key}, {old})");
        let excluded = old_columns.replace("old_", "excluded.old_");
        let upsert =
            format!("{insert} on conflict ({names}) do update set ({old_columns}) = row({excluded})");
        let mut copy = None;
        let (what, sql, change): (&str, String, Change) = match &before {
            Some(row) if row.is_unmappable => {
                if !world.corrects.load(Ordering::Relaxed) || first >= Phase::Switch {
                    return Ok(());
                }
                let images = (value.old.clone(), value.new.clone());
                let knows_new = first != Phase::Off && world.shape.rust_pair.is_none();
                let allowed = [After { phase: first, images: Some(images), is_unmappable: false, knows_new }];
                let update = format!(
                    "update public.subject set {} where {is_row}",
                    self.sets(Side::Old, &value, &all)
                );
                if session.execute(AssertSqlSafe(update)).await.is_ok() {
                    self.judge(number, before.as_ref(), &allowed, "correct").await?;
                }
                return Ok(());
            }
            Some(row) if self.may_complete(row, first) && self.rng.bool() => {
                return self.write_part(session, number, row.clone(), first).await;
            }
            // What such a row's old side holds depends on the copy back.
            Some(row) if row.old_behind && first < Phase::Retire => return Ok(()),
            Some(row) if !is_table && world.is_copying.load(Ordering::Relaxed) && self.rng.bool() => {
                return self.move_key(session, number, row.clone(), first).await;
            }
            // A move to another partition, of a row whose old side must not be written.
            Some(row)
                if first >= Phase::Retire
                    && world.shape.partitions != Partitions::None
                    && self.rng.u8(..).is_multiple_of(3) =>
            {
                return self.move_key(session, number, row.clone(), first).await;
            }
            Some(_)
                if self.may_be_unmappable(first)
                    && world.moves(number)
                    && self.rng.u8(..).is_multiple_of(8) =>
            {
                return self.write_unmappable(session, number).await;
            }
            Some(row) => match self.rng.u8(..9) {
                0 if knows_new && row.new_written && world.shape.pair.unmappable.is_none() => (
                    "update new",
                    format!(
                        "update public.subject set {} where {is_row}",
                        self.sets(Side::New, &value, &named)
                    ),
                    Change::Update { old: None, new: updated_new(row, &value) },
                ),
                1 if knows_new && row.new_written && world.shape.pair.unmappable.is_none() => (
                    "update both",
                    format!(
                        "update public.subject set {set_old}, {} where {is_row}",
                        self.sets(Side::New, &other, &named)
                    ),
                    Change::Update { old: updated, new: updated_new(row, &other) },
                ),
                2 => ("upsert", upsert, Change::Upsert { old: inserted, named }),
                3 if world.version >= 150_000 => (
                    "merge",
                    format!(
                        "merge into public.subject using (select 1 as v) as source on {is_row} \
                         when matched then update set {set_old} \
                         when not matched then insert ({names}, {old_columns}) {overriding} values ({key}, {old})"
                    ),
                    Change::Update { old: updated, new: None },
                ),
                4 => ("delete", format!("delete from public.subject where {is_row}"), Change::Delete),
                5 => (
                    "note",
                    format!("update public.subject set note = 'n' where {is_row}"),
                    if is_table { Change::Update { old: None, new: None } } else { Change::Nothing },
                ),
                6 => return self.move_key(session, number, row.clone(), first).await,
                7 if world.shape.on_delete == "cascade" && (!is_table || first < Phase::Switch) => {
                    return self.delete_parent(session, number).await;
                }
                _ => (
                    "update old",
                    format!("update public.subject set {set_old} where {is_row}"),
                    Change::Update { old: updated, new: None },
                ),
            },
            None => match self.rng.u8(..6) {
                choice if knows_new && (choice == 0 || world.is_turning.load(Ordering::Relaxed)) => (
                    "insert new",
                    format!(
                        "insert into public.subject ({names}, {new_columns}) {overriding} values ({key}, {new})"
                    ),
                    Change::Insert { old: None, new: Some(inserted_new) },
                ),
                1 if knows_new => (
                    "insert both",
                    format!(
                        "insert into public.subject ({names}, {old_columns}, {new_columns}) {overriding} \
                         values ({key}, {old}, {new})"
                    ),
                    Change::Insert { old: Some(inserted), new: Some(inserted_new) },
                ),
                2 => (
                    "insert neither",
                    format!("insert into public.subject ({names}) {overriding} values ({key})"),
                    Change::Insert { old: None, new: None },
                ),
                3 => {
                    let keys: Vec<String> = world.shape.key.literals(number);
                    copy = Some(self.copy_line(&keys, &value, &named).await?);
                    (
                        "copy",
                        format!("copy public.subject ({names}, {old_columns}) from stdin (format csv)"),
                        Change::Insert { old: Some(inserted), new: None },
                    )
                }
                4 => ("upsert", upsert, Change::Upsert { old: inserted, named }),
                _ => ("insert old", insert, Change::Insert { old: Some(inserted), new: None }),
            },
        };
        let isolation = ISOLATIONS[self.rng.usize(..ISOLATIONS.len())];
        let outcome = self.run(session, isolation, &sql, copy.as_deref()).await;
        let (last, _) = world.phase().await?;
        self.settle(number, before.as_ref(), &[first, last], &change, what, &sql, outcome).await
    }

    /// Whether the new side of the row is not copied yet, and can be written in part.
    fn may_complete(&self, row: &Row, phase: Phase) -> bool {
        let (world, shape) = (&self.world, &self.world.shape);
        let is_behind = (Phase::Expand..Phase::Switch).contains(&phase) && !row.new_written;
        is_behind && shape.has_second && world.values.unmappable.is_none() && !shape.pair.new.contains("[]")
    }

    /// Writes one column of a new side that is behind. The other column comes from the old side.
    async fn write_part(
        &mut self,
        session: &mut PgConnection,
        number: usize,
        row: Row,
        first: Phase,
    ) -> Outcome {
        let world = Arc::clone(&self.world);
        let (values, value) = (&world.values, self.value());
        let named = [[true, false], [false, true]][self.rng.usize(..2)];
        let (_, Some(found)) = world.look(number).await? else { return Ok(()) };
        let is_row = world.is_row(number);
        let sql =
            format!("update public.subject set {} where {is_row}", self.sets(Side::New, &value, &named));
        let outcome = self.run(session, "read committed", &sql, None).await;
        let (last, _) = world.phase().await?;
        if outcome.is_err() {
            let what = "update a part of new";
            return self.settle(number, Some(&row), &[last], &Change::Nothing, what, &sql, outcome).await;
        }
        // A copy may have come between.
        let mut allowed = Vec::new();
        for was in [Some(found), values.forward_of(&row.old)].into_iter().flatten() {
            let new = Some(values.with(&was, &named, &value.new));
            if new.as_ref() == Some(&was) {
                // It writes what the row holds, which is not mirrored.
                allowed.extend(self.after(number, last, Some(&row), &Change::Nothing));
                continue;
            }
            let before = Row { new: was, ..row.clone() };
            for phase in [first, last] {
                allowed.extend(self.after(
                    number,
                    phase,
                    Some(&before),
                    &Change::Update { old: None, new: new.clone() },
                ));
            }
        }
        let what = format!("update a part of new from {first} to {last} (`{sql}`)");
        self.judge(number, Some(&row), &allowed, &what).await
    }

    /// The row gets another key, which may belong to another partition.
    async fn move_key(
        &mut self,
        session: &mut PgConnection,
        from: usize,
        before: Row,
        first: Phase,
    ) -> Outcome {
        let to = self.without_row();
        let world = Arc::clone(&self.world);
        // A row that goes to another partition is inserted there, with a value that is outdated in `retire`.
        let is_inserted = world.shape.partitions != Partitions::None && first >= Phase::Switch;
        let ends = world.ends.load(Ordering::Relaxed);
        let is_late = world.shape.is_apart && (is_inserted || ends)
            || world.shape.has_part && ends && (world.moves(from) || world.moves(to));
        if lock(&world.rows).contains_key(&to) || world.shape.key == Key::IdentityAlways || is_late {
            return Ok(());
        }
        let sql = format!(
            "update public.subject set ({names}) = row({key}) where {is_row}",
            names = world.shape.key.names(),
            key = world.key(to),
            is_row = world.is_row(from)
        );
        let outcome = self.run(session, "read committed", &sql, None).await;
        let (last, _) = world.phase().await?;
        let phases = [first, last];
        if outcome.is_err() {
            // It is refused if the row belongs to what moves before or after it.
            let number = if world.moves(from) { from } else { to };
            return self
                .settle(number, Some(&before), &phases, &Change::Nothing, "move", &sql, outcome)
                .await;
        }
        let parent = lock(&world.parents).remove(&from);
        lock(&world.rows).remove(&from);
        self.settle(from, None, &phases, &Change::Delete, "move away", &sql, Ok(())).await?;
        self.settle(to, Some(&before), &phases, &Change::Nothing, "move", &sql, Ok(())).await?;
        if let Some(parent) = parent {
            lock(&world.parents).insert(to, parent);
        }
        Ok(())
    }

    async fn write_unmappable(&mut self, session: &mut PgConnection, number: usize) -> Outcome {
        let world = Arc::clone(&self.world);
        let Some((text, _)) = &world.values.unmappable else { return Ok(()) };
        let is_row = world.is_row(number);
        let old = literal(Some(text), world.shape.old_type());
        let sql = format!("update public.subject set old_c = {old} where {is_row}");
        let outcome = self.run(session, "read committed", &sql, None).await;
        let (last, _) = world.phase().await?;
        let before = lock(&world.rows).get(&number).cloned();
        let image =
            before.as_ref().and_then(|row| world.values.with_unmappable(&row.old)).unwrap_or_default();
        match outcome {
            Ok(()) => {
                let after = After {
                    phase: last,
                    images: Some((image, String::new())),
                    is_unmappable: true,
                    knows_new: false,
                };
                self.judge(number, before.as_ref(), &[after], "write what cannot be mapped").await
            }
            Err(_) => {
                self.settle(
                    number,
                    before.as_ref(),
                    &[last],
                    &Change::Nothing,
                    "write what cannot be mapped",
                    &sql,
                    outcome,
                )
                .await
            }
        }
    }

    /// Deletes the row's parent, and with it the row.
    async fn delete_parent(&mut self, session: &mut PgConnection, number: usize) -> Outcome {
        let world = Arc::clone(&self.world);
        let Some(parent) = lock(&world.parents).get(&number).copied() else { return Ok(()) };
        let replica = "select current_setting('session_replication_role')";
        let role: String = sqlx::query_scalar(replica).fetch_one(&mut *session).await?;
        if parent < WRITERS || role != "origin" {
            return Ok(());
        }
        let sql = format!("delete from public.parents where id = {parent}");
        if let Err(error) = self.run(session, "read committed", &sql, None).await {
            return self
                .settle(
                    number,
                    None,
                    &[world.phase().await?.0],
                    &Change::Nothing,
                    "delete a parent",
                    &sql,
                    Err(error),
                )
                .await;
        }
        for row in world.rows_of(parent) {
            let before = lock(&world.rows).get(&row).cloned();
            let phase = world.phase().await?.0;
            self.settle(row, before.as_ref(), &[phase], &Change::Cascade, "cascade", &sql, Ok(())).await?;
        }
        Ok(())
    }
}
