//! Control of running machines from other processes: `ringer run --name N` listens on a socket under the user's run-time folder
//! ([`folder`]), where `ringer ps`, `info` and the others ([`commands`]) ask it, a line of JSON at a time ([`protocol`]).

mod client;
pub mod commands;
mod folder;
mod name;
mod protocol;
mod server;

pub use folder::Claim;
pub use name::VmName;
pub use server::{Controlled, listen};
