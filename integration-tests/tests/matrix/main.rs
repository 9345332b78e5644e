//! Every way in which a request can end, on axum and on tonic, over HTTP/1 and HTTP/2, on real sockets, beside the
//! counts of other layers.
//!
//! A cell runs on one thread. When the guard of a request is dropped and its client has finished, the request has been
//! counted, so no test sleeps.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail the test")]

mod apps;
mod peers;

use std::collections::BTreeMap;

use apps::{CELLS, Cell, Protocol, Server, Way, layered, run};
use axum::http::Method;
use cutover::{
    metrics::{Metrics, prometheus::TextEncoder},
    release::Release,
};
use cutover_testkit::GrpcEnding;

/// The counts of a layer: requests by status, and requests in flight.
#[derive(Clone, Debug, Default, PartialEq)]
struct Reading {
    counted: BTreeMap<String, i64>,
    in_flight: i64,
}

impl Reading {
    /// The difference since an earlier count.
    fn since(&self, before: &Self) -> Self {
        let counted = self.counted.iter().map(|(status, count)| {
            (status.clone(), count - before.counted.get(status).copied().unwrap_or_default())
        });
        Self {
            counted: counted.filter(|(_, count)| *count != 0).collect(),
            in_flight: self.in_flight - before.in_flight,
        }
    }

    /// Parses a metrics page.
    fn of_page(page: &str, counter: &str, gauge: &str) -> Self {
        let mut reading = Self::default();
        for line in page.lines() {
            let Some((series, value)) = line.rsplit_once(' ') else { continue };
            let value = value.parse::<f64>().map_or(0, |value| value as i64);
            if series.starts_with(counter) {
                let status = series.split("status=\"").nth(1).and_then(|rest| rest.split('"').next());
                *reading.counted.entry(status.unwrap_or_default().to_owned()).or_default() += value;
            } else if series.starts_with(gauge) {
                reading.in_flight += value;
            }
        }
        reading
    }

    /// One request with this status, and none in flight.
    fn is(&self, status: u16) -> bool {
        self.in_flight == 0 && self.counted == BTreeMap::from([(status.to_string(), 1)])
    }
}

fn ours(page: &str) -> Reading {
    Reading::of_page(page, "http_requests_total{", "http_requests_in_flight{").since(&Reading::default())
}

fn page(metrics: &Metrics) -> String {
    TextEncoder::new().encode_to_string(&metrics.registry().gather()).unwrap()
}

#[tokio::test]
async fn every_ending_is_counted_once_under_its_outcome() {
    for cell in CELLS {
        let metrics = Metrics::new(&Release::new("kit", "canary").unwrap()).unwrap();
        for ending in GrpcEnding::ALL {
            metrics.declare(&Method::POST, &ending.path());
        }
        run(layered(metrics.layer()), cell).await;
        let page = page(&metrics);
        let reading = ours(&page);
        assert!(reading.is(cell.way.status(cell.server)), "{cell:?}: {reading:?}");

        let counted = |line: &&str| {
            line.starts_with("http_request") && line.contains("_total{") && !line.ends_with(" 0")
        };
        let lines: Vec<_> = page.lines().filter(counted).collect();
        let (reason, route) = (cell.way.reason(), cell.route());
        assert_eq!(lines.len(), 1 + usize::from(reason.is_some()), "{cell:?}: {lines:#?}");
        for line in lines {
            assert!(line.contains(&format!("route=\"{route}\"")), "{cell:?}: {line}");
            let reason = reason.map(|reason| format!("reason=\"{reason}\""));
            assert!(
                line.starts_with("http_requests_total") || line.contains(&reason.unwrap_or_default()),
                "{cell:?}: {line}"
            );
        }
        let first_byte = page.lines().filter(|l| l.starts_with("http_request_first_byte_seconds_count"));
        let heads = first_byte.filter(|line| line.ends_with(" 1")).count();
        assert_eq!(heads, usize::from(cell.way.has_head()), "{cell:?}");
    }
}

/// tonic's own server inside the layer. The declared methods give the routes.
#[tokio::test]
async fn the_layer_also_works_around_the_server_of_tonic() {
    for way in Way::ALL {
        let cell = Cell { server: Server::Tonic, protocol: Protocol::Http2, way };
        if !CELLS.contains(&cell) || way == Way::ServiceError {
            continue;
        }
        let metrics = Metrics::new(&Release::new("kit", "canary").unwrap()).unwrap();
        for ending in GrpcEnding::ALL {
            metrics.declare(&Method::POST, &ending.path());
        }
        let layer = metrics.layer();
        run(apps::tonics_own(layer), cell).await;
        let page = page(&metrics);
        let reading = ours(&page);
        assert!(reading.is(way.status(Server::Tonic)), "{way:?}: {reading:?}");
        assert!(
            page.lines()
                .any(|line| line.contains(&format!("route=\"{}\"", cell.route())) && line.ends_with(" 1"))
        );
    }
}
