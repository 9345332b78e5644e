//! The foreign keys that refer to the key. Their columns move with it.

use sqlx::{FromRow, PgConnection};

use super::builder::{Description, prefix};
use super::found::{Key, range};
use super::named_by::{claimed, interference, named_by};
use crate::ledger::key_mirror::Mirrored;
use crate::ledger::{sides, unprepared};
use crate::migration::batch::{Keyset, keyset};
use crate::migration::catalog::{PlanProblem, TableFacts, fit_name, outdated_order, quote, rename_away};

/// A foreign key that refers to the key as it is now.
#[derive(Debug, Clone, FromRow)]
pub(super) struct Referring {
    pub(super) relation: i64,
    /// The table that has it, quoted, with its schema.
    pub(super) table: String,
    pub(super) constraint: String,
    pub(super) definition: String,
    pub(super) is_valid: bool,
    pub(super) column: String,
    pub(super) column_type: String,
    pub(super) not_null: bool,
    pub(super) default: Option<String>,
    /// The number of its columns.
    columns: i32,
    is_plain_table: bool,
    is_owner: bool,
    owner: String,
    role: String,
    /// Its column is part of a primary key or a unique or exclusion constraint.
    is_in_key: bool,
    /// Another foreign key has the column, or refers to it.
    has_other_key: bool,
    has_wide: bool,
    pub(super) has_narrow: bool,
}

impl Referring {
    /// Whether its column has a second one. One that is `bigint` from the beginning only gets another foreign key.
    pub(super) fn moves(&self) -> bool {
        self.has_wide || self.has_narrow || self.column_type != "bigint"
    }

    /// Whether `expand` has added the second column.
    pub(super) fn has_second(&self) -> bool {
        self.has_wide || self.has_narrow
    }

    /// The name of the second column before the exchange of the key, or after it.
    pub(super) fn second(&self, is_exchanged: bool) -> String {
        match (self.moves(), is_exchanged) {
            (false, _) => self.column.clone(),
            (true, false) => format!("{}_bigint", self.column),
            (true, true) => format!("{}_old", self.column),
        }
    }

    /// The foreign key between the second columns, before it takes the place of this one.
    pub(super) fn prepared(&self, id: &str) -> String {
        fit_name(format!("{}{}", prefix(id), self.constraint))
    }
}

/// The tables of which columns get another type.
pub(super) fn relations_of(key: &Key, referring: &[Referring]) -> Vec<i64> {
    let others = referring.iter().filter(|one| one.moves()).map(|one| one.relation);
    std::iter::once(key.relation).chain(others).collect()
}

/// The columns that a trigger keeps equal, the key's own first, before the exchange or after it. `key_type`: the key's
/// present type.
pub(super) fn mirrored(
    plan: &Description,
    (table, key_type): (&str, &str),
    referring: &[Referring],
    is_exchanged: bool,
) -> Vec<Mirrored> {
    let key = if is_exchanged { &plan.narrow } else { &plan.wide };
    // Until the exchange, the columns have the types that the second ones have from then on.
    let range = |sql_type: &str| is_exchanged.then(|| range(sql_type));
    let mut found = vec![Mirrored {
        table: table.to_owned(),
        column: quote(&plan.column),
        target: quote(key),
        range: range(key_type),
    }];
    for one in referring.iter().filter(|one| one.moves()) {
        let (column, target) = (quote(&one.column), quote(&one.second(is_exchanged)));
        if !found.iter().any(|known| known.table == one.table && known.column == column) {
            let range = range(&one.column_type);
            found.push(Mirrored { table: one.table.clone(), column, target, range });
        }
    }
    found
}

/// The key by which the rows of a table (quoted) can be visited, or why there is none.
pub(super) async fn key_of(
    table: &str,
    connection: &mut PgConnection,
) -> Result<Result<Keyset, PlanProblem>, sqlx::Error> {
    let key = match keyset::find(&mut *connection, table, &[]).await? {
        Ok(key) => key,
        // The column of the foreign key cannot be part of it.
        Err(reasons) => {
            return Ok(Err(PlanProblem::blocking(
                format!("{table}: {}", reasons.join("; ")),
                format!(
                    "`alter table {table} add column row_id bigserial unique`, which rewrites the table and blocks its readers \
                     and writers meanwhile"
                ),
            )));
        }
    };
    let outdated = outdated_order(connection, table, &key.plain_names()).await?;
    Ok(outdated.into_iter().next().map_or(Ok(key), Err))
}

