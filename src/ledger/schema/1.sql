-- The ledger, version 1. All of its objects live in schema `cutover`. Constraints reject illegal rows wherever SQL can
-- express the rule. Every table has a primary key, so that it can be published for logical replication.

create schema if not exists cutover;

create table cutover.ledger (
    only_row boolean primary key default true check (only_row),
    version integer not null,
    -- The oldest library schema version that still works with this ledger.
    compatible_from integer not null check (compatible_from <= version),
    installed_at timestamptz not null default clock_timestamp()
);

-- A set of instances that move together. Admissions and moves lock this row against each other.
create table cutover.fleets (
    name text primary key check (name <> '' and length(name) <= 63)
);

-- One run of one process. A restarted process is a new row.
create table cutover.instances (
    -- Random, because after a failover to a lagging standby a sequence would hand out a number that a live process
    -- still uses. Two processes would then renew and acknowledge for each other.
    id bigint primary key default 1 + floor(random() * 9007199254740000)::bigint,
    fleet text not null references cutover.fleets,
    name text not null,
    service text not null,
    version text not null,
    revision text not null,
    joined_at timestamptz not null default clock_timestamp(),
    seen_at timestamptz not null default clock_timestamp(),
    lease_until timestamptz not null,
    -- Only an admitted instance serves, and moves wait only for admitted instances.
    admitted boolean not null default false,
    -- Why the instance is not admitted.
    refusal text
) with (fillfactor = 50);
create index instances_by_fleet on cutover.instances (fleet);

create table cutover.migrations (
    -- Part of advisory lock keys, hence the limit.
    id integer generated always as identity primary key check (id between 1 and 65535),
    fleet text not null references cutover.fleets,
    name text not null check (name <> '' and length(name) <= 63),
    epoch integer not null default 1,
    phase text not null default 'off',
    old_complete boolean not null default true,
    new_complete boolean not null default false,
    ramp_percent smallint not null default 100 check (ramp_percent between 0 and 100),
    -- The phase requested through SQL or the command line; null: none was requested.
    desired text,
    desired_by text,
    -- Since when, and by whom, backfills and scans of this migration are paused; null: they run.
    paused_at timestamptz,
    paused_by text,
    -- The instance that drives the migration, and the end of its leadership lease. The lease only avoids duplicate
    -- work: two drivers at once are harmless.
    driver bigint,
    driver_until timestamptz,
    -- What the driver waits for, as text for people.
    waits_for text,
    waits_since timestamptz,
    -- When and how it ended; null: it has not. 'finished': the old side is gone. 'abandoned': the new side is given up.
    ended_at timestamptz,
    ended_as text check (ended_as in ('finished', 'abandoned')),
    -- `xmin` of its rows of `sides`, and the file of that table, when they were written. If none of them has it in the same file,
    -- they were restored from a dump.
    sides_xmin xid,
    sides_file oid,
    unique (fleet, name),
    check ((ended_at is null) = (ended_as is null)),
    check (ended_as is distinct from 'finished' or phase = 'contract'),
    check (ended_as is distinct from 'abandoned' or phase = 'off'),
    check ((paused_at is null) = (paused_by is null)),
    check (old_complete or phase not in ('off', 'expand', 'backfill', 'verify', 'ramp')),
    check (new_complete or phase not in ('ramp', 'switch', 'retire', 'contract')),
    check (not (old_complete and phase in ('retire', 'contract'))),
    check (not (new_complete and phase = 'off'))
);

-- The statements that each version of the service would run, as `[[task, sql], …]`. They are for people to read; the
-- library never executes SQL from this table.
create table cutover.plans (
    migration_id integer not null references cutover.migrations on delete cascade,
    version text not null,
    tasks jsonb not null,
    -- What `contract` drops: the table as SQL names it, the columns as the catalog names them. No column: the whole
    -- table. Null table: nothing.
    old_table text,
    old_columns text[] not null default '{}',
    -- Where the desired phase comes from: 'ledger', or the actor that the history names.
    desired_from text not null,
    published_at timestamptz not null default clock_timestamp(),
    primary key (migration_id, version)
);

-- How often the server has counted reads of what a migration drops, and when that count last changed.
create table cutover.read_counts (
    migration_id integer not null references cutover.migrations on delete cascade,
    -- The object, as text.
    what text not null,
    reads bigint not null,
    changed_at timestamptz not null default clock_timestamp(),
    primary key (migration_id, what)
);

-- Both sides of a migration as the expand DDL found or made them, by oid and column numbers. A table or column that has
-- the same name later is another one, and is never touched.
create table cutover.sides (
    migration_id integer not null references cutover.migrations on delete cascade,
    side text not null check (side in ('old', 'new')),
    -- A dump has its name instead, so it is the same table where the dump is restored.
    relation regclass not null,
    -- Its oid as a number, which a dump keeps. If it is the same while `recorded_in` is not, the ledger alone was restored.
    table_oid oid not null,
    -- Null: the whole table.
    column_numbers smallint[] check (cardinality(column_numbers) > 0),
    -- The names of these columns at that time, and the oid of this very table. It is another one in a restored dump, where the
    -- numbers may be other ones.
    column_names name[],
    recorded_in oid not null,
    -- Whether the migration itself made it.
    made boolean not null default false,
    recorded_at timestamptz not null default clock_timestamp(),
    primary key (migration_id, side)
);

