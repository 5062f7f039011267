//! The processor and its tables before a check: one preset a mode.

use super::layout::{self as l, sel};
use ringer_arch::cpu::{CpuModel, Feature};
use ringer_arch::regs::{cr0, cr4, efer, gpr, rflags};
use ringer_arch::seg::{Attr, Segment, TableReg, sreg};
use ringer_arch::{VcpuState, msr};
use ringer_memory::{GuestMemory, MemoryError};

/// A mode that a check starts in. All but the first are ring 0 with flat segments, and handlers for all vectors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Real mode: CS and the other segments are 0.
    Real,
    /// 32-bit protected mode without paging.
    Flat,
    /// 32-bit paging: CR4.PSE is off.
    Paged32,
    /// PAE paging.
    Pae,
    /// 64-bit mode, 4-level paging.
    Long,
    /// 64-bit mode, 5-level paging.
    La57,
}

/// Page-table bits.
#[allow(missing_docs)]
pub mod pte {
    pub const P: u64 = 1;
    pub const W: u64 = 2;
    pub const U: u64 = 4;
    pub const A: u64 = 0x20;
    pub const D: u64 = 0x40;
    pub const PS: u64 = 0x80;
    pub const G: u64 = 0x100;
    pub const NX: u64 = 1 << 63;
    /// Present, writable, accessed and dirty.
    pub const KERNEL: u64 = P | W | A | D;
    /// The same for ring 3.
    pub const USER: u64 = KERNEL | U;
}

impl Mode {
    /// Bits of the code that a check starts with.
    #[must_use]
    pub fn bits(self) -> u32 {
        match self {
            Mode::Real => 16,
            Mode::Long | Mode::La57 => 64,
            _ => 32,
        }
    }

    /// Where a check's code starts.
    #[must_use]
    pub fn entry(self) -> u64 {
        if self == Mode::Real { l::RCODE } else { l::KCODE }
    }

    /// Whether long mode is active.
    #[must_use]
    pub fn long(self) -> bool {
        matches!(self, Mode::Long | Mode::La57)
    }
}

/// Flat and other descriptors, from selector 0 on.
const DESCRIPTORS: [u64; 9] = [
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x00cf_fb00_0000_ffff,
    0x00cf_f300_0000_ffff,
    0x00af_fb00_0000_ffff,
    0x00cf_9b00_0000_ffff,
    0x0000_9b00_0000_ffff,
    0x0000_9300_0000_ffff,
];

/// The descriptor that a preset has at `selector`.
#[must_use]
pub fn descriptor(selector: u16) -> u64 {
    DESCRIPTORS[usize::from(selector >> 3)]
}

/// The segment register that loading `selector` gives.
#[must_use]
pub fn segment(selector: u16) -> Segment {
    Segment::from_descriptor(selector, descriptor(selector))
}

/// A descriptor with the base, limit (granularity already in `attr`) and rights given (bits 55:40 as [`Attr`]).
#[must_use]
pub fn make_descriptor(base: u64, limit: u32, attr: u32) -> u64 {
    let (limit, attr) = (u64::from(limit), u64::from(attr));
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | (attr & 0xf0ff) << 40
        | (limit >> 16 & 15) << 48
        | (base >> 24 & 0xff) << 56
}

/// Pushes an error code (Intel SDM vol. 3A table 6-1).
#[must_use]
pub fn has_code(vector: u8) -> bool {
    matches!(vector, 8 | 10..=14 | 17 | 21)
}

/// Whether a page of the lowest 2 MiB is for ring 3 too.
fn user(gpa: u64) -> bool {
    (l::UCODE..l::KDATA).contains(&gpa) || (l::UDATA..l::USTACK).contains(&gpa)
}

