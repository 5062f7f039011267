//! The interpreter's side: one processor in user mode, with the same windows at the same addresses.

use crate::generate::Case;
use crate::layout::{
    CODE, CODE_LEN, DATA, DATA_RIGHTS, PAGE, RESERVED, Rights, SLOT, USER_CODE32, USER_DATA, comparable,
};
use crate::record::{Input, Output};
use anyhow::Context;
use iced_x86::{Decoder, DecoderOptions, Instruction};
use ringer_arch::cpu::{CpuModel, Feature, Vendor};
use ringer_arch::exception::vector;
use ringer_arch::regs::{cr0, cr4, efer};
use ringer_arch::seg::{Segment, TableReg, sreg};
use ringer_arch::{VcpuState, state::XSAVE_LEN};
use ringer_engine::{CpuIo, Pending, StopToken, VmParams};
use ringer_engine_soft::cpu::Cpu;
use ringer_engine_soft::decode::{How, decode};
use ringer_engine_soft::exec::generic;
use ringer_engine_soft::sys;
use ringer_memory::GuestMemory;
use std::sync::Arc;

const RAM: u64 = 8 << 20;
const DATA_GPA: u64 = 0x20_0000;
const CODE_GPA: [u64; 2] = [0x30_0000, 0x34_0000];
/// Page tables are handed out from here.
const TABLES: u64 = 0x1_0000;
/// GDT, IDT (one page each), TSS and the kernel's stack, mapped at [`KERNEL`] for the supervisor.
const SYSTEM_GPA: u64 = 0x8000;
const KERNEL: u64 = 0xffff_8000_0000_0000;
const GDT: u64 = KERNEL;
const IDT: u64 = KERNEL + PAGE;
const TSS: u64 = KERNEL + 2 * PAGE;
const STACK_TOP: u64 = KERNEL + 4 * PAGE;
/// Handler of vector v: this + 16 v.
const HANDLERS: u64 = 0xffff_9000_0000_0000;

/// Which of the interpreter's ways to take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Path {
    /// As the run loop does: hot forms by their own handlers.
    Block,
    /// The generic executor.
    Generic,
}

/// Whether a case can be compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ran {
    /// It can; `output` is what the child should find.
    Compare,
    /// It cannot: it reaches for what is the child's own, or goes on in other code.
    Skip,
}

/// A machine with nothing in it.
struct NoMachine;

