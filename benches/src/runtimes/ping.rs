//! As much of RESP as answers a benchmark: every whole command gets a PONG.
//!
//! Invariant: the count depends on the bytes alone, not on how they were cut into reads.

/// The request that counts.
pub(super) const REQUEST: &[u8] = b"*1\r\n$4\r\nPING\r\n";
/// What every command is answered with.
pub(super) const REPLY: &[u8] = b"+PONG\r\n";
/// No benchmark sends a longer command.
const COMMAND_BYTES_MAX: usize = 64 << 10;

/// The bytes are not RESP, or a command is too long.
#[derive(Debug)]
pub(super) struct Malformed;

/// What one connection has sent of a command that is not whole yet.
#[derive(Debug, Default)]
pub(super) struct Commands {
    unfinished: Vec<u8>,
}

impl Commands {
    /// Append the replies to all commands that `received` completes.
    #[inline]
    pub(super) fn answer(&mut self, received: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
        if self.unfinished.is_empty() {
            let used = answer_whole(received, out)?;
            self.unfinished.extend_from_slice(&received[used..]);
        } else {
            self.unfinished.extend_from_slice(received);
            let used = answer_whole(&self.unfinished, out)?;
            self.unfinished.drain(..used);
        }
        if self.unfinished.len() > COMMAND_BYTES_MAX {
            return Err(Malformed);
        }
        Ok(())
    }
}

/// Replies to the whole commands in `bytes`; how many bytes those have.
#[inline]
fn answer_whole(bytes: &[u8], out: &mut Vec<u8>) -> Result<usize, Malformed> {
    let mut used = 0;
    loop {
        let rest = &bytes[used..];
        if rest.starts_with(REQUEST) {
            used += REQUEST.len();
        } else {
            match command_bytes(rest)? {
                Some(bytes) => used += bytes,
                None => return Ok(used),
            }
        }
        out.extend_from_slice(REPLY);
    }
}

/// Length of the command at the start: `*` count, then for each part `$` length and so many bytes.
#[cold]
fn command_bytes(bytes: &[u8]) -> Result<Option<usize>, Malformed> {
    let Some((parts, mut at)) = number(bytes, 0, b'*')? else {
        return Ok(None);
    };
    for _ in 0..parts {
        let Some((length, after)) = number(bytes, at, b'$')? else {
            return Ok(None);
        };
        at = after + length + 2;
        if at > bytes.len() {
            return if at > COMMAND_BYTES_MAX {
                Err(Malformed)
            } else {
                Ok(None)
            };
        }
    }
    Ok(Some(at))
}

/// `mark`, digits, CRLF at `at`: the number and where it ends. None: not all there.
fn number(bytes: &[u8], at: usize, mark: u8) -> Result<Option<(usize, usize)>, Malformed> {
    let Some((first, rest)) = bytes.get(at..).and_then(<[u8]>::split_first) else {
        return Ok(None);
    };
    if *first != mark {
        return Err(Malformed);
    }
    let Some(digits) = rest.iter().position(|byte| *byte == b'\r') else {
        return if rest.len() > 8 {
            Err(Malformed)
        } else {
            Ok(None)
        };
    };
    let number = std::str::from_utf8(&rest[..digits])
        .ok()
        .and_then(|text| text.parse::<u16>().ok());
    let end = at + 1 + digits + 2;
    match number {
        None => Err(Malformed),
        Some(_) if end > bytes.len() => Ok(None),
        Some(number) => Ok(Some((usize::from(number), end))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_counted_however_they_are_cut() {
        let mut stream = REQUEST.to_vec();
        // What redis-benchmark asks before it begins.
        stream.extend_from_slice(b"*3\r\n$6\r\nCONFIG\r\n$3\r\nGET\r\n$4\r\nsave\r\n");
        stream.extend_from_slice(REQUEST);
        for cut in 0..=stream.len() {
            let (mut commands, mut out) = (Commands::default(), Vec::new());
            commands.answer(&stream[..cut], &mut out).unwrap();
            commands.answer(&stream[cut..], &mut out).unwrap();
            assert_eq!(out, REPLY.repeat(3), "cut at {cut}");
        }
        let (mut commands, mut out) = (Commands::default(), Vec::new());
        for byte in &stream {
            commands
                .answer(std::slice::from_ref(byte), &mut out)
                .unwrap();
        }
        assert_eq!(out, REPLY.repeat(3));
    }

    #[test]
    fn what_is_no_command_is_refused() {
        for bytes in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"*x\r\n",
            b"*1\r\n+4\r\n",
            b"*123456789",
            b"*1\r\n$65535\r\nx",
            b"*2\r\n$65000\r\nx",
        ] {
            let result = Commands::default().answer(bytes, &mut Vec::new());
            assert_eq!(result.is_err(), !bytes.starts_with(b"*2"), "{bytes:?}");
        }
    }
}
