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
}
