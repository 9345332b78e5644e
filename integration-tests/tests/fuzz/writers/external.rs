//! Sessions that know nothing of the library: a nightly job, a person with `psql`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use cutover::migration::Phase;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection};

use super::{After, Change, Writer};
use crate::Outcome;
use crate::oracle::{Row, literal};
use crate::shape::{Partitions, settings_of};
use crate::world::{WRITERS, lock};

const ISOLATIONS: [&str; 4] = ["read committed", "read committed", "repeatable read", "serializable"];

impl Writer {
    /// An ordinary session that knows nothing of the library.
    pub(crate) async fn external(mut self) -> Outcome {
        let options: PgConnectOptions = if self.rng.bool() {
            self.world.url.parse()?
        } else {
            (*self.world.pool.connect_options()).clone()
        };
        let is_super = options.get_username() == "postgres";
        let options = options.disable_statement_logging().application_name("nightly job");
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

    /// Whether values that cannot be mapped may be written in this phase.
    fn may_be_unmappable(&self, phase: Phase) -> bool {
        self.world.values.unmappable.is_some() && (Phase::Expand..=Phase::Verify).contains(&phase)
    }

    async fn external_write(&mut self, session: &mut PgConnection) -> Outcome {
        let world = Arc::clone(&self.world);
        let number = self.to_correct().unwrap_or_else(|| self.own());
        let number = if world.is_turning.load(Ordering::Relaxed) { self.without_row() } else { number };
        let (first, _) = world.phase().await?;
        let before = lock(&world.rows).get(&number).cloned();
        let is_table = world.shape.is_table;
        let (key, is_row, names) = (world.key(number), world.is_row(number), world.shape.key.names());
        let overriding = world.overriding();
        let value = self.value();
        let other = self.value();
        let (old, new) = (self.old(&value), self.new_literal(&value));
        // A session's `array_nulls` also changes what the writer itself says.
        let says_arrays = world.shape.pair.new.contains("[]");
        let knows_new = !is_table && !says_arrays && first >= Phase::Expand && first <= Phase::Retire;
        let mut copy = None;
        let (what, sql, change): (&str, String, Change) = match &before {
            Some(row) if row.is_unmappable => {
                if !world.corrects.load(Ordering::Relaxed) || first >= Phase::Switch {
                    return Ok(());
                }
                let images = (value.old.clone(), value.new.clone());
                let allowed = [After {
                    phase: first,
                    images: Some(images),
                    is_unmappable: false,
                    knows_new: first != Phase::Off,
                }];
                let update = format!("update public.subject set old_c = {old} where {is_row}");
                if session.execute(AssertSqlSafe(update)).await.is_ok() {
                    self.judge(number, before.as_ref(), &allowed, "correct").await?;
                }
                return Ok(());
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
            Some(_) if self.may_be_unmappable(first) && self.rng.u8(..).is_multiple_of(8) => {
                return self.write_unmappable(session, number).await;
            }
            Some(row) => match self.rng.u8(..9) {
                0 if knows_new && row.new_written && world.shape.pair.unmappable.is_none() => (
                    "update new",
                    format!("update public.subject set new_c = {new} where {is_row}"),
                    Change::Update { old: None, new: Some(value.new.clone()) },
                ),
                1 if knows_new && row.new_written && world.shape.pair.unmappable.is_none() => (
                    "update both",
                    format!(
                        "update public.subject set old_c = {old}, new_c = {} where {is_row}",
                        self.new_literal(&other)
                    ),
                    Change::Update { old: Some(value.old.clone()), new: Some(other.new.clone()) },
                ),
                2 => (
                    "upsert",
                    format!(
                        "insert into public.subject ({names}, old_c) {overriding} values ({key}, {old}) \
                         on conflict ({names}) do update set old_c = excluded.old_c"
                    ),
                    Change::Upsert { old: value.old.clone() },
                ),
                3 if world.version >= 150_000 => (
                    "merge",
                    format!(
                        "merge into public.subject using (select {old} as v) as source on {is_row} \
                         when matched then update set old_c = source.v \
                         when not matched then insert ({names}, old_c) {overriding} values ({key}, source.v)"
                    ),
                    Change::Update { old: Some(value.old.clone()), new: None },
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
                    format!("update public.subject set old_c = {old} where {is_row}"),
                    Change::Update { old: Some(value.old.clone()), new: None },
                ),
            },
            None => match self.rng.u8(..6) {
                choice if knows_new && (choice == 0 || world.is_turning.load(Ordering::Relaxed)) => (
                    "insert new",
                    format!("insert into public.subject ({names}, new_c) {overriding} values ({key}, {new})"),
                    Change::Insert { old: None, new: Some(value.new.clone()) },
                ),
                1 if knows_new => (
                    "insert both",
                    format!(
                        "insert into public.subject ({names}, old_c, new_c) {overriding} values ({key}, {old}, {new})"
                    ),
                    Change::Insert { old: Some(value.old.clone()), new: Some(value.new.clone()) },
                ),
                2 => (
                    "insert neither",
                    format!("insert into public.subject ({names}) {overriding} values ({key})"),
                    Change::Insert { old: None, new: None },
                ),
                3 => {
                    let keys: Vec<String> = world.shape.key.literals(number);
                    copy = Some(self.copy_line(&keys, &value).await?);
                    (
                        "copy",
                        format!("copy public.subject ({names}, old_c) from stdin (format csv)"),
                        Change::Insert { old: Some(value.old.clone()), new: None },
                    )
                }
                4 => (
                    "upsert",
                    format!(
                        "insert into public.subject ({names}, old_c) {overriding} values ({key}, {old}) \
                         on conflict ({names}) do update set old_c = excluded.old_c"
                    ),
                    Change::Upsert { old: value.old.clone() },
                ),
                _ => (
                    "insert old",
                    format!("insert into public.subject ({names}, old_c) {overriding} values ({key}, {old})"),
                    Change::Insert { old: Some(value.old.clone()), new: None },
                ),
            },
        };
        let isolation = ISOLATIONS[self.rng.usize(..ISOLATIONS.len())];
        let outcome = self.run(session, isolation, &sql, copy.as_deref()).await;
        let (last, _) = world.phase().await?;
        self.settle(number, before.as_ref(), &[first, last], &change, what, &sql, outcome).await
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
        if lock(&world.rows).contains_key(&to) || world.shape.key == crate::shape::Key::IdentityAlways {
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
            return self.settle(from, Some(&before), &phases, &Change::Nothing, "move", &sql, outcome).await;
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
        let Some((text, image)) = &world.values.unmappable else { return Ok(()) };
        let is_row = world.is_row(number);
        let old = literal(Some(text), world.shape.old_type());
        let sql = format!("update public.subject set old_c = {old} where {is_row}");
        let outcome = self.run(session, "read committed", &sql, None).await;
        let (last, _) = world.phase().await?;
        let before = lock(&world.rows).get(&number).cloned();
        match outcome {
            Ok(()) => {
                let after = After {
                    phase: last,
                    images: Some((image.clone(), String::new())),
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
            self.settle(row, before.as_ref(), &[phase], &Change::Delete, "cascade", &sql, Ok(())).await?;
        }
        Ok(())
    }
}
