//! The statements of the passes, shown or checked without being run.

use sqlx::PgConnection;

use super::keyset::Span;
use super::mapping::Mapping;
use super::query::Query;
use super::sides::{MappedRows, Scope, Sides};
use crate::migration::phase::Task;

impl Scope<'_> {
    /// What the work of each task executes, to be shown to people.
    pub(crate) fn described(&self, expand: &str, contract: &str) -> Vec<(Task, String)> {
        let span = Span::Between { from: Some(vec![]), to: vec![] };
        let end = self.key.batch_end(&self.tables(), &span, ":rows");
        let in_rust = |mapping: &Mapping| mapping.is_rust().then(|| ":mapped".to_owned());
        let mapped = MappedRows {
            forward: in_rust(&self.sides.forward),
            backward: in_rust(&self.sides.backward),
            round_trip: in_rust(&self.sides.forward),
        };
        let batch = |work: &[Query]| -> String {
            let texts: Vec<&str> = std::iter::once(&end).chain(work).map(|query| &*query.text).collect();
            texts.join(";\n")
        };
        let mut copy = vec![self.copy_forward(&span, &mapped)];
        if !self.is_one_table() {
            copy.insert(0, self.insert_missing(&span, &mapped));
        }
        vec![
            (Task::Expand, expand.to_owned()),
            (Task::Backfill, batch(&copy)),
            (Task::Scan, batch(&[self.differences(&span, &mapped)])),
            (Task::ReverseBackfill, batch(&[self.copy_back(&span, &mapped)])),
            (Task::Contract, contract.to_owned()),
        ]
    }

    /// Makes the server check the statements of all passes, so that a way back that does not work is found before it is
    /// needed.
    pub(crate) async fn try_out(&self, tx: &mut PgConnection) -> Result<(), sqlx::Error> {
        let (span, none) = (Span::Keys(Vec::new()), || Some("[]".to_owned()));
        let mapped = MappedRows { forward: none(), backward: none(), round_trip: none() };
        let mut statements = vec![
            self.copy_forward(&span, &mapped),
            self.copy_back(&span, &mapped),
            self.differences(&span, &mapped),
        ];
        if !self.is_one_table() {
            let Sides { old, new, .. } = self.sides;
            statements.push(self.insert_missing(&span, &mapped));
            statements.extend([self.delete_orphans(new, old, &span), self.delete_orphans(old, new, &span)]);
        }
        for statement in statements {
            statement.explained().fetch_all(&mut *tx).await?;
        }
        Ok(())
    }
}