pub(super) async fn find(
    plan: &Description,
    key: &Key,
    migration: Option<i32>,
    connection: &mut PgConnection,
) -> Result<Vec<Referring>, sqlx::Error> {
    let has = |suffix: &str| {
        format!(
            "exists (select from pg_attribute w where w.attrelid = c.oid and not w.attisdropped \
             and w.attname = a.attname || '{suffix}')"
        )
    };
    let query = format!(
        "select c.oid::bigint as relation, format('%I.%I', n.nspname, c.relname) as \"table\", \
                k.conname::text as \"constraint\", pg_get_constraintdef(k.oid) as definition, k.convalidated as is_valid, \
                a.attname::text as \"column\", format_type(a.atttypid, a.atttypmod) as column_type, \
                a.attnotnull as not_null, pg_get_expr(d.adbin, d.adrelid) as \"default\", cardinality(k.conkey) as columns, \
                c.relkind = 'r' and not exists (select from pg_inherits i where c.oid in (i.inhrelid, i.inhparent)) \
                    as is_plain_table, \
                pg_has_role(c.relowner, 'usage') as is_owner, quote_ident(pg_get_userbyid(c.relowner)) as owner, \
                quote_ident(current_user) as role, \
                exists (select from pg_constraint u where u.conrelid = c.oid and u.contype in ('p', 'u', 'x') \
                    and a.attnum = any (u.conkey)) as is_in_key, \
                exists (select from pg_constraint f where f.contype = 'f' and f.oid <> k.oid \
                    and (f.conrelid = c.oid and a.attnum = any (f.conkey) and f.confrelid <> k.confrelid \
                        or f.confrelid = c.oid and a.attnum = any (f.confkey))) as has_other_key, \
                {} as has_wide, {} as has_narrow \
         from pg_constraint k join pg_class c on c.oid = k.conrelid join pg_namespace n on n.oid = c.relnamespace \
         join pg_attribute a on a.attrelid = c.oid and a.attnum = k.conkey[1] \
         left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum \
         where k.contype = 'f' and k.conparentid = 0 and k.confrelid = $1::oid \
           and (select attnum from pg_attribute where attrelid = $1::oid and attname = $2) = any (k.confkey) \
           and not starts_with(k.conname, $3) \
         order by c.oid, k.conname",
        has("_bigint"),
        has("_old")
    );
    unprepared::query_as(sqlx::AssertSqlSafe(query))
        .bind(key.relation)
        .bind(&plan.column)
        .bind(prefix(&migration.unwrap_or_default().to_string()))
        .fetch_all(connection)
        .await
}

/// What stands against moving the columns of these foreign keys. `is_recorded`: `expand` has run.
pub(super) async fn problems(
    (plan, key): (&Description, &Key),
    referring: &[Referring],
    (migration, is_recorded): (Option<i32>, bool),
    connection: &mut PgConnection,
) -> Result<Vec<PlanProblem>, sqlx::Error> {
    let mut problems = Vec::new();
    for one in referring {
        let Referring { table, column, owner, role, .. } = one;
        let what = format!("foreign key {} of {table}", quote(&one.constraint));
        let drop = format!("`alter table {table} drop constraint {}`", quote(&one.constraint));
        let apart = format!(
            "{drop}, give column {} the type bigint by a migration of its own, and add the key again with a `SchemaChange` \
             when both have ended",
            quote(column)
        );
        let mut refuse = |reason: String, remedy: &str| {
            problems.push(PlanProblem::blocking(format!("{what} {reason}"), remedy));
        };
        if one.columns > 1 {
            refuse(format!("names column {} of {} and others", quote(&plan.column), plan.table), &apart);
            continue;
        }
        if !one.is_owner {
            let remedy = format!("`grant {owner} to {role}`, or {drop} for the time of the migration");
            refuse(
                format!("refers to the key, and role {role} may not change {table}, which {owner} owns"),
                &remedy,
            );
        }
        if !one.is_plain_table {
            refuse("belongs to a partitioned table, a partition, or an inheritance tree".to_owned(), &apart);
        }
        if one.is_in_key || one.has_other_key {
            let reason =
                "has a column that is part of another key, so several keys would have to move at once";
            refuse(reason.to_owned(), &apart);
        }
        if !one.moves() {
            continue;
        }
        if !["integer", "smallint"].contains(&&*one.column_type) && !is_recorded {
            refuse(format!("has a column of type {}, and not `integer`", one.column_type), &apart);
        }
        if is_recorded && !one.has_wide && !one.has_narrow {
            let remedy = format!("{drop}, and add it again when the migration has ended");
            refuse("was added while the key moves".to_owned(), &remedy);
        }
        for (name, exists) in [("bigint", one.has_wide), ("old", one.has_narrow)] {
            if exists && !is_recorded {
                let name = format!("{column}_{name}");
                refuse(
                    format!("has a table with a column {}, and the migration needs the name", quote(&name)),
                    &rename_away(table, &name),
                );
            }
        }
        if column.len() > 54 {
            refuse(
                "has a column with a name of more than 54 letters, to which `_bigint` is added".to_owned(),
                &apart,
            );
        }
        for other in sides::other_users(connection, migration, table, Some(column)).await? {
            problems.push(claimed(other, table, column));
        }
        // The key's own table is looked at with the key.
        if let Some(facts) =
            TableFacts::read(&mut *connection, table).await?.filter(|_| one.relation != key.relation)
        {
            problems.extend(interference(table, &facts));
        }
        let named = named_by(table, column, one.relation, connection).await?;
        problems.extend(
            named
                .into_iter()
                .filter(|(kind, _)| !["foreign key", "index"].contains(&&**kind))
                .map(|(_, problem)| problem),
        );
    }
    Ok(problems)
}