-- Every phase change.
create table cutover.epochs (
    migration_id integer not null references cutover.migrations,
    epoch integer not null check (epoch > 0),
    phase text not null check (phase in
        ('off', 'expand', 'backfill', 'verify', 'ramp', 'switch', 'retire', 'contract')),
    previous_epoch integer generated always as (nullif(epoch - 1, 0)) stored,
    previous_phase text,
    opened_at timestamptz not null default clock_timestamp(),
    -- When the fence began to refuse the epoch.
    closed_at timestamptz,
    -- When the last transaction of the epoch had ended, and the WAL position at that time.
    drained_at timestamptz,
    drained_lsn pg_lsn,
    -- When transactions of the epoch were forbidden to leave a side to be repaired, because the next epoch reads it.
    sealed_at timestamptz,
    -- The WAL position when a sealed epoch had no row left to repair. A standby that has replayed it has every
    -- repaired row.
    sealed_lsn pg_lsn,
    actor text not null,
    reason text not null,
    primary key (migration_id, epoch),
    unique (migration_id, epoch, phase),
    foreign key (migration_id, previous_epoch, previous_phase)
        references cutover.epochs (migration_id, epoch, phase),
    check ((epoch = 1) = (previous_phase is null)),
    check (drained_at is null or closed_at is not null),
    -- One step forwards or backwards. `contract` has no way back.
    check (previous_phase is null or (previous_phase, phase) in (
        ('off', 'expand'), ('expand', 'backfill'), ('backfill', 'verify'), ('verify', 'ramp'),
        ('ramp', 'switch'), ('switch', 'retire'), ('retire', 'contract'),
        ('expand', 'off'), ('backfill', 'expand'), ('verify', 'backfill'), ('ramp', 'verify'),
        ('switch', 'ramp'), ('retire', 'switch')))
);
-- Epochs are consecutive, so this allows two adjacent epochs in use and never a third.
create unique index at_most_two_epochs_in_use
    on cutover.epochs (migration_id, (epoch % 2)) where drained_at is null;

alter table cutover.migrations add foreign key (id, epoch, phase)
    references cutover.epochs (migration_id, epoch, phase) deferrable initially deferred;

-- What an instance declared about a migration, and the epoch that it has acknowledged.
create table cutover.acknowledgements (
    instance_id bigint not null references cutover.instances on delete cascade,
    migration_id integer not null references cutover.migrations,
    -- The phases that its build can run.
    min_phase text not null,
    max_phase text not null,
    -- No operation of the instance runs at an older epoch.
    epoch integer not null default 0,
    -- Operations at older epochs as last reported, and since when the acknowledgement waits for them.
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
    -- It is for one attempt: leaving `retire` deletes it, and after this time it does not count any more.
    expires_at timestamptz not null default clock_timestamp() + interval '7 days',
    primary key (migration_id, phase)
);

-- Backfills and scans. A checkpoint commits in the transaction of the batch that it describes.
create table cutover.jobs (
    id bigint generated always as identity primary key,
    migration_id integer not null references cutover.migrations,
    kind text not null check (kind in ('backfill', 'reverse_backfill', 'scan')),
    -- The epoch at which the job began.
    epoch integer not null,
    -- How many key ranges it has. If one is missing, nothing tells whether its rows were visited.
    ranges integer not null default 0,
    rows_total bigint not null default 0,
    rows_done bigint not null default 0,
    rows_changed bigint not null default 0,
    -- Rows whose sides differ (scans only).
    differences bigint not null default 0,
    -- Size of the table and number of dead rows, before and after, from the statistics.
    bytes_before bigint not null default 0,
    bytes_after bigint,
    dead_rows_before bigint not null default 0,
    dead_rows_after bigint,
    started_at timestamptz not null default clock_timestamp(),
    updated_at timestamptz not null default clock_timestamp(),
    -- Why the job is throttled at the moment; null: it is not.
    throttled_by text,
    finished_at timestamptz,
    -- The WAL position at the end. A standby that has replayed it has everything that the job wrote.
    finished_lsn pg_lsn
);
create unique index one_open_job on cutover.jobs (migration_id, kind) where finished_at is null;

-- The key ranges of a job. A worker locks the row for the duration of a batch; the lock is its claim, and ends with its
-- transaction. Keys are text, column by column.
create table cutover.job_ranges (
    job_id bigint not null references cutover.jobs on delete cascade,
    number smallint not null,
    -- The last key that is done; null: none yet.
    checkpoint text[],
    upper_bound text[] not null,
    finished_at timestamptz,
    primary key (job_id, number)
);

-- Rows that could not be mapped. A job cannot finish while it has such rows.
create table cutover.bad_rows (
    migration_id integer not null references cutover.migrations,
    kind text not null check (kind in ('backfill', 'reverse_backfill', 'scan')),
    key text[] not null,
    error text not null,
    seen_at timestamptz not null default clock_timestamp(),
    primary key (migration_id, kind, key)
);

-- The first differences that a scan found.
create table cutover.differences (
    job_id bigint not null references cutover.jobs on delete cascade,
    key text[] not null,
    what text not null check (what in ('missing', 'extra', 'different', 'way_back')),
    -- The value computed from the old side, and the value found on the new side; null: there is no row.
    expected jsonb,
    found jsonb,
    primary key (job_id, key)
);

