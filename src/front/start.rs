use std::io::Write;
use std::process::ExitCode;

use axum::Router;

use super::assembly::Assembly;
use super::environment::{Environment, Output};
use super::{BoxError, Cutover, Instance, StartError};
use crate::preflight::PreflightReport;

impl Cutover {
    /// The whole life of an instance: starts it, serves what `app` makes of it, and returns when it has been
    /// drained because of SIGTERM, SIGINT or `/drain`. What `main` of an ordinary service returns.
    ///
    /// `app` makes the router; a worker without one returns `None::<Router>`, and only probes, metrics and `/drain`
    /// are served.
    ///
    /// With `CUTOVER_PREFLIGHT=1` in the environment, or the argument `--preflight`, nothing is started: what would
    /// break this build here is printed on standard output (`CUTOVER_PREFLIGHT=json`, `--preflight=json`: as JSON).
    ///
    /// | exit status | |
    /// |---|---|
    /// | 0 | drained, told to end before it had started, or a preflight without problems |
    /// | 1 | a preflight with problems |
    /// | 2 | the configuration is wrong; all of it is on standard error |
    /// | 3 | the ledger or an address can't be used, or `app` failed |
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
        let served = async {
            let app = tokio::select! {
                app = app(&instance) => app?.into(),
                // Told to end meanwhile: there is no use for it any more.
                () = instance.drain().begun() => None,
            };
            match app {
                Some(app) => instance.serve(app).await,
                None => instance.serve_admin().await,
            }
            .map_err(BoxError::from)
        };
        match served.await {
            Ok(_) => ExitCode::SUCCESS,
            Err(error) => failed(&*error, 3),
        }
    }

    /// Makes the parts, joins the fleet and starts to take part in the migrations. SIGTERM and SIGINT begin the drain
    /// from here on, and end the start itself.
    ///
    /// # Errors
    ///
    /// [`StartError::Configuration`] with all that is wrong with options and environment; [`StartError::Interrupted`];
    /// [`StartError::Ledger`] when the ledger can't be used; [`StartError::Preflight`], when one was asked for as
    /// [`run`](Cutover::run) says. [`StartError::report`] makes an exit status of any of them.
    ///
    /// # Cancel safety
    ///
    /// Safe: what was begun ends with the future.
    pub async fn start(self) -> Result<Instance, StartError> {
        let assembly = Assembly::new(self, Environment::of_the_process());
        match assembly.preflight {
            Some(output) => Err(StartError::Preflight(Box::new(assembly.look().await), output)),
            None => assembly.start().await,
        }
    }

    /// Looks at what would break this build here, and starts nothing.
    ///
    /// # Cancel safety
    ///
    /// Safe: it only looks.
    pub async fn preflight(self) -> PreflightReport {
        Assembly::new(self, Environment::of_the_process()).look().await
    }
}

impl StartError {
    /// Says on the terminal what there is to say, and gives the exit status that [`Cutover::run`] would: zero for a
    /// preflight that found no problem. For a `main` that calls [`Cutover::start`] itself.
    pub fn report(&self) -> ExitCode {
        match self {
            Self::Preflight(report, output) => {
                let text = match output {
                    Output::Text => report.to_string(),
                    Output::Json => serde_json::to_string_pretty(report).unwrap_or_else(|e| e.to_string()),
                };
                let heard = writeln!(std::io::stdout(), "{text}").is_ok();
                ExitCode::from(u8::from(!report.passed || !heard))
            }
            Self::Interrupted => {
                tracing::info!("{self}");
                ExitCode::SUCCESS
            }
            Self::Configuration(_) => failed(self, 2),
            Self::Ledger(_) | Self::Share(_) => failed(self, 3),
        }
    }
}

/// Also where nobody has set up `tracing`.
fn failed(error: &dyn std::fmt::Display, status: u8) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "can't start: {error}");
    ExitCode::from(status)
}
