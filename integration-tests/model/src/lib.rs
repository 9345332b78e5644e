//! The migration protocol as a state machine, for a checker that visits every state.
//!
//! The model calls the library's own pure functions for its decisions. It describes SQL and tasks again, one step per
//! transaction, and names the function that each step describes. A paused process takes no step while others do, so
//! pauses need no state.

mod ledger;
mod process;
mod rules;
mod several;
mod state;

use cutover::migration::phase::{Phase, PreviousEpoch, Side, Task};
use stateright::{Model, Property};

pub use rules::Rule;
pub use several::{Open, Several, SeveralAction, SeveralRule, SeveralState};
pub use state::{Build, Database, Decision, Instance, Job, Member, Pin, State, Value, Violation, Write};

/// What to explore.
#[derive(Debug, Clone)]
pub struct Protocol {
    /// The phase in which the fleet is at rest before the first step.
    pub starts: Vec<Phase>,
    /// The last epoch.
    pub epochs: u8,
    /// The number of instances.
    pub instances: usize,
    /// The number of reads, and of writes, in progress at a time in the whole fleet.
    pub operations: usize,
    /// Instances lose their lease and join again.
    pub drops: bool,
    /// The builds that processes may run when they start.
    pub builds: &'static [Build],
    /// A second driver, which is paused between its decision and its action.
    pub paused_driver: bool,
    /// A failover to a standby that lagged.
    pub failover: bool,
    /// Also judges reads of an instance that has had no answer of the database since the failover.
    pub judges_before_contact: bool,
    /// The rule that is left out.
    pub without: Option<Rule>,
    /// A write may leave the new side behind, to be repaired later.
    pub leaves_behind: bool,
    /// The migration may end, and begin again.
    pub endings: bool,
    /// Starts also in a database that was created with the new side only.
    pub fresh: bool,
}

/// The possible next steps. Numbers are indexes in the list of instances.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// A driver closes or moves: looks, decides and acts in one transaction.
    Step(Decision),
    /// A driver decides, and is paused.
    Decide(Decision),
    /// The paused driver acts.
    ActOnDecision,
    /// A driver gets the exclusive lock on the closed epoch.
    Drain,
    /// A driver's instance does a task, or begins one that goes through the rows.
    BeginWork(Task),
    /// A batch of the backfill.
    Copy,
    /// The last transaction of the backfill.
    EndWork,
    /// An instance's lease has run out and its row is deleted.
    Drop(usize),
    /// The first extension of the lease after a failover.
    Renew(usize),
    /// An instance joins again, or a process starts in its place.
    Rejoin(usize, Build),
    /// The follower closes the gate.
    GoOut(usize),
    /// Without the lock: an instance looks at the ledger.
    LookForAdmission(usize),
    /// An instance declares itself and opens its gate.
    Admit(usize),
    /// An instance takes on the epoch that it finds.
    Follow(usize),
    /// An instance acknowledges that it has no older operation.
    Acknowledge(usize),
    /// A read takes its pin.
    BeginRead(usize),
    /// A read's query runs on this side, and its value is returned or not.
    EndRead(usize, Side),
    /// A write takes its pin.
    BeginWrite(usize),
    /// Its transaction begins, or is refused.
    PassFence(usize),
    /// It writes the sides of its phase and commits.
    Commit(usize),
    /// It writes the old side, records a repair of the new side, and commits.
    CommitBehind(usize),
    /// The standby stops receiving.
    StandbyReceives,
    /// The standby becomes the primary.
    FailOver,
    /// The migration is finished.
    Finish,
    /// The migration is abandoned, and the new side dropped.
    Abandon,
    /// The migration is finished from the start.
    Baseline,
    /// A person adds a column that has the name of the old one.
    AddForeignColumn,
    /// The ended migration is archived, and one by its name declared.
    BeginAgain,
}

impl Protocol {
    /// Whether the rule is in force.
    pub fn has(&self, rule: Rule) -> bool {
        self.without != Some(rule)
    }

