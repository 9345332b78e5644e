//! What a client has done, in a file, so that nothing is lost with a process that is killed.

use std::fs::{File, OpenOptions, read_dir, read_to_string};
use std::io::Write;
use std::path::Path;

use cutover_checker::Recorder;
use rustix::time::{ClockId, clock_gettime};

use crate::world::Outcome;

/// The file of one client, which does one thing after the other.
pub(crate) struct Journal(File);

/// Nanoseconds on a clock that all processes share.
pub(crate) fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}

impl Journal {
    pub(crate) fn new(folder: &Path, client: &str) -> Outcome<Self> {
        Ok(Self(OpenOptions::new().create_new(true).append(true).open(folder.join(client))?))
    }

    /// Before the write is sent.
    pub(crate) fn begin_write(&self, key: u64, value: &str) -> Outcome {
        self.line(&format!("write\t{key}\t{}\t{value}", now()))
    }

    /// `is_written`: the write was acknowledged. Otherwise it certainly never happened.
    pub(crate) fn end_write(&self, is_written: bool) -> Outcome {
        self.line(&if is_written { format!("written\t{}", now()) } else { "refused".to_owned() })
    }

    pub(crate) fn read(&self, key: u64, value: &str, start: u64) -> Outcome {
        self.line(&format!("read\t{key}\t{start}\t{}\t{value}", now()))
    }

    /// In one system call, which the end of the process does not divide.
    fn line(&self, text: &str) -> Outcome {
        Ok((&self.0).write_all(format!("{text}\n").as_bytes())?)
    }
}

/// Gives the journals in this folder to a recorder. Returns the number of clients, and of writes of unknown outcome.
pub(crate) fn collect(folder: &Path, recorder: &Recorder) -> Outcome<(usize, usize)> {
    let (mut clients, mut unknown) = (0, 0);
    for entry in read_dir(folder)? {
        let mut open: Option<(u64, u64, String)> = None;
        for line in read_to_string(entry?.path())?.lines() {
            let parts: Vec<&str> = line.splitn(5, '\t').collect();
            match *parts {
                ["write", key, start, value] => {
                    open = Some((key.parse()?, start.parse()?, value.to_owned()));
                }
                ["written", end] => {
                    let (key, start, value) = open.take().ok_or("a write has begun")?;
                    recorder.write(clients, key, &value, start, Some(end.parse()?));
                }
                ["refused"] => open = None,
                ["read", key, start, end, value] => {
                    recorder.read(clients, key.parse()?, value, start.parse()?, end.parse()?);
                }
                _ => return Err(format!("{line:?} in a journal").into()),
            }
        }
        if let Some((key, start, value)) = open {
            recorder.write(clients, key, &value, start, None);
            unknown += 1;
        }
        clients += 1;
    }
    Ok((clients, unknown))
}
