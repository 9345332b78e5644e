/// The direction in which a phase is entered.
///
/// There is no other one, so the enum is exhaustive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Towards `contract`.
    Forward,
    /// Towards `off`.
    Back,
}
