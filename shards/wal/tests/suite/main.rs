//! The log as its users meet it, on segment images in memory.
//!
//! | module | promise |
//! |---|---|
//! | `round_trip` | what was appended is what comes back; units, marks, rolling, single-record reads |
//! | `damage` | flipped bits, torn, lost, misdirected and stale writes: found, and never shown |
//! | `format` | FORMAT.md is what the code does; golden images |

mod damage;
mod format;
mod round_trip;
mod support;
