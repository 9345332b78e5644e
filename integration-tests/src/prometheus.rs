//! A throwaway Prometheus.

use std::{collections::BTreeMap, fs, net::SocketAddr, process::Command, sync::Arc, time::Duration};

use reqwest::{Client, Url};
use serde_json::{Value, json};

use crate::{
    Folder, KitError, Process, Signal, error::write, find, http, process::Current, wait::on_free_port,
};

/// One series of a query result.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Its labels, including `__name__`.
    pub labels: BTreeMap<String, String>,
    /// Its value; may be NaN.
    pub value: f64,
}

/// How a [`Prometheus`] is started.
#[derive(Clone, Debug)]
pub struct PrometheusOptions {
    /// A file of rules, as YAML.
    pub rules: Option<String>,
    /// The label `job` of the targets.
    pub job: String,
    /// A web configuration file as YAML, for TLS or basic authentication. [`Prometheus::query`] does not work with it.
    pub web: Option<String>,
    /// The URL of a remote storage that queries read, too.
    pub remote_read: Option<String>,
    /// Samples of the past with their timestamps, as OpenMetrics.
    pub history: Option<String>,
}

impl Default for PrometheusOptions {
    fn default() -> Self {
        Self { rules: None, job: "kit".to_owned(), web: None, remote_read: None, history: None }
    }
}

/// A Prometheus server on a free loopback port that scrapes `/metrics` of some targets.
#[derive(Debug)]
pub struct Prometheus {
    process: Current,
    folder: Folder,
    options: PrometheusOptions,
    port: u16,
    client: Client,
}

impl Prometheus {
    /// Starts a server and waits until it is ready. The first scrapes follow within an interval.
    ///
    /// # Errors
    ///
    /// [`KitError::Missing`] if it is not installed, [`KitError::Exited`] or [`KitError::TimedOut`] if it does not start.
    pub async fn start(targets: Vec<SocketAddr>, scrape_interval: Duration) -> Result<Self, KitError> {
        Self::start_with(targets, scrape_interval, PrometheusOptions::default()).await
    }

    /// [`start`](Self::start) with options.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub async fn start_with(
        targets: Vec<SocketAddr>,
        scrape_interval: Duration,
        options: PrometheusOptions,
    ) -> Result<Self, KitError> {
        let folder = Folder::new("prometheus")?;
        let interval = format!("{}ms", scrape_interval.as_millis());
        let config = json!({
            "global": {
                "scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval,
            },
            "remote_read": options.remote_read.iter().map(|url| json!({ "url": url, "read_recent": true }))
                .collect::<Vec<_>>(),
            "rule_files": options.rules.iter().map(|_| "rules.yml").collect::<Vec<_>>(),
            "scrape_configs": [{
                "job_name": options.job,
                "file_sd_configs": [{ "files": [folder.path().join("targets.json")], "refresh_interval": "1s" }],
            }],
        });
        if let Some(rules) = &options.rules {
            write(&folder.path().join("rules.yml"), rules)?;
        }
        if let Some(web) = &options.web {
            write(&folder.path().join("web.yml"), web)?;
        }
        if let Some(history) = &options.history {
            let (file, data) = (folder.path().join("history.om"), folder.path().join("data"));
            write(&file, history)?;
            let mut command = Command::new(find::program("prometheus", "promtool")?);
            command.args(["tsdb", "create-blocks-from", "openmetrics"]).args([file, data]);
            Process::run(&folder, "promtool", Duration::from_secs(90), &command).await?;
        }
        // JSON is YAML.
        write(&folder.path().join("prometheus.yml"), config.to_string())?;
        write_targets(&folder, &targets)?;
        let client = http::client()?;
        let (port, process) =
            on_free_port(async |port| Ok((port, launch(&folder, &options, &client, port).await?))).await?;
        Ok(Self { process: Current::new(process), folder, options, port, client })
    }

    /// `http://127.0.0.1:port`.
    pub fn url(&self) -> String {
        url(self.port)
    }

    /// Its process.
    pub fn process(&self) -> Arc<Process> {
        self.process.get()
    }

    /// Kills it and starts it again with its port and data.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub async fn restart(&self) -> Result<(), KitError> {
        self.process().kill().await?;
        self.process.set(launch(&self.folder, &self.options, &self.client, self.port).await?);
        Ok(())
    }

    /// As [`restart`](Self::restart), without its data, as in a container without a volume.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start), and [`KitError::Io`].
    pub async fn restart_empty(&self) -> Result<(), KitError> {
        self.process().kill().await?;
        let data = self.folder.path().join("data");
        std::fs::remove_dir_all(data).map_err(KitError::io("remove the data of Prometheus"))?;
        self.restart().await
    }

    /// Replaces the targets. Prometheus reads them within about a second.
    ///
    /// # Errors
    ///
    /// [`KitError::Io`].
    pub fn set_targets(&self, targets: &[SocketAddr]) -> Result<(), KitError> {
        write_targets(&self.folder, targets)
    }

    /// Evaluates an expression now. A scalar is returned as one sample without labels.
    ///
    /// # Errors
    ///
    /// [`KitError::Http`]; [`KitError::Refused`] with Prometheus's reason if the expression is wrong.
    pub async fn query(&self, promql: &str) -> Result<Vec<Sample>, KitError> {
        let address = format!("{}/api/v1/query", self.url());
        let url = Url::parse_with_params(&address, [("query", promql)])
            .map_err(|error| KitError::Misuse(format!("{address}: {error}")))?;
        let answer = http::json(&format!("evaluate {promql}"), self.client.get(url)).await?;
        let data = &answer["data"];
        if data["resultType"] == "scalar" {
            return Ok(sample(&json!({}), &data["result"]).into_iter().collect());
        }
        let series = data["result"].as_array().into_iter().flatten();
        Ok(series.filter_map(|one| sample(&one["metric"], &one["value"])).collect())
    }
}

