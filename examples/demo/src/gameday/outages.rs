//! Faults of servers: down, slow, full, moved, or sending invalid responses.

use std::time::{Duration, Instant};

use cutover_testkit::{Postgres, Prometheus, Proxy, wait_until};
use sqlx::{Connection, Executor, PgConnection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::{day::Day, operations::follow, steps::found, world::port};
use crate::{
    database::Side,
    failure::{During, Failure, Result},
    judge,
    proxy::STABLE,
};

const BOUND: Duration = Duration::from_secs(60);

pub(super) async fn postgres_restart(day: &mut Day) -> Result<()> {
    day.go("ramp:50").await?;
    day.fault("restarting Postgres");
    day.postgres()?.restart().await?;
    day.recovered().await?;
    day.fault("Postgres is killed, and restarts after three seconds");
    day.postgres()?.kill9().await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    day.postgres()?.restart().await?;
    day.recovered().await?;
    day.go("retire").await
}

/// Waits until the standby has replayed everything that the primary has written.
async fn caught_up(primary: &Postgres, standby: &Postgres) -> Result<()> {
    let mut first = PgConnection::connect(&primary.admin_url()).await?;
    let mut second = PgConnection::connect(&standby.admin_url()).await?;
    let at: String = sqlx::query_scalar("select pg_current_wal_lsn()::text").fetch_one(&mut first).await?;
    found("the standby to catch up", BOUND, async || {
        let replayed = sqlx::query_scalar::<_, bool>("select pg_last_wal_replay_lsn() >= $1::pg_lsn");
        Ok(replayed.bind(&at).fetch_one(&mut second).await?.then_some(()))
    })
    .await
}

pub(super) async fn failover(day: &mut Day) -> Result<()> {
    let standby = day.postgres()?.standby().await?;
    caught_up(day.postgres()?, &standby).await?;
    let name = standby.name();
    day.postgres()?.execute(&format!("alter system set synchronous_standby_names = '{name}'")).await?;
    day.postgres()?.execute("select pg_reload_conf()").await?;
    day.sql("select pg_sleep(0.5)").await?;
    day.go("ramp:50").await?;
    day.ask_for("switch").await?;
    day.fault("failover: the primary is killed, the synchronous standby is promoted");
    day.postgres()?.kill9().await?;
    // Otherwise its writes wait for a standby.
    standby.execute("alter system set synchronous_standby_names = ''").await.ok();
    standby.promote().await?;
    standby.execute("alter system reset synchronous_standby_names").await?;
    standby.execute("select pg_reload_conf()").await?;
    day.gates.postgres.lead_to(standby.port());
    day.gates.postgres.cut();
    day.standby = Some(standby);
    day.recovered().await?;
    let began = Instant::now();
    day.walk.arrive("switch", began).await?;
    day.go("retire").await
}

/// Writes that were acknowledged while the standby was connected must survive. Later ones may be lost, and everything
/// that is read after the failover must be consistent.
pub(super) async fn failover_lagging(day: &mut Day) -> Result<()> {
    let standby = day.postgres()?.standby().await?;
    day.go("ramp:50").await?;
    day.step("the standby is disconnected from the primary");
    standby.execute("alter system set primary_conninfo = ''").await?;
    // The standby has everything that was acknowledged before this. It is asynchronous, so the rest is unknown.
    let separated = day.customers.recorder.now();
    caught_up(day.postgres()?, &standby).await?;
    standby.execute("select pg_reload_conf()").await?;
    let has_no_standby = "select not exists (select from pg_stat_replication)";
    wait_until("the primary to have no standby", BOUND, async || {
        sqlx::query_scalar::<_, bool>(has_no_standby).fetch_one(&day.servers.database.pool).await
    })
    .await?;
    day.go("switch").await?;
    day.fault("failover: the primary is killed, the lagging standby is promoted");
    day.gates.postgres.hold();
    day.postgres()?.kill9().await?;
    let killed = day.customers.recorder.now();
    standby.promote().await?;
    let port = standby.port();
    let url = standby.url("gameday");
    day.standby = Some(standby);
    let start = judge::values(&url, Side::Old).await?;
    let resumed = day.customers.recorder.now();
    day.gates.postgres.lead_to(port);
    day.gates.postgres.cut();
    day.gates.postgres.open();
    // Orders that were created meanwhile may be lost; do not request them.
    day.customers.forget_made();
    day.recovered().await?;
    day.go("retire").await?;
    day.judge_lossy_failover(separated, killed, resumed, &start).await
}

pub(super) async fn connections_cut(day: &mut Day) -> Result<()> {
    day.go("ramp:50").await?;
    for phase in ["switch", "retire"] {
        day.ask_for(phase).await?;
        let began = Instant::now();
        day.fault("all connections to Postgres are terminated");
        let ended = day
            .sql(
                "select pg_terminate_backend(pid) from pg_stat_activity \
                 where backend_type = 'client backend' and pid <> pg_backend_pid()",
            )
            .await?;
        day.outcome.notes.push(format!("{ended} connections terminated"));
        day.recovered().await?;
        day.walk.arrive(phase, began).await?;
    }
    Ok(())
}

pub(super) async fn partition(day: &mut Day) -> Result<()> {
    day.go("ramp:50").await?;
    let name = day.bystander().await?;
    day.fault(format!("{name} cannot reach Postgres"));
    day.fleet.find(&name)?.gate.as_ref().ok_or_else(|| Failure::new("the instance has no gate"))?.lose();
    day.noticed(&name).await?;
    day.served_by_the_others().await?;
    // The others go on without it when its lease has expired.
    day.go("switch").await?;
    day.go("retire").await?;
    day.step(format!("{name} can reach Postgres again"));
    day.fleet.find(&name)?.gate.as_ref().ok_or_else(|| Failure::new("the instance has no gate"))?.open();
    day.recovered().await
}

pub(super) async fn database_moved(day: &mut Day) -> Result<()> {
    day.go("ramp:50").await?;
    // The same server at a new address. The old address no longer answers.
    let new = Proxy::start(day.postgres()?.port())?;
    day.fault("the database moves to another address");
    day.gates.postgres.lead_to(new.port());
    day.gates.postgres.cut();
    day.keep_gate(new);
    day.recovered().await?;
    day.go("retire").await
}

pub(super) async fn disk_full(day: &mut Day) -> Result<()> {
    let Some(disk) = SmallDisk::mount()? else {
        day.outcome.notes.push("skipped: mounting a small disk requires root".to_owned());
        return Ok(());
    };
    day.go("ramp:50").await?;
    let path = disk.path.display();
    day.sql(&format!("create tablespace small location '{path}'")).await?;
    day.sql("alter table orders set tablespace small").await?;
    day.fault("the disk of the table is full");
    disk.fill()?;
    let refused = wait_until("a write to be refused", BOUND, async || {
        let full = "insert into orders (customer, amount_cents) select repeat('y', 100), 1 from generate_series(1, 500)";
        Ok::<_, Failure>(day.sql(full).await.is_err())
    });
    refused.await?;
    day.detected();
    tokio::time::sleep(Duration::from_secs(3)).await;
    disk.make_room()?;
    day.recovered().await?;
    day.go("retire").await?;
    day.sql("alter table orders set tablespace pg_default").await?;
    day.sql("drop tablespace small").await?;
    Ok(())
}

/// A file system of 24 MB, owned by Postgres's user. Dropping it unmounts it.
struct SmallDisk {
    path: std::path::PathBuf,
}

impl SmallDisk {
    /// `None` if this process may not mount.
    fn mount() -> Result<Option<Self>> {
        let path = std::env::temp_dir().join(format!("cutover-gameday-{}", std::process::id()));
        std::fs::create_dir_all(&path).during("creating the mount point")?;
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=24m,mode=777", "cutover-gameday"]).arg(&path);
        if !mount.output().is_ok_and(|output| output.status.success()) {
            let _ = std::fs::remove_dir(&path);
            return Ok(None);
        }
        let disk = Self { path };
        // Postgres requires a folder owned by its user.
        std::os::unix::fs::chown(&disk.path, Some(65_534), Some(65_534))
            .during("changing the owner of the small disk")?;
        Ok(Some(disk))
    }

    fn fill(&self) -> Result<()> {
        use std::io::Write;
        let mut file = std::fs::File::create(self.path.join("filling")).during("filling the small disk")?;
        while file.write_all(&[0; 4096]).is_ok() {}
        Ok(())
    }

    fn make_room(&self) -> Result<()> {
        std::fs::remove_file(self.path.join("filling")).during("emptying the small disk")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.path).output();
        let _ = std::fs::remove_dir(&self.path);
    }
}

