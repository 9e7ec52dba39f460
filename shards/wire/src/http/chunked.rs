//! Chunked bodies (RFC 9112, section 7.1), decoded when the last chunk is there.
//!
//! Stricter than httparse's reader of chunk sizes, which takes an empty size for 0: a size is 1 to 16 hex digits,
//! every line ends in CR LF, and extensions and trailers are skipped within bounds.
//!
//! Invariant: how much a client may send is bounded by the body limit, framing included.

/// Longest chunk-size line with its extensions.
const SIZE_LINE_BYTES_MAX: usize = 256;
/// Longest trailer section.
const TRAILER_BYTES_MAX: usize = 8192;
/// A one-byte chunk takes six: framing may cost as much as the body limit and this much, then it is abuse.
const FRAMING_BYTES_MAX: usize = 64 * 1024;

/// What stands at the start of the bytes behind a head.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Chunks {
    /// At least so many bytes are wanted.
    Incomplete { needed: usize },
    /// The body, and where it ends in the bytes.
    Whole { end: usize, body: Vec<u8> },
    /// The chunks so far announce more than is allowed.
    TooLarge,
    /// What is wrong.
    Malformed(&'static str),
}

/// Walks the sizes first and copies only when all is there: a body that trickles in is not copied again each time.
pub(super) fn decode(bytes: &[u8], body_bytes_max: usize) -> Chunks {
    let mut total = 0;
    let end = match walk(bytes, body_bytes_max, |chunk| total += chunk.len()) {
        Ok(end) => end,
        Err(other) => return other,
    };
    let mut body = Vec::with_capacity(total);
    match walk(bytes, body_bytes_max, |chunk| body.extend_from_slice(chunk)) {
        Ok(_) => Chunks::Whole { end, body },
        Err(other) => other,
    }
}

fn walk(bytes: &[u8], body_bytes_max: usize, mut each: impl FnMut(&[u8])) -> Result<usize, Chunks> {
    let mut at = 0;
    let mut total: usize = 0;
    loop {
        if at
            > body_bytes_max
                .saturating_mul(2)
                .saturating_add(FRAMING_BYTES_MAX)
        {
            return Err(Chunks::TooLarge);
        }
        let (size, line_bytes) = size_line(&bytes[at..]).map_err(|stop| stop.from(bytes.len()))?;
        at += line_bytes;
        if size == 0 {
            return trailer(&bytes[at..])
                .map(|trailer_bytes| at + trailer_bytes)
                .map_err(|stop| stop.from(bytes.len()));
        }
        let size = usize::try_from(size)
            .ok()
            .filter(|size| *size <= body_bytes_max - total)
            .ok_or(Chunks::TooLarge)?;
        let Some((data, rest)) = bytes[at..].split_at_checked(size) else {
            return Err(Chunks::Incomplete {
                needed: at + size + 2,
            });
        };
        match rest {
            [b'\r', b'\n', ..] => {}
            [] | [b'\r'] => {
                return Err(Chunks::Incomplete {
                    needed: at + size + 2,
                });
            }
            _ => return Err(Chunks::Malformed("chunk does not end where its size says")),
        }
        each(data);
        total += size;
        at += size + 2;
    }
}

/// Why a line could not be read.
enum Stop {
    More,
    Malformed(&'static str),
}

impl Stop {
    fn from(self, have: usize) -> Chunks {
        match self {
            Stop::More => Chunks::Incomplete { needed: have + 1 },
            Stop::Malformed(what) => Chunks::Malformed(what),
        }
    }
}

/// (size, bytes of the line with its end)
fn size_line(bytes: &[u8]) -> Result<(u64, usize), Stop> {
    let window = &bytes[..bytes.len().min(SIZE_LINE_BYTES_MAX)];
    let Some(newline) = memchr::memchr(b'\n', window) else {
        return Err(if window.len() == SIZE_LINE_BYTES_MAX {
            Stop::Malformed("chunk-size line is over 256 bytes")
        } else {
            Stop::More
        });
    };
    let Some(line) = window[..newline].strip_suffix(b"\r") else {
        return Err(Stop::Malformed("chunk-size line does not end in CR LF"));
    };
    let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
    if digits == 0 || digits > 16 {
        return Err(Stop::Malformed("chunk size is not 1 to 16 hex digits"));
    }
    let extension = line[digits..].trim_ascii_start();
    let extension_is_good = extension.is_empty() || extension[0] == b';';
    if !extension_is_good || extension.contains(&b'\r') {
        return Err(Stop::Malformed("chunk size is followed by something else"));
    }
    let size = line[..digits].iter().fold(0u64, |size, digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            _ => (digit | 0x20) - b'a' + 10,
        };
        size << 4 | u64::from(value)
    });
    Ok((size, newline + 1))
}

/// Bytes of the trailer section with the empty line that ends it. What it says is not used.
fn trailer(bytes: &[u8]) -> Result<usize, Stop> {
    let window = &bytes[..bytes.len().min(TRAILER_BYTES_MAX)];
    let mut fields = [httparse::EMPTY_HEADER; 16];
    match httparse::parse_headers(window, &mut fields) {
        Ok(httparse::Status::Complete((end, _))) => Ok(end),
        Ok(httparse::Status::Partial) if window.len() < TRAILER_BYTES_MAX => Err(Stop::More),
        Ok(httparse::Status::Partial) => Err(Stop::Malformed("trailer section is over 8 KiB")),
        Err(_) => Err(Stop::Malformed("trailer section is not header fields")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_decode_at_every_split_or_ask_for_more() {
        let text = b"4\r\nWiki\r\n6;name=\"v\"\r\npedia \r\nE \r\nin \r\n\r\nchunks.\r\n0\r\nX: y\r\n\r\nGET ";
        let whole = text.len() - 4;
        for split in 0..=text.len() {
            let found = decode(&text[..split], 100);
            if split < whole {
                assert!(
                    matches!(found, Chunks::Incomplete { needed } if needed > split && needed <= whole),
                    "{split}: {found:?}"
                );
            } else {
                let body = b"Wikipedia in \r\n\r\nchunks.".to_vec();
                assert_eq!(found, Chunks::Whole { end: whole, body });
            }
        }
    }

    #[test]
    fn hostile_chunks_are_refused() {
        for (text, what) in [
            ("\r\n\r\n", "no size"),
            (";x\r\n\r\n", "no size but an extension"),
            ("0x1\r\na\r\n0\r\n\r\n", "prefix"),
            ("+1\r\na\r\n0\r\n\r\n", "sign"),
            ("1\na\r\n0\r\n\r\n", "bare line feed"),
            ("1 1\r\na\r\n0\r\n\r\n", "two sizes"),
            ("1\r\nab\r\n0\r\n\r\n", "data beyond the size"),
            ("1;\rx\r\na\r\n0\r\n\r\n", "carriage return in an extension"),
            ("00000000000000001\r\na\r\n0\r\n\r\n", "17 digits"),
            ("0\r\n: y\r\n\r\n", "trailer without a name"),
        ] {
            let found = decode(text.as_bytes(), 100);
            assert!(matches!(found, Chunks::Malformed(_)), "{what}: {found:?}");
        }
        for text in ["65\r\n", "ffffffffffffffff\r\n", "64\r\n", "FFFFFFFF\r\n"] {
            let found = decode(text.as_bytes(), 99);
            assert_eq!(found, Chunks::TooLarge, "{text:?}");
        }
    }

    #[test]
    fn framing_is_bounded_too() {
        let text =
            "1;xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\r\na\r\n".repeat(2000);
        assert_eq!(decode(text.as_bytes(), 10_000), Chunks::TooLarge);
    }
}
