//! What the catalog says about tables, as text to compare.

use sqlx::PgPool;

use crate::KitError;

/// Everything that the catalog says about the tables of the schemas in `$1`, except second columns and what is on them.
const PICTURE: &str = "with tables as (select c.oid, c.oid::regclass::text as name, c.relowner from pg_class c \
        where c.relnamespace = any ($1::regnamespace[]) and c.relkind in ('r', 'p')), \
    columns as (select a.*, t.name from tables t join pg_attribute a on a.attrelid = t.oid \
        where a.attnum > 0 and not a.attisdropped and a.attname !~ '_(bigint|old)$') \
    select regexp_replace(line, '(by_.*)_[0-9]{4,}', '\\1_of_partition') as line from ( \
        select format('column %s.%s %s%s default %s identity %s comment %s target %s options %s', name, attname, \
            format_type(atttypid, atttypmod), case when attnotnull then ' not null' end, \
            (select pg_get_expr(adbin, adrelid) from pg_attrdef where adrelid = attrelid and adnum = attnum), attidentity, \
            col_description(attrelid, attnum), nullif(attstattarget, -1), attoptions) as line from columns \
        union all select format('constraint %s of %s %s valid %s comment %s', k.conname, t.name, pg_get_constraintdef(k.oid), \
            k.convalidated, obj_description(k.oid, 'pg_constraint')) from pg_constraint k join tables t on t.oid = k.conrelid \
            where k.contype <> 'n' \
        union all select format('index %s clustered %s comment %s', pg_get_indexdef(i.indexrelid), i.indisclustered, \
            obj_description(i.indexrelid, 'pg_class')) from pg_index i join tables t on t.oid = i.indrelid \
            where not exists (select from pg_attribute a where a.attrelid = i.indrelid and a.attnum = any (i.indkey::int2[]) and a.attname ~ '_(bigint|old)$') \
        union all select format('sequence %s.%s %s from %s by %s in %s..%s cache %s cycle %s of %s rights %s comment %s', s.schemaname, \
            s.sequencename, s.data_type, s.start_value, s.increment_by, s.min_value, s.max_value, s.cache_size, s.cycle, \
            (select a.attname from pg_depend d join pg_attribute a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid \
                where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype in ('a', 'i')), c.relacl, \
            obj_description(c.oid, 'pg_class')) \
            from pg_sequences s join pg_class c on c.oid = format('%I.%I', s.schemaname, s.sequencename)::regclass \
            where c.relnamespace = any ($1::regnamespace[])) as found order by line collate \"C\"";

/// What the catalog says about the tables of these schemas, a line for each object, except the second columns of a key.
///
/// # Errors
///
/// [`KitError::Sql`] if the query fails.
pub async fn picture(pool: &PgPool, schemas: &[&str]) -> Result<Vec<String>, KitError> {
    let lines = sqlx::query_scalar(PICTURE).bind(schemas).fetch_all(pool).await;
    lines.map_err(KitError::sql("read the catalog"))
}

/// The [`picture`] of a key once it is `bigint`: only its type, and the range of its sequence, differ. Each column of type
/// `integer` or `smallint` has to be the key or to refer to it.
#[must_use]
pub fn widened(before: &[String]) -> Vec<String> {
    before
        .iter()
        .map(|line| {
            let (integer, smallint) = ("-2147483648..2147483647", "-32768..32767");
            line.replacen(" integer", " bigint", 1)
                .replacen(" smallint", " bigint", 1)
                .replacen(integer, "-9223372036854775808..9223372036854775807", 1)
                .replacen(smallint, "-9223372036854775808..9223372036854775807", 1)
                .replacen("1..2147483647", "1..9223372036854775807", 1)
                .replacen("1..32767", "1..9223372036854775807", 1)
        })
        .collect()
}
