//! Compares where two engines left the same program.

use crate::layout as l;
use crate::machine::pte;
use crate::program::Program;
use crate::side::{Outcome, Side, pages};
use ringer_arch::VcpuState;
use ringer_arch::seg::{Attr, sreg};
pub use ringer_lockstep::states::{NAMES, differences as differences_of_states, hex, normalise, xsave_parts};

/// Differences told in full.
const MOST: usize = 40;

/// Pages in which asynchronous interrupts leave traces.
fn quiet(page: u64) -> bool {
    page == l::ASYNC / l::PAGE || page == l::IST_ASYNC / l::PAGE - 1
}

/// Clears what tells whether an interrupt has come: IRET loads the segments' attributes from their descriptors, where SYSCALL has set
/// them as it does whatever those say (Intel SDM vol. 2B SYSCALL).
pub fn forget_reloads(s: &mut VcpuState) {
    for n in [sreg::CS, sreg::SS] {
        s.seg[n].attr = Attr(0);
    }
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
    differences_of_states(&a.state, &b.state, names, &mut out);
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
