//! Vector, x87 and other register-only instructions, run by the host CPU itself on the guest's registers with the memory
//! operand redirected: results, flags and exceptions equal the host's by construction. In software is only what touches
//! memory in more than one piece or saves whole state.
//!
//! [`prepare`] tells whether an instruction belongs here; [`run`] executes it. An exception leaves registers and memory as
//! they were (but for the exception flags of MXCSR, as hardware does).

mod class;
mod code;
mod envs;
mod fast;
mod hot;
mod masked;
mod simple;
mod stub;
mod x87;
mod xsave;

#[cfg(test)]
mod tests;

use crate::cache::Map;
use crate::cpu::{Cpu, R};
use crate::mmu::Acc;
use crate::operand::{address_size, mask};
use class::{Align, Gate};
use code::{CodeArea, StubAddr};
use iced_x86::{
    Code, Instruction, InstructionInfoFactory, InstructionInfoOptions, Mnemonic, OpAccess, OpKind,
};
use ringer_arch::Exception;
use ringer_arch::cpu::Feature;
use ringer_arch::exception::vector;
use ringer_arch::regs::cr4;
use std::cell::Cell;

pub use code::{cpuid, random_u64 as random};
pub use hot::select;
pub use simple::mxcsr_mask;
pub use xsave::{sanitize, xinuse};

/// What the alignment check demands of operands that need not be aligned otherwise: their size, vectors 16 bytes; 10-byte
/// operands count as 8 (as processors do it; Intel SDM vol. 3A table 6-7 stops at those).
const AC_ALIGN: u64 = 16;

/// Entries that are kept at most: a guest that runs ever new instructions makes the processor start afresh.
const MAX_ENTRIES: usize = 1 << 15;
/// MXCSR.MM: misaligned SSE operands are permitted (AMD APM vol. 1 §4.2.2).
const MXCSR_MM: u32 = 1 << 17;

/// An instruction in software.
type Special = fn(&mut Cpu, &Instruction) -> R<()>;

/// What an instruction does with its memory operand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mem {
    None,
    Read,
    Write,
    Both,
}

#[derive(Clone, Copy)]
enum Action {
    Stub(StubAddr),
    Software(Special),
}

/// All there is to know about a kind of instruction.
#[derive(Clone, Copy)]
struct Entry {
    action: Action,
    gate: Gate,
    align: Align,
    mem: Mem,
    /// Bytes of the memory operand.
    size: u8,
    flags: bool,
    fx: bool,
    /// Converts 16-bit floats: without alignment checks on Intel's processors (SDM vol. 2A table 2-29, type 11).
    float16: bool,
    /// Runs by [`store_late`].
    late: bool,
    pointers: x87::Pointers,
}

/// What a decoded instruction keeps for [`run`]: which entry it found last time.
#[derive(Clone, Debug, Default)]
pub struct HostOp {
    /// Generation and index; generation 0 is none.
    found: Cell<(u32, u32)>,
    /// The x87 opcode register's value for it (bits 10..0 of its opcode).
    fop: Cell<u16>,
}

/// One processor's stubs.
pub struct Host {
    area: CodeArea,
    map: Map<Instruction, u32>,
    entries: Vec<Entry>,
    generation: u32,
    /// Code and data segment selectors of the last x87 instruction, which the 64-bit XSAVE formats have no room for.
    selectors: x87::Selectors,
}

impl Host {
    /// No stubs.
    ///
    /// # Errors
    /// The host's, when it gives no executable memory.
    pub fn new() -> std::io::Result<Host> {
        Ok(Host {
            area: CodeArea::new()?,
            map: Map::default(),
            entries: Vec::new(),
            generation: 1,
            selectors: x87::Selectors::default(),
        })
    }

    /// The selectors of the last x87 instruction are those that a 64-bit XRSTOR loads: none.
    pub fn forget_selectors(&mut self) {
        self.selectors = x87::Selectors::default();
    }

