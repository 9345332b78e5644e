use crate::flags::{Flags, Switch};
use crate::migration::{DesiredPhase, Target};

/// The desired phase of a migration: the payload of a flag's variant.
///
/// | the flag | the migration |
/// |---|---|
/// | is on and its payload names a phase | moves towards it |
/// | is on with another payload | stays where it is and says why |
/// | is off or does not exist | moves back until it reads old, not further than `verify` |
/// | is unknown, or the flag server was not reached lately | stays where it is |
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
            Switch::Off => Target::Back,
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
    fn only_a_payload_that_names_a_phase_moves_the_migration() {
        let flags = Flags::fixed([("status", FixedFlag::payload("switch"))]);
        let desired = FromFlag::new(flags.clone(), "status");
        assert_eq!(desired.target(), Some(Target::Go(Phase::Switch.into())));
        flags.set("status", FixedFlag::payload("sideways")).unwrap();
        assert!(matches!(desired.target(), Some(Target::Hold(_))));
        flags.set("status", FixedFlag::ON).unwrap();
        assert!(matches!(desired.target(), Some(Target::Hold(_))));
        flags.set("status", FixedFlag::OFF).unwrap();
        assert_eq!(desired.target(), Some(Target::Back));
    }
}
