//! Table `guard_looks`: whether rows may have been written past the guard trigger.
//!
//! A trigger does not see what is written while it is disabled, rows of a table that becomes or ceases to be a partition, what
//! `alter table … type … using` makes of the rows, or what a trigger that fires later makes of them. Each of these changes rows
//! of the catalog, even if it is undone in the same transaction. The driver remembers their versions (`xmin`).

use std::sync::LazyLock;

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use super::{guard_triggers, unprepared};

/// What the values of both sides depend on besides the rows, each with its present version: functions that the mapping calls
/// (`p`), labels of enums (`e`), the check at commit (`c`), and up to `ramp` the file of a new table (`t`) and what decides which of its rows a write reaches (`g`).
///
/// The function of the guard trigger names each function and type of the mapping with its schema. A label that is added changes
/// no value.
fn uses() -> String {
    [
            "with guard as (select p.prosrc as source from pg_proc p where p.proname = 'guard_' || $1::integer \
                and p.pronamespace = (select oid from pg_namespace where nspname = 'cutover')), \
             sides as (select s.relation::oid as relation, s.column_numbers, s.side = 'new' \
                    and m.phase in ('expand', 'backfill', 'verify', 'ramp') and not exists (select from cutover.sides o \
                        where o.migration_id = $1 and o.side = 'old' and o.relation = s.relation) as is_copy \
                from cutover.sides s join cutover.migrations m on m.id = s.migration_id where s.migration_id = $1), \
             copies as (select coalesce(p.relid, s.relation)::oid as relation from sides s \
                left join lateral pg_partition_tree(s.relation) p on true where s.is_copy) \
             select 'p' || p.oid as key, md5(case p.prokind when 'a' then p.xmin::text else pg_get_functiondef(p.oid) end) as value \
                 from guard g join pg_proc p on true \
                 join pg_namespace n on n.oid = p.pronamespace and n.nspname not in ('pg_catalog', 'cutover') \
                 where strpos(g.source, format('%I.%I(', n.nspname, p.proname)) > 0 \
             union all select 'e' || e.oid, e.enumlabel from pg_enum e where e.enumtypid in (select a.atttypid \
                     from sides s join pg_attribute a on a.attrelid = s.relation and a.attnum > 0 and not a.attisdropped \
                         and (s.column_numbers is null or a.attnum = any (s.column_numbers))) \
                 or exists (select from guard g, pg_type t join pg_namespace n on n.oid = t.typnamespace \
                     where t.oid = e.enumtypid and strpos(g.source, format('%I.%I', n.nspname, t.typname)) > 0) \
             ",
            check_at_commit(),
            "union all select 't' || c.oid, c.relfilenode::text from copies join pg_class c on c.oid = copies.relation \
             union all select 'g', concat_ws(';', (select string_agg(t.oid || ' ' || t.xmin, ' ' order by t.oid) \
                     from copies join pg_trigger t on t.tgrelid = copies.relation and not t.tgisinternal and ",
            guard_triggers::may_change_rows!("t"),
            "), (select string_agg(r.oid || ' ' || r.xmin, ' ' order by r.oid) \
                     from copies join pg_rewrite r on r.ev_class = copies.relation and r.ev_type <> '1'), \
                 (select string_agg(p.oid || ' ' || p.xmin, ' ' order by p.oid) \
                     from copies join pg_policy p on p.polrelid = copies.relation), \
                 (select string_agg(concat_ws(' ', c.oid, c.relrowsecurity, c.relforcerowsecurity), ',' order by c.oid) \
                     from copies join pg_class c on c.oid = copies.relation)) where exists (select from copies)",
    ]
    .concat()
}

/// It compares rows that another transaction changes between the two statements of a write.
fn check_at_commit() -> &'static str {
    concat!(
        "union all select 'c', string_agg(t.oid || ' ' || t.xmin, ' ' order by t.oid) from pg_trigger t \
             where t.tgname = '",
        guard_triggers::prefix!(),
        "' || $1::integer || '_commit' and t.tgparentid = 0 having count(*) > 0 "
    )
}

/// A partition that came after the triggers has none for `truncate`, which changes its file.
fn may_be_truncated() -> &'static str {
    "bool_or(t.tgname like '%nested') and not bool_or(t.tgtype & 32 <> 0)"
}

