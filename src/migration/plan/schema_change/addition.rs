//! The constraints that a change adds, and their SQL.

use crate::migration::catalog::quote;
use crate::migration::schema::Index;

/// A constraint that the change adds. Names are those of the catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Addition {
    NotNull { column: String },
    Check { name: String, expression: String },
    Unique { name: String, columns: Vec<String> },
    ForeignKey(ForeignKey),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ForeignKey {
    pub(super) name: String,
    pub(super) columns: Vec<String>,
    /// Quoted.
    pub(super) table: String,
    pub(super) referenced: Vec<String>,
    /// What follows the referenced columns, for example `on delete cascade`.
    pub(super) rest: String,
}

pub(super) fn list(columns: &[String]) -> String {
    columns.iter().map(|column| quote(column)).collect::<Vec<_>>().join(", ")
}

impl Addition {
    /// The constraint's name. That of a `NOT NULL` is of the check through which the column becomes `NOT NULL`; it carries the
    /// migration's id and the addition's number.
    pub(super) fn name(&self, id: &str, number: usize) -> String {
        match self {
            Addition::NotNull { .. } => format!("cutover_{id}_not_null_{number}"),
            Addition::Check { name, .. } | Addition::Unique { name, .. } => name.clone(),
            Addition::ForeignKey(key) => key.name.clone(),
        }
    }

    pub(super) fn columns(&self) -> &[String] {
        match self {
            Addition::NotNull { column } => std::slice::from_ref(column),
            Addition::Check { .. } => &[],
            Addition::Unique { columns, .. } => columns,
            Addition::ForeignKey(key) => &key.columns,
        }
    }

    /// What it is, for people.
    pub(super) fn text(&self) -> String {
        match self {
            Addition::NotNull { column } => format!("NOT NULL of column {}", quote(column)),
            Addition::Check { name, expression } => format!("check {} ({expression})", quote(name)),
            Addition::Unique { name, columns } => {
                format!("unique constraint {} ({})", quote(name), list(columns))
            }
            Addition::ForeignKey(key) => format!("foreign key {} ({})", quote(&key.name), key.definition()),
        }
    }

    /// The statement that adds it to `table` (quoted) without a check of the rows, under this name. `None` for a unique
    /// constraint, which needs its index first.
    pub(super) fn add(&self, table: &str, name: &str) -> Option<String> {
        let what = match self {
            Addition::NotNull { column } => format!("check ({} is not null)", quote(column)),
            // The expression may end in a comment.
            Addition::Check { expression, .. } => format!("check ({expression}\n)"),
            Addition::ForeignKey(key) => key.definition(),
            Addition::Unique { .. } => return None,
        };
        Some(format!("alter table {table} add constraint {} {what} not valid", quote(name)))
    }

    /// The index of a unique constraint.
    pub(super) fn index(&self) -> Option<Index> {
        match self {
            Addition::Unique { name, columns } => {
                Some(Index::new(name, true, &format!("({})", list(columns))))
            }
            _ => None,
        }
    }

    /// The statements that are left to do when the constraint is in force: there is no way back after them.
    pub(super) fn complete(&self, table: &str, name: &str, is_partitioned: bool) -> Vec<String> {
        let name = quote(name);
        match self {
            Addition::NotNull { column } => vec![
                format!("alter table {table} alter column {} set not null", quote(column)),
                format!("alter table {table} drop constraint if exists {name}"),
            ],
            // The server has no such statement for a partitioned table, whose index does the same.
            Addition::Unique { .. } if !is_partitioned => {
                vec![format!("alter table {table} add constraint {name} unique using index {name}")]
            }
            _ => Vec::new(),
        }
    }

    /// What the constraint demands of a row, as an expression over a row that is called `cutover_row`; `None` where that needs
    /// other rows of the table, or holds at the end of the transaction only.
    pub(super) fn expression(&self) -> Option<String> {
        match self {
            Addition::Check { expression, .. } => Some(expression.clone()),
            Addition::ForeignKey(key) if !key.rest.to_lowercase().contains("deferr") => Some(key.demands()),
            _ => None,
        }
    }

