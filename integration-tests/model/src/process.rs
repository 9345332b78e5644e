//! What happens in an instance: its lease, its gate, and the operations that go through it.

use cutover::migration::phase::{Phase, PreviousEpoch, Side, may_acknowledge, may_join};

use crate::{Build, Database, Instance, Member, Pin, Protocol, Rule, State, Value, Violation, Write};

impl Instance {
    pub(crate) fn settled(at: Pin) -> Self {
        Instance {
            build: Build::Both,
            gate: Some(at),
            lease: true,
            behind: false,
            unrenewed: false,
            unfollowed: false,
            read: None,
            write: None,
            joining: None,
        }
    }

    /// `Gate::older_open`: the operations counted under the other parity.
    fn older(&self) -> u64 {
        let Some(gate) = self.gate else { return 0 };
        let pins = [self.read, self.write.map(|write| write.pin)];
        pins.into_iter().flatten().filter(|pin| pin.epoch % 2 != gate.epoch % 2).count() as u64
    }
}

impl Protocol {
    /// `Follower::go_out`.
    fn shut(&self, instance: &mut Instance) {
        instance.gate = None;
        instance.behind = false;
        instance.unfollowed = false;
        if self.has(Rule::Generation) {
            // Its pin is no longer valid. No move waits for a read that cannot return.
            instance.read = None;
        }
    }

    /// The lease runs out on both clocks, and the driver deletes the row. After a failover the ledger's lease
    /// may be the shorter one, so the instance may not know.
    pub(crate) fn drop_member(&self, state: &mut State, i: usize) {
        state.db.members[i] = None;
        if let Some(standby) = &mut state.standby {
            // The same lease is over there too.
            standby.members[i] = None;
        }
        let instance = &mut state.instances[i];
        if self.has(Rule::DropNeedsLapse) && !instance.unrenewed {
            instance.lease = false;
        }
    }

    /// `Me::renew` and `Me::rejoin`; what the fleet's task does on its own.
    pub(crate) fn may_rejoin(&self, state: &State, i: usize) -> bool {
        let instance = &state.instances[i];
        state.db.members[i].is_none() && (!instance.lease || instance.unrenewed)
    }

    pub(crate) fn rejoin(&self, state: &mut State, i: usize, build: Build) {
        if let Some(standby) = &mut state.standby {
            standby.members[i] = None;
        }
        let instance = &mut state.instances[i];
        if instance.build != build {
            // Another process replaces this one.
            *instance = Instance { build, gate: None, ..Instance::settled(state.db.at) };
            return;
        }
        instance.lease = true;
        instance.unrenewed = false;
        // Another task owns the gate.
        instance.behind = instance.gate.is_some();
        if self.has(Rule::LeaseOfOwnMembership) {
            instance.read = None;
        }
    }

    /// The follower learns that the lease ran out, or that it belongs to another membership.
    pub(crate) fn go_out(&self, instance: &mut Instance) -> bool {
        let due = instance.gate.is_some() && (!instance.lease || instance.behind);
        if due {
            self.shut(instance);
        }
        due
    }

    /// Whether `Follower::seek_admission` finds its row and no refusal.
    pub(crate) fn may_be_admitted(&self, state: &State, i: usize) -> bool {
        let instance = &state.instances[i];
        let row_is_lost = instance.unrenewed && state.db.members[i].is_none();
        instance.lease
            && instance.gate.is_none()
            && !row_is_lost
            && (!self.has(Rule::AdmissionNeedsSchema)
                || instance.build == Build::Unaware
                || state.db.has_sides())
            && (!self.has(Rule::AdmissionNeedsRange)
                || (instance.build == Build::Unaware && state.db.ended)
                || may_join(instance.build.range(), state.db.in_use()))
    }

    /// `Follower::seek_admission`, of an instance that saw the ledger at `at`.
    pub(crate) fn admit(&self, state: &mut State, i: usize, at: Pin) {
        state.db.members[i] = Some(Member { acknowledged: 0 });
        let instance = &mut state.instances[i];
        instance.joining = None;
        instance.gate = Some(at);
    }

    /// `Follower::take_on`; `false` when there is nothing new.
    pub(crate) fn follow(&self, state: &mut State, i: usize) -> bool {
        let at = state.db.at;
        let instance = &mut state.instances[i];
        let Some(gate) = instance.gate.filter(|_| !instance.behind && instance.build != Build::Unaware)
        else {
            return false;
        };
        let successor = at.epoch == gate.epoch + 1;
        if gate == at {
            return std::mem::take(&mut instance.unfollowed);
        } else if successor || !self.has(Rule::TakesOnSuccessorOnly) {
            instance.gate = Some(at);
            instance.unfollowed = false;
        } else {
            self.shut(instance);
        }
        true
    }

