//! A plan that does what the test says.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use cutover::migration::{Migration, OldSide, Plan, PlanError, SchemaState, Task};
use sqlx::PgConnection;

pub(crate) type State = SchemaState;

type Failure = Arc<dyn Fn(u32) -> PlanError + Send + Sync>;

/// A plan without a table. A task that succeeds changes what the plan says about the schema.
#[derive(Clone)]
pub(crate) struct Scripted {
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    state: State,
    looks: u32,
    runs: HashMap<Task, u32>,
    failure: Option<Failure>,
}

impl Default for Scripted {
    fn default() -> Self {
        let state = State::new(false, false);
        let inner = Inner { state, looks: 0, runs: HashMap::new(), failure: None };
        Self { inner: Arc::new(Mutex::new(inner)) }
    }
}

impl std::fmt::Debug for Scripted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scripted").finish_non_exhaustive()
    }
}

impl Scripted {
    pub(crate) fn set(&self, state: State) {
        self.inner.lock().unwrap().state = state;
    }

    pub(crate) fn looks(&self) -> u32 {
        self.inner.lock().unwrap().looks
    }

    pub(crate) fn runs(&self, task: Task) -> u32 {
        self.inner.lock().unwrap().runs.get(&task).copied().unwrap_or(0)
    }

    pub(crate) fn fail_with(&self, failure: impl Fn(u32) -> PlanError + Send + Sync + 'static) {
        self.inner.lock().unwrap().failure = Some(Arc::new(failure));
    }

    pub(crate) fn succeed(&self) {
        self.inner.lock().unwrap().failure = None;
    }
}

#[async_trait]
impl Plan for Scripted {
    fn old_side(&self) -> Option<OldSide> {
        Some(OldSide { table: "public.scripted".into(), columns: Vec::new() })
    }

    async fn schema_state(&self, _: Option<i32>, _: &mut PgConnection) -> Result<State, sqlx::Error> {
        let mut inner = self.inner.lock().unwrap();
        inner.looks += 1;
        Ok(inner.state)
    }

    async fn run(&self, task: Task, _: &Migration) -> Result<(), PlanError> {
        let mut inner = self.inner.lock().unwrap();
        let runs = inner.runs.entry(task).or_default();
        *runs += 1;
        let runs = *runs;
        if let Some(failure) = &inner.failure {
            return Err(failure(runs));
        }
        match task {
            Task::Expand => inner.state.expanded = true,
            Task::Contract => inner.state.contracted = true,
            // The test writes the results of work on rows into the ledger.
            _ => {}
        }
        Ok(())
    }
}
