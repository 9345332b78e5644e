//! Starts, watches, drains and replaces instances of the service.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use cutover_testkit::{Folder, Process, Proxy, Signal, free_port, wait_until};

use crate::{
    board::{Board, InstanceLine, InstanceState},
    client::Client,
    failure::{During, Failure, Result},
    proxy::Endpoint,
    servers::Servers,
};

const READY_WITHIN: Duration = Duration::from_secs(60);
/// Longer than the service's own drain deadline.
const GONE_WITHIN: Duration = Duration::from_secs(60);

/// All instances, and what they have in common.
pub(crate) struct Fleet {
    bin_dir: PathBuf,
    logs: PathBuf,
    folder: Folder,
    pub(crate) servers: Arc<Servers>,
    pub(crate) board: Arc<Board>,
    client: Client,
    pub(crate) instances: Vec<Instance>,
    /// Variables that are set or removed for instances that start from now on.
    pub(crate) environment: Vec<(&'static str, Option<String>)>,
    /// Whether each instance gets its own gate to the database, so that it can be cut off alone.
    pub(crate) has_gates: bool,
    /// Instances started so far. It makes names unique.
    started: u32,
}

/// One process of the service.
pub(crate) struct Instance {
    pub(crate) release: u8,
    pub(crate) cluster: &'static str,
    pub(crate) endpoint: Endpoint,
    pub(crate) process: Process,
    /// Its own gate to the database, if `has_gates` was set.
    pub(crate) gate: Option<Proxy>,
}

impl Instance {
    pub(crate) fn name(&self) -> &str {
        &self.endpoint.name
    }
}

impl Fleet {
    /// Each instance's output is kept in `logs` when it ends.
    pub(crate) fn new(
        bin_dir: &Path,
        logs: PathBuf,
        servers: Arc<Servers>,
        board: Arc<Board>,
    ) -> Result<Self> {
        // Remove the last run's logs: instances have the same names every time.
        let _ = std::fs::remove_dir_all(&logs);
        Ok(Self {
            bin_dir: bin_dir.canonicalize().unwrap_or_else(|_| bin_dir.to_owned()),
            logs,
            folder: Folder::new("demo")?,
            servers,
            board,
            client: Client::new(Duration::from_secs(2)),
            instances: Vec::new(),
            environment: Vec::new(),
            has_gates: false,
            started: 0,
        })
    }

    /// Starts an instance and waits until the proxy sends it requests.
    pub(crate) async fn start(&mut self, release: u8, cluster: &'static str) -> Result<()> {
        self.launch(release, cluster)?;
        self.settle(self.instances.len() - 1..self.instances.len()).await
    }

    /// Starts several instances at the same time.
    pub(crate) async fn start_all(
        &mut self,
        release: u8,
        cluster: &'static str,
        number: usize,
    ) -> Result<()> {
        let first = self.instances.len();
        for _ in 0..number {
            self.launch(release, cluster)?;
        }
        self.settle(first..self.instances.len()).await
    }

    /// Drains an instance as an orchestrator does: preStop, then SIGTERM, then wait.
    pub(crate) async fn stop(&mut self, name: &str) -> Result<()> {
        let Some(at) = self.instances.iter().position(|instance| instance.name() == name) else {
            return Err(Failure::new(format!("no instance is named {name}")));
        };
        let instance = &self.instances[at];
        self.board.set_instance(name, InstanceState::Draining);
        // The response may take as long as the drain. The signal starts the same drain and does not wait.
        let _ = self.client.post(&format!("http://{}/drain", instance.endpoint.health)).await;
        instance.process.signal(Signal::TERM)?;
        let status = instance.process.wait(GONE_WITHIN).await.during("draining")?;
        let log = self.keep_log(instance);
        let instance = self.instances.remove(at);
        self.tell_proxy(instance.cluster).await?;
        self.board.update(|view| view.instances.retain(|line| line.name != name));
        match status.success() {
            true => Ok(()),
            false => Err(Failure::new(format!("{name} ended with {status} when it was drained; see {log}"))),
        }
    }

