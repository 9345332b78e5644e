//! What happens in the database: the driver's turns, the fence, and the work on schema and data.

use std::time::Duration;

use cutover::migration::phase::{
    Completeness, Conditions, Member as Voter, Observed, Phase, PhaseRange, PreviousEpoch, SchemaState, Side,
    Task, needed_work, next_step,
};

use crate::{Action, Build, Database, Decision, Job, Pin, Protocol, Rule, State, Value, Violation};

impl Build {
    /// The phases it declares.
    pub fn range(self) -> PhaseRange {
        match self {
            Build::Unaware => PhaseRange::UNAWARE,
            Build::Both => PhaseRange::FULL,
            Build::NewOnly => PhaseRange::from_phase(Phase::Retire),
        }
    }
}

impl Database {
    /// A fleet that has come to rest in `phase`.
    pub(crate) fn settled(phase: Phase, instances: usize) -> Self {
        let complete = Completeness { old: phase < Phase::Retire, new: phase > Phase::Backfill };
        let epoch = if phase == Phase::Off { 1 } else { 2 };
        Database {
            at: Pin { epoch, phase },
            previous: PreviousEpoch::Drained,
            before: phase,
            complete,
            members: vec![Some(crate::Member { acknowledged: epoch }); instances],
            job: None,
            behind: false,
            ended: false,
            again: false,
            foreign: false,
            old: if complete.old { Value::Fresh } else { Value::Stale },
            new: match phase {
                Phase::Off => Value::Missing,
                _ if complete.new => Value::Fresh,
                _ => Value::Null,
            },
        }
    }

    /// A database that was created with the new side only, and in which no instance has started yet.
    pub(crate) fn fresh(instances: usize) -> Self {
        let settled = Self::settled(Phase::Off, instances);
        Database { members: vec![None; instances], old: Value::Missing, new: Value::Fresh, ..settled }
    }

    /// Whether the migration is new in a database that has the new side only.
    pub(crate) fn awaits_baseline(&self) -> bool {
        let is_first = self.at == Pin { epoch: 1, phase: Phase::Off };
        is_first && self.old == Value::Missing && self.new != Value::Missing
    }

    /// Whether a build without code for the migration does no harm now, also one that does not declare it.
    pub(crate) fn needs_no_code(&self) -> bool {
        self.previous == PreviousEpoch::Drained
            && self.at.phase == Phase::Contract
            && self.old == Value::Missing
    }

    /// Whether the sides that the phase uses exist.
    pub(crate) fn has_sides(&self) -> bool {
        let lacks = |phase: Phase| {
            phase.writes(Side::Old) && self.old == Value::Missing
                || phase.writes(Side::New) && self.new == Value::Missing
        };
        !self.in_use().any(lacks)
    }

    pub(crate) fn side(&mut self, side: Side) -> &mut Value {
        match side {
            Side::Old => &mut self.old,
            Side::New => &mut self.new,
        }
    }

    /// The phases of the epochs that are not drained.
    pub(crate) fn in_use(&self) -> impl Iterator<Item = Phase> + use<> {
        let before = (self.previous != PreviousEpoch::Drained).then_some(self.before);
        [Some(self.at.phase), before].into_iter().flatten()
    }

    /// Whether the ledger has a row for this epoch with this phase; only the last two matter here.
    pub(crate) fn knows(&self, pin: Pin) -> bool {
        pin == self.at || (pin.epoch + 1 == self.at.epoch && pin.phase == self.before)
    }

    /// Commits a write of the row by the phase's rules.
    pub(crate) fn write(&mut self, phase: Phase) -> Result<(), Violation> {
        for side in [Side::Old, Side::New] {
            let value = self.side(side);
            match (phase.writes(side), *value) {
                (true, Value::Missing) => return Err(Violation::MissingColumn),
                (true, _) => *value = Value::Fresh,
                (false, Value::Fresh) => *value = Value::Stale,
                (false, _) => {}
            }
        }
        Ok(())
    }

    fn open_epoch(&mut self, to: Phase, clears: bool) {
        self.before = self.at.phase;
        self.at = Pin { epoch: self.at.epoch + 1, phase: to };
        self.previous = PreviousEpoch::Open;
        if clears {
            self.complete = self.complete.on_entering(to);
        }
        self.behind &= to != Phase::Off;
    }
}

