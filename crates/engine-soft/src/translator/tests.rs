//! What the translator once did wrong.

use super::Translator;
use crate::cpu::Cpu;
use crate::run::Interpreter;
use crate::shoot::Shared;
use crate::sys::testing::{self, CODE};
use ringer_arch::cpu::Vendor;
use ringer_engine::{Until, Vcpu};
use std::sync::Arc;
use std::time::Instant;

/// Puts `code` at [`CODE`] and executes about `insns` instructions there, translated in an area of `room` bytes.
fn run(cpu: Cpu, code: &[u8], insns: u64, room: usize) -> Translator {
    cpu.mmu.memory().write(CODE, code).unwrap();
    let interp = Interpreter::new(cpu, Arc::new(Shared::new(1)), Instant::now());
    let mut t = Translator::new(interp, room).unwrap();
    let state = t.state();
    t.set_state(&state).unwrap();
    t.step(Until::Block(insns));
    t
}

/// A PUSH that the interpreter must execute leaves the flags of the instruction before it.
#[test]
fn flags_outlive_a_push_that_is_interpreted() {
    let mut cpu = testing::protected(Vendor::Intel);
    cpu.regs[1] = 0;
    // cmp eax, eax; push dword ptr fs:[0x8000]; jne 1f; mov ecx, 5; 1: hlt
    let code =
        [&[0x39, 0xc0, 0x64, 0xff, 0x35, 0, 0x80, 0, 0, 0x75, 5][..], &[0xb9, 5, 0, 0, 0, 0xf4]].concat();
    let t = run(cpu, &code, 5, 1 << 20);
    assert_eq!(t.state().gpr[1], 5);
}
