//! Events during a wait: another person sets another phase, the service follows a flag, a view needs the old column, the
//! reader of a pipe goes away.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

use cutover::migration::{Desired, Phase, PhaseRange, Target};
use cutover::migration::{DesiredPhase, FromLedger, MigrationSpec};
use cutover_testkit::wait_until;
use serde_json::Value;
use sqlx::{Connection, PgConnection, PgPool};

use crate::steps::{column, described, instance, went};
use crate::{Outcome, Said, command, database, done, execute, refused, run};

/// A migration that no instance drives.
const ORPHAN: &str = "
    insert into cutover.fleets values ('shop');
    insert into cutover.migrations (fleet, name) values ('shop', 'status');
    insert into cutover.epochs (migration_id, epoch, phase, actor, reason)
        select id, 1, 'off', 'me', 'test' from cutover.migrations";

async fn orphan() -> Result<String, Box<dyn std::error::Error>> {
    let url = database().await?;
    done(&url, &["install"], &[]).await;
    execute(&url, ORPHAN).await?;
    Ok(url)
}

async fn asked_for(url: &str, phase: &str) -> Outcome {
    let pool = PgPool::connect(url).await?;
    wait_until("what was asked for", Duration::from_secs(60), async || {
        let desired: Option<String> =
            sqlx::query_scalar("select desired from cutover.migrations").fetch_one(&pool).await?;
        Ok::<_, sqlx::Error>(desired.as_deref() == Some(phase))
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn a_wait_ends_when_another_person_sets_an_earlier_phase() -> Outcome {
    let url = &orphan().await?;
    let waiting = tokio::spawn({
        let url = url.clone();
        async move { run(&url, &["expand", "status", "--timeout", "1m", "--json"]).await }
    });
    asked_for(url, "expand").await?;
    done(url, &["--actor", "bob", "set-phase", "status", "off"], &[]).await;
    let said = waiting.await?;
    let json: Value = serde_json::from_str(&said.out)?;
    assert_eq!((said.code, &json["done"]), (1, &false.into()), "{}{}", said.out, said.err);
    assert_eq!(json["overruled"], "bob has set the desired phase to `off`");
    Ok(())
}

#[tokio::test]
async fn an_interrupt_ends_the_wait_and_not_the_step() -> Outcome {
    let url = &orphan().await?;
    let child = command(url, &["expand", "status"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let id = child.id().to_string();
    asked_for(url, "expand").await?;
    let waited = tokio::task::spawn_blocking(move || child.wait_with_output());
    assert!(std::process::Command::new("kill").args(["-INT", &id]).status()?.success());
    let said = Said::from(waited.await??);
    assert_eq!(said.code, 4, "{}{}", said.out, said.err);
    assert!(said.out.contains("not done yet"), "{}", said.out);
    assert!(said.err.contains("no instance drives it"), "{}", said.err);
    asked_for(url, "expand").await
}

/// As during a failover. Another person's command, after it, ends the wait.
#[tokio::test]
async fn a_wait_goes_on_after_an_outage_of_the_ledger() -> Outcome {
    let url = &orphan().await?;
    let (server, name) = url.rsplit_once('/').ok_or("a name")?;
    let allow = async |is_allowed: bool| {
        let alter = format!("alter database {name} allow_connections {is_allowed}");
        execute(&format!("{server}/postgres"), &alter).await
    };
    let mut child = command(url, &["expand", "status", "--timeout", "1m"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    asked_for(url, "expand").await?;
    allow(false).await?;
    let terminate =
        format!("select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'");
    execute(&format!("{server}/postgres"), &terminate).await?;
    let said = BufReader::new(child.stderr.take().ok_or("piped")?);
    let lines = tokio::task::spawn_blocking(move || {
        let mut lines = said.lines().map_while(Result::ok);
        lines.find(|line| line.contains("is asked again for 60 s")).map(|_| lines)
    });
    let rest = lines.await?;
    assert!(rest.is_some(), "{:?}", Said::from(child.wait_with_output()?).code);
    allow(true).await?;
    done(url, &["--actor", "bob", "set-phase", "status", "off"], &[]).await;
    let said = Said::from(tokio::task::spawn_blocking(move || child.wait_with_output()).await??);
    assert!(said.code == 1 && said.out.contains("bob has set"), "{}: {}", said.code, said.out);
    Ok(())
}

#[tokio::test]
async fn a_closed_pipe_does_not_change_the_exit_status() -> Outcome {
    let url = &orphan().await?;
    for (arguments, code) in [
        (&["plan", "status"][..], 0),
        (&["expand", "status", "--dry-run"][..], 0),
        (&["preflight", "--fleet", "shop", "--range", "status=ramp..=contract"][..], 1),
        (&["expand", "nobody"][..], 1),
        (&["expand", "status", "--timeout", "1s"][..], 4),
    ] {
        let mut child = command(url, arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        drop((child.stdout.take(), child.stderr.take()));
        let status = tokio::task::spawn_blocking(move || child.wait()).await??;
        assert_eq!(status.code(), Some(code), "{arguments:?}");
    }
    Ok(())
}

#[derive(Debug)]
struct Flag;

impl DesiredPhase for Flag {
    fn target(&self) -> Option<Target> {
        Some(Target::Desired(Desired::from(Phase::Off)))
    }

    fn actor(&self) -> &str {
        "flag shop.status"
    }
}

#[tokio::test]
async fn a_service_that_follows_a_flag_is_reported() -> Outcome {
    let url = &database().await?;
    done(url, &["install"], &[]).await;
    execute(url, "create table orders (id bigint primary key, old_status text)").await?;
    let _agent =
        instance(url, "stable", MigrationSpec::new("status", PhaseRange::FULL).desired(Flag)).await?;
    done(url, &["plan", "status"], &["takes the desired phase from flag shop.status, not from"]).await;
    refused(url, &["set-phase", "status", "expand"], 1, &["from flag shop.status; set it there"]).await;
    let said = run(url, &["expand", "status", "--timeout", "1s"]).await;
    assert_eq!(said.code, 4, "{}{}", said.out, said.err);
    assert!(said.err.contains("from flag shop.status; set it to `expand` there"), "{}", said.err);
    Ok(())
}

#[tokio::test]
async fn a_plan_names_what_blocks_each_step() -> Outcome {
    let url = &database().await?;
    done(url, &["install"], &[]).await;
    execute(
        url,
        "create table orders (id bigint primary key, old_status text); \
         create view report as select old_status from orders",
    )
    .await?;
    let range = PhaseRange::new(Phase::Off..=Phase::Verify).ok_or("not empty")?;
    let spec = MigrationSpec::new("status", range).plan(column(url).await?).desired(FromLedger);
    let agent = instance(url, "older", spec).await?;
    went(url, &["expand", "status"]).await;
    let parts = [
        "statements published by version older",
        "yes  every live instance supports the phase",
        "no   every live instance supports the phase: instance older to stop: its build supports off..=verify and not `ramp`",
        "no   nothing else depends on the old side: view report",
    ];
    done(url, &["plan", "status"], &parts).await;
    let json: Value = serde_json::from_str(&done(url, &["plan", "status", "--json"], &[]).await)?;
    let last = json["steps"].as_array().and_then(|steps| steps.last()).ok_or("steps")?;
    let waits: Vec<&Value> =
        last["needs"].as_array().ok_or("needs")?.iter().map(|n| &n["waits_for"]).collect();
    assert!(waits.contains(&&"view report".into()), "{last}");
    agent.leave().await?;
    // Another build sees to the view itself.
    let plan = described(url).await?.contract_sql("drop view if exists report").build()?;
    let _agent = instance(url, "newer", MigrationSpec::new("status", PhaseRange::FULL).plan(plan)).await?;
    done(url, &["plan", "status"], &["?    nothing else depends on the old side: view report"]).await;
    execute(url, "drop view report").await?;
    done(url, &["plan", "status"], &["yes  nothing else depends on the old side"]).await;
    Ok(())
}

#[tokio::test]
async fn a_plan_shows_the_statements_of_the_driver() -> Outcome {
    let url = &database().await?;
    done(url, &["install"], &[]).await;
    execute(url, "create table orders (id bigint primary key, old_status text)").await?;
    let spec = || async {
        Ok::<_, Box<dyn std::error::Error>>(
            MigrationSpec::new("status", PhaseRange::FULL).plan(column(url).await?),
        )
    };
    let old = instance(url, "old", spec().await?).await?;
    wait_until("a driver", Duration::from_secs(60), async || {
        let json: Value = serde_json::from_str(&run(url, &["plan", "status", "--json"]).await.out)?;
        Ok::<_, serde_json::Error>(json["driver"] == "old")
    })
    .await?;
    let new = instance(url, "new", spec().await?).await?;
    done(url, &["plan", "status"], &["statements published by version old"]).await;
    old.leave().await?;
    drop(old);
    done(url, &["plan", "status"], &["statements published by version new"]).await;
    drop(new);
    Ok(())
}

#[tokio::test]
async fn a_build_that_may_not_publish_its_plan_still_works() -> Outcome {
    let url = &database().await?;
    execute(
        url,
        "do $$ begin create role publisher login; exception when duplicate_object then null; end $$",
    )
    .await?;
    done(url, &["install", "--grant-to", "publisher"], &[]).await;
    execute(
        url,
        "create table orders (id bigint primary key, old_status text); alter table orders owner to publisher; \
         grant create on schema public to publisher; revoke insert, update on cutover.plans from publisher",
    )
    .await?;
    let role = &url.replace("//postgres:", "//publisher:");
    let _agent =
        instance(role, "stable", MigrationSpec::new("status", PhaseRange::FULL).plan(column(role).await?))
            .await?;
    went(url, &["expand", "status"]).await;
    done(url, &["plan", "status"], &["no build has published its statements"]).await;
    Ok(())
}

#[tokio::test]
async fn a_dry_run_changes_nothing() -> Outcome {
    let url = &database().await?;
    for command in ["plan", "expand", "backfill", "verify", "contract"] {
        refused(url, &[command, "status"], 3, &["does not exist", "cutover install"]).await;
    }
    done(url, &["install"], &[]).await;
    execute(url, ORPHAN).await?;
    execute(
        url,
        "alter table cutover.epochs disable trigger all; \
         insert into cutover.epochs (migration_id, epoch, phase, previous_phase, actor, reason) \
             values (1, 2, 'retire', 'switch', 'me', 'test'); \
         update cutover.migrations set epoch = 2, phase = 'retire', old_complete = false, new_complete = true; \
         insert into cutover.repairs (migration_id, side, key, error) values (1, 'old', '7', 'picky')",
    )
    .await?;
    done(url, &["contract", "status", "--dry-run"], &["no   a person has approved the drop: approval"]).await;
    done(url, &["set-phase", "status", "contract", "--dry-run"], &["retire → contract", "no   a person"])
        .await;
    done(url, &["set-phase", "status", "off", "--dry-run"], &["would go back from `retire` to `off`"]).await;
    done(url, &["repairs", "status", "--retry", "--dry-run"], &["would retry 1 row\n"]).await;
    refused(url, &["repairs", "status", "--dry-run"], 2, &["--retry"]).await;
    let mut session = PgConnection::connect(url).await?;
    let traces = "select (select count(*) from cutover.approvals) + (select count(*) from cutover.history) \
                  + (select count(*) from cutover.migrations where desired is not null)";
    assert_eq!(sqlx::query_scalar::<_, i64>(traces).fetch_one(&mut session).await?, 0);
    done(url, &["contract", "status", "--no-wait"], &["desired phase set to contract"]).await;
    assert_eq!(sqlx::query_scalar::<_, i64>(traces).fetch_one(&mut session).await?, 4);
    Ok(())
}
