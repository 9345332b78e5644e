//! A primary key that outgrows `integer`: it becomes `bigint` under its own name, without a long lock.
//!
//! # The hazard
//!
//! `ALTER COLUMN … TYPE bigint` rewrites the table under a lock that blocks all readers and writers, for minutes or hours. A second column
//! avoids that, but then the primary key, the identity or sequence and the column's name have to move too. And a build whose
//! code decodes four bytes fails when it receives eight.
//!
//! # How the phases apply
//!
//! | phase | what happens |
//! |---|---|
//! | `off` | before `expand`: whatever else names the key is found and named. Then a `bigint` column is added, with a trigger that sets it from the key in every write |
//! | `backfill` | the column is filled in batches |
//! | `verify` | all rows are compared |
//! | `ramp` | nothing |
//! | `switch` | on the way to `retire`: a unique index is built beside the key, the column becomes `NOT NULL`, and in one short transaction the columns exchange their names, the primary key and the identity or sequence. If `retire` is not desired any more, they are exchanged back |
//! | `retire` | the key is `bigint`. The trigger keeps the old column up to date, as far as its type can hold the values |
//! | `contract` | the old column is dropped |
//!
//! The exchange is in `switch` because there, unlike in `contract`, it has a way back, and because every live build has
//! declared by then that it can read the key with either type.
//!
//! The way back is possible while no key is above the range of the old type. If there are such rows, the step back waits and
//! names them.

mod builder;
mod carried;
mod exchange;
mod found;
mod inspection;
mod named_by;
mod prepared;
mod referring;
mod run;
mod trigger_functions;
mod unguarded;

pub use builder::{WiderKey, WiderKeyBuilder};
