//! Commands that survive a failover.

use std::fmt;
use std::time::Duration;

use deadpool_redis::redis::{Cmd, FromRedisValue, RedisError, from_redis_value};
use tokio::time::{Instant, sleep, timeout_at};

use super::pool::{AnyConnection, RedisPool};
use super::refusal::{describe, is_passing};

/// The pause before the second repetition; the first has none. It doubles up to [`LONGEST_PAUSE`].
const PAUSE: Duration = Duration::from_millis(25);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// Why a command has no result.
#[derive(Debug)]
pub(crate) struct Failure {
    text: String,
    /// The connection broke after the command was sent. Whether it ran is unknown.
    pub(crate) is_unknown: bool,
}

/// A connection of the pool for one operation, which ends at the deadline.
pub(crate) struct Client<'a> {
    pool: &'a RedisPool,
    connection: Option<AnyConnection>,
    limit: Duration,
    deadline: Instant,
    /// Why the command was repeated, for the error at the deadline.
    refusal: Option<String>,
}

impl<'a> Client<'a> {
    /// An operation that ends `limit` from now.
    pub(crate) fn new(pool: &'a RedisPool, limit: Duration) -> Self {
        Self { pool, connection: None, limit, deadline: Instant::now() + limit, refusal: None }
    }

    /// The result of `command`. If the server refuses it without running it, as a demoted primary does, it is repeated on
    /// a new connection until the deadline.
    pub(crate) async fn ask<T: FromRedisValue>(&mut self, command: &Cmd) -> Result<T, Failure> {
        self.ask_while(command, is_passing).await
    }

    /// As [`ask`](Self::ask), for a command that has the same effect when it runs twice. It is also repeated when the
    /// connection breaks.
    pub(crate) async fn repeat<T: FromRedisValue>(&mut self, command: &Cmd) -> Result<T, Failure> {
        self.ask_while(command, |error| is_passing(error) || is_broken(error)).await
    }

    async fn ask_while<T: FromRedisValue>(
        &mut self,
        command: &Cmd,
        is_repeated: impl Fn(&RedisError) -> bool,
    ) -> Result<T, Failure> {
        let mut pause = Duration::ZERO;
        loop {
            let error = match self.send(command).await? {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            if is_passing(&error) || is_broken(&error) {
                self.discard();
            }
            if !is_repeated(&error) || Instant::now() + pause >= self.deadline {
                let text = format!("Redis: {}", describe(&error));
                return Err(Failure { text, is_unknown: is_broken(&error) });
            }
            let refusal = describe(&error);
            if pause.is_zero() {
                tracing::warn!(
                    error = refusal,
                    "Redis did not run a command; repeating it on a new connection"
                );
            }
            self.refusal = Some(refusal);
            sleep(pause).await;
            pause = (pause * 2).clamp(PAUSE, LONGEST_PAUSE);
        }
    }

    async fn send<T: FromRedisValue>(&mut self, command: &Cmd) -> Result<Result<T, RedisError>, Failure> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            empty => {
                let connection = timeout_at(self.deadline, self.pool.get()).await;
                let connection =
                    connection.map_err(|_| Failure::late(self.limit, self.refusal.as_deref()))?;
                empty.insert(connection.map_err(|text| Failure { text, is_unknown: false })?)
            }
        };
        let answer = timeout_at(self.deadline, connection.req_packed_command(command)).await;
        let answer = answer.map_err(|_| Failure::late(self.limit, self.refusal.as_deref()))?;
        Ok(answer.and_then(|value| Ok(from_redis_value(value.extract_error()?)?)))
    }

    /// Closes the connection and the idle ones of the pool, which lead to the same server.
    fn discard(&mut self) {
        self.connection = None;
        self.pool.close_idle();
    }
}

/// Whether the connection ended before the answer came.
fn is_broken(error: &RedisError) -> bool {
    error.is_connection_dropped()
}

impl Failure {
    fn late(limit: Duration, refusal: Option<&str>) -> Self {
        let before = refusal.map(|text| format!("; its last answer: {text}")).unwrap_or_default();
        Self { text: format!("Redis did not answer within {limit:?}{before}"), is_unknown: true }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Failure {}
