//! What the generator makes of a seed.

use std::fmt;

use fastrand::Rng;

use crate::changes::ChangeShape;
use crate::keys::KeyShape;
use crate::shape::Shape;

/// A kind of migration. Everything follows from the seed.
#[derive(Debug)]
pub(crate) enum Chosen {
    /// Columns or a table become other columns or another table.
    Sides(Box<Shape>),
    /// A key becomes `bigint`.
    Key(KeyShape),
    /// Constraints come, or something is dropped.
    Change(ChangeShape),
}

impl Chosen {
    pub(crate) fn of_seed(seed: u64, rng: &mut Rng) -> Self {
        // Consecutive seeds go through lists, from which no kind may take every second entry.
        match rng.u8(..8) {
            0 => Self::Key(KeyShape::random(rng)),
            1 => Self::Change(ChangeShape::random(rng)),
            _ => Self::Sides(Box::new(Shape::random(seed, rng))),
        }
    }
}

impl fmt::Display for Chosen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sides(shape) => write!(f, "{shape:?}"),
            Self::Key(shape) => write!(f, "{shape:?}"),
            Self::Change(shape) => write!(f, "{shape:?}"),
        }
    }
}
