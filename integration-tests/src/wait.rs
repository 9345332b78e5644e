//! Waits for conditions, and free ports.

use std::{
    fmt::Display,
    future::Future,
    net::TcpListener,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener},
    },
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::KitError;

const PAUSE: Duration = Duration::from_millis(20);

/// Calls `ask` until it returns `Ok(true)`.
///
/// `Ok(false)` and errors both mean "not yet". The last of them is part of the error after `limit`. A call that hangs
/// is cancelled at the deadline.
///
/// # Errors
///
/// [`KitError::TimedOut`].
///
/// ```
/// # use std::time::Duration;
/// # use cutover_testkit::{KitError, wait_until};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), KitError> {
/// let mut asked = 0;
/// wait_until("the third call", Duration::from_secs(1), || {
///     asked += 1;
///     let done = asked == 3;
///     async move { Ok::<_, KitError>(done) }
/// })
/// .await
/// # }
/// ```
pub async fn wait_until<A, F, E>(what: &str, limit: Duration, mut ask: A) -> Result<(), KitError>
where
    A: FnMut() -> F,
    F: Future<Output = Result<bool, E>>,
    E: Display,
{
    let deadline = Instant::now() + limit;
    let mut last = String::from("none");
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match tokio::time::timeout(left.max(PAUSE), ask()).await {
            Ok(Ok(true)) => return Ok(()),
            Ok(Ok(false)) => last = String::from("no"),
            Ok(Err(error)) => last = error.to_string(),
            Err(_) => {}
        }
        if Instant::now() >= deadline {
            return Err(KitError::TimedOut { what: what.to_owned(), limit, last });
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// A free loopback port. No other process of the kit gets it while this one runs.
///
/// It is below the range of ports for outgoing connections (32768 on Linux), so that a server that restarts gets its
/// port back.
///
/// # Errors
///
/// [`KitError::Misuse`] if a thousand attempts find none.
pub fn free_port() -> Result<u16, KitError> {
    /// A name for each port, which only one process can have. It ends with the process.
    static GIVEN: Mutex<Vec<UnixListener>> = Mutex::new(Vec::new());
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..1000 {
        let port = fastrand::u16(10_000..32_000);
        let name = SocketAddr::from_abstract_name(format!("cutover-port-{port}"));
        if let Ok(name) = name.and_then(|name| UnixListener::bind_addr(&name))
            && TcpListener::bind(("127.0.0.1", port)).is_ok()
        {
            given.push(name);
            return Ok(port);
        }
    }
    Err(KitError::Misuse("no free port between 10000 and 32000 on 127.0.0.1".to_owned()))
}

/// Starts a server on a free port. Tries another port if another process takes it first.
pub(crate) async fn on_free_port<S, F, T>(mut start: S) -> Result<T, KitError>
where
    S: FnMut(u16) -> F,
    F: Future<Output = Result<T, KitError>>,
{
    let mut tries = 0;
    loop {
        tries += 1;
        match start(free_port()?).await {
            Err(error) if error.is_port_taken() && tries < 5 => {}
            outcome => return outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[tokio::test]
    async fn a_hanging_query_ends_and_the_last_answer_is_reported() {
        let mut asked = 0;
        let outcome = wait_until("never", Duration::from_millis(200), || {
            asked += 1;
            let hangs = asked > 2;
            async move {
                if hangs {
                    std::future::pending::<()>().await;
                }
                Err::<bool, _>("refused")
            }
        })
        .await;
        assert_eq!(outcome.unwrap_err().to_string(), "waited 200ms for: never; last answer: refused");
    }

    #[test]
    fn ports_are_not_given_twice() {
        let ports: BTreeSet<_> = (0..50).map(|_| free_port().unwrap()).collect();
        assert_eq!(ports.len(), 50);
    }
}
