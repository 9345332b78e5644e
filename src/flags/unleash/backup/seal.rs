//! The stored form of a state: a header line with format, length and checksum, followed by the state.

use bytes::Bytes;

use super::BackupError;
use crate::flags::names::checksum;

/// Larger than any realistic set of flags. The limit keeps an endless answer from filling memory or a table.
pub(in crate::flags::unleash) const LARGEST_STATE: usize = 16 << 20;

/// Includes space for the header line.
pub(super) const LARGEST_SEALED: usize = LARGEST_STATE + 64;

const FORMAT: &str = "cutover-flags/1";

/// Adds the header line. A truncated or changed state can still be valid JSON, so length and checksum are needed.
pub(in crate::flags::unleash) fn seal(state: &[u8]) -> Bytes {
    let mut sealed = format!("{FORMAT} {} {:016x}\n", state.len(), checksum(state)).into_bytes();
    sealed.extend_from_slice(state);
    sealed.into()
}

pub(in crate::flags::unleash) fn open(sealed: &Bytes) -> Result<Bytes, BackupError> {
    let damaged = |text: String| BackupError::Damaged(text);
    let unknown = || damaged(format!("it does not begin with the line `{FORMAT} <length> <checksum>`"));
    let end = sealed.iter().take(64).position(|byte| *byte == b'\n').ok_or_else(unknown)?;
    let state = sealed.slice(end + 1..);
    let line = std::str::from_utf8(&sealed[..end]).map_err(|_| unknown())?;
    let [FORMAT, length, sum] = line.split(' ').collect::<Vec<_>>()[..] else {
        return Err(unknown());
    };
    if length != state.len().to_string() {
        return Err(damaged(format!("its header says {length} bytes, but it has {}", state.len())));
    }
    if sum != format!("{:016x}", checksum(&state)) {
        return Err(damaged("its checksum does not match".to_owned()));
    }
    Ok(state)
}

/// The stored bytes, or an error if there are more than the limit.
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
    fn a_truncated_or_changed_state_is_refused() {
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
