/// A rule of the protocol that can be left out, to see that the check finds the damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// The driver moves only when the epoch before the current one is drained.
    AtMostTwoEpochs,
    /// A move goes to a neighbour.
    OneStep,
    /// A close needs every member's acknowledgement.
    CloseNeedsAcknowledgements,
    /// An instance acknowledges when its own operations at older epochs have ended.
    AcknowledgeAfterOwnOperations,
    /// Only an instance whose lease has run out is dropped.
    DropNeedsLapse,
    /// The lease is checked when a read ends.
    LeaseAtReadEnd,
    /// A lease counts only for operations that began under it, not for those of an earlier membership.
    LeaseOfOwnMembership,
    /// A pin from before the gate was shut doesn't count after.
    Generation,
    /// A write transaction begins with the fence.
    Fence,
    /// The fence compares the phase, not just the epoch's number.
    FenceComparesPhase,
    /// Drained means: the exclusive lock was granted, so no transaction of the epoch is open.
    DrainWaitsForTransactions,
    /// A side that goes unwritten loses its flag.
    CompletenessCleared,
    /// A side is read only when its flag is set.
    CompletenessRequired,
    /// The backfill copies whatever differs, not just what is missing.
    BackfillCompares,
    /// What a backfill did at an earlier epoch counts for nothing.
    BackfillOfOneEpoch,
    /// The end of a backfill is fenced, and compared and set on the epoch.
    BackfillEndFenced,
    /// Work on the data begins when only its phase is in use.
    WorkWaitsForDrain,
    /// `expand` needs the new side to be there.
    ExpandNeedsSchema,
    /// Admission excludes moves while it looks and declares itself.
    AdmissionLocked,
    /// A build that can't run a phase in use is not admitted.
    AdmissionNeedsRange,
    /// A move needs the phase to be in every member's range.
    MoveNeedsRanges,
    /// A driver decides again in the transaction in which it acts.
    DriverDecidesAgain,
    /// An instance takes on only the successor of the epoch that it is at.
    TakesOnSuccessorOnly,
    /// An acknowledgement counts only for an epoch that the ledger knows with the same phase.
    AcknowledgesKnownEpoch,
    /// `ramp` is entered when no row is noted for repair.
    RampNeedsRepairs,
    /// A move into `ramp` keeps the epoch that it leaves from noting rows any more.
    RampSealsTheEpoch,
    /// After the way back out of `ramp` no row is noted before that epoch is closed.
    NothingBehindWhileRampIsOpen,
}

impl Rule {
    /// Every rule.
    pub const ALL: [Rule; 27] = [
        Rule::AtMostTwoEpochs,
        Rule::OneStep,
        Rule::CloseNeedsAcknowledgements,
        Rule::AcknowledgeAfterOwnOperations,
        Rule::DropNeedsLapse,
        Rule::LeaseAtReadEnd,
        Rule::LeaseOfOwnMembership,
        Rule::Generation,
        Rule::Fence,
        Rule::FenceComparesPhase,
        Rule::DrainWaitsForTransactions,
        Rule::CompletenessCleared,
        Rule::CompletenessRequired,
        Rule::BackfillCompares,
        Rule::BackfillOfOneEpoch,
        Rule::BackfillEndFenced,
        Rule::WorkWaitsForDrain,
        Rule::ExpandNeedsSchema,
        Rule::AdmissionLocked,
        Rule::AdmissionNeedsRange,
        Rule::MoveNeedsRanges,
        Rule::DriverDecidesAgain,
        Rule::TakesOnSuccessorOnly,
        Rule::AcknowledgesKnownEpoch,
        Rule::RampNeedsRepairs,
        Rule::RampSealsTheEpoch,
        Rule::NothingBehindWhileRampIsOpen,
    ];
}
