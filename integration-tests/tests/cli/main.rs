//! The command line, run as a process against real servers.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed set-up is a failed test")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod browser;
mod console;
mod console_load;
mod endings;
mod files;
mod ledgers;
mod logins;
mod rollback;
mod secrets;
mod steps;
mod waits;

use std::process::{Command, Output, Stdio};
use std::time::Duration;

use cutover_testkit::{Postgres, PostgresOptions, free_port, program, wait_until};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

type Outcome = Result<(), Box<dyn std::error::Error>>;

const PASSWORD: &str = "s3cretive";

struct Said {
    code: i32,
    out: String,
    err: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Self { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
    }
}

fn command(url: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program().unwrap());
    command.args(arguments).env("DATABASE_URL", url).env("USER", "ann").env_remove("PGPASSWORD");
    command
}

async fn run(url: &str, arguments: &[&str]) -> Said {
    let mut command = command(url, arguments);
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    let said = Said::from(output);
    let all = format!("{}{}", said.out, said.err);
    assert!(!all.contains(PASSWORD), "{all}");
    assert!(!all.contains("panicked"), "{all}");
    said
}

/// Refused with this exit status, saying all of this on standard error and nothing on standard output.
async fn refused(url: &str, arguments: &[&str], code: i32, parts: &[&str]) {
    let said = run(url, arguments).await;
    assert_eq!((said.code, said.out.as_str()), (code, ""), "{arguments:?}: {}", said.err);
    for part in parts {
        assert!(said.err.contains(part), "{arguments:?}: {part:?} not in {}", said.err);
    }
}

/// Done, saying all of this.
async fn done(url: &str, arguments: &[&str], parts: &[&str]) -> String {
    let said = run(url, arguments).await;
    assert_eq!((said.code, said.err.as_str()), (0, ""), "{arguments:?}: {}", said.out);
    for part in parts {
        assert!(said.out.contains(part), "{arguments:?}: {part:?} not in {}", said.out);
    }
    said.out
}

async fn execute(url: &str, statements: &str) -> Outcome {
    let mut session = PgConnection::connect(url).await?;
    session.execute(AssertSqlSafe(statements)).await?;
    Ok(session.close().await?)
}

async fn database() -> Result<String, Box<dyn std::error::Error>> {
    // The server needs no password. The test checks that the output does not contain it.
    Ok(Postgres::fresh_database().await?.replace("postgres@", &format!("postgres:{PASSWORD}@")))
}

/// A migration in `expand`: one instance at work in an old operation, one dead, one that was refused, a backfill.
const STATE: &str = "
    insert into cutover.fleets values ('shop'), ('other');
    insert into cutover.migrations (fleet, name) values ('shop', 'status'), ('shop', 'name'), ('other', 'name');
    insert into cutover.epochs (migration_id, epoch, phase, actor, reason)
        select id, 1, 'off', 'me', 'test' from cutover.migrations;
    insert into cutover.epochs (migration_id, epoch, phase, previous_phase, actor, reason)
        values (1, 2, 'expand', 'off', 'me', 'test');
    update cutover.migrations set epoch = 2, phase = 'expand', desired = 'backfill', driver = 1,
        driver_until = now() + interval '1 hour', waits_for = 'instance pay-7c9 at epoch 1',
        waits_since = now() - interval '41 minutes' where id = 1;
    insert into cutover.instances (id, fleet, name, service, version, revision, lease_until, seen_at, admitted, refusal)
        values (1, 'shop', 'pay-7c9', 'pay', 'stable', 'r', now() + interval '10 minutes', now() - interval '3 s', true, null),
               (2, 'shop', 'dead', 'pay', 'stable', 'r', now() - interval '5 s', now() - interval '15 minutes', true, null),
               (3, 'shop', 'old', 'pay', 'canary', 'r', now() + interval '10 minutes', now() - interval '1 s', false,
                'this build does not know it');
    insert into cutover.acknowledgements (instance_id, migration_id, min_phase, max_phase, epoch, older_open, waits_since)
        values (1, 1, 'off', 'contract', 1, 2, now() - interval '41 minutes'),
               (2, 1, 'off', 'contract', 2, 0, null);
    insert into cutover.jobs (migration_id, kind, epoch, rows_total, rows_done, started_at)
        values (1, 'backfill', 2, 100, 40, now() - interval '10 s');";