impl Protocol {
    /// What a driver sees, as `MigrationState::load` reads it.
    fn view(&self, state: &State) -> Observed {
        let db = &state.db;
        let members = db.members.iter().zip(&state.instances).filter_map(|(member, instance)| {
            let member = (*member)?;
            let acknowledged = match self.has(Rule::CloseNeedsAcknowledgements) {
                true if instance.build != Build::Unaware => i32::from(member.acknowledged),
                _ => i32::MAX,
            };
            let range = match self.has(Rule::MoveNeedsRanges) {
                true => instance.build.range(),
                false => PhaseRange::FULL,
            };
            Some(Voter { name: String::new(), range, acknowledged, older_open: None })
        });
        Observed {
            epoch: i32::from(db.at.epoch),
            phase: db.at.phase,
            previous: db.previous,
            members: members.collect(),
            complete: match self.has(Rule::CompletenessRequired) {
                true => db.complete,
                false => Completeness { old: true, new: true },
            },
            // Scan, approval and soak only delay; nothing may depend on them.
            conditions: Conditions {
                // Without the old side, `expand` is refused and nothing is recorded.
                expanded: (db.new != Value::Missing && !db.awaits_baseline())
                    || !self.has(Rule::ExpandNeedsSchema),
                scanned: true,
                reversible: true,
                enforced: true,
                relaxed: true,
                approved: true,
                quiet_period_left: Duration::ZERO,
                soak_left: Duration::ZERO,
                unrepaired: i64::from(db.behind && self.has(Rule::RampNeedsRepairs)),
                unrepaired_old: 0,
                given_up: 0,
            },
            table_problems: Vec::new(),
            lagging_standbys: Vec::new(),
        }
    }

    /// What a driver may do now. The desired phase may change at any time, so either direction may be wanted.
    pub(crate) fn decisions(&self, state: &State) -> Vec<Decision> {
        if state.db.ended && self.has(Rule::EndedStaysEnded) {
            return Vec::new();
        }
        let mut view = self.view(state);
        let mut found = Vec::with_capacity(2);
        for target in [Phase::Contract, Phase::Off] {
            let mut decision = Decision::of(&next_step(&view, target));
            if decision.is_none() && !self.has(Rule::AtMostTwoEpochs) {
                view.previous = PreviousEpoch::Drained;
                decision = Decision::of(&next_step(&view, target));
                view.previous = state.db.previous;
            }
            if let (Some(Decision::Move(to)), false) = (&decision, self.has(Rule::OneStep)) {
                decision = Some(Decision::Move(to.towards(target).unwrap_or(*to)));
            }
            let possible =
                |decision: &Decision| matches!(decision, Decision::Close) || state.db.at.epoch < self.epochs;
            found.extend(decision.filter(|decision| possible(decision) && !found.contains(decision)));
        }
        found
    }

    /// The transaction of `Turn::step`.
    pub(crate) fn step(&self, state: &mut State, decision: &Decision) {
        match decision {
            Decision::Close => {
                state.db.previous = PreviousEpoch::Closed;
            }
            Decision::Move(to) => state.db.open_epoch(*to, self.has(Rule::CompletenessCleared)),
        }
    }

    /// `Turn::drain`: whether the exclusive lock on the closed epoch can be had.
    pub(crate) fn may_drain(&self, state: &State) -> bool {
        let closed = state.db.at.epoch - 1;
        let held = |write: crate::Write| write.fenced && write.pin.epoch == closed;
        state.db.previous == PreviousEpoch::Closed
            && (!self.has(Rule::DrainWaitsForTransactions)
                || !state.instances.iter().any(|instance| instance.write.is_some_and(held)))
    }

    /// `cutover.fence`.
    pub(crate) fn fence(&self, db: &Database, pin: Pin) -> bool {
        let same = |row: Pin| {
            row.epoch == pin.epoch && (row.phase == pin.phase || !self.has(Rule::FenceComparesPhase))
        };
        let before = Pin { epoch: db.at.epoch - 1, phase: db.before };
        !self.has(Rule::Fence) || same(db.at) || (db.previous == PreviousEpoch::Open && same(before))
    }

    /// The work that a driver may begin.
    pub(crate) fn work(&self, state: &State) -> Option<Task> {
        let db = &state.db;
        if db.awaits_baseline() || (db.ended && self.has(Rule::EndedStaysEnded)) {
            return None;
        }
        let mut view = self.view(state);
        if !self.has(Rule::WorkWaitsForDrain) {
            view.previous = PreviousEpoch::Drained;
        }
        // `view` may have wrong values of these two, for a rule that is left out.
        view.complete = db.complete;
        view.conditions.unrepaired = i64::from(db.behind);
        let facts = SchemaState::new(db.new != Value::Missing, db.old == Value::Missing && !db.foreign);
        let task = needed_work(&view, facts, Phase::Contract)?;
        let going_on = |job: Job| job.task == task && job.epoch == db.at.epoch;
        (!db.job.is_some_and(going_on)).then_some(task)
    }

