//! The last state in a file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use bytes::Bytes;

use super::{Backup, BackupError, seal};

/// The last state in a file, for instances that keep their disk or share a volume.
///
/// The file is written under another name and renamed, so that a crash leaves either the old state or the new one. Only
/// its owner can read it, because strategies may name users.
#[derive(Clone, Debug)]
pub struct FileBackup {
    path: PathBuf,
}

impl FileBackup {
    /// Uses the file at `path`. Its directory must exist and be writable.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Runs `work` on a blocking thread; errors name the path.
    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
    ) -> Result<T, BackupError> {
        let path = self.path.clone();
        let named = move || work(&path).map_err(|error| format!("{}: {error}", path.display()));
        let done = tokio::task::spawn_blocking(named).await.map_err(BackupError::place)?;
        done.map_err(BackupError::place)
    }
}

#[async_trait]
impl Backup for FileBackup {
    async fn load(&self) -> Result<Option<Bytes>, BackupError> {
        self.on_disk(read).await?.map(seal::within).transpose()
    }

    async fn save(&self, state: Bytes) -> Result<(), BackupError> {
        self.on_disk(move |path| write(path, &state)).await
    }
}

fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let mut body = Vec::new();
    // One byte more than the limit, so that a larger file is noticed.
    file.take(seal::LARGEST_SEALED as u64 + 1).read_to_end(&mut body)?;
    Ok(Some(body))
}

fn write(path: &Path, body: &[u8]) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{:016x}", fastrand::u64(..)));
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let written = options
        .open(&beside)
        .and_then(|mut file| file.write_all(body).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written
}