#[tokio::test]
async fn status_explain_and_commands_agree_with_the_ledger() -> Outcome {
    let url = &database().await?;
    refused(url, &["status"], 3, &["does not exist", "cutover install"]).await;
    done(url, &["install"], &["installed"]).await;
    done(url, &["install"], &["installed"]).await;
    done(url, &["status"], &["the ledger has no migration"]).await;
    refused(url, &["set-phase", "status", "ramp"], 1, &["\"status\"", "the ledger has none"]).await;
    execute(url, STATE).await?;

    let text = done(
        url,
        &["status", "status"],
        &["shop/status  expand (epoch 2", "desired   backfill", "40 of 100 rows"],
    )
    .await;
    for part in
        ["pay-7c9", "serving, driver", "expired", "refused: this build does not know it", "off..=contract"]
    {
        assert!(text.contains(part), "{part} not in {text}");
    }
    assert!(!text.contains("other/name"), "{text}");
    done(url, &["status"], &["other/name", "shop/name"]).await;
    let json: serde_json::Value =
        serde_json::from_str(&done(url, &["--json", "status", "status"], &[]).await)?;
    assert_eq!((&json[0]["phase"], &json[0]["epoch"]), (&"expand".into(), &2.into()));
    assert_eq!(json[0]["instances"].as_array().map(Vec::len), Some(3));
    let json: serde_json::Value = serde_json::from_str(&done(url, &["status", "--json"], &[]).await)?;
    assert_eq!(json.as_array().map(Vec::len), Some(3));

    let explained = [
        "shop/status has been in `expand` (epoch 2) for ",
        "It has been waiting for 41 min: instance pay-7c9 at epoch 1.",
        "Instance pay-7c9 (last seen ",
        " s ago) is still at epoch 1, with 2 operations open for 41 min.",
        "Instance dead was last seen 15 min ago and its lease has expired.",
        "Instance old (last seen ",
        "is not admitted: this build does not know it.",
        "backfill: 40 of 100 rows",
    ];
    done(url, &["explain", "shop/status"], &explained).await;
    done(url, &["explain", "other/name"], &["It waits for nothing.", "No instance drives it"]).await;

    done(url, &["set-phase", "status", "ramp:25"], &["status: desired phase set to ramp:25"]).await;
    done(url, &["repairs"], &["no row waits for repair"]).await;
    execute(
        url,
        "insert into cutover.repairs (migration_id, side, key, error, attempts, dead, since) values \
            (1, 'new', '[7, \"eu\"]', 'violates check picky', 10, true, now() - interval '41 minutes'), \
            (2, 'new', '8', 'division by zero', 1, false, now())",
    )
    .await?;
    done(
        url,
        &["repairs", "status"],
        &["shop/status", "[7,\"eu\"]", "41 min", "given up", "violates check picky"],
    )
    .await;
    let json: serde_json::Value = serde_json::from_str(&done(url, &["--json", "repairs"], &[]).await)?;
    assert_eq!((json.as_array().map(Vec::len), &json[0]["key"][0]), (Some(2), &7.into()));
    done(url, &["repairs", "status", "--retry"], &["status: retrying 1 row\n"]).await;
    let json: serde_json::Value =
        serde_json::from_str(&done(url, &["--json", "repairs", "shop/status"], &[]).await)?;
    assert_eq!((&json[0]["attempts"], &json[0]["next_try_seconds"]), (&0.into(), &0.0.into()));
    done(url, &["history"], &["retry of 1 repairs requested", "ann"]).await;
    refused(url, &["repairs", "--retry"], 2, &["<MIGRATION>"]).await;

    done(url, &["pause", "status"], &["status: backfills and scans are paused"]).await;
    done(url, &["status", "status"], &["paused    backfills and scans, by ann (for "]).await;
    done(url, &["explain", "status"], &["Its backfills and scans were paused ", " ago by ann"]).await;
    let json: serde_json::Value =
        serde_json::from_str(&done(url, &["--json", "status", "status"], &[]).await)?;
    assert_eq!(json[0]["paused_by"], "ann");
    done(url, &["resume", "status"], &["status: backfills and scans are resumed"]).await;
    let text = done(url, &["status", "status"], &[]).await;
    assert!(!text.contains("paused"), "{text}");
    done(url, &["history", "status"], &["backfills and scans paused", "backfills and scans resumed", "ann"])
        .await;

    done(url, &["history"], &["desired phase set to ramp:25", "ann", "shop/status"]).await;
    done(url, &["history", "other/name"], &[]).await;
    let reason = "\u{1b}]0;title\u{7}\u{1b}[31mred\nof two lines";
    done(url, &["set-phase", "status", "ramp:25", "--reason", reason], &[]).await;
    let escaped = r"\u{1b}]0;title\u{7}\u{1b}[31mred\nof two lines";
    let history = done(url, &["history", "status", "--limit", "1"], &[escaped]).await;
    assert!(!history.contains('\u{1b}') && history.lines().count() == 2, "{history}");
    let json: serde_json::Value =
        serde_json::from_str(&done(url, &["--json", "history", "--limit", "1"], &[]).await)?;
    assert_eq!(json[0]["actor"], "ann");
    Ok(())
}

