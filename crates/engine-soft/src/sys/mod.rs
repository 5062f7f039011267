//! The system side of the processor: segments, gates, interrupts, tasks, control registers, MSRs, port I/O, debugging
//! and the conversion to and from [`VcpuState`](ringer_arch::VcpuState).
//!
//! Instructions come in through [`execute`]; events (exceptions, interrupts) through [`interrupt`].

mod control;
pub mod debug;
mod desc;
mod far;
mod flags;
mod int_ops;
pub mod interrupt;
mod io;
mod iret;
mod legacy_int;
mod long_int;
mod misc;
mod msr;
mod segment;
mod segment_ops;
pub mod state;
mod syscall;
mod task;
mod v86;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use crate::cpu::{Cpu, R};
use iced_x86::{Instruction, Mnemonic as M};
use ringer_arch::cpu::Vendor;
use std::sync::atomic::{Ordering, fence};

/// Executes a system instruction; `None` if it is not one.
///
/// On entry [`Cpu::rip`] is the instruction's address and [`Cpu::next_rip`] the one after it; an instruction that
/// transfers control changes the latter.
pub fn execute(cpu: &mut Cpu, i: &Instruction) -> Option<R<()>> {
    if serializes(i) {
        fence(Ordering::SeqCst);
    }
    Some(match i.mnemonic() {
        M::Mov if i.op0_register().is_segment_register() || i.op1_register().is_segment_register() => {
            segment_ops::mov_sreg(cpu, i)
        }
        M::Mov if i.op0_register().is_cr() || i.op1_register().is_cr() => control::mov_cr(cpu, i),
        M::Mov if i.op0_register().is_dr() || i.op1_register().is_dr() => debug::mov_dr(cpu, i),
        M::Push if i.op0_register().is_segment_register() => segment_ops::push_sreg(cpu, i),
        M::Pop if i.op0_register().is_segment_register() => segment_ops::pop_sreg(cpu, i),
        M::Lds | M::Les | M::Lss | M::Lfs | M::Lgs => segment_ops::load_far_pointer(cpu, i),
        M::Call if is_far(i) => far::call(cpu, i),
        M::Jmp if is_far(i) => far::jump(cpu, i),
        M::Retf => far::ret(cpu, i),
        M::Iret | M::Iretd | M::Iretq => iret::iret(cpu, i),
        M::Int | M::Int3 | M::Int1 | M::Into | M::Bound => int_ops::execute(cpu, i),
        M::Pushf | M::Pushfd | M::Pushfq => flags::pushf(cpu, i),
        M::Popf | M::Popfd | M::Popfq => flags::popf(cpu, i),
        M::Cli => flags::cli(cpu),
        M::Sti => flags::sti(cpu),
        M::Clac | M::Stac => flags::set_ac(cpu, i.mnemonic() == M::Stac),
        M::Hlt => misc::hlt(cpu),
        M::Syscall => syscall::syscall(cpu),
        M::Sysret | M::Sysretq => syscall::sysret(cpu, i.mnemonic() == M::Sysretq),
        M::Sysenter => syscall::sysenter(cpu),
        M::Sysexit | M::Sysexitq => syscall::sysexit(cpu, i.mnemonic() == M::Sysexitq),
        M::Swapgs => segment_ops::swapgs(cpu),
        M::Rdfsbase | M::Rdgsbase | M::Wrfsbase | M::Wrgsbase => segment_ops::fs_gs_base(cpu, i),
        M::In | M::Out => io::in_out(cpu, i),
        M::Insb | M::Insw | M::Insd => io::ins(cpu, i),
        M::Outsb | M::Outsw | M::Outsd => io::outs(cpu, i),
        M::Rdmsr => msr::rdmsr(cpu),
        M::Wrmsr => msr::wrmsr(cpu),
        _ => return rare(cpu, i),
    })
}

/// Whether no load behind the instruction may come before a store in front of it: it is serializing (Intel SDM vol. 3A, "Serializing
/// Instructions"), or drains the store buffer as I/O instructions do (same volume, "Strengthening or Weakening the Memory-Ordering Model"). Each
/// other instruction leaves the order to the host, which has the guest's.
fn serializes(i: &Instruction) -> bool {
    match i.mnemonic() {
        M::Mov => i.op0_register().is_cr() || i.op0_register().is_dr(),
        M::Iret | M::Iretd | M::Iretq | M::Cpuid | M::Wrmsr | M::Xsetbv => true,
        M::Lgdt
        | M::Lidt
        | M::Lldt
        | M::Ltr
        | M::Lmsw
        | M::Invlpg
        | M::Invpcid
        | M::Wbinvd
        | M::Wbnoinvd
        | M::Invd => true,
        M::In | M::Out | M::Insb | M::Insw | M::Insd | M::Outsb | M::Outsw | M::Outsd => true,
        _ => false,
    }
}

