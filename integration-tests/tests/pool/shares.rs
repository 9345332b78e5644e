//! How the ledger divides connections among shares.

use std::time::Duration;

use cutover::fleet::{Fleet, FleetOptions};
use cutover::health::Health;
use cutover::ledger::Ledger;
use cutover::pool::{ConnectionShare, ShareError, ShareOptions};
use cutover::release::Release;
use cutover_testkit::{Postgres, wait_until};
use sqlx::{Connection, PgConnection};

use super::{LIMIT, Outcome, server};

/// Divides connections among requests of (minimum, maximum), one by one.
fn divided(connections: i64, requests: &[(i64, i64)]) -> Vec<i64> {
    let mut left = connections.max(0);
    let mut shares = Vec::new();
    for (min, _) in requests {
        shares.push(left.min(*min));
        left -= left.min(*min);
    }
    while left > 0 {
        let open = (0..shares.len()).filter(|at| shares[*at] < requests[*at].1);
        // The first one of the smallest.
        let Some(smallest) = open.min_by_key(|at| shares[*at]) else { break };
        shares[smallest] += 1;
        left -= 1;
    }
    shares
}

#[tokio::test]
async fn connections_are_divided_evenly_above_the_minimums() -> Outcome {
    let url = Postgres::fresh_database().await?;
    let _ledger = Ledger::open(url.parse()?).await?;
    let mut observer = PgConnection::connect(&url).await?;
    let mut random = fastrand::Rng::with_seed(7);
    for round in 0..150 {
        let requests: Vec<(i64, i64)> = (0..random.i64(0..9))
            .map(|_| {
                let min = random.i64(0..5);
                (min, min + random.i64(0..12))
            })
            .collect();
        let connections = random.i64(-2..60);
        let (mins, maxs): (Vec<i64>, Vec<i64>) = requests.iter().copied().unzip();
        sqlx::query(
            "insert into cutover.connection_shares (name, fleet, min_connections, max_connections, spare, requested_at, lease_until) \
             select 's' || n, 'f', min, max, 0, '2026-01-01'::timestamptz + n * interval '1 s', now() + interval '1 hour' \
             from unnest($1::bigint[], $2::bigint[]) with ordinality as r (min, max, n)",
        )
        .bind(mins)
        .bind(maxs)
        .execute(&mut observer)
        .await?;
        sqlx::query("select cutover.divide_connections('', $1)")
            .bind(connections)
            .execute(&mut observer)
            .await?;
        let targets: Vec<i64> =
            sqlx::query_scalar("select target from cutover.connection_shares order by requested_at")
                .fetch_all(&mut observer)
                .await?;
        sqlx::query("delete from cutover.connection_shares").execute(&mut observer).await?;
        assert_eq!(targets, divided(connections, &requests), "round {round}: {connections} for {requests:?}");
    }
    Ok(())
}

/// Instances start, leave, shrink slowly and are killed at random, on a server with few connections.
#[tokio::test]
async fn the_sum_of_the_shares_never_exceeds_the_server() -> Outcome {
    let postgres = server(60).await;
    let url = postgres.admin_url();
    let _ledger = Ledger::open(url.parse()?).await?;
    let mut observer = PgConnection::connect(&url).await?;
    let mut random = fastrand::Rng::with_seed(11);
    // Name, minimum, maximum, what it holds, and whether it is killed. A killed one holds nothing on this server.
    let mut shares: Vec<(String, i64, i64, i64, bool)> = Vec::new();
    let mut grown = 0;
    for step in 0..300 {
        let living = shares.iter().filter(|share| !share.4).count();
        match random.u8(0..10) {
            0 if living < 5 => {
                let min = random.i64(0..4);
                shares.push((format!("s{step}"), min, min + random.i64(0..20), 0, false));
            }
            1 if living > 0 => {
                let at = random.usize(0..shares.len());
                shares[at].4 = true;
                let ended = "update cutover.connection_shares set lease_until = now() - interval '1 s' where name = $1";
                sqlx::query(ended).bind(&shares[at].0).execute(&mut observer).await?;
            }
            _ if living > 0 => {
                let at = random.usize(0..shares.len());
                let (name, min, max, holding, is_killed) = &mut shares[at];
                if *is_killed {
                    continue;
                }
                let settle = "select granted, target, connections from cutover.settle_share($1, 'f', $2, $3, 3, 5, 60, $4)";
                let (granted, target, connections): (i64, i64, Option<i64>) = sqlx::query_as(settle)
                    .bind(&*name)
                    .bind(*min)
                    .bind(*max)
                    .bind(*holding)
                    .fetch_one(&mut observer)
                    .await?;
                assert!(granted >= *holding && target <= *max, "step {step}: {granted} of {target}");
                let has_grown = granted > *holding;
                grown += granted - *holding;
                // It gives back its idle connections, however many there are.
                *holding = granted - random.i64(0..=(granted - target).max(0));
                if let Some(connections) = connections {
                    let held: i64 = sqlx::query_scalar(
                        "select coalesce(sum(granted), 0)::bigint from cutover.connection_shares",
                    )
                    .fetch_one(&mut observer)
                    .await?;
                    // An instance that came meanwhile needs connections beside its pool, so the others hold too many.
                    assert!(!has_grown || held <= connections, "step {step}: {held} of {connections}");
                }
            }
            _ => {}
        }
        shares.retain(|share| !share.4);
    }
    assert!(grown > 100, "{grown} connections were granted");
    Ok(())
}

