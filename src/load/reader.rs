//! Lines of a file as records, one at a time: NDJSON and CSV in, key and payload out.
//!
//! Memory is bounded by one line; buffers are reused from line to line. A line that cannot be read is told apart from a
//! file that cannot: the caller may skip the first kind. Knows nothing of streams and servers.

use std::fmt;
use std::io::{self, BufRead, Read};

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use wal::record::content_type;
use wire::KEY_BYTES_MAX;

/// Longest line that is held in memory. Far above any payload that a server takes, so the server's own limit is what people meet.
const LINE_BYTES_MAX: usize = 64 << 20;

/// A record to append, in buffers that the next one reuses.
#[derive(Debug, Default)]
pub struct Entry {
    /// Number of the line that it starts on, from 1.
    pub line: u64,
    /// 1 to `KEY_BYTES_MAX` bytes.
    pub key: Vec<u8>,
    /// What is stored.
    pub payload: Vec<u8>,
    /// A code of `wal::record::content_type`.
    pub content_type: u8,
}

/// Why there is no next record.
#[derive(Debug)]
pub enum ReadError {
    /// This line is no record; the reader stands behind it.
    Line { line: u64, why: String },
    /// The input itself cannot be read on.
    Input(io::Error),
}

impl ReadError {
    fn line(line: u64, why: impl Into<String>) -> ReadError {
        ReadError::Line {
            line,
            why: why.into(),
        }
    }
}

/// Which fields of a line become key and payload.
#[derive(Clone, Debug)]
pub struct Fields {
    /// Field that holds the key.
    pub key: String,
    /// Field that is stored; None stores the whole line.
    pub value: Option<String>,
}

/// One of the two formats over any input.
pub enum Reader<R: Read> {
    Ndjson(Ndjson<io::BufReader<R>>),
    Csv(Box<Csv<R>>),
}

impl<R: Read> Reader<R> {
    /// A JSON object per line.
    pub fn ndjson(input: R, fields: Fields) -> Reader<R> {
        Reader::Ndjson(Ndjson {
            input: io::BufReader::with_capacity(1 << 20, input),
            fields,
            line: 0,
            bytes: Vec::new(),
        })
    }

    /// Comma-separated; reads the header line. Err names a field that the header does not have.
    pub fn csv(input: R, fields: Fields) -> Result<Reader<R>, ReadError> {
        Csv::new(input, fields).map(|csv| Reader::Csv(Box::new(csv)))
    }

    /// Fills `entry` with the next record; false at the end of the input.
    pub fn next(&mut self, entry: &mut Entry) -> Result<bool, ReadError> {
        match self {
            Reader::Ndjson(reader) => reader.next(entry),
            Reader::Csv(reader) => reader.next(entry),
        }
    }
}

/// See [`Reader::ndjson`].
pub struct Ndjson<R> {
    input: R,
    fields: Fields,
    line: u64,
    bytes: Vec<u8>,
}

impl<R: BufRead> Ndjson<R> {
    fn next(&mut self, entry: &mut Entry) -> Result<bool, ReadError> {
        loop {
            self.line += 1;
            if !self.read_line()? {
                return Ok(false);
            }
            let mut text = self.bytes.as_slice();
            if self.line == 1 {
                text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
            }
            let text = text.trim_ascii();
            if !text.is_empty() {
                entry.line = self.line;
                return parse_line(text, &self.fields, entry)
                    .map(|()| true)
                    .map_err(|why| ReadError::line(self.line, why));
            }
        }
    }

    /// The next line without its end; false at the end of the input. A line over the bound is passed over and refused.
    fn read_line(&mut self) -> Result<bool, ReadError> {
        self.bytes.clear();
        let mut total = 0usize;
        loop {
            let available = match self.input.fill_buf() {
                Ok(available) => available,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(ReadError::Input(error)),
            };
            if available.is_empty() {
                break;
            }
            let end = memchr::memchr(b'\n', available);
            let part = &available[..end.unwrap_or(available.len())];
            total += part.len();
            if total <= LINE_BYTES_MAX {
                self.bytes.extend_from_slice(part);
            }
            let consumed = part.len() + usize::from(end.is_some());
            self.input.consume(consumed);
            if end.is_some() {
                return self.bounded(total).map(|()| true);
            }
        }
        self.bounded(total).map(|()| total > 0)
    }

