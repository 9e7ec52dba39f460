//! The tuner on recorded machines: what it would do, that it does it and undoes it, and that nothing can come in between.

mod changes;
mod interruptions;
mod machines;
mod pages;
mod persisting;
mod scripts;
mod support;
