use cutover::migration::{Error, Migration};
use sqlx::{AssertSqlSafe, PgPool};

async fn later(starts: &Migration, pool: &PgPool, id: i64, minutes: i32) -> Result<(), Error> {
    let mut tx = starts.begin(pool).await?;
    let column = starts.columns(&tx)?;
    // This statement needs no value of either type.
    let update = format!("update meetings set {column} = {column} + make_interval(mins => $2) where id = $1");
    sqlx::query(AssertSqlSafe(update)).bind(id).bind(minutes).execute(&mut *tx).await?;
    tx.commit().await
}
