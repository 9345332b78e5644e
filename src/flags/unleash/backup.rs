//! The last state in a file.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    path::Path,
};

use bytes::Bytes;

pub(super) fn read(path: &Path) -> Option<Bytes> {
    match fs::read(path) {
        Ok(body) => Some(body.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "no backup of the flags could be read");
            None
        }
    }
}

/// Replaces the file in one step, so that a crash leaves the old state or the new one.
pub(super) fn write(path: &Path, body: &[u8]) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}", std::process::id()));
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
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