/// Writes descriptor tables, handlers and page tables.
pub(super) fn tables(mode: Mode, m: &GuestMemory) -> Result<(), MemoryError> {
    for (i, d) in (0..).zip(DESCRIPTORS) {
        m.store(l::GDT + 8 * i, d)?;
    }
    m.store(l::GDT + u64::from(sel::TSS), make_descriptor(l::TSS, 0x67, 0x8b))?;
    for v in 0..=255u8 {
        handler(mode, m, v)?;
        set_gate(mode, m, v, GATE)?;
    }
    // The I/O permission map lies beyond the limit: no port is open.
    m.store(l::TSS + 0x66, 0x68u16)?;
    if mode.long() {
        m.store(l::TSS + 4, l::STACK_RING0)?;
        m.store(l::TSS + 0x24, l::STACK_IST)?;
    } else {
        m.store(l::TSS + 4, l::STACK_RING0 as u32)?;
        m.store(l::TSS + 8, u32::from(sel::KDATA))?;
    }
    match mode {
        Mode::Real | Mode::Flat => Ok(()),
        Mode::Paged32 => two_levels(m),
        _ => more_levels(mode, m),
    }
}

/// Rights of an interrupt gate that is present; [`set_gate`] chooses the size.
pub const GATE: u32 = 0x8e;

/// OUT, then a return that drops the error code.
fn handler(mode: Mode, m: &GuestMemory, v: u8) -> Result<(), MemoryError> {
    let code: &[u8] = match (mode.bits(), has_code(v)) {
        (16, _) => &[0xe6, 0xf4, 0xcf],
        (32, false) => &[0xe6, 0xf4, 0xcf],
        (32, true) => &[0xe6, 0xf4, 0x83, 0xc4, 4, 0xcf],
        (_, false) => &[0xe6, 0xf4, 0x48, 0xcf],
        (_, true) => &[0xe6, 0xf4, 0x48, 0x83, 0xc4, 8, 0x48, 0xcf],
    };
    m.write(l::HANDLERS + 16 * u64::from(v), code)
}

/// Sets the gate of vector `v` to its handler: `rights` are type, DPL and P; bits 10:8 the IST. Breakpoints, overflows and
/// [`CALL_VECTOR`](l::CALL_VECTOR) get DPL 3.
pub(super) fn set_gate(mode: Mode, m: &GuestMemory, v: u8, rights: u32) -> Result<(), MemoryError> {
    let handler = l::HANDLERS + 16 * u64::from(v);
    let at = |size: u64| l::IDT + size * u64::from(v);
    let dpl = if matches!(v, 3 | 4 | l::CALL_VECTOR) { 0x60 } else { 0 };
    let rights = u64::from(rights | dpl);
    let code = if mode.long() { sel::KCODE64 } else { sel::KCODE32 };
    let low = handler & 0xffff | u64::from(code) << 16 | (rights & 0xff) << 40 | (rights >> 8 & 7) << 32;
    match mode {
        Mode::Real => m.store(4 * u64::from(v), handler as u32),
        Mode::Long | Mode::La57 => m.store(at(16), low).and_then(|()| m.store(at(16) + 8, 0u64)),
        _ => m.store(at(8), low),
    }
}

/// Entry for the page at `gpa`.
fn page(gpa: u64) -> u64 {
    gpa | if user(gpa) { pte::USER } else { pte::KERNEL }
}

/// A directory at [`l::TABLES`], tables for the lowest 8 MiB and for MMIO behind it.
fn two_levels(m: &GuestMemory) -> Result<(), MemoryError> {
    let table = |n: u64| l::TABLES + 0x1000 * n;
    for (n, from) in [(1, 0), (2, 4 << 20), (3, l::MMIO)] {
        m.store(l::TABLES + (from >> 22) * 4, (table(n) | pte::USER & !pte::D) as u32)?;
        for i in 0..1024 {
            m.store(table(n) + 4 * i, page(from + i * 4096) as u32)?;
        }
    }
    Ok(())
}

