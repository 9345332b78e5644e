-- Notes that are due, of which there can be as many as a table has rows while it is copied to another store.
create index repairs_due on cutover.repairs (migration_id, next_try_at) where not dead;

-- The phase as the trap locks it where a snapshot may be older than the last move.
create table cutover.trap_phases (
    migration_id integer primary key references cutover.migrations on delete cascade,
    phase text not null
);
insert into cutover.trap_phases (migration_id, phase) select id, phase from cutover.migrations;

create function cutover.tell_trap() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    insert into cutover.trap_phases (migration_id, phase) values (new.id, new.phase)
        on conflict (migration_id) do update set phase = excluded.phase;
    return null;
end
$$;
create trigger tell_trap after insert or update of phase on cutover.migrations
    for each row execute function cutover.tell_trap();

-- As before, and holds a lock until the stranger's transaction ends: a copy, a scan and the moves after which such writes
-- are refused take it too, and so wait for what began under another rule. Under REPEATABLE READ and SERIALIZABLE the
-- phase's row is locked, which fails with 40001 where a move has come after the snapshot.
create or replace function cutover.stranger(p_migration integer, p_mended boolean) returns text
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_known text := 'cutover.stranger_' || p_migration;
    v_phase text := nullif(current_setting(v_known, true), '');
begin
    if v_phase is null then
        perform pg_advisory_xact_lock_shared(1129709568, p_migration);
        if current_setting('transaction_isolation') in ('repeatable read', 'serializable') then
            select phase into v_phase from cutover.trap_phases where migration_id = p_migration for share;
        else
            select phase into v_phase from cutover.trap_phases where migration_id = p_migration;
        end if;
        v_phase := coalesce(v_phase, 'off');
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
-- Also where functions are nobody's by default.
grant execute on function cutover.stranger(integer, boolean) to public;

-- As before, but for the end: an epoch of `ramp` reads the side for as long as a transaction of it can still run.
create or replace function cutover.note_repairs(
    p_migration integer, p_epoch integer, p_side text, p_keys jsonb, p_error text)
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
    insert into cutover.repairs (migration_id, side, key, error)
        select distinct on (key) p_migration, p_side, key, p_error
        from jsonb_array_elements(p_keys) as keys (key) order by key
        on conflict (migration_id, side, key) do update
            set version = excluded.version, error = excluded.error, attempts = 0, dead = false,
                next_try_at = clock_timestamp();
    return true;
end
$$;

-- Last, because every fence reads this table. Where the log was when nothing was left to repair at an epoch that is sealed: a standby that has replayed it has every
-- row that a repair mended after the copy had ended.
alter table cutover.epochs add column sealed_lsn pg_lsn;
