use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::{Connection, PgPool, Postgres};
use tokio::task::JoinSet;

/// A pool whose number of connections can be changed while it is in use.
pub(super) enum Bound {
    /// `sqlx` can't resize a pool. A place that it must not use is occupied by a connection that the server has already
    /// ended: it keeps the place and costs the server nothing.
    Sqlx {
        pool: PgPool,
        max: u32,
        occupied: Vec<PoolConnection<Postgres>>,
        occupying: JoinSet<PoolConnection<Postgres>>,
    },
    #[cfg(feature = "deadpool")]
    Deadpool { pool: deadpool_postgres::Pool, max_lifetime: Duration },
}

impl Bound {
    /// Occupies all places beyond `granted`, one after the other, so that it opens one connection at a time.
    pub(super) async fn sqlx(pool: PgPool, max: u32, granted: u32) -> Self {
        let mut occupied = Vec::new();
        for _ in granted..max {
            occupied.push(occupy(pool.clone()).await);
        }
        Self::Sqlx { pool, max, occupied, occupying: JoinSet::new() }
    }

    /// How many connections the pool can have at the moment.
    pub(super) fn holding(&self) -> u32 {
        match self {
            Self::Sqlx { max, occupied, .. } => max.saturating_sub(len(occupied.len())),
            #[cfg(feature = "deadpool")]
            Self::Deadpool { pool, .. } => {
                let status = pool.status();
                len(status.max_size.max(status.size))
            }
        }
    }

    /// How many connections are in use or waited for, as far as the pool knows.
    pub(super) fn in_use(&self) -> u32 {
        match self {
            Self::Sqlx { pool, occupied, .. } => {
                pool.size().saturating_sub(len(pool.num_idle() + occupied.len()))
            }
            #[cfg(feature = "deadpool")]
            Self::Deadpool { pool, .. } => {
                let status = pool.status();
                len(status.size.saturating_sub(status.available) + status.waiting)
            }
        }
    }

    /// Grows at once, and shrinks as connections come free.
    pub(super) async fn resize(&mut self, to: u32) {
        match self {
            Self::Sqlx { pool, max, occupied, occupying } => {
                let back = usize::try_from(max.saturating_sub(to)).unwrap_or(usize::MAX);
                if occupied.len() + occupying.len() > back {
                    // A connection that is dropped half way returns to the pool, which finds it closed.
                    occupying.shutdown().await;
                    for place in occupied.drain(back.min(occupied.len())..) {
                        let _ = place.close().await;
                    }
                }
                while occupied.len() + occupying.len() < back {
                    occupying.spawn(occupy(pool.clone()));
                }
            }
            #[cfg(feature = "deadpool")]
            Self::Deadpool { pool, max_lifetime } => {
                pool.resize(usize::try_from(to).unwrap_or(usize::MAX));
                pool.retain(|_, metrics| metrics.age() < *max_lifetime);
            }
        }
    }

    /// Waits until one more place is occupied; forever if none is about to be.
    pub(super) async fn gave_back(&mut self) {
        match self {
            Self::Sqlx { occupied, occupying, .. } => {
                while let Some(taken) = occupying.join_next().await {
                    if let Ok(place) = taken {
                        occupied.push(place);
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
            Self::Sqlx { pool, occupied, mut occupying, .. } => {
                occupying.shutdown().await;
                for place in occupied {
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

/// Checks a connection out of the pool and makes the server end it.
async fn occupy(pool: PgPool) -> PoolConnection<Postgres> {
    loop {
        let Ok(mut place) = pool.acquire().await else {
            // The pool is busy, or the server is unavailable.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        // The answer is an error, because the session has ended. The socket closes after the server has freed the slot.
        let _ = sqlx::raw_sql("select pg_terminate_backend(pg_backend_pid())").execute(&mut *place).await;
        if place.ping().await.is_err() {
            return place;
        }
    }
}

fn len(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
