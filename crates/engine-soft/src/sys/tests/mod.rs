//! Tests of the system semantics, by topic.

mod control;
mod far;
mod hostile;
mod long;
mod ports;
mod protected;
mod saved;
mod segments;
mod task;
