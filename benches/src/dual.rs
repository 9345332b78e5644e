use std::hint::black_box;
use std::sync::Mutex;

use anyhow::Result;
use cutover::migration::control::{Error, PinnedTx};
use cutover::migration::data::DualWrite;
use futures_util::FutureExt;
use sqlx::PgPool;

use super::timing::{Work, compare, repeat};
use super::world;

#[cutover::dual_write]
trait Statuses {
    #[write(key = id)]
    async fn set(&self, tx: &mut PinnedTx, id: i64, status: u64) -> Result<u64, Error>;

    #[read(key = id)]
    async fn get(&self, id: i64) -> Result<u64, Error>;
}

/// A repository that answers at once.
struct Ready(u64);

impl Statuses for Ready {
    async fn set(&self, _: &mut PinnedTx, id: i64, status: u64) -> Result<u64, Error> {
        Ok(self.0 ^ status ^ id.unsigned_abs())
    }

    async fn get(&self, id: i64) -> Result<u64, Error> {
        Ok(self.0 ^ id.unsigned_abs())
    }
}

pub(crate) async fn run(quick: bool) -> Result<()> {
    let (_postgres, url, instance) = world::alone().await?;
    let pool = PgPool::connect(&url).await?;
    // One each, so that two threads share nothing that a service's requests would not share either.
    let transactions = [
        Mutex::new(instance.migration.begin(&pool).await?),
        Mutex::new(instance.migration.begin(&pool).await?),
    ];
    let bare = Ready(1);
    let both = DualWrite::new(instance.migration.clone(), Ready(1), Ready(2));
    let works = [
        repeat("read, the repository itself", || black_box(&bare).get(black_box(7)).now_or_never()),
        repeat("read, through DualWrite in `off`", || black_box(&both).get(black_box(7)).now_or_never()),
        writes("write, the repository itself", &transactions, &bare),
        writes("write, through DualWrite in `off`", &transactions, &both),
    ];
    tokio::task::block_in_place(|| compare("What DualWrite costs in `off`", &works, quick)).publish("dual")
}

fn writes<'a>(
    name: &'static str,
    transactions: &'a [Mutex<PinnedTx>; 2],
    statuses: &'a (impl Statuses + Sync),
) -> Work<'a> {
    let work = move |times| {
        let mut free = transactions.iter().filter_map(|transaction| transaction.try_lock().ok());
        let Some(mut tx) = free.next() else { return };
        for _ in 0..times {
            black_box(black_box(statuses).set(black_box(&mut tx), 7, 8).now_or_never());
        }
    };
    (name, Box::new(work))
}
