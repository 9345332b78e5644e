use crate::flags::{Flags, Switch};
use crate::migration::{DesiredPhase, Target};

/// The desired phase as the payload of a flag's variant.
///
/// | the flag | the migration |
/// |---|---|
/// | on, the payload names a phase | goes there |
/// | on, anything else | stays, and says so |
/// | off, or there is none | goes back to reading old, no further than `verify` |
/// | not known, or not freshly | stays |
#[derive(Debug)]
pub(super) struct FromFlag {
    flags: Flags,
    flag: String,
    actor: String,
}

impl FromFlag {
    pub(super) fn new(flags: Flags, flag: &str) -> Self {
        Self { flags, flag: flag.to_owned(), actor: format!("flag {flag}") }
    }
}

impl DesiredPhase for FromFlag {
    fn target(&self) -> Option<Target> {
        Some(match self.flags.switch(&self.flag) {
            Switch::On(Some(payload)) => Target::from_text(&payload),
            Switch::On(None) => Target::Hold(format!(
                "flag {:?} is on but has no variant whose payload names a phase",
                self.flag
            )),
            Switch::Off => Target::SwitchedOff,
            Switch::Unknown => Target::Hold("the flag server has not been reached lately".into()),
        })
    }

    fn actor(&self) -> &str {
        &self.actor
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flags::FixedFlag;
    use crate::migration::Phase;

    #[test]
    fn a_payload_is_a_wish_and_nonsense_is_not() {
        let flags = Flags::fixed([("status", FixedFlag::payload("switch"))]);
        let wish = FromFlag::new(flags.clone(), "status");
        assert_eq!(wish.target(), Some(Target::Desired(Phase::Switch.into())));
        flags.set("status", FixedFlag::payload("sideways")).unwrap();
        assert!(matches!(wish.target(), Some(Target::Hold(_))));
        flags.set("status", FixedFlag::ON).unwrap();
        assert!(matches!(wish.target(), Some(Target::Hold(_))));
        flags.set("status", FixedFlag::OFF).unwrap();
        assert_eq!(wish.target(), Some(Target::SwitchedOff));
    }
}