#[tokio::test]
async fn bad_input_is_refused_with_the_correction() -> Outcome {
    let url = &database().await?;
    done(url, &["install"], &[]).await;
    execute(url, STATE).await?;
    let state = "select md5(string_agg(m::text, '') || (select count(*) from cutover.history) || \
                 (select count(*) from cutover.approvals)) from cutover.migrations m";
    let mut session = PgConnection::connect(url).await?;
    let before: String = sqlx::query_scalar(state).fetch_one(&mut session).await?;
    for command in [
        "set-phase stauts ramp",
        "status stauts",
        "explain stauts",
        "history stauts",
        "approve stauts",
        "repairs stauts",
        "pause stauts",
        "resume stauts",
        "external-writes stauts",
        "plan stauts",
        "expand stauts",
        "backfill stauts --dry-run",
        "contract stauts",
    ] {
        let arguments: Vec<_> = command.split(' ').collect();
        refused(url, &arguments, 1, &["no migration \"stauts\"", "shop/status", "other/name"]).await;
    }
    refused(url, &["set-phase", "name", "ramp"], 1, &["several fleets", "shop/name"]).await;
    refused(url, &["set-phase", "status", "sideways"], 2, &["sideways", "not a phase", "contract"]).await;
    refused(url, &["set-phase", "status", "ramp:101"], 2, &["0 to 100", "ramp:25"]).await;
    refused(url, &["set-phase", "status", "switch:5"], 2, &["only `ramp`"]).await;
    refused(url, &["set-phase", "status"], 2, &["<PHASE>"]).await;
    refused(url, &["approve", "status"], 1, &["\"status\" is in `expand`", "`retire`"]).await;
    refused(
        url,
        &["verify", "status"],
        1,
        &["is in `expand`; before `verify`, run `cutover backfill status`"],
    )
    .await;
    refused(url, &["contract", "status"], 1, &["before `contract`, run `cutover backfill status`"]).await;
    for command in [&["verify", "status", "--json"][..], &["approve", "status", "--json"]] {
        let said = run(url, command).await;
        let json: serde_json::Value = serde_json::from_str(&said.out)?;
        assert!(
            said.code == 1 && json["error"].as_str().is_some_and(|text| text.contains("`expand`")),
            "{json}"
        );
    }
    refused(url, &["expand", "status", "--timeout", "soon"], 2, &["90s"]).await;
    refused(url, &["approve", "shop/name"], 1, &["is in `off`"]).await;
    refused(url, &["install", "--grant-to", "nobody at all"], 3, &["nobody at all"]).await;
    refused(url, &["frobnicate"], 2, &["frobnicate"]).await;
    let after: String = sqlx::query_scalar(state).fetch_one(&mut session).await?;
    assert_eq!(before, after);
    Ok(())
}

#[tokio::test]
async fn the_history_names_an_actor_without_a_user() -> Outcome {
    let url = &database().await?;
    done(url, &["install"], &[]).await;
    execute(url, STATE).await?;
    for (variables, actor) in [
        (&[("HOSTNAME", "ci-runner")][..], "role postgres on ci-runner"),
        (&[("HOSTNAME", "ci-runner"), ("USER", "")], "role postgres on ci-runner"),
        (&[("USER", "eve")], "eve"),
    ] {
        let mut command = command(url, &["set-phase", "status", "backfill"]);
        command.env_remove("USER").envs(variables.iter().copied());
        let said = Said::from(command.output()?);
        assert_eq!(said.code, 0, "{}", said.err);
        let json: serde_json::Value =
            serde_json::from_str(&done(url, &["--json", "history", "--limit", "1"], &[]).await)?;
        assert_eq!(json[0]["actor"], actor);
    }
    Ok(())
}