    fn clear(&mut self) {
        self.area.clear();
        self.map.clear();
        self.entries.clear();
        self.generation = self.generation.wrapping_add(1).max(1);
    }
}

/// For an instruction that this module executes, what [`run`] needs; `None` for all others. Makes nothing yet.
#[must_use]
pub fn prepare(i: &Instruction) -> Option<HostOp> {
    class::is_ours(i).then(HostOp::default)
}

/// What state an instruction needs that runs as itself in translated code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unit {
    /// General registers alone.
    Integer,
    /// SSE: CR0 and CR4 let it run.
    Sse,
    /// AVX: XCR0 does too.
    Avx,
    /// x87 or MMX.
    X87,
}

/// An instruction of this module's that runs as itself in translated code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Native {
    /// What it runs on.
    pub unit: Unit,
    /// Its memory operand must be aligned to its size.
    pub aligned: bool,
    /// It sets the x87 instruction and operand pointers.
    pub pointers: bool,
    /// It does nothing at all.
    pub nothing: bool,
}

/// Whether an instruction of this module's may run as itself in translated code, given that `cpu`'s model has it; if not,
/// [`run`] executes it.
#[must_use]
pub fn native(cpu: &Cpu, i: &Instruction) -> Option<Native> {
    if bit_scan(cpu, i).code() != i.code() {
        return None;
    }
    let unit = match class::gate(cpu, i) {
        Gate::None | Gate::VexGpr => Unit::Integer,
        Gate::Sse => Unit::Sse,
        Gate::Avx => Unit::Avx,
        Gate::X87 | Gate::Mmx | Gate::Wait => Unit::X87,
        Gate::X87NoWait
            if matches!(i.code(), Code::Fnstcw_m2byte | Code::Fnstsw_m2byte | Code::Fnstsw_AX) =>
        {
            Unit::X87
        }
        _ => return None,
    };
    let nothing = class::is_prefetch(i.code());
    let size = i.memory_size().size();
    let memory = (0..i.op_count()).any(|o| i.op_kind(o) == OpKind::Memory);
    if memory && !nothing && !(1..=32).contains(&size) {
        return None;
    }
    let plain = simple::runs_as_itself(i) || fast::find(i).is_some();
    if !plain && (software(i).is_some() || stub::make(i).is_none()) {
        return None;
    }
    let aligned = class::alignment(cpu, i) != Align::Free;
    let pointers = x87::pointers(i) == x87::Pointers::Set;
    if x87::pointers(i) == x87::Pointers::Clear {
        return None;
    }
    Some(Native { unit, aligned, pointers, nothing })
}

/// The x87 instruction that ran last as itself.
#[derive(Clone, Copy, Debug)]
pub struct LastX87<'a> {
    /// The instruction.
    pub insn: &'a Instruction,
    /// Its bytes.
    pub bytes: &'a [u8],
    /// Its address.
    pub ip: u64,
    /// Offset of the last memory operand, its own or an earlier instruction's, if there was one.
    pub operand: Option<u64>,
    /// Whatever is pending now has been unmasked after it.
    pub calm: bool,
}

/// Puts the host's x87 state, as FXSAVE gives it, into `cpu`'s; the pointers are those of `last`, if one ran since it was loaded.
pub fn store_x87(cpu: &mut Cpu, image: &[u8; 512], last: Option<LastX87<'_>>) {
    let x = &mut cpu.xsave.0;
    x[..6].copy_from_slice(&image[..6]);
    x[x87::at::ST..x87::at::XMM].copy_from_slice(&image[x87::at::ST..x87::at::XMM]);
    if let Some(l) = last {
        x87::set_last(cpu, &l);
    }
}

/// Executes an instruction if it belongs to this module. `cpu.next_rip` is that of the following instruction.
#[must_use]
pub fn execute(cpu: &mut Cpu, i: &Instruction) -> Option<R<()>> {
    prepare(i).map(|op| run(cpu, &op, i))
}

