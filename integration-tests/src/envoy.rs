//! A throwaway Envoy with weighted versions, health checks, and a header for the canary.

use std::{fs, net::SocketAddr, path::PathBuf, process::Command, time::Duration};

use reqwest::Client;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{
    Folder, KitError, Process, Signal, error::write, find, free_port, http, wait::on_free_port, wait_until,
};

/// Envoy applies a changed file within 0.1 s. After this time, it has rejected it.
const APPLY: Duration = Duration::from_secs(60);

/// One instance behind the proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its name in messages.
    pub name: String,
    /// The address for requests.
    pub addr: SocketAddr,
    /// The address of `/readyz`, usually another port of the same host.
    pub health: SocketAddr,
}

/// The instances of one version.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Usually `stable` or `canary`.
    pub name: String,
    /// Its instances. May be empty.
    pub endpoints: Vec<Endpoint>,
}

/// How an [`Envoy`] treats requests.
#[derive(Clone, Copy, Debug, Default)]
pub struct EnvoyOptions {
    /// Whether a request is retried on another instance if the first one cannot have started it (connection refused,
    /// HTTP/2 stream refused, reset before the request was sent). Off by default, so that tests see every failure.
    pub retry: bool,
}

/// An Envoy proxy on a free loopback port in front of some [`Cluster`]s.
///
/// It distributes requests by the weights of [`set_weights`](Self::set_weights). A request with the header `x-canary`
/// goes to the cluster `canary`, if there is one. It requests each endpoint's `/readyz` every 200 ms; an endpoint
/// with another status than 200 gets no requests. Without a healthy endpoint, the response is 503.
#[derive(Debug)]
pub struct Envoy {
    process: Process,
    folder: Folder,
    port: u16,
    admin: String,
    client: Client,
    clusters: Vec<String>,
    options: EnvoyOptions,
    version: AtomicU64,
}

impl Envoy {
    /// Starts an Envoy that sends all requests to the first cluster, without retries.
    ///
    /// # Errors
    ///
    /// [`KitError::Missing`] when it is not installed, [`KitError::Misuse`] without a cluster,
    /// [`KitError::Exited`] or [`KitError::TimedOut`] when it does not come up.
    pub async fn start(clusters: Vec<Cluster>) -> Result<Self, KitError> {
        Self::start_with(clusters, EnvoyOptions::default()).await
    }