#[tokio::test]
async fn help_completions_and_manual_need_no_database() -> Outcome {
    for (arguments, parts) in [
        (&["--help"][..], &["Exit status:", "external-writes", "set-phase"][..]),
        (&["help", "expand"], &["--dry-run", "--timeout <DURATION>"]),
        (&["completions", "bash"], &["external-writes", "set-phase"]),
        (&["man"], &[".TH", "set"]),
        (&["man", "plan"], &["The last phase to show"]),
    ] {
        let mut command = command("", arguments);
        let said = Said::from(command.env_remove("DATABASE_URL").output()?);
        assert_eq!(said.code, 0, "{arguments:?}: {}", said.err);
        for part in parts {
            assert!(said.out.contains(part), "{arguments:?}: {part:?} not in {}", said.out);
        }
    }
    refused("", &["man", "frobnicate"], 2, &["no command \"frobnicate\"", "cutover --help"]).await;
    Ok(())
}

#[tokio::test]
async fn an_unusable_ledger_is_reported() -> Outcome {
    let mut bare = command("", &["status"]);
    bare.env_remove("DATABASE_URL");
    let said = Said::from(bare.output()?);
    assert!(said.code == 2 && said.err.contains("DATABASE_URL"), "{}", said.err);
    refused(&format!("postgres://me:{PASSWORD}@host:port/x"), &["status"], 2, &["postgres://host/name"])
        .await;
    refused(&format!("mysql://me:{PASSWORD}@host/x"), &["status"], 2, &["postgres://host/name"]).await;
    let closed = format!("postgres://me:{PASSWORD}@127.0.0.1:{}/x", free_port()?);
    refused(
        &closed,
        &["status"],
        3,
        &["\"x\" at 127.0.0.1:", "role \"me\"", "refused", "check host and port"],
    )
    .await;
    refused(&closed, &["status", "--only", "eu"], 2, &["--only eu", "--ledger NAME=URL"]).await;
    let said = run(&closed, &["status", "--json"]).await;
    let json: serde_json::Value = serde_json::from_str(&said.out)?;
    assert!(said.code == 3 && json["error"].as_str().is_some_and(|text| text.contains("refused")), "{json}");

    let url = &database().await?;
    let missing = url.replace("test_", "missing_");
    refused(&missing, &["status"], 3, &["missing_", "does not exist", "check the name of the database"])
        .await;
    // A variable without a value, as a file of variables may have it.
    let mut empty = command(url, &["status"]);
    let said = Said::from(empty.env("CUTOVER_LEDGERS", "").env("PROMETHEUS_URL", "").output()?);
    assert!(said.code == 3 && said.err.contains("cutover install"), "{}{}", said.out, said.err);
    execute(url, "create role clerk login; create role guest login").await?;
    let clerk = url.replace("//postgres:", "//clerk:");
    refused(&clerk, &["install"], 3, &["role \"clerk\" may not create it", "--grant-to clerk"]).await;
    refused(&clerk, &["status"], 3, &["does not exist"]).await;
    done(url, &["install", "--grant-to", "clerk"], &["granted to clerk"]).await;
    execute(url, STATE).await?;
    done(&clerk, &["set-phase", "status", "expand"], &["desired phase set to expand"]).await;
    let guest = url.replace("//postgres:", "//guest:");
    refused(&guest, &["status"], 3, &["permission denied for role \"guest\""]).await;
    execute(url, "grant usage on schema cutover to guest; grant select on cutover.ledger to guest").await?;
    refused(&guest, &["status"], 3, &["permission denied"]).await;
    execute(url, "update cutover.ledger set version = 8, compatible_from = 7").await?;
    for command in ["status", "install", "approve status"] {
        let arguments: Vec<_> = command.split(' ').collect();
        refused(url, &arguments, 3, &["version 8", "newer `cutover`"]).await;
    }
    Ok(())
}

