//! Walks the migration along its phases, as a person would: ask, and wait until everybody is there.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    board::Board,
    failure::{Failure, Result},
    flags::Switchboard,
    ledger::{Ledger, Standing},
    report::PhaseReport,
};

const POLL: Duration = Duration::from_millis(50);

/// Asks for phases and writes down how long each took.
pub(crate) struct Walk {
    pub(crate) ledger: Ledger,
    pub(crate) board: Arc<Board>,
    /// Nothing may take longer than this: something is stuck then.
    pub(crate) patience: Duration,
    /// How long a person looks at a phase before asking for the next one. It is also what gives the load
    /// time to meet each phase.
    pub(crate) look: Duration,
    pub(crate) reached: Vec<PhaseReport>,
}

impl Walk {
    /// Asks for a phase (`ramp:25` with its share) and waits until everybody works in it.
    pub(crate) async fn go(&mut self, switchboard: &Switchboard, wanted: &str) -> Result<()> {
        self.board.doing(format!("phase {wanted}"));
        let began = Instant::now();
        switchboard.set_phase(wanted).await?;
        self.arrive(wanted, began).await?;
        tokio::time::sleep(self.look).await;
        Ok(())
    }

    /// The flag goes off while the new column is read; returns the seconds until the old one is read
    /// again by everybody.
    pub(crate) async fn fall_back(&mut self, switchboard: &Switchboard) -> Result<f64> {
        self.board.doing("emergency: the flag is switched off, back to reading the old column");
        let began = Instant::now();
        switchboard.switch_off().await?;
        self.arrive("verify", began).await?;
        Ok(began.elapsed().as_secs_f64())
    }

    pub(crate) async fn arrive(&mut self, wanted: &str, began: Instant) -> Result<()> {
        let (phase, percent) = match wanted.split_once(':') {
            Some((phase, percent)) => (phase, percent.parse().ok()),
            None => (wanted, None),
        };
        let mut last = None;
        while began.elapsed() < self.patience {
            let standing = self.ledger.standing().await?;
            let is_there = |now: &Standing| {
                let share = percent.is_none_or(|percent: i16| now.ramp_percent == percent);
                now.phase == phase && now.is_settled && share
            };
            if let Some(standing) = standing.as_ref().filter(|now| is_there(now)) {
                let (epoch, seconds) = (standing.epoch, began.elapsed().as_secs_f64());
                self.board.note(format!("{wanted} after {seconds:.1} s, epoch {epoch}"));
                self.reached.push(PhaseReport { name: wanted.to_owned(), epoch, seconds });
                return Ok(());
            }
            last = standing;
            tokio::time::sleep(POLL).await;
        }
        let last = last.unwrap_or_default();
        Err(Failure::new(format!(
            "phase {wanted} was not reached within {:.0} s: the ledger is at {} (epoch {}), the driver waits for {}",
            self.patience.as_secs_f64(),
            last.phase,
            last.epoch,
            last.waits_for.as_deref().unwrap_or("nothing")
        )))
    }
}

/// Shows what the ledger says. Never ends.
pub(crate) async fn watch(ledger: Ledger, board: Arc<Board>) {
    loop {
        // A ledger that can't be read right now is shown as it was.
        if let Ok(standing) = ledger.standing().await {
            board.update(|view| view.standing = standing);
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}
