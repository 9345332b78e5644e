//! What the catalog says about the key and its second column.

use sqlx::{FromRow, PgConnection};

use super::builder::{Description, prefix};
use crate::ledger::unprepared;
use crate::migration::catalog::{quote, rename_columns};

/// The table's key as it is now. `None` in a field of the second column: it does not exist.
#[derive(Debug, Clone, FromRow)]
pub(super) struct Key {
    pub(super) relation: i64,
    /// The table, quoted, with its schema.
    pub(super) table: String,
    /// The key's type.
    pub(super) key_type: String,
    /// The name of the primary key's constraint; `None` if the column is not the primary key by itself.
    pub(super) constraint: Option<String>,
    /// `a` or `d` for an identity column, empty for others.
    pub(super) identity: String,
    /// The sequence that the key owns, with its schema, and how it counts.
    pub(super) sequence: Option<String>,
    #[sqlx(flatten)]
    pub(super) counting: Counting,
    /// The type of the column that becomes the key with the next exchange.
    pub(super) second_type: String,
    /// The definition of the primary key's index after `USING`.
    pub(super) index: Option<String>,
    pub(super) is_deferrable: bool,
    /// The key's default, as SQL; `None` for an identity.
    pub(super) default: Option<String>,
    pub(super) has_wide: bool,
    pub(super) has_narrow: bool,
    pub(super) is_guarded: bool,
    /// A foreign key between second columns waits for the exchange.
    pub(super) is_prepared: bool,
}

/// How the key's sequence counts.
#[derive(Debug, Clone, Default, FromRow)]
pub(super) struct Counting {
    seqincrement: Option<i64>,
    seqmin: Option<i64>,
    seqmax: Option<i64>,
    seqstart: Option<i64>,
    seqcache: Option<i64>,
    seqcycle: Option<bool>,
}

/// The values that a type can hold.
pub(super) fn range(sql_type: &str) -> (i64, i64) {
    match sql_type {
        "smallint" => (i16::MIN.into(), i16::MAX.into()),
        "integer" => (i32::MIN.into(), i32::MAX.into()),
        _ => (i64::MIN, i64::MAX),
    }
}

impl Counting {
    /// The options of an identity that counts on in a column of another type. As with `ALTER SEQUENCE … AS`, a bound that was
    /// that of the old type becomes that of the new one.
    pub(super) fn options(&self, sequence: &str, from: &str, to: &str) -> String {
        let (old, new) = (range(from), range(to));
        let bound = |value: Option<i64>, old: i64, new: i64| match value {
            Some(value) if value != old => value,
            _ => new,
        };
        let (min, max) = (bound(self.seqmin, old.0, new.0), bound(self.seqmax, old.1, new.1));
        let cycle = if self.seqcycle == Some(true) { " cycle" } else { "" };
        format!(
            "sequence name {sequence} increment by {} minvalue {min} maxvalue {max} start with {} cache {}{cycle}",
            self.seqincrement.unwrap_or(1),
            self.seqstart.unwrap_or(1),
            self.seqcache.unwrap_or(1)
        )
    }
}

impl Key {
    /// The columns have been exchanged: the key has the new type.
    pub(super) fn is_exchanged(&self) -> bool {
        self.key_type == "bigint"
    }

    /// The name of the second column, which becomes the key with the next exchange.
    pub(super) fn second<'a>(&self, plan: &'a Description) -> &'a str {
        if self.is_exchanged() { &plan.narrow } else { &plan.wide }
    }
}

impl Key {
    /// The primary key's index with the second column in the place of the key, as what follows `ON table`.
    pub(super) fn index_on(&self, plan: &Description, second: &str) -> String {
        let on = self.index.clone().unwrap_or_else(|| format!("btree ({})", quote(&plan.column)));
        format!("using {}", rename_columns(&on, |column| (*column == plan.column).then(|| quote(second))))
    }
}

/// `None` if the table or the column does not exist. `migration`: the id, by which the trigger is recognized.
pub(super) async fn find(
    plan: &Description,
    migration: Option<i32>,
    connection: &mut PgConnection,
) -> Result<Option<Key>, sqlx::Error> {
    unprepared::query_as(
        "select c.oid::bigint as relation, coalesce(k.condeferrable, false) as is_deferrable, \
                split_part(pg_get_indexdef(k.conindid), ' USING ', 2) as \"index\", \
                coalesce((select format_type(w.atttypid, w.atttypmod) from pg_attribute w where w.attrelid = c.oid \
                    and w.attname = $4 and not w.attisdropped and a.atttypid = 'bigint'::regtype), 'bigint') as second_type, format('%I.%I', n.nspname, c.relname) as \"table\", \
                format_type(a.atttypid, a.atttypmod) as key_type, a.attidentity::text as identity, \
                k.conname::text as \"constraint\", \
                case when s.oid is not null then format('%I.%I', sn.nspname, s.relname) end as sequence, \
                q.seqincrement, q.seqmin, q.seqmax, q.seqstart, q.seqcache, q.seqcycle, \
                case when a.attidentity = '' then pg_get_expr(d.adbin, d.adrelid) end as \"default\", \
                exists (select from pg_attribute w where w.attrelid = c.oid and w.attname = $3 and not w.attisdropped) \
                    as has_wide, \
                exists (select from pg_attribute w where w.attrelid = c.oid and w.attname = $4 and not w.attisdropped) \
                    as has_narrow, \
                exists (select from pg_trigger t join pg_proc p on p.oid = t.tgfoid \
                    join pg_namespace g on g.oid = p.pronamespace and g.nspname = 'cutover' \
                    where t.tgrelid = c.oid and p.proname = 'guard_' || $5::text and t.tgenabled = 'A') as is_guarded, \
                exists (select from pg_constraint k where k.contype = 'f' and k.confrelid = c.oid \
                    and starts_with(k.conname, $6)) as is_prepared \
         from pg_class c join pg_namespace n on n.oid = c.relnamespace \
         join pg_attribute a on a.attrelid = c.oid and a.attname = $2 and not a.attisdropped \
         left join pg_constraint k on k.conrelid = c.oid and k.contype = 'p' and k.conkey = array[a.attnum] \
         left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum \
         left join pg_depend o on o.classid = 'pg_class'::regclass and o.refclassid = 'pg_class'::regclass \
             and o.refobjid = c.oid and o.refobjsubid = a.attnum and o.deptype in ('a', 'i') \
             and exists (select from pg_class x where x.oid = o.objid and x.relkind = 'S') \
         left join pg_class s on s.oid = o.objid left join pg_namespace sn on sn.oid = s.relnamespace \
         left join pg_sequence q on q.seqrelid = s.oid \
         where c.oid = to_regclass($1) limit 1",
    )
    .bind(&plan.table)
    .bind(&plan.column)
    .bind(&plan.wide)
    .bind(&plan.narrow)
    .bind(migration.unwrap_or_default().to_string())
    .bind(prefix(&migration.unwrap_or_default().to_string()))
    .fetch_optional(connection)
    .await
}