fn rare(cpu: &mut Cpu, i: &Instruction) -> Option<R<()>> {
    Some(match i.mnemonic() {
        M::Lgdt | M::Lidt => segment_ops::load_table(cpu, i),
        M::Sgdt | M::Sidt => segment_ops::store_table(cpu, i),
        M::Lldt => segment_ops::lldt(cpu, i),
        M::Ltr => segment_ops::ltr(cpu, i),
        M::Sldt | M::Str => segment_ops::store_system_selector(cpu, i),
        M::Lar | M::Lsl | M::Verr | M::Verw => segment_ops::inspect(cpu, i),
        M::Arpl => segment_ops::arpl(cpu, i),
        M::Lmsw => control::lmsw(cpu, i),
        M::Smsw => control::smsw(cpu, i),
        M::Clts => control::clts(cpu),
        M::Xsetbv => control::xsetbv(cpu),
        M::Xgetbv => control::xgetbv(cpu),
        M::Invlpg => misc::invlpg(cpu, i),
        M::Invpcid => misc::invpcid(cpu, i),
        M::Wbinvd | M::Wbnoinvd | M::Invd => misc::cache_all(cpu),
        M::Clflush | M::Clflushopt | M::Clwb => misc::cache_line(cpu, i),
        M::Monitor => misc::monitor(cpu, i),
        M::Mwait => misc::mwait(cpu),
        M::Rdtsc | M::Rdtscp => misc::rdtsc(cpu, i.mnemonic() == M::Rdtscp),
        M::Rdpmc => misc::rdpmc(cpu),
        M::Rdpid => misc::rdpid(cpu, i),
        M::Cpuid => misc::cpuid(cpu),
        M::Vmcall | M::Vmmcall => misc::hypercall(cpu),
        // Without shadow stacks these are no-operations, which unwinders rely on (Intel SDM vol. 2B "RDSSPD/RDSSPQ").
        M::Rdsspd | M::Rdsspq => Ok(()),
        M::Rsm | M::Getsec | M::Vmxon | M::Vmrun | M::Clgi | M::Stgi | M::Skinit | M::Vmload | M::Vmsave => {
            Err(cpu.ud())
        }
        _ => return None,
    })
}

fn is_far(i: &Instruction) -> bool {
    i.is_call_far() || i.is_call_far_indirect() || i.is_jmp_far() || i.is_jmp_far_indirect()
}

impl Cpu {
    /// #GP(0) unless CPL is 0. Real mode is ring 0, virtual-8086 mode ring 3.
    ///
    /// # Errors
    /// #GP(0).
    pub(crate) fn require_cpl0(&mut self) -> R<()> {
        if self.cpl == 0 { Ok(()) } else { Err(self.gp(0)) }
    }

    /// Runs `f` with the memory rights of ring `cpl`: pushes on the stack of another ring.
    pub(crate) fn as_cpl<T>(&mut self, cpl: u8, f: impl FnOnce(&mut Cpu) -> T) -> T {
        if self.cpl == cpl {
            return f(self);
        }
        let old = std::mem::replace(&mut self.cpl, cpl);
        self.select_tlb();
        let r = f(self);
        self.cpl = old;
        self.select_tlb();
        r
    }

    /// Whether `v` may be a linear address in a register that holds one: MSRs, segment and table bases, and what TLB invalidations name
    /// take the processor's full width, whatever CR4.LA57 says (Intel SDM vol. 1 §3.3.7.1).
    pub(crate) fn canonical_base(&self, v: u64) -> bool {
        let shift = 64 - self.model.max_linear_bits();
        ((v << shift) as i64 >> shift) as u64 == v
    }

    /// Whether the processor follows AMD's rules where the vendors differ.
    #[must_use]
    pub(crate) fn amd(&self) -> bool {
        self.model.vendor() == Vendor::Amd
    }

    /// RFLAGS.IOPL.
    #[must_use]
    pub(crate) fn iopl(&self) -> u8 {
        (self.sysflags >> 12 & 3) as u8
    }
}
