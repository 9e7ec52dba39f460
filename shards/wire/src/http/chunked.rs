//! Chunked bodies (RFC 9112, section 7.1): measured as they arrive, decoded when the last chunk is there.
//!
//! Stricter than httparse's reader of chunk sizes, which takes an empty size for 0: a size is 1 to 16 hex digits,
//! every line ends in CR LF, and extensions and trailers are skipped within bounds.
//!
//! Invariants: how much a client may send is bounded by the body limit, framing included. What was measured is not looked
//! at again before the body is whole; what is found is the same as if all bytes had been there at once.

/// Longest chunk-size line with its extensions.
const SIZE_LINE_BYTES_MAX: usize = 256;
/// Longest trailer section.
const TRAILER_BYTES_MAX: usize = 8192;
/// A one-byte chunk takes six: framing may cost as much as the body limit and this much, then it is abuse.
const FRAMING_BYTES_MAX: usize = 64 * 1024;

/// Why a body is not whole.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NotWhole {
    /// At least so many bytes are wanted.
    Incomplete { needed: usize },
    /// The chunks so far announce more than is allowed.
    TooLarge,
    /// What is wrong.
    Malformed(&'static str),
}

/// How far a body has been measured: whole chunks only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Measured {
    /// Where the next chunk starts.
    at: usize,
    /// Decoded bytes before it.
    body_bytes: usize,
}

/// Where the body ends in `bytes`. Goes on from `measured`, and takes it along.
pub(super) fn measure(
    bytes: &[u8],
    body_bytes_max: usize,
    measured: &mut Measured,
) -> Result<usize, NotWhole> {
    walk(bytes, body_bytes_max, measured, |_| ())
}

/// The decoded bytes of a body that was measured to its end.
pub(super) fn decode(bytes: &[u8], body_bytes_max: usize, measured: &Measured) -> Vec<u8> {
    let mut body = Vec::with_capacity(measured.body_bytes);
    let walked = walk(bytes, body_bytes_max, &mut Measured::default(), |chunk| {
        body.extend_from_slice(chunk)
    });
    debug_assert!(walked.is_ok(), "measured to its end: {walked:?}");
    body
}

fn walk(
    bytes: &[u8],
    body_bytes_max: usize,
    measured: &mut Measured,
    mut each: impl FnMut(&[u8]),
) -> Result<usize, NotWhole> {
    loop {
        #[cfg(test)]
        tests::CHUNKS_READ.with(|read| read.set(read.get() + 1));
        let Measured { at, body_bytes } = *measured;
        if at
            > body_bytes_max
                .saturating_mul(2)
                .saturating_add(FRAMING_BYTES_MAX)
        {
            return Err(NotWhole::TooLarge);
        }
        let (size, line_bytes) = size_line(&bytes[at..]).map_err(|stop| stop.from(bytes.len()))?;
        let at = at + line_bytes;
        if size == 0 {
            return trailer(&bytes[at..])
                .map(|trailer_bytes| at + trailer_bytes)
                .map_err(|stop| stop.from(bytes.len()));
        }
        let size = usize::try_from(size)
            .ok()
            .filter(|size| *size <= body_bytes_max - body_bytes)
            .ok_or(NotWhole::TooLarge)?;
        let needed = at + size + 2;
        let Some((data, rest)) = bytes[at..].split_at_checked(size) else {
            return Err(NotWhole::Incomplete { needed });
        };
        match rest {
            [b'\r', b'\n', ..] => {}
            [] | [b'\r'] => return Err(NotWhole::Incomplete { needed }),
            _ => {
                return Err(NotWhole::Malformed(
                    "chunk does not end where its size says",
                ));
            }
        }
        each(data);
        *measured = Measured {
            at: needed,
            body_bytes: body_bytes + size,
        };
    }
}

