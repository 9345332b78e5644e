use std::collections::HashMap;

use super::entry::Entry;
use crate::migration::phase::Phase;

/// What an instance remembers of the ledger, so that it notices if the ledger alone goes back to an earlier state.
///
/// After a failover or a restore the data go back as well, and the instance follows. But if the server has run all the time, only
/// rows of the ledger were changed, and the phase that they tell may read a side that is behind.
#[derive(Debug, Default)]
pub(super) struct Memory {
    server_run: String,
    /// The last epoch and phase of each migration, by name.
    worked_in: HashMap<String, (i32, Phase)>,
}

impl Memory {
    pub(super) fn keep(&mut self, entry: &Entry) {
        // In `off` the old side is right, and from `contract` on there is no other.
        let is_kept = entry.ended.is_none() && (Phase::Expand..=Phase::Retire).contains(&entry.phase);
        if is_kept {
            self.worked_in.insert(entry.name.clone(), (entry.epoch, entry.phase));
        } else {
            self.worked_in.remove(&entry.name);
        }
    }

    /// Forgets what it knows of another run of the server.
    pub(super) fn follow(&mut self, server_run: String) {
        if self.server_run != server_run {
            self.worked_in.clear();
            self.server_run = server_run;
        }
    }

    /// Why the ledger may be older than the data.
    pub(super) fn refusal(&self, migration: &str, entry: Option<&Entry>) -> Option<String> {
        let (epoch, phase) = self.worked_in.get(migration)?;
        let now = match entry {
            Some(now) if now.epoch > *epoch || (now.epoch == *epoch && now.phase == *phase) => return None,
            Some(now) => format!("is in `{}` (epoch {})", now.phase, now.epoch),
            None => "is missing".to_owned(),
        };
        Some(format!(
            "migration {migration:?} {now} in the ledger, and this instance has worked in `{phase}` (epoch {epoch}); the server \
             has not restarted, so rows of schema cutover alone were changed, and what was written since may be on one side \
             only; to fix: restore schema cutover as it was last, or, if its rows are right, restart the service"
        ))
    }
}