async fn launch(
    folder: &Folder,
    options: &PrometheusOptions,
    client: &Client,
    port: u16,
) -> Result<Process, KitError> {
    let mut command = Command::new(find::program("prometheus", "prometheus")?);
    let option = |name: &str, value: &str| format!("--{name}={value}");
    let file = |name: &str| folder.path().join(name).display().to_string();
    command
        .arg(option("config.file", &file("prometheus.yml")))
        .arg(option("storage.tsdb.path", &file("data")))
        .arg(option("web.listen-address", &format!("127.0.0.1:{port}")))
        .arg(option("log.level", "warn"));
    if options.web.is_some() {
        command.arg(option("web.config.file", &file("web.yml")));
    }
    let process = Process::spawn(folder, "prometheus", Signal::KILL, &command)?;
    let ready = format!("{}/-/ready", url(port));
    process
        .wait_ready(Duration::from_secs(90), async || {
            if options.web.is_some() {
                // The client has neither login nor certificate.
                let connected = tokio::net::TcpStream::connect(("127.0.0.1", port)).await;
                connected.map_err(KitError::io("connect to Prometheus"))?;
            } else {
                http::send("ask Prometheus", client.get(&ready), &[]).await?;
            }
            Ok::<_, KitError>(true)
        })
        .await?;
    Ok(process)
}

fn write_targets(folder: &Folder, targets: &[SocketAddr]) -> Result<(), KitError> {
    let targets: Vec<_> = targets.iter().map(ToString::to_string).collect();
    let new = folder.path().join("targets.new");
    // In a cluster, service discovery adds the namespace.
    write(&new, json!([{ "targets": targets, "labels": { "namespace": "kit" } }]).to_string())?;
    fs::rename(&new, folder.path().join("targets.json")).map_err(KitError::io("rename targets.new"))
}

/// A value is `[time, "text"]`. Rust parses `NaN`, `+Inf` and `-Inf` as Prometheus writes them.
fn sample(labels: &Value, value: &Value) -> Option<Sample> {
    Some(Sample {
        labels: serde_json::from_value(labels.clone()).ok()?,
        value: value[1].as_str()?.parse().ok()?,
    })
}

fn url(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}
