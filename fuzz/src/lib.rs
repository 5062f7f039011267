//! What hostile guests and files try. Each function of [`targets`] takes any bytes, makes a guest, a register access
//! pattern or a file of them, and must return: a panic, a hang or memory without bound is a bug of Ringer. The same
//! bodies run under libFuzzer, under the [runner](crate::mutate) on stable Rust, and as tests.
#![forbid(unsafe_code)]

mod corpus;
mod input;
pub mod mutate;
pub mod targets;
mod watchdog;
