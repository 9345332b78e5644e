//! The dashboards, with data of a running service.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use axum::Router;
use axum::extract::Path;
use axum::routing::get;
use cutover::Cutover;
use cutover::front::Instance;
use cutover::ledger::Ledger;
use cutover::migration::{
    ColumnMigration, Compared, DualWrite, Error, MigrationSpec, PhaseRange, PinnedTx, Shadow, ShadowOptions,
    admin,
};
use cutover_testkit::{
    KitError, Postgres, Prometheus, PrometheusOptions, free_port, if_installed, program, wait_until,
};
use sqlx::{Executor, PgPool};
use tokio::io::{AsyncBufReadExt, BufReader};

use super::{LIMIT, is_of_an_instance, queries};

#[cutover::dual_write]
trait Orders {
    #[write(key = id)]
    async fn set(&self, tx: &mut PinnedTx, id: i64, status: &str) -> Result<(), Error>;

    #[read(key = id)]
    async fn status(&self, id: i64) -> Result<String, Error>;
}

#[derive(Clone)]
struct Column {
    pool: PgPool,
    set: &'static str,
    get: &'static str,
}

impl Orders for Column {
    async fn set(&self, tx: &mut PinnedTx, id: i64, status: &str) -> Result<(), Error> {
        sqlx::query(self.set).bind(id).bind(status).execute(&mut **tx).await?;
        Ok(())
    }

    async fn status(&self, id: i64) -> Result<String, Error> {
        Ok(sqlx::query_scalar(self.get).bind(id).fetch_one(&self.pool).await?)
    }
}

impl Compared<i64> for Column {
    type Value = Option<String>;

    async fn read(&self, tx: &mut PinnedTx, id: &i64) -> Result<Self::Value, Error> {
        Ok(sqlx::query_scalar(self.get).bind(id).fetch_optional(&mut **tx).await?)
    }
}

/// Writes and reads through both columns until the test ends. An order that does not exist is an error of the new side.
async fn load(
    instance: Instance,
    pool: PgPool,
    public: SocketAddr,
) -> Result<(), Box<dyn std::error::Error>> {
    let column = |set, get| Column { pool: pool.clone(), set, get };
    let old = column(
        "update orders set old_status = upper($2) where id = $1",
        "select lower(old_status) from orders where id = $1",
    );
    let new = column(
        "update orders set new_status = $2 where id = $1",
        "select new_status from orders where id = $1",
    );
    let migration = instance.migration("status").ok_or("declared")?;
    let orders = DualWrite::new(migration.clone(), old, new);
    let shadow =
        Shadow::start(orders.clone(), pool.clone(), ShadowOptions { share: 1.0, ..Default::default() })?;
    let orders = std::sync::Arc::new(orders);
    let app = Router::new().route(
        "/orders/{id}",
        get(move |Path(id): Path<i64>| async move {
            let mut tx = migration.begin(&pool).await?;
            orders.set(&mut tx, id, "paid").await?;
            tx.commit().await?;
            shadow.observe(id);
            orders.status(id).await
        }),
    );
    let requests = async {
        let client = reqwest::Client::new();
        for id in (0..40).cycle() {
            let _ = client.get(format!("http://{public}/orders/{id}")).send().await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        served = instance.serve(app) => {
            served?;
        }
        () = requests => {}
    }
    Ok(())
}

#[tokio::test]
async fn the_dashboards_have_data_of_a_running_service() {
    let url = Postgres::fresh_database().await.unwrap();
    let pool = PgPool::connect(&url).await.unwrap();
    pool.execute(
        "create table orders (id bigint primary key, old_status text); \
         insert into orders select g, 'OPEN' from generate_series(1, 2000) g",
    )
    .await
    .unwrap();
    let [admin, public] = [(); 2].map(|()| SocketAddr::from(([127, 0, 0, 1], free_port().unwrap())));
    let options =
        PrometheusOptions { rules: None, job: "payments".to_owned(), ..PrometheusOptions::default() };
    let started = Prometheus::start_with(vec![admin], Duration::from_millis(500), options).await;
    let Some(prometheus) = if_installed(started).unwrap() else { return };
    let service = Cutover::service("payments").admin(admin).listen(public).postgres(pool.clone());
    let service = service.migration(|pool| {
        let plan = ColumnMigration::new(pool, "orders")
            .column("old_status", "new_status", "text")
            .forward("lower(old_status)")
            .backward("upper(new_status)")
            .build()?;
        Ok::<_, cutover::ConfigError>(MigrationSpec::new("status", PhaseRange::FULL).plan(plan))
    });
    let instance = service.start().await.unwrap();
    let (load_pool, ledger) = (pool.clone(), Ledger::existing(url.parse().unwrap()).await.unwrap());
    let _load =
        tokio::spawn(
            async move { load(instance, load_pool, public).await.map_err(|error| error.to_string()) },
        );
    admin::set_phase(&ledger, "status", "ramp:50".parse().unwrap(), "ann").await.unwrap();

    // The pool of this service is the test's own, so it has no connection share.
    let has_data = |query: &String| is_of_an_instance(query) && !query.contains("cutover_pool");
    let of_deploys = queries("deploy").into_iter().filter(has_data);
    for query in queries("migration").into_iter().chain(of_deploys) {
        let what = format!("series of {query}");
        wait_until(&what, LIMIT, async || Ok::<_, KitError>(!prometheus.query(&query).await?.is_empty()))
            .await
            .unwrap();
    }
    console_shows_both_sides(&url, &prometheus.url()).await;
}

/// The page of the migration, in a console that has this Prometheus.
async fn console_shows_both_sides(url: &str, prometheus: &str) {
    let mut command = tokio::process::Command::new(program().unwrap());
    command.args([
        "console",
        "--listen",
        "127.0.0.1:0",
        "--prometheus",
        prometheus,
        "--match",
        "job=\"payments\"",
    ]);
    command.env("DATABASE_URL", url).stdout(Stdio::piped()).kill_on_drop(true);
    let mut process = command.spawn().unwrap();
    let mut said = String::new();
    BufReader::new(process.stdout.take().unwrap()).read_line(&mut said).await.unwrap();
    let address = said.split_whitespace().find(|word| word.starts_with("http://")).unwrap();
    let address = format!("{address}migrations/payments/status");
    let parts = ["Calls of each side", "<td>read</td><td>new</td>", "<td>write</td><td>old</td>", "% agree"];
    wait_until("both sides on the page", LIMIT, async || {
        let page = reqwest::get(&address).await?.text().await?;
        Ok::<_, reqwest::Error>(parts.iter().all(|part| page.contains(part)))
    })
    .await
    .unwrap();
}