    fn bounded(&self, total: usize) -> Result<(), ReadError> {
        if total > LINE_BYTES_MAX {
            return Err(ReadError::line(
                self.line,
                format!("the line has {total} bytes; {LINE_BYTES_MAX} are the most"),
            ));
        }
        Ok(())
    }
}

/// One pass over the line: the wanted fields as they stand in the text, everything else only checked.
fn parse_line(text: &[u8], fields: &Fields, entry: &mut Entry) -> Result<(), String> {
    // Skipped strings are not checked by the JSON parser, and the whole line may be stored.
    let text = std::str::from_utf8(text).map_err(|error| format!("not UTF-8: {error}"))?;
    let mut parser = serde_json::Deserializer::from_str(text);
    let found = Pick { fields }.deserialize(&mut parser).map_err(plain)?;
    parser.end().map_err(plain)?;

    let key = found
        .key
        .ok_or_else(|| format!("no field {:?}", fields.key))?
        .get();
    entry.key.clear();
    match key.as_bytes()[0] {
        b'"' => entry.key.extend_from_slice(
            serde_json::from_str::<std::borrow::Cow<'_, str>>(key)
                .map_err(plain)?
                .as_bytes(),
        ),
        b'-' | b'0'..=b'9' => entry.key.extend_from_slice(key.as_bytes()),
        _ => {
            return Err(format!(
                "field {:?} is {}; a key is a string or a number",
                fields.key,
                shortened(key)
            ));
        }
    }
    check_key(&entry.key, &fields.key)?;

    entry.payload.clear();
    match &fields.value {
        None => {
            entry.payload.extend_from_slice(text.as_bytes());
            entry.content_type = content_type::JSON;
        }
        Some(name) => {
            let value = found
                .value
                .ok_or_else(|| format!("no field {name:?}"))?
                .get();
            if value.starts_with('"') {
                let string =
                    serde_json::from_str::<std::borrow::Cow<'_, str>>(value).map_err(plain)?;
                entry.payload.extend_from_slice(string.as_bytes());
                entry.content_type = content_type::TEXT_PLAIN;
            } else {
                entry.payload.extend_from_slice(value.as_bytes());
                entry.content_type = content_type::JSON;
            }
        }
    }
    Ok(())
}

fn check_key(key: &[u8], field: &str) -> Result<(), String> {
    match key.len() {
        0 => Err(format!(
            "field {field:?} is empty; a key has at least one byte"
        )),
        len if len > KEY_BYTES_MAX => Err(format!(
            "field {field:?} has {len} bytes; a key has at most {KEY_BYTES_MAX}"
        )),
        _ => Ok(()),
    }
}

/// A JSON error without serde's "at line 1", which would contradict the line number of the file.
fn plain(error: serde_json::Error) -> String {
    let text = error.to_string();
    match text.rsplit_once(" at line ") {
        Some((what, _)) => format!("{what} at column {}", error.column()),
        None => text,
    }
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

struct Found<'de> {
    key: Option<&'de RawValue>,
    value: Option<&'de RawValue>,
}

/// Picks the wanted fields out of an object without building the rest.
struct Pick<'f> {
    fields: &'f Fields,
}

#[derive(Clone, Copy)]
enum Wanted {
    Key,
    Value,
    Both,
    Neither,
}