/// Executes an instruction that [`prepare`] accepted. `cpu.next_rip` is that of the following instruction.
///
/// # Errors
/// The exception it raises; nothing has changed then, but partial progress of gathers and the flags of MXCSR.
pub fn run(cpu: &mut Cpu, op: &HostOp, i: &Instruction) -> R<()> {
    let (generation, index) = op.found.get();
    let e = match cpu.host.entries.get(index as usize) {
        Some(e) if generation == cpu.host.generation => *e,
        _ => resolve(cpu, op, i),
    };
    cpu.pass(e.gate)?;
    match e.action {
        Action::Software(f) => f(cpu, i),
        Action::Stub(a) => run_stub(cpu, op, i, &e, a),
    }
}

/// Executes an instruction that [`run`] has executed before if all is as usual: not an x87 one, nothing to fault, the memory
/// operand (at `lin`, when it has one) in the TLB. If not, nothing has happened (but perhaps exception flags of MXCSR).
#[inline(always)]
fn run_quickly<const MEMORY: bool>(cpu: &mut Cpu, op: &HostOp, lin: u64) -> bool {
    let (generation, index) = op.found.get();
    let Some(e) = cpu.host.entries.get(index as usize) else { return false };
    let Action::Stub(addr) = e.action else { return false };
    if generation != cpu.host.generation || e.fx || !cpu.open(e.gate) {
        return false;
    }
    let mut direct = None;
    if MEMORY {
        let size = u64::from(e.size);
        if e.align != Align::Free && lin & (size - 1) != 0 {
            return false;
        }
        let Some(p) = cpu.fast_ptr(lin, size, e.mem != Mem::Read) else { return false };
        direct = Some(p.cast_mut());
    }
    let flags = e.flags;
    if flags {
        cpu.host.area.ctx.fl = u32::from(cpu.fl);
    }
    if call(cpu, addr, direct) != 0 {
        return false;
    }
    if flags {
        cpu.fl = cpu.host.area.ctx.fl as u16;
    }
    true
}

/// Finds or makes the entry of an instruction.
#[cold]
#[inline(never)]
fn resolve(cpu: &mut Cpu, op: &HostOp, i: &Instruction) -> Entry {
    let key = stub::normalised(i);
    let e = match cpu.host.map.get(&key) {
        Some(&index) => {
            op.found.set((cpu.host.generation, index));
            cpu.host.entries.get(index as usize).copied()
        }
        None => None,
    };
    let e = e.unwrap_or_else(|| {
        let e = make(cpu, i);
        if cpu.host.entries.len() >= MAX_ENTRIES {
            cpu.host.clear();
            // The stub just made went with the others.
            return remember(cpu, op, key, None, i);
        }
        remember(cpu, op, key, Some(e), i)
    });
    if e.fx {
        op.fop.set(x87::opcode(&cpu.code_bytes()[..i.len()]));
    }
    e
}

fn remember(cpu: &mut Cpu, op: &HostOp, key: Instruction, e: Option<Entry>, i: &Instruction) -> Entry {
    let e = e.unwrap_or_else(|| make(cpu, i));
    let h = &mut cpu.host;
    let index = h.entries.len() as u32;
    h.entries.push(e);
    h.map.insert(key, index);
    op.found.set((h.generation, index));
    e
}

