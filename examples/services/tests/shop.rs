//! The page "The code of a whole migration": its releases as processes, moved by its commands, from the first deploy to the
//! release that no longer has the migration.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail the test")]

use std::process::Command;
use std::time::Duration;

use cutover_testkit::{Folder, Postgres, Process, Signal, free_port, wait_until};
use sqlx::{Executor, PgPool};

const LIMIT: Duration = Duration::from_secs(60);

/// A running release.
struct Release {
    process: Process,
    public: String,
    readyz: String,
    _folder: Folder,
}

impl Release {
    /// Starts a release and waits until it is ready.
    async fn deploy(program: &str, url: &str) -> Self {
        let release = Self::start(program, url).await;
        release.is_ready(200, "").await;
        release
    }

    async fn start(program: &str, url: &str) -> Self {
        let (public, admin) = (free_port().unwrap(), free_port().unwrap());
        let folder = Folder::new("shop").unwrap();
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("DATABASE_URL", url)
            .env("LISTEN_ADDR", format!("127.0.0.1:{public}"))
            .env("ADMIN_ADDR", format!("127.0.0.1:{admin}"))
            .env("CUTOVER_GRACE_SECONDS", "20")
            .env("CUTOVER_PROPAGATION_SECONDS", "1")
            .env("CUTOVER_INSTANCE", format!("shop-{admin}"));
        let process = Process::spawn(&folder, "shop", Signal::TERM, &command).unwrap();
        let readyz = format!("http://127.0.0.1:{admin}/readyz");
        Self { process, public: format!("http://127.0.0.1:{public}"), readyz, _folder: folder }
    }

    /// Waits until `/readyz` answers with this status and a text that contains `part`.
    async fn is_ready(&self, status: u16, part: &str) {
        let ask = async || {
            if let Some(status) = self.process.exited() {
                panic!("ended with {status}: {}", self.process.log_tail());
            }
            let answer = reqwest::get(&self.readyz).await?;
            let (found, text) = (answer.status().as_u16(), answer.text().await?);
            Ok::<_, reqwest::Error>(found == status && text.contains(part))
        };
        wait_until(&format!("{status} {part}"), LIMIT, ask)
            .await
            .unwrap_or_else(|error| panic!("{error}: {}", self.process.log_tail()));
    }

    async fn stop(self) {
        self.process.signal(Signal::TERM).unwrap();
        assert_eq!(self.process.wait(LIMIT).await.unwrap().code(), Some(0), "{}", self.process.log_tail());
    }

    async fn send(&self, method: reqwest::Method, path: &str) -> String {
        let answer =
            reqwest::Client::new().request(method, format!("{}{path}", self.public)).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 200, "{path}: {}", self.process.log_tail());
        answer.text().await.unwrap()
    }

    /// Adds an order and changes it, and checks that all orders so far are read as they were written.
    async fn trade(&self, orders: &mut Vec<String>) {
        let id = self.send(reqwest::Method::POST, "/orders").await;
        assert_eq!(self.send(reqwest::Method::GET, &format!("/orders/{id}")).await, "open");
        orders.push(id);
        for id in orders {
            self.send(reqwest::Method::PUT, &format!("/orders/{id}/paid")).await;
            assert_eq!(self.send(reqwest::Method::GET, &format!("/orders/{id}")).await, "paid");
        }
        assert_eq!(self.send(reqwest::Method::GET, "/orders/1").await, "open", "never changed");
    }
}

const CHAPTER: &str = include_str!("../../../docs/whole-migration.md");

/// The commands of the chapter: those between two pieces of text belong together.
fn commands() -> Vec<Vec<&'static str>> {
    let blocks = CHAPTER.split("```text\n").skip(1).filter_map(|rest| rest.split("```").next());
    blocks.map(|block| block.lines().filter_map(|line| line.strip_prefix("$ cutover ")).collect()).collect()
}

