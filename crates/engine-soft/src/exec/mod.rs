//! Instruction semantics: [`generic`] knows every integer instruction in every mode, `fast` the hot forms of 64-bit code, for which [`select`] picks the handlers,
//! [`string`] the string instructions.

pub(crate) mod fast;
pub mod generic;
pub mod select;
pub mod string;
