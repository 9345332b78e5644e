use std::sync::atomic::{AtomicU64, Ordering};

/// Why the HTTP server refused something before the application saw a request.
#[derive(Debug, Clone, Copy)]
pub(super) enum Refusal {
    Handshake,
    HeadTimeout,
    HeadTooLarge,
    Malformed,
}

impl Refusal {
    const ALL: [(Self, &str); 4] = [
        (Self::Handshake, "handshake"),
        (Self::HeadTimeout, "head_timeout"),
        (Self::HeadTooLarge, "head_too_large"),
        (Self::Malformed, "malformed"),
    ];
}

/// Counts of what the HTTP server refused.
#[derive(Debug, Default)]
pub(super) struct Refusals([AtomicU64; Refusal::ALL.len()]);

impl Refusals {
    pub(super) fn add(&self, refusal: Refusal) {
        self.0[refusal as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// The counts, by reason.
    pub(super) fn counts(&self) -> [(&'static str, u64); Refusal::ALL.len()] {
        Refusal::ALL.map(|(refusal, reason)| (reason, self.0[refusal as usize].load(Ordering::Relaxed)))
    }

    /// Counts how a connection ended. hyper answers a request that it can't read by itself, and ends the connection.
    pub(super) fn ended(&self, ended: &Result<(), Box<dyn std::error::Error + Send + Sync>>) {
        let Err(error) = ended else { return };
        match error.downcast_ref::<hyper::Error>() {
            Some(error) if error.is_parse_too_large() => self.add(Refusal::HeadTooLarge),
            Some(error) if error.is_parse() => self.add(Refusal::Malformed),
            _ => {}
        }
    }
}