    /// [`start`](Self::start) with options.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub async fn start_with(clusters: Vec<Cluster>, options: EnvoyOptions) -> Result<Self, KitError> {
        let Some(first) = clusters.first() else {
            return Err(KitError::Misuse("Envoy needs at least one cluster".to_owned()));
        };
        let folder = Folder::new("envoy")?;
        let names: Vec<_> = clusters.iter().map(|cluster| cluster.name.clone()).collect();
        let weights = [(first.name.as_str(), 100)];
        folder.subfolder("routes")?;
        put(&folder, "routes/routes.json", &routes(0, &names, &weights, options))?;
        for cluster in &clusters {
            folder.subfolder(&cluster.name)?;
            let file = format!("{}/endpoints.json", cluster.name);
            put(&folder, &file, &endpoints(0, &cluster.name, &cluster.endpoints))?;
        }
        let client = http::client()?;
        let (port, admin, process) = on_free_port(async |port| {
            let admin_port = free_port()?;
            let admin = format!("http://127.0.0.1:{admin_port}");
            put(&folder, "envoy.json", &bootstrap(&folder, port, admin_port, &names))?;
            let process = launch(&folder, &client, &admin).await?;
            Ok((port, admin, process))
        })
        .await?;
        Ok(Self {
            process,
            folder,
            port,
            admin,
            client,
            clusters: names,
            options,
            version: AtomicU64::new(1),
        })
    }

    /// `http://127.0.0.1:port`, the address for requests.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Its admin interface (`/stats`, `/clusters`, `/config_dump`).
    pub fn admin_url(&self) -> &str {
        &self.admin
    }

    /// Its process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Sets the weights and waits until Envoy applies them. A cluster that is not named gets no requests. Requests in
    /// flight are not affected.
    ///
    /// # Errors
    ///
    /// [`KitError::Misuse`] for an unknown cluster or when all weights are 0,
    /// [`KitError::TimedOut`] if Envoy does not apply it.
    pub async fn set_weights(&self, weights: &[(&str, u32)]) -> Result<(), KitError> {
        for (name, _) in weights {
            self.known(name)?;
        }
        if weights.iter().all(|(_, weight)| *weight == 0) {
            return Err(KitError::Misuse("all weights are 0".to_owned()));
        }
        let version = self.next_version();
        let table = routes(version, &self.clusters, weights, self.options);
        put(&self.folder, "routes/routes.json", &table)?;
        let version = version.to_string();
        wait_until("weights applied", APPLY, async || {
            let dump = self.ask("config_dump?resource=dynamic_route_configs").await?;
            Ok::<_, KitError>(dump["configs"][0]["version_info"] == version.as_str())
        })
        .await
    }

    /// Sets the instances of a cluster and waits until Envoy applies them. A new instance gets requests after its
    /// first successful health check, see [`healthy`](Self::healthy).
    ///
    /// # Errors
    ///
    /// [`KitError::Misuse`] for an unknown cluster, [`KitError::TimedOut`] when Envoy did not take
    /// it over.
    pub async fn set_endpoints(&self, cluster: &str, list: Vec<Endpoint>) -> Result<(), KitError> {
        self.known(cluster)?;
        let file = format!("{cluster}/endpoints.json");
        put(&self.folder, &file, &endpoints(self.next_version(), cluster, &list))?;
        let mut wanted: Vec<_> = list.iter().map(|endpoint| endpoint.addr).collect();
        wanted.sort();
        wait_until("endpoints applied", APPLY, async || {
            let hosts = self.hosts(cluster).await?;
            let mut known: Vec<_> = hosts.into_iter().map(|(addr, _)| addr).collect();
            known.sort();
            Ok::<_, KitError>(known == wanted)
        })
        .await
    }

    /// The instances of a cluster that get requests now.
    ///
    /// # Errors
    ///
    /// [`KitError::Http`] if Envoy does not respond.
    pub async fn healthy(&self, cluster: &str) -> Result<Vec<SocketAddr>, KitError> {
        let hosts = self.hosts(cluster).await?;
        Ok(hosts.into_iter().filter_map(|(addr, healthy)| healthy.then_some(addr)).collect())
    }

    async fn hosts(&self, cluster: &str) -> Result<Vec<(SocketAddr, bool)>, KitError> {
        let all = self.ask("clusters?format=json").await?;
        let statuses = all["cluster_statuses"].as_array();
        let hosts = statuses
            .into_iter()
            .flatten()
            .filter(|status| status["name"] == cluster)
            .filter_map(|status| status["host_statuses"].as_array())
            .flatten();
        Ok(hosts.filter_map(host).collect())
    }

    async fn ask(&self, path: &str) -> Result<Value, KitError> {
        let request = self.client.get(format!("{}/{path}", self.admin));
        http::json(&format!("ask Envoy for {path}"), request).await
    }

    fn known(&self, cluster: &str) -> Result<(), KitError> {
        if self.clusters.iter().any(|name| name == cluster) {
            return Ok(());
        }
        Err(KitError::Misuse(format!("Envoy has no cluster {cluster:?}, only {:?}", self.clusters)))
    }

    fn next_version(&self) -> u64 {
        self.version.fetch_add(1, Ordering::Relaxed)
    }
}

async fn launch(folder: &Folder, client: &Client, admin: &str) -> Result<Process, KitError> {
    let mut command = Command::new(find::cached("envoy", "envoy", "bin/envoy")?);
    command
        .arg("-c")
        .arg(folder.path().join("envoy.json"))
        .args(["--concurrency", "2", "--log-level", "warn"])
        // Hot restart uses shared memory that remains after a kill.
        .arg("--disable-hot-restart");
    let process = Process::spawn(folder, "envoy", Signal::KILL, &command)?;
    let ready = format!("{admin}/ready");
    process
        .wait_ready(Duration::from_secs(60), async || {
            http::send("ask Envoy", client.get(&ready), &[]).await?;
            Ok::<_, KitError>(true)
        })
        .await?;
    Ok(process)
}

/// Envoy reloads a file if another one is renamed over it, but not if it is written in place.
fn put(folder: &Folder, file: &str, content: &Value) -> Result<(), KitError> {
    let path = folder.path().join(file);
    let new = PathBuf::from(format!("{}.new", path.display()));
    write(&new, content.to_string())?;
    fs::rename(&new, &path).map_err(KitError::io(format!("rename {}", new.display())))
}

