//! Delivery of exceptions and interrupts: the driver with its double and triple faults (Intel SDM vol. 3A ch. 6, §6.15
//! table 6-5), and the choice of mode.

use super::desc::EXT;
use super::{debug, legacy_int, long_int};
use crate::cpu::{Cpu, Mode, R};
use ringer_arch::Exception;
use ringer_arch::exception::vector;
use ringer_arch::regs::rflags;

/// Where an event comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// The interrupt controller.
    External,
    /// The NMI pin.
    Nmi,
    /// The processor itself.
    Exception,
    /// INT n, INT3 or INTO, an instruction of so many bytes.
    Soft(u8),
}

/// An event to deliver.
#[derive(Clone, Copy, Debug)]
pub(super) struct Event {
    pub vector: u8,
    pub kind: Kind,
    pub code: Option<u32>,
}

impl Event {
    /// EXT of error codes that its delivery raises.
    pub fn ext(&self) -> u32 {
        if matches!(self.kind, Kind::Soft(_)) { 0 } else { EXT }
    }
    /// Whether the gate's DPL is checked.
    pub fn is_soft(&self) -> bool {
        matches!(self.kind, Kind::Soft(_))
    }
    /// A fault: RF is set in the flags that it pushes, so that the instruction can be restarted past a breakpoint on it
    /// (Intel SDM vol. 3B §18.3.1.1). #DB sets it itself where it is a fault.
    fn is_fault(&self) -> bool {
        self.kind == Kind::Exception
            && !matches!(self.vector, vector::DB | vector::BP | vector::OF | vector::DF | vector::MC)
    }
    /// The address to return to.
    pub fn return_ip(&self, cpu: &Cpu) -> u64 {
        match self.kind {
            Kind::Soft(len) => cpu.rip.wrapping_add(u64::from(len)) & Cpu::width_mask(cpu.bits().max(32)),
            _ => cpu.rip,
        }
    }
    /// The flags to push.
    pub fn flags(&self, cpu: &Cpu) -> u64 {
        let f = cpu.rflags();
        if self.is_fault() { f | rflags::RF } else { f }
    }
}

/// Delivers the exception in [`Cpu::exc`], of the instruction at [`Cpu::rip`]. Afterwards [`Cpu::rip`] is the handler's address, or
/// [`Cpu::triple_fault`] is set.
pub fn raise_pending(cpu: &mut Cpu) {
    let Some(e) = cpu.exc.take() else { return };
    let kind = match cpu.soft_int.take() {
        Some(len) => Kind::Soft(len),
        None => Kind::Exception,
    };
    if kind == Kind::Exception {
        // Data breakpoints of an instruction that did not complete will be met again when it is restarted.
        cpu.debug_trap &= !0xf;
        cpu.watched.hit = None;
    }
    dispatch(cpu, Event { vector: e.vector, kind, code: e.code });
}

/// Delivers an external interrupt between two instructions: [`Cpu::rip`] is the address to return to, and then the handler's.
pub fn external(cpu: &mut Cpu, vector: u8) {
    dispatch(cpu, Event { vector, kind: Kind::External, code: None });
}

/// Delivers an NMI between two instructions, and blocks further ones until IRET.
pub fn nmi(cpu: &mut Cpu) {
    cpu.nmi_blocked = true;
    dispatch(cpu, Event { vector: vector::NMI, kind: Kind::Nmi, code: None });
}

/// Delivers the #DB of the debug traps in [`Cpu::debug_trap`] between two instructions.
pub fn debug_trap(cpu: &mut Cpu) {
    let bits = std::mem::take(&mut cpu.debug_trap);
    debug::raise_trap(cpu, bits);
    raise_pending(cpu);
}

/// More events in a row than any delivery that ends can raise: benign exceptions that raise themselves (#AC on the stack that #AC
/// is pushed on) keep a processor busy for ever, but not this thread.
const MOST_IN_A_ROW: u32 = 8;

fn dispatch(cpu: &mut Cpu, first: Event) {
    let mut ev = first;
    for _ in 0..MOST_IN_A_ROW {
        if deliver(cpu, &ev).is_ok() {
            return;
        }
        let Some(second) = cpu.exc.take() else { return };
        cpu.soft_int = None;
        cpu.stats.exceptions += 1;
        let raised = |v: Exception| Event { vector: v.vector, kind: Kind::Exception, code: v.code };
        let first_class = if ev.kind == Kind::Exception { class(ev.vector) } else { Class::Benign };
        ev = match (first_class, class(second.vector)) {
            (Class::DoubleFault, _) => {
                cpu.triple_fault = true;
                cpu.leave = true;
                return;
            }
            (Class::Contributory, Class::Contributory)
            | (Class::PageFault, Class::Contributory | Class::PageFault) => {
                raised(Exception::coded(vector::DF, 0))
            }
            _ => raised(second),
        };
    }
}

enum Class {
    Benign,
    Contributory,
    PageFault,
    DoubleFault,
}

fn class(v: u8) -> Class {
    match v {
        vector::DF => Class::DoubleFault,
        vector::PF => Class::PageFault,
        v if Exception::plain(v).is_contributory() => Class::Contributory,
        _ => Class::Benign,
    }
}

/// Goes through the gate of one event. [`Cpu::rip`] is the return address (of the instruction itself, for `Soft`), and on success the
/// handler's.
///
/// # Errors
/// The exception that delivery raises; the processor is as before, but for accessed bits and what lies beyond the stack.
fn deliver(cpu: &mut Cpu, ev: &Event) -> R<()> {
    match cpu.mode {
        Mode::Real => legacy_int::real(cpu, ev)?,
        _ if cpu.long_active() => long_int::deliver(cpu, ev)?,
        _ => legacy_int::protected(cpu, ev)?,
    }
    cpu.rip = cpu.next_rip;
    cpu.shadow = false;
    cpu.leave = true;
    Ok(())
}

/// Flags after a gate of protected or long mode: interrupt gates clear IF.
pub(super) fn handler_flags(f: u64, interrupt_gate: bool) -> u64 {
    let f = f & !(rflags::TF | rflags::VM | rflags::RF | rflags::NT);
    if interrupt_gate { f & !rflags::IF } else { f }
}
