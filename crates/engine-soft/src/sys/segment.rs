//! Loading segment registers with the checks of every mode (Intel SDM vol. 2B "MOV", vol. 3A §5.4 to 5.8).

use super::desc::{self, Descriptor, is_null, rpl, sel_fault};
use crate::cpu::{Cpu, Mode, R};
use ringer_arch::cpu::Feature;
use ringer_arch::exception::vector;
use ringer_arch::seg::{Attr, Segment, sreg};

/// What a segment register holds after a null selector is loaded. SS keeps the DPL, which stands for the CPL.
pub(super) fn null_segment(cpu: &Cpu, index: usize, selector: u16) -> Segment {
    let old = cpu.seg[index];
    let dpl = if index == sreg::SS { u32::from(rpl(selector)) << 5 } else { 0 };
    // Intel clears the base; AMD does so since it reports NullSelectorClearsBase (AMD APM vol. 2 §4.5.3).
    let cleared = !cpu.amd() || cpu.has(Feature::NULL_SEL_CLEARS_BASE);
    let base = if cleared { 0 } else { old.base };
    // A limit that is of use if the program goes to real mode without loading the register again.
    Segment { selector, base, limit: old.limit.max(0xffff), attr: Attr(Attr::UNUSABLE | dpl) }
}

/// A segment register of real or virtual-8086 mode: base from the selector. Real mode keeps limit and rights as
/// protected mode left them ("big real mode"); virtual-8086 mode has fixed ones.
pub(super) fn load_real(cpu: &mut Cpu, index: usize, selector: u16) {
    let s = &mut cpu.seg[index];
    s.selector = selector;
    s.base = u64::from(selector) << 4;
    if cpu.mode == Mode::V86 {
        s.limit = 0xffff;
        s.attr = Attr(0xf3);
    } else if s.attr.unusable() {
        s.attr = Attr(0x93);
    }
}

/// Loads a data segment register (not CS) as MOV, POP and the far-pointer loads do.
///
/// # Errors
/// #GP, #SS, #NP with the selector, #PF of the descriptor table.
pub(super) fn load(cpu: &mut Cpu, index: usize, selector: u16) -> R<()> {
    if !cpu.protected() {
        load_real(cpu, index, selector);
    } else if index == sreg::SS {
        let s = check_ss(cpu, selector, cpu.cpl, vector::GP, 0)?;
        cpu.seg[index] = s;
    } else {
        let s = check_data(cpu, index, selector, vector::GP, 0)?;
        cpu.seg[index] = s;
    }
    cpu.update_mode();
    Ok(())
}

/// What DS, ES, FS or GS becomes when `selector` is loaded. Violations raise `bad` (#GP, or #TS when the selector comes from a
/// TSS), #NP if not present.
pub(super) fn check_data(cpu: &mut Cpu, index: usize, selector: u16, bad: u8, ext: u32) -> R<Segment> {
    if is_null(selector) {
        return Ok(null_segment(cpu, index, selector));
    }
    let d = desc::read(cpu, selector, bad, ext)?;
    let a = d.attr();
    let level = rpl(selector).max(cpu.cpl);
    if !a.is_readable() || (!a.is_conforming() && level > a.dpl()) {
        return Err(sel_fault(cpu, bad, selector, ext));
    }
    if !a.present() {
        return Err(sel_fault(cpu, vector::NP, selector, ext));
    }
    desc::set_accessed(cpu, &d)?;
    Ok(d.segment())
}

/// What SS becomes when `selector` is loaded for ring `cpl`. Violations raise `bad` (#GP, or #TS when the selector comes from
/// a TSS), #SS if not present.
pub(super) fn check_ss(cpu: &mut Cpu, selector: u16, cpl: u8, bad: u8, ext: u32) -> R<Segment> {
    if is_null(selector) {
        // 64-bit code above ring 3 may run without a stack segment (Intel SDM vol. 2B "MOV").
        if cpu.is64() && cpl < 3 && rpl(selector) == cpl {
            return Ok(null_segment(cpu, sreg::SS, selector));
        }
        return Err(cpu.raise(ringer_arch::Exception::coded(bad, ext)));
    }
    let d = ss_descriptor(cpu, selector, cpl, bad, ext)?;
    desc::set_accessed(cpu, &d)?;
    Ok(d.segment())
}

/// The descriptor of a stack segment for ring `cpl`, checked, not yet marked accessed.
pub(super) fn ss_descriptor(cpu: &mut Cpu, selector: u16, cpl: u8, bad: u8, ext: u32) -> R<Descriptor> {
    let d = desc::read(cpu, selector, bad, ext)?;
    let a = d.attr();
    if rpl(selector) != cpl || !a.is_writable() || a.dpl() != cpl {
        return Err(sel_fault(cpu, bad, selector, ext));
    }
    if !a.present() {
        return Err(sel_fault(cpu, vector::SS, selector, ext));
    }
    Ok(d)
}

/// Whether a code descriptor has both L and D set, which long mode does not allow.
pub(super) fn bad_long_code(cpu: &Cpu, a: Attr) -> bool {
    cpu.long_active() && a.long() && a.big()
}

/// Nulls the data segment registers that a less privileged ring may not keep (Intel SDM vol. 2B "RET", vol. 3A §5.8.6).
pub(super) fn drop_inner_segments(cpu: &mut Cpu) {
    for index in [sreg::ES, sreg::FS, sreg::GS, sreg::DS] {
        let a = cpu.seg[index].attr;
        if !a.unusable() && !a.is_conforming() && a.dpl() < cpu.cpl {
            cpu.seg[index] = null_segment(cpu, index, 0);
        }
    }
}
