//! The suite that every engine is held to: tiny guests and checks from the host's side.
//!
//! A check is a function in a file under `checks`; [`all`] lists what is there. It makes a [`Guest`] in the mode that it wants,
//! puts code into its RAM with `code!`, changes the processor's state, runs it, and compares what has become of it with what the
//! manuals say. Every vector leads to a handler that ends the run, so that each event is seen from outside.
//!
//! The same checks run with the processors handed over, at random instructions, to fresh ones of the same or of another
//! engine ([`Target::hand_over`]): what a guest sees must not depend on it, and the state that is loaded must read as the one that was saved.
//!
//! How to write one: docs/conformance.md.

mod asm;
mod fail;
pub mod guest;
pub mod io;
pub mod layout;
pub mod setup;
mod suite;

pub use fail::Fail;
pub use guest::Guest;
pub use suite::{Outcome, Report, Target, run};

use std::sync::Arc;

/// A check: a row of the table.
#[derive(Clone, Copy)]
pub struct Check {
    /// What is checked, in a few words. No other check has the same.
    pub name: &'static str,
    /// The check itself.
    pub run: fn(&Test) -> Result<(), Fail>,
}

/// What a check is given.
pub struct Test {
    env: Arc<suite::Env>,
}

/// A check as it is listed.
#[derive(Clone, Copy)]
pub struct Row {
    /// The file: what the check is about.
    pub area: &'static str,
    /// The check.
    pub check: Check,
}

mod checks {
    use super::Check;
    include!(concat!(env!("OUT_DIR"), "/checks.rs"));

    pub(super) fn files() -> &'static [(&'static str, &'static [Check])] {
        FILES
    }
}

/// What checks are written with; each takes of it what it needs.
#[allow(unused_imports)]
mod prelude {
    pub(super) use super::asm::{code, holds, same};
    pub(super) use super::fail::Fail;
    pub(super) use super::guest::{Event, Guest};
    pub(super) use super::io::{self, Way};
    pub(super) use super::layout::*;
    pub(super) use super::setup::{Mode, Mode::*, descriptor, make_descriptor, pte, segment};
    pub(super) use super::{Check, Test};
    pub(super) use iced_x86::code_asm::*;
    pub(super) use ringer_arch::cpu::Feature;
    pub(super) use ringer_arch::exception::{pf, vector};
    pub(super) use ringer_arch::regs::gpr::*;
    pub(super) use ringer_arch::regs::{cr0, cr4, dr, efer, rflags, xcr0};
    pub(super) use ringer_arch::seg::{Attr, Segment, TableReg, sreg};
    pub(super) use ringer_arch::{MpState, msr};
    pub(super) type Res = Result<(), Fail>;
}

/// All checks, by file.
#[must_use]
pub fn all() -> Vec<Row> {
    checks::files()
        .iter()
        .flat_map(|&(area, list)| list.iter().map(move |&check| Row { area, check }))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_every_file_has_checks() {
        let rows = all();
        let mut names: Vec<_> = rows.iter().map(|r| r.check.name).collect();
        names.sort_unstable();
        let before = names.len();
        names.dedup();
        assert_eq!(names.len(), before);
        assert!(checks::files().iter().all(|(_, list)| !list.is_empty()));
    }
}
