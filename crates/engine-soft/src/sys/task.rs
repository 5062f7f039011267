//! Hardware task switches (Intel SDM vol. 3A ch. 8; the order of steps and faults: §8.3).

use super::desc::{self, Descriptor, Stack, is_null, rpl, sel_fault, typ};
use super::interrupt::Event;
use super::segment::{check_data, check_ss, null_segment};
use super::{control, v86};
use crate::cpu::{Cpu, R};
use ringer_arch::Exception;
use ringer_arch::desc::{TSS_LINK, TaskState, Tss};
use ringer_arch::exception::vector;
use ringer_arch::regs::{cr0, dr, rflags};
use ringer_arch::seg::{Attr, Segment, sreg};

/// What makes the processor switch.
enum Why<'a> {
    Jump,
    Call,
    Event(&'a Event),
    /// IRET with NT set.
    Return,
}

impl Why<'_> {
    fn ext(&self) -> u32 {
        if let Why::Event(e) = self { e.ext() } else { 0 }
    }
    /// The new task is nested in the old one.
    fn nests(&self) -> bool {
        matches!(self, Why::Call | Why::Event(_))
    }
}

/// Far JMP or CALL whose descriptor `d` is a system one but no call gate: a TSS, a task gate, or nothing of use.
pub(super) fn far_transfer(cpu: &mut Cpu, d: &Descriptor, call: bool) -> R<()> {
    let why = if call { Why::Call } else { Why::Jump };
    let a = d.attr();
    let allowed = a.dpl() >= cpu.cpl.max(rpl(d.selector)) && !cpu.long_active();
    match a.typ() {
        typ::TSS16 | typ::TSS32 if allowed => {
            if !a.present() {
                return Err(sel_fault(cpu, vector::NP, d.selector, 0));
            }
            switch(cpu, d, &why)
        }
        typ::TASK_GATE if allowed => {
            if !a.present() {
                return Err(sel_fault(cpu, vector::NP, d.selector, 0));
            }
            let tss = available_tss(cpu, d.gate_selector(), 0)?;
            switch(cpu, &tss, &why)
        }
        _ => Err(sel_fault(cpu, vector::GP, d.selector, 0)),
    }
}

/// An event through a task gate of the IDT, whose rights are checked already.
pub(super) fn event(cpu: &mut Cpu, selector: u16, ev: &Event) -> R<()> {
    let d = available_tss(cpu, selector, ev.ext())?;
    switch(cpu, &d, &Why::Event(ev))
}

/// The TSS that a task gate leads to: in the GDT, not busy, present.
fn available_tss(cpu: &mut Cpu, selector: u16, ext: u32) -> R<Descriptor> {
    if selector & 4 != 0 || is_null(selector) {
        return Err(sel_fault(cpu, vector::GP, selector, ext));
    }
    let d = desc::read(cpu, selector, vector::GP, ext)?;
    if !matches!(d.system(), Some(typ::TSS16 | typ::TSS32)) {
        return Err(sel_fault(cpu, vector::GP, selector, ext));
    }
    if !d.attr().present() {
        return Err(sel_fault(cpu, vector::NP, selector, ext));
    }
    Ok(d)
}

/// IRET with NT set: back to the task that the current TSS links to.
pub(super) fn nested_return(cpu: &mut Cpu) -> R<()> {
    let at = desc::wrap(cpu, cpu.tr.base.wrapping_add(u64::from(TSS_LINK)));
    let selector = cpu.load_sys::<u16>(at)?;
    if selector & 4 != 0 || is_null(selector) {
        return Err(sel_fault(cpu, vector::TS, selector, 0));
    }
    let d = desc::read(cpu, selector, vector::TS, 0)?;
    if !matches!(d.system(), Some(typ::TSS16_BUSY | typ::TSS32_BUSY)) {
        return Err(sel_fault(cpu, vector::TS, selector, 0));
    }
    if !d.attr().present() {
        return Err(sel_fault(cpu, vector::NP, selector, 0));
    }
    switch(cpu, &d, &Why::Return)
}

/// Bytes of a TSS that a task switch saves to.
fn saved_range(format: Tss) -> std::ops::Range<usize> {
    match format {
        Tss::Bits16 => 14..42,
        Tss::Bits32 => 32..96,
    }
}

fn format_of(typ: u8) -> Tss {
    Tss::of_type(typ).map_or(Tss::Bits32, |(f, _)| f)
}