/// Makes the entry of an instruction.
fn make(cpu: &mut Cpu, i: &Instruction) -> Entry {
    let i = &bit_scan(cpu, i);
    let gate = class::gate(cpu, i);
    let undefined: Special = |cpu, _| Err(cpu.ud());
    let mem = memory_use(i);
    let mut e = Entry {
        action: Action::Software(undefined),
        gate,
        align: class::alignment(cpu, i),
        mem,
        size: i.memory_size().size().min(64) as u8,
        flags: false,
        fx: false,
        float16: matches!(i.mnemonic(), Mnemonic::Vcvtps2ph | Mnemonic::Vcvtph2ps),
        late: is_late(cpu, i, mem),
        pointers: x87::pointers(i),
    };
    if gate == Gate::Undefined {
        return e;
    }
    if let Some(f) = software(i) {
        e.action = Action::Software(f);
        return e;
    }
    // A stub's access is checked by its size: one that cannot be told must not run.
    if e.mem != Mem::None && !(1..=64).contains(&i.memory_size().size()) {
        return e;
    }
    let Some(recipe) = stub::make(i) else { return e };
    e.flags = recipe.flags;
    e.fx = recipe.fx;
    let addr = cpu.host.area.put(&recipe.code).or_else(|| {
        cpu.host.clear();
        cpu.host.area.put(&recipe.code)
    });
    if let Some(a) = addr {
        e.action = Action::Stub(a);
    }
    e
}

/// TZCNT and LZCNT are BSF and BSR with a prefix that processors without them ignore.
fn bit_scan(cpu: &Cpu, i: &Instruction) -> Instruction {
    let mut i = *i;
    let to = match i.code() {
        Code::Tzcnt_r16_rm16 if !cpu.has(Feature::BMI1) => Code::Bsf_r16_rm16,
        Code::Tzcnt_r32_rm32 if !cpu.has(Feature::BMI1) => Code::Bsf_r32_rm32,
        Code::Tzcnt_r64_rm64 if !cpu.has(Feature::BMI1) => Code::Bsf_r64_rm64,
        Code::Lzcnt_r16_rm16 if !cpu.has(Feature::LZCNT) => Code::Bsr_r16_rm16,
        Code::Lzcnt_r32_rm32 if !cpu.has(Feature::LZCNT) => Code::Bsr_r32_rm32,
        Code::Lzcnt_r64_rm64 if !cpu.has(Feature::LZCNT) => Code::Bsr_r64_rm64,
        c => c,
    };
    i.set_code(to);
    i
}

fn memory_use(i: &Instruction) -> Mem {
    let Some(op) = (0..i.op_count()).find(|o| i.op_kind(*o) == OpKind::Memory) else { return Mem::None };
    let mut f = InstructionInfoFactory::new();
    match f.info_options(i, InstructionInfoOptions::NO_REGISTER_USAGE).op_access(op) {
        OpAccess::Read | OpAccess::CondRead => Mem::Read,
        OpAccess::Write | OpAccess::CondWrite => Mem::Write,
        _ => Mem::Both,
    }
}

/// The instructions in software.
fn software(i: &Instruction) -> Option<Special> {
    fast::find(i)
        .or_else(|| simple::find(i))
        .or_else(|| envs::find(i))
        .or_else(|| xsave::find(i))
        .or_else(|| masked::find(i))
}

/// The memory operand of a stub.
struct Operand {
    lin: u64,
    /// Where the bytes are, or `None` for the bounce buffer.
    direct: Option<*mut u8>,
}

fn run_stub(cpu: &mut Cpu, op: &HostOp, i: &Instruction, e: &Entry, addr: StubAddr) -> R<()> {
    if e.late && (!e.fx || x87::unmasked(cpu)) {
        return store_late(cpu, op, i, e, addr);
    }
    let m = match e.mem {
        Mem::None => Operand { lin: 0, direct: None },
        // On Intel's processors the top of the stack is 0 already when the store faults.
        Mem::Write if e.gate == Gate::Mmx && !cpu.amd() => {
            operand(cpu, i, e).inspect_err(|_| envs::turn(cpu, 0))?
        }
        _ => operand(cpu, i, e)?,
    };
    if e.flags {
        cpu.host.area.ctx.fl = u32::from(cpu.fl);
    }
    let before = if e.fx { Some(x87::save(cpu)) } else { None };
    let fault = call(cpu, addr, m.direct);
    if fault != 0 {
        if e.gate == Gate::SseMmx {
            // The change to MMX registers comes before the conversion, after the memory operand.
            envs::enter_mmx(cpu);
        }
        return Err(host_fault(cpu, fault, e.fx));
    }
    if e.flags {
        cpu.fl = cpu.host.area.ctx.fl as u16;
    }
    if let Some(before) = before {
        x87::set_pointers(cpu, i, e.pointers, op.fop.get(), before);
    }
    if m.direct.is_none() && matches!(e.mem, Mem::Write | Mem::Both) {
        let b = cpu.host.area.ctx.bounce;
        cpu.write_bytes(m.lin, &b.0[..usize::from(e.size)])?;
    }
    Ok(())
}