    /// A condition over the row `new` under which the constraint refuses it, where a writer's row alone tells. `check`: the
    /// expression as a `select … as v0` over the row `cutover_row`, without its `from`.
    pub(super) fn forbids(&self, check: Option<&str>) -> Option<String> {
        match self {
            Addition::NotNull { column } => Some(format!("new.{} is null", quote(column))),
            _ => self.expression().map(|expression| match check {
                Some(select) => {
                    format!("(select not v0 from ({select} from (select new.*) as cutover_row) as judged)")
                }
                None => format!("not ({expression})"),
            }),
        }
    }

    /// A query of the rows of `table` (quoted) that violate it: how many, at most [`MANY`], and the first five. `key`: an
    /// expression of text that tells which row it is.
    pub(super) fn violations(&self, table: &str, key: &str) -> String {
        let rows = match self {
            Addition::NotNull { column } => {
                format!("select {key} as what from {table} where {} is null", quote(column))
            }
            Addition::Check { expression, .. } => {
                format!("select {key} as what from {table} where not ({expression}\n)")
            }
            Addition::Unique { columns, .. } => {
                let columns: Vec<String> = columns.iter().map(|column| quote(column)).collect();
                let texts: Vec<String> = columns.iter().map(|column| format!("{column}::text")).collect();
                let set: Vec<String> = columns.iter().map(|column| format!("{column} is not null")).collect();
                format!(
                    "select concat_ws(', ', {}) as what from {table} where {} group by {} having count(*) > 1",
                    texts.join(", "),
                    set.join(" and "),
                    columns.join(", ")
                )
            }
            Addition::ForeignKey(foreign) => {
                let set: Vec<String> = foreign
                    .columns
                    .iter()
                    .map(|column| format!("{table}.{} is not null", quote(column)))
                    .collect();
                let equal: Vec<String> = foreign
                    .columns
                    .iter()
                    .zip(&foreign.referenced)
                    .map(|(own, other)| format!("referenced.{} = {table}.{}", quote(other), quote(own)))
                    .collect();
                format!(
                    "select {key} as what from {table} where {} and not exists (select from {} as referenced where {})",
                    set.join(" and "),
                    foreign.table,
                    equal.join(" and ")
                )
            }
        };
        format!(
            "select count(*), coalesce((array_agg(what))[1:5], '{{}}')::text[] from ({rows} limit {MANY}) as found"
        )
    }
}

/// A check stops counting after this many violating rows.
pub(super) const MANY: i64 = 1000;

impl ForeignKey {
    /// That the row refers to another one, or to none.
    fn demands(&self) -> String {
        let own = |column: &String| format!("cutover_row.{}", quote(column));
        let unset: Vec<String> =
            self.columns.iter().map(|column| format!("{} is null", own(column))).collect();
        let equal: Vec<String> = self
            .columns
            .iter()
            .zip(&self.referenced)
            .map(|(column, other)| format!("referenced.{} = {}", quote(other), own(column)))
            .collect();
        format!(
            "{} or exists (select from {} as referenced where {})",
            unset.join(" or "),
            self.table,
            equal.join(" and ")
        )
    }

    pub(super) fn definition(&self) -> String {
        self.definition_to(&self.table)
    }

    /// The same with a reference to another table.
    pub(super) fn definition_to(&self, table: &str) -> String {
        let rest = if self.rest.is_empty() { String::new() } else { format!(" {}", self.rest) };
        format!(
            "foreign key ({}) references {} ({}){rest}",
            list(&self.columns),
            table,
            list(&self.referenced)
        )
    }

    /// The statement that adds it to a partitioned table whose partitions have it already, so that no row is checked.
    pub(super) fn add_to_parent(&self, table: &str) -> String {
        format!("alter table {table} add constraint {} {}", quote(&self.name), self.definition())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_quote_names_and_do_not_look_at_rows() {
        let key = Addition::ForeignKey(ForeignKey {
            name: "to".into(),
            columns: vec!["a".into(), "b".into()],
            table: "\"app\".\"other\"".into(),
            referenced: vec!["x".into(), "y".into()],
            rest: "on delete cascade".into(),
        });
        assert_eq!(
            key.add("\"t\"", "to").as_deref(),
            Some(
                "alter table \"t\" add constraint \"to\" foreign key (\"a\", \"b\") references \"app\".\"other\" \
                 (\"x\", \"y\") on delete cascade not valid"
            )
        );
        let unique = Addition::Unique { name: "u".into(), columns: vec!["a".into()] };
        assert_eq!(unique.add("\"t\"", "u"), None);
        assert_eq!(unique.complete("\"t\"", "u", true), Vec::<String>::new());
    }
}
