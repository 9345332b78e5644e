//! A small HTTP/1 load balancer for machines without Envoy.
//!
//! It sends requests round robin to the instances whose `/readyz` passed at the last poll, with a weight per cluster. It retries
//! a request on another instance only if no connection could be opened, because then the first one has not seen it.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderName, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Either, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    client::legacy::{Client as Legacy, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use tokio::{net::TcpListener, task::JoinSet};

use crate::{
    client::Client,
    failure::{During, Result},
    proxy::Endpoint,
};

/// Time between two polls of `/readyz`.
const POLL: Duration = Duration::from_millis(100);

type Body = Either<Incoming, Full<Bytes>>;

/// A listener and its background tasks; dropping it ends them.
pub(crate) struct Balancer {
    shared: Arc<Shared>,
    address: SocketAddr,
    _tasks: JoinSet<()>,
}

struct Shared {
    clusters: Mutex<Vec<Cluster>>,
    turn: AtomicUsize,
    upstream: Legacy<HttpConnector, Full<Bytes>>,
}

struct Cluster {
    name: String,
    weight: u32,
    backends: Vec<Arc<Backend>>,
}

struct Backend {
    endpoint: Endpoint,
    is_ready: AtomicBool,
}

impl Balancer {
    /// Listens on a free port of 127.0.0.1. The first of `clusters` gets all requests.
    pub(crate) async fn start(clusters: &[&str]) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.during("opening the balancer's port")?;
        let address = listener.local_addr()?;
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(Duration::from_secs(1)));
        let upstream = Legacy::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector);
        let cluster = |(at, name): (usize, &&str)| Cluster {
            name: (*name).to_owned(),
            weight: if at == 0 { 100 } else { 0 },
            backends: Vec::new(),
        };
        let clusters = Mutex::new(clusters.iter().enumerate().map(cluster).collect());
        let shared = Arc::new(Shared { clusters, turn: AtomicUsize::new(0), upstream });
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, Arc::clone(&shared)));
        tasks.spawn(poll(Arc::clone(&shared)));
        Ok(Self { shared, address, _tasks: tasks })
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Sets the share of new requests per cluster. A cluster that is not named keeps its share.
    pub(crate) fn set_weights(&self, weights: &[(&str, u32)]) {
        let mut clusters = self.shared.clusters();
        for cluster in clusters.iter_mut() {
            if let Some((_, weight)) = weights.iter().find(|(name, _)| *name == cluster.name) {
                cluster.weight = *weight;
            }
        }
    }

    /// Sets the instances of a cluster. Known ones keep their state; a new one gets requests once it is ready.
    pub(crate) fn set_endpoints(&self, cluster: &str, endpoints: &[Endpoint]) {
        let mut clusters = self.shared.clusters();
        for cluster in clusters.iter_mut().filter(|known| known.name == cluster) {
            let known = std::mem::take(&mut cluster.backends);
            let backend = |endpoint: &Endpoint| {
                let old = known.iter().find(|backend| backend.endpoint == *endpoint);
                old.cloned().unwrap_or_else(|| {
                    Arc::new(Backend { endpoint: endpoint.clone(), is_ready: AtomicBool::new(false) })
                })
            };
            cluster.backends = endpoints.iter().map(backend).collect();
        }
    }

    /// Whether the instance with this name gets requests.
    pub(crate) fn is_serving(&self, name: &str) -> bool {
        let backends = self.shared.backends();
        backends.iter().any(|backend| backend.endpoint.name == name && backend.is_ready())
    }
}

impl Backend {
    fn is_ready(&self) -> bool {
        self.is_ready.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn clusters(&self) -> std::sync::MutexGuard<'_, Vec<Cluster>> {
        self.clusters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn backends(&self) -> Vec<Arc<Backend>> {
        self.clusters().iter().flat_map(|cluster| cluster.backends.clone()).collect()
    }

    /// The instances to try, in order: the ready ones of the chosen cluster, then all other ready ones.
    fn candidates(&self) -> Vec<Arc<Backend>> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let clusters = self.clusters();
        let total: u32 = clusters.iter().map(|cluster| cluster.weight).sum();
        // A stride without a common factor with 100 spreads a cluster's turns evenly.
        let mut place = (turn as u32).wrapping_mul(37) % total.max(1);
        let chosen = clusters.iter().position(|cluster| {
            let is_chosen = place < cluster.weight;
            place = place.saturating_sub(cluster.weight);
            is_chosen
        });
        let ready = |cluster: &Cluster| {
            let ready = cluster.backends.iter().filter(|backend| backend.is_ready());
            let mut ready: Vec<_> = ready.cloned().collect();
            let first = turn % ready.len().max(1);
            ready.rotate_left(first);
            ready
        };
        let mut order: Vec<usize> = chosen.into_iter().collect();
        order.extend((0..clusters.len()).filter(|at| Some(*at) != chosen));
        order.into_iter().flat_map(|at| ready(&clusters[at])).collect()
    }