/// As the library calls it: name, `$1`, with a maximum of 20 and nothing that it holds.
const SETTLE: &str = "select granted from cutover.settle_share($1, 'f', 1, 20, 3, 5, 60, 0)";

/// The session that decides holds the lock and waits for rows, and a renewal waits for the lock.
#[tokio::test]
async fn a_renewal_that_waits_for_a_decision_locks_no_row() -> Outcome {
    let url = Postgres::fresh_database().await?;
    let _ledger = Ledger::open(url.parse()?).await?;
    let mut renewing = PgConnection::connect(&url).await?;
    let (mut earlier, mut deciding) =
        (PgConnection::connect(&url).await?, PgConnection::connect(&url).await?);
    sqlx::query(SETTLE).bind("s").execute(&mut renewing).await?;
    sqlx::raw_sql("update cutover.connection_shares set granted = 0, target = 0")
        .execute(&mut earlier)
        .await?;
    // A decision has changed the share while its renewal waits for the row, and the next decision has begun.
    sqlx::raw_sql("begin; update cutover.connection_shares set target = 7").execute(&mut earlier).await?;
    sqlx::raw_sql("begin; set local lock_timeout = '5s'; select pg_advisory_xact_lock(27995165641041267)")
        .execute(&mut deciding)
        .await?;
    let renewal =
        tokio::spawn(
            async move { sqlx::query_scalar::<_, i64>(SETTLE).bind("s").fetch_one(&mut renewing).await },
        );
    let mut observer = PgConnection::connect(&url).await?;
    waits_for(&mut observer, "transactionid").await?;
    sqlx::raw_sql("commit").execute(&mut earlier).await?;
    waits_for(&mut observer, "advisory").await?;
    sqlx::raw_sql("update cutover.connection_shares set target = 8; commit").execute(&mut deciding).await?;
    assert_eq!(renewal.await??, 20);
    Ok(())
}

/// Until a session of this database waits for a lock of this kind.
async fn waits_for(observer: &mut PgConnection, kind: &str) -> Outcome {
    let observer = tokio::sync::Mutex::new(observer);
    let waits = async || {
        let waiting = "select count(*) > 0 from pg_stat_activity \
                       where datname = current_database() and wait_event_type = 'Lock' and wait_event = $1";
        sqlx::query_scalar::<_, bool>(waiting).bind(kind).fetch_one(&mut **observer.lock().await).await
    };
    Ok(wait_until("a session that waits", LIMIT, waits).await?)
}

/// The comparison of a name has to be one that the index of the names can answer.
#[tokio::test]
async fn a_share_that_waits_does_not_read_all_others() -> Outcome {
    let postgres = server(30).await;
    let url = postgres.admin_url();
    let ledger = Ledger::open(url.parse()?).await?;
    let mut observer = PgConnection::connect(&url).await?;
    // So many that nothing is left for another one.
    sqlx::raw_sql(
        "insert into cutover.connection_shares (name, fleet, min_connections, max_connections, spare, lease_until) \
         select 's' || n, 'f', 1, 20, 3, now() + interval '1 hour' from generate_series(1, 1000) n; \
         analyze cutover.connection_shares",
    )
    .execute(&mut observer)
    .await?;
    let release = Release::new("shop", "1")?;
    let options = FleetOptions { renew_every: Duration::from_millis(80), ..FleetOptions::default() };
    let fleet = Fleet::join(ledger, &release, options, &Health::default()).await?;
    let wanted = ShareOptions { start_within: Duration::from_secs(3), ..ShareOptions::default() };
    let refused = ConnectionShare::lease(&fleet, &wanted).await;
    // The last answers held no numbers, because there was nothing to decide.
    assert!(
        matches!(refused, Err(ShareError::Budget { instances: 1001, needed: 1001, .. })),
        "{:?}",
        refused.err()
    );
    let observer = tokio::sync::Mutex::new(observer);
    let by_index = async || {
        let scans = "select idx_scan > seq_scan, idx_scan from pg_stat_user_tables where relname = 'connection_shares'";
        let (more, scans): (bool, i64) = sqlx::query_as(scans).fetch_one(&mut *observer.lock().await).await?;
        Ok::<_, sqlx::Error>(more && scans > 40)
    };
    // On a busy machine there were fewer so far.
    let patient = ShareOptions { start_within: LIMIT * 2, ..ShareOptions::default() };
    tokio::select! {
        share = ConnectionShare::lease(&fleet, &patient) => panic!("{:?}", share.err()),
        waited = wait_until("scans by the index", LIMIT, by_index) => waited?,
    }
    Ok(())
}
