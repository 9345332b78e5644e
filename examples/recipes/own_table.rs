use cutover::ConfigError;
use cutover::migration::{DualWrite, Error, Migration, MigrationSpec, PhaseRange, PinnedTx, Rows, TableMigration};
use sqlx::PgPool;

fn profiles(pool: PgPool) -> Result<MigrationSpec, ConfigError> {
    let plan = TableMigration::new(pool, "users", "profiles")
        .create("create table profiles (id bigint primary key references users on delete cascade, bio text, avatar text)")
        .only_columns()
        .same("bio")
        .same("avatar")
        .build()?;
    Ok(MigrationSpec::new("profiles", PhaseRange::FULL).plan(plan))
}

/// The statement of each side. The row of `profiles` is created on the first write.
async fn set_bio(profiles: &Migration, pool: &PgPool, id: i64, bio: &str) -> Result<(), Error> {
    let sides = DualWrite::new(
        profiles.clone(),
        "update users set bio = $2 where id = $1",
        "insert into profiles (id, bio) values ($1, $2) on conflict (id) do update set bio = excluded.bio",
    );
    let mut tx = profiles.begin(pool).await?;
    let set = async |statement: &&'static str, tx: &mut PinnedTx| {
        sqlx::query(*statement).bind(id).bind(bio).execute(&mut **tx).await?;
        Ok::<_, Error>(())
    };
    sides.write_with(&mut tx, Rows::one(&id), set, set).await?;
    tx.commit().await
}
