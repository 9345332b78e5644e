//! What the catalog says about the table of a change, and how far the change has come.

use sqlx::{FromRow, PgConnection};

use super::addition::Addition;
use super::description::{Description, Removal};
use crate::ledger::sides::SideRow;
use crate::ledger::{sides, unprepared, write_watch};

/// The table of a change as it is now.
#[derive(Debug, Clone, FromRow)]
pub(super) struct Table {
    pub(super) relation: i64,
    /// Quoted, with its schema.
    pub(super) name: String,
    pub(super) is_partitioned: bool,
    /// Its partitions that hold rows, quoted, with their schemas.
    pub(super) leaves: Vec<String>,
}

/// A constraint of the change as it is now.
#[derive(Debug, Clone, Copy, FromRow)]
pub(super) struct Built {
    /// The constraint or its index exists, on the table or on a partition.
    pub(super) is_present: bool,
    pub(super) has_constraint: bool,
    pub(super) has_index: bool,
    pub(super) is_not_null: bool,
}

impl Built {
    /// The server refuses every row that violates it, and no row does.
    pub(super) fn is_in_force(self, addition: &Addition) -> bool {
        match addition {
            Addition::NotNull { .. } => self.is_not_null || self.has_constraint,
            Addition::Unique { .. } => self.has_index,
            Addition::Check { .. } | Addition::ForeignKey(_) => self.has_constraint,
        }
    }

    /// Nothing is left to do.
    pub(super) fn is_complete(self, addition: &Addition, is_partitioned: bool) -> bool {
        match addition {
            Addition::NotNull { .. } => self.is_not_null && !self.is_present,
            Addition::Unique { .. } => self.has_index && (self.has_constraint || is_partitioned),
            Addition::Check { .. } | Addition::ForeignKey(_) => self.has_constraint,
        }
    }
}

/// How far a change has come.
#[derive(Debug)]
pub(super) struct Progress {
    pub(super) built: Vec<Built>,
    pub(super) is_dropped: bool,
    pub(super) is_complete: bool,
    /// Triggers of the migration are left.
    pub(super) is_watched: bool,
    /// The expand step has recorded the table.
    pub(super) is_recorded: bool,
}

impl Description {
    /// The table: the recorded one, under whatever name it has now, or the one with the described name.
    pub(super) async fn find(
        &self,
        connection: &mut PgConnection,
        migration: Option<i32>,
    ) -> Result<Option<Table>, sqlx::Error> {
        let recorded = sides::find(&mut *connection, migration).await?.map(|sides| sides.new.relation);
        unprepared::query_as(
            "select c.oid::bigint as relation, format('%I.%I', n.nspname, c.relname) as name, \
                    c.relkind = 'p' as is_partitioned, \
                    array(select format('%I.%I', s.nspname, l.relname) from pg_partition_tree(c.oid) p \
                        join pg_class l on l.oid = p.relid join pg_namespace s on s.oid = l.relnamespace \
                        where p.isleaf and l.oid <> c.oid order by l.oid) as leaves \
             from pg_class c join pg_namespace n on n.oid = c.relnamespace \
             where c.oid = coalesce($1::oid, to_regclass($2)::oid) and c.relkind in ('r', 'p')",
        )
        .bind(recorded)
        .bind(&self.table)
        .fetch_optional(connection)
        .await
    }

    pub(super) async fn built(
        &self,
        connection: &mut PgConnection,
        table: &Table,
        migration: i32,
    ) -> Result<Vec<Built>, sqlx::Error> {
        let mut built = Vec::new();
        for (number, addition) in self.additions.iter().enumerate() {
            let column = match addition {
                Addition::NotNull { column } => Some(column),
                _ => None,
            };
            let one = unprepared::query_as(
                "with tree (oid) as (select $1::oid union select relid::oid from pg_partition_tree($1::oid)) \
                 select exists (select from pg_constraint k join tree on tree.oid = k.conrelid where k.conname = $2) \
                     or exists (select from pg_index i join pg_class c on c.oid = i.indexrelid \
                         where i.indrelid = $1::oid and c.relname = $2) as is_present, \
                 exists (select from pg_constraint where conrelid = $1::oid and conname = $2 and convalidated) \
                     as has_constraint, \
                 exists (select from pg_index i join pg_class c on c.oid = i.indexrelid where i.indrelid = $1::oid \
                     and c.relname = $2 and i.indisunique and i.indisvalid and i.indisready) as has_index, \
                 exists (select from pg_attribute where attrelid = $1::oid and attname = $3 and attnotnull \
                     and not attisdropped) as is_not_null",
            )
            .bind(table.relation)
            .bind(addition.name(&migration.to_string(), number))
            .bind(column)
            .fetch_one(&mut *connection)
            .await?;
            built.push(one);
        }
        Ok(built)
    }

    /// `None` if the table does not exist.
    pub(super) async fn progress(
        &self,
        connection: &mut PgConnection,
        migration: Option<i32>,
    ) -> Result<Option<Progress>, sqlx::Error> {
        let recorded = sides::find(&mut *connection, migration).await?;
        let old = recorded.as_ref().map(|sides| &sides.old);
        let is_dropped = self.is_dropped(connection, old).await?;
        let is_recorded = recorded.is_some();
        let is_watched = match migration {
            Some(migration) => write_watch::is_left(connection, migration).await?,
            None => false,
        };
        let Some(table) = self.find(connection, migration).await? else {
            let is_gone = self.removal == Some(Removal::Table);
            let built = Vec::new();
            return Ok(is_gone.then_some(Progress {
                built,
                is_dropped: true,
                is_complete: true,
                is_watched,
                is_recorded,
            }));
        };
        let built = self.built(connection, &table, migration.unwrap_or_default()).await?;
        let all = self.additions.iter().zip(&built);
        let is_complete = is_dropped
            && all.into_iter().all(|(addition, one)| one.is_complete(addition, table.is_partitioned));
        Ok(Some(Progress { built, is_dropped, is_complete, is_watched, is_recorded }))
    }

    /// Whether what the change drops is gone. `true` if it drops nothing.
    async fn is_dropped(
        &self,
        connection: &mut PgConnection,
        recorded: Option<&SideRow>,
    ) -> Result<bool, sqlx::Error> {
        let Some(old_side) = self.old_side() else { return Ok(true) };
        if let Some(recorded) = recorded {
            return Ok(!recorded.is_there);
        }
        unprepared::query_scalar(
            "select not exists (select from pg_attribute where attrelid = to_regclass($1) and not attisdropped \
                 and (cardinality($2) = 0 or attname = any ($2)))",
        )
        .bind(&old_side.table)
        .bind(&old_side.columns)
        .fetch_one(connection)
        .await
    }
}