pub(super) async fn connections_exhausted(day: &mut Day) -> Result<()> {
    day.go("ramp:50").await?;
    day.step("another program takes all free connections");
    day.sql("create role hoarder login").await?;
    let url = day.postgres()?.url("gameday").replace("postgres@", "hoarder@");
    let mut hoard = Vec::new();
    while let Ok(connection) = PgConnection::connect(&url).await {
        hoard.push(connection);
    }
    day.outcome.notes.push(format!("{} connections taken", hoard.len()));
    day.go("switch").await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    for connection in hoard {
        connection.close().await?;
    }
    day.go("retire").await
}

pub(super) async fn long_transaction(day: &mut Day) -> Result<()> {
    for (wanted, look) in [("expand", "off"), ("contract", "contract")] {
        if wanted == "contract" {
            day.go("backfill").await?;
            day.go("verify").await?;
            day.go("ramp:100").await?;
            day.go("retire").await?;
        }
        day.step(format!("a long transaction reads the table while {wanted} has to change it"));
        let mut reader = PgConnection::connect(&day.postgres()?.url("gameday")).await?;
        reader.execute("begin; select count(*) from orders").await?;
        day.ask_for(wanted).await?;
        let began = Instant::now();
        // Long enough for several attempts.
        tokio::time::sleep(Duration::from_secs(6)).await;
        let standing = day.walk.ledger.standing().await?.unwrap_or_default();
        if standing.phase != look {
            let phase = standing.phase;
            return Err(Failure::new(format!("the migration reached {phase} although the table was locked")));
        }
        day.outcome
            .notes
            .extend(standing.waits_for.map(|why| format!("the move to {wanted} waited for: {why}")));
        reader.close().await?;
        day.walk.arrive(wanted, began).await?;
    }
    wait_until("the old column to be dropped", BOUND, async || {
        day.servers.database.has_column("old_payment_status").await.map(|is_there| !is_there)
    })
    .await?;
    Ok(())
}