    /// `Follower::acknowledge`; `false` when there is nothing to acknowledge or something in the way.
    pub(crate) fn acknowledge(&self, state: &mut State, i: usize) -> bool {
        let instance = &state.instances[i];
        let (Some(gate), false, Some(member)) = (instance.gate, instance.behind, state.db.members[i]) else {
            return false;
        };
        let older = if self.has(Rule::AcknowledgeAfterOwnOperations) { instance.older() } else { 0 };
        let due = member.acknowledged < gate.epoch
            && may_acknowledge(older)
            && (state.db.knows(gate) || !self.has(Rule::AcknowledgesKnownEpoch));
        if due {
            state.db.members[i] = Some(Member { acknowledged: gate.epoch });
        }
        due
    }

    /// `Migration::pin`, for a read.
    pub(crate) fn begin_read(&self, instance: &mut Instance) {
        // The pin is of the membership that the gate was opened in; under another's lease it is void at once.
        let void = instance.behind && self.has(Rule::LeaseOfOwnMembership);
        // Without the rule, the lease is checked when the read begins and not when it ends.
        let checked = self.has(Rule::LeaseAtReadEnd) || instance.lease;
        if !void && checked {
            instance.read = instance.gate;
        }
    }

    /// The query runs; then `Pin::holds` decides whether what it found may be returned. A check at a later
    /// moment than the query's could only refuse more.
    pub(crate) fn end_read(&self, state: &mut State, i: usize, side: Side) {
        let instance = &mut state.instances[i];
        instance.read = None;
        let holds = instance.lease || !self.has(Rule::LeaseAtReadEnd);
        let judged = self.judges_before_contact || !(instance.unrenewed || instance.unfollowed);
        if holds && judged {
            state.violation = match state.db.side(side) {
                Value::Fresh => None,
                Value::Missing => Some(Violation::MissingColumn),
                Value::Null | Value::Stale => Some(Violation::StaleRead),
            };
        }
    }

    /// The fence, and with it the epoch's shared lock.
    pub(crate) fn pass_fence(&self, state: &mut State, i: usize) {
        let write = &mut state.instances[i].write;
        *write = write
            .filter(|write| self.fence(&state.db, write.pin))
            .map(|write| Write { fenced: true, ..write });
    }

    pub(crate) fn commit(&self, state: &mut State, i: usize) {
        if let Some(write) = state.instances[i].write.take() {
            state.violation = state.db.write(write.pin.phase).err();
        }
    }

    /// `DualWrite::note`: whether the new side may be left behind by a transaction of this epoch.
    pub(crate) fn may_leave_behind(&self, db: &Database, pin: Pin) -> bool {
        let sealed = db.at.phase > Phase::Verify && self.has(Rule::RampSealsTheEpoch);
        let still_read = db.previous == PreviousEpoch::Open
            && db.before > Phase::Verify
            && self.has(Rule::NothingBehindWhileRampIsOpen);
        self.leaves_behind && (Phase::Expand..=Phase::Verify).contains(&pin.phase) && !sealed && !still_read
    }

    pub(crate) fn commit_behind(&self, state: &mut State, i: usize) {
        let Database { new, .. } = state.db;
        self.commit(state, i);
        state.db.new = if new == Value::Fresh { Value::Stale } else { new };
        state.db.behind = true;
    }

    /// The primary is lost with all that the standby had not received. Connections and transactions end, what
    /// the instances remember stays.
    pub(crate) fn fail_over(&self, state: &mut State) {
        let Some(standby) = state.standby.take() else { return };
        state.db = standby;
        state.failed_over = true;
        for instance in &mut state.instances {
            instance.unrenewed = true;
            instance.unfollowed = instance.gate.is_some();
            instance.write = instance.write.filter(|write| !write.fenced);
            instance.joining = None;
        }
    }

    /// Whether a phase in use reads a side that lacks the last acknowledged write.
    pub(crate) fn lost_write(state: &State) -> bool {
        let db = &state.db;
        if db.awaits_baseline() {
            // Nothing has been written yet.
            return false;
        }
        let before = (db.previous == PreviousEpoch::Open).then_some(db.before);
        [Some(db.at.phase), before].into_iter().flatten().any(|phase| {
            (phase.may_read(Side::Old) && db.old != Value::Fresh)
                || (phase.may_read(Side::New) && db.new != Value::Fresh)
        })
    }
}