/// Three, four or five levels: the root at [`l::TABLES`], the table of the lowest 2 MiB is the last.
fn more_levels(mode: Mode, m: &GuestMemory) -> Result<(), MemoryError> {
    let above = match mode {
        Mode::Pae => 0,
        Mode::Long => 1,
        _ => 2,
    };
    let table = |n: u64| l::TABLES + 0x1000 * n;
    for n in 0..above {
        m.store(table(n), table(n + 1) | pte::USER & !pte::D)?;
    }
    // PDPTEs of PAE have no rights (Intel SDM vol. 3A table 4-8).
    let rights = if mode == Mode::Pae { pte::P } else { pte::USER & !pte::D };
    m.store(table(above), table(above + 1) | rights)?;
    let (directory, last) = (table(above + 1), table(above + 2));
    m.store(directory, last | pte::USER & !pte::D)?;
    for i in 1..32u64 {
        m.store(directory + 8 * i, i << 21 | pte::KERNEL | pte::PS)?;
    }
    for i in 0..512 {
        m.store(last + 8 * i, page(i * 4096))?;
    }
    Ok(())
}

/// The processor.
pub(super) fn state(mode: Mode, model: &CpuModel) -> VcpuState {
    let mut s = VcpuState::reset(model.signature(), true);
    s.gpr = [0; 16];
    s.gpr[gpr::RSP] = l::STACK;
    s.rip = l::KCODE;
    s.cr0 = cr0::ET | cr0::NE;
    s.xcr0 = model.xcr0_mask() | 1;
    s.gdtr = TableReg { base: l::GDT, limit: 0x1ff };
    if mode == Mode::Real {
        s.seg = [Segment::real(0); 6];
        s.seg[sreg::CS].attr = Attr(0x9b);
        s.rip = l::RCODE;
        s.idtr = TableReg { base: 0, limit: 0x3ff };
        return s;
    }
    s.idtr = TableReg { base: l::IDT, limit: if mode.long() { 0xfff } else { 0x7ff } };
    s.seg = [segment(sel::KDATA); 6];
    s.seg[sreg::CS] = segment(if mode.long() { sel::KCODE64 } else { sel::KCODE32 });
    s.ldtr = Segment { attr: Attr(Attr::UNUSABLE), ..Segment::default() };
    s.tr = Segment { selector: sel::TSS, base: l::TSS, limit: 0x67, attr: Attr(0x8b) };
    s.cr0 |= cr0::PE | cr0::MP;
    s.cr4 = cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE;
    if mode != Mode::Flat {
        s.cr0 |= cr0::PG | cr0::WP;
        s.cr3 = l::TABLES;
    }
    if matches!(mode, Mode::Pae | Mode::Long | Mode::La57) {
        s.cr4 |= cr4::PAE;
        s.efer = efer::NXE;
    }
    if mode.long() {
        s.efer |= efer::SCE | efer::LME | efer::LMA;
        s.cr4 |= cr4::PGE | cr4::FSGSBASE;
        s.msrs.insert(msr::STAR, u64::from(sel::KCODE64) << 32 | u64::from(sel::UCODE32) << 48);
    }
    if mode == Mode::La57 {
        s.cr4 |= cr4::LA57;
    }
    s.cr4 &= model.cr4_mask();
    s.efer &= model.efer_mask();
    s
}

/// Whether `model` has the mode.
pub(super) fn has_mode(mode: Mode, model: &CpuModel) -> bool {
    mode != Mode::La57 || model.has(Feature::LA57)
}

/// Moves the processor to ring 3, at [`l::UCODE`]; it may use all ports.
pub fn ring3(mode: Mode, s: &mut VcpuState) {
    s.seg = [segment(sel::UDATA); 6];
    s.seg[sreg::CS] = segment(if mode.long() { sel::UCODE64 } else { sel::UCODE32 });
    s.cpl = 3;
    s.rflags |= rflags::IOPL;
    s.rip = l::UCODE;
    s.gpr[gpr::RSP] = l::USTACK;
}
