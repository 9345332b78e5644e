use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::{Connection, PgPool, Postgres};
use tokio::task::JoinSet;

/// A pool whose number of connections can be changed while it is in use.
pub(super) enum Bound {
    /// `sqlx` can't resize. What it must not open is checked out of it, by a connection that the server has ended
    /// already: it keeps the place and costs the server nothing.
    Sqlx {
        pool: PgPool,
        most: u32,
        held_back: Vec<PoolConnection<Postgres>>,
        taking: JoinSet<PoolConnection<Postgres>>,
    },
    #[cfg(feature = "deadpool")]
    Deadpool { pool: deadpool_postgres::Pool, max_lifetime: Duration },
}

impl Bound {
    /// Checks all places beyond `granted` out, one after the other: so there is only one connection at a time.
    pub(super) async fn sqlx(pool: PgPool, most: u32, granted: u32) -> Self {
        let mut held_back = Vec::new();
        for _ in granted..most {
            held_back.push(take(pool.clone()).await);
        }
        Self::Sqlx { pool, most, held_back, taking: JoinSet::new() }
    }

    /// How many connections the pool can have at the moment.
    pub(super) fn holding(&self) -> u32 {
        match self {
            Self::Sqlx { most, held_back, .. } => most.saturating_sub(len(held_back.len())),
            #[cfg(feature = "deadpool")]
            Self::Deadpool { pool, .. } => {
                let status = pool.status();
                len(status.max_size.max(status.size))
            }
        }
    }

    /// How many connections somebody has, or waits for, as far as the pool knows.
    pub(super) fn in_use(&self) -> u32 {
        match self {
            Self::Sqlx { pool, held_back, .. } => {
                pool.size().saturating_sub(len(pool.num_idle() + held_back.len()))
            }
            #[cfg(feature = "deadpool")]
            Self::Deadpool { pool, .. } => {
                let status = pool.status();
                len(status.size.saturating_sub(status.available) + status.waiting)
            }
        }
    }

    /// Grows at once; shrinks as connections come free.
    pub(super) async fn resize(&mut self, to: u32) {
        match self {
            Self::Sqlx { pool, most, held_back, taking } => {
                let back = usize::try_from(most.saturating_sub(to)).unwrap_or(usize::MAX);
                if held_back.len() + taking.len() > back {
                    // One that is dropped in the middle of it goes to the pool, which finds it dead.
                    taking.shutdown().await;
                    for place in held_back.drain(back.min(held_back.len())..) {
                        let _ = place.close().await;
                    }
                }
                while held_back.len() + taking.len() < back {
                    taking.spawn(take(pool.clone()));
                }
            }
            #[cfg(feature = "deadpool")]
            Self::Deadpool { pool, max_lifetime } => {
                pool.resize(usize::try_from(to).unwrap_or(usize::MAX));
                pool.retain(|_, metrics| metrics.age() < *max_lifetime);
            }
        }
    }

    /// PoolWaitMetrics until something was given back; for ever when nothing is on its way.
    pub(super) async fn gave_back(&mut self) {
        match self {
            Self::Sqlx { held_back, taking, .. } => {
                while let Some(taken) = taking.join_next().await {
                    if let Ok(place) = taken {
                        held_back.push(place);
                        return;
                    }
                }
                std::future::pending().await
            }
            #[cfg(feature = "deadpool")]
            Self::Deadpool { .. } => std::future::pending().await,
        }
    }

    /// Whether the user has closed the pool.
    pub(super) fn is_closed(&self) -> bool {
        match self {
            Self::Sqlx { pool, .. } => pool.is_closed(),
            #[cfg(feature = "deadpool")]
            Self::Deadpool { pool, .. } => pool.is_closed(),
        }
    }

    /// Closes the pool and waits for its connections.
    pub(super) async fn close(self) {
        match self {
            Self::Sqlx { pool, held_back, mut taking, .. } => {
                taking.shutdown().await;
                for place in held_back {
                    let _ = place.close().await;
                }
                pool.close().await;
            }
            #[cfg(feature = "deadpool")]
            Self::Deadpool { pool, .. } => {
                pool.close();
                while pool.status().size > 0 {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }
}

/// Takes a place and has the server end the connection on it.
async fn take(pool: PgPool) -> PoolConnection<Postgres> {
    loop {
        let Ok(mut place) = pool.acquire().await else {
            // Time ran out in a busy pool, or the server is away.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        // It answers with an error, being gone. The socket closes after the server has freed its slot.
        let _ = sqlx::raw_sql("select pg_terminate_backend(pg_backend_pid())").execute(&mut *place).await;
        if place.ping().await.is_err() {
            return place;
        }
    }
}

fn len(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
