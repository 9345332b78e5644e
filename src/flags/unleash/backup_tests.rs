//! The last known state at a start.

use std::sync::Arc;

use bytes::Bytes;

use super::backup::{self, Backup, BackupError, FileBackup};
use super::options::UnleashOptions;
use super::test_server::{A, A_DEFAULT_ON, LIMIT, Reply, Server, features, metrics, until};
use crate::flags::{Flags, Subject, Switch};

#[tokio::test]
async fn a_restart_during_an_outage_begins_with_the_last_state() {
    let server = Server::start(features(&[("a", true, "")])).await;
    let path = std::env::temp_dir().join(format!("flags-backup-{}", std::process::id()));
    let options =
        UnleashOptions { backup: Some(Arc::new(FileBackup::new(path.clone()))), ..server.options() };
    let flags = Flags::unleash(options.clone()).unwrap();
    let saved = metrics(&flags);
    until("saved", || saved(r#"cutover_flag_backups_total{result="saved"} 1"#)).await;
    let snapshot = flags.snapshot();
    flags.close().await;

    server.reply(Reply::Hang);
    let again = Flags::unleash(options.clone()).unwrap();
    let elsewhere = Flags::unleash(UnleashOptions { bootstrap: snapshot, ..server.options() }).unwrap();
    for flags in [&again, &elsewhere] {
        tokio::time::timeout(LIMIT, flags.ready()).await.unwrap();
        assert!(!flags.is_fresh());
        assert!(flags.decide(&A, &Subject::new()));
        assert!(matches!(flags.switch("a"), Switch::Unknown(_)));
    }
    let restored = metrics(&again);
    // It is counted after it is in use.
    until("restored", || restored(r#"cutover_flag_backups_total{result="restored"} 1"#)).await;

    // Valid JSON, but not the stored state.
    let kept = std::fs::read_to_string(&path).unwrap();
    for damaged in [kept.replace(r#""enabled":true"#, r#""enabled":null"#), kept[1..].to_owned(), "{}".into()]
    {
        std::fs::write(&path, damaged).unwrap();
        let flags = Flags::unleash(options.clone()).unwrap();
        let refused = metrics(&flags);
        until("refused", || refused(r#"cutover_flag_backups_total{result="refused"} 1"#)).await;
        assert!(!flags.is_ready());
        assert!(flags.decide(&A_DEFAULT_ON, &Subject::new()));
    }
    std::fs::remove_file(path).unwrap();
}

/// A backup whose load waits for a state from the test, and whose save never ends.
#[derive(Debug)]
struct Slow(tokio::sync::Mutex<tokio::sync::mpsc::Receiver<Bytes>>);

#[async_trait::async_trait]
impl Backup for Slow {
    async fn load(&self) -> Result<Option<Bytes>, BackupError> {
        Ok(self.0.lock().await.recv().await)
    }

    async fn save(&self, _: Bytes) -> Result<(), BackupError> {
        std::future::pending().await
    }
}

#[tokio::test]
async fn a_slow_backup_neither_delays_nor_overrides_the_server() {
    let server = Server::start(features(&[("a", true, "")])).await;
    let (give, take) = tokio::sync::mpsc::channel(1);
    let backup: Arc<dyn Backup> = Arc::new(Slow(tokio::sync::Mutex::new(take)));
    let flags = Flags::unleash(UnleashOptions {
        backup: Some(backup),
        time_limit: LIMIT,
        stale_after: LIMIT * 3,
        ..server.options()
    })
    .unwrap();
    // The server answers while the backup still loads.
    until("fresh", || flags.is_fresh()).await;
    assert!(flags.decide(&A, &Subject::new()));
    let Reply::Features(off) = features(&[("a", false, "")]) else { unreachable!() };
    give.send(backup::seal(off.as_bytes())).await.unwrap();
    // The channel has a capacity of one, so a free slot means that the backup received the state.
    drop(give.reserve().await.unwrap());
    server.polled_again().await;
    assert!(flags.decide(&A, &Subject::new()));
    // A save that hangs does not delay the end either.
    tokio::time::timeout(LIMIT, flags.close()).await.unwrap();
}
