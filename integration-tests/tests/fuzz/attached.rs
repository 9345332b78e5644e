//! What is attached to the old side beside its rows, all of which the new side has to have before it is read.

use std::time::Instant;

use fastrand::Rng;
use sqlx::{AssertSqlSafe, Executor};

use crate::Outcome;
use crate::damage::Kind;
use crate::shape::Shape;
use crate::world::{KEYS, World};

/// What may be attached to a column that moves. Nothing here depends on its type, and nothing refuses a value.
const OF_COLUMN: [&str; 10] = [
    "alter table subject add constraint old_c_some check (num_nulls(old_c, note) >= 0)",
    "alter table subject add constraint one check (num_nulls(old_c) < 2); comment on constraint one on subject is 'of one'",
    "alter table subject add constraint another check (pg_column_size(old_c) is distinct from -1)",
    "create index nulls on subject (parent) where num_nulls(old_c) = 1",
    "create index others on subject (parent) where num_nulls(old_c) = 0; comment on index others is 'of others'",
    "create index counted on subject (num_nulls(old_c), note)",
    "comment on column subject.old_c is 'what the ''customer'' sees'",
    "alter table subject alter old_c set statistics 77, alter old_c set (n_distinct = 5)",
    "grant select (old_c), update (old_c) on subject to pg_monitor; grant select (old_c) on subject to public",
    "do $$ begin if current_setting('server_version_num')::integer >= 140000 then \
        execute 'create statistics together on (num_nulls(old_c)), note from subject'; end if; end $$",
];

/// The same for a table that moves.
const OF_TABLE: [&str; 10] = [
    "alter table subject add constraint subject_some check (num_nulls(parent, note) >= 0)",
    "alter table subject add constraint one check (length(note) < 1000); comment on constraint one on subject is 'of one'",
    "alter table subject add constraint another check (note <> 'never')",
    "create index nulls on subject (parent) where note is null",
    "create index others on subject (parent) where note <> ''; comment on index others is 'of others'",
    "create index counted on subject (lower(note))",
    "comment on table subject is 'what the ''customer'' has'; comment on column subject.note is 'a note'",
    "alter table subject alter note set statistics 77, alter note set (n_distinct = 5)",
    "grant select, insert on subject to pg_monitor; grant update (note) on subject to public",
    "create statistics together (dependencies) on note, parent from subject",
];

/// How many rows refer to rows of the old table, which no writer touches.
const LINES: usize = 5;

/// What is attached to the old side.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attached {
    /// Which ones of the list.
    chosen: [bool; 10],
    /// The foreign key of the old table is not waived.
    pub(crate) has_key: bool,
    /// A table refers to the old one.
    pub(crate) has_lines: bool,
    /// That table is partitioned.
    has_parts: bool,
}

impl Attached {
    pub(crate) fn random(rng: &mut Rng) -> Self {
        let mut chosen = [true; 10];
        if rng.bool() {
            chosen.fill_with(|| rng.bool());
        }
        Self { chosen, has_key: rng.bool(), has_lines: rng.bool(), has_parts: rng.bool() }
    }
}

/// What the catalog says of a table and of what refers to it, where the line names `$2`.
const LINES_OF: &str = "select line from ( \
        select concat_ws(' ', 'constraint', pg_get_constraintdef(oid), 'valid', convalidated, obj_description(oid, 'pg_constraint')) as line \
            from pg_constraint where conrelid = $1::regclass and contype in ('c', 'f') \
        union all select concat_ws(' ', 'referring', conrelid::regclass, pg_get_constraintdef(oid), 'valid', convalidated) \
            from pg_constraint where confrelid = $1::regclass and contype = 'f' and conparentid = 0 and conrelid <> confrelid \
        union all select concat_ws(' ', 'index', regexp_replace(pg_get_indexdef(indexrelid), 'INDEX .* USING', 'USING'), \
            'valid', indisvalid, obj_description(indexrelid, 'pg_class')) from pg_index where indrelid = $1::regclass \
        union all select concat_ws(' ', 'column', attname, 'comment', col_description(attrelid, attnum), 'target', \
            nullif(attstattarget, -1), 'options', attoptions) from pg_attribute \
            where attrelid = $1::regclass and attnum > 0 and not attisdropped \
        union all select concat_ws(' ', 'right', attname, grantee::regrole, privilege_type) \
            from (select attname, (aclexplode(attacl)).* from pg_attribute where attrelid = $1::regclass and not attisdropped) as rights \
        union all select concat_ws(' ', 'right', grantee::regrole, privilege_type) \
            from (select (aclexplode(relacl)).* from pg_class where oid = $1::regclass) as rights \
        union all select concat_ws(' ', 'statistics', regexp_replace(regexp_replace(pg_get_statisticsobjdef(oid), 'STATISTICS [^ ]+', ''), ' FROM .*', '')) \
            from pg_statistic_ext where stxrelid = $1::regclass \
        union all select concat_ws(' ', 'table', obj_description($1::regclass, 'pg_class'))) as found \
    where line like '%' || $2 || '%' order by line collate \"C\"";

