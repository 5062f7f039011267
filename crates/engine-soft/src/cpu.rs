//! [`Cpu`]: one processor's state in the form the software engines work on.

use crate::hostops::{flags_from_rflags, flags_to_rflags};
use crate::mmu::Mmu;
use iced_x86::Mnemonic;
use ringer_arch::cpu::{CpuModel, Feature};
use ringer_arch::regs::{cr0, efer, rflags};
use ringer_arch::seg::{Segment, TableReg, sreg};
use ringer_arch::state::XSAVE_LEN;
use ringer_arch::{Exception, MpState};
use ringer_engine::{CpuIo, Stats, StopToken, VmParams};
use std::collections::BTreeMap;
use std::sync::Arc;

/// An instruction did not complete. [`Cpu::exc`] says why; nothing of the instruction has happened, except what
/// the manual says happens (completed iterations of REP, accessed bits).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault;

/// The result of a step of an instruction.
pub type R<T> = Result<T, Fault>;

/// Slots of [`Cpu::regs`] beyond the sixteen general registers, so that an effective address is three loads and
/// no branch.
pub mod slot {
    /// Always zero: stands for "no register".
    pub const ZERO: u8 = 16;
    /// RIP of the first instruction of the current block: the base of RIP-relative addresses.
    pub const BLOCK: u8 = 17;
    /// First of the six segment bases *as 64-bit code sees them* (zero but for FS and GS), ES to GS.
    pub const SEG_BASE: u8 = 18;
}

/// How instructions are decoded and addresses formed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Mode {
    /// Real-address mode (CR0.PE = 0), 16-bit.
    #[default]
    Real,
    /// Virtual-8086 mode, 16-bit.
    V86,
    /// Protected or compatibility mode, CS.D = 0.
    Prot16,
    /// Protected or compatibility mode, CS.D = 1.
    Prot32,
    /// 64-bit mode.
    Long,
}

/// XSAVE area in standard form, aligned as FXSAVE and the vector moves want it.
#[derive(Clone)]
#[repr(C, align(64))]
pub struct XsaveArea(pub [u8; XSAVE_LEN]);

/// MSRs that instructions use directly; the rest live in [`Cpu::msrs`].
#[derive(Clone, Copy, Default, Debug)]
#[allow(missing_docs)]
pub struct FastMsrs {
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub tsc_aux: u64,
    pub tsc_adjust: u64,
}