impl<'de> DeserializeSeed<'de> for Pick<'_> {
    type Value = Found<'de>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Found<'de>, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Pick<'_> {
    type Value = Found<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Found<'de>, A::Error> {
        let mut found = Found {
            key: None,
            value: None,
        };
        while let Some(wanted) = map.next_key_seed(Name {
            fields: self.fields,
        })? {
            match wanted {
                Wanted::Key => found.key = Some(map.next_value()?),
                Wanted::Value => found.value = Some(map.next_value()?),
                Wanted::Both => {
                    found.key = Some(map.next_value()?);
                    found.value = found.key;
                }
                Wanted::Neither => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(found)
    }
}

/// Compares a field's name in place.
struct Name<'f> {
    fields: &'f Fields,
}

impl<'de> DeserializeSeed<'de> for Name<'_> {
    type Value = Wanted;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Wanted, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Name<'_> {
    type Value = Wanted;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Wanted, E> {
        Ok(
            match (
                name == self.fields.key,
                self.fields.value.as_deref() == Some(name),
            ) {
                (true, true) => Wanted::Both,
                (true, false) => Wanted::Key,
                (false, true) => Wanted::Value,
                (false, false) => Wanted::Neither,
            },
        )
    }
}

/// Passes on what it reads, and knows whether a quote may be open: RFC 4180 has two for each quoted field, and two for each one
/// within. The library takes one that is never closed for a field up to the end of the input.
struct Quotes<R> {
    input: R,
    odd: bool,
    ended: bool,
}

impl<R: Read> Read for Quotes<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(bytes)?;
        self.ended |= count == 0 && !bytes.is_empty();
        self.odd ^= memchr::memchr_iter(b'"', &bytes[..count]).count() % 2 == 1;
        Ok(count)
    }
}

/// See [`Reader::csv`].
pub struct Csv<R> {
    input: csv::Reader<Quotes<R>>,
    row: csv::StringRecord,
    /// Every field name as it opens its member: `"name":`, encoded once.
    names: Vec<String>,
    key: usize,
    value: Option<usize>,
    fields: Fields,
}

impl<R: Read> Csv<R> {
    fn new(input: R, fields: Fields) -> Result<Csv<R>, ReadError> {
        let mut input = csv::ReaderBuilder::new()
            .buffer_capacity(1 << 20)
            .from_reader(Quotes {
                input,
                odd: false,
                ended: false,
            });
        let header = input
            .headers()
            .map_err(|error| csv_error(error, 1))?
            .clone();
        for (at, name) in header.iter().enumerate() {
            if header.iter().take(at).any(|earlier| earlier == name) {
                return Err(ReadError::line(
                    1,
                    format!("the header names field {name:?} twice"),
                ));
            }
        }
        let find = |wanted: &str| {
            header
                .iter()
                .position(|name| name == wanted)
                .ok_or_else(|| {
                    let names: Vec<&str> = header.iter().collect();
                    ReadError::line(
                        1,
                        format!("no field {wanted:?}; the header has {}", names.join(", ")),
                    )
                })
        };
        let key = find(&fields.key)?;
        let value = fields.value.as_deref().map(find).transpose()?;
        let names = header
            .iter()
            .map(|name| format!("{}:", serde_json::Value::from(name)))
            .collect();
        Ok(Csv {
            input,
            row: csv::StringRecord::new(),
            names,
            key,
            value,
            fields,
        })
    }

    fn next(&mut self, entry: &mut Entry) -> Result<bool, ReadError> {
        let before = self.input.position().line();
        if !self
            .input
            .read_record(&mut self.row)
            .map_err(|error| csv_error(error, before))?
        {
            return Ok(false);
        }
        entry.line = self
            .row
            .position()
            .map_or(before, |position| position.line());
        let read = self.input.get_ref();
        // A quote within a field that has none around it is taken as it is, so an odd number alone says nothing.
        if read.ended && read.odd && self.row.iter().any(|field| field.contains('\n')) {
            let why =
                "a quote is opened here and never closed: all that follows would be one field";
            return Err(ReadError::line(entry.line, why.to_owned()));
        }
        entry.key.clear();
        entry.key.extend_from_slice(self.row[self.key].as_bytes());
        check_key(&entry.key, &self.fields.key).map_err(|why| ReadError::line(entry.line, why))?;
        entry.payload.clear();
        match self.value {
            Some(value) => {
                entry.payload.extend_from_slice(self.row[value].as_bytes());
                entry.content_type = content_type::TEXT_PLAIN;
            }
            None => {
                entry.content_type = content_type::JSON;
                for (at, (name, field)) in self.names.iter().zip(&self.row).enumerate() {
                    entry.payload.push(if at == 0 { b'{' } else { b',' });
                    entry.payload.extend_from_slice(name.as_bytes());
                    serde_json::to_writer(&mut entry.payload, field)
                        .map_err(|error| ReadError::Input(error.into()))?;
                }
                entry.payload.push(b'}');
            }
        }
        Ok(true)
    }
}

