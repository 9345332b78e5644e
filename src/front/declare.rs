use std::fmt::Display;

use sqlx::PgPool;

use crate::migration::Spec;

/// Makes a migration's declaration once the service's pool is there.
pub(super) type Declaration = Box<dyn FnOnce(&PgPool) -> Result<Spec, String> + Send>;

/// What declares a migration: a [`Spec`], or a function of the service's pool that makes one.
pub trait Declare: sealed::IntoDeclaration {}

impl<T: sealed::IntoDeclaration> Declare for T {}

mod sealed {
    use super::Declaration;
    use super::Display;
    use super::PgPool;
    use super::Spec;

    pub trait IntoDeclaration {
        fn into_declaration(self) -> Declaration;
    }

    impl IntoDeclaration for Spec {
        fn into_declaration(self) -> Declaration {
            Box::new(|_| Ok(self))
        }
    }

    impl<F, E> IntoDeclaration for F
    where
        F: FnOnce(PgPool) -> Result<Spec, E> + Send + 'static,
        E: Display,
    {
        fn into_declaration(self) -> Declaration {
            Box::new(|pool| self(pool.clone()).map_err(|error| error.to_string()))
        }
    }
}
