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
    /// A pin from before the gate closed is not valid after it.
    Generation,
    /// A write transaction begins with the fence.
    Fence,
    /// The fence compares the phase, not just the epoch's number.
    FenceComparesPhase,
    /// An epoch is drained when the exclusive lock is granted: no transaction of it is open.
    DrainWaitsForTransactions,
    /// A side that is no longer written is no longer complete.
    CompletenessCleared,
    /// A side is read only when it is complete.
    CompletenessRequired,
    /// The backfill copies every row that differs, not only missing ones.
    BackfillCompares,
    /// A backfill of an earlier epoch does not count.
    BackfillOfOneEpoch,
    /// The end of a backfill is fenced, and is a compare-and-set on the epoch.
    BackfillEndFenced,
    /// Work on the data begins when its phase is the only one in use.
    WorkWaitsForDrain,
    /// `expand` needs the new side.
    ExpandNeedsSchema,
    /// No move happens between an admission's check and its declaration.
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
    /// Nothing is done for a migration that has ended.
    EndedStaysEnded,
    /// A migration is finished when its last epoch is in use alone and the old side is gone.
    FinishNeedsDrop,
    /// A migration is abandoned in `off`, when no other phase is in use.
    AbandonNeedsOff,
    /// An instance is not admitted while the phase uses a side that does not exist.
    AdmissionNeedsSchema,
    /// An ended migration is archived when no live instance declares it.
    ForgetNeedsNoDeclaration,
}

impl Rule {
    /// Every rule.
    pub const ALL: [Rule; 32] = [
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
        Rule::EndedStaysEnded,
        Rule::FinishNeedsDrop,
        Rule::AbandonNeedsOff,
        Rule::AdmissionNeedsSchema,
        Rule::ForgetNeedsNoDeclaration,
    ];
}
