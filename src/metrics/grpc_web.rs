use super::grpc_status::{UNKNOWN, status_of_code};

/// The longest trailer frame that is kept. A longer one counts as a call without a status.
const MAX_TRAILERS: usize = 16 * 1024;
/// Length of the prefix of each frame: a byte of flags and four bytes of length.
const PREFIX: usize = 5;
/// The flag of a frame that holds trailers.
const TRAILERS: u8 = 0x80;

/// Reads the status of a gRPC-Web call from its response body, which ends with a frame of trailers.
///
/// Format: PROTOCOL-WEB of gRPC. The bodies of `application/grpc-web-text` are that in base64, in which a frame may end
/// with padding before the next one begins.
#[derive(Debug, Default)]
pub(super) struct WebStatus {
    base64: Option<Base64>,
    prefix: Vec<u8>,
    /// Bytes of the current frame that have not come yet.
    left: usize,
    /// The current frame, if it holds trailers.
    trailers: Option<Vec<u8>>,
    status: Option<u16>,
}

impl WebStatus {
    pub(super) fn new(is_text: bool) -> Self {
        Self { base64: is_text.then(Base64::default), ..Self::default() }
    }

    /// The HTTP status that means the same, once the trailers have come.
    pub(super) fn status(&self) -> Option<u16> {
        self.status
    }

    pub(super) fn read(&mut self, bytes: &[u8]) {
        let Some(mut base64) = self.base64.take() else { return self.read_frames(bytes) };
        for byte in bytes {
            let (decoded, length) = base64.push(*byte);
            self.read_frames(&decoded[..length]);
        }
        self.base64 = Some(base64);
    }

    fn read_frames(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.left == 0 {
                let (prefix, rest) = bytes.split_at(bytes.len().min(PREFIX - self.prefix.len()));
                self.prefix.extend_from_slice(prefix);
                bytes = rest;
                let [flags, a, b, c, d] = self.prefix[..] else { return };
                self.prefix.clear();
                self.left = u32::from_be_bytes([a, b, c, d]) as usize;
                self.trailers = (flags == TRAILERS && self.left <= MAX_TRAILERS).then(Vec::new);
                continue;
            }
            let (payload, rest) = bytes.split_at(bytes.len().min(self.left));
            bytes = rest;
            self.left -= payload.len();
            if let Some(trailers) = &mut self.trailers {
                trailers.extend_from_slice(payload);
                if self.left == 0 {
                    self.status = Some(status_of(trailers));
                }
            }
        }
    }
}

/// The status of trailers in the form of HTTP/1 headers.
fn status_of(trailers: &[u8]) -> u16 {
    let code = trailers.split(|byte| *byte == b'\n').find_map(|line| {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let (name, value) = (&line[..colon], &line[colon + 1..]);
        name.trim_ascii().eq_ignore_ascii_case(b"grpc-status").then(|| value.trim_ascii())
    });
    code.map_or(UNKNOWN, status_of_code)
}

/// Decodes base64 four characters at a time.
#[derive(Debug, Default)]
struct Base64 {
    bits: u32,
    characters: u8,
    padding: u8,
}

impl Base64 {
    /// The bytes that this character completes: a buffer, and how much of it is used.
    fn push(&mut self, character: u8) -> ([u8; 3], usize) {
        let value = match character {
            b'A'..=b'Z' => character - b'A',
            b'a'..=b'z' => character - b'a' + 26,
            b'0'..=b'9' => character - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'=' => {
                self.padding += 1;
                0
            }
            _ => return ([0; 3], 0),
        };
        self.bits = self.bits << 6 | u32::from(value);
        self.characters += 1;
        if self.characters < 4 {
            return ([0; 3], 0);
        }
        let [_, decoded @ ..] = self.bits.to_be_bytes();
        let length = 3 - usize::from(self.padding.min(3));
        *self = Self::default();
        (decoded, length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&[flags][..], &length, payload].concat()
    }

    /// Read in pieces of every length.
    fn status(text: bool, body: &[u8]) -> Option<u16> {
        let of = |length: usize| {
            let mut reader = WebStatus::new(text);
            body.chunks(length).for_each(|chunk| reader.read(chunk));
            reader.status()
        };
        let whole = of(body.len());
        (1..body.len()).for_each(|length| assert_eq!(of(length), whole, "{length}"));
        whole
    }

    #[test]
    fn the_status_comes_from_the_trailer_frame() {
        let message = frame(0, b"grpc-status: 13\r\n");
        for (trailers, expected) in [
            ("grpc-status:0\r\n", 200),
            ("grpc-message: no\r\nGrpc-Status: 14\r\n", 503),
            ("grpc-status: many\r\n", 500),
            ("x: y\r\n", 500),
        ] {
            let body = [message.clone(), frame(0, b""), frame(TRAILERS, trailers.as_bytes())].concat();
            assert_eq!(status(false, &body), Some(expected), "{trailers:?}");
        }
        assert_eq!(status(false, &message), None, "a message is not a trailer");
        assert_eq!(status(false, &frame(TRAILERS, b"grpc-status: 5")[..10]), None, "cut short");
    }

    #[test]
    fn text_bodies_are_decoded_with_padding_in_the_middle() {
        // A message of one byte, and the trailers `grpc-status: 5`, each encoded alone.
        let body = b"AAAAAAEK\ngAAAAA5ncnBjLXN0YXR1czogNQ==";
        assert_eq!(status(true, body), Some(404));
        assert_eq!(status(true, b"AAAAAAA=gAAAAA5ncnBjLXN0YXR1czogNQ=="), Some(404));
    }
}
