use sqlx::PgPool;

use super::BoxError;
use crate::migration::MigrationSpec;

/// Makes a migration's declaration from the service's pool.
pub(super) type Declaration = Box<dyn FnOnce(&PgPool) -> Result<MigrationSpec, BoxError> + Send>;

/// A declaration of a migration: a [`MigrationSpec`], or a function that makes one from the service's pool.
pub trait IntoSpec: sealed::IntoDeclaration {}

impl<T: sealed::IntoDeclaration> IntoSpec for T {}

mod sealed {
    use super::{BoxError, Declaration, MigrationSpec, PgPool};

    pub trait IntoDeclaration {
        fn into_declaration(self) -> Declaration;
    }

    impl IntoDeclaration for MigrationSpec {
        fn into_declaration(self) -> Declaration {
            Box::new(|_| Ok(self))
        }
    }

    impl<F, E> IntoDeclaration for F
    where
        F: FnOnce(PgPool) -> Result<MigrationSpec, E> + Send + 'static,
        E: Into<BoxError>,
    {
        fn into_declaration(self) -> Declaration {
            Box::new(|pool| self(pool.clone()).map_err(Into::into))
        }
    }
}