    async fn handle(&self, request: Request<Incoming>) -> Result<Response<Body>, hyper::Error> {
        let (head, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        for backend in self.candidates() {
            let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
            let Ok(uri) = format!("http://{}{path}", backend.endpoint.address).parse::<Uri>() else {
                return Ok(refusal(StatusCode::BAD_REQUEST));
            };
            let mut request = Request::new(Full::new(body.clone()));
            *request.method_mut() = head.method.clone();
            *request.uri_mut() = uri;
            let passed_on = head.headers.iter().filter(|(name, _)| !is_hop_by_hop(name));
            request.headers_mut().extend(passed_on.map(|(name, value)| (name.clone(), value.clone())));
            match self.upstream.request(request).await {
                Ok(response) => return Ok(relay(response)),
                Err(error) if error.is_connect() => backend.is_ready.store(false, Ordering::Relaxed),
                Err(_) => return Ok(refusal(StatusCode::BAD_GATEWAY)),
            }
        }
        Ok(refusal(StatusCode::SERVICE_UNAVAILABLE))
    }
}

/// Removes connection headers: a draining instance closes its connection to the balancer, not the client's.
fn relay(response: Response<Incoming>) -> Response<Body> {
    let mut response = response.map(Either::Left);
    response.headers_mut().remove(header::CONNECTION);
    response.headers_mut().remove(header::TRANSFER_ENCODING);
    response
}

fn refusal(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Either::Right(Full::default()));
    *response.status_mut() = status;
    response
}

fn is_hop_by_hop(name: &HeaderName) -> bool {
    [header::CONNECTION, header::TRANSFER_ENCODING, header::CONTENT_LENGTH, header::HOST].contains(name)
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(POLL).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            let service = service_fn(|request| {
                let shared = Arc::clone(&shared);
                async move { shared.handle(request).await }
            });
            // A client may disconnect at any time.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn poll(shared: Arc<Shared>) {
    let client = Client::new(Duration::from_secs(1));
    let mut tick = tokio::time::interval(POLL);
    loop {
        tick.tick().await;
        let polls = shared.backends().into_iter().map(|backend| {
            let client = client.clone();
            async move {
                let answer = client.get(&format!("http://{}/readyz", backend.endpoint.health)).await;
                let is_ready = answer.is_ok_and(|answer| answer.status.is_success());
                backend.is_ready.store(is_ready, Ordering::Relaxed);
            }
        });
        futures_util::future::join_all(polls).await;
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, time::Instant};

    use super::*;
    use crate::stub::Stub;

    async fn endpoint(name: &str, stub: &Stub) -> Endpoint {
        Endpoint { name: name.to_owned(), address: stub.address, health: stub.address }
    }

    async fn until(what: impl Fn() -> bool) {
        let began = Instant::now();
        while !what() {
            assert!(began.elapsed() < Duration::from_secs(60), "condition did not become true within 60 s");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Which instance answered how many of `requests`.
    async fn shares(balancer: &Balancer, requests: usize) -> HashMap<String, usize> {
        let client = Client::new(Duration::from_secs(5));
        let mut shares = HashMap::new();
        for _ in 0..requests {
            let answer = client.get(&format!("{}/who", balancer.url())).await.unwrap();
            assert_eq!(answer.status, StatusCode::OK);
            *shares.entry(String::from_utf8(answer.body.to_vec()).unwrap()).or_default() += 1;
        }
        shares
    }

    #[tokio::test]
    async fn requests_follow_weights_and_rotate_over_instances() {
        let stubs = [Stub::start("a").await, Stub::start("b").await, Stub::start("c").await];
        let balancer = Balancer::start(&["stable", "canary"]).await.unwrap();
        let stable = [endpoint("a", &stubs[0]).await, endpoint("b", &stubs[1]).await];
        balancer.set_endpoints("stable", &stable);
        balancer.set_endpoints("canary", &[endpoint("c", &stubs[2]).await]);
        until(|| ["a", "b", "c"].iter().all(|name| balancer.is_serving(name))).await;
        let all_stable = shares(&balancer, 100).await;
        assert_eq!(all_stable.get("c"), None, "{all_stable:?}");
        assert!(all_stable["a"] >= 40 && all_stable["b"] >= 40, "{all_stable:?}");
        balancer.set_weights(&[("stable", 75), ("canary", 25)]);
        assert_eq!(shares(&balancer, 200).await["c"], 50);
    }

    #[tokio::test]
    async fn unready_instances_get_no_requests() {
        let stubs = [Stub::start("a").await, Stub::start("b").await];
        let balancer = Balancer::start(&["stable"]).await.unwrap();
        balancer.set_endpoints("stable", &[endpoint("a", &stubs[0]).await, endpoint("b", &stubs[1]).await]);
        until(|| balancer.is_serving("a") && balancer.is_serving("b")).await;
        stubs[0].set_ready(false);
        until(|| !balancer.is_serving("a")).await;
        assert_eq!(shares(&balancer, 20).await, HashMap::from([("b".to_owned(), 20)]));
        stubs[0].set_ready(true);
        until(|| balancer.is_serving("a")).await;
        balancer.set_endpoints("stable", &[endpoint("a", &stubs[0]).await]);
        assert_eq!(shares(&balancer, 20).await, HashMap::from([("a".to_owned(), 20)]));
    }

    #[tokio::test]
    async fn only_refused_connections_are_retried() {
        let good = Stub::start("good").await;
        let balancer = Balancer::start(&["stable"]).await.unwrap();
        // Its health passes, but nothing listens on its request port.
        let held = tokio::net::TcpSocket::new_v4().unwrap();
        held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let closed = held.local_addr().unwrap();
        let dead = Endpoint { name: "dead".to_owned(), address: closed, health: good.address };
        balancer.set_endpoints("stable", &[dead, endpoint("good", &good).await]);
        until(|| balancer.is_serving("good")).await;
        assert_eq!(shares(&balancer, 50).await["good"], 50);

        // This one reads a request and disconnects: the request may have been executed.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                stream.readable().await.unwrap();
            }
        });
        let closing = Endpoint { name: "closing".to_owned(), address, health: good.address };
        balancer.set_endpoints("stable", &[closing]);
        until(|| balancer.is_serving("closing")).await;
        let answer = Client::new(Duration::from_secs(5)).get(&balancer.url()).await.unwrap();
        assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
    }
}