/// Runs a command of the chapter, which waits until its work is done.
async fn run(url: &str, command: &str) -> String {
    // Only a reason has blanks.
    let (words, reason) = command.split_once(" \"").unwrap_or((command, ""));
    let mut process = tokio::process::Command::new(cutover_testkit::program().unwrap());
    process.args(words.split(' ')).env("DATABASE_URL", url).env("USER", "ann");
    if !reason.is_empty() {
        process.arg(reason.trim_end_matches('"'));
    }
    let output = tokio::time::timeout(LIMIT, process.output()).await.unwrap().unwrap();
    assert_eq!(output.status.code(), Some(0), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
async fn the_first_migration_runs_through_its_releases() {
    let url = Postgres::fresh_database().await.unwrap();
    let pool = PgPool::connect(&url).await.unwrap();
    let table = "create table orders (id bigserial primary key, old_status text)";
    pool.execute(table).await.unwrap();
    pool.execute("insert into orders (old_status) select 'OPEN' from generate_series(1, 1000)")
        .await
        .unwrap();
    let mut orders = Vec::new();

    let first = Release::deploy(env!("CARGO_BIN_EXE_shop_1"), &url).await;
    first.trade(&mut orders).await;
    // A rolling deploy: both releases run for a while.
    let second = Release::deploy(env!("CARGO_BIN_EXE_shop_2"), &url).await;
    second.trade(&mut orders).await;
    first.trade(&mut orders).await;
    first.stop().await;
    let [forward, retire, contract, status, forget] = &*commands() else { panic!("{:?}", commands()) };
    for command in forward {
        run(&url, command).await;
        second.trade(&mut orders).await;
    }
    run(&url, "rollback order-status").await;
    second.trade(&mut orders).await;
    for command in forward[3..].iter().chain(retire) {
        run(&url, command).await;
        second.trade(&mut orders).await;
    }
    // Release 1 is not admitted any more.
    let rolled_back = Release::start(env!("CARGO_BIN_EXE_shop_1"), &url).await;
    rolled_back.is_ready(503, "order-status").await;
    rolled_back.stop().await;

    let third = Release::deploy(env!("CARGO_BIN_EXE_shop_3"), &url).await;
    third.trade(&mut orders).await;
    second.trade(&mut orders).await;
    second.stop().await;
    third.trade(&mut orders).await;
    // A day passes.
    let a_day_ago = "update cutover.epochs set opened_at = opened_at - interval '25 hours'";
    pool.execute(a_day_ago).await.unwrap();
    run(&url, contract[0]).await;
    let dropped = "select not exists (select from pg_attribute where attrelid = 'orders'::regclass \
        and attname = 'old_status' and not attisdropped)";
    wait_until("the old column to be dropped", LIMIT, async || {
        sqlx::query_scalar::<_, bool>(dropped).fetch_one(&pool).await
    })
    .await
    .unwrap();
    third.trade(&mut orders).await;
    third.stop().await;
    // Release 3 still starts, for example after a crash.
    let again = Release::deploy(env!("CARGO_BIN_EXE_shop_3"), &url).await;
    again.trade(&mut orders).await;
    let said = run(&url, status[0]).await;
    assert!(said.contains("can be removed"), "{said}");

    let fourth = Release::deploy(env!("CARGO_BIN_EXE_shop_4"), &url).await;
    fourth.trade(&mut orders).await;
    again.trade(&mut orders).await;
    again.stop().await;
    run(&url, forget[0]).await;
    fourth.trade(&mut orders).await;
    fourth.stop().await;
}

#[tokio::test]
async fn later_releases_start_in_a_fresh_database() {
    let url = Postgres::fresh_database().await.unwrap();
    let pool = PgPool::connect(&url).await.unwrap();
    let mut tables = CHAPTER.split("```sql\n").skip(1).filter_map(|rest| rest.split("```").next());
    let table = tables.find(|table| table.contains("new_status text")).unwrap();
    pool.execute(table).await.unwrap();
    pool.execute("insert into orders (new_status) values ('open')").await.unwrap();
    let mut orders = Vec::new();
    for program in [env!("CARGO_BIN_EXE_shop_3"), env!("CARGO_BIN_EXE_shop_4")] {
        let release = Release::deploy(program, &url).await;
        release.trade(&mut orders).await;
        release.stop().await;
    }
}
