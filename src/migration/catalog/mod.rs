//! What Postgres's catalog says about the two sides of a migration: read once, and checked as a whole.
//!
//! # The hazard
//!
//! A table is rarely what a plan assumes. Row security hides rows from a copy, a constraint needs the old column, a
//! column of the new name holds other data. Unchecked, each of these shows only in a phase that has no way back. So [`TableFacts`] holds everything that a plan may assume, and the functions here turn it into a list of
//! [`PlanProblem`]s, each with a remedy. Where reading is not enough, an operation is tried in a transaction that is
//! rolled back.

mod attached;
mod attached_constraints;
mod attachments;
mod checks;
mod collations;
mod copy_trial;
mod counterpart;
mod defaults;
mod expressions;
mod interference;
mod more_columns;
mod names;
mod new_row_trial;
mod new_table;
mod old_side;
mod problem;
mod rename;
mod replication;
mod sequences;
mod settings;
mod table;
mod trial;
mod trial_remedy;

pub(super) use attached::missing;
pub(super) use attached_constraints::{actions, refers_to_none};
pub(super) use attachments::Attachments;
pub(super) use checks::{
    NewColumnPlan, actions_on_old, foreign_partitions, hierarchy_problems, new_column_problems,
    new_table_problems, not_owner, old_column, old_column_problems, privilege_problems, rename_away,
    row_security, table_privilege_problems, table_problems, takes_over,
};
pub(super) use collations::outdated_order;
pub(super) use copy_trial::{CopyTrial, CopyTriggers, SKIP_TRIGGERS, try_copy};
pub(super) use counterpart::{Attached, Counterpart, OTHER_TWIN, Step, Trial, twin};
pub(super) use defaults::{MovedColumn, missing_defaults};
pub(super) use expressions::{Resolved, TypeFacts, look_up_type, resolve};
pub(super) use interference::{late_triggers, losing_rules, rules};
pub(super) use more_columns::more_columns;
pub(super) use names::{beside, check_name, check_table, fit_name, quote, quote_table, split_table, unquote};
pub(super) use new_row_trial::NewRowTrial;
pub(super) use new_table::{heirs, new_table_now, refers_to_old};
pub use old_side::OldSide;
pub use problem::PlanProblem;
pub(super) use rename::rename_columns;
pub(super) use replication::{
    IdentityOver, identities, identities_over, publications_of_all_columns, subscriptions, unidentified,
};
pub(super) use sequences::take_over_sequences;
pub(super) use settings::{
    MAPPING_SETTINGS, ROW_WORK_SETTINGS, ROW_WORK_SETTINGS_QUERY, TIME_ZONE_ABBREVIATIONS,
};
pub(super) use table::{ForeignKey, TableFacts};
pub(super) use trial::{WriteTrial, insert_without};
