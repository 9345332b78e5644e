-- The ledger. Everything of it lives in schema `cutover`; constraints make an illegal row impossible
-- where SQL can say so.

create schema if not exists cutover;

create table cutover.ledger (
    only_row boolean primary key default true check (only_row),
    version integer not null,
    -- The oldest library schema version that can still work with this ledger.
    compatible_from integer not null check (compatible_from <= version),
    installed_at timestamptz not null default clock_timestamp()
);

-- The set of instances that have to agree. Its row is what admission and moves lock against each other.
create table cutover.fleets (
    name text primary key check (name <> '' and length(name) <= 63)
);

-- One life of one process. A restarted process is a new row.
create table cutover.instances (
    -- Drawn at random: after a failover to a standby that lagged, a sequence would give a number that is in
    -- use by a living process to another one, and each would then extend and acknowledge for the other.
    id bigint primary key default 1 + floor(random() * 9007199254740000)::bigint,
    fleet text not null references cutover.fleets,
    name text not null,
    service text not null,
    version text not null,
    revision text not null,
    joined_at timestamptz not null default clock_timestamp(),
    seen_at timestamptz not null default clock_timestamp(),
    lease_until timestamptz not null,
    -- Only an admitted instance serves, and only admitted instances are waited for.
    admitted boolean not null default false,
    -- Why it is not admitted.
    refusal text
) with (fillfactor = 50);
create index instances_by_fleet on cutover.instances (fleet);

create table cutover.migrations (
    -- Part of the advisory lock's key.
    id integer generated always as identity primary key check (id between 1 and 65535),
    fleet text not null references cutover.fleets,
    name text not null check (name <> '' and length(name) <= 63),
    epoch integer not null default 1,
    phase text not null default 'off',
    old_complete boolean not null default true,
    new_complete boolean not null default false,
    ramp_percent smallint not null default 100 check (ramp_percent between 0 and 100),
    -- What a person asked for by SQL or command line; null: nothing.
    desired text,
    desired_by text,
    -- Who holds up the work on its rows, and since when; null: nobody.
    paused_at timestamptz,
    paused_by text,
    -- Which instance moves it at the moment; it is an office, not a safeguard.
    driver bigint,
    driver_until timestamptz,
    -- What the driver waits for, for people to read.
    waits_for text,
    waits_since timestamptz,
    -- When the old side was found to be gone, in `contract`.
    dropped_at timestamptz,
    unique (fleet, name),
    check ((paused_at is null) = (paused_by is null)),
    check (old_complete or phase not in ('off', 'expand', 'backfill', 'verify', 'ramp')),
    check (new_complete or phase not in ('ramp', 'switch', 'retire', 'contract')),
    check (not (old_complete and phase in ('retire', 'contract'))),
    check (not (new_complete and phase = 'off'))
);

-- What each version would execute, as `[[task, sql], …]`: for people to read, nobody runs it from here.
create table cutover.plans (
    migration_id integer not null references cutover.migrations on delete cascade,
    version text not null,
    tasks jsonb not null,
    -- What `contract` drops, as SQL would name the table and as the catalog names the column; null: nothing, or all of it.
    old_table text,
    old_column text,
    -- Where its desired phase comes from: 'ledger', or what else is named in the history.
    desired_from text not null,
    published_at timestamptz not null default clock_timestamp(),
    primary key (migration_id, version)
);

-- Every phase change there ever was.
create table cutover.epochs (
    migration_id integer not null references cutover.migrations,
    epoch integer not null check (epoch > 0),
    phase text not null check (phase in
        ('off', 'expand', 'backfill', 'verify', 'ramp', 'switch', 'retire', 'contract')),
    previous_epoch integer generated always as (nullif(epoch - 1, 0)) stored,
    previous_phase text,
    opened_at timestamptz not null default clock_timestamp(),
    -- From here on the fence refuses it.
    closed_at timestamptz,
    -- From here on no transaction of it is left.
    drained_at timestamptz,
    -- Where the log was then.
    drained_lsn pg_lsn,
    -- From here on no transaction of it may leave a side behind, to be repaired: the next epoch reads that side.
    sealed_at timestamptz,
    actor text not null,
    reason text not null,
    primary key (migration_id, epoch),
    unique (migration_id, epoch, phase),
    foreign key (migration_id, previous_epoch, previous_phase)
        references cutover.epochs (migration_id, epoch, phase),
    check ((epoch = 1) = (previous_phase is null)),
    check (drained_at is null or closed_at is not null),
    -- One step along the line, either way; none out of `contract`.
    check (previous_phase is null or (previous_phase, phase) in (
        ('off', 'expand'), ('expand', 'backfill'), ('backfill', 'verify'), ('verify', 'ramp'),
        ('ramp', 'switch'), ('switch', 'retire'), ('retire', 'contract'),
        ('expand', 'off'), ('backfill', 'expand'), ('verify', 'backfill'), ('ramp', 'verify'),
        ('switch', 'ramp'), ('retire', 'switch')))
);
-- Epochs follow one another without a gap, so this allows two neighbours in use and never a third.
create unique index at_most_two_epochs_in_use
    on cutover.epochs (migration_id, (epoch % 2)) where drained_at is null;

