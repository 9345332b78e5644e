//! What the guard trigger raises.

use crate::migration::batch::MappingCode;

/// Names the external writer.
macro_rules! external_writer {
    () => {
        "pg_catalog.format('The write came from application %s, role %s.', \
             coalesce(nullif(pg_catalog.current_setting('application_name'), ''), 'unnamed'), session_user)"
    };
}

/// For an external write of the old side when that is no longer written.
pub(super) const REFUSE: &str = concat!(
    "raise exception using errcode = 'ZC003', \
     message = pg_catalog.format('the old side of %s is no longer written: migration %s is in `%s`', \
         tg_table_name, cutover.migration_name(tg_argv[0]::integer), phase), \
     detail = ",
    external_writer!(),
    ", \
     hint = 'Write the new side, or write through the service.';"
);

/// For a write that only a mapping in Rust could bring to the other side, while both sides are read.
pub(super) const REFUSE_UNMAPPED: &str = concat!(
    "raise exception using errcode = 'ZC003', \
     message = pg_catalog.format('a write of %s cannot be mirrored: the mapping of migration %s is in Rust, and the migration is in `%s`', \
         tg_table_name, cutover.migration_name(tg_argv[0]::integer), phase), \
     detail = ",
    external_writer!(),
    ", \
     hint = 'Write through the service.';"
);

/// For another key of a row whose columns are in another table, where that row may be newer than the transaction's snapshot.
pub(super) const REFUSE_UNSEEN: &str = concat!(
    "raise exception using errcode = 'ZC003', \
     message = pg_catalog.format('the row of %s cannot get another key in this transaction: its row of the new table of migration \
         %s may be newer than the transaction''s snapshot', tg_table_name, cutover.migration_name(tg_argv[0]::integer)), \
     detail = ",
    external_writer!(),
    ", \
     hint = 'Repeat it after `begin isolation level read committed`.';"
);

/// For a pinned write that relies on a mapping which another build has replaced by one in Rust.
pub(super) const NOT_MIRRORED: &str = "raise exception using errcode = 'ZC005', \
     message = pg_catalog.format('a write of %s cannot be mirrored: the guard trigger of migration %s was installed by a \
         build whose mapping is in Rust', tg_table_name, cutover.migration_name(tg_argv[0]::integer)), \
     hint = 'Deploy builds with one mapping, or write both sides.';";

/// Failures that concern the transaction, not the row: it has to be repeated as a whole.
pub(super) const RAISE: &str = "when serialization_failure or deadlock_detected then raise;";

/// The phases that refuse external writes of the old side.
pub(super) fn refused(forward: &MappingCode) -> &'static str {
    match forward {
        MappingCode::Sql(_) => "'retire', 'contract'",
        MappingCode::Rust(_) => "'ramp', 'switch', 'retire', 'contract'",
    }
}