impl Shape {
    /// The statements that attach something to the old side.
    pub(crate) fn attach(&self) -> String {
        let Some(attached) = &self.attached else { return String::new() };
        let list = if self.is_table { OF_TABLE } else { OF_COLUMN };
        let chosen = list.iter().zip(attached.chosen).filter(|(_, chosen)| *chosen);
        let mut text: String = chosen.map(|(statement, _)| format!("{statement}; ")).collect();
        if self.has_lines() {
            let columns: Vec<String> =
                self.key.columns().iter().map(|(name, ty)| format!("{name} {ty}")).collect();
            let (columns, names) = (columns.join(", "), self.key.names());
            let parts = attached.has_parts;
            text += &format!(
                "create table lines (line integer, {columns}, constraint of_subject foreign key ({names}) references subject \
                     on delete cascade){}; ",
                if parts { " partition by hash (line)" } else { "" }
            );
            for remainder in if parts { 0..2 } else { 0..0 } {
                text += &format!(
                    "create table lines_{remainder} partition of lines for values with (modulus 2, remainder {remainder}); "
                );
            }
        }
        text
    }

    /// Whether a table refers to the old one.
    pub(crate) fn has_lines(&self) -> bool {
        self.is_table && self.attached.is_some_and(|attached| attached.has_lines)
    }

    /// Whether the foreign key of the old table is carried over.
    pub(crate) fn carries_key(&self) -> bool {
        self.is_table && self.attached.is_some_and(|attached| attached.has_key)
    }

    /// The numbers of the rows to which others refer. A row that does not move has no counterpart.
    pub(crate) fn referred(&self) -> Vec<usize> {
        let count = if self.has_lines() { LINES } else { 0 };
        (KEYS..).filter(|number| !self.has_part || !number.is_multiple_of(3)).take(count).collect()
    }

    /// This line of the old side, as the new side has to have it.
    fn moved(&self, line: &str) -> String {
        let line = line.replace("old_c", "new_c");
        if self.is_table { line.replace("REFERENCES subject(", "REFERENCES subject_2(") } else { line }
    }
}

impl World {
    async fn lines_of(&self, table: &str, column: &str) -> Outcome<Vec<String>> {
        Ok(sqlx::query_scalar(LINES_OF).bind(table).bind(column).fetch_all(&self.control).await?)
    }

    /// What the new side has to have.
    pub(crate) async fn expected_lines(&self) -> Outcome<Vec<String>> {
        if self.shape.attached.is_none() {
            return Ok(Vec::new());
        }
        let column = if self.shape.is_table { "" } else { "old_c" };
        let mut lines = self.lines_of("subject", column).await?;
        // What is known of these is not judged: a trigger writes the first, and the second one is waived.
        lines.retain(|line| {
            !line.starts_with("column updated_at")
                && (self.shape.carries_key() || !line.contains("REFERENCES parents"))
        });
        Ok(lines.iter().map(|line| self.shape.moved(line)).collect())
    }

    /// Compares what is attached to the new side with what was attached to the old one.
    pub(crate) async fn judge_attached(&self, wish: &str) -> Outcome {
        if self.expected.is_empty() {
            return Ok(());
        }
        let gone = match self.shape.is_table {
            true => "select to_regclass('public.subject') is null",
            false => {
                "select not exists (select from pg_attribute where attrelid = 'subject'::regclass and attname = 'old_c')"
            }
        };
        let began = Instant::now();
        let waits = wish == "contract" && !self.shape.has_part;
        while waits
            && began.elapsed() < self.step
            && !sqlx::query_scalar::<_, bool>(gone).fetch_one(&self.control).await?
        {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        let found = self.lines_of(self.shape.new_table(), "").await?;
        let missing: Vec<&String> = self.expected.iter().filter(|line| !found.contains(line)).collect();
        if !missing.is_empty() {
            let text = format!("at {wish}: the new side lacks {missing:?}, it has {found:?}");
            self.fail(Kind::Schema, text);
        }
        Ok(())
    }

    /// The old table can only be dropped when nothing refers to it.
    pub(crate) async fn release_old_table(&self) -> Outcome {
        if self.shape.has_lines() {
            let drop = "alter table lines drop constraint of_subject";
            self.owner().await?.execute(AssertSqlSafe(drop)).await?;
        }
        Ok(())
    }

    /// Rows that refer to rows of the old table.
    pub(crate) async fn fill_lines(&self) -> Outcome {
        let mut statement = String::new();
        for number in self.shape.referred() {
            let (names, key) = (self.shape.key.names(), self.key(number));
            statement += &format!("insert into lines (line, {names}) values ({number}, {key}); ");
        }
        self.control.execute(AssertSqlSafe(statement)).await?;
        Ok(())
    }
}

/// Whether something can be attached to the old side of this shape, all of which has a counterpart on the new side.
pub(crate) fn can_attach(shape: &Shape) -> bool {
    let is_derived = match shape.is_table {
        true => shape.rust_pair.is_none() && !shape.old_default,
        false => !shape.has_second,
    };
    is_derived && shape.flaw.is_none() && !shape.is_apart && !shape.has_beside
}