alter table cutover.migrations add foreign key (id, epoch, phase)
    references cutover.epochs (migration_id, epoch, phase) deferrable initially deferred;

-- What an instance declared about a migration, and how far it has come.
create table cutover.acknowledgements (
    instance_id bigint not null references cutover.instances on delete cascade,
    migration_id integer not null references cutover.migrations,
    lowest text not null,
    highest text not null,
    -- Nothing of the instance runs at an older epoch than this.
    epoch integer not null default 0,
    -- Operations at older epochs, as last reported, and since when it waits for them.
    older_open integer not null default 0,
    waits_since timestamptz,
    primary key (instance_id, migration_id)
);

create table cutover.approvals (
    migration_id integer not null references cutover.migrations,
    phase text not null check (phase = 'contract'),
    actor text not null check (actor <> ''),
    reason text not null default '',
    given_at timestamptz not null default clock_timestamp(),
    primary key (migration_id, phase)
);

-- Long work on the data: checkpoints that commit with the batch they describe.
create table cutover.jobs (
    id bigint generated always as identity primary key,
    migration_id integer not null references cutover.migrations,
    kind text not null check (kind in ('backfill', 'reverse_backfill', 'scan')),
    -- The epoch at which it began.
    epoch integer not null,
    rows_total bigint not null default 0,
    rows_done bigint not null default 0,
    rows_changed bigint not null default 0,
    -- Rows whose sides differ (scan).
    differences bigint not null default 0,
    -- The table's size and its dead rows, before and after, as the statistics have them.
    bytes_before bigint not null default 0,
    bytes_after bigint,
    dead_rows_before bigint not null default 0,
    dead_rows_after bigint,
    started_at timestamptz not null default clock_timestamp(),
    updated_at timestamptz not null default clock_timestamp(),
    -- Why nothing is done just now, in words; null: it goes on.
    held_by text,
    finished_at timestamptz,
    -- Where the log was then: a standby that has replayed it has all that was done.
    finished_lsn pg_lsn
);
create unique index one_open_job on cutover.jobs (migration_id, kind) where finished_at is null;

-- The key ranges that a job is cut into. Whoever has the row locked works on the range, for as long as a batch takes:
-- a process that dies lets go of it. Keys are text, column by column.
create table cutover.job_ranges (
    job_id bigint not null references cutover.jobs on delete cascade,
    number smallint not null,
    -- Done up to and including this key; null: from the lowest one on.
    checkpoint text[],
    upper_bound text[] not null,
    finished_at timestamptz,
    primary key (job_id, number)
);

-- Rows that could not be mapped. A job does not end while it has some.
create table cutover.bad_rows (
    migration_id integer not null references cutover.migrations,
    kind text not null check (kind in ('backfill', 'reverse_backfill', 'scan')),
    key text[] not null,
    error text not null,
    seen_at timestamptz not null default clock_timestamp(),
    primary key (migration_id, kind, key)
);

-- What a scan found, the first rows of it.
create table cutover.differences (
    job_id bigint not null references cutover.jobs on delete cascade,
    key text[] not null,
    what text not null check (what in ('missing', 'extra', 'different', 'way_back')),
    -- What the old side says and what the new one holds; null where there is no row.
    expected jsonb,
    found jsonb,
    primary key (job_id, key)
);
-- Rows of which one side is behind the other, noted in the transaction that wrote the other one.
create sequence cutover.repair_versions;
create table cutover.repairs (
    migration_id integer not null references cutover.migrations,
    -- The side that is behind.
    side text not null check (side in ('old', 'new')),
    -- An array where it has several columns.
    key jsonb not null,
    -- Another one every time that it is left behind: who made good an older one has not made good this one.
    version bigint not null default nextval('cutover.repair_versions'),
    error text not null,
    since timestamptz not null default clock_timestamp(),
    attempts integer not null default 0,
    next_try_at timestamptz not null default clock_timestamp(),
    -- Not tried again before a person asks for it.
    dead boolean not null default false,
    primary key (migration_id, side, key)
);

-- Notes rows whose side could not be written. False when the epoch may leave none behind, because the epoch after it
-- or before it reads that side. The epoch's row stays locked until the end of the transaction, so that a move into a
-- phase that reads the side waits for it; under REPEATABLE READ and SERIALIZABLE the lock fails with 40001 when such a
-- move has come in between.
create function cutover.note_repairs(p_migration integer, p_epoch integer, p_side text, p_keys jsonb, p_error text)
    returns boolean language plpgsql as $$
begin
    perform from cutover.epochs
        where migration_id = p_migration and epoch = p_epoch and sealed_at is null for share;
    if not found or exists (
        select from cutover.epochs
            where migration_id = p_migration and epoch = p_epoch - 1 and phase = 'ramp' and closed_at is null)
    then
        return false;
    end if;
    insert into cutover.repairs (migration_id, side, key, error)
        select distinct on (key) p_migration, p_side, key, p_error
        from jsonb_array_elements(p_keys) as keys (key) order by key
        on conflict (migration_id, side, key) do update
            set version = excluded.version, error = excluded.error, attempts = 0, dead = false,
                next_try_at = clock_timestamp();
    return true;