-- Rows of which one side is behind the other. The transaction that wrote the other side inserts the row here.
create sequence cutover.repair_versions;
create table cutover.repairs (
    migration_id integer not null references cutover.migrations,
    -- The side that is behind.
    side text not null check (side in ('old', 'new')),
    -- An array if the key has several columns.
    key jsonb not null,
    -- Changes whenever the row falls behind again, so that a repair of an older state does not count as done.
    version bigint not null default nextval('cutover.repair_versions'),
    error text not null,
    since timestamptz not null default clock_timestamp(),
    attempts integer not null default 0,
    next_try_at timestamptz not null default clock_timestamp(),
    -- Given up: not tried again until a person asks for it.
    dead boolean not null default false,
    primary key (migration_id, side, key)
);
-- A copy to another store can have as many rows here as the table has.
create index repairs_due on cutover.repairs (migration_id, next_try_at) where not dead;

-- What the driver found in the catalog and in trials, for people to read: `[{problem, remedy, is_blocking, by_library}, …]`.
create table cutover.plan_problems (
    migration_id integer primary key references cutover.migrations on delete cascade,
    problems jsonb not null,
    seen_at timestamptz not null default clock_timestamp()
);

-- Records rows whose side could not be written. Returns false if the epoch may leave none behind, because the next or
-- the previous epoch reads that side. The row of the epoch stays locked until the end of the transaction, so that a
-- move into a phase that reads the side waits for it. Under REPEATABLE READ and SERIALIZABLE the lock fails with
-- SQLSTATE 40001 if such a move has committed since the snapshot.
create function cutover.record_repairs(p_migration integer, p_epoch integer, p_side text, p_keys jsonb, p_error text)
    returns boolean language plpgsql as $$
begin
    perform from cutover.epochs
        where migration_id = p_migration and epoch = p_epoch and sealed_at is null for share;
    if not found or exists (
        select from cutover.epochs
            where migration_id = p_migration and epoch = p_epoch - 1 and phase = 'ramp' and drained_at is null)
    then
        return false;
    end if;
    perform set_config('cutover.own_delete', 'on', true);
    delete from cutover.repairs where migration_id = p_migration and side <> p_side
        and key in (select jsonb_array_elements(p_keys));
    perform set_config('cutover.own_delete', '', true);
    insert into cutover.repairs (migration_id, side, key, error)
        select distinct on (key) p_migration, p_side, key, p_error
        from jsonb_array_elements(p_keys) as keys (key) order by key
        on conflict (migration_id, side, key) do update
            set version = excluded.version, error = excluded.error, attempts = 0, dead = false,
                next_try_at = clock_timestamp();
    return true;
end
$$;

-- The WAL position, or null where the server does not report it, as some managed servers do. Then it is not known whether
-- standbys have caught up: a migration whose reads go to standbys waits and says so. Others need no position.
create function cutover.wal_position() returns pg_lsn language plpgsql as $$
begin
    return pg_current_wal_insert_lsn();
exception when insufficient_privilege or feature_not_supported or undefined_function or object_not_in_prerequisite_state then
    return null;
end
$$;

-- How many of the server's connections each instance's pool may use.
create table cutover.connection_shares (
    -- Also the application_name of the pool's connections, so that the server can count them.
    name text primary key check (name <> '' and length(name) <= 63),
    fleet text not null,
    role name not null default current_user,
    min_connections bigint not null check (min_connections >= 0),
    max_connections bigint not null check (max_connections >= min_connections),
    -- How many connections this instance leaves free on the server.
    spare bigint not null check (spare >= 0),
    granted bigint not null default 0 check (granted >= 0),
    -- How many connections it should have, as of the last division.
    target bigint not null default 0 check (target >= 0),
    -- How many connections the server had at the last observation.
    seen bigint not null default 0,
    requested_at timestamptz not null default clock_timestamp(),
    lease_until timestamptz not null
);

-- What the server allows, as of the last observation. The row with an empty role is the tighter of the limits of server and
-- database; a role with a limit of its own has another row.
create table cutover.connection_limits (
    role name primary key,
    what text not null,
    connections bigint not null,
    -- Connections that belong to no share and to no ledger.
    others bigint not null,
    -- The number of shares.
    shares bigint not null,
    observed_at timestamptz not null
);

-- Counts the server's connections, and deletes the shares whose lease has ended and whose last connection is gone. It reads
-- pg_stat_activity once, however many shares there are. The caller holds the advisory lock.
create function cutover.observe_connections() returns void language plpgsql as $$
declare
    v_now timestamptz := clock_timestamp();
