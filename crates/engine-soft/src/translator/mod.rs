//! The translator: same-ISA dynamic binary translation on the interpreter's core.
//!
//! The way of one guest instruction: [`Translator::dispatch`] finds the block at RIP in the jump cache or the [`store`], or
//! decodes ([`emit::decode`]), classifies ([`classify`]) and translates it ([`emit`]); then runs it ([`area::Area::run`]) until it
//! leaves. Blocks lead to each other without coming back here; what they cannot do themselves (a page that their soft TLB does not
//! have, a privileged instruction, an unlinked jump) they leave for [`Translator::serve`], which goes on in the middle of the block
//! if it can. Everything rare is the interpreter's: events, 16-bit code, single steps, instructions that lie in two pages.

pub mod area;
pub mod asm;
mod classify;
pub mod ctx;
mod derive;
mod emit;
mod exits;
mod flow;
#[cfg(test)]
mod golden;
mod groups;
mod key;
mod native;
mod perf;
pub mod places;
mod rewrite;
pub mod store;
mod strings;
mod stubs;
mod system;
#[cfg(test)]
mod tests;
mod vcpu;
mod vm;

pub use vcpu::Translator;
pub use vm::TranslatorEngine;
