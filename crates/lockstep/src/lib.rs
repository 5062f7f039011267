//! Two engines side by side: [`LockStepEngine`] runs a guest on one engine, and after every block the same instructions on another one,
//! with RAM of its own, and compares. Devices see the first alone: what they answer it is given to the second again.
//!
//! The first difference ends the machine with a panic of the processor's thread that tells both states and the instructions
//! since the last place where both agreed. Only machines of one processor; without the paravirtual interface, whose services write
//! guest RAM behind the engines' back. What runs between two looks is set by the environment: `RINGER_LOCKSTEP=INSTRUCTIONS,STEPS`, the
//! least number of instructions of a step (1: every block), and after how many steps all registers and the RAM that was written are
//! compared.
#![forbid(unsafe_code)]

mod code;
mod engine;
mod io;
mod vcpu;

pub use engine::LockStepEngine;
pub use ringer_engine::states;