begin
    -- A role without rights sees name, role and database of others' sessions, not their kind.
    with activity as materialized (
        select coalesce(application_name, '') as application, usename, datname, count(*) as sessions
            from pg_stat_activity
            where usesysid is not null and datid is not null
                and coalesce(backend_type, 'client backend') = 'client backend'
            group by 1, 2, 3
    ), of_shares as (
        update cutover.connection_shares s set seen = counted.sessions
            from (select o.name, coalesce(sum(a.sessions), 0) as sessions
                    from cutover.connection_shares o left join activity a on a.application = o.name group by o.name) counted
            where s.name = counted.name and s.seen <> counted.sessions
    ), others as materialized (
        select a.* from activity a
            where a.application not in ('cutover-ledger', 'cutover-health')
                and not exists (select from cutover.instances i where left('cutover ' || i.name, 63) = a.application)
                and not exists (select from cutover.connection_shares s where s.name = a.application)
    ), limits as (
        select * from (
            select '' as role, 'max_connections less reserved' as what,
                    current_setting('max_connections')::bigint - current_setting('superuser_reserved_connections')::bigint
                        - coalesce(current_setting('reserved_connections', true)::bigint, 0) as connections,
                    (select coalesce(sum(sessions), 0) from others) as others
                union all
                select '', 'the database''s connection limit', datconnlimit,
                    (select coalesce(sum(sessions), 0) from others where datname = current_database())
                    from pg_database where datname = current_database() and datconnlimit >= 0
            ) of_server order by connections - others limit 1
    ), of_roles as (
        select r.rolname, 'the role''s connection limit', r.rolconnlimit::bigint,
                (select coalesce(sum(sessions), 0) from others where usename = r.rolname)
            from pg_roles r
            where r.rolconnlimit >= 0
                and (r.rolname = current_user or r.rolname in (select role from cutover.connection_shares))
    )
    insert into cutover.connection_limits as l (role, what, connections, others, shares, observed_at)
        select found.*, (select count(*) from cutover.connection_shares), v_now
            from (select * from limits union all select * from of_roles) found
        on conflict (role) do update set what = excluded.what, connections = excluded.connections, others = excluded.others,
            shares = excluded.shares, observed_at = excluded.observed_at;
    -- A role whose limit was removed, or that has no share any more.
    delete from cutover.connection_limits where observed_at < v_now;
    delete from cutover.connection_shares where lease_until < clock_timestamp() and seen = 0;
    -- Given back, but the server still has some of its connections.
    update cutover.connection_shares set granted = seen where max_connections = 0 and granted > seen;
end
$$;

-- Sets the targets of the living shares of a role, or of all roles if it is empty: first the minimums, in the order of the
-- requests, then the rest one by one to the smallest share, up to the maximums. Shares whose lease has ended keep what they
-- hold. The caller holds the advisory lock.
create function cutover.divide_connections(p_role name, p_connections bigint) returns void language plpgsql as $$
declare
    v_left bigint;
    v_level bigint := 0;
    v_highest bigint;
    v_middle bigint;
    v_fits boolean;
begin
    select greatest(p_connections - coalesce(sum(greatest(granted, seen)), 0), 0) into v_left
        from cutover.connection_shares where lease_until <= clock_timestamp() and p_role in ('', role);
    select coalesce(max(max_connections), 0) into v_highest
        from cutover.connection_shares where lease_until > clock_timestamp() and p_role in ('', role);
    -- The highest level that every share can have, between its minimum and its maximum.
    while v_level < v_highest loop
        v_middle := (v_level + v_highest + 1) / 2;
        select sum(greatest(min_connections, least(max_connections, v_middle))) <= v_left into v_fits
            from cutover.connection_shares where lease_until > clock_timestamp() and p_role in ('', role);
        if v_fits then
            v_level := v_middle;
        else
            v_highest := v_middle - 1;
        end if;
    end loop;
    with level as (
        select name, max_connections, requested_at,
                greatest(min_connections, least(max_connections, v_level)) as share
            from cutover.connection_shares where lease_until > clock_timestamp() and p_role in ('', role)
    ), divided as (
        select name, max_connections > share and share = v_level as is_open, share,
                v_left - sum(share) over () as rest,
                v_left - (sum(share) over (order by requested_at, name) - share) as left_before,
                count(*) filter (where max_connections > share and share = v_level)
                    over (order by requested_at, name) as place
            from level
    ), result as (
        select name, least(share, greatest(left_before, 0)) + (is_open and place <= rest)::int as share from divided
    )
    update cutover.connection_shares s
        set target = case when p_role = '' then result.share else least(target, result.share) end
        from result
        where s.name = result.name
            and s.target <> case when p_role = '' then result.share else least(target, result.share) end;
end
$$;

-- Renews a share and returns how many connections it may have and how many it should have. It is called as one statement, so
-- no lock is held across a round trip.
--
-- A share that already has what it should have is renewed by an update of its row. Everything else is decided under one
-- advisory lock. Observations and divisions are of the whole fleet, and one caller makes them for all: at once in a small
-- fleet, and every two seconds with a thousand shares. While shares come or change, four times as often: a division for each
-- of a thousand that start together would keep the others waiting for the lock. A new share has what it holds until then.
--
-- A connection that another share still holds is not granted. What this share holds (p_holding) it keeps until it has given
-- it back.
create function cutover.settle_share(
    p_name text, p_fleet text, p_min bigint, p_max bigint, p_spare bigint, p_beside bigint, p_lease double precision,
    p_holding bigint,
    out granted bigint, out target bigint,
    out instances bigint, out needed bigint, out connections bigint, out reckoning text
) language plpgsql as $$
#variable_conflict use_column
declare
    v_now timestamptz := clock_timestamp();
    v_until timestamptz := v_now + make_interval(secs => p_lease);
    v_is_new boolean;
    v_divides boolean;
    v_limit cutover.connection_limits;
    v_spare bigint;
    v_available bigint;
    v_free bigint;
    v_target bigint;
    v_granted bigint;
