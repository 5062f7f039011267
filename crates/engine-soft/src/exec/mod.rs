//! Instruction semantics: [`generic`] knows every integer instruction in every mode, [`fast`] the hot forms of 64-bit code,
//! [`string`] the string instructions.

pub mod fast;
pub mod generic;
pub mod string;
