//! The two sides of a migration on a real Postgres, each test in a database of its own.

mod column_migration;
mod conflicts;
mod deadpool;
mod dropped;
mod dual_write;
mod external_writers;
mod guard_trigger;
mod histories;
mod inserts;
mod keys;
mod matrix;
mod mirror;
mod mirror_killed;
mod pauses;
mod pgbench;
mod plan_problems;
mod repairs;
mod row_security;
mod rows;
mod schema_changes;
mod shadow;
mod standbys;
mod table_migration;
mod throttle;
mod values;
mod world;