begin
    if exists (select from cutover.connection_limits
            where role = '' and observed_at > v_now - make_interval(secs => 0.002 * shares))
        or not pg_try_advisory_xact_lock(27995165641041267)
    then
        -- It never grows here, so the sum stays within the limits.
        --
        -- An update that waited for its row locks it even if the row no longer matches. The caller that makes the decisions
        -- holds the advisory lock and waits for rows, so this row must be free before the wait for that lock. The rollback of
        -- the subtransaction frees it.
        begin
            update cutover.connection_shares s set lease_until = v_until, granted = p_holding
                where s.name = p_name and s.min_connections = p_min and s.max_connections = p_max and s.spare = p_spare
                    and s.target = p_holding and s.granted >= p_holding and s.lease_until > v_now;
            if found then
                -- A renewal that a crash loses is repeated, and a crash closes the connections that it was for.
                perform set_config('synchronous_commit', 'off', true);
                granted := p_holding;
                target := p_holding;
                return;
            end if;
            raise exception using errcode = 'ZC000';
        exception when sqlstate 'ZC000' then null;
        end;
    end if;
    perform pg_advisory_xact_lock(27995165641041267);
    v_now := clock_timestamp();
    v_until := v_now + make_interval(secs => p_lease);
    v_is_new := not exists (select from cutover.connection_shares s
        where s.name = p_name and s.min_connections = p_min and s.max_connections = p_max and s.spare = p_spare
            and s.lease_until > v_now);
    insert into cutover.connection_shares as s
            (name, fleet, min_connections, max_connections, spare, granted, target, lease_until)
        values (p_name, p_fleet, p_min, p_max, p_spare, p_holding, least(p_holding, p_max), v_until)
        on conflict (name) do update set min_connections = p_min, max_connections = p_max, spare = p_spare,
            granted = p_holding, target = least(s.target, p_max), lease_until = v_until;
    v_divides := not exists (select from cutover.connection_limits where role = ''
        and observed_at > v_now - make_interval(secs => shares * case when v_is_new then 0.0005 else 0.002 end));
    if v_divides then
        perform cutover.observe_connections();
    end if;

    select count(*), max(s.spare) filter (where s.lease_until > v_now),
            sum(case when s.lease_until > v_now then s.min_connections else greatest(s.granted, s.seen) end)
        into instances, v_spare, needed from cutover.connection_shares s;
    select l.* into v_limit from cutover.connection_limits l where l.role = '';
    v_available := v_limit.connections - v_limit.others - p_beside * instances - v_spare;
    if v_divides then
        perform cutover.divide_connections('', v_available);
        perform cutover.divide_connections(l.role, l.connections - l.others - p_beside * instances - v_spare)
            from cutover.connection_limits l where l.role <> '';
    end if;
    select v_available - coalesce(sum(greatest(s.granted, s.seen)), 0) into v_free
        from cutover.connection_shares s where s.name <> p_name;
    -- The role may have fewer.
    select l.* into v_limit from cutover.connection_limits l where l.role in ('', current_user)
        order by l.connections - l.others limit 1;
    v_available := v_limit.connections - v_limit.others - p_beside * instances - v_spare;
    if v_limit.role <> '' then
        select least(v_free, v_available - coalesce(sum(greatest(s.granted, s.seen)), 0)) into v_free
            from cutover.connection_shares s where s.name <> p_name and s.role = current_user;
    end if;
    select s.target into v_target from cutover.connection_shares s where s.name = p_name;
    v_granted := greatest(least(v_target, v_free), p_holding);
    update cutover.connection_shares s set granted = v_granted where s.name = p_name and s.granted <> v_granted;
    granted := v_granted;
    target := v_target;
    connections := greatest(v_available, 0);
    reckoning := format('%s is %s; others use %s, %s instances need %s each beside their pools, %s stay free: %s are left for pools',
        v_limit.what, v_limit.connections, v_limit.others, instances, p_beside, v_spare, connections);
end
$$;

-- Who requested, approved or did what, when and why.
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

-- What is left of an ended migration whose name was made free again: its rows in the other tables, as JSON.
create table cutover.archive (
    id bigint generated always as identity primary key,
    fleet text not null,
    name text not null,
    ended_as text not null,
    archived_at timestamptz not null default clock_timestamp(),
    archived_by text not null check (archived_by <> ''),
    record jsonb not null
);

-- The last known state of the flags, for an instance that starts while the flag server is unreachable.
create table cutover.flag_states (
    name text primary key check (name <> ''),
    -- Carries its length and a checksum. The flag server's answer is limited to 16 MiB.
    state bytea not null check (octet_length(state) <= 17000000),
    kept_at timestamptz not null default clock_timestamp()
);

-- Which instance polls the flag server for its fleet, and the state that it received.
create table cutover.flag_polls (
    -- A hash of service, server and token.
    key bigint primary key,
    leader bigint not null,
    leader_until timestamptz not null,
    -- When the flag server last answered.
    answered_at timestamptz not null default clock_timestamp(),
    version bigint not null default 0,
    -- As in flag_states.
    state bytea check (octet_length(state) <= 17000000)
);

-- The name for an error text. A role that writes the table may call it without rights on the ledger.
create function cutover.migration_name(p_migration integer) returns text
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
    select coalesce(min(fleet || '/' || name), p_migration::text) from cutover.migrations where id = p_migration
$$;

