//! Tells of a difference: the program's text, its state, what differs.

use crate::compare::{NAMES, hex, xsave_parts};
use crate::layout as l;
use crate::program::Program;
use iced_x86::{Decoder, FastFormatter, Instruction};
use ringer_arch::VcpuState;
use std::fmt::Write as _;

/// The text of the instructions with the numbers `kept`, in the order of their addresses.
#[must_use]
pub fn text(p: &Program, kept: &[usize], options: u32) -> String {
    let mut out = String::new();
    let mut insns: Vec<_> = kept.iter().map(|n| (p.insns[*n], *n)).collect();
    insns.sort_by_key(|(i, _)| i.off);
    for (i, n) in insns {
        let (from, to) = (usize::from(i.off), usize::from(i.off) + usize::from(i.len));
        let lin = p.base + u64::from(i.off);
        let bytes = &p.code[from..to];
        let _infallible = writeln!(
            out,
            "  {n:3}  {lin:x}  {:30}  {}",
            hex(bytes),
            disassemble(bytes, lin, p.bits, options)
        );
    }
    out
}

/// One instruction's text.
#[must_use]
pub fn disassemble(bytes: &[u8], lin: u64, bits: u32, options: u32) -> String {
    let mut i = Instruction::default();
    Decoder::with_ip(bits, bytes, lin, options).decode_out(&mut i);
    let mut text = String::new();
    FastFormatter::new().format(&i, &mut text);
    text
}

/// What `s` has that `plain` has not.
#[must_use]
pub fn state(s: &VcpuState, plain: &VcpuState) -> String {
    let mut out = String::new();
    for (i, name) in NAMES.iter().enumerate().filter(|(i, _)| s.gpr[*i] != 0) {
        let _infallible = write!(out, "{name}={:x} ", s.gpr[i]);
    }
    let _infallible = write!(
        out,
        "rip={:x} rflags={:x} cpl={} cr0={:x} cr3={:x} cr4={:x} fs={:x} gs={:x}",
        s.rip, s.rflags, s.cpl, s.cr0, s.cr3, s.cr4, s.seg[4].base, s.seg[5].base
    );
    for (name, at, len) in xsave_parts() {
        if s.xsave[at..at + len] != plain.xsave[at..at + len] {
            let _infallible = write!(out, "\n    {name}={}", hex(&s.xsave[at..at + len]));
        }
    }
    out
}

/// Patches, but for those that are only data.
#[must_use]
pub fn patches(p: &Program) -> String {
    let mut out = String::new();
    for (gpa, bytes) in &p.patches {
        if bytes.len() >= l::PAGE as usize {
            let _infallible = writeln!(out, "  RAM at {gpa:x}: {} bytes", bytes.len());
        } else {
            let _infallible = writeln!(out, "  RAM at {gpa:x}: {}", hex(bytes));
        }
    }
    out
}
