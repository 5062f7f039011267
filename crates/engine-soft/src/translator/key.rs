//! What a block is translated under, besides its bytes.

use crate::cpu::{Cpu, Mode};
use ringer_arch::regs::{cr0, cr4, xcr0};
use ringer_arch::seg::{Segment, sreg};

/// 64-bit code; else 32-bit code with flat segments.
pub const BITS64: u32 = 1;
/// Ring 3.
pub const USER: u32 = 2;
/// Which supervisor table of the soft TLB: with user pages accessible.
pub const AC: u32 = 4;
/// SSE instructions run.
pub const SSE: u32 = 8;
/// AVX instructions run.
pub const AVX: u32 = 16;
/// x87 and MMX instructions run.
pub const X87: u32 = 32;
/// Ring 0.
pub const RING0: u32 = 64;

fn flat(s: &Segment, write: bool) -> bool {
    let a = s.attr;
    s.base == 0
        && s.limit == u32::MAX
        && !a.unusable()
        && a.present()
        && !a.is_expand_down()
        && (!write || a.is_writable())
}

/// The key that `cpu`'s code would be translated under now, or none if it is not for translation.
#[must_use]
pub fn of(cpu: &Cpu) -> Option<u32> {
    let mut k = match cpu.mode {
        Mode::Long => BITS64,
        Mode::Prot32 => {
            let s = &cpu.seg;
            let all = flat(&s[sreg::CS], false)
                && [sreg::SS, sreg::DS, sreg::ES].iter().all(|n| flat(&s[*n], true))
                && s[sreg::SS].attr.big();
            if !all {
                return None;
            }
            0
        }
        _ => return None,
    };
    if cpu.mmu.is_checking_alignment() {
        return None;
    }
    if cpu.cpl == 3 {
        k |= USER;
    }
    if cpu.cpl == 0 {
        k |= RING0;
    }
    if cpu.mmu.mode() == 1 {
        k |= AC;
    }
    let off = cpu.cr0 & (cr0::EM | cr0::TS) != 0;
    if !off {
        k |= X87;
        if cpu.cr4 & cr4::OSFXSR != 0 {
            k |= SSE;
        }
    }
    const BOTH: u64 = xcr0::SSE | xcr0::AVX;
    if cpu.cr0 & cr0::TS == 0 && cpu.cr4 & cr4::OSXSAVE != 0 && cpu.xcr0 & BOTH == BOTH {
        k |= AVX;
    }
    Some(k)
}
