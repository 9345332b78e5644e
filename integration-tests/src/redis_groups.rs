//! Redis behind Sentinel, and as a cluster.

use std::process::Command;
use std::time::Duration;

use crate::error::write;
use crate::redis::ask;
use crate::wait::on_free_port;
use crate::{Folder, KitError, Process, Redis, Signal, find, wait_until};

const LIMIT: Duration = Duration::from_secs(60);

/// A primary named `primary` with one replica, and a Sentinel that notices after two seconds that the primary is away.
#[derive(Debug)]
pub struct RedisSentinel {
    servers: [Redis; 2],
    _process: Process,
    port: u16,
}

impl RedisSentinel {
    /// Starts the three servers and waits until the replica is in step and the Sentinel knows it.
    ///
    /// # Errors
    ///
    /// As [`Redis::start`].
    pub async fn start() -> Result<Self, KitError> {
        let servers = [Redis::start().await?, Redis::start().await?];
        follow(&servers[1], &servers[0]).await?;
        let primary = servers[0].port();
        let folder = Folder::new("sentinel")?;
        let file = folder.path().join("sentinel.conf");
        let start = async |port| {
            write(
                &file,
                format!(
                    "port {port}\nbind 127.0.0.1\n\
                     sentinel monitor primary 127.0.0.1 {primary} 1\n\
                     sentinel down-after-milliseconds primary 2000\n\
                     sentinel failover-timeout primary 3000\n"
                ),
            )?;
            let mut command = Command::new(find::program("redis", "redis-server")?);
            command.arg(&file).arg("--sentinel");
            let process = Process::spawn(&folder, "sentinel", Signal::KILL, &command)?;
            let knows_both = async || {
                Ok::<_, std::io::Error>(
                    state(port).await?.contains("status=ok,") && state(port).await?.contains("slaves=1,"),
                )
            };
            process.wait_ready(LIMIT, knows_both).await?;
            Ok((port, process))
        };
        let (port, process) = on_free_port(start).await?;
        Ok(Self { servers, _process: process, port })
    }

    /// The Sentinel's URL.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// The server that began as the primary, and the one that began as its replica.
    pub fn servers(&self) -> &[Redis; 2] {
        &self.servers
    }

    /// Makes the Sentinel promote the replica, and waits until it reports the new address. The former primary accepts
    /// writes until something demotes it.
    ///
    /// # Errors
    ///
    /// [`KitError::Io`] and [`KitError::TimedOut`].
    pub async fn fail_over(&self) -> Result<(), KitError> {
        // Refused until the Sentinel has heard from the replica.
        let begun =
            async || Ok::<_, std::io::Error>(ask(self.port, "SENTINEL FAILOVER primary").await? == "OK");
        wait_until("the Sentinel to begin a failover", LIMIT, begun).await?;
        self.wait_for(&self.servers[1]).await
    }

    /// Waits until the Sentinel reports `server` as the primary.
    ///
    /// # Errors
    ///
    /// [`KitError::TimedOut`].
    pub async fn wait_for(&self, server: &Redis) -> Result<(), KitError> {
        let address = format!("address=127.0.0.1:{},", server.port());
        let reported = async || Ok::<_, std::io::Error>(state(self.port).await?.contains(&address));
        wait_until("the Sentinel to report the new primary", LIMIT, reported).await
    }
}

async fn state(sentinel: u16) -> std::io::Result<String> {
    ask(sentinel, "INFO sentinel").await
}

/// Makes `replica` follow `primary`, and waits until it is in step.
async fn follow(replica: &Redis, primary: &Redis) -> Result<(), KitError> {
    replica.command(&format!("REPLICAOF 127.0.0.1 {}", primary.port())).await?;
    in_step(replica).await
}

async fn in_step(replica: &Redis) -> Result<(), KitError> {
    let linked = async || {
        Ok::<_, KitError>(replica.command("INFO replication").await?.contains("master_link_status:up"))
    };
    wait_until("a replica to be in step", LIMIT, linked).await
}

/// A cluster of three primaries. The first one has a replica.
#[derive(Debug)]
pub struct RedisCluster {
    primaries: [Redis; 3],
    replica: Redis,
}

const CLUSTERED: &[&str] = &["--cluster-enabled", "yes", "--cluster-node-timeout", "3000"];
const SLOTS: u16 = 16_384;

impl RedisCluster {
    /// Starts four servers and waits until they agree on the slots.
    ///
    /// # Errors
    ///
    /// As [`Redis::start`].
    pub async fn start() -> Result<Self, KitError> {
        let start = || Redis::start_with(CLUSTERED);
        let cluster =
            Self { primaries: [start().await?, start().await?, start().await?], replica: start().await? };
        for (index, primary) in (0..).zip(&cluster.primaries) {
            let slots = (SLOTS * index / 3)..(SLOTS * (index + 1) / 3);
            let slots: Vec<String> = slots.map(|slot| slot.to_string()).collect();
            primary.command(&format!("CLUSTER ADDSLOTS {}", slots.join(" "))).await?;
        }
        let first = &cluster.primaries[0];
        for server in cluster.servers().skip(1) {
            server.command(&format!("CLUSTER MEET 127.0.0.1 {}", first.port())).await?;
        }
        let id = first.command("CLUSTER MYID").await?;
        let replicate = async || {
            // Refused until the server has heard of the primary.
            Ok::<_, KitError>(cluster.replica.command(&format!("CLUSTER REPLICATE {id}")).await? == "OK")
        };
        wait_until("the replica to know its primary", LIMIT, replicate).await?;
        in_step(&cluster.replica).await?;
        cluster.wait_ready(cluster.servers()).await?;
        Ok(cluster)
    }

    /// The URLs of its primaries.
    pub fn urls(&self) -> Vec<String> {
        self.primaries.iter().map(Redis::url).collect()
    }

    /// The servers that began as primaries, by their slots.
    pub fn primaries(&self) -> &[Redis; 3] {
        &self.primaries
    }

    /// The replica of the first one.
    pub fn replica(&self) -> &Redis {
        &self.replica
    }

    /// The index of the primary that had this slot at the start.
    pub fn first_owner(slot: u16) -> usize {
        (0..3).rfind(|index| slot >= SLOTS * index / 3).map_or(0, usize::from)
    }

    /// Waits until the replica has become a primary and the servers that run say that the cluster works.
    ///
    /// # Errors
    ///
    /// [`KitError::TimedOut`].
    pub async fn wait_for_replica(&self) -> Result<(), KitError> {
        let promoted = async || {
            Ok::<_, KitError>(self.replica.command("INFO replication").await?.contains("role:master"))
        };
        wait_until("the replica to be promoted", LIMIT, promoted).await?;
        self.wait_ready(self.servers().skip(1)).await
    }

    fn servers(&self) -> impl Iterator<Item = &Redis> {
        self.primaries.iter().chain([&self.replica])
    }

    async fn wait_ready<'a>(&self, servers: impl Iterator<Item = &'a Redis>) -> Result<(), KitError> {
        for server in servers {
            let works = async || {
                let info = server.command("CLUSTER INFO").await?;
                Ok::<_, KitError>(info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:4"))
            };
            wait_until("the cluster to work", LIMIT, works).await?;
        }
        Ok(())
    }
}
