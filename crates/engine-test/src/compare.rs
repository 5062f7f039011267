//! Compares where two engines left the same program.

use crate::layout as l;
use crate::machine::pte;
use crate::program::Program;
use crate::side::{Outcome, Side, pages};
use ringer_arch::VcpuState;
use std::fmt::Write as _;

/// Names of the general registers.
pub const NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];

/// Differences told in full.
const MOST: usize = 40;

/// Pages in which asynchronous interrupts leave traces.
fn quiet(page: u64) -> bool {
    page == l::ASYNC / l::PAGE || page == l::IST_ASYNC / l::PAGE - 1
}

/// Clears what is not the processor's state: MXCSR_MASK, which the host's FXSAVE leaves in the area.
pub fn normalise(s: &mut VcpuState) {
    s.tsc = 0;
    s.xsave[28..32].fill(0);
}

/// Whether the page holds page tables.
fn tables(page: u64) -> bool {
    let gpa = page * l::PAGE;
    (l::ROOT..l::CODE_GPA).contains(&gpa) || (l::TABLES..l::SYS_LEN).contains(&gpa)
}

/// Whether two qwords of a page are as good as the same. A processor may set accessed bits early (Intel SDM vol. 3A §4.10.2.3,
/// speculative page walks), so that the engine under test may have more of them.
fn alike(page: u64, reference: &[u8], tested: &[u8]) -> bool {
    if reference == tested {
        return true;
    }
    let of = |b: &[u8]| b.try_into().map_or(0, u64::from_le_bytes);
    tables(page) && of(reference) | pte::A == of(tested)
}

/// Whether two pages are.
fn pages_alike(page: u64, x: &[u8], y: &[u8]) -> bool {
    x == y || tables(page) && x.chunks(8).zip(y.chunks(8)).all(|(u, v)| alike(page, u, v))
}

/// Whether nothing differs.
#[must_use]
pub fn same(p: &Program, a: &Outcome, b: &Outcome, sides: [&Side; 2]) -> bool {
    a.exit == b.exit && a.state == b.state && a.log == b.log && different_page(p, a, b, sides).is_none()
}

/// The first page whose contents differ.
fn different_page(p: &Program, a: &Outcome, b: &Outcome, sides: [&Side; 2]) -> Option<u64> {
    let (mut x, mut y) = ([0; l::PAGE as usize], [0; l::PAGE as usize]);
    let both: Vec<u64> = a.dirty.iter().zip(&b.dirty).map(|(a, b)| a | b).collect();
    pages(&both).find(|page| {
        if p.asynchronous && quiet(*page) {
            return false;
        }
        sides[0].page(*page, &mut x);
        sides[1].page(*page, &mut y);
        !pages_alike(*page, &x, &y)
    })
}

/// One line for each thing that differs; `names` are the engines'.
#[must_use]
pub fn differences(
    p: &Program,
    a: &Outcome,
    b: &Outcome,
    sides: [&Side; 2],
    names: [&str; 2],
) -> Vec<String> {
    let mut out = Vec::new();
    if a.exit != b.exit {
        out.push(format!("end: {} {:?}, {} {:?}", names[0], a.exit, names[1], b.exit));
    }
    if a.ended != b.ended {
        out.push(format!("ended: {} {}, {} {}", names[0], a.ended, names[1], b.ended));
    }
    states(&a.state, &b.state, names, &mut out);
    if a.log != b.log {
        let at = a.log.first.iter().zip(&b.log.first).position(|(x, y)| x != y);
        let at = at.unwrap_or(a.log.first.len().min(b.log.first.len()));
        out.push(format!(
            "accesses: {} {} and {} {}; number {at}: {:x?}, {:x?}",
            names[0],
            a.log.count,
            names[1],
            b.log.count,
            a.log.first.get(at),
            b.log.first.get(at)
        ));
    }
    let (mut x, mut y) = ([0; l::PAGE as usize], [0; l::PAGE as usize]);
    let both: Vec<u64> = a.dirty.iter().zip(&b.dirty).map(|(a, b)| a | b).collect();
    for page in pages(&both) {
        if p.asynchronous && quiet(page) {
            continue;
        }
        sides[0].page(page, &mut x);
        sides[1].page(page, &mut y);
        for (i, (u, v)) in x.chunks(8).zip(y.chunks(8)).enumerate() {
            if !alike(page, u, v) && out.len() < MOST {
                let gpa = page * l::PAGE + i as u64 * 8;
                out.push(format!("RAM at {gpa:#x}: {} {}, {} {}", names[0], hex(u), names[1], hex(v)));
            }
        }
    }
    out
}

/// Differences between two states.
pub fn states(a: &VcpuState, b: &VcpuState, names: [&str; 2], out: &mut Vec<String>) {
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
            "{:?} shadow {} nmi blocked {} pending {}",
            s.mp_state, s.interrupt_shadow, s.nmi_blocked, s.nmi_pending
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
