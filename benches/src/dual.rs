use std::hint::black_box;
use std::sync::{Arc, Mutex};

use anyhow::{Context as _, Result, anyhow};
use cutover::migration::DualWrite;
use cutover::migration::{Error, PinnedTx};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use launchdarkly_server_sdk::{
    Client, ConfigBuilder, Context, ContextBuilder, Flag, Migrator, MigratorBuilder,
    NullEventProcessorBuilder, Stage, TestData,
};
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

/// A repository that answers immediately.
struct Ready(u64);

impl Statuses for Ready {
    async fn set(&self, _: &mut PinnedTx, id: i64, status: u64) -> Result<u64, Error> {
        Ok(self.0 ^ status ^ id.unsigned_abs())
    }

    async fn get(&self, id: i64) -> Result<u64, Error> {
        Ok(self.0 ^ id.unsigned_abs())
    }
}

/// Our phase, LaunchDarkly's stage that is closest to it, the table's title and its file.
const PHASES: [(&str, &str, &str, &str); 5] = [
    ("off", "off", "Cost of DualWrite in `off` (Migrator: `off`)", "dual-off"),
    ("expand", "dualwrite", "Cost of DualWrite in `expand` (Migrator: `dualwrite`)", "dual-expand"),
    ("ramp:50", "live", "Cost of DualWrite in `ramp:50` (Migrator: `live`)", "dual-ramp"),
    ("switch", "rampdown", "Cost of DualWrite in `switch` (Migrator: `rampdown`)", "dual-switch"),
    ("retire", "complete", "Cost of DualWrite in `retire` (Migrator: `complete`)", "dual-retire"),
];

pub(crate) async fn run(quick: bool) -> Result<()> {
    let (_postgres, url, instance) = world::alone().await?;
    let pool = PgPool::connect(&url).await?;
    let bare = Ready(1);
    let both = DualWrite::new(instance.migration.clone(), Ready(1), Ready(2));
    let peer = Peer::start().await?;
    for (phase, stage, question, file) in PHASES {
        instance.go(&pool, phase).await?;
        // One for each thread, so that threads share only what a service's requests share.
        let transactions = [
            Mutex::new(instance.migration.begin(&pool).await?),
            Mutex::new(instance.migration.begin(&pool).await?),
        ];
        let works = [
            repeat("read, the repository itself", || black_box(&bare).get(black_box(7)).now_or_never()),
            repeat("read, DualWrite", || black_box(&both).get(black_box(7)).now_or_never()),
            peer.works("read, Migrator", stage, true),
            writes("write, the repository itself", &transactions, &bare),
            writes("write, DualWrite", &transactions, &both),
            peer.works("write, Migrator", stage, false),
        ];
        tokio::task::block_in_place(|| compare(question, &works, quick)).publish(file)?;
    }
    Ok(())
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

/// One side's function in the form that the migrator takes.
type Theirs = fn(&i64) -> BoxFuture<'_, Result<u64, String>>;
type Pair = Migrator<i64, u64, Theirs, Theirs, Theirs, Theirs>;

/// LaunchDarkly's client with a flag per stage, from memory. It sends nothing.
struct Peer {
    client: Arc<Client>,
    context: Context,
}

impl Peer {
    async fn start() -> Result<Self> {
        let data = TestData::new();
        for (index, stage) in
            ["off", "dualwrite", "shadow", "live", "rampdown", "complete"].into_iter().enumerate()
        {
            let flag = serde_json::json!({
                "key": stage, "version": 1, "on": true, "targets": [], "rules": [], "prerequisites": [],
                "fallthrough": { "variation": index }, "offVariation": 0,
                "variations": ["off", "dualwrite", "shadow", "live", "rampdown", "complete"], "salt": "s",
            });
            data.use_preconfigured_flag(serde_json::from_value::<Flag>(flag)?);
        }
        let config = ConfigBuilder::new("none")
            .data_source(&data)
            .event_processor(&NullEventProcessorBuilder::new())
            .build()
            .map_err(|error| anyhow!("{error:?}"))?;
        let client = Client::build(config).map_err(|error| anyhow!("{error:?}"))?;
        client.start_with_default_executor();
        client
            .wait_for_initialization(world::LIMIT)
            .await
            .context("LaunchDarkly's client did not initialise")?;
        let context = ContextBuilder::new("user").build().map_err(|error| anyhow!(error))?;
        Ok(Self { client: Arc::new(client), context })
    }

    fn migrator(&self) -> Result<Pair> {
        let (old, new): (Theirs, Theirs) = (
            |id| std::future::ready(Ok(1 ^ id.unsigned_abs())).boxed(),
            |id| std::future::ready(Ok(2 ^ id.unsigned_abs())).boxed(),
        );
        let builder = MigratorBuilder::new(self.client.clone()).read(old, new, None).write(old, new);
        builder.build().map_err(|error| anyhow!(error))
    }

    fn works(&self, name: &'static str, stage: &'static str, reads: bool) -> Work<'_> {
        let work = move |times| {
            // Built here, once for many calls, because it is not `Send`.
            let Ok(mut migrator) = self.migrator() else { return };
            for _ in 0..times {
                let (context, key) = (black_box(&self.context), black_box(stage).to_owned());
                if reads {
                    let _ = black_box(migrator.read(context, key, Stage::Off, 7).now_or_never());
                } else {
                    let _ = black_box(migrator.write(context, key, Stage::Off, 7).now_or_never());
                }
            }
        };
        (name, Box::new(work))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_read_through_both_sides_allocates_nothing() -> Result<()> {
        let (_postgres, _, instance) = world::alone().await?;
        let both = DualWrite::new(instance.migration.clone(), Ready(1), Ready(2));
        let read = || assert!(matches!(both.get(7).now_or_never(), Some(Ok(6))));
        read();
        assert_eq!(allocation_counter::measure(read).count_total, 0);
        Ok(())
    }
}
