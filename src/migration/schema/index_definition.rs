use crate::migration::catalog::quote;

/// An index on the new side.
#[derive(Debug, Clone)]
pub(crate) struct Index {
    /// As the catalog names it.
    pub(crate) name: String,
    pub(crate) is_unique: bool,
    /// What follows the table's name.
    pub(crate) on: String,
}

impl Index {
    pub(crate) fn new(name: &str, is_unique: bool, on: &str) -> Self {
        Self { name: name.to_owned(), is_unique, on: on.trim().to_owned() }
    }

    /// The statement that builds it on `table`, a quoted name.
    pub(crate) fn create(&self, table: &str) -> String {
        let unique = if self.is_unique { "unique " } else { "" };
        format!("create {unique}index concurrently {} on {table} {}", quote(&self.name), self.on)
    }

    /// The statement that creates it on a partitioned table without its partitions.
    pub(crate) fn create_on_only(&self, table: &str) -> String {
        self.create_blocking(&format!("only {table}"))
    }

    /// The statement that builds it on `table` and blocks writers meanwhile; for empty tables.
    pub(crate) fn create_blocking(&self, table: &str) -> String {
        self.create(table).replacen(" concurrently", "", 1)
    }
}
