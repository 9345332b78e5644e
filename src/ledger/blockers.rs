//! Open transactions that others wait for: those of sessions, and prepared ones (`prepare transaction`).
//!
//! A prepared transaction keeps its locks without a session, also over a restart of the server. Views and functions that
//! list sessions do not show it, and it has no process that could be terminated. So everything that looks for transactions
//! looks here.

use sqlx::{FromRow, PgConnection, PgPool};

use super::unprepared;

/// The session `a` or the prepared transaction `p` that holds the lock `l` of `pg_locks`.
///
/// A prepared transaction also holds the lock of its own transaction id. The locks of its subtransactions look the same, but
/// `pg_prepared_xacts` does not list these.
macro_rules! owner_of_lock {
    () => {
        " left join pg_stat_activity a on a.pid = l.pid \
          left join lateral (select x.* from pg_locks own join pg_prepared_xacts x on x.transaction = own.transactionid \
             where l.pid is null and own.pid is null and own.locktype = 'transactionid' \
               and own.virtualtransaction = l.virtualtransaction limit 1) p on true"
    };
}
pub(crate) use owner_of_lock;

/// The columns of an [`OpenTransaction`], from session `a` or prepared transaction `p`.
macro_rules! open_transaction {
    () => {
        "a.pid, coalesce(nullif(a.application_name, ''), 'unnamed') as application, quote_literal(p.gid) as gid, \
         p.owner::text as owner, \
         coalesce(extract(epoch from clock_timestamp() - coalesce(a.xact_start, p.prepared))::bigint, 0) as age"
    };
}
pub(crate) use open_transaction;

/// The owners of the locks `l` that share the advisory lock `$1`, `$2` in this database.
macro_rules! sharers {
    () => {
        concat!(
            " from pg_locks l",
            $crate::ledger::blockers::owner_of_lock!(),
            " where l.locktype = 'advisory' and l.classid::bigint = $1 and l.objid::bigint = $2 and l.objsubid = 2 \
               and l.granted and l.mode = 'ShareLock' \
               and l.database = (select oid from pg_database where datname = current_database())"
        )
    };
}
pub(crate) use sharers;

/// A transaction that holds a lock.
#[derive(Debug, FromRow)]
pub(crate) struct OpenTransaction {
    /// `None`: it is prepared.
    pub(crate) pid: Option<i32>,
    pub(crate) application: String,
    /// Its identifier as a literal, if it is prepared.
    gid: Option<String>,
    /// The role that prepared it.
    owner: Option<String>,
    /// Seconds since it began, or was prepared.
    pub(crate) age: i64,
}

impl OpenTransaction {
    /// Names it as a transaction `of` something. For a prepared one, with the statements that end it.
    pub(crate) fn named(&self, of: &str) -> String {
        let Self { pid, application, age, .. } = self;
        match (pid, self.prepared()) {
            (Some(pid), _) => format!("a transaction {of}, open for {age} s (pid {pid}, {application})"),
            (None, Some(prepared)) => format!("a prepared transaction {of}, {prepared}"),
            // It ended after its lock was seen.
            (None, None) => format!("a transaction {of} that has just ended"),
        }
    }

    fn prepared(&self) -> Option<String> {
        let (gid, owner, age) = (self.gid.as_ref()?, self.owner.as_ref()?, self.age);
        Some(format!(
            "{gid} for {age} s (role {owner} can end it: `commit prepared {gid}` or `rollback prepared {gid}`)"
        ))
    }
}

/// Names several of them in one list.
pub(crate) fn listed(transactions: &[OpenTransaction]) -> String {
    let short = |one: &OpenTransaction| match (one.pid, one.prepared()) {
        (Some(pid), _) => format!("pid {pid} ({}) for {} s", one.application, one.age),
        (None, Some(prepared)) => format!("prepared transaction {prepared}"),
        (None, None) => "one that has just ended".to_owned(),
    };
    match transactions {
        [] => "none is left".to_owned(),
        some => some.iter().map(short).collect::<Vec<_>>().join(", "),
    }
}

/// Sets `lock_timeout` for the transaction and returns the process id of its backend.
pub(crate) async fn limit_lock_wait(tx: &mut PgConnection, milliseconds: u32) -> Result<i32, sqlx::Error> {
    let statement = format!("set local lock_timeout = {milliseconds}; select pg_backend_pid()");
    unprepared::ask_scalar(tx, statement).await
}

/// The transactions that the backend `$pid` waits for, or waits behind, at this moment. `pg_blocking_pids` gives 0 for a
/// prepared one.
macro_rules! blocking {
    () => {
        concat!(
            "select ",
            open_transaction!(),
            " from pg_stat_activity a left join pg_prepared_xacts p on false where a.pid = any (pg_blocking_pids({pid})) \
             union all select ",
            open_transaction!(),
            " from pg_locks w join pg_locks l on l.pid is null and l.granted and (w.locktype, w.database, w.relation, w.page, \
                 w.tuple, w.virtualxid, w.transactionid, w.classid, w.objid, w.objsubid) is not distinct from (l.locktype, \
                 l.database, l.relation, l.page, l.tuple, l.virtualxid, l.transactionid, l.classid, l.objid, l.objsubid)",
            owner_of_lock!(),
            " where w.pid = {pid} and not w.granted and 0 = any (pg_blocking_pids({pid})) order by age desc limit 5"
        )
    };
}

/// The transactions that the backend `pid` waits for at this moment, the oldest first.
pub(crate) async fn of(pool: &PgPool, pid: i32) -> Result<Vec<OpenTransaction>, sqlx::Error> {
    unprepared::ask(pool, format!(blocking!(), pid = pid)).await
}

/// The transactions that hold a lock on one of the tables, in one of these modes, the oldest first. No mode: any.
pub(crate) async fn on_tables(
    tables: &[&str],
    modes: &[&str],
    connection: &mut PgConnection,
) -> Result<Vec<OpenTransaction>, sqlx::Error> {
    unprepared::query_as(concat!(
        "select distinct ",
        open_transaction!(),
        " from pg_locks l",
        owner_of_lock!(),
        " where l.relation = any (select to_regclass(name) from unnest($1::text[]) as wanted (name)) and l.granted \
           and ($2::text[] = '{}' or l.mode = any ($2)) and l.pid is distinct from pg_backend_pid() \
           and l.database = (select oid from pg_database where datname = current_database()) \
         order by age desc limit 5",
    ))
    .bind(tables)
    .bind(modes)
    .fetch_all(connection)
    .await
}