    fn instance_actions(&self, state: &State, i: usize, actions: &mut Vec<Action>) {
        let instance = &state.instances[i];
        if self.drops && state.db.members[i].is_some() {
            actions.push(Action::Drop(i));
        }
        if instance.unrenewed && state.db.members[i].is_some() {
            actions.push(Action::Renew(i));
        }
        if self.may_rejoin(state, i) {
            actions.extend(self.builds.iter().map(|build| Action::Rejoin(i, *build)));
        }
        if instance.joining.is_some() || (self.has(Rule::AdmissionLocked) && self.may_be_admitted(state, i)) {
            actions.push(Action::Admit(i));
        } else if self.may_be_admitted(state, i) {
            actions.push(Action::LookForAdmission(i));
        }
        if instance.gate.is_some() {
            actions.extend([Action::GoOut(i), Action::Follow(i), Action::Acknowledge(i)]);
        }
        let under_way = |what: fn(&Instance) -> bool| state.instances.iter().filter(|i| what(i)).count();
        match instance.read {
            Some(pin) => actions.extend(
                [Side::Old, Side::New]
                    .into_iter()
                    .filter(|side| pin.phase.may_read(*side))
                    .map(|side| Action::EndRead(i, side)),
            ),
            None if instance.gate.is_some() && under_way(|i| i.read.is_some()) < self.operations => {
                actions.push(Action::BeginRead(i));
            }
            None => {}
        }
        match instance.write {
            Some(Write { fenced: true, pin }) => {
                actions.push(Action::Commit(i));
                if self.may_leave_behind(&state.db, pin) {
                    actions.push(Action::CommitBehind(i));
                }
            }
            Some(_) => actions.push(Action::PassFence(i)),
            None if instance.gate.is_some() && under_way(|i| i.write.is_some()) < self.operations => {
                actions.push(Action::BeginWrite(i));
            }
            None => {}
        }
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let settled = |phase: &Phase| {
            let db = Database::settled(*phase, self.instances);
            State {
                instances: vec![Instance::settled(db.at); self.instances],
                db,
                standby: None,
                failed_over: false,
                decided: None,
                violation: None,
            }
        };
        let fresh = self.fresh.then(|| {
            let mut state = settled(&Phase::Off);
            state.db = Database::fresh(self.instances);
            state.instances.iter_mut().for_each(|instance| instance.gate = None);
            state
        });
        self.starts.iter().map(settled).chain(fresh).collect()
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.violation.is_some() {
            return;
        }
        let decisions = self.decisions(state);
        if self.paused_driver && state.decided.is_none() {
            actions.extend(decisions.iter().cloned().map(Action::Decide));
        }
        if state.decided.is_some() {
            actions.push(Action::ActOnDecision);
        }
        actions.extend(decisions.into_iter().map(Action::Step));
        if self.may_drain(state) {
            actions.push(Action::Drain);
        }
        if self.endings {
            actions.extend(self.endings(state));
        }
        actions.extend(self.work(state).map(Action::BeginWork));
        if let Some(job) = state.db.job {
            actions.push(if job.copied { Action::EndWork } else { Action::Copy });
        }
        if self.failover && state.standby.is_none() && !state.failed_over {
            actions.push(Action::StandbyReceives);
        }
        if state.standby.is_some() {
            actions.push(Action::FailOver);
        }
        for i in 0..state.instances.len() {
            self.instance_actions(state, i, actions);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        let s = &mut state;
        match action {
            Action::Step(decision) => self.step(s, &decision),
            Action::Decide(decision) => s.decided = Some(decision),
            Action::ActOnDecision => {
                let decided = s.decided.take()?;
                if !self.has(Rule::DriverDecidesAgain) || self.decisions(s).contains(&decided) {
                    self.step(s, &decided);
                }
            }
            Action::Drain => s.db.previous = PreviousEpoch::Drained,
            Action::BeginWork(Task::Contract) if s.db.foreign => {
                s.violation = Some(Violation::ForeignColumnDropped);
            }
            Action::BeginWork(task) => self.begin_work(&mut s.db, task),
            Action::Copy => s.violation = self.copy(&mut s.db)?.err(),
            Action::EndWork => self.end_job(&mut s.db).then_some(())?,
            Action::Drop(i) => self.drop_member(s, i),
            Action::Renew(i) => s.instances[i].unrenewed = false,
            Action::Rejoin(i, build) => self.rejoin(s, i, build),
            Action::GoOut(i) => self.go_out(&mut s.instances[i]).then_some(())?,
            Action::LookForAdmission(i) => s.instances[i].joining = Some(s.db.at),
            Action::Admit(i) => self.admit(s, i, s.instances[i].joining.unwrap_or(s.db.at)),
            Action::Follow(i) => self.follow(s, i).then_some(())?,
            Action::Acknowledge(i) => self.acknowledge(s, i).then_some(())?,
            Action::BeginRead(i) => self.begin_read(&mut s.instances[i]),
            Action::EndRead(i, side) => self.end_read(s, i, side),
            Action::BeginWrite(i) => {
                s.instances[i].write = s.instances[i].gate.map(|pin| Write { pin, fenced: false });
            }
            Action::PassFence(i) => self.pass_fence(s, i),
            Action::Commit(i) => self.commit(s, i),
            Action::CommitBehind(i) => self.commit_behind(s, i),
            Action::StandbyReceives => s.standby = Some(s.db.clone()),
            Action::FailOver => self.fail_over(s),
            Action::Finish
            | Action::Abandon
            | Action::Baseline
            | Action::AddForeignColumn
            | Action::BeginAgain => self.end(&mut s.db, &action),
        }
        if s.violation.is_none() && Self::lost_write(s) {
            s.violation = Some(Violation::LostWrite);
        }
        Some(state.canonical())
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always("no stale read", |_, s: &State| s.violation != Some(Violation::StaleRead)),
            Property::always("no lost write", |_, s: &State| s.violation != Some(Violation::LostWrite)),
            Property::always("no query on a missing column", |_, s: &State| {
                s.violation != Some(Violation::MissingColumn)
            }),
            Property::always("no phase that a build can't run", |_, s: &State| {
                s.db.members.iter().zip(&s.instances).all(|(member, instance)| {
                    member.is_none()
                        || (instance.build == Build::Unaware && s.db.needs_no_code())
                        || s.db.in_use().all(|phase| instance.build.range().contains(phase))
                })
            }),
            Property::always("no other column is dropped", |_, s: &State| {
                s.violation != Some(Violation::ForeignColumnDropped)
            }),
            Property::always("at most two epochs in use", |_, s: &State| {
                s.db.members.iter().zip(&s.instances).all(|(member, instance)| {
                    let old = |gate: Pin| gate.epoch + 1 < s.db.at.epoch && !instance.behind;
                    // A build that does not know the migration follows none of its epochs.
                    member.is_none() || instance.build == Build::Unaware || !instance.gate.is_some_and(old)
                })
            }),
        ];
        for (name, reached) in REACHED {
            properties.push(Property::sometimes(name, reached));
        }
        properties
    }
}