/// Runs a store whose memory Intel's processors look at last: an unmasked exception of the conversion comes before the memory's faults, and
/// MXCSR has its flags even if the store faults.
#[cold]
#[inline(never)]
fn store_late(cpu: &mut Cpu, op: &HostOp, i: &Instruction, e: &Entry, addr: StubAddr) -> R<()> {
    /// The exceptions with which an x87 instruction stores nothing: all but #P.
    const NOTHING_STORED: u16 = 0x1f;
    let x87_before = e.fx.then(|| (x87::save(cpu), cpu.xsave.clone()));
    let fault = call(cpu, addr, None);
    if fault != 0 {
        mark_written(cpu, i, e);
        return Err(host_fault(cpu, fault, e.fx));
    }
    let result = cpu.host.area.ctx.bounce.0;
    let Some((pointers, state)) = x87_before else {
        let m = operand(cpu, i, e)?;
        return cpu.write_bytes(m.lin, &result[..usize::from(e.size)]);
    };
    if x87::fsw(cpu) & !x87::fcw(cpu) & NOTHING_STORED == 0 {
        let stored = operand(cpu, i, e).and_then(|m| cpu.write_bytes(m.lin, &result[..usize::from(e.size)]));
        if let Err(f) = stored {
            // In place: translated code knows where it is.
            cpu.xsave.0.copy_from_slice(&state.0);
            return Err(f);
        }
    } else {
        mark_written(cpu, i, e);
    }
    x87::set_pointers(cpu, i, e.pointers, op.fop.get(), pointers);
    Ok(())
}

/// Sets the dirty bits of an operand that is not written after all, as translated code does, which looks for the page first.
fn mark_written(cpu: &mut Cpu, i: &Instruction, e: &Entry) {
    let (exc, cr2) = (cpu.exc, cpu.cr2);
    let _may_fault = operand(cpu, i, e);
    (cpu.exc, cpu.cr2) = (exc, cr2);
}

/// Whether an instruction with this use of memory is one for [`store_late`].
fn is_late(cpu: &Cpu, i: &Instruction, mem: Mem) -> bool {
    let float16 = i.mnemonic() == Mnemonic::Vcvtps2ph;
    let x87 = x87::pointers(i) == x87::Pointers::Set;
    !cpu.amd() && mem == Mem::Write && (float16 || x87)
}

/// Runs a stub. `mem` is the host address of its memory operand, or `None` for the bounce buffer.
#[inline]
fn call(cpu: &mut Cpu, addr: StubAddr, mem: Option<*mut u8>) -> u32 {
    let mem = mem.unwrap_or(cpu.host.area.ctx.bounce.0.as_mut_ptr());
    // SAFETY: entries live as long as the code they name (`Host::clear`); `operand` found the memory, or it is the bounce
    // buffer, which is as large and as aligned as any operand.
    unsafe { code::call(&mut cpu.host.area, addr, mem, &mut cpu.xsave, &mut cpu.regs) }
}