/// `$1`: the migration. `$2`: whether a scan may have passed rows already.
///
/// `now`: per table with guard triggers, the versions of these triggers and of the columns of both sides, and the table's
/// file. A statement that rewrites a column's values changes both the column and the file. `vacuum full` changes the file
/// only, and `set default` the column only. A partition that was created as one has no row that came past its triggers: they
/// are as old as its row type, and so are its columns, whose defaults the next command of the transaction sets. If a table is
/// attached as a partition, each of its columns changes, and not before the command after its creation.
static LOOK: LazyLock<String> = LazyLock::new(|| {
    [
    "\
with guards as (select t.tgrelid as relation, bool_or(t.tgenabled <> 'A') as is_disabled, \
        string_agg(t.xmin::text, ' ' order by t.tgname) as triggers, bool_and(t.xmin = y.xmin) and exists ( \
            select from pg_attribute a where a.attrelid = t.tgrelid and a.attnum > 0 and a.xmin = any (array_agg(y.xmin)) \
                and a.cmin::text::bigint <= min(y.cmin::text::bigint) + 1) as is_created_as_partition, \
        bool_or(t.tgname like '%row' and t.tgtype & 2 <> 0) and exists (select from pg_trigger l \
            join pg_proc lp on lp.oid = l.tgfoid join pg_namespace ln on ln.oid = lp.pronamespace \
            where l.tgrelid = t.tgrelid and not l.tgisinternal and ln.nspname <> 'cutover' and ",
    guard_triggers::may_change_rows!("l"),
    " and l.tgname > $3::name) as is_early, \
        ",
    may_be_truncated(),
    " as may_be_truncated, \
        max(c.relfilenode) as file \
    from pg_trigger t join pg_proc p on p.oid = t.tgfoid join pg_namespace n on n.oid = p.pronamespace \
    join pg_class c on c.oid = t.tgrelid left join pg_type y on y.oid = c.reltype \
    where n.nspname = 'cutover' and p.proname = 'guard_' || $1::integer group by t.tgrelid), \
moving as (select a.attname as name from cutover.sides s join pg_attribute a on a.attrelid = s.relation \
        and a.attnum = any (s.column_numbers) and not a.attisdropped where s.migration_id = $1), \
now as (select g.*, (select string_agg(a.xmin::text, ' ' order by a.attnum) from pg_attribute a \
        where a.attrelid = g.relation and a.attnum > 0 and not a.attisdropped \
            and (a.attname in (select name from moving) or not exists (select from moving))) as columns from guards g), \
uses as (select coalesce(jsonb_object_agg(u.key, u.value), '{}') as uses from (",
    &uses(),
    ") u), \
known as (select seen, uses from cutover.guard_looks where migration_id = $1), \
taken_away as (select format('partition %s was detached or dropped', known_as.oid::regclass) as what, false as is_disabled \
    from known k cross join lateral (select key::oid as oid from jsonb_object_keys(k.seen) as key) as known_as \
    where $2 and not exists (select from now n where n.relation = known_as.oid) \
        and exists (select from now n join cutover.sides o on o.relation = n.relation and o.side = 'old' \
            join cutover.sides s on s.migration_id = o.migration_id and s.side = 'new' and s.relation <> o.relation \
            where o.migration_id = $1)), \
other_values as (select case left(o.key, 1) when 'p' then format('function %s was replaced', substr(o.key, 2)::oid::regprocedure) \
            when 'e' then format('a value of enum %s was renamed or dropped', (select enumtypid::regtype \
                from pg_enum where oid = substr(o.key, 2)::oid)) \
            when 't' then format('table %s was truncated or rewritten', substr(o.key, 2)::oid::regclass) \
            when 'c' then 'the check at commit was dropped, disabled or replaced' \
            else 'a trigger, rule or policy of the new table, or its row security, was changed' end as what, false as is_disabled \
    from known k cross join uses n cross join lateral jsonb_each_text(k.uses) as o \
    where $2 and n.uses ->> o.key is distinct from o.value and (o.key !~ '^[tg]' or n.uses ? o.key) order by o.key limit 1), \
unseen as (select * from taken_away union all select * from other_values union all (select format(case when n.is_disabled then 'the guard trigger of %1$s was disabled' \
            when n.is_early then 'another trigger of %1$s fired after the guard trigger' \
            when old.seen is null then 'table %1$s was attached as a partition' \
            when old.seen ->> 0 <> n.triggers then 'the guard trigger of %1$s was disabled or replaced' \
            when n.may_be_truncated and old.seen ->> 2 <> n.file::text then 'table %1$s was truncated or rewritten' \
            else 'columns of %1$s were rewritten' end, n.relation::regclass) as what, n.is_disabled \
    from now n left join known k on true cross join lateral (select k.seen -> n.relation::text as seen) as old \
    where n.is_disabled or n.is_early or k.seen is not null and $2 and ( \
        old.seen is null and not n.is_created_as_partition or old.seen ->> 0 <> n.triggers \
        or (old.seen ->> 1 <> n.columns or n.may_be_truncated) and old.seen ->> 2 <> n.file::text) \
    order by 1 limit 1) limit 1), \
recorded as (insert into cutover.external_write_events (migration_id, application, role, mirrored) \
    select $1, case when is_disabled then 'unknown, while the guard trigger is disabled' else 'unknown: ' || what end, \
        'unknown', false from unseen), \
looked as (select coalesce(jsonb_object_agg(n.relation::text, jsonb_build_array(n.triggers, n.columns, n.file::text)), '{}') as seen \
    from now n) \
insert into cutover.guard_looks as l (migration_id, seen, uses, unseen_writes_at, unseen_writes_by) \
    select $1, seen, uses, (select clock_timestamp() from unseen), (select what from unseen) from looked, uses \
    on conflict (migration_id) do update set seen = excluded.seen, uses = excluded.uses, \
        unseen_writes_at = coalesce(excluded.unseen_writes_at, l.unseen_writes_at), \
        unseen_writes_by = coalesce(excluded.unseen_writes_by, l.unseen_writes_by) \
    where l.seen <> excluded.seen or l.uses <> excluded.uses or excluded.unseen_writes_at is not null \
    returning exists (select from now n join known k on k.seen -> n.relation::text ->> 1 <> n.columns)",
]
    .concat()
});