/// One processor.
pub struct Cpu {
    /// General registers in encoding order, then the slots of [`slot`]. 256 long so that a `u8` index needs no check.
    pub regs: [u64; 256],
    /// The arithmetic flags as `lahf; seto al` leaves AX (see [`crate::hostops`]).
    pub fl: u16,
    /// Instruction pointer: valid between instructions only; inside a block see [`Cpu::regs`]\[BLOCK\] and `Op::ip`.
    pub rip: u64,
    /// Where execution goes on after the current instruction: set to the following one before an instruction that is
    /// executed by [`crate::exec::generic`], which branches overwrite.
    pub next_rip: u64,
    /// RFLAGS without the arithmetic flags and without the always-one bit.
    pub sysflags: u64,
    /// Current privilege level.
    pub cpl: u8,
    /// Base of the linear addresses of code, and their mask: kept by [`Cpu::update_mode`].
    pub code_base: u64,
    /// See [`Cpu::code_base`].
    pub code_mask: u64,
    /// Decoding mode and ring in a few bits, as the block cache keys them: kept by [`Cpu::update_mode`].
    pub code_key: u64,
    /// Decoding mode, kept in step with CR0, EFER, RFLAGS.VM and CS by [`Cpu::update_mode`].
    pub mode: Mode,
    /// Soft TLB.
    pub mmu: Mmu,
    /// ES CS SS DS FS GS.
    pub seg: [Segment; 6],
    /// Local descriptor table.
    pub ldtr: Segment,
    /// Task register.
    pub tr: Segment,
    /// Global descriptor table.
    pub gdtr: TableReg,
    /// Interrupt descriptor table.
    pub idtr: TableReg,
    /// CR0. Change through [`Cpu::set_cr0`](crate::sys) or follow with `update_mode`.
    pub cr0: u64,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER.
    pub efer: u64,
    /// XCR0.
    pub xcr0: u64,
    /// The four PDPTEs that PAE paging keeps in registers.
    pub pdptes: [u64; 4],
    /// DR0..DR3, DR6, DR7.
    pub dr: [u64; 8],
    /// x87, SSE and AVX state.
    pub xsave: Box<XsaveArea>,
    /// MSRs that instructions use.
    pub fast: FastMsrs,
    /// The other MSRs that hold state.
    pub msrs: BTreeMap<u32, u64>,
    /// Whether it executes.
    pub mp_state: MpState,
    /// Interrupts and debug traps are held off until after the next instruction (STI, MOV SS).
    pub shadow: bool,
    /// NMIs are blocked until IRET.
    pub nmi_blocked: bool,
    /// An NMI waits.
    pub nmi_pending: bool,
    /// Another processor has asked this one to leave HLT.
    pub unhalt: bool,
    /// A debug trap (DR6 bits) is due after the current instruction.
    pub debug_trap: u64,
    /// The exception of the last [`Fault`].
    pub exc: Option<Exception>,
    /// The exception came from INT n, INT3, INTO or INT1: delivered as software interrupt (gate DPL checked).
    /// Set by [`Cpu::raise_soft`]; cleared at delivery. Holds the length of the instruction.
    pub soft_int: Option<u8>,
    /// A fault of delivering a fault of delivering...: the machine must reset.
    pub triple_fault: bool,
    /// Address of the first op of the current block that was not executed, when it was left early; else 0.
    pub stopped_at: usize,
    /// The instruction that [`crate::exec::generic`] executed last.
    pub last_mnemonic: Mnemonic,
    /// The block must be left after the current instruction: what it was decoded under may not hold any more.
    pub leave: bool,
    /// CPUID model.
    pub model: Arc<CpuModel>,
    /// The machine.
    pub io: Arc<dyn CpuIo>,
    /// Requests from other threads.
    pub stop: StopToken,
    /// Processor number, the APIC id.
    pub index: u32,
    /// Processors of the machine.
    pub vcpus: u32,
    /// Counters.
    pub stats: Stats,
    /// What a debugger watches.
    pub watched: crate::debugger::Watched,
    /// Vector and x87 instructions as host code.
    pub host: crate::host::Host,
}

impl Cpu {
    /// Processor `index` of a machine, in its reset state.
    ///
    /// # Errors
    /// The host's, when it gives no executable memory.
    pub fn new(p: &VmParams, index: u32, io: Arc<dyn CpuIo>, stop: StopToken) -> std::io::Result<Cpu> {
        let mut cpu = Cpu {
            regs: [0; 256],
            fl: 0x200,
            rip: 0,
            next_rip: 0,
            sysflags: 0,
            cpl: 0,
            code_base: 0,
            code_mask: 0,
            code_key: 0,
            mode: Mode::Real,
            mmu: Mmu::new(p.memory.clone(), &p.cpu),
            seg: [Segment::default(); 6],
            ldtr: Segment::default(),
            tr: Segment::default(),
            gdtr: TableReg::default(),
            idtr: TableReg::default(),
            cr0: 0,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            efer: 0,
            xcr0: 1,
            pdptes: [0; 4],
            dr: [0; 8],
            xsave: Box::new(XsaveArea([0; XSAVE_LEN])),
            fast: FastMsrs::default(),
            msrs: BTreeMap::new(),
            mp_state: MpState::Running,
            shadow: false,
            nmi_blocked: false,
            nmi_pending: false,
            unhalt: false,
            debug_trap: 0,
            exc: None,
            soft_int: None,
            triple_fault: false,
            stopped_at: 0,
            last_mnemonic: Mnemonic::INVALID,
            leave: false,
            model: p.cpu.clone(),
            io,
            stop,
            index,
            vcpus: p.vcpus,
            stats: Stats::default(),
            watched: crate::debugger::Watched::default(),
            host: crate::host::Host::new()?,
        };
        crate::sys::state::reset(&mut cpu);
        Ok(cpu)
    }

