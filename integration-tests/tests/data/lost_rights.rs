//! What an operator does to the role of a service whose migration is running: the instance says why it does nothing.

use std::time::Duration;

use cutover::fleet::FleetOptions;
use cutover::migration::{MigrationSpec, PhaseRange};

use crate::world::{Fleet, Outcome, World};

/// A database whose table belongs to a role of its own, as the superuser and as that role see it. The role has no sessions of
/// its own besides those of its instance.
struct Service {
    admin: World,
    world: World,
    role: String,
}

impl Service {
    async fn new() -> Outcome<Self> {
        let admin = World::new(20).await?;
        let (world, role) = admin.as_owner().await?;
        Ok(Self { admin, world, role })
    }

    async fn instance(&self, world: &World, name: &str) -> Outcome<Fleet> {
        let spec = MigrationSpec::new("status", PhaseRange::FULL)
            .plan(self.world.describe().build()?)
            .external_write_quiet_period(Duration::from_millis(300));
        let (lease, renew_every) = (Duration::from_secs(2), Duration::from_millis(400));
        world.join(vec![spec], name, FleetOptions { lease, renew_every, ..FleetOptions::default() }).await
    }

    /// Changes the role, and makes its sessions begin again.
    async fn change(&self, change: &str) -> Outcome {
        self.admin.external(&change.replace("ROLE", &self.role)).await?;
        let sessions = "select pg_terminate_backend(pid) from pg_stat_activity where usename = $1";
        sqlx::query(sessions).bind(&self.role).execute(&self.admin.pool).await?;
        Ok(())
    }

    async fn driver(&self) -> Outcome<Option<String>> {
        let query = "select i.name from cutover.migrations m join cutover.instances i on i.id = m.driver \
            where m.name = 'status' and m.driver_until > clock_timestamp()";
        Ok(sqlx::query_scalar(query).fetch_optional(&self.admin.pool).await?)
    }
}

#[tokio::test]
async fn a_role_that_lost_a_right_is_told_with_what_gives_it_back() -> Outcome {
    let service = Service::new().await?;
    let a = service.instance(&service.world, "a").await?;
    service.admin.go("expand").await?;
    let role = &service.role;
    for (change, told, undo) in [
        (
            "alter role ROLE set default_transaction_read_only = on",
            format!("alter role {role} reset default_transaction_read_only"),
            "alter role ROLE reset default_transaction_read_only",
        ),
        ("alter role ROLE nologin", format!("alter role \\\"{role}\\\" login"), "alter role ROLE login"),
        (
            "alter role ROLE connection limit 0",
            format!("alter role \\\"{role}\\\" connection limit -1"),
            "alter role ROLE connection limit -1",
        ),
        (
            "alter role ROLE set statement_timeout = '1ms'",
            "raise the role's statement_timeout".to_owned(),
            "alter role ROLE reset statement_timeout",
        ),
    ] {
        service.change(change).await?;
        a.says("lease expired").await.map_err(|error| format!("{change}: {error}"))?;
        a.says(&told).await.map_err(|error| format!("{change}: {error}"))?;
        service.change(undo).await?;
        let is_back = async || a.migration.current().is_some();
        service.admin.until(&format!("the return after {undo}"), is_back).await?;
    }
    service.admin.go("backfill").await
}

#[tokio::test]
async fn an_instance_that_can_write_takes_over() -> Outcome {
    let service = Service::new().await?;
    let a = service.instance(&service.world, "a").await?;
    service.admin.go("expand").await?;
    let _b = service.instance(&service.admin, "b").await?;
    service
        .admin
        .until("a drives", async || service.driver().await.is_ok_and(|name| name.as_deref() == Some("a")))
        .await?;
    service.change("alter role ROLE set default_transaction_read_only = on").await?;
    service
        .admin
        .until("b drives", async || service.driver().await.is_ok_and(|name| name.as_deref() == Some("b")))
        .await?;
    a.says("transactions of role").await?;
    Ok(())
}

#[tokio::test]
async fn a_schema_that_the_role_may_not_use_is_named() -> Outcome {
    let service = Service::new().await?;
    let _a = service.instance(&service.world, "a").await?;
    service.admin.go("verify").await?;
    let revoke = format!("revoke usage on schema public from public, {}", service.role);
    service.admin.external(&revoke).await?;
    let grant = format!("grant usage on schema public to {}", service.role);
    service.admin.is_held("ramp", &format!("`{grant}`")).await?;
    service.admin.external(&grant).await?;
    service.admin.go("ramp").await
}

/// They run with the rights of the ledger's owner.
#[tokio::test]
async fn no_other_role_may_attach_the_triggers_of_the_ledger() -> Outcome {
    let service = Service::new().await?;
    let _a = service.instance(&service.admin, "a").await?;
    let functions: Vec<String> = sqlx::query_scalar(
        "select p.oid::regprocedure::text from pg_proc p join pg_namespace n on n.oid = p.pronamespace \
         where n.nspname = 'cutover' and p.prorettype = 'trigger'::regtype and p.prosecdef order by 1",
    )
    .fetch_all(&service.admin.pool)
    .await?;
    assert!(functions.len() >= 4, "{functions:?}");
    for function in functions {
        let attach = format!(
            "create temp table own (id integer, migration_id integer, phase text); \
             create trigger own after insert on own for each row execute function {function}"
        );
        let outcome = service.world.external(&attach).await;
        assert!(outcome.is_err_and(|error| error.to_string().contains("permission denied")), "{function}");
    }
    Ok(())
}
