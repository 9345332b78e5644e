use std::io::Write;
use std::process::ExitCode;

use axum::Router;

use super::assembly::Assembly;
use super::environment::{Environment, Output};
use super::{BoxError, Cutover, Instance, StartError};
use crate::config::redact;
use crate::preflight::PreflightReport;

impl Cutover {
    /// Runs an instance for its whole life: starts it, serves the router that `app` makes, and returns when it has been
    /// drained because of SIGTERM, SIGINT or `/drain`. `main` of an ordinary service returns the result.
    ///
    /// A worker without a router returns `None::<Router>`. Then only the admin listener is served.
    ///
    /// With `CUTOVER_PREFLIGHT=1` in the environment, or the argument `--preflight`, nothing is started. Everything that
    /// would break this build in this environment is printed on standard output (`CUTOVER_PREFLIGHT=json`,
    /// `--preflight=json`: as JSON).
    ///
    /// | exit status | |
    /// |---|---|
    /// | 0 | drained, interrupted before the start was complete, or a preflight without problems |
    /// | 1 | a preflight with problems |
    /// | 2 | the configuration can't be used; all problems are on standard error |
    /// | 3 | an address can't be opened, or `app` failed |
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: dropped, it stops accepting at once.
    pub async fn run<A, R>(self, app: A) -> ExitCode
    where
        A: AsyncFnOnce(&Instance) -> Result<R, BoxError>,
        R: Into<Option<Router>>,
    {
        let instance = match self.start().await {
            Ok(instance) => instance,
            Err(error) => return error.report(),
        };
        let app = tokio::select! {
            app = app(&instance) => app.map(Into::into),
            // The drain began meanwhile, so the router is not needed any more.
            () = instance.drain().begun() => Ok(None),
        };
        let served = match app {
            Ok(Some(app)) => instance.serve(app).await,
            Ok(None) => instance.serve_admin().await,
            Err(error) => {
                instance.abandon().await;
                return failed(&redact(&error.to_string()), 3);
            }
        };
        match served {
            Ok(_) => ExitCode::SUCCESS,
            Err(error) => failed(&error, 3),
        }
    }

    /// Starts an instance: serves probes, metrics and `/drain` on the admin listener, joins the fleet, and takes part in
    /// the migrations. From here on SIGTERM and SIGINT begin the drain, and end the start itself.
    ///
    /// A database that is unavailable does not end the start. It retries with growing pauses of up to 5 s, `/livez`
    /// passes, and `/readyz` says what it waits for.
    ///
    /// # Errors
    ///
    /// [`StartError::Config`] with every problem of options and environment, [`StartError::Listen`],
    /// [`StartError::Interrupted`], and [`StartError::Preflight`] if one was requested as [`run`](Cutover::run) describes.
    /// What was begun is given back. [`StartError::report`] makes an exit status of any of them.
    ///
    /// # Cancel safety
    ///
    /// A row in the ledger that a dropped future leaves behind ends with its lease.
    pub async fn start(self) -> Result<Instance, StartError> {
        let assembly = Assembly::new(self, Environment::of_the_process());
        match assembly.preflight {
            Some(output) => Err(StartError::Preflight(Box::new(assembly.look().await), output)),
            None => assembly.start().await,
        }
    }

    /// Reports everything that would break this build in this environment. Starts and changes nothing.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: it only reads.
    pub async fn preflight(self) -> PreflightReport {
        Assembly::new(self, Environment::of_the_process()).look().await
    }
}

impl StartError {
    /// Prints the error, or the preflight's report, and returns the exit status that [`Cutover::run`] would. For a `main`
    /// that calls [`Cutover::start`] itself.
    pub fn report(&self) -> ExitCode {
        match self {
            Self::Preflight(report, output) => {
                let text = match output {
                    Output::Text => report.to_string(),
                    Output::Json => serde_json::to_string_pretty(report).unwrap_or_else(|e| e.to_string()),
                };
                let is_printed = writeln!(std::io::stdout(), "{text}").is_ok();
                ExitCode::from(u8::from(!report.passed || !is_printed))
            }
            Self::Interrupted => {
                tracing::info!("{self}");
                ExitCode::SUCCESS
            }
            Self::Config(_) => failed(self, 2),
            Self::Listen { .. } => failed(self, 3),
        }
    }
}

/// Prints to standard error, which is visible without a `tracing` subscriber.
fn failed(error: &dyn std::fmt::Display, status: u8) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "could not start: {error}");
    ExitCode::from(status)
}
