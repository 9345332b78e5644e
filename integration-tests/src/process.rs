//! Child processes and folders that are removed with their owner.
//!
//! A destructor does not run when a test process is killed. So every [`Folder`] has a keeper: a small shell in a
//! process group of its own that reads from a pipe. Only the owner holds the other end. When the owner ends, the pipe
//! closes, and the keeper stops the processes that were started in the folder and removes it. Dropping the folder
//! closes the pipe and waits for the keeper.
//!
//! A process writes its pid into the folder `running` before it executes the server. The keeper renames that folder
//! before it reads it. A process that starts later finds no such folder and ends, so the keeper misses none.

use std::{
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use rustix::process::{Pid, kill_process};

pub use rustix::process::Signal;

use crate::{KitError, wait_until};

/// `$1` is the folder. Files in `running` have a pid as name and contain the first signal to send.
///
/// Processes whose working directory is inside the folder are stopped, too: Postgres's sessions leave its process
/// group, and one that was stopped by SIGSTOP outlives its server. A zombie has no `cwd` and counts as ended.
const KEEPER: &str = r#"
trap '' HUP INT TERM
read -r _
folder=$1
mv "$folder/running" "$folder/ending"
cd "$folder/ending" && set -- * && [ -e "$1" ] || set --
inside() { find /proc/[0-9]*/cwd -prune -lname "$folder*" | cut -d/ -f3; }
left() { for pid; do [ -e "/proc/$pid/cwd" ] && return 0; done; return 1; }
for pid; do kill -s "$(cat "$pid")" -- "-$pid"; kill -s CONT -- "-$pid"; done
cd /
for pid in $(inside); do kill -s CONT "$pid"; done
n=0; while left "$@" && [ $n -lt 60 ]; do sleep 0.05; n=$((n + 1)); done
for pid; do kill -s KILL -- "-$pid"; done
for pid in $(inside); do kill -s KILL "$pid"; done
n=0; until rm -rf "$folder" || [ $n -ge 100 ]; do sleep 0.05; n=$((n + 1)); done
"#;

/// `$1` is the folder, `$2` the signal that ends the program, the rest is the program.
const ENTER: &str = r#"echo "$2" >"$1/running/$$" || exit 125; shift 2; exec "$@""#;

/// A temporary folder. It is removed, with every process started in it, when its last owner is dropped or the owning
/// process ends, even by `kill -9`.
#[derive(Clone, Debug)]
pub struct Folder(Arc<Kept>);

#[derive(Debug)]
struct Kept {
    path: PathBuf,
    keeper: Child,
}

impl Folder {
    /// Makes a folder with `name` in its name under the system's temporary folder.
    ///
    /// # Errors
    ///
    /// [`KitError::Io`].
    pub fn new(name: &str) -> Result<Self, KitError> {
        let path = std::env::temp_dir().join(format!("cutover-{name}-{:08x}", fastrand::u32(..)));
        // Start the keeper first, so that it removes everything that is made later.
        let keeper = Command::new("sh")
            .args(["-c", KEEPER, "keeper"])
            .arg(&path)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(KitError::io("start a shell"))?;
        let folder = Self(Arc::new(Kept { path, keeper }));
        folder.subfolder("running")?;
        Ok(folder)
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Makes a folder in it and returns its path.
    ///
    /// # Errors
    ///
    /// [`KitError::Io`].
    pub fn subfolder(&self, name: &str) -> Result<PathBuf, KitError> {
        let path = self.path().join(name);
        fs::create_dir_all(&path).map_err(KitError::io(format!("make {}", path.display())))?;
        Ok(path)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

/// A child process that is killed when this is dropped or when the owning process ends, even by `kill -9`.
#[derive(Debug)]
pub struct Process {
    name: String,
    pid: Pid,
    child: Mutex<Child>,
    log: PathBuf,
    stop: Signal,
    folder: Folder,
}

impl Process {
    /// Starts `command` in `folder`, with its output in `<name>.log` there and an empty standard input.
    ///
    /// Program, arguments, environment and working folder (by default `folder`) are taken from `command`; `env_clear`
    /// and redirections are not. [`stop`](Self::stop) and the drop send the signal `stop` first.
    ///
    /// # Errors
    ///
    /// [`KitError::Io`]. A program that cannot be executed ends with status 126 or 127.
    pub fn spawn(folder: &Folder, name: &str, stop: Signal, command: &Command) -> Result<Self, KitError> {
        let log = folder.path().join(format!("{name}.log"));
        let output = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .map_err(KitError::io(format!("open {}", log.display())))?;
        let errors = output.try_clone().map_err(KitError::io(format!("open {}", log.display())))?;
        let mut wrapped = Command::new("sh");
        wrapped
            .args(["-c", ENTER, name])
            .arg(folder.path())
            .arg(stop.as_raw().to_string())
            .arg(command.get_program())
            .args(command.get_args())
            .current_dir(command.get_current_dir().unwrap_or(folder.path()))
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .process_group(0);
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => wrapped.env(key, value),
                None => wrapped.env_remove(key),
            };
        }
        let child = wrapped.spawn().map_err(KitError::io(format!("start {name}")))?;
        Ok(Self {
            name: name.to_owned(),
            pid: Pid::from_child(&child),
            child: Mutex::new(child),
            log,
            stop,
            folder: folder.clone(),
        })
    }

    /// Runs `command` to its end.
    ///
    /// # Errors
    ///
    /// [`KitError::Exited`] with its last output if it fails. [`KitError::TimedOut`] if it takes longer than `limit`;
    /// then it is killed.
    pub async fn run(
        folder: &Folder,
        name: &str,
        limit: Duration,
        command: &Command,
    ) -> Result<(), KitError> {
        let process = Self::spawn(folder, name, Signal::KILL, command)?;
        let status = process.wait(limit).await?;
        if status.success() { Ok(()) } else { Err(process.ended(status)) }
    }

    /// Its process id, which is also the id of its process group.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Its name within the kit.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that its output goes to.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// The last lines of its output.
    pub fn log_tail(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// How it ended, or `None` while it runs.
    pub fn exited(&self) -> Option<ExitStatus> {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        let status = child.try_wait().ok().flatten()?;
        // From here on, the pid may belong to another process.
        let _ = fs::remove_file(self.folder.path().join("running").join(self.pid().to_string()));
        Some(status)
    }

    /// Sends it a signal. Does nothing if it has ended.
    ///
    /// # Errors
    ///
    /// [`KitError::Io`].
    pub fn signal(&self, signal: Signal) -> Result<(), KitError> {
        if self.exited().is_some() {
            return Ok(());
        }
        kill_process(self.pid, signal)
            .map_err(|errno| KitError::io(format!("send {signal:?} to {}", self.name))(errno.into()))
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    ///
    /// [`KitError::TimedOut`].
    pub async fn wait(&self, limit: Duration) -> Result<ExitStatus, KitError> {
        let mut status = None;
        wait_until(&format!("end of {}", self.name), limit, || {
            status = self.exited();
            let over = status.is_some();
            async move { Ok::<_, KitError>(over) }
        })
        .await?;
        status.ok_or_else(|| KitError::Misuse(format!("{} has no exit status", self.name)))
    }

    /// Waits until `ask` returns true.
    ///
    /// # Errors
    ///
    /// [`KitError::Exited`] as soon as the process has ended, [`KitError::TimedOut`].
    pub async fn wait_ready<A, F, E>(&self, limit: Duration, mut ask: A) -> Result<(), KitError>
    where
        A: FnMut() -> F,
        F: Future<Output = Result<bool, E>>,
        E: std::fmt::Display,
    {
        let mut status = None;
        wait_until(&format!("{} ready", self.name), limit, || {
            status = self.exited();
            let answer = status.is_none().then(&mut ask);
            async move {
                match answer {
                    Some(answer) => answer.await,
                    None => Ok(true),
                }
            }
        })
        .await?;
        match status {
            Some(status) => Err(self.ended(status)),
            None => Ok(()),
        }
    }

    /// Sends its stop signal and waits for its end.
    ///
    /// # Errors
    ///
    /// [`KitError::TimedOut`] if it takes longer than `limit`.
    pub async fn stop(&self, limit: Duration) -> Result<ExitStatus, KitError> {
        self.signal(self.stop)?;
        self.wait(limit).await
    }

    /// Kills it (SIGKILL) and waits for its end.
    ///
    /// # Errors
    ///
    /// [`KitError::TimedOut`] if it still exists after 60 s.
    pub async fn kill(&self) -> Result<(), KitError> {
        self.signal(Signal::KILL)?;
        self.wait(Duration::from_secs(60)).await.map(|_| ())
    }

    fn ended(&self, status: ExitStatus) -> KitError {
        KitError::Exited { name: self.name.clone(), status, log: self.log_tail() }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.signal(self.stop);
        let _ = self.signal(Signal::CONT);
        let patience = Instant::now() + Duration::from_secs(3);
        while self.exited().is_none() {
            if Instant::now() > patience {
                let _ = self.signal(Signal::KILL);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// The current process of a server. A restart replaces it.
#[derive(Debug)]
pub(crate) struct Current(Mutex<Arc<Process>>);

impl Current {
    pub(crate) fn new(process: Process) -> Self {
        Self(Mutex::new(Arc::new(process)))
    }

    pub(crate) fn get(&self) -> Arc<Process> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn set(&self, process: Process) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(process);
    }
}

/// Pids of the direct children of `pid`.
pub(crate) fn children_of(pid: u32) -> Vec<Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|child| parent_of(*child) == Some(pid))
        .filter_map(Pid::from_raw)
        .collect()
}

/// True if `pid` runs. A zombie does not run.
pub(crate) fn runs(pid: Pid) -> bool {
    Path::new("/proc").join(pid.as_raw_nonzero().to_string()).join("cwd").exists()
}

/// The parent's pid is the second field after the name, which is in parentheses and may hold any
/// character.
fn parent_of(pid: i32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(1)?.parse().ok()
}
