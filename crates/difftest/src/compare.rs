//! Compares what the two sides made of a case.

use crate::generate::Case;
use crate::record::{Input, Output};
use crate::undefined;
use std::fmt::Write as _;

const NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];
/// RFLAGS.RF: set in the flags that faults save (Intel SDM vol. 3B §18.3.1.1), and never seen otherwise.
const RF: u64 = 1 << 16;
/// Vectors whose error code Linux hands to a signal handler.
const CODED: [u32; 6] = [8, 10, 11, 12, 13, 14];

/// Quick answer: nothing differs.
#[must_use]
pub fn same(case: &Case, input: &Input, e: &Output, n: &Output) -> bool {
    let hold = !(undefined::flags(&case.insn) | RF);
    same_gprs(e, n)
        && (e.rflags ^ n.rflags) & hold == 0
        && (e.signal != 0) == (n.signal != 0)
        && (n.signal == 0 || same_fault(e, n) || undefined::fault_is_open(&case.insn, e, n))
        && (e.fs_base, e.gs_base) == (n.fs_base, n.gs_base)
        && e.sel.map(undefined::selector) == n.sel.map(undefined::selector)
        && same_vector(e, n)
        && same_log(input, e, n)
}

fn same_gprs(e: &Output, n: &Output) -> bool {
    let mask = undefined::gpr_mask(e, n);
    e.gpr.iter().zip(&n.gpr).all(|(a, b)| (a ^ b) & mask == 0)
}

fn same_fault(e: &Output, n: &Output) -> bool {
    e.vector == n.vector
        && e.rip == n.rip
        && (!CODED.contains(&n.vector) || code(e) == code(n))
        && (n.vector != 14 || e.cr2 == n.cr2)
}

/// The error code. Of faults in the upper half of the address space Linux always says that a page was there
/// (arch/x86/mm/fault.c, set_signal_archinfo).
fn code(o: &Output) -> u32 {
    if o.vector == 14 && o.cr2 >= 1 << 47 { o.code | 1 } else { o.code }
}

fn same_vector(e: &Output, n: &Output) -> bool {
    let (a, b) = (&e.xsave, &n.xsave);
    a[..6] == b[..6]
        && (!pointers_visible(n) || a[6..24] == b[6..24])
        && a[24..28] == b[24..28]
        && a[160..416] == b[160..416]
        && a[576..] == b[576..]
        && (0..8).all(|i| a[32 + 16 * i..][..10] == b[32 + 16 * i..][..10])
}

/// Whether the native side could see the x87 pointers: AMD's XSAVE stores zeros for them unless an unmasked exception is
/// pending (APM vol. 2 §11.4.4.3; vol. 5 FXSAVE).
fn pointers_visible(n: &Output) -> bool {
    n.xsave[2] & 0x80 != 0 || n.xsave[6..24] != [0; 18]
}

fn logged(input: &Input) -> usize {
    input.log.iter().map(|s| s.len as usize).sum()
}

fn same_log(input: &Input, e: &Output, n: &Output) -> bool {
    let len = logged(input);
    e.log[..len] == n.log[..len]
}

fn hex(b: &[u8]) -> String {
    b.iter().fold(String::new(), |mut s, x| {
        let _infallible = write!(s, "{x:02x}");
        s
    })
}

