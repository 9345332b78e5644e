use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::{Path, Query, State as Handle};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::StatusCode;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use serde::Serialize;

use super::component::{Component, State, Status};
use super::handle::Health;

impl Health {
    /// `GET /livez`, `/readyz`, `/readyz/{check}` and `/healthz`, for the admin listener.
    ///
    /// - `/livez`: 200 as long as the process answers. It looks at no dependency, because a restart does not repair a
    ///   database.
    /// - `/readyz`: 200 or 503, with a line for each component that blocks readiness. `?verbose` shows all components,
    ///   `?exclude=a,b` leaves some out.
    /// - `/readyz/{check}`: the same for one component or group; 404 if there is none of that name. Excluding a group
    ///   excludes everything in it.
    /// - `/healthz`: everything, as `application/health+json` (draft-inadarei-api-health-check-06); 503 if something
    ///   fails. `?exclude=a,b` as above.
    pub fn router(&self) -> Router {
        Router::new()
            .route("/livez", get(livez))
            .route("/readyz", get(readyz))
            .route("/readyz/{check}", get(readyz_of))
            .route("/healthz", get(healthz))
            .with_state(self.clone())
    }
}

/// Keys may repeat (`exclude=a&exclude=b`) and need no value (`verbose`), so a map does not fit.
type Pairs = Query<Vec<(String, String)>>;

type Shown = Vec<(Arc<Component>, State)>;

fn shown(health: &Health, keep: impl Fn(&Component) -> bool) -> Shown {
    let components = health.shared.components();
    let kept = components.iter().filter(|c| keep(c));
    kept.map(|c| (Arc::clone(c), c.shown())).collect()
}

fn not_excluded(pairs: &[(String, String)]) -> impl Fn(&Component) -> bool {
    move |component| {
        let mut excluded = pairs.iter().filter(|(key, _)| key == "exclude");
        !excluded.any(|(_, names)| names.split(',').any(|name| component.is_called(name.trim())))
    }
}

fn worst(shown: &Shown) -> Status {
    shown.iter().map(|(_, state)| state.status).max().unwrap_or(Status::Pass)
}

fn code(status: Status) -> StatusCode {
    match status {
        Status::Pass | Status::Warn => StatusCode::OK,
        Status::Fail => StatusCode::SERVICE_UNAVAILABLE,
    }
}

async fn livez() -> Response {
    text(StatusCode::OK, "alive\n".to_owned())
}

async fn readyz(Handle(health): Handle<Health>, Query(pairs): Pairs) -> Response {
    let verbose = pairs.iter().any(|(key, _)| key == "verbose");
    ready_page(&shown(&health, not_excluded(&pairs)), verbose)
}

async fn readyz_of(Handle(health): Handle<Health>, Path(check): Path<String>) -> Response {
    let shown = shown(&health, |component| component.is_called(&check));
    if shown.is_empty() {
        return text(StatusCode::NOT_FOUND, format!("no check or group named {check:?}\n"));
    }
    ready_page(&shown, true)
}

fn ready_page(shown: &Shown, verbose: bool) -> Response {
    let status = worst(shown);
    let mut page = String::from(match status {
        Status::Pass | Status::Warn => "ready\n",
        Status::Fail => "not ready\n",
    });
    for (component, state) in shown {
        if verbose || state.status == Status::Fail {
            let output = state.output.as_deref().unwrap_or("ok");
            page.push_str(&format!("{} {}: {output}\n", state.status.as_str(), component.name));
        }
    }
    text(code(status), page)
}

fn text(code: StatusCode, page: String) -> Response {
    let headers = [(CONTENT_TYPE, "text/plain; charset=utf-8"), (CACHE_CONTROL, "no-store")];
    (code, headers, page).into_response()
}

#[derive(Serialize)]
struct Document {
    status: &'static str,
    checks: BTreeMap<String, Vec<Entry>>,
}

#[derive(Serialize)]
struct Entry {
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<String>,
    status: &'static str,
    time: String,
    /// Seconds since `time`, for readers with a different clock.
    age: f64,
    #[serde(rename = "observedValue", skip_serializing_if = "Option::is_none")]
    took: Option<f64>,
    #[serde(rename = "observedUnit", skip_serializing_if = "Option::is_none")]
    unit: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<String>,
}

async fn healthz(Handle(health): Handle<Health>, Query(pairs): Pairs) -> Response {
    let shown = shown(&health, not_excluded(&pairs));
    let status = worst(&shown);
    let mut checks: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (component, state) in shown {
        checks.entry(component.name.to_string()).or_default().push(Entry {
            group: component.group.as_deref().map(str::to_owned),
            status: state.status.as_str(),
            time: rfc3339(state.time),
            age: state.at.elapsed().as_secs_f64(),
            took: state.took.as_ref().map(Duration::as_secs_f64),
            unit: state.took.map(|_| "s"),
            output: state.output.as_deref().map(str::to_owned),
        });
    }
    let document = Document { status: status.as_str(), checks };
    match serde_json::to_string(&document) {
        Ok(page) => {
            let headers = [(CONTENT_TYPE, "application/health+json"), (CACHE_CONTROL, "no-store")];
            (code(status), headers, page).into_response()
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

/// UTC in milliseconds. The date is computed as in Howard Hinnant's `civil_from_days`
/// (<https://howardhinnant.github.io/date_algorithms.html>), for days from 1970 on.
fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
        second / 3600,
        second / 60 % 60,
        second % 60,
        since.subsec_millis()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_rfc_3339() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.250Z"),
            (951_782_400, "2000-02-29T00:00:00.250Z"),
            (951_868_799, "2000-02-29T23:59:59.250Z"),
            (951_868_800, "2000-03-01T00:00:00.250Z"),
            (1_735_689_599, "2024-12-31T23:59:59.250Z"),
            (4_107_542_400, "2100-03-01T00:00:00.250Z"),
        ] {
            let time = UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_millis(250);
            assert_eq!(rfc3339(time), text);
        }
    }
}
