//! Engines held to one another: random programs, and single instructions with their expected state.
//!
//! [`gen`] makes programs for a small machine ([`layout`], [`machine`], [`handlers`], [`io`]); [`side`] runs one on an engine; [`compare`]
//! compares where two engines left it; [`minimise`] makes what differs small, and [`report`] tells it. [`golden`] has single instructions with their state before and after.

pub mod compare;
pub mod conformance;
pub mod debugged;
pub mod engines;
pub mod exceptions;
pub mod r#gen;
pub mod golden;
pub mod handed;
pub mod handlers;
pub mod helper;
pub mod io;
pub mod layout;
pub mod machine;
pub mod minimise;
pub mod pair;
pub mod program;
pub mod report;
pub mod run;
pub mod side;
