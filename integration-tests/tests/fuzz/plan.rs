//! The plan of the migration.

use cutover::migration::{BatchOptions, ColumnMigration, SqlMigrationBuilder, TableMigration};

use crate::Outcome;
use crate::oracle::literal;
use crate::rust_pairs::{of_column, of_row};
use crate::shape::{Flaw, Partitions, SECOND};
use crate::world::World;

impl World {
    fn common<S>(&self, mut builder: SqlMigrationBuilder<S>) -> SqlMigrationBuilder<S> {
        let batches = BatchOptions { min_rows: 15, max_rows: 30, ..BatchOptions::default() };
        // The generator's triggers write `updated_at`, which no oracle judges.
        builder = builder.batches(batches).carry_over().let_triggers_fire();
        if !self.shape.carries_key() {
            builder = builder.without("default");
        }
        if self.shape.names_key {
            for (name, _) in self.shape.key.columns() {
                builder = builder.key(name);
            }
        }
        if self.shape.has_index {
            let on = match self.shape.flaw {
                Some(Flaw::Index) => "(no_such_column)",
                _ => "(note) where new_c is not null",
            };
            builder = builder.index("subject_new", on);
        }
        builder
    }

    pub(crate) fn column_plan(&self, is_earlier: bool) -> Outcome<ColumnMigration> {
        let pair = &self.shape.pair;
        let forward = match self.shape.flaw {
            Some(Flaw::Clock) => format!("case when now() is null then null else {} end", pair.forward),
            _ if is_earlier => format!("({})", pair.forward),
            _ => pair.forward.to_owned(),
        };
        let builder = ColumnMigration::new(self.work.clone(), "subject");
        let mut builder = match (self.shape.has_second, &self.shape.rust_pair) {
            (_, Some(rust)) => {
                let builder =
                    builder.column("old_c", "new_c", pair.new).forward_rows(of_column("old_c", rust.forward));
                match rust.backward {
                    Some(back) => builder.backward_rows(of_column("new_c", back)),
                    None => builder.backward(pair.backward),
                }
            }
            (false, None) => {
                builder.column("old_c", "new_c", pair.new).forward(&forward).backward(pair.backward)
            }
            (true, None) => builder
                .new_column("new_c", pair.new, &forward)
                .new_column("new_d", "text", "lower(old_d)")
                .old_column("old_c", pair.backward)
                .old_column("old_d", "upper(new_d)")
                .expand_sql(&format!("alter table subject alter new_d set default '{}'", SECOND[1])),
        };
        if self.shape.has_lookup {
            // Before version 18 the server has no `not valid` for a foreign key of a partitioned table. The column is empty.
            let valid = if self.shape.partitions == Partitions::None { " not valid" } else { "" };
            builder = builder
                .expand_sql(&format!(
                    "alter table subject add constraint subject_mood foreign key (new_c) references moods{valid}"
                ))
                .allow("adding-foreign-key-constraint")
                .allow("constraint-missing-not-valid");
        }
        if self.shape.mirrors {
            builder = builder.mirror_writes();
        }
        if self.shape.new_default {
            let text = self.values.all.first().and_then(|value| value.new_texts[0].as_deref());
            builder = builder.expand_sql(&format!(
                "alter table subject alter new_c set default {}",
                literal(text, pair.new)
            ));
        }
        Ok(self.common(builder).build()?)
    }

    /// The columns move to a table of their own.
    pub(crate) fn plan_apart(&self) -> Outcome<TableMigration> {
        let pair = &self.shape.pair;
        let builder = TableMigration::new(self.work.clone(), "subject", "subject_2")
            .create(&self.shape.create_new())
            .only_columns()
            .column("new_c", pair.forward)
            .column_back("old_c", pair.backward);
        Ok(self.common(builder).build()?)
    }

    pub(crate) fn table_plan(&self) -> Outcome<TableMigration> {
        let pair = &self.shape.pair;
        let builder =
            TableMigration::new(self.work.clone(), "subject", "subject_2").create(&self.shape.create_new());
        let builder = if self.shape.carries_key() { builder } else { builder.without("subject_parent_fkey") };
        let remainders = if self.shape.has_new_partitions { 0..3 } else { 0..0 };
        let builder = remainders.fold(builder, |builder, remainder| {
            builder.expand_sql(&format!(
                "create table subject_2_{remainder} partition of subject_2 \
                 for values with (modulus 3, remainder {remainder})"
            ))
        });
        let builder = match self.shape.has_part {
            true => builder.rows_where("id % 3 <> 0").without("updated_at"),
            false => builder,
        };
        let builder = match &self.shape.rust_pair {
            None => builder
                .same("parent")
                .same("note")
                .column("new_c", pair.forward)
                .column_back("old_c", pair.backward),
            Some(rust) => {
                let columns = ["parent", "note", "new_c"];
                let builder = builder.forward_rows(&columns, of_row("old_c", "new_c", rust.forward));
                match rust.backward {
                    Some(back) => {
                        builder.backward_rows(&["parent", "note", "old_c"], of_row("new_c", "old_c", back))
                    }
                    None => builder
                        .column_back("parent", "parent")
                        .column_back("note", "note")
                        .column_back("old_c", pair.backward),
                }
            }
        };
        Ok(self.common(builder).build()?)
    }
}