impl CpuIo for NoMachine {
    fn pio_read(&self, _: u16, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn pio_write(&self, _: u16, _: &[u8]) {}
    fn mmio_read(&self, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn mmio_write(&self, _: u64, _: &[u8]) {}
    fn pending(&self) -> Pending {
        Pending::default()
    }
    fn acknowledge(&self) -> Option<u8> {
        None
    }
    fn cr8(&self) -> u64 {
        0
    }
    fn set_cr8(&self, _: u64) {}
    fn msr_read(&self, _: u32) -> Option<u64> {
        None
    }
    fn msr_write(&self, _: u32, _: u64) -> Option<()> {
        None
    }
    fn hypercall(&self, _: u64, _: [u64; 4]) -> u64 {
        0
    }
    fn tsc(&self) -> u64 {
        0
    }
    fn reset_apic(&self) {}
}

/// One processor under test.
pub struct Interp {
    cpu: Cpu,
    base: VcpuState,
    memory: GuestMemory,
    amd: bool,
    /// The running case is 32-bit code.
    legacy: bool,
    /// The running case's code window, and its slot there.
    window: usize,
    slot: u64,
}

/// What both sides decode under.
#[must_use]
pub fn decoder_options(model: &CpuModel) -> u32 {
    if model.vendor() == Vendor::Amd { DecoderOptions::AMD } else { DecoderOptions::NONE }
}

/// The instruction in `bytes` at `rip`.
#[must_use]
pub fn decode_at(bytes: &[u8], rip: u64, options: u32, bits: u32) -> Instruction {
    Decoder::with_ip(bits, bytes, rip, options).decode()
}

impl Interp {
    /// A processor of `model` whose selectors (ES CS SS DS FS GS) are `sel`.
    ///
    /// # Errors
    /// No memory, or a state that the interpreter refuses.
    pub fn new(model: &Arc<CpuModel>, sel: [u16; 6]) -> anyhow::Result<Interp> {
        let memory = GuestMemory::new(RAM)?;
        let params = VmParams {
            memory: memory.clone(),
            cpu: model.clone(),
            vcpus: 1,
            code_limit: ringer_engine::CODE_LIMIT,
            started: std::time::Instant::now(),
        };
        let mut cpu = Cpu::new(&params, 0, Arc::new(NoMachine), StopToken::new())?;
        let base = user_state(model, sel);
        let mut t = Tables { memory: &memory, next: TABLES + PAGE };
        t.map_all().context("page tables")?;
        system_tables(&memory).context("descriptor tables")?;
        sys::state::load(&mut cpu, &base)?;
        Ok(Interp {
            cpu,
            base,
            memory,
            amd: model.vendor() == Vendor::Amd,
            legacy: false,
            window: 0,
            slot: 0,
        })
    }

    /// The bits that MXCSR has.
    #[must_use]
    pub fn mxcsr_mask(model: &CpuModel) -> u32 {
        if model.has(Feature::MISALIGNSSE) { 0x2_ffff } else { 0xffff }
    }

    /// Makes code window `which` the only one mapped: the other one is being run, or written, at any time.
    ///
    /// # Errors
    /// None that can happen.
    pub fn select_code(&mut self, which: usize) -> anyhow::Result<()> {
        for (w, (lin, gpa)) in CODE.iter().zip(CODE_GPA).enumerate() {
            let mut t = Tables { memory: &self.memory, next: 0 };
            for at in (0..CODE_LEN).step_by(PAGE as usize) {
                t.map(lin + at, gpa + at, if w == which { CODE_RIGHTS } else { 0 })?;
            }
        }
        self.cpu.mmu.flush_all();
        Ok(())
    }

    /// Replaces the data window.
    pub fn set_data(&mut self, data: &[u8]) {
        self.write(DATA_GPA, data);
    }

    /// Copies the data window from `off` on.
    pub fn data(&self, off: u64, to: &mut [u8]) {
        let read = self.memory.read(DATA_GPA + off, to);
        debug_assert!(read.is_ok());
    }

    /// Writes into the data window.
    pub fn patch(&mut self, off: u64, bytes: &[u8]) {
        self.write(DATA_GPA + off, bytes);
    }

    /// Writes into code window `which`.
    pub fn set_code(&mut self, which: usize, off: u64, bytes: &[u8]) {
        self.write(CODE_GPA[which & 1] + off, bytes);
    }

    fn write(&mut self, gpa: u64, bytes: &[u8]) {
        let written = self.memory.write(gpa, bytes);
        debug_assert!(written.is_ok());
    }

    fn enter(&mut self, input: &Input) {
        let c = &mut self.cpu;
        c.regs[..16].copy_from_slice(&input.gpr);
        c.seg = self.base.seg;
        if input.bits == 32 {
            c.seg[sreg::CS] = Segment::from_descriptor(USER_CODE32, CODE32);
            c.seg[sreg::DS] = Segment::from_descriptor(USER_DATA, DATA_SEGMENT);
            c.seg[sreg::ES] = c.seg[sreg::DS];
        }
        c.seg[sreg::FS].base = input.fs_base;
        c.seg[sreg::GS].base = input.gs_base;
        c.xsave.0.copy_from_slice(&input.xsave);
        c.host.forget_selectors();
        c.rip = input.rip;
        c.cr2 = 0;
        c.exc = None;
        c.soft_int = None;
        c.debug_trap = 0;
        c.shadow = false;
        c.stopped_at = 0;
        c.triple_fault = false;
        c.set_rflags(input.rflags);
        c.update_mode();
        c.leave = false;
    }

    /// Runs the instruction at the start of `slot` (its place in the code window) from `input`, whose patches are in memory
    /// already. Fills in `output` but for its log.
    pub fn run(&mut self, input: &Input, slot: &[u8], case: &Case, output: &mut Output) -> Ran {
        let insn = &case.insn;
        self.enter(input);
        self.legacy = input.bits == 32;
        self.window = usize::from(input.rip >= CODE[1]);
        self.slot = input.rip.wrapping_sub(CODE[self.window]) / SLOT;
        let direct = case.path == Path::Generic && !insn.is_invalid();
        let pair = case.branch.is_some();
        let how = How { bits: input.bits, amd: self.amd, limit: 1 + usize::from(pair && !direct) };
        let decoded = if direct { None } else { Some(decode(slot, how)) };
        let first = insn.len() as u64;
        let len = if pair { first + 2 } else { decoded.as_ref().map_or(first, |d| u64::from(d.len)) };
        // The interpreter may stop a repeated instruction between elements.
        for _ in 0..4096 {
            match &decoded {
                Some(d) => {
                    d.ops.run(&mut self.cpu);
                }
                None => self.generic(insn),
            }
            let again = self.cpu.exc.is_none() && self.cpu.rip == input.rip && !insn.is_invalid();
            if !again {
                break;
            }
            if !(insn.has_rep_prefix() || insn.has_repne_prefix()) {
                return Ran::Skip;
            }
            self.cpu.leave = false;
        }
        if pair && self.cpu.exc.is_none() && self.cpu.rip == input.rip + first {
            self.branch(&slot[first as usize..], input.bits);
        }
        let ran = self.outcome(input.rip, len, first, output);
        if self.cpu.cpl != 3 {
            self.reload();
        }
        // With a stack pointer that is in the child's signal stack no signal can be delivered.
        if output.signal != 0 && RESERVED.contains(&(output.gpr[4] & 0xffff_ffff)) {
            return Ran::Skip;
        }
        ran
    }

    /// Executes the branch behind the instruction, if that did not go on to it by itself.
    fn branch(&mut self, bytes: &[u8], bits: u32) {
        let how = How { bits, amd: self.amd, limit: 1 };
        self.cpu.leave = false;
        decode(bytes, how).ops.run(&mut self.cpu);
    }

    fn generic(&mut self, insn: &Instruction) {
        self.cpu.next_rip = self.cpu.rip.wrapping_add(insn.len() as u64);
        self.cpu.last_mnemonic = insn.mnemonic();
        if generic::execute(&mut self.cpu, insn).is_ok() {
            self.cpu.rip = self.cpu.next_rip;
        }
    }

    fn reload(&mut self) {
        let loaded = sys::state::load(&mut self.cpu, &self.base);
        debug_assert!(loaded.is_ok());
    }

    /// What the child should find, after `len` bytes of code at `start`, of which the instruction is the `first`.
    fn outcome(&mut self, start: u64, len: u64, first: u64, o: &mut Output) -> Ran {
        let c = &mut self.cpu;
        o.gpr.copy_from_slice(&c.regs[..16]);
        o.rflags = c.rflags();
        o.xsave.copy_from_slice(&c.xsave.0[..XSAVE_LEN]);
        o.sel = std::array::from_fn(|i| c.seg[i].selector);
        (o.fs_base, o.gs_base) = (c.seg[sreg::FS].base, c.seg[sreg::GS].base);
        (o.signal, o.vector, o.code, o.cr2, o.rip) = (0, 0, 0, 0, c.rip);
        if c.exc.is_none() {
            if c.rip == start.wrapping_add(len) {
                return Ran::Compare;
            }
            return self.elsewhere(o);
        }
        if c.soft_int.is_some() {
            return self.software_interrupt(start, first, o);
        }
        self.fault(o)
    }

    fn fault(&mut self, o: &mut Output) -> Ran {
        let c = &mut self.cpu;
        let Some(e) = c.exc.take() else { return Ran::Skip };
        o.signal = 1;
        o.rip = c.rip;
        o.vector = u32::from(e.vector);
        o.code = e.code.unwrap_or(0);
        if e.vector == vector::PF {
            o.cr2 = c.cr2;
            // For the sake of an old erratum of AMD's processors the kernel retries these for ever (arch/x86/mm/fault.c,
            // is_errata100).
            if self.legacy && c.cr2 >> 32 != 0 {
                return Ran::Skip;
            }
            if !comparable(c.cr2) || c.cr2.wrapping_sub(CODE[self.window ^ 1]) < CODE_LEN {
                return Ran::Skip;
            }
        }
        Ran::Compare
    }

    /// INT n and INT3, delivered: what the gates permit is the gate's vector, what they do not is #GP.
    fn software_interrupt(&mut self, start: u64, len: u64, o: &mut Output) -> Ran {
        sys::interrupt::raise_pending(&mut self.cpu);
        let c = &mut self.cpu;
        o.signal = 1;
        let v = (c.rip.wrapping_sub(HANDLERS) / 16) as u32;
        o.vector = v;
        o.rip = start;
        if v == u32::from(vector::GP) {
            let code: Result<u64, _> = c.load_sys(c.regs[4]);
            o.code = code.unwrap_or(u64::MAX) as u32;
        } else if v == u32::from(vector::BP) || v == u32::from(vector::OF) {
            o.rip = start.wrapping_add(len);
        } else {
            return Ran::Skip;
        }
        Ran::Compare
    }

    /// A branch was taken: the child finds an INT3 there, or that it cannot be fetched.
    fn elsewhere(&mut self, o: &mut Output) -> Ran {
        let rip = self.cpu.rip;
        for (w, base) in CODE.iter().enumerate() {
            let off = rip.wrapping_sub(*base);
            if off < CODE_LEN {
                let mut b = [0];
                let read = self.memory.read(CODE_GPA[w] + off, &mut b);
                // Only in this case's own slot or on the landing page is the code there what it will be.
                let own = w == self.window && (off >= crate::layout::LANDING || off / SLOT == self.slot);
                if read.is_err() || b[0] != 0xcc || !own {
                    return Ran::Skip;
                }
                (o.signal, o.vector, o.rip) = (1, u32::from(vector::BP), rip + 1);
                return Ran::Compare;
            }
        }
        if !comparable(rip) {
            return Ran::Skip;
        }
        if self.cpu.fetch_gpa(rip).is_ok() {
            return Ran::Skip;
        }
        self.fault(o)
    }
}

fn user_state(model: &CpuModel, sel: [u16; 6]) -> VcpuState {
    let mut s = VcpuState::reset(model.signature(), true);
    let null =
        Segment { attr: ringer_arch::seg::Attr(ringer_arch::seg::Attr::UNUSABLE), ..Segment::default() };
    let data = |selector| Segment::from_descriptor(selector, DATA_SEGMENT);
    let of = |selector: u16| if selector & !3 == 0 { Segment { selector, ..null } } else { data(selector) };
    s.seg = sel.map(of);
    s.seg[sreg::CS] = Segment::from_descriptor(sel[1], CODE64);
    s.seg[sreg::SS] = data(sel[2]);
    s.cpl = 3;
    s.gdtr = TableReg { base: GDT, limit: 16 * 8 - 1 };
    s.idtr = TableReg { base: IDT, limit: 4095 };
    s.tr = Segment { selector: 0x40, base: TSS, limit: 0x67, attr: ringer_arch::seg::Attr(0x8b) };
    s.ldtr = null;
    // As Linux sets them (arch/x86/include/asm/processor-flags.h, kernel/cpu/common.c).
    s.cr0 = cr0::PE | cr0::MP | cr0::ET | cr0::NE | cr0::WP | cr0::AM | cr0::PG;
    s.cr4 = cr4::PAE | cr4::PGE | cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE;
    for (f, bit) in [
        (Feature::UMIP, cr4::UMIP),
        (Feature::FSGSBASE, cr4::FSGSBASE),
        (Feature::SMEP, cr4::SMEP),
        (Feature::SMAP, cr4::SMAP),
    ] {
        if model.has(f) {
            s.cr4 |= bit;
        }
    }
    s.cr3 = TABLES;
    s.efer = efer::SCE | efer::LME | efer::LMA | efer::NXE;
    s.xcr0 = 7;
    s
}

/// The GDT's descriptors as Linux has them (arch/x86/kernel/cpu/common.c), accessed bits set.
const KERNEL_CODE: u64 = 0x00af_9b00_0000_ffff;
const KERNEL_DATA: u64 = 0x00cf_9300_0000_ffff;
const CODE32: u64 = 0x00cf_fb00_0000_ffff;
const DATA_SEGMENT: u64 = 0x00cf_f300_0000_ffff;
const CODE64: u64 = 0x00af_fb00_0000_ffff;

fn system_tables(m: &GuestMemory) -> anyhow::Result<()> {
    let gdt: [u64; 16] = [
        0,
        0x00cf_9b00_0000_ffff,
        KERNEL_CODE,
        KERNEL_DATA,
        CODE32,
        DATA_SEGMENT,
        CODE64,
        0,
        0x0000_8b00_2000_0067 | (TSS & 0xff_0000) << 16,
        TSS >> 32,
        0,
        0,
        0,
        0,
        0,
        0,
    ];
    for (i, d) in gdt.iter().enumerate() {
        m.store(SYSTEM_GPA + 8 * i as u64, *d)?;
    }
    for v in 0..256u64 {
        let h = HANDLERS + 16 * v;
        let dpl = if v == 3 || v == 4 { 3u64 } else { 0 };
        let low = h & 0xffff | 0x10 << 16 | (0x8e | dpl << 5) << 40 | (h >> 16 & 0xffff) << 48;
        m.store(SYSTEM_GPA + PAGE + 16 * v, low)?;
        m.store(SYSTEM_GPA + PAGE + 16 * v + 8, h >> 32)?;
    }
    let mut tss = [0u8; 0x68];
    tss[4..12].copy_from_slice(&STACK_TOP.to_le_bytes());
    // No I/O bitmap.
    tss[0x66..0x68].copy_from_slice(&0x68u16.to_le_bytes());
    m.write(SYSTEM_GPA + 2 * PAGE, &tss)?;
    Ok(())
}

const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const NX: u64 = 1 << 63;
/// Page-table bits of a code window.
const CODE_RIGHTS: u64 = P | U;

struct Tables<'a> {
    memory: &'a GuestMemory,
    next: u64,
}

impl Tables<'_> {
    fn map_all(&mut self) -> anyhow::Result<()> {
        for (i, r) in DATA_RIGHTS.iter().enumerate() {
            let at = i as u64 * PAGE;
            match r {
                Rights::None => {}
                Rights::Read => self.map(DATA + at, DATA_GPA + at, P | U | NX)?,
                Rights::Write => self.map(DATA + at, DATA_GPA + at, P | W | U | NX)?,
            }
        }
        for (lin, gpa) in CODE.iter().zip(CODE_GPA) {
            for at in (0..CODE_LEN).step_by(PAGE as usize) {
                self.map(lin + at, gpa + at, CODE_RIGHTS)?;
            }
        }
        for i in 0..4 {
            self.map(KERNEL + i * PAGE, SYSTEM_GPA + i * PAGE, P | W | NX)?;
        }
        Ok(())
    }

    fn map(&mut self, lin: u64, gpa: u64, bits: u64) -> anyhow::Result<()> {
        let mut table = TABLES;
        for level in [39, 30, 21] {
            let at = table + (lin >> level & 511) * 8;
            let mut e: u64 = self.memory.load(at)?;
            if e == 0 {
                e = self.next | 7;
                self.next += PAGE;
                self.memory.store(at, e)?;
            }
            table = e & !0xfff;
        }
        self.memory.store(table + (lin >> 12 & 511) * 8, gpa | bits)?;
        Ok(())
    }
}
