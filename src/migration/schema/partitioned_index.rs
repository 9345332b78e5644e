//! Indexes on partitioned tables.
//!
//! The server cannot build such an index concurrently. So the index of the partitioned table is created empty and invalid
//! (`ON ONLY`), each partition gets an index that is built concurrently, and these are attached. With the last one the
//! index of the table becomes valid. Partitions that are made later get theirs from the server.

use sqlx::{Connection, FromRow, PgConnection, PgPool};

use super::alter::alter;
use super::index::{Found, build, look};
use super::index_definition::Index;
use crate::ledger::{WORK, unprepared};
use crate::migration::catalog::quote;
use crate::migration::coordinator::PlanError;
use crate::migration::phase::Phase;
use crate::migration::runtime::Migration;

/// A partitioned table with its partitions of all levels.
#[derive(Debug)]
pub(super) struct Tree {
    /// The table itself first, and every other one behind the one that it is a partition of.
    nodes: Vec<Node>,
}

#[derive(Debug, FromRow)]
struct Node {
    relation: i64,
    parent: Option<i64>,
    is_leaf: bool,
    /// Quoted, with its schema.
    table: String,
    /// The quoted name of its schema.
    schema: String,
}

impl Tree {
    /// `None` if the table is not partitioned.
    pub(super) async fn load(
        connection: &mut PgConnection,
        table: &str,
    ) -> Result<Option<Self>, sqlx::Error> {
        let nodes: Vec<Node> = unprepared::query_as(
            "select p.relid::oid::bigint as relation, case when p.level > 0 then p.parentrelid::oid::bigint end as parent, \
                    p.isleaf as is_leaf, format('%I.%I', n.nspname, c.relname) as \"table\", \
                    quote_ident(n.nspname) as schema \
             from pg_class t cross join pg_partition_tree(t.oid) p join pg_class c on c.oid = p.relid \
             join pg_namespace n on n.oid = c.relnamespace \
             where t.oid = to_regclass($1) and t.relkind = 'p' order by p.level, c.oid",
        )
        .bind(table)
        .fetch_all(connection)
        .await?;
        Ok((!nodes.is_empty()).then_some(Self { nodes }))
    }

    /// Builds one index on all partitions and attaches them.
    pub(super) async fn build(
        &self,
        session: &mut PgConnection,
        pool: &PgPool,
        index: &Index,
        migration: &Migration,
    ) -> Result<(), PlanError> {
        let phase = migration.current().map_or(Phase::Verify, |(_, phase)| phase);
        for node in &self.nodes {
            let own = node.index(index);
            if node.is_leaf {
                build(session, pool, &node.table, &own, migration).await?;
            } else if matches!(look(pool, &node.table, &own, migration).await?, Found::Nothing) {
                alter(pool, &node.table, migration, phase, &own.create_on_only(&node.table)).await?;
            }
        }
        // From below, so that an index is valid when it is attached.
        for node in self.nodes.iter().rev() {
            let parent = self.nodes.iter().find(|other| Some(other.relation) == node.parent);
            let Some(parent) = parent else { continue };
            let qualified = |node: &Node| format!("{}.{}", node.schema, quote(&node.index(index).name));
            let (child, parent_index) = (qualified(node), qualified(parent));
            let mut tx = session.begin_with(WORK).await?;
            let is_attached = is_attached(&mut tx, &child).await?;
            tx.rollback().await?;
            if !is_attached {
                let attach = format!("alter index {parent_index} attach partition {child}");
                alter(pool, &node.table, migration, phase, &attach).await?;
            }
        }
        Ok(())
    }
}

impl Node {
    /// The index of this table. Names of partitions' indexes carry the partition's oid, so that two never meet.
    fn index(&self, index: &Index) -> Index {
        if self.parent.is_none() {
            return index.clone();
        }
        let suffix = format!("_{}", self.relation);
        let name: String = index.name.chars().take(63 - suffix.len()).collect();
        Index { name: name + &suffix, ..index.clone() }
    }
}

async fn is_attached(connection: &mut PgConnection, index: &str) -> Result<bool, sqlx::Error> {
    unprepared::query_scalar("select exists (select from pg_inherits where inhrelid = to_regclass($1))")
        .bind(index)
        .fetch_one(connection)
        .await
}
