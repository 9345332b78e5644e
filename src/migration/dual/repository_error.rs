use std::error::Error as StdError;

/// The error type of a repository: any [`std::error::Error`], and the types that only wrap one, such as `anyhow::Error`,
/// `eyre::Report` and `Box<dyn Error + Send + Sync>`.
///
/// It is implemented for all of these. `Kind` tells the two groups apart and is inferred.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be the error type of a repository",
    label = "not a `std::error::Error`, and not one that can be borrowed from it",
    note = "use a type that implements `std::error::Error`, `anyhow::Error`, `eyre::Report` or `Box<dyn Error + Send + Sync>`"
)]
pub trait RepositoryError<Kind>: 'static {
    /// The error, to look at its sources.
    #[doc(hidden)]
    fn as_error(&self) -> &(dyn StdError + 'static);
}

/// The group of [`RepositoryError`]s that are a `std::error::Error`.
#[doc(hidden)]
#[derive(Debug)]
pub enum IsError {}

/// The group of [`RepositoryError`]s from which one can be borrowed.
#[doc(hidden)]
#[derive(Debug)]
pub enum HoldsError {}

impl<E: StdError + 'static> RepositoryError<IsError> for E {
    fn as_error(&self) -> &(dyn StdError + 'static) {
        self
    }
}

impl<E: AsRef<dyn StdError + Send + Sync> + 'static> RepositoryError<HoldsError> for E {
    fn as_error(&self) -> &(dyn StdError + 'static) {
        self.as_ref()
    }
}