-- The fence: the first statement of every pinned write transaction.
--
-- The shared lock comes first, and the query of the epoch is a separate statement. Under READ COMMITTED it therefore sees
-- every close that committed before the lock was granted. Under REPEATABLE READ and SERIALIZABLE the snapshot may be
-- older than the close, so the row itself is locked; that fails with SQLSTATE 40001 if the row has changed since. The row
-- lock is released at once, by rolling the subtransaction back: new share locks do not queue behind an update that waits,
-- so a steady stream of such writers would keep the seal of the epoch waiting forever. The advisory lock remains.
--
-- The phase is compared too: after a failover to a lagging standby the same epoch can stand for another phase.
--
-- p_mirrors: the transaction writes one side only and relies on the guard trigger to write the other one. So the trigger has
-- to be there and to fire. The pin then carries the phase, which tells the trigger which side has authority.
--
-- Functions are called in assignments. `perform` would run a query for each, which takes several times as long.
create function cutover.fence(p_migration integer, p_epoch integer, p_phase text, p_mirrors boolean default false)
    returns void language plpgsql as $$
declare
    v_closed timestamptz;
    v_found boolean;
    v_ignored text;
begin
    v_ignored := pg_advisory_xact_lock_shared(1129644032 + p_migration, p_epoch) is null;
    if current_setting('transaction_isolation') in ('repeatable read', 'serializable') then
        begin
            select closed_at into v_closed from cutover.epochs
                where migration_id = p_migration and epoch = p_epoch and phase = p_phase for share;
            v_found := found;
            raise exception using errcode = 'ZC000';
        exception when sqlstate 'ZC000' then null;
        end;
    else
        select closed_at into v_closed from cutover.epochs
            where migration_id = p_migration and epoch = p_epoch and phase = p_phase;
        v_found := found;
    end if;
    if not v_found then
        raise exception using errcode = 'ZC002',
            message = format('epoch %s (%s) of migration %s is not in the ledger', p_epoch, p_phase,
                cutover.migration_name(p_migration)),
            hint = 'The database was restored, or failed over to an older state. Rejoin the fleet and retry.';
    elsif v_closed is not null then
        raise exception using errcode = 'ZC001',
            message = format('epoch %s of migration %s is closed', p_epoch,
                cutover.migration_name(p_migration)),
            hint = 'The migration has moved on. Retry at the current epoch.';
    end if;
    -- Two conditions, because one with a query in it is run as a query even if the first half is false.
    if p_mirrors and p_phase in ('expand', 'backfill', 'verify', 'ramp', 'switch') then
        if not exists (
            select from cutover.sides s join pg_trigger t on t.tgrelid = s.relation
                and t.tgname = format('zzz_cutover_%s_row', p_migration)::name and t.tgenabled = 'A'
                where s.migration_id = p_migration and s.side = 'old')
        then
            raise exception using errcode = 'ZC004',
                message = format('the guard trigger of migration %s is missing or disabled',
                    cutover.migration_name(p_migration)),
                detail = 'The service relies on it to write both sides (`mirror_writes`).',
                hint = format('Enable it: `alter table … enable always trigger "zzz_cutover_%s_row"`.', p_migration);
        end if;
    end if;
    -- Shows the guard trigger of this migration, until the end of the transaction, that writes are pinned, and at which
    -- phase if the trigger has to mirror them. Each migration has a setting of its own, because a transaction can be pinned
    -- to several.
    v_ignored := set_config('cutover.pin_' || p_migration,
        case when p_mirrors and p_phase <> 'off' then p_phase else 'on' end, true);
    -- Shows the check at commit that the transaction writes both sides, each with a statement of its own.
    if not p_mirrors and p_phase in ('expand', 'backfill', 'verify', 'ramp', 'switch') then
        v_ignored := set_config('cutover.both_' || p_migration, p_phase, true);
    end if;
    -- A client that is cut off in mid-transaction would hold its rows until the operating system closes the connection,
    -- which can take hours. A limit that the role or the session has set is kept.
    if current_setting('idle_in_transaction_session_timeout') = '0' then
        v_ignored := set_config('idle_in_transaction_session_timeout', '10s', true);
    end if;
end
$$;

-- One row per transaction that wrote a migrating table without a pin, until the driver adds it to `external_writes`.
-- Separate rows, so that external writers do not wait for each other.
create table cutover.external_write_events (
    id bigint generated always as identity primary key,
    migration_id integer not null references cutover.migrations,
    application text not null,
    role text not null,
    -- Whether the guard trigger mirrored the write to the other side.
    mirrored boolean not null,
    at timestamptz not null default clock_timestamp()
);

create table cutover.external_writes (
    migration_id integer not null references cutover.migrations,
    application text not null,
    role text not null,
    transactions bigint not null default 0,
    unmirrored bigint not null default 0,
    first_seen timestamptz not null,
    last_seen timestamptz not null,
    last_unmirrored timestamptz,
    primary key (migration_id, application, role)
);

-- The phase of each migration for the guard trigger, which locks the row where a snapshot may be older than the last
-- move.
create table cutover.guard_phases (
    migration_id integer primary key references cutover.migrations on delete cascade,
    phase text not null
);

-- What the catalog said about the guard triggers of a migration when the driver looked last, and when rows may have been
-- written past them.
create table cutover.guard_looks (
    migration_id integer primary key references cutover.migrations on delete cascade,
    seen jsonb not null,
    -- What both sides' values depend on besides the rows, by what it is and its oid.
    uses jsonb not null default '{}',
    unseen_writes_at timestamptz,
    -- What happened then.
    unseen_writes_by text
);

-- Rows of these tables say which side of a migration is right. Without them its service would begin again with the old side,
-- and external writes would pass unseen. So they stay while a phase after `off` is in use.
create function cutover.keep_rows() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_id integer;
    v_kept record;