/// States that the search must reach. Without them a passing check would mean nothing.
type Reached = (&'static str, fn(&Protocol, &State) -> bool);
const REACHED: [Reached; 7] = [
    ("a build without the migration runs after its end", |_, s| {
        let runs = |(member, instance): (&Option<Member>, &Instance)| {
            member.is_some() && instance.build == Build::Unaware
        };
        s.db.ended && s.db.at.phase == Phase::Contract && s.db.members.iter().zip(&s.instances).any(runs)
    }),
    ("an abandoned migration begins again and reaches ramp", |_, s| {
        s.db.again && s.db.at.phase == Phase::Ramp
    }),
    ("a migration is finished from the start, and an instance works", |_, s| {
        s.db.ended
            && s.db.at == Pin { epoch: 1, phase: Phase::Contract }
            && s.db.members.iter().any(Option::is_some)
    }),
    ("contract is reached and the old side is gone", |_, s| {
        s.db.at.phase == Phase::Contract && s.db.old == Value::Missing
    }),
    ("a side that went unwritten is complete again", |_, s| {
        s.db.at.phase == Phase::Ramp && s.db.before == Phase::Switch
    }),
    ("a write waits between pin and fence while its epoch is closed", |_, s| {
        let late = |write: Write| !write.fenced && write.pin.epoch + 1 < s.db.at.epoch;
        s.instances.iter().any(|instance| instance.write.is_some_and(late))
    }),
    ("the last epoch is reached", |protocol, s| s.db.at.epoch == protocol.epochs),
];