/// Switches to the task of `d`, a TSS descriptor whose type and rights the caller has checked.
fn switch(cpu: &mut Cpu, d: &Descriptor, why: &Why) -> R<()> {
    let ext = why.ext();
    let new_tr = d.segment();
    let format = format_of(d.attr().typ());
    if (new_tr.limit as usize) + 1 < format.size() {
        return Err(sel_fault(cpu, vector::TS, d.selector, ext));
    }
    let mut bytes = [0; 104];
    let base = new_tr.base;
    cpu.as_supervisor(|cpu| cpu.read_bytes(base, &mut bytes[..format.size()]))?;
    let mut new = TaskState::read(format, &bytes);
    // All that can fault on the old task's side comes before the first change.
    let old_format = format_of(cpu.tr.attr.typ());
    let saved = saved_range(old_format);
    let old_at = desc::wrap(cpu, cpu.tr.base.wrapping_add(saved.start as u64));
    let old_tr = cpu.tr;
    let old_desc = desc::read(cpu, old_tr.selector, vector::TS, ext)?;
    cpu.as_supervisor(|cpu| {
        cpu.probe_write(old_at, saved.len() as u64)?;
        cpu.probe_write(base, 2)?;
        cpu.probe_write(d.addr, 8)?;
        cpu.probe_write(old_desc.addr, 8)
    })?;
    if !why.nests() {
        desc::set_busy(cpu, &old_desc, false)?;
    }
    let mut out = [0; 104];
    old_state(cpu, why).save(old_format, &mut out);
    cpu.as_supervisor(|cpu| cpu.write_bytes(old_at, &out[saved]))?;
    if why.nests() {
        cpu.store_sys(base, old_tr.selector)?;
        new.flags |= rflags::NT as u32;
    }
    if !matches!(why, Why::Return) {
        desc::set_busy(cpu, d, true)?;
    }
    cpu.tr = new_tr;
    cpu.tr.attr.0 |= 2;
    cpu.cr0 |= cr0::TS;
    let loaded = load_state(cpu, &new, format, ext);
    // Faults from here on belong to the new task, whatever instruction it stands at.
    cpu.rip = u64::from(new.ip);
    cpu.next_rip = cpu.rip;
    cpu.leave = true;
    loaded?;
    if let Why::Event(Event { code: Some(code), .. }) = why {
        let mut s = Stack::current(cpu, ext);
        s.push(cpu, if format == Tss::Bits32 { 4 } else { 2 }, u64::from(*code))?;
        s.commit(cpu);
    }
    if cpu.next_rip > u64::from(cpu.seg[sreg::CS].limit) {
        return Err(cpu.raise(Exception::coded(vector::GP, ext)));
    }
    if new.trap {
        cpu.debug_trap |= dr::DR6_BT;
    }
    Ok(())
}

/// What is saved of the old task.
fn old_state(cpu: &Cpu, why: &Why) -> TaskState {
    let (ip, flags) = match why {
        Why::Event(e) => (e.return_ip(cpu), e.flags(cpu)),
        Why::Return => (cpu.next_rip, cpu.rflags() & !rflags::NT),
        _ => (cpu.next_rip, cpu.rflags()),
    };
    TaskState {
        ip: ip as u32,
        flags: flags as u32,
        gpr: std::array::from_fn(|n| cpu.regs[n] as u32),
        seg: cpu.seg.map(|s| s.selector),
        ..TaskState::default()
    }
}

/// Loads the new task: first all that cannot fault, then LDTR and the segment registers.
fn load_state(cpu: &mut Cpu, new: &TaskState, format: Tss, ext: u32) -> R<()> {
    // 16-bit tasks leave the upper halves undefined; ones is what processors are seen to leave.
    let upper = if format == Tss::Bits16 { 0xffff_0000 } else { 0 };
    for (n, v) in new.gpr.iter().enumerate() {
        cpu.regs[n] = u64::from(v | upper);
    }
    // Local breakpoints end with their task (Intel SDM vol. 3B §18.2.4).
    if cpu.dr[7] & 0x155 != 0 {
        cpu.dr[7] &= !0x155;
        cpu.mmu.flush_all();
    }
    let v86 = format == Tss::Bits32 && u64::from(new.flags) & rflags::VM != 0;
    for (index, &selector) in new.seg.iter().enumerate() {
        cpu.seg[index] =
            if v86 { v86::segment(selector) } else { Segment { selector, ..null_segment(cpu, index, 0) } };
    }
    cpu.ldtr = Segment { selector: new.ldt, attr: Attr(Attr::UNUSABLE), ..Segment::default() };
    cpu.cpl = if v86 { 3 } else { rpl(new.seg[sreg::CS]) };
    cpu.set_rflags(u64::from(new.flags) & rflags::ALL | rflags::FIXED);
    cpu.update_mode();
    if format == Tss::Bits32 && cpu.cr0 & cr0::PG != 0 {
        control::set_cr3(cpu, u64::from(new.cr3), false)?;
    }
    load_ldtr(cpu, new.ldt, ext)?;
    if !v86 {
        load_segments(cpu, new, ext)?;
    }
    cpu.update_mode();
    Ok(())
}

fn load_ldtr(cpu: &mut Cpu, selector: u16, ext: u32) -> R<()> {
    if is_null(selector) {
        return Ok(());
    }
    if selector & 4 != 0 {
        return Err(sel_fault(cpu, vector::TS, selector, ext));
    }
    let d = desc::read(cpu, selector, vector::TS, ext)?;
    if d.system() != Some(typ::LDT) || !d.attr().present() {
        return Err(sel_fault(cpu, vector::TS, selector, ext));
    }
    cpu.ldtr = d.segment();
    Ok(())
}

fn load_segments(cpu: &mut Cpu, new: &TaskState, ext: u32) -> R<()> {
    let cs = new_cs(cpu, new.seg[sreg::CS], ext)?;
    cpu.seg[sreg::CS] = cs;
    let ss = check_ss(cpu, new.seg[sreg::SS], cpu.cpl, vector::TS, ext)?;
    cpu.seg[sreg::SS] = ss;
    for index in [sreg::DS, sreg::ES, sreg::FS, sreg::GS] {
        let s = check_data(cpu, index, new.seg[index], vector::TS, ext)?;
        cpu.seg[index] = s;
    }
    Ok(())
}

fn new_cs(cpu: &mut Cpu, selector: u16, ext: u32) -> R<Segment> {
    if is_null(selector) {
        return Err(sel_fault(cpu, vector::TS, selector, ext));
    }
    let d = desc::read(cpu, selector, vector::TS, ext)?;
    let a = d.attr();
    let level = rpl(selector);
    let fits = if a.is_conforming() { a.dpl() <= level } else { a.dpl() == level };
    if !a.is_code() || !fits {
        return Err(sel_fault(cpu, vector::TS, selector, ext));
    }
    if !a.present() {
        return Err(sel_fault(cpu, vector::NP, selector, ext));
    }
    desc::set_accessed(cpu, &d)?;
    Ok(d.segment())
}