    /// Drains all remaining instances at the same time.
    pub(crate) async fn stop_all(&mut self) -> Result<()> {
        for instance in &self.instances {
            self.board.set_instance(instance.name(), InstanceState::Draining);
            instance.process.signal(Signal::TERM)?;
        }
        for instance in &self.instances {
            instance.process.wait(GONE_WITHIN).await?;
        }
        self.keep_logs();
        self.instances.clear();
        self.board.update(|view| view.instances.clear());
        Ok(())
    }

    /// Keeps the output of all running instances.
    fn keep_logs(&self) {
        for instance in &self.instances {
            self.keep_log(instance);
        }
    }

    pub(crate) fn of_release(&self, release: u8, cluster: &str) -> Vec<String> {
        let wanted = self.instances.iter().filter(|one| one.release == release && one.cluster == cluster);
        wanted.map(|one| one.name().to_owned()).collect()
    }

    /// Starts the process without waiting until it is ready.
    pub(crate) fn launch(&mut self, release: u8, cluster: &'static str) -> Result<()> {
        let program = self.bin_dir.join(format!("payments-{release}"));
        self.started += 1;
        let name = format!("payments-{release}-{}", self.started);
        let local = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let endpoint =
            Endpoint { name: name.clone(), address: local(free_port()?), health: local(free_port()?) };
        let (database, gate) = self.database_url()?;
        let mut command = Command::new(program);
        command
            .env("DATABASE_URL", database)
            .env("REDIS_URL", &self.servers.redis_url)
            .env("LISTEN_ADDR", endpoint.address.to_string())
            .env("ADMIN_ADDR", endpoint.health.to_string())
            .env("CUTOVER_VERSION", cluster)
            .env("CUTOVER_REVISION", format!("release-{release}"))
            .env("CUTOVER_INSTANCE", &name)
            .env("NO_COLOR", "1")
            // The proxy checks health every 0.2 s, so it knows of a drain after this time.
            .env("PROPAGATION_SECONDS", "2")
            // A day in production.
            .env("SOAK_SECONDS", "5");
        match &self.servers.unleash {
            Some((url, token)) => command.env("UNLEASH_URL", url).env("UNLEASH_TOKEN", token),
            None => command.env_remove("UNLEASH_URL").env_remove("UNLEASH_TOKEN"),
        };
        for (variable, value) in &self.environment {
            match value {
                Some(value) => command.env(variable, value),
                None => command.env_remove(variable),
            };
        }
        let process = Process::spawn(&self.folder, &name, Signal::TERM, &command)?;
        self.board.update(|view| {
            let admin = endpoint.health;
            view.instances.push(InstanceLine { name, release, admin, state: InstanceState::Starting });
        });
        self.instances.push(Instance { release, cluster, endpoint, process, gate });
        Ok(())
    }

    fn database_url(&self) -> Result<(String, Option<Proxy>)> {
        let mut url = reqwest::Url::parse(&self.servers.database.url)?;
        let gate = match url.port() {
            Some(port) if self.has_gates => Some(Proxy::start(port)?),
            _ => None,
        };
        if let Some(gate) = &gate {
            // Setting a port cannot fail on a URL that has one.
            let _ = url.set_port(Some(gate.port()));
        }
        Ok((url.into(), gate))
    }

    pub(crate) fn find(&self, name: &str) -> Result<&Instance> {
        let found = self.instances.iter().find(|instance| instance.name() == name);
        found.ok_or_else(|| Failure::new(format!("no instance is named {name}")))
    }

    /// Kills an instance that may already have ended, and removes it from the proxy.
    pub(crate) async fn remove(&mut self, name: &str) -> Result<()> {
        let Some(at) = self.instances.iter().position(|instance| instance.name() == name) else {
            return Err(Failure::new(format!("no instance is named {name}")));
        };
        self.keep_log(&self.instances[at]);
        let instance = self.instances.remove(at);
        instance.process.kill().await?;
        self.board.update(|view| view.instances.retain(|line| line.name != name));
        self.tell_proxy(instance.cluster).await
    }

