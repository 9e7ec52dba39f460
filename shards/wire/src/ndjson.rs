#![allow(dead_code, unused_variables, missing_docs)]
//! Lines of `{"key":…,"value":…}` in, records as JSON lines out.
use super::*;
#[derive(Debug)]
pub struct Line<'a> {
    pub key: std::borrow::Cow<'a, str>,
    pub payload: std::borrow::Cow<'a, [u8]>,
    pub content_type: ContentType<'static>,
}
/// Lines of a body; empty lines are skipped; Err((line number from 1, why)).
pub fn lines<'a>(
    body: &'a [u8],
    payload_bytes_max: usize,
) -> impl Iterator<Item = Result<Line<'a>, (u64, String)>> {
    std::iter::empty()
}
/// `{"key","version","position","timestamp",("tombstone":true)|("value"|"value_base64"),"content_type"?}` and a newline.
/// A key that is not UTF-8 goes out as "key_base64".
pub fn write_record(out: &mut Vec<u8>, record: &RecordOut<'_>) {
    todo!()
}
