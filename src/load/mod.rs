//! `pinion load`: a file of records, appended over the native protocol.

mod reader;
