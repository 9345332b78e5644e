//! Instances of the service: started, watched, drained and replaced.

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
/// More than the service's own deadline for its drain.
const GONE_WITHIN: Duration = Duration::from_secs(60);

/// What all instances have in common.
pub(crate) struct Fleet {
    bin_dir: PathBuf,
    logs: PathBuf,
    folder: Folder,
    pub(crate) servers: Arc<Servers>,
    pub(crate) board: Arc<Board>,
    client: Client,
    pub(crate) instances: Vec<Instance>,
    /// Set for, or taken from, the instances that start from now on.
    pub(crate) environment: Vec<(&'static str, Option<String>)>,
    /// Whether each instance gets a way of its own to the database, so that it can be cut off alone.
    pub(crate) has_gates: bool,
    /// Counts up, so that no name is used twice.
    started: u32,
}

/// One process of the service.
pub(crate) struct Instance {
    pub(crate) release: u8,
    pub(crate) cluster: &'static str,
    pub(crate) endpoint: Endpoint,
    pub(crate) process: Process,
    /// Its way to the database, where it has one of its own.
    pub(crate) gate: Option<Proxy>,
}

impl Instance {
    pub(crate) fn name(&self) -> &str {
        &self.endpoint.name
    }
}

impl Fleet {
    /// `logs` is where each instance's output is kept when it ends.
    pub(crate) fn new(
        bin_dir: &Path,
        logs: PathBuf,
        servers: Arc<Servers>,
        board: Arc<Board>,
    ) -> Result<Self> {
        // Of the last run: instances have the same names every time.
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

    /// Starts several at once.
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
            return Err(Failure::new(format!("there is no instance {name}")));
        };
        let instance = &self.instances[at];
        self.board.set_instance(name, InstanceState::Draining);
        // An answer may take as long as the drain: the signal says the same and doesn't wait for it.
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

    /// Drains all that are left, at once.
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

    /// Copies the output of all that run to where it can be read afterwards.
    fn keep_logs(&self) {
        for instance in &self.instances {
            self.keep_log(instance);
        }
    }

    pub(crate) fn of_release(&self, release: u8, cluster: &str) -> Vec<String> {
        let wanted = self.instances.iter().filter(|one| one.release == release && one.cluster == cluster);
        wanted.map(|one| one.name().to_owned()).collect()
    }

    /// Starts the process and waits for nothing.
    pub(crate) fn launch(&mut self, release: u8, cluster: &'static str) -> Result<()> {
        let program = self.bin_dir.join(format!("payments-{release}"));
        self.started += 1;
        let name = format!("payments-{release}-{}", self.started);
        let local = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let endpoint =
            Endpoint { name: name.clone(), address: local(free_port()?), health: local(free_port()?) };
        let (database, gate) = self.way_to_database()?;
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
            // The proxy asks every 0.2 s, so it knows of a drain after this long.
            .env("PROPAGATION_SECONDS", "2")
            // A day in earnest; nobody watches a demo that long.
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

    fn way_to_database(&self) -> Result<(String, Option<Proxy>)> {
        let mut url = reqwest::Url::parse(&self.servers.database.url)?;
        let gate = match url.port() {
            Some(port) if self.has_gates => Some(Proxy::start(port)?),
            _ => None,
        };
        if let Some(gate) = &gate {
            // A port can always be set on a URL that had one.
            let _ = url.set_port(Some(gate.port()));
        }
        Ok((url.into(), gate))
    }

    pub(crate) fn find(&self, name: &str) -> Result<&Instance> {
        let found = self.instances.iter().find(|instance| instance.name() == name);
        found.ok_or_else(|| Failure::new(format!("there is no instance {name}")))
    }

    /// Takes an instance that has ended, or that ends now, out of everything.
    pub(crate) async fn bury(&mut self, name: &str) -> Result<()> {
        let Some(at) = self.instances.iter().position(|instance| instance.name() == name) else {
            return Err(Failure::new(format!("there is no instance {name}")));
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

    /// What an instance itself says about not being ready.
    pub(crate) async fn readiness(&self, instance: &Instance) -> String {
        match self.client.get(&format!("http://{}/readyz", instance.endpoint.health)).await {
            Ok(answer) => format!("; it says: {}", String::from_utf8_lossy(&answer.body)),
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
        // A log that can't be kept is no reason to stop.
        let _ = std::fs::create_dir_all(&self.logs);
        let _ = std::fs::copy(instance.process.log_path(), &kept);
        kept.display().to_string()
    }
}

/// Whoever is still there when the demo ends early is not drained but killed: nobody waits for it.
impl Drop for Fleet {
    fn drop(&mut self) {
        self.keep_logs();
        for instance in &self.instances {
            let _ = instance.process.signal(Signal::KILL);
        }
    }
}

/// Fails if one of the service's programs is not there.
pub(crate) fn check_programs(bin_dir: &Path) -> Result<()> {
    let programs = (1..=3).map(|release| bin_dir.join(format!("payments-{release}")));
    let missing: Vec<String> =
        programs.filter(|program| !program.is_file()).map(|program| program.display().to_string()).collect();
    match missing.is_empty() {
        true => Ok(()),
        false => Err(Failure::new(format!(
            "{} not found; `make demo` builds them and starts this (or name their folder with --bin-dir)",
            missing.join(", ")
        ))),
    }
}

/// Shows whether each instance is ready. Never ends.
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