    /// Waits until the proxy has found these instances ready.
    pub(crate) async fn settle(&self, which: std::ops::Range<usize>) -> Result<()> {
        for instance in &self.instances[which.clone()] {
            let ready = instance.process.wait_ready(READY_WITHIN, || self.is_ready(instance));
            if let Err(error) = ready.await {
                let log = self.keep_log(instance);
                let why = self.readiness(instance).await;
                return Err(Failure::new(format!(
                    "{} did not become ready: {error}{why}; its log: {log}",
                    instance.name()
                )));
            }
        }
        for instance in &self.instances[which] {
            self.tell_proxy(instance.cluster).await?;
            let proxy = &self.servers.proxy;
            let what = format!("the proxy to find {} ready", instance.name());
            wait_until(&what, READY_WITHIN, || proxy.is_serving(instance.cluster, &instance.endpoint))
                .await?;
            self.board.set_instance(instance.name(), InstanceState::Ready);
        }
        Ok(())
    }

    pub(crate) async fn is_ready(&self, instance: &Instance) -> Result<bool, Failure> {
        let answer = self.client.get(&format!("http://{}/readyz", instance.endpoint.health)).await;
        Ok(answer.is_ok_and(|answer| answer.status.is_success()))
    }

    /// Status and body of one of the instance's admin pages.
    pub(crate) async fn page(&self, name: &str, path: &str) -> Result<(u16, String)> {
        let admin = self.find(name)?.endpoint.health;
        let answer = self.client.get(&format!("http://{admin}{path}")).await;
        let answer = answer.map_err(|why| Failure::new(format!("{name}{path}: {}", why.text())))?;
        Ok((answer.status.as_u16(), String::from_utf8_lossy(&answer.body).into_owned()))
    }

    /// The instance's own reason for not being ready.
    pub(crate) async fn readiness(&self, instance: &Instance) -> String {
        match self.client.get(&format!("http://{}/readyz", instance.endpoint.health)).await {
            Ok(answer) => format!("; /readyz: {}", String::from_utf8_lossy(&answer.body)),
            Err(_) => String::new(),
        }
    }

    pub(crate) async fn tell_proxy(&self, cluster: &str) -> Result<()> {
        let members = self.instances.iter().filter(|instance| instance.cluster == cluster);
        let members: Vec<Endpoint> = members.map(|instance| instance.endpoint.clone()).collect();
        self.servers.proxy.set_endpoints(cluster, &members).await
    }

    fn keep_log(&self, instance: &Instance) -> String {
        let kept = self.logs.join(format!("{}.log", instance.name()));
        // A failure to keep a log does not end the demo.
        let _ = std::fs::create_dir_all(&self.logs);
        let _ = std::fs::copy(instance.process.log_path(), &kept);
        kept.display().to_string()
    }
}

/// Kills remaining instances when the demo ends early: draining takes too long.
impl Drop for Fleet {
    fn drop(&mut self) {
        self.keep_logs();
        for instance in &self.instances {
            let _ = instance.process.signal(Signal::KILL);
        }
    }
}

/// Fails if one of the service's programs is missing.
pub(crate) fn check_programs(bin_dir: &Path) -> Result<()> {
    let programs = (1..=4).map(|release| bin_dir.join(format!("payments-{release}")));
    let missing: Vec<String> =
        programs.filter(|program| !program.is_file()).map(|program| program.display().to_string()).collect();
    match missing.is_empty() {
        true => Ok(()),
        false => Err(Failure::new(format!(
            "{} not found; run `make demo`, which builds them, or name their folder with --bin-dir",
            missing.join(", ")
        ))),
    }
}

/// Keeps the board's readiness of each instance up to date. Never returns.
pub(crate) async fn watch(board: Arc<Board>) {
    let client = Client::new(Duration::from_secs(1));
    loop {
        for line in board.view().instances {
            if line.state == InstanceState::Starting || line.state == InstanceState::Draining {
                continue;
            }
            let answer = client.get(&format!("http://{}/readyz", line.admin)).await;
            let is_ready = answer.is_ok_and(|answer| answer.status.is_success());
            let state = if is_ready { InstanceState::Ready } else { InstanceState::NotReady };
            board.update(|view| {
                let known = view.instances.iter_mut().find(|known| known.name == line.name);
                if let Some(known) = known.filter(|known| known.state == line.state) {
                    known.state = state;
                }
            });
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}