begin
    if tg_op = 'DELETE' then
        v_id := coalesce(to_jsonb(old) ->> 'migration_id', to_jsonb(old) ->> 'id');
    end if;
    select fleet, name, phase into v_kept from cutover.migrations
        where id = coalesce(v_id, id) and ended_at is null and phase <> 'off' order by id limit 1;
    if found then
        raise exception using errcode = '55000',
            message = format('rows of cutover.%s say which side of migration %s/%s is right, which is in %s',
                tg_table_name, v_kept.fleet, v_kept.name, v_kept.phase),
            hint = case v_kept.phase when 'contract' then 'Wait until the old side is dropped.'
                else format('Move it to `off` first: `cutover set-phase %s/%s off`.', v_kept.fleet, v_kept.name) end;
    end if;
    return old;
end
$$;

-- Rows of these tables say that a side may be behind. If they are deleted by hand, this counts as a write that nothing has
-- seen, so that another scan has to look. The library's own statements set `cutover.own_delete`.
create function cutover.note_lost_rows() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_ids integer[];
begin
    if tg_op = 'DELETE' then
        select array_agg(distinct migration_id) into v_ids from lost;
        if v_ids is null then
            return null;
        end if;
    end if;
    insert into cutover.external_write_events (migration_id, application, role, mirrored)
        select id, format('unknown: rows of cutover.%s were deleted', tg_table_name), session_user, false
        from cutover.migrations
        where (v_ids is null or id = any (v_ids)) and ended_at is null and phase <> 'off';
    return null;
end
$$;

do $$
declare
    v_table text;