/// One line for each thing that differs: what, interpreter, processor.
#[must_use]
pub fn differences(case: &Case, input: &Input, e: &Output, n: &Output) -> Vec<String> {
    let mut out = Vec::new();
    let mut num = |name: &str, a: u64, b: u64| {
        if a != b {
            out.push(format!("{name}: interpreter {a:#x}, processor {b:#x}"));
        }
    };
    for (i, name) in NAMES.iter().enumerate() {
        num(name, e.gpr[i], n.gpr[i]);
    }
    let hold = !(undefined::flags(&case.insn) | RF);
    num("rflags", e.rflags & hold, n.rflags & hold);
    num("fs base", e.fs_base, n.fs_base);
    num("gs base", e.gs_base, n.gs_base);
    for (i, name) in ["es", "cs", "ss", "ds", "fs", "gs"].iter().enumerate() {
        num(name, u64::from(e.sel[i]), u64::from(n.sel[i]));
    }
    if (e.signal != 0) != (n.signal != 0) || n.signal != 0 && !same_fault(e, n) {
        out.push(format!("end: interpreter {}, processor {}", end(e), end(n)));
    }
    let mut bytes = |name: String, a: &[u8], b: &[u8]| {
        if a != b {
            out.push(format!("{name}: interpreter {}, processor {}", hex(a), hex(b)));
        }
    };
    for (name, at, len) in [
        ("fcw", 0, 2),
        ("fsw", 2, 2),
        ("ftw", 4, 1),
        ("mxcsr", 24, 4),
        ("fop", 6, 2),
        ("fip", 8, 8),
        ("fdp", 16, 8),
    ] {
        if (6..24).contains(&at) && !pointers_visible(n) {
            continue;
        }
        bytes(name.to_owned(), &e.xsave[at..at + len], &n.xsave[at..at + len]);
    }
    for i in 0..8 {
        bytes(format!("st{i}"), &e.xsave[32 + 16 * i..][..10], &n.xsave[32 + 16 * i..][..10]);
    }
    for i in 0..16 {
        bytes(format!("xmm{i}"), &e.xsave[160 + 16 * i..][..16], &n.xsave[160 + 16 * i..][..16]);
        bytes(format!("ymm{i} high"), &e.xsave[576 + 16 * i..][..16], &n.xsave[576 + 16 * i..][..16]);
    }
    let mut at = 0;
    for s in &input.log {
        let len = s.len as usize;
        let (a, b) = (&e.log[at..at + len], &n.log[at..at + len]);
        if let (Some(first), Some(last)) =
            ((0..len).find(|i| a[*i] != b[*i]), (0..len).rev().find(|i| a[*i] != b[*i]))
        {
            let lin = crate::layout::DATA + u64::from(s.off) + first as u64;
            bytes(format!("memory at {lin:#x}"), &a[first..=last], &b[first..=last]);
        }
        at += len;
    }
    out
}

fn end(o: &Output) -> String {
    if o.signal == 0 {
        return "completed".to_owned();
    }
    let cr2 = if o.vector == 14 { format!(" at {:#x}", o.cr2) } else { String::new() };
    format!("vector {} code {:#x}{cr2} rip {:#x}", o.vector, o.code, o.rip)
}

/// The state that a case started from, for a report.
#[must_use]
pub fn describe(input: &Input) -> String {
    let mut s = String::new();
    for (i, name) in NAMES.iter().enumerate() {
        let _infallible = write!(s, "{name}={:x} ", input.gpr[i]);
    }
    let x = &input.xsave;
    let _infallible = write!(
        s,
        "rip={:x} rflags={:x} fs={:x} gs={:x} fcw={} fsw={} ftw={} mxcsr={}",
        input.rip,
        input.rflags,
        input.fs_base,
        input.gs_base,
        hex(&x[0..2]),
        hex(&x[2..4]),
        hex(&x[4..5]),
        hex(&x[24..28])
    );
    for p in input.patch.iter().filter(|p| p.len != 0) {
        let at = crate::layout::DATA + u64::from(p.off);
        let _infallible = write!(s, "\n    memory {at:#x} = {}", hex(&p.data[..p.len as usize]));
    }
    for i in 0..16 {
        let _infallible =
            write!(s, "\n    ymm{i} = {} {}", hex(&x[160 + 16 * i..][..16]), hex(&x[576 + 16 * i..][..16]));
    }
    for i in 0..8 {
        let _infallible = write!(s, "\n    st{i} = {}", hex(&x[32 + 16 * i..][..10]));
    }
    s
}
