//! What the server has against a login, and what the command line says to do about it.

use cutover_testkit::Postgres;

use crate::{Outcome, done, execute, refused};

#[tokio::test]
async fn a_refused_login_is_told_with_the_statement_that_lets_it_in() -> Outcome {
    let admin = Postgres::fresh_database().await?;
    let (_, name) = admin.rsplit_once('/').ok_or("a URL")?;
    done(&admin, &["install"], &["installed"]).await;
    let as_role = |role: &str| admin.replace("//postgres@", &format!("//{role}@"));
    let cases = [
        ("", "new_clerk", "create role \"new_clerk\" login".to_owned()),
        ("create role idle_clerk", "idle_clerk", "alter role \"idle_clerk\" login".to_owned()),
        (
            "create role last_clerk login connection limit 0",
            "last_clerk",
            "alter role \"last_clerk\" connection limit -1".to_owned(),
        ),
        (
            "create role far_clerk login; revoke connect on database DATABASE from public",
            "far_clerk",
            format!("grant connect on database \"{name}\" to \"far_clerk\""),
        ),
    ];
    for (set_up, role, statement) in cases {
        execute(&admin, &set_up.replace("DATABASE", name)).await?;
        refused(&as_role(role), &["status"], 3, &[&format!("`{statement}`")]).await;
        execute(&admin, &statement).await?;
        // It may log in, and has no right on the ledger yet.
        let right = format!("permission denied for role {role:?} on schema");
        refused(&as_role(role), &["status"], 3, &[&right]).await;
        execute(&admin, &format!("grant connect on database {name} to public")).await?;
    }
    let elsewhere = Postgres::shared().await?.admin_url();
    execute(&elsewhere, &format!("alter database {name} with allow_connections false")).await?;
    let statement = format!("alter database \"{name}\" with allow_connections true");
    refused(&admin, &["status"], 3, &[&format!("`{statement}`")]).await;
    execute(&elsewhere, &statement).await?;
    done(&admin, &["status"], &["no migration"]).await;
    Ok(())
}

#[tokio::test]
async fn a_missing_right_on_a_table_is_not_taken_for_a_refused_login() -> Outcome {
    let admin = Postgres::fresh_database().await?;
    done(&admin, &["install"], &["installed"]).await;
    execute(
        &admin,
        "create role on_call login; grant usage on schema cutover to on_call; \
         grant select on all tables in schema cutover to on_call",
    )
    .await?;
    execute(&admin, crate::STATE).await?;
    let reader = admin.replace("//postgres@", "//on_call@");
    done(&reader, &["status"], &["shop/status  expand"]).await;
    let said = crate::run(&reader, &["pause", "status"]).await;
    assert_eq!(said.code, 3, "{}", said.err);
    assert!(said.err.contains("install --grant-to"), "{}", said.err);
    assert!(!said.err.contains("grant connect"), "{}", said.err);
    Ok(())
}