    /// Does a task that is a single statement, or begins one that goes through the rows.
    pub(crate) fn begin_work(&self, db: &mut Database, task: Task) {
        match task {
            Task::Expand => db.new = Value::Null,
            Task::CarryOver | Task::Enforce | Task::Relax => {}
            Task::Contract => db.old = Value::Missing,
            Task::Scan => {}
            Task::Repair => (db.new, db.behind) = (db.old, false),
            Task::Backfill | Task::ReverseBackfill => {
                let earlier = db.job.filter(|job| job.task == task && !self.has(Rule::BackfillOfOneEpoch));
                let copied = earlier.is_some_and(|job| job.copied);
                db.job = Some(Job { task, epoch: db.at.epoch, copied });
            }
        }
    }

    /// How the migration may end now, or begin again.
    pub(crate) fn endings(&self, state: &State) -> Vec<Action> {
        let (db, mut actions) = (&state.db, Vec::new());
        let is_declared = db
            .members
            .iter()
            .zip(&state.instances)
            .any(|(member, instance)| member.is_some() && instance.build != Build::Unaware);
        let is_alone = db.previous == PreviousEpoch::Drained;
        if db.ended {
            if db.at.phase == Phase::Contract && !db.foreign {
                actions.push(Action::AddForeignColumn);
            }
            let may_forget = !is_declared || !self.has(Rule::ForgetNeedsNoDeclaration);
            if db.at.phase == Phase::Off && !db.again && may_forget {
                actions.push(Action::BeginAgain);
            }
            return actions;
        }
        if db.at.phase == Phase::Contract
            && (!self.has(Rule::FinishNeedsDrop) || (is_alone && db.old == Value::Missing))
        {
            actions.push(Action::Finish);
        }
        if !self.has(Rule::AbandonNeedsOff)
            || (db.at.phase == Phase::Off && is_alone && db.old != Value::Missing)
        {
            actions.push(Action::Abandon);
        }
        if db.awaits_baseline() {
            actions.push(Action::Baseline);
        }
        actions
    }

    /// `ledger::endings`, each in one transaction.
    pub(crate) fn end(&self, db: &mut Database, action: &Action) {
        match action {
            Action::Finish => db.ended = true,
            Action::Abandon => {
                (db.ended, db.behind, db.job) = (true, false, None);
                db.new = Value::Missing;
            }
            Action::Baseline => {
                db.at.phase = Phase::Contract;
                db.before = Phase::Contract;
                db.complete = Completeness { old: false, new: true };
                db.ended = true;
            }
            Action::AddForeignColumn => db.foreign = true,
            // Another id makes every earlier pin unknown, as a gap in the numbers does here.
            Action::BeginAgain => {
                db.at.epoch += 2;
                (db.ended, db.again) = (false, true);
            }
            _ => {}
        }
    }

    /// Copies the row, in a batch of its own. `None` when the fence refuses the batch.
    pub(crate) fn copy(&self, db: &mut Database) -> Option<Result<(), Violation>> {
        let job = db.job.filter(|job| !job.copied && self.fence(db, pin(*job)))?;
        let (from, to) = match job.task {
            Task::Backfill => (db.old, Side::New),
            _ => (db.new, Side::Old),
        };
        let to = db.side(to);
        match *to {
            Value::Missing => return Some(Err(Violation::MissingColumn)),
            value if self.has(Rule::BackfillCompares) || value == Value::Null => *to = from,
            _ => {}
        }
        db.job = Some(Job { copied: true, ..job });
        Some(Ok(()))
    }

    /// Says that the side is complete, and is `false` when that is refused.
    pub(crate) fn end_job(&self, db: &mut Database) -> bool {
        let current = |job: &Job| job.epoch == db.at.epoch && self.fence(db, pin(*job));
        let Some(job) =
            db.job.filter(|job| job.copied && (current(job) || !self.has(Rule::BackfillEndFenced)))
        else {
            return false;
        };
        match job.task {
            Task::Backfill => db.complete.new = true,
            _ => db.complete.old = true,
        }
        db.job = None;
        true
    }
}

/// What the batches of a job are pinned to.
fn pin(job: Job) -> Pin {
    let phase = if job.task == Task::Backfill { Phase::Backfill } else { Phase::Switch };
    Pin { epoch: job.epoch, phase }
}
