//! Differences between two processor states, in words.

use ringer_arch::VcpuState;
use std::fmt::Write as _;

/// Names of the general registers.
pub const NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];

/// Clears what is not the processor's state: MXCSR_MASK, which the host's FXSAVE leaves in the area.
pub fn normalise(s: &mut VcpuState) {
    s.tsc = 0;
    s.xsave[28..32].fill(0);
}

/// Differences between two states.
pub fn differences(a: &VcpuState, b: &VcpuState, names: [&str; 2], out: &mut Vec<String>) {
    let mut num = |name: &str, x: u64, y: u64| {
        if x != y {
            out.push(format!("{name}: {} {x:#x}, {} {y:#x}", names[0], names[1]));
        }
    };
    for (i, name) in NAMES.iter().enumerate() {
        num(name, a.gpr[i], b.gpr[i]);
    }
    num("rip", a.rip, b.rip);
    num("rflags", a.rflags, b.rflags);
    num("cr0", a.cr0, b.cr0);
    num("cr2", a.cr2, b.cr2);
    num("cr3", a.cr3, b.cr3);
    num("cr4", a.cr4, b.cr4);
    num("efer", a.efer, b.efer);
    num("xcr0", a.xcr0, b.xcr0);
    num("cpl", a.cpl.into(), b.cpl.into());
    for i in 0..8 {
        num(&format!("dr{i}"), a.dr[i], b.dr[i]);
    }
    let mut text = |name: &str, x: String, y: String| {
        if x != y {
            out.push(format!("{name}: {} {x}, {} {y}", names[0], names[1]));
        }
    };
    for (i, name) in ["es", "cs", "ss", "ds", "fs", "gs"].iter().enumerate() {
        text(name, format!("{:x?}", a.seg[i]), format!("{:x?}", b.seg[i]));
    }
    text("ldtr", format!("{:x?}", a.ldtr), format!("{:x?}", b.ldtr));
    text("tr", format!("{:x?}", a.tr), format!("{:x?}", b.tr));
    text("tables", format!("{:x?} {:x?}", a.gdtr, a.idtr), format!("{:x?} {:x?}", b.gdtr, b.idtr));
    let rest = |s: &VcpuState| {
        format!(
            "{:?} shadow {} nmi blocked {} pending {} debug traps {:#x} unhalt {} PDPTEs {:x?}",
            s.mp_state, s.interrupt_shadow, s.nmi_blocked, s.nmi_pending, s.pending_debug, s.unhalt, s.pdptes
        )
    };
    text("activity", rest(a), rest(b));
    text("msrs", format!("{:x?}", a.msrs), format!("{:x?}", b.msrs));
    for (name, at, len) in xsave_parts() {
        text(&name, hex(&a.xsave[at..at + len]), hex(&b.xsave[at..at + len]));
    }
}

/// The XSAVE area's fields: name, offset, length.
#[must_use]
pub fn xsave_parts() -> Vec<(String, usize, usize)> {
    let named = [
        ("fcw", 0, 2),
        ("fsw", 2, 2),
        ("ftw", 4, 2),
        ("fop", 6, 2),
        ("fip", 8, 8),
        ("fdp", 16, 8),
        ("mxcsr", 24, 4),
        ("mxcsr mask", 28, 4),
        ("header", 512, 64),
        ("unused", 416, 96),
    ];
    let mut all: Vec<_> = named.iter().map(|(n, a, b)| ((*n).to_owned(), *a, *b)).collect();
    all.extend((0..8).map(|i| (format!("st{i}"), 32 + 16 * i, 16)));
    all.extend((0..16).map(|i| (format!("xmm{i}"), 160 + 16 * i, 16)));
    all.extend((0..16).map(|i| (format!("ymm{i} high"), 576 + 16 * i, 16)));
    all
}

/// Bytes in hexadecimal.
#[must_use]
pub fn hex(b: &[u8]) -> String {
    b.iter().fold(String::new(), |mut s, x| {
        let _infallible = write!(s, "{x:02x}");
        s
    })
}