/// Why a line could not be read.
enum Stop {
    More,
    Malformed(&'static str),
}

impl Stop {
    fn from(self, have: usize) -> NotWhole {
        match self {
            Stop::More => NotWhole::Incomplete { needed: have + 1 },
            Stop::Malformed(what) => NotWhole::Malformed(what),
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
    use std::cell::Cell;

    use super::*;

    thread_local! {
        /// Chunks that were looked at, by all calls of a test.
        pub(super) static CHUNKS_READ: Cell<usize> = const { Cell::new(0) };
    }

    fn whole(bytes: &[u8], max: usize) -> Result<(usize, Vec<u8>), NotWhole> {
        let mut measured = Measured::default();
        let end = measure(bytes, max, &mut measured)?;
        Ok((end, decode(bytes, max, &measured)))
    }

    #[test]
    fn bodies_decode_at_every_split_or_ask_for_more() {
        let text = b"4\r\nWiki\r\n6;name=\"v\"\r\npedia \r\nE \r\nin \r\n\r\nchunks.\r\n0\r\nX: y\r\n\r\nGET ";
        let end = text.len() - 4;
        let mut measured = Measured::default();
        for split in 0..=text.len() {
            let found = whole(&text[..split], 100);
            // Byte by byte, going on from what was there before, is the same.
            let went_on = measure(&text[..split], 100, &mut measured);
            assert_eq!(went_on, found.as_ref().map(|(end, _)| *end).map_err(same));
            if split < end {
                assert!(
                    matches!(found, Err(NotWhole::Incomplete { needed }) if needed > split && needed <= end),
                    "{split}: {found:?}"
                );
            } else {
                let body = b"Wikipedia in \r\n\r\nchunks.".to_vec();
                assert_eq!(decode(&text[..split], 100, &measured), body);
                assert_eq!(found, Ok((end, body)));
            }
        }
    }

    fn same(why: &NotWhole) -> NotWhole {
        match why {
            NotWhole::Incomplete { needed } => NotWhole::Incomplete { needed: *needed },
            NotWhole::TooLarge => NotWhole::TooLarge,
            NotWhole::Malformed(what) => NotWhole::Malformed(what),
        }
    }

    #[test]
    fn hostile_chunks_are_refused_however_they_arrive() {
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
            ("1\r\na\r\n1\r\nb\r\n1\r\nccc", "the third"),
        ] {
            let found = whole(text.as_bytes(), 100);
            assert!(
                matches!(found, Err(NotWhole::Malformed(_))),
                "{what}: {found:?}"
            );
            let mut measured = Measured::default();
            let first_other = (0..=text.len())
                .map(|split| measure(&text.as_bytes()[..split], 100, &mut measured))
                .find(|found| !matches!(found, Err(NotWhole::Incomplete { .. })));
            assert_eq!(first_other, Some(found.map(|(end, _)| end)), "{what}");
        }
        for text in ["65\r\n", "ffffffffffffffff\r\n", "64\r\n", "FFFFFFFF\r\n"] {
            let found = whole(text.as_bytes(), 99);
            assert_eq!(found, Err(NotWhole::TooLarge), "{text:?}");
        }
    }

    #[test]
    fn framing_is_bounded_too() {
        let text =
            "1;xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\r\na\r\n".repeat(2000);
        assert_eq!(whole(text.as_bytes(), 10_000), Err(NotWhole::TooLarge));
    }

    #[test]
    fn a_body_that_trickles_in_is_read_once() {
        const CHUNKS: usize = 20_000;
        let limits = super::super::Limits {
            head_bytes_max: 1024,
            body_bytes_max: 4 * CHUNKS,
            payload_bytes_max: 4 * CHUNKS as u32,
        };
        let head = "POST /v1/streams/s/records/k HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";
        let text = format!("{head}{}0\r\n\r\n", "1\r\nx\r\n".repeat(CHUNKS));
        let mut progress = super::super::Progress::default();
        let before = CHUNKS_READ.get();
        // A receive of one byte each.
        for split in 1..=text.len() {
            let bytes = &text.as_bytes()[..split];
            match super::super::parse_on(bytes, &limits, &mut progress) {
                super::super::Parsed::Incomplete { .. } => assert!(split < text.len()),
                super::super::Parsed::Request { consumed, .. } => {
                    assert_eq!(consumed, text.len());
                }
                other => panic!("{other:?}"),
            }
        }
        // Once for each byte at most, and once more to decode.
        let read = CHUNKS_READ.get() - before;
        assert!(read <= text.len() + 2 * CHUNKS + 10, "{read} chunks read");
    }
}