pub(super) async fn redis_restart(day: &mut Day) -> Result<()> {
    day.outcome.may_lose_sessions = true;
    day.fault("Redis restarts empty");
    day.redis()?.restart().await?;
    // All users have to log in again.
    day.customers.log_in().await?;
    day.recovered().await?;
    day.go("ramp:50").await
}

pub(super) async fn redis_failover(day: &mut Day) -> Result<()> {
    let replica = cutover_testkit::Redis::start().await?;
    follow(&replica, Some(port(&day.redis()?.url())?)).await?;
    let new = port(&replica.url())?;
    day.fault("failover to a replica of Redis");
    // A planned failover: nothing is written between the last replicated command and the promotion.
    day.gates.redis.hold();
    tokio::time::sleep(Duration::from_millis(500)).await;
    follow(&replica, None).await?;
    day.redis()?.process().kill().await?;
    day.gates.redis.lead_to(new);
    day.gates.redis.cut();
    day.gates.redis.open();
    day.recovered().await?;
    day.keep(replica);
    day.go("ramp:50").await
}

pub(super) async fn unleash_down(day: &mut Day) -> Result<()> {
    day.go("ramp:50").await?;
    day.step("Unleash is down, and an instance starts");
    day.gates.unleash.lose();
    day.fleet.start(2, STABLE).await?;
    day.ask_for("switch").await?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    day.still_at("ramp").await?;
    day.gates.unleash.open();
    let began = Instant::now();
    day.walk.arrive("switch", began).await
}

pub(super) async fn unleash_slow(day: &mut Day) -> Result<()> {
    day.go("ramp:50").await?;
    day.step("Unleash is slow");
    day.gates.unleash.slow(Duration::from_secs(2));
    day.gates.unleash.cut();
    tokio::time::sleep(Duration::from_secs(8)).await;
    day.gates.unleash.slow(Duration::ZERO);
    day.go("switch").await
}

pub(super) async fn unleash_invalid(day: &mut Day) -> Result<()> {
    day.go("ramp:50").await?;
    day.step("Unleash sends invalid responses");
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    day.gates.unleash.lead_to(listener.local_addr()?.port());
    day.gates.unleash.cut();
    let server = tokio::spawn(async move {
        for number in 0_usize.. {
            let Ok((mut stream, _)) = listener.accept().await else { return };
            let body = ["{\"version\":2,\"features\":[{\"na", "<html>503</html>", "null", "{}"][number % 4];
            let head =
                format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
        }
    });
    tokio::time::sleep(Duration::from_secs(8)).await;
    let still = day.still_at("ramp").await;
    server.abort();
    day.restore_unleash();
    still?;
    day.go("switch").await
}

pub(super) async fn prometheus_down(day: &mut Day) -> Result<()> {
    let targets = day.fleet.instances.iter().map(|instance| instance.endpoint.health).collect();
    let prometheus = Prometheus::start(targets, Duration::from_millis(500)).await?;
    let url = prometheus.url();
    tokio::time::sleep(Duration::from_secs(2)).await;
    day.step("Prometheus is down");
    drop(prometheus);
    let judged = day.judge_canary(&url, &[]).await?;
    if judged.status != Some(3) {
        return Err(Failure::new(format!(
            "cutover canary exited with {:?}: {}",
            judged.status, judged.output
        )));
    }
    day.outcome.notes.push(format!("cutover canary: {}", judged.output.trim()));
    day.go("ramp:50").await
}
