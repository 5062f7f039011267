//! FXSAVE, FXRSTOR and the XSAVE family on guest memory (Intel SDM vol. 1 ch. 13, vol. 2; AMD APM vol. 2 §11.5). In software:
//! layouts depend on the guest's mode and the guest has fewer state components than the host.

use super::envs::summarized;
use super::simple::{mxcsr_mask, vectors};
use super::x87::{self, ES, Selectors, at};
use super::{Special, read_area, touch, write_area};
use crate::cpu::{Cpu, R};
use crate::mmu::Acc;
use iced_x86::{Code, Instruction};
use ringer_arch::cpu::{Feature, Vendor};
use ringer_arch::regs::{cr4, efer, xcr0};
use ringer_arch::state::XSAVE_YMM_HI;

const X87: u64 = xcr0::X87;
const SSE: u64 = xcr0::SSE;
const AVX: u64 = xcr0::AVX;
const HEADER: usize = at::HEADER;
/// XCOMP_BV bit 63: compacted format.
const COMPACT: u64 = 1 << 63;
/// MXCSR at reset.
const MXCSR_INIT: u32 = 0x1f80;

/// The instruction, if it is one of this module.
#[must_use]
pub fn find(i: &Instruction) -> Option<Special> {
    Some(match i.code() {
        Code::Fxsave_m512byte => fxsave::<false>,
        Code::Fxsave64_m512byte => fxsave::<true>,
        Code::Fxrstor_m512byte => fxrstor::<false>,
        Code::Fxrstor64_m512byte => fxrstor::<true>,
        Code::Xsave_mem => |cpu, i| xsave(cpu, i, false, Form::Plain),
        Code::Xsave64_mem => |cpu, i| xsave(cpu, i, true, Form::Plain),
        Code::Xsaveopt_mem => |cpu, i| xsave(cpu, i, false, Form::Optimized),
        Code::Xsaveopt64_mem => |cpu, i| xsave(cpu, i, true, Form::Optimized),
        Code::Xsavec_mem => |cpu, i| xsave(cpu, i, false, Form::Compacted),
        Code::Xsavec64_mem => |cpu, i| xsave(cpu, i, true, Form::Compacted),
        Code::Xrstor_mem => xrstor::<false>,
        Code::Xrstor64_mem => xrstor::<true>,
        _ => return None,
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Plain,
    Optimized,
    Compacted,
}

/// Linear address of a save area, from which bytes `first` are touched in this order.
fn area(cpu: &mut Cpu, i: &Instruction, align: u64, first: &[u64], acc: Acc) -> R<u64> {
    if cpu.is64() && cpu.unchecked_lin(i) & (align - 1) & !3 != 0 && !cpu.alignment_checked() {
        return Err(cpu.gp(0));
    }
    let lin = cpu.mem_lin(i, 1, acc)?;
    if align == 16 {
        // FXSAVE and FXRSTOR: the alignment check comes first, with dwords.
        cpu.require_alignment(lin, 4)?;
    }
    if lin & (align - 1) != 0 {
        return Err(cpu.gp(0));
    }
    for at in first {
        touch(cpu, i, *at, 1, acc)?;
    }
    Ok(lin)
}

/// The first 24 bytes, in the 64-bit format or the one with selectors.
fn x87_head(cpu: &Cpu, wide: bool) -> [u8; 24] {
    let mut b = [0; 24];
    b[..8].copy_from_slice(&cpu.xsave.0[..8]);
    b[5] = 0;
    // AMD processors keep the pointers to themselves unless an exception is pending (AMD APM vol. 2 §11.4.4.3).
    if cpu.model.vendor() == Vendor::Amd && x87::fsw(cpu) & ES == 0 {
        b[6..].fill(0);
        return b;
    }
    b[8..24].copy_from_slice(&cpu.xsave.0[8..24]);
    if !wide {
        let Selectors { cs, ds } = cpu.host.selectors;
        b[12..16].copy_from_slice(&u32::from(cs).to_le_bytes());
        b[20..24].copy_from_slice(&u32::from(ds).to_le_bytes());
    }
    b
}

fn mxcsr_words(cpu: &Cpu) -> [u8; 8] {
    (u64::from(x87::mxcsr(cpu)) | u64::from(mxcsr_mask(cpu)) << 32).to_le_bytes()
}

/// ST0 to ST7 with their padding, which is zero.
fn stack(cpu: &Cpu) -> [u8; 128] {
    let mut b = [0; 128];
    for n in 0..8 {
        b[16 * n..16 * n + 10].copy_from_slice(&cpu.xsave.0[at::ST + 16 * n..][..10]);
    }
    b
}

/// Takes over the x87 part of a legacy area.
fn load_x87(cpu: &mut Cpu, b: &[u8; 160], wide: bool) {
    let word = |at: usize| u16::from_le_bytes([b[at], b[at + 1]]);
    let fcw = word(at::FCW) & 0x1f3f | 0x40;
    let fsw = summarized(fcw, word(at::FSW));
    let quad = |at: usize| {
        let mut v = [0; 8];
        v.copy_from_slice(&b[at..at + 8]);
        u64::from_le_bytes(v)
    };
    let (mut fip, mut fdp) = (quad(at::FIP), quad(at::FDP));
    cpu.host.selectors = Selectors::default();
    if wide {
        let unused = 64 - cpu.model.max_linear_bits().clamp(48, 57);
        let canonical = |v: u64| ((v << unused) as i64 >> unused) as u64;
        // Intel's processors keep all bits of FDP.
        (fip, fdp) = (canonical(fip), if cpu.amd() { canonical(fdp) } else { fdp });
    } else {
        cpu.host.selectors = Selectors { cs: word(12), ds: word(20) };
        (fip, fdp) = (fip & 0xffff_ffff, fdp & 0xffff_ffff);
    }
    let x = &mut cpu.xsave.0;
    x[at::FCW..at::FCW + 2].copy_from_slice(&fcw.to_le_bytes());
    x[at::FSW..at::FSW + 2].copy_from_slice(&fsw.to_le_bytes());
    x[at::FTW] = b[at::FTW];
    for n in 0..8 {
        x[at::ST + 16 * n..][..10].copy_from_slice(&b[at::ST + 16 * n..][..10]);
        x[at::ST + 16 * n + 10..][..6].fill(0);
    }
    x87::put(cpu, word(at::FOP) & 0x7ff, fip, fdp);
}

fn init_x87(cpu: &mut Cpu) {
    let mut b = [0; 160];
    b[..2].copy_from_slice(&0x37fu16.to_le_bytes());
    load_x87(cpu, &b, true);
}

fn set_mxcsr(cpu: &mut Cpu, v: u32) {
    cpu.xsave.0[at::MXCSR..at::MXCSR + 4].copy_from_slice(&v.to_le_bytes());
}

/// Whether FXSAVE and FXRSTOR deal with XMM registers: not in AMD's fast mode, nor before the system has enabled them.
fn with_xmm(cpu: &Cpu) -> bool {
    let fast = cpu.efer & efer::FFXSR != 0 && cpu.cpl == 0 && cpu.is64();
    cpu.cr4 & cr4::OSFXSR != 0 && !fast
}

fn fxsave<const WIDE: bool>(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    let lin = area(cpu, i, 16, &[511, 0], Acc::Write)?;
    let xmm = if with_xmm(cpu) { 16 * vectors(cpu) } else { 0 };
    let mut b = [0; 416];
    b[..24].copy_from_slice(&x87_head(cpu, WIDE));
    b[24..32].copy_from_slice(&mxcsr_words(cpu));
    b[32..160].copy_from_slice(&stack(cpu));
    b[160..160 + xmm].copy_from_slice(&cpu.xsave.0[160..160 + xmm]);
    write_area(cpu, lin, &b[..160 + xmm])
}

fn fxrstor<const WIDE: bool>(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    let lin = area(cpu, i, 16, &[511, 0], Acc::Read)?;
    let mut b = [0; 512];
    read_area(cpu, lin, &mut b)?;
    let mxcsr = u32::from_le_bytes([b[24], b[25], b[26], b[27]]);
    if cpu.cr4 & cr4::OSFXSR != 0 {
        if mxcsr & !mxcsr_mask(cpu) != 0 {
            return Err(cpu.gp(0));
        }
        set_mxcsr(cpu, mxcsr);
    }
    if with_xmm(cpu) {
        let end = 160 + 16 * vectors(cpu);
        cpu.xsave.0[160..end].copy_from_slice(&b[160..end]);
    }
    let mut head = [0; 160];
    head.copy_from_slice(&b[..160]);
    load_x87(cpu, &head, WIDE);
    Ok(())
}

/// The state components that are not in their initial configuration (Intel SDM vol. 1 §13.6), as far as values tell.
#[must_use]
fn in_use(cpu: &Cpu) -> u64 {
    let zero = |b: &[u8]| b.iter().all(|b| *b == 0);
    let x = &cpu.xsave.0;
    // AMD processors do not count the pointers, which they save with a pending exception only.
    let words = if cpu.model.vendor() == Vendor::Amd { &x[2..6] } else { &x[2..24] };
    let x87 = x87::fcw(cpu) != 0x37f || !zero(words) || !zero(&x[32..160]);
    let sse = !zero(&x[160..416]);
    let avx = !zero(&x[XSAVE_YMM_HI..]);
    (u64::from(x87) * X87) | (u64::from(sse) * SSE) | (u64::from(avx) * AVX)
}

/// `in_use` as XGETBV and XSAVEC see it, for whom MXCSR belongs to SSE.
#[must_use]
pub fn xinuse(cpu: &Cpu) -> u64 {
    in_use(cpu) | if x87::mxcsr(cpu) != MXCSR_INIT { SSE } else { 0 }
}

/// Bits EDX:EAX that XCR0 has.
fn requested(cpu: &Cpu) -> u64 {
    cpu.xcr0 & ((cpu.regs[0] & 0xffff_ffff) | cpu.regs[2] << 32)
}

fn xsave(cpu: &mut Cpu, i: &Instruction, wide: bool, form: Form) -> R<()> {
    let want = requested(cpu);
    let len = if want & AVX != 0 { 832 } else { 576 };
    let lin = area(cpu, i, 64, &[0, len - 1], Acc::Write)?;
    let used = if form == Form::Compacted { xinuse(cpu) } else { in_use(cpu) };
    let mut saved = want;
    let header = cpu.lin_add(lin, HEADER as u64);
    let bv = if form == Form::Compacted {
        saved &= used;
        let at = cpu.lin_add(header, 8);
        cpu.store(at, COMPACT | want)?;
        saved
    } else {
        if form == Form::Optimized {
            saved &= used;
        }
        let old: u64 = cpu.load(header)?;
        old & !want | used & want
    };
    cpu.store(header, bv)?;
    if saved & X87 != 0 {
        let (head, st) = (x87_head(cpu, wide), stack(cpu));
        write_area(cpu, lin, &head)?;
        let at = cpu.lin_add(lin, at::ST as u64);
        write_area(cpu, at, &st)?;
    }
    let with_mxcsr = if form == Form::Compacted { saved & SSE != 0 } else { want & (SSE | AVX) != 0 };
    if with_mxcsr {
        let (at, b) = (cpu.lin_add(lin, at::MXCSR as u64), mxcsr_words(cpu));
        write_area(cpu, at, &b)?;
    }
    for (bit, from) in [(SSE, at::XMM), (AVX, XSAVE_YMM_HI)] {
        if saved & bit != 0 {
            let n = 16 * vectors(cpu);
            let mut b = [0; 256];
            b[..n].copy_from_slice(&cpu.xsave.0[from..from + n]);
            let at = cpu.lin_add(lin, from as u64);
            write_area(cpu, at, &b[..n])?;
        }
    }
    Ok(())
}

/// XSTATE_BV and XCOMP_BV of a header, or `None` if XRSTOR must refuse it.
fn checked_header(cpu: &Cpu, b: &[u8; 64]) -> Option<(u64, u64)> {
    let quad = |n: usize| {
        let mut v = [0; 8];
        v.copy_from_slice(&b[8 * n..8 * n + 8]);
        u64::from_le_bytes(v)
    };
    let (bv, comp) = (quad(0), quad(1));
    let ok = if comp & COMPACT == 0 {
        bv & !cpu.xcr0 == 0 && comp == 0 && quad(2) == 0
    } else {
        cpu.has(Feature::XSAVEC)
            && comp & !COMPACT & !cpu.xcr0 == 0
            && bv & !comp == 0
            && (2..8).all(|n| quad(n) == 0)
    };
    ok.then_some((bv & !COMPACT, comp))
}

fn xrstor<const WIDE: bool>(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    let want = requested(cpu);
    let len = if want & AVX != 0 { 832 } else { 576 };
    let lin = area(cpu, i, 64, &[0, HEADER as u64], Acc::Read)?;
    let mut head = [0; 64];
    let at = cpu.lin_add(lin, HEADER as u64);
    read_area(cpu, at, &mut head)?;
    let Some((bv, comp)) = checked_header(cpu, &head) else { return Err(cpu.gp(0)) };
    let compact = comp & COMPACT != 0;
    touch(cpu, i, len - 1, 1, Acc::Read)?;
    // Everything is read before anything changes.
    let mut b = Box::new([0; 832]);
    read_area(cpu, lin, &mut b[..512])?;
    if want & bv & AVX != 0 {
        let at = cpu.lin_add(lin, XSAVE_YMM_HI as u64);
        read_area(cpu, at, &mut b[XSAVE_YMM_HI..])?;
    }
    let mxcsr = match compact {
        false => want & (SSE | AVX) != 0,
        true => want & bv & SSE != 0,
    };
    let value = u32::from_le_bytes([b[24], b[25], b[26], b[27]]);
    if mxcsr {
        if value & !mxcsr_mask(cpu) != 0 {
            return Err(cpu.gp(0));
        }
        set_mxcsr(cpu, value);
    } else if compact && want & SSE != 0 {
        set_mxcsr(cpu, MXCSR_INIT);
    }
    if want & X87 != 0 {
        if bv & X87 != 0 {
            let mut legacy = [0; 160];
            legacy.copy_from_slice(&b[..160]);
            load_x87(cpu, &legacy, WIDE);
        } else {
            init_x87(cpu);
        }
    }
    let n = 16 * vectors(cpu);
    for (bit, from) in [(SSE, at::XMM), (AVX, XSAVE_YMM_HI)] {
        if want & bit != 0 {
            let to = &mut cpu.xsave.0[from..from + n];
            if bv & bit != 0 { to.copy_from_slice(&b[from..from + n]) } else { to.fill(0) }
        }
    }
    Ok(())
}

/// Makes an XSAVE area that came from outside one that the host accepts: MXCSR without undefined bits, the x87 words
/// consistent, the padding zero.
pub fn sanitize(cpu: &mut Cpu) {
    let v = x87::mxcsr(cpu) & mxcsr_mask(cpu);
    set_mxcsr(cpu, v);
    let mut legacy = [0; 160];
    legacy.copy_from_slice(&cpu.xsave.0[..160]);
    load_x87(cpu, &legacy, true);
}
