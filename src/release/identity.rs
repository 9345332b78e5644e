use std::{env, ffi::OsString, fmt, sync::Arc};

use crate::{ConfigError, Problem};

/// The longest accepted value, in bytes. A Kubernetes label has at most 63, a host name 64.
const MAX_LEN: usize = 128;

/// The identity of this process. It is made once at the start and cheap to clone.
///
/// A canary analysis selects on `version` (`stable`, `canary` or the build's tag). `revision` names the build, and
/// `instance` this process.
///
/// ```
/// use cutover::release::Release;
///
/// let release = Release::new("payments", "canary")?.with_revision("4f2c1d9")?;
/// assert_eq!(release.version(), "canary");
/// # Ok::<(), cutover::ConfigError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Release {
    service: Arc<str>,
    version: Arc<str>,
    revision: Arc<str>,
    instance: Arc<str>,
}

impl Release {
    /// An identity with the revision `unknown` and an instance name made of the host name and the process id.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] with every value that is empty, longer than 128 bytes or contains control characters.
    pub fn new(service: &str, version: &str) -> Result<Self, ConfigError> {
        let mut problems = Vec::new();
        let release = Self {
            service: checked("service", service, &mut problems),
            version: checked("version", version, &mut problems),
            revision: Arc::from("unknown"),
            instance: default_instance(&kernel_host_name()).into(),
        };
        ConfigError::check(problems).map(|()| release)
    }

    /// Reads `CUTOVER_VERSION` (else `stable`), `CUTOVER_REVISION` (else `unknown`) and
    /// `CUTOVER_INSTANCE` (else `HOSTNAME`, or the kernel's host name, and the process id).
    ///
    /// # Errors
    ///
    /// [`ConfigError`] with every value that can't be used. A variable that is set but empty is refused too: it is a
    /// template that was not filled in.
    pub fn from_env(service: &str) -> Result<Self, ConfigError> {
        Self::from_variables(service, |name| env::var_os(name))
    }

    fn from_variables(
        service: &str,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, ConfigError> {
        let mut problems = Vec::new();
        let mut read = |name: &str, default: &dyn Fn() -> String| match variable(name) {
            None => default().into(),
            Some(value) => match value.into_string() {
                Ok(value) => checked(name, &value, &mut problems),
                Err(_) => {
                    problems.push(Problem::new(name.to_owned(), "is not valid UTF-8"));
                    Arc::from("")
                }
            },
        };
        let version = read("CUTOVER_VERSION", &|| "stable".to_owned());
        let revision = read("CUTOVER_REVISION", &|| "unknown".to_owned());
        let instance = match variable("CUTOVER_INSTANCE") {
            Some(_) => read("CUTOVER_INSTANCE", &String::new),
            None => default_instance(&read("HOSTNAME", &kernel_host_name)).into(),
        };
        let service = checked("service", service, &mut problems);
        ConfigError::check(problems).map(|()| Self { service, version, revision, instance })
    }

    /// The same identity with another build revision (a commit or an image digest).
    ///
    /// # Errors
    ///
    /// As for [`Release::new`].
    pub fn with_revision(mut self, revision: &str) -> Result<Self, ConfigError> {
        let mut problems = Vec::new();
        self.revision = checked("revision", revision, &mut problems);
        ConfigError::check(problems).map(|()| self)
    }

    /// The same identity with another instance name, which must be unique in the fleet.
    ///
    /// # Errors
    ///
    /// As for [`Release::new`].
    pub fn with_instance(mut self, instance: &str) -> Result<Self, ConfigError> {
        let mut problems = Vec::new();
        self.instance = checked("instance", instance, &mut problems);
        ConfigError::check(problems).map(|()| self)
    }

    /// The service that all instances and versions belong to.
    pub fn service(&self) -> &str {
        &self.service
    }

    /// The version, which a canary analysis selects on.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The build: a commit or an image digest.
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// The name of this process, unique in the fleet.
    pub fn instance(&self) -> &str {
        &self.instance
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ({}) as {}", self.service, self.version, self.revision, self.instance)
    }
}

fn checked(field: &str, value: &str, problems: &mut Vec<Problem>) -> Arc<str> {
    let problem = if value.trim().is_empty() {
        Some("is empty; give it a value or leave it out".to_owned())
    } else if value.len() > MAX_LEN {
        Some(format!("has {} bytes; use at most {MAX_LEN}", value.len()))
    } else if value.chars().any(char::is_control) {
        Some(format!("contains a control character (a line break?): {value:?}"))
    } else {
        None
    };
    problems.extend(problem.map(|problem| Problem::new(field.to_owned(), problem)));
    Arc::from(value)
}

fn kernel_host_name() -> String {
    let name = rustix::system::uname();
    let name = name.nodename().to_string_lossy();
    if name.trim().is_empty() { "localhost".to_owned() } else { name.into_owned() }
}

/// The process id distinguishes two processes of one host, or of two containers that share a host name.
fn default_instance(host: &str) -> String {
    format!("{host}-{}", std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(pairs: &[(&str, &str)]) -> Result<Release, ConfigError> {
        Release::from_variables("payments", |name| {
            pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| OsString::from(v))
        })
    }

    #[test]
    fn an_empty_environment_gives_the_version_stable() {
        let release = from(&[]).unwrap();
        assert_eq!(release.service(), "payments");
        assert_eq!(release.version(), "stable");
        assert_eq!(release.revision(), "unknown");
        assert_eq!(release.instance(), default_instance(&kernel_host_name()));
    }

    #[test]
    fn the_default_instance_is_host_name_and_process_id() {
        let release = from(&[("HOSTNAME", "pod-7")]).unwrap();
        assert_eq!(release.instance(), format!("pod-7-{}", std::process::id()));
        let release = from(&[("HOSTNAME", "pod-7"), ("CUTOVER_INSTANCE", "a")]).unwrap();
        assert_eq!(release.instance(), "a");
    }

    #[test]
    fn every_bad_variable_is_reported_at_once() {
        let long = "x".repeat(MAX_LEN + 1);
        let error =
            from(&[("CUTOVER_VERSION", ""), ("CUTOVER_REVISION", "a\nb"), ("CUTOVER_INSTANCE", &long)])
                .unwrap_err();
        assert_eq!(error.problems.len(), 3);
        for name in ["CUTOVER_VERSION", "CUTOVER_REVISION", "CUTOVER_INSTANCE"] {
            assert!(error.to_string().contains(name), "{error}");
        }
    }

    #[test]
    fn values_in_code_are_checked_as_well() {
        assert_eq!(Release::new(" ", "").unwrap_err().problems.len(), 2);
        let release = Release::new("a", "b").unwrap();
        assert!(release.clone().with_revision("\u{7}").is_err());
        assert!(release.clone().with_instance("").is_err());
        let release = release.with_revision("r").unwrap().with_instance("i").unwrap();
        assert_eq!(release.to_string(), "a b (r) as i");
    }
}
