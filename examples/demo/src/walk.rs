//! Moves the migration through its phases, as a person would: set a phase, and wait until it is reached.

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

/// Sets phases and records how long each took.
pub(crate) struct Walk {
    pub(crate) ledger: Ledger,
    pub(crate) board: Arc<Board>,
    /// The time limit of a move.
    pub(crate) patience: Duration,
    /// Pause after a phase is reached, so that the load runs in each phase for a while.
    pub(crate) look: Duration,
    pub(crate) reached: Vec<PhaseReport>,
}

impl Walk {
    /// Sets a desired phase (`ramp:25` includes the percentage) and waits until all instances work in it.
    pub(crate) async fn go(&mut self, switchboard: &Switchboard, wanted: &str) -> Result<()> {
        self.board.doing(format!("phase {wanted}"));
        let began = Instant::now();
        switchboard.set_phase(wanted).await?;
        self.arrive(wanted, began).await?;
        tokio::time::sleep(self.look).await;
        Ok(())
    }

    /// Switches the flag off while the new column is read. Returns the seconds until all instances read the old one.
    pub(crate) async fn fall_back(&mut self, switchboard: &Switchboard) -> Result<f64> {
        self.board.doing("rollback: the flag is switched off, reads go back to the old column");
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
            "phase {wanted} was not reached within {:.0} s: the ledger is in {} (epoch {}) and waits for: {}",
            self.patience.as_secs_f64(),
            last.phase,
            last.epoch,
            last.waits_for.as_deref().unwrap_or("nothing")
        )))
    }
}

/// Keeps the state of the latest migration on the board up to date. Never returns.
pub(crate) async fn watch(ledger: Ledger, board: Arc<Board>) {
    loop {
        // If the ledger cannot be read, the board keeps its last state.
        let standing = match ledger.second().standing().await {
            Ok(None) => ledger.standing().await,
            second => second,
        };
        if let Ok(standing) = standing {
            board.update(|view| view.standing = standing);
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}