end
$$;

-- What an instance's pool may hold of the server's connections. All decisions about it take one advisory lock.
create table cutover.connection_shares (
    -- Also the application_name of the pool's connections, so that the server itself says what is left of it.
    name text primary key check (name <> '' and length(name) <= 63),
    fleet text not null,
    lowest bigint not null check (lowest >= 0),
    highest bigint not null check (highest >= lowest),
    granted bigint not null default 0 check (granted >= 0),
    asked_at timestamptz not null default clock_timestamp(),
    lease_until timestamptz not null
);

-- Who asked for, approved or did what, when and why.
create table cutover.history (
    id bigint generated always as identity primary key,
    at timestamptz not null default clock_timestamp(),
    fleet text not null,
    migration text,
    event text not null,
    epoch integer,
    actor text not null,
    reason text not null default ''
);

-- The last known state of the flags, for an instance that starts while the flag server is away.
create table cutover.flag_states (
    name text primary key check (name <> ''),
    -- Sealed with its length and a checksum. The flag server's answer is bounded at 16 MiB.
    state bytea not null check (octet_length(state) <= 17000000),
    kept_at timestamptz not null default clock_timestamp()
);

-- The fence: the first thing in every write transaction.
--
-- The shared lock comes first and the look at the epoch second, as statements of their own: under READ
-- COMMITTED the second one then sees every close that was committed before the lock was granted. Under
-- REPEATABLE READ and SERIALIZABLE the snapshot may be older than the close, so there the row itself is
-- locked, which fails with 40001 when it has changed since the snapshot.
--
-- The phase is compared too: after a failover to a standby that lagged, the same number can come to stand for
-- another phase.
create function cutover.fence(p_migration integer, p_epoch integer, p_phase text) returns void
language plpgsql as $$
declare
    v_closed timestamptz;
begin
    perform pg_advisory_xact_lock_shared(1129644032 + p_migration, p_epoch);
    if current_setting('transaction_isolation') in ('repeatable read', 'serializable') then
        select closed_at into v_closed from cutover.epochs
            where migration_id = p_migration and epoch = p_epoch and phase = p_phase for share;
    else
        select closed_at into v_closed from cutover.epochs
            where migration_id = p_migration and epoch = p_epoch and phase = p_phase;
    end if;
    if not found then
        raise exception using errcode = 'ZC002',
            message = format('epoch %s (%s) of migration %s is not in the ledger', p_epoch, p_phase, p_migration),
            hint = 'The database was restored or failed over to an older state. Rejoin and try again.';
    elsif v_closed is not null then
        raise exception using errcode = 'ZC001',
            message = format('epoch %s of migration %s is closed', p_epoch, p_migration),
            hint = 'The migration has moved on. Try again at the current epoch.';
    end if;
    -- Until the end of the transaction, for the trap: its writes are the fleet's.
    perform set_config('cutover.pin', p_migration::text, true);
    -- Whoever is cut off in the middle would hold his rows until the system gives the connection up, for hours, and
    -- everyone who wants one of them a connection of his own pool. A limit that the role or the session has is kept.
    if current_setting('idle_in_transaction_session_timeout') = '0' then
        perform set_config('idle_in_transaction_session_timeout', '10s', true);
    end if;
end
$$;

-- Transactions that wrote past the library, until they are counted in `strangers`. A row each, so that strangers don't
-- wait for one another.
create table cutover.stranger_writes (
    migration_id integer not null references cutover.migrations,
    application text not null,
    role text not null,
    -- Whether the write was copied to the new side on the spot.
    mended boolean not null,
    at timestamptz not null default clock_timestamp()
);

create table cutover.strangers (
    migration_id integer not null references cutover.migrations,
    application text not null,
    role text not null,
    transactions bigint not null default 0,
    unmended bigint not null default 0,
    first_seen timestamptz not null,
    last_seen timestamptz not null,
    last_unmended timestamptz,
    primary key (migration_id, application, role)
);

-- Called by the trap: writes down that a stranger's transaction wrote, once, and tells the migration's phase. It has
-- its owner's rights, so that strangers need none on the ledger.
create function cutover.stranger(p_migration integer, p_mended boolean) returns text
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_known text := 'cutover.stranger_' || p_migration;
    v_phase text := nullif(current_setting(v_known, true), '');
begin
    if v_phase is null then
        v_phase := coalesce((select phase from cutover.migrations where id = p_migration), 'off');
        perform set_config(v_known, v_phase, true);
        if v_phase <> 'off' then
            insert into cutover.stranger_writes (migration_id, application, role, mended)
                values (p_migration, coalesce(nullif(current_setting('application_name'), ''), 'unnamed'),
                        session_user, p_mended);
        end if;
    end if;
    return v_phase;
end
$$;

-- For the trap's call. What the other functions and the tables let nobody do needs rights of its own.
grant usage on schema cutover to public;