/// Resolves the memory operand: checks, then a host address or the bytes in the bounce buffer.
#[inline]
fn operand(cpu: &mut Cpu, i: &Instruction, e: &Entry) -> R<Operand> {
    let size = u64::from(e.size);
    let write = e.mem != Mem::Read;
    let acc = if write { Acc::Write } else { Acc::Read };
    let strict = e.align == Align::Strict || e.align == Align::UnlessMm && x87::mxcsr(cpu) & MXCSR_MM == 0;
    let lin = if strict { cpu.aligned_mem_lin(i, size, acc)? } else { cpu.mem_lin(i, size, acc)? };
    let aligned = e.align == Align::Free || lin & (size - 1) == 0;
    if aligned && let Some(p) = cpu.fast_ptr(lin, size, write) {
        return Ok(Operand { lin, direct: Some(p.cast_mut()) });
    }
    operand_slowly(cpu, e, lin, aligned)
}

/// The alignment check of an operand of `size` bytes. Intel's processors have it for 8 bytes and less (SDM vol. 2A table 2-19, type 2, and the
/// others).
fn check_alignment(cpu: &mut Cpu, lin: u64, size: usize) -> R<()> {
    let align = 1 << size.max(1).ilog2();
    if align > 8 && !cpu.amd() {
        return Ok(());
    }
    cpu.require_alignment(lin, align.min(AC_ALIGN))
}

#[cold]
#[inline(never)]
fn operand_slowly(cpu: &mut Cpu, e: &Entry, lin: u64, aligned: bool) -> R<Operand> {
    let permitted = e.align == Align::UnlessMm && x87::mxcsr(cpu) & MXCSR_MM != 0;
    if !aligned && !permitted {
        return Err(cpu.gp(0));
    }
    let size = usize::from(e.size);
    if !e.float16 || cpu.amd() {
        check_alignment(cpu, lin, size)?;
    }
    if e.mem != Mem::Read {
        cpu.probe_write(lin, size as u64)?;
    }
    // An x87 store that raises an unmasked exception stores nothing: then the old bytes go back.
    if e.mem != Mem::Write || e.fx && x87::unmasked(cpu) {
        let mut b = cpu.host.area.ctx.bounce;
        cpu.read_bytes(lin, &mut b.0[..size])?;
        cpu.host.area.ctx.bounce = b;
    }
    Ok(Operand { lin, direct: None })
}

/// Touches `len` bytes at offset `at` of a large memory operand: large operands fault in this order, part by part.
fn touch(cpu: &mut Cpu, i: &Instruction, at: u64, len: u64, acc: Acc) -> R<()> {
    let off = cpu.ea(i).wrapping_add(at) & mask(address_size(i));
    let lin = cpu.seg_lin(cpu.memory_seg(i), off, len, acc)?;
    cpu.translate(lin, acc)?;
    let last = cpu.lin_add(lin, len - 1);
    if last >> 12 != lin >> 12 {
        cpu.translate(last & !0xfff, acc)?;
    }
    Ok(())
}

/// Reads a save area, in pieces that devices accept too.
fn read_area(cpu: &mut Cpu, lin: u64, buf: &mut [u8]) -> R<()> {
    for (n, part) in buf.chunks_mut(64).enumerate() {
        let at = cpu.lin_add(lin, 64 * n as u64);
        cpu.read_bytes(at, part)?;
    }
    Ok(())
}

/// Writes a save area: all of it or nothing.
fn write_area(cpu: &mut Cpu, lin: u64, buf: &[u8]) -> R<()> {
    cpu.probe_write(lin, buf.len() as u64)?;
    for (n, part) in buf.chunks(64).enumerate() {
        let at = cpu.lin_add(lin, 64 * n as u64);
        cpu.write_bytes(at, part)?;
    }
    Ok(())
}

/// The guest's exception for a signal that ended a stub.
#[cold]
fn host_fault(cpu: &mut Cpu, signal: u32, x87: bool) -> crate::cpu::Fault {
    if signal == libc::SIGILL as u32 {
        return cpu.ud();
    }
    if x87 && cpu.x87_pending() {
        return cpu.raise(Exception::plain(vector::MF));
    }
    if cpu.cr4 & cr4::OSXMMEXCPT == 0 {
        return cpu.ud();
    }
    cpu.raise(Exception::plain(vector::XM))
}