begin
    foreach v_table in array array['migrations', 'epochs', 'sides', 'guard_phases'] loop
        execute format('create trigger keep_rows before delete on cutover.%I
            for each row execute function cutover.keep_rows()', v_table);
        execute format('create trigger keep_table before truncate on cutover.%I
            for each statement execute function cutover.keep_rows()', v_table);
    end loop;
    foreach v_table in array array['repairs', 'bad_rows', 'external_writes', 'external_write_events', 'guard_looks'] loop
        execute format('create trigger note_lost_rows after delete on cutover.%I referencing old table as lost
            for each statement when (current_setting(''cutover.own_delete'', true) is distinct from ''on'')
            execute function cutover.note_lost_rows()', v_table);
        execute format('create trigger note_lost_table after truncate on cutover.%I
            for each statement execute function cutover.note_lost_rows()', v_table);
    end loop;
end
$$;

-- Remembers which transaction wrote the row. A dump has the number, and a row that is restored has another one. The trigger does not
-- fire for what `session_replication_role = replica` or `pg_restore --disable-triggers` restores.
create function cutover.mark_sides() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    update cutover.migrations set sides_xmin = new.xmin, sides_file = pg_relation_filenode(tg_relid)
        where id = new.migration_id;
    return null;
end
$$;
create trigger mark_sides after insert or update on cutover.sides
    for each row execute function cutover.mark_sides();

create function cutover.update_guard_phase() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    insert into cutover.guard_phases (migration_id, phase) values (new.id, new.phase)
        on conflict (migration_id) do update set phase = excluded.phase;
    return null;
end
$$;
create trigger update_guard_phase after insert or update of phase on cutover.migrations
    for each row execute function cutover.update_guard_phase();

-- Called by the guard trigger: the migration's phase. Runs with its owner's rights, so that external writers need none on
-- the ledger.
--
-- Under REPEATABLE READ and SERIALIZABLE the row with the phase is locked; that fails with SQLSTATE 40001 if a move came
-- after the snapshot. The row lock is released at once, because the way back would otherwise wait for the transaction.
create function cutover.phase_for_guard(p_migration integer) returns text
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_phase text;
begin
    if current_setting('transaction_isolation') in ('repeatable read', 'serializable') then
        begin
            select phase into v_phase from cutover.guard_phases where migration_id = p_migration for share;
            raise exception using errcode = 'ZC000';
        exception when sqlstate 'ZC000' then null;
        end;
    else
        select phase into v_phase from cutover.guard_phases where migration_id = p_migration;
    end if;
    if v_phase is null then
        select phase into v_phase from cutover.migrations where id = p_migration and ended_at is null;
    end if;
    return coalesce(v_phase, 'off');
end
$$;

-- Called by the guard trigger: records once per transaction that an external writer wrote, and returns the migration's
-- phase. Runs with its owner's rights, too. A null `p_mirrored` stands for a mapping in Rust: what the trigger lets through in
-- `ramp` and `switch` is mirrored or recorded for repair.
--
-- The advisory lock is held until the external transaction ends. Copies, scans and the moves after which such writes are
-- refused take it too, so they wait for transactions that began under the earlier rule. The transaction gets its id before
-- the lock: the id is what names it after `prepare transaction` and a restart of the server.
create function cutover.record_external_write(p_migration integer, p_mirrored boolean) returns text
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_known text := 'cutover.external_write_' || p_migration;
    v_phase text := nullif(current_setting(v_known, true), '');
begin
    if v_phase is null then
        perform pg_current_xact_id();
        perform pg_advisory_xact_lock_shared(1129709568, p_migration);
        v_phase := cutover.phase_for_guard(p_migration);
        perform set_config(v_known, v_phase, true);
        if v_phase <> 'off' then
            insert into cutover.external_write_events (migration_id, application, role, mirrored)
                values (p_migration, coalesce(nullif(current_setting('application_name'), ''), 'unnamed'),
                        session_user, coalesce(p_mirrored, v_phase in ('ramp', 'switch')));
        end if;
    end if;
    return v_phase;
end
$$;

-- Called by the guard trigger: a query that tells whether `$1`, a value of this column, is what the column's default gives.
-- Null: not known, because the default may give another value each time, or because it calls a function that is not
-- built in. Such a function must not run with the rights of the trigger's owner. For the same reason the values are
-- compared in the base type of a domain.
--
-- A row of a partition may have the default of the partition, or that of a table above it which the insert named.
create function cutover.comparison_with_default(p_table oid, p_column name) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    v_type oid;
    v_modifier integer;
    v_default pg_node_tree;
    v_evaluated text;
    v_above oid;
    v_comparison text;
    v_comparison_above text;
begin
    select a.atttypid, a.atttypmod, d.adbin into v_type, v_modifier, v_default
        from pg_attribute a left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
        where a.attrelid = p_table and a.attname = p_column and not a.attisdropped;
    -- Not found: the snapshot of the transaction is older than the column.
    if not found
        or exists (select from pg_attribute where attrelid = p_table and attname = p_column and attidentity <> '')
    then
        return null;
    end if;
    while exists (select from pg_type where oid = v_type and typtype = 'd') loop
        select typbasetype, coalesce(v_default, typdefaultbin), greatest(v_modifier, typtypmod)
            into v_type, v_default, v_modifier from pg_type where oid = v_type;
    end loop;
    select i.inhparent into v_above from pg_class c join pg_inherits i on i.inhrelid = c.oid
        where c.oid = p_table and c.relispartition;
    if found then
        v_comparison_above := cutover.comparison_with_default(v_above, p_column);
        if v_comparison_above is null then
            return null;
        end if;
    end if;
    if v_default is null then
        return coalesce(v_comparison_above, 'select $1 is null');
    end if;
    -- A value of a domain is checked by the domain's constraints, and by those of the domain below it.
    with recursive domains (id) as (
        select found.id[1]::oid
            from regexp_matches(v_default::text, ':resulttype ([0-9]+)', 'g') as found (id)
        union select t.typbasetype from domains d join pg_type t on t.oid = d.id where t.typtype = 'd')
    select concat_ws(' ', v_default::text, string_agg(c.conbin::text, ' ')) into v_evaluated
        from domains d join pg_constraint c on c.contypid = d.id;
    if v_evaluated ~ '[{](SQLVALUEFUNCTION|NEXTVALUEEXPR|COERCEVIAIO)'
        or exists (
            select from regexp_matches(v_evaluated, ':(?:funcid|opfuncid) ([0-9]+)', 'g') as called (id)
                join pg_proc p on p.oid = called.id[1]::oid
                where p.provolatile <> 'i' or p.pronamespace <> 'pg_catalog'::regnamespace)
    then
        return null;
    end if;
    v_comparison := format('select row($1::%1$s)::record operator(pg_catalog.*=) row((%2$s)::%1$s)::record',
        format_type(v_type, v_modifier), pg_get_expr(v_default, p_table));
    if v_comparison <> v_comparison_above then
        v_comparison := format('%s or (%s)', v_comparison, v_comparison_above);
    end if;
    return v_comparison;
end
$$;

-- Called by the guard trigger: whether the action of a foreign key makes this write. Postgres runs such
-- an action as a statement of this form, which is the innermost one then. `quote_all_identifiers` of the session adds quotes.
create function cutover.is_foreign_key_action() returns boolean
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    v_context text;
begin
    get diagnostics v_context = pg_context;
    return v_context ~ E'^([^\n"]*[^\n"]* cutover[.][^\n]*\n)+[^\n"]*"(DELETE FROM|UPDATE) (ONLY )?"[^\n]* OPERATOR[(]"?pg_catalog"?[.]';
end
$$;

-- Called by the guard trigger when the mapping of an external write fails: the write succeeds, and its row is repaired
-- later. It takes no lock that a move waits for, because the way back never waits for external writers.
create function cutover.record_external_repair(p_migration integer, p_side text, p_key jsonb, p_error text) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    -- The other side was written just now, so it is not behind any more. A repair of it would undo the write.
    perform set_config('cutover.own_delete', 'on', true);
    delete from cutover.repairs where migration_id = p_migration and side <> p_side and key = p_key;
    perform set_config('cutover.own_delete', '', true);
    insert into cutover.repairs (migration_id, side, key, error)
        values (p_migration, p_side, p_key, left(p_error, 500))
        on conflict (migration_id, side, key) do update
            set version = excluded.version, error = excluded.error, attempts = 0, dead = false,
                next_try_at = clock_timestamp();
end
$$;
revoke all on function cutover.record_external_repair(integer, text, jsonb, text) from public;
-- A role that may execute them could attach them to a table of its own, and they would write with the owner's rights what its
-- rows say.
revoke all on function cutover.keep_rows(), cutover.note_lost_rows(), cutover.mark_sides(), cutover.update_guard_phase()
    from public;

-- The guard trigger calls these functions with the role that writes the table. Every other function and table needs a
-- grant of its own.
grant usage on schema cutover to public;
grant execute on function cutover.record_external_write(integer, boolean) to public;
grant execute on function cutover.phase_for_guard(integer) to public;
grant execute on function cutover.migration_name(integer) to public;