    /// Notes an exception and returns the token that unwinds the instruction.
    #[cold]
    pub fn raise(&mut self, e: Exception) -> Fault {
        self.exc = Some(e);
        self.soft_int = None;
        Fault
    }

    /// #GP with an error code.
    #[cold]
    pub fn gp(&mut self, code: u32) -> Fault {
        self.raise(Exception::coded(ringer_arch::exception::vector::GP, code))
    }

    /// #UD.
    #[cold]
    pub fn ud(&mut self) -> Fault {
        self.raise(Exception::UD)
    }

    /// RFLAGS.
    #[must_use]
    pub fn rflags(&self) -> u64 {
        self.sysflags | rflags::FIXED | flags_to_rflags(self.fl)
    }

    /// Sets RFLAGS (every bit; the caller has masked what may change) and updates the mode if VM changed.
    pub fn set_rflags(&mut self, v: u64) {
        self.fl = flags_from_rflags(v);
        let old = self.sysflags;
        self.sysflags = v & rflags::ALL & !rflags::ARITH & !rflags::FIXED;
        if (old ^ self.sysflags) & (rflags::VM | rflags::AC) != 0 {
            self.update_mode();
        }
    }

    /// Long mode is active (EFER.LMA).
    #[must_use]
    pub fn long_active(&self) -> bool {
        self.efer & efer::LMA != 0
    }

    /// 64-bit mode.
    #[must_use]
    pub fn is64(&self) -> bool {
        self.mode == Mode::Long
    }

    /// Protected mode, not virtual-8086.
    #[must_use]
    pub fn protected(&self) -> bool {
        self.cr0 & cr0::PE != 0 && self.sysflags & rflags::VM == 0
    }

    /// Code size in bits: 16, 32 or 64.
    #[must_use]
    pub fn bits(&self) -> u32 {
        match self.mode {
            Mode::Long => 64,
            Mode::Prot32 => 32,
            _ => 16,
        }
    }

    /// Recomputes what depends on CR0, CR4, EFER, RFLAGS.VM and AC, CPL and the segment registers: decoding mode, the 64-bit
    /// view of segment bases, and which soft TLB is in force. Call after changing any of them.
    pub fn update_mode(&mut self) {
        let cs = self.seg[sreg::CS].attr;
        self.mode = if self.cr0 & cr0::PE == 0 {
            Mode::Real
        } else if self.sysflags & rflags::VM != 0 {
            Mode::V86
        } else if self.long_active() && cs.long() {
            Mode::Long
        } else if cs.big() {
            Mode::Prot32
        } else {
            Mode::Prot16
        };
        let long = self.mode == Mode::Long;
        for (i, s) in self.seg.iter().enumerate() {
            let seen = !long || i >= sreg::FS;
            self.regs[slot::SEG_BASE as usize + i] = if seen { s.base } else { 0 };
        }
        (self.code_base, self.code_mask) =
            if long { (0, u64::MAX) } else { (self.seg[sreg::CS].base, 0xffff_ffff) };
        let size = match self.mode {
            Mode::Long => 2,
            Mode::Prot32 => 1,
            _ => 0,
        };
        self.code_key = size | u64::from(self.cpl == 3) << 4;
        self.select_tlb();
        self.leave = true;
    }

    /// Mask of an instruction pointer or stack pointer of `bits` bits.
    #[must_use]
    pub fn width_mask(bits: u32) -> u64 {
        if bits >= 64 { u64::MAX } else { (1 << bits) - 1 }
    }

    /// Stack-pointer width in bits: 64 in 64-bit mode, else by SS.B.
    #[must_use]
    pub fn stack_bits(&self) -> u32 {
        if self.is64() {
            64
        } else if self.seg[sreg::SS].attr.big() && self.mode != Mode::Real && self.mode != Mode::V86 {
            32
        } else {
            16
        }
    }

    /// Whether the model has `f`.
    #[must_use]
    pub fn has(&self, f: Feature) -> bool {
        self.model.has(f)
    }

    /// The guest TSC now, TSC_ADJUST included.
    #[must_use]
    pub fn tsc(&self) -> u64 {
        self.io.tsc().wrapping_add(self.fast.tsc_adjust)
    }
}
