use std::collections::BTreeSet;

use axum_prometheus::PrometheusMetricLayerBuilder;
use opentelemetry_instrumentation_tower::http::server::LayerBuilder;
use opentelemetry_sdk::metrics::{
    InMemoryMetricExporter, PeriodicReader, SdkMeterProvider,
    data::{AggregatedMetrics, MetricData},
};
use tower_http::metrics::in_flight_requests::InFlightRequestsLayer;

use super::{
    Reading,
    apps::{CELLS, Cell, Serve, Server, Way, layered, run},
};

/// The mistake of a layer.
#[derive(Debug, Default, PartialEq)]
struct Wrong {
    /// Not counted exactly once in the right class of statuses.
    counted: BTreeSet<(Server, Way)>,
    /// Still counted as in flight.
    in_flight: BTreeSet<(Server, Way)>,
}

async fn wrong(serve: impl Fn() -> Serve, read: impl Fn() -> Reading) -> Wrong {
    let mut wrong = Wrong::default();
    for cell in CELLS {
        let Cell { server, way, .. } = cell;
        let before = read();
        run(serve(), cell).await;
        let reading = read().since(&before);
        let right = way.status(server).to_string();
        let one = |(status, count): (&String, &i64)| *count == 1 && status.starts_with(&right[..1]);
        if reading.counted.len() != 1 || !reading.counted.iter().all(one) {
            wrong.counted.insert((server, way));
        }
        if reading.in_flight != 0 {
            wrong.in_flight.insert((server, way));
        }
    }
    wrong
}

/// All endings except these.
fn all_but(right: &[(Server, Way)]) -> BTreeSet<(Server, Way)> {
    CELLS.iter().map(|cell| (cell.server, cell.way)).filter(|cell| !right.contains(cell)).collect()
}

/// The endings that a layer counts correctly if it looks only at the head and ignores gRPC.
const OF_THE_HEAD: [(Server, Way); 4] = [
    (Server::Axum, Way::Fine),
    (Server::Axum, Way::ErrorStatus),
    (Server::Axum, Way::Unmatched),
    (Server::Tonic, Way::Fine),
];

/// Shows that the matrix can fail: these layers fail.
#[tokio::test]
async fn axum_prometheus_counts_at_the_head() {
    let (layer, handle) = PrometheusMetricLayerBuilder::new().with_default_metrics().build_pair();
    let read =
        || Reading::of_page(&handle.render(), "axum_http_requests_total{", "axum_http_requests_pending{");
    let wrong = wrong(|| layered(layer.clone()), read).await;
    assert_eq!(wrong.counted, all_but(&OF_THE_HEAD));
    assert_eq!(wrong.in_flight, BTreeSet::new());
}

#[tokio::test]
async fn the_opentelemetry_layer_keeps_clients_that_left_in_flight() {
    let exporter = InMemoryMetricExporter::default();
    let reader = PeriodicReader::builder(exporter.clone()).build();
    let provider = SdkMeterProvider::builder().with_reader(reader).build();
    opentelemetry::global::set_meter_provider(provider.clone());
    let layer = LayerBuilder::builder().with_tracing(false).build().unwrap();
    let read = || {
        exporter.reset();
        provider.force_flush().unwrap();
        telemetry(&exporter)
    };
    let wrong = wrong(|| layered(layer.clone()), read).await;
    assert_eq!(wrong.counted, all_but(&OF_THE_HEAD));
    let servers = [Server::Axum, Server::Tonic];
    let kept = servers.map(|server| [(server, Way::Panic), (server, Way::GoneBeforeHead)]);
    assert_eq!(wrong.in_flight, BTreeSet::from_iter(kept.into_iter().flatten()));
}

/// It counts no statuses, so only the requests in flight are compared.
#[tokio::test]
async fn the_in_flight_layer_of_tower_http_counts_every_end() {
    let (layer, counter) = InFlightRequestsLayer::pair();
    let read = || Reading { in_flight: i64::try_from(counter.get()).unwrap(), ..Reading::default() };
    let wrong = wrong(|| layered(layer.clone()), read).await;
    assert_eq!(wrong, Wrong { counted: all_but(&[]), in_flight: BTreeSet::new() });
}

fn telemetry(exporter: &InMemoryMetricExporter) -> Reading {
    let mut reading = Reading::default();
    for resource in exporter.get_finished_metrics().unwrap() {
        for metric in resource.scope_metrics().flat_map(|scope| scope.metrics()) {
            match metric.data() {
                AggregatedMetrics::F64(MetricData::Histogram(durations))
                    if metric.name() == "http.server.request.duration" =>
                {
                    for point in durations.data_points() {
                        let status =
                            point.attributes().find(|a| a.key.as_str() == "http.response.status_code");
                        let status = status.map_or_else(String::new, |a| a.value.to_string());
                        *reading.counted.entry(status).or_default() += i64::try_from(point.count()).unwrap();
                    }
                }
                AggregatedMetrics::I64(MetricData::Sum(active))
                    if metric.name() == "http.server.active_requests" =>
                {
                    reading.in_flight += active.data_points().map(|point| point.value()).sum::<i64>();
                }
                _ => {}
            }
        }
    }
    reading
}