#[tokio::test]
async fn an_approval_is_given_in_retire_only() -> Outcome {
    let url = &database().await?;
    done(url, &["install"], &[]).await;
    execute(url, STATE).await?;
    execute(
        url,
        "update cutover.epochs set closed_at = now(), drained_at = now() where migration_id = 1; \
         alter table cutover.epochs disable trigger all; \
         insert into cutover.epochs (migration_id, epoch, phase, previous_phase, actor, reason) \
             values (1, 3, 'retire', 'switch', 'me', 'test'); \
         update cutover.migrations set epoch = 3, phase = 'retire', old_complete = false, new_complete = true where id = 1",
    )
    .await?;
    done(url, &["approve", "status", "--reason", "two weeks quiet"], &["approved"]).await;
    done(url, &["approve", "status"], &["approved; the approval expires at 20"]).await;
    let need = "a person has approved the drop";
    done(url, &["plan", "status"], &[&format!("yes  {need}")]).await;
    execute(url, "update cutover.approvals set expires_at = now() - interval '1 s'").await?;
    done(url, &["plan", "status"], &[&format!("no   {need}"), "valid for seven days"]).await;
    done(url, &["approve", "status", "--json"], &["\"20"]).await;
    done(url, &["plan", "status"], &[&format!("yes  {need}")]).await;
    done(url, &["history"], &["contract approved", "two weeks quiet"]).await;
    Ok(())
}

#[tokio::test]
async fn a_standby_is_refused() -> Outcome {
    let primary = Postgres::start(PostgresOptions::default()).await?;
    let standby = primary.standby().await?;
    refused(&standby.admin_url(), &["status"], 3, &["standby", "primary"]).await;
    Ok(())
}

#[tokio::test]
async fn a_watch_ends_when_its_output_is_closed() -> Outcome {
    let url = &database().await?;
    done(url, &["install"], &[]).await;
    execute(url, STATE).await?;
    let mut child = command(url, &["status", "--watch", "--json"]).stdout(Stdio::piped()).spawn()?;
    let out = child.stdout.take().expect("piped");
    let twice = tokio::task::spawn_blocking(move || {
        let mut values = serde_json::Deserializer::from_reader(out).into_iter::<serde_json::Value>();
        [values.next(), values.next()].into_iter().flatten().filter(Result::is_ok).count()
    });
    assert_eq!(twice.await?, 2);
    // The reader is gone.
    let mut status = None;
    wait_until("the end of it", Duration::from_secs(60), || {
        status = child.try_wait().ok().flatten();
        let is_over = status.is_some();
        async move { Ok::<_, std::io::Error>(is_over) }
    })
    .await?;
    assert!(status.is_some_and(|status| status.success()), "{status:?}");
    Ok(())
}

#[tokio::test]
async fn preflight_reports_problems_with_exit_status_1() -> Outcome {
    let url = database().await?;
    done(&url, &["install"], &[]).await;
    execute(&url, "insert into cutover.fleets values ('shop')").await?;
    execute(
        &url,
        "insert into cutover.migrations (fleet, name) values ('shop', 'preflown'); \
         insert into cutover.epochs (migration_id, epoch, phase, actor, reason) \
             select id, 1, 'off', 'a', 'r' from cutover.migrations where name = 'preflown'",
    )
    .await?;
    let fits = ["preflight", "--fleet", "shop", "--range", "preflown=off..=contract", "--instances", "3"];
    let said = run(&url, &fits).await;
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    let late =
        ["preflight", "--fleet", "shop", "--range", "preflown=retire..=contract", "--instances", "1000"];
    let said = run(&url, &late).await;
    assert_eq!(said.code, 1, "{}{}", said.out, said.err);
    for part in [
        "problem  connections: 0 connections are fewer than one for each of 1000 instances",
        "problem  migrations: migration \"preflown\" is in `off`",
    ] {
        assert!(said.out.contains(part), "{part:?} not in {}", said.out);
    }
    let json: serde_json::Value =
        serde_json::from_str(&run(&url, &[&late[..], &["--json"]].concat()).await.out)?;
    assert_eq!(json["passed"], false);
    for (bad, part) in [
        ("status", "write for example status=off..=contract"),
        ("s=switch..=off", "the range is empty"),
        ("s=up..=off", "is not a phase"),
    ] {
        refused(&url, &["preflight", "--fleet", "shop", "--range", bad], 2, &[part]).await;
    }
    Ok(())
}
