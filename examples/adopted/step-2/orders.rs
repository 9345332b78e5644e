//! The table of orders. `sqlx migrate run` makes it, from the folder `migrations`.

use sqlx::{PgConnection, PgPool, Postgres, Transaction};

#[derive(Clone)]
pub(crate) struct Orders {
    pool: PgPool,
}

impl Orders {
    pub(crate) fn new(pool: PgPool) -> Self {
        Self { pool }
    }

    pub(crate) async fn begin(&self) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
        self.pool.begin().await
    }

    pub(crate) async fn add(&self, tx: &mut PgConnection, status: &str) -> Result<i64, sqlx::Error> {
        let insert = "insert into orders (old_status) values (upper($1)) returning id";
        sqlx::query_scalar(insert).bind(status).fetch_one(tx).await
    }

    pub(crate) async fn set(&self, tx: &mut PgConnection, id: i64, status: &str) -> Result<(), sqlx::Error> {
        let update = "update orders set old_status = upper($2) where id = $1";
        sqlx::query(update).bind(id).bind(status).execute(tx).await?;
        Ok(())
    }

    pub(crate) async fn status(&self, id: i64) -> Result<String, sqlx::Error> {
        let select = "select lower(old_status) from orders where id = $1";
        sqlx::query_scalar(select).bind(id).fetch_one(&self.pool).await
    }
}
