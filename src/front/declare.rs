use std::fmt::Display;

use sqlx::PgPool;

use crate::migration::MigrationSpec;

/// Makes a migration's declaration once the service's pool is there.
pub(super) type Declaration = Box<dyn FnOnce(&PgPool) -> Result<MigrationSpec, String> + Send>;

/// What declares a migration: a [`MigrationSpec`], or a function of the service's pool that makes one.
pub trait IntoSpec: sealed::IntoDeclaration {}

impl<T: sealed::IntoDeclaration> IntoSpec for T {}

mod sealed {
    use super::Declaration;
    use super::Display;
    use super::MigrationSpec;
    use super::PgPool;

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
        E: Display,
    {
        fn into_declaration(self) -> Declaration {
            Box::new(|pool| self(pool.clone()).map_err(|error| error.to_string()))
        }
    }
}
