//! How a state is kept: a line that says what follows, and the state.

use bytes::Bytes;

use super::BackupError;
use crate::flags::names::checksum;

/// More than any set of flags has; an endless answer must fill neither the memory nor a table.
pub(in crate::flags::unleash) const LARGEST_STATE: usize = 16 << 20;

/// Room for the line.
pub(super) const LARGEST_SEALED: usize = LARGEST_STATE + 64;

const FORMAT: &str = "cutover-flags/1";

/// With its length and checksum before it: a state that was cut off or overwritten can still be
/// good JSON.
pub(in crate::flags::unleash) fn seal(state: &[u8]) -> Bytes {
    let mut sealed = format!("{FORMAT} {} {:016x}\n", state.len(), checksum(state)).into_bytes();
    sealed.extend_from_slice(state);
    sealed.into()
}

pub(in crate::flags::unleash) fn open(sealed: &Bytes) -> Result<Bytes, BackupError> {
    let damaged = |text: String| BackupError::Damaged(text);
    let unknown = || damaged(format!("it does not begin with a line `{FORMAT} length checksum`"));
    let end = sealed.iter().take(64).position(|byte| *byte == b'\n').ok_or_else(unknown)?;
    let state = sealed.slice(end + 1..);
    let line = std::str::from_utf8(&sealed[..end]).map_err(|_| unknown())?;
    let [FORMAT, length, sum] = line.split(' ').collect::<Vec<_>>()[..] else {
        return Err(unknown());
    };
    if length != state.len().to_string() {
        return Err(damaged(format!("{length} bytes were kept, {} are there", state.len())));
    }
    if sum != format!("{:016x}", checksum(&state)) {
        return Err(damaged("its checksum is wrong".to_owned()));
    }
    Ok(state)
}

/// What was kept, if it is not more than may be.
pub(super) fn within(sealed: Vec<u8>) -> Result<Bytes, BackupError> {
    if sealed.len() > LARGEST_SEALED { Err(too_large(sealed.len() as u64)) } else { Ok(sealed.into()) }
}

pub(super) fn too_large(bytes: u64) -> BackupError {
    BackupError::TooLarge { bytes, limit: LARGEST_STATE }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_kept_is_opened() {
        let state = Bytes::from_static(br#"{"version":2,"features":[]}"#);
        let sealed = seal(&state);
        assert_eq!(open(&sealed).unwrap(), state);
        for end in 0..sealed.len() {
            assert!(open(&sealed.slice(..end)).is_err(), "the first {end} bytes");
        }
        for at in 0..sealed.len() {
            let mut changed = sealed.to_vec();
            changed[at] ^= 1;
            assert!(open(&changed.into()).is_err(), "byte {at}");
        }
        assert!(open(&Bytes::from_static(b"<html>\n")).is_err());
        assert!(open(&Bytes::from_static(b"cutover-flags/2 0 cbf29ce484222325\n")).is_err());
    }
}