/// An entry of `/clusters`: the flags that are absent are false; `eds_health_status` is what the
/// file says, the `failed_active_health_check` what Envoy found.
fn host(status: &Value) -> Option<(SocketAddr, bool)> {
    let address = &status["address"]["socket_address"];
    let ip = address["address"].as_str()?.parse().ok()?;
    let port = address["port_value"].as_u64()?.try_into().ok()?;
    let health = &status["health_status"];
    let failed = health["failed_active_health_check"] == true
        || health["pending_active_hc"] == true
        || health["pending_dynamic_removal"] == true;
    Some((SocketAddr::new(ip, port), !failed))
}

fn bootstrap(folder: &Folder, port: u16, admin_port: u16, clusters: &[String]) -> Value {
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "front",
        "rds": { "route_config_name": "routes", "config_source": watched(folder, "routes", "routes.json") },
        "http_filters": [{
            "name": "envoy.filters.http.router",
            "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
        }],
    });
    let clusters: Vec<_> = clusters.iter().map(|name| cluster(folder, name)).collect();
    json!({
        "node": { "id": "kit", "cluster": "kit" },
        "admin": { "address": address("127.0.0.1", admin_port) },
        "static_resources": {
            "listeners": [{
                "name": "front",
                "address": address("127.0.0.1", port),
                // Makes a port in use an error.
                "enable_reuse_port": false,
                "filter_chains": [{ "filters": [{
                    "name": "envoy.filters.network.http_connection_manager",
                    "typed_config": manager,
                }] }],
            }],
            "clusters": clusters,
        },
    })
}

fn cluster(folder: &Folder, name: &str) -> Value {
    json!({
        "name": name,
        "type": "EDS",
        "eds_cluster_config": { "eds_config": watched(folder, name, "endpoints.json") },
        "connect_timeout": "1s",
        "lb_policy": "ROUND_ROBIN",
        "common_lb_config": {
            // By default Envoy also sends requests to unhealthy instances if more than half are unhealthy,
            "healthy_panic_threshold": { "value": 0 },
            // and collects what it found for a second before it acts on it.
            "update_merge_window": "0s",
        },
        // Removes an endpoint as soon as the file no longer names it, not when its health check fails.
        "ignore_health_on_host_removal": true,
        "health_checks": [{
            "interval": "0.2s",
            "no_traffic_interval": "0.2s",
            "timeout": "1s",
            "healthy_threshold": 1,
            "unhealthy_threshold": 2,
            "http_health_check": { "path": "/readyz" },
        }],
    })
}

fn watched(folder: &Folder, subfolder: &str, file: &str) -> Value {
    let path = folder.path().join(subfolder);
    json!({
        "resource_api_version": "V3",
        "path_config_source": { "path": path.join(file), "watched_directory": { "path": path } },
    })
}

fn routes(version: u64, clusters: &[String], weights: &[(&str, u32)], options: EnvoyOptions) -> Value {
    let to = |mut action: Value| {
        action["timeout"] = json!("15s");
        if options.retry {
            action["retry_policy"] = json!({
                "retry_on": "connect-failure,refused-stream,reset-before-request",
                "num_retries": 3,
                "retry_host_predicate": [{
                    "name": "envoy.retry_host_predicates.previous_hosts",
                    "typed_config": { "@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate" },
                }],
                "host_selection_retry_max_attempts": 3,
            });
        }
        action
    };
    let mut table = Vec::new();
    if clusters.iter().any(|name| name == "canary") {
        table.push(json!({
            "match": { "prefix": "/", "headers": [{ "name": "x-canary", "present_match": true }] },
            "route": to(json!({ "cluster": "canary" })),
        }));
    }
    let shares: Vec<_> =
        weights.iter().map(|(name, weight)| json!({ "name": name, "weight": weight })).collect();
    table.push(json!({
        "match": { "prefix": "/" },
        "route": to(json!({ "weighted_clusters": { "clusters": shares } })),
    }));
    json!({
        "version_info": version.to_string(),
        "resources": [{
            "@type": "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
            "name": "routes",
            "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": table }],
        }],
    })
}

fn endpoints(version: u64, cluster: &str, list: &[Endpoint]) -> Value {
    let list: Vec<_> = list
        .iter()
        .map(|endpoint| {
            json!({ "endpoint": {
                "address": address(&endpoint.addr.ip().to_string(), endpoint.addr.port()),
                "hostname": endpoint.name,
                "health_check_config": { "port_value": endpoint.health.port() },
            } })
        })
        .collect();
    json!({
        "version_info": version.to_string(),
        "resources": [{
            "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            "cluster_name": cluster,
            "endpoints": [{ "lb_endpoints": list }],
        }],
    })
}

fn address(host: &str, port: u16) -> Value {
    json!({ "socket_address": { "address": host, "port_value": port } })
}
