use std::fmt;

use super::direction::Direction;
use crate::migration::Phase;

/// Something that failed on the way through the phases.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Failure {
    /// The phase, and the direction in which it was entered. `None`: before the first phase.
    pub at: Option<(Phase, Direction)>,
    /// What failed.
    pub text: String,
}

/// Everything that failed on the way through the phases.
///
/// `Debug` prints the same text as `Display`, because the test harness shows an error that a test returns by its `Debug`.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TestFailures {
    /// The migration.
    pub migration: String,
    /// The failures, in the order in which they occurred.
    pub failures: Vec<Failure>,
}

impl std::error::Error for TestFailures {}

impl fmt::Debug for TestFailures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for TestFailures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "migration `{}` does not work in every phase:", self.migration)?;
        let mut rest = self.failures.as_slice();
        while let [first, ..] = rest {
            // One mistake often shows in several phases in a row.
            let same = rest.iter().take_while(|failure| failure.text == first.text).count();
            let (group, others) = rest.split_at(same);
            let places: Vec<String> = group.iter().map(place).collect();
            write!(f, "\n  {}: {}", places.join(", "), first.text)?;
            rest = others;
        }
        Ok(())
    }
}

fn place(failure: &Failure) -> String {
    match failure.at {
        Some((phase, Direction::Forward)) => format!("`{phase}`"),
        Some((phase, Direction::Back)) => format!("`{phase}` (on the way back)"),
        None => "at the start".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_failures_in_a_row_are_one_line() {
        let failure =
            |phase, direction, text: &str| Failure { at: Some((phase, direction)), text: text.to_owned() };
        let failures = TestFailures {
            migration: "status".to_owned(),
            failures: vec![
                failure(Phase::Off, Direction::Forward, "no column"),
                failure(Phase::Expand, Direction::Back, "no column"),
                failure(Phase::Off, Direction::Back, "a panic"),
            ],
        };
        let expected = "migration `status` does not work in every phase:\
            \n  `off`, `expand` (on the way back): no column\n  `off` (on the way back): a panic";
        assert_eq!(failures.to_string(), expected);
        assert_eq!(format!("{failures:?}"), expected);
    }
}