/// `$1`: the migration.
///
/// Everything that [`LOOK`] reads, in one number. To plan this takes a fifth of the time that it takes to plan that query. The
/// versions of rows of `pg_proc` are not part of it: a look before a move reads them.
const SIGNATURE: &str = concat!(
    "select hashtextextended(concat( \
        (select string_agg(concat_ws(' ', oid, xmin, tgrelid), ',' order by oid) \
            from pg_trigger where tgrelid = any (g.relations)), ';', \
        (select string_agg(concat_ws(' ', attrelid, attnum, xmin), ',' order by attrelid, attnum) \
            from pg_attribute where attrelid = any (g.relations) and attnum > 0), ';', \
        (select string_agg(concat_ws(' ', oid, relfilenode, relrowsecurity, relforcerowsecurity), ',' order by oid) \
            from pg_class where oid = any (g.relations)), ';', \
        (select string_agg(concat_ws(' ', oid, xmin), ',' order by oid) \
            from pg_rewrite where ev_class = any (g.relations)), ';', \
        (select string_agg(concat_ws(' ', oid, xmin), ',' order by oid) \
            from pg_policy where polrelid = any (g.relations)), ';', \
        (select string_agg(concat_ws(' ', side, xmin), ',' order by side) \
            from cutover.sides where migration_id = $1), ';', \
        (select xmin from cutover.guard_looks where migration_id = $1)), 0) \
     from (select array(select distinct tgrelid from pg_trigger where starts_with(tgname::text, '",
    guard_triggers::prefix!(),
    "' || $1 || '_') union select relation from cutover.sides where migration_id = $1) as relations) g"
);

/// What the last look saw, if it found nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    migration: i32,
    is_compared: bool,
    signature: i64,
}

/// Does the same as [`look`], unless the last look found nothing and the catalog is still the same. The driver calls this in
/// each step.
pub(crate) async fn look_again(
    tx: &mut PgConnection,
    migration: i32,
    is_compared: bool,
    last: &mut Option<Seen>,
) -> Result<(), sqlx::Error> {
    // Before the look: what changes in between is another signature the next time.
    let signature = unprepared::query_scalar(SIGNATURE).bind(migration).fetch_one(&mut *tx).await?;
    let seen = Some(Seen { migration, is_compared, signature });
    if *last != seen {
        let found_nothing = look(tx, migration, is_compared).await?;
        *last = seen.filter(|_| found_nothing);
    }
    Ok(())
}

/// Looks at the guard triggers of a migration. If rows may have been written past them since the last look, this is recorded as
/// an external write that was not mirrored, and a scan that began before does not count.
///
/// `is_compared`: a scan may have passed rows already. Returns whether there was nothing to record.
pub(crate) async fn look(
    tx: &mut PgConnection,
    migration: i32,
    is_compared: bool,
) -> Result<bool, sqlx::Error> {
    let are_columns_changed: Option<bool> = unprepared::query_scalar(AssertSqlSafe(LOOK.as_str()))
        .bind(migration)
        .bind(is_compared)
        .bind(guard_triggers::PREFIX)
        .fetch_optional(&mut *tx)
        .await?;
    if are_columns_changed == Some(true) {
        recompile(tx, migration).await?;
    }
    Ok(are_columns_changed.is_none())
}

/// Makes each session compile the function of the guard trigger again. A session that has called it before a column got
/// another type would fail on each further write.
async fn recompile(tx: &mut PgConnection, migration: i32) -> Result<(), sqlx::Error> {
    let mut attempt = tx.begin().await?;
    // To set what is set already is a change of the function all the same.
    let statement = format!("alter function cutover.guard_{migration}() volatile");
    match attempt.execute(AssertSqlSafe(statement)).await {
        Ok(_) => attempt.commit().await,
        // Another role may own it.
        Err(sqlx::Error::Database(_)) => attempt.rollback().await,
        Err(error) => Err(error),
    }
}

/// How rows may have been written past the guard trigger since the last copy or scan began, and when (UTC).
pub(crate) async fn unseen_writes(
    connection: &mut PgConnection,
    migration: i32,
) -> Result<Option<(String, String)>, sqlx::Error> {
    unprepared::query_as(
        "select unseen_writes_by, to_char(unseen_writes_at at time zone 'utc', 'YYYY-MM-DD HH24:MI:SS') \
         from cutover.guard_looks where migration_id = $1 and unseen_writes_at > \
             coalesce((select max(started_at) from cutover.jobs where migration_id = $1 and finished_at is not null), \
                 '-infinity')",
    )
    .bind(migration)
    .fetch_optional(connection)
    .await
}