/// Sorts a CSV error into "this row" and "this input".
fn csv_error(error: csv::Error, fallback_line: u64) -> ReadError {
    let line = error.position().map_or(fallback_line, csv::Position::line);
    match error.into_kind() {
        csv::ErrorKind::Io(error) => ReadError::Input(error),
        csv::ErrorKind::UnequalLengths {
            expected_len, len, ..
        } => ReadError::line(
            line,
            format!("the row has {len} fields, the header has {expected_len}"),
        ),
        csv::ErrorKind::Utf8 { err, .. } => ReadError::line(line, format!("not UTF-8: {err}")),
        other => ReadError::line(line, format!("not CSV: {other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Records and bad lines of an input, one text each.
    fn read(csv: bool, input: &[u8], key: &str, value: Option<&str>) -> Vec<String> {
        let fields = Fields {
            key: key.into(),
            value: value.map(Into::into),
        };
        let mut reader = if csv {
            match Reader::csv(input, fields) {
                Ok(reader) => reader,
                Err(ReadError::Line { line, why }) => return vec![format!("{line}: {why}")],
                Err(other) => panic!("{other:?}"),
            }
        } else {
            Reader::ndjson(input, fields)
        };
        let (mut out, mut entry) = (Vec::new(), Entry::default());
        loop {
            match reader.next(&mut entry) {
                Ok(false) => return out,
                Ok(true) => out.push(format!(
                    "{} {} {} {}",
                    entry.line,
                    String::from_utf8_lossy(&entry.key),
                    entry.content_type,
                    String::from_utf8_lossy(&entry.payload)
                )),
                Err(ReadError::Line { line, why }) => out.push(format!("{line}: {why}")),
                Err(other) => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_line_is_stored_as_it_stands() {
        let input = b"\xef\xbb\xbf{\"k\":\"a\", \"v\": 1.50}\r\n\n  \n{\"v\":{\"k\":9},\"k\":12}";
        assert_eq!(
            read(false, input, "k", None),
            [
                r#"1 a 1 {"k":"a", "v": 1.50}"#,
                r#"4 12 1 {"v":{"k":9},"k":12}"#
            ]
        );
    }

    #[test]
    fn a_value_that_is_a_string_is_text_and_anything_else_is_json() {
        let input = "{\"k\":\"\\u00e4\",\"v\":\"a\\n\\\"b\\\"\"}\n{\"k\":\"b\",\"v\":[1, 2]}\n{\"k\":\"c\",\"v\":null}\n".as_bytes();
        assert_eq!(
            read(false, input, "k", Some("v")),
            ["1 ä 2 a\n\"b\"", "2 b 1 [1, 2]", "3 c 1 null"]
        );
        assert_eq!(
            read(false, b"{\"k\":\"same\"}", "k", Some("k")),
            ["1 same 2 same"]
        );
    }

    #[test]
    fn an_escaped_field_name_is_the_same_field() {
        assert_eq!(
            read(false, br#"{"\u006b":"a","v":"b"}"#, "k", Some("v")),
            ["1 a 2 b"]
        );
    }

    #[test]
    fn a_bad_line_is_named_and_the_next_one_is_read() {
        let long = "x".repeat(KEY_BYTES_MAX + 1);
        let input = format!(
            "nonsense\n[1]\n{{\"x\":1}}\n{{\"k\":null}}\n{{\"k\":\"\"}}\n{{\"k\":\"{long}\"}}\n{{\"k\":\"a\"}} x\n{{\"k\":\"a\"\n{{\"k\":\"good\"}}\n"
        );
        let got = read(false, input.as_bytes(), "k", None);
        for (at, wanted) in [
            "1: expected ident",
            "2: invalid type: sequence, expected a JSON object",
            "3: no field \"k\"",
            "4: field \"k\" is null; a key is a string or a number",
            "5: field \"k\" is empty",
            "6: field \"k\" has 1025 bytes; a key has at most 1024",
            "7: trailing characters at column 11",
            "8: EOF while parsing an object",
            "9 good 1",
        ]
        .iter()
        .enumerate()
        {
            assert!(got[at].starts_with(wanted), "{} is not {wanted}", got[at]);
        }
        assert_eq!(got.len(), 9);
        assert!(
            read(false, b"{\"k\":\"a\",\"x\":\"\xff\"}", "k", None)[0].starts_with("1: not UTF-8")
        );
    }

    #[test]
    fn a_row_is_a_json_object_in_the_order_of_the_header() {
        let input = b"id,\"the \"\"name\"\"\",n\n1,\"a, \"\"b\"\"\nc\",3\n2,d,\n";
        assert_eq!(
            read(true, input, "id", None),
            [
                r#"2 1 1 {"id":"1","the \"name\"":"a, \"b\"\nc","n":"3"}"#,
                r#"4 2 1 {"id":"2","the \"name\"":"d","n":""}"#
            ]
        );
        assert_eq!(read(true, input, "id", Some("n")), ["2 1 2 3", "4 2 2 "]);
    }

    #[test]
    fn a_bad_row_is_named_and_the_next_one_is_read() {
        let got = read(true, b"id,n\n1\n,2\n3,\xff\n4,5\n", "id", None);
        assert_eq!(got[0], "2: the row has 1 fields, the header has 2");
        assert!(got[1].starts_with("3: field \"id\" is empty"), "{}", got[1]);
        assert!(got[2].starts_with("4: not UTF-8"), "{}", got[2]);
        assert_eq!(got[3], r#"5 4 1 {"id":"4","n":"5"}"#);
        assert_eq!(
            read(true, b"a,b\n", "id", None),
            ["1: no field \"id\"; the header has a, b"]
        );
        assert_eq!(
            read(true, b"a,a\n", "a", None),
            ["1: the header names field \"a\" twice"]
        );
    }

    #[test]
    fn a_line_over_the_bound_costs_no_memory_and_is_refused() {
        let long = io::repeat(b'x')
            .take(LINE_BYTES_MAX as u64 + 5)
            .chain(&b"\n{\"k\":\"a\"}\n"[..]);
        let mut reader = Reader::ndjson(
            long,
            Fields {
                key: "k".into(),
                value: None,
            },
        );
        let mut entry = Entry::default();
        assert!(matches!(
            reader.next(&mut entry),
            Err(ReadError::Line { line: 1, .. })
        ));
        assert!(reader.next(&mut entry).expect("the next line is good"));
        assert_eq!(entry.line, 2);
    }

    #[test]
    fn a_quote_that_is_never_closed_does_not_swallow_the_rest_in_silence() {
        let read = |input: &str| read(true, input.as_bytes(), "k", None);
        let told = read("k,v\na,1\nb,\"oops\nc,3\nd,4\n");
        assert_eq!(told.len(), 2);
        assert!(told[1].starts_with("3: a quote is opened here"), "{told:?}");
        // One that stands in a field without quotes around it is a letter like others, and lines within quotes are a field's.
        assert_eq!(read("k,v\na,19\" rack\nb,2\n").len(), 2);
        assert_eq!(read("k,v\na,\"two\nlines\"\nb,\"x\"\"y\"\n").len(), 2);
    }
}
