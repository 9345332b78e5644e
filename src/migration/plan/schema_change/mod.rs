//! Changes of the schema that move no data: a constraint is added, or an unused object is dropped.
//!
//! # The hazard
//!
//! A new constraint refuses rows that an older build still writes, and a drop fails every statement of a build that still
//! uses what was dropped. In a rolling deploy both builds run at once. `ALTER TABLE … ADD CONSTRAINT` also locks the table
//! for as long as it checks all rows, and a drop has no way back.
//!
//! # How the phases apply
//!
//! The old side is the schema as it is, and the new side the changed one. There is nothing to copy, so most phases do
//! little; they are kept because agreement, epochs, approval and soak are the same as for any other migration.
//!
//! | phase | what happens | why there |
//! |---|---|---|
//! | `off` | before `expand`: everything about the table is checked, and rows that violate a constraint are named | nothing has changed yet |
//! | `expand` | the triggers that watch writers are installed; nothing is refused | every live build declares the change |
//! | `backfill` | all rows are checked again | the new side is complete if no row violates a constraint |
//! | `verify` | a last check counts as the scan | an outdated scan is repeated, as for any other migration |
//! | `ramp` | nothing | there is nothing to read from two sides |
//! | `switch` | on the way to `retire`: constraints are added as `NOT VALID` and validated, unique indexes are built. If `retire` is not desired any more, all of this is dropped again | violating writes are refused from here on, while there is a way back |
//! | `retire` | writes of what will be dropped are refused; reads are watched | a build that still needs it is found while there is a way back |
//! | `contract` | `SET NOT NULL`, unique constraints are attached to their indexes, and the object is dropped | no way back |
//!
//! A migration that is switched off goes back to `verify`, and the server accepts such writes again within seconds.
//!
//! # How a build declares that it no longer needs the old schema
//!
//! By its [`PhaseRange`](crate::migration::PhaseRange), as for any other migration:
//!
//! - A build that does not declare the change supports `off` only. While an instance of it is alive, the migration stays in
//!   `off`.
//! - A build that knows the change and still needs the old schema supports `off` to `ramp`.
//! - A build that no longer needs it, and writes no row that the constraint refuses, supports all phases.
//!
//! # Writers
//!
//! A write that a `NOT NULL` or `CHECK` will refuse, and a write of what will be dropped, is recorded with its application,
//! whether it is pinned or not, and listed by `cutover external-writes`. The migration goes on when none was seen for the
//! quiet period. Writers that violate a unique or foreign key are not recorded, because each write would then have
//! to read another row. The checks of all rows find what they wrote.
//!
//! # Reads
//!
//! In `retire`, the server's own counts of reads must stay the same for the quiet period. The server counts scans of a table
//! (`pg_stat_user_tables`) and of an index (`pg_stat_user_indexes`), and, with `pg_stat_statements`, statements that name a
//! column. It does not count reads on standbys, nor reads of a column by `select *`.

mod addition;
mod builder;
mod contract;
mod description;
mod enforce;
mod file;
mod found;
mod inspection;
mod reads;
mod removal;
mod rows;
mod run;
mod trial;

pub use builder::SchemaChangeBuilder;
pub use run::SchemaChange;
