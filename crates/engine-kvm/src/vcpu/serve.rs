//! What KVM comes out for, and how it is served.

use super::{Done, KvmVcpu};
use crate::debug::Meaning;
use crate::msrs::{Clocks, Effect};
use crate::{host_error, msrs, raw};
use kvm_bindings::{
    KVM_EXIT_DEBUG, KVM_EXIT_FAIL_ENTRY, KVM_EXIT_HLT, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_INTR, KVM_EXIT_IO,
    KVM_EXIT_IRQ_WINDOW_OPEN, KVM_EXIT_MMIO, KVM_EXIT_SET_TPR, KVM_EXIT_SHUTDOWN, KVM_EXIT_X86_RDMSR,
    KVM_EXIT_X86_WRMSR, KVM_INTERNAL_ERROR_EMULATION,
};
use ringer_arch::{MpState, msr};
use ringer_engine::{DebugStop, Exit};

impl KvmVcpu {
    /// After KVM_EXIT_DEBUG.
    fn debug_exit(&mut self) -> Done<Option<Exit>> {
        let exit = raw::debug_exit(&mut self.fd);
        match self.debugger.meaning(&exit) {
            Meaning::Stop(stop) => return Ok(Some(Exit::Debug(stop))),
            Meaning::GoOn => {}
            Meaning::Guest(trap) => {
                self.pending_debug |= trap;
                self.deliver_debug_trap()?;
            }
        }
        Ok(None)
    }

    /// Does what KVM came out for.
    pub(super) fn serve(&mut self) -> Done<Option<Exit>> {
        let reason = self.fd.get_kvm_run().exit_reason;
        match reason {
            KVM_EXIT_IO => self.port(),
            KVM_EXIT_MMIO => self.mmio(),
            KVM_EXIT_X86_RDMSR | KVM_EXIT_X86_WRMSR => return self.msr(reason == KVM_EXIT_X86_WRMSR),
            KVM_EXIT_DEBUG => return self.debug_exit(),
            KVM_EXIT_HLT => {
                self.mp_state = MpState::Halted;
                self.debugger.passed();
                if self.debugger.steps() {
                    return Ok(Some(Exit::Debug(DebugStop::Step)));
                }
            }
            KVM_EXIT_INTR | KVM_EXIT_IRQ_WINDOW_OPEN | KVM_EXIT_SET_TPR => {}
            KVM_EXIT_SHUTDOWN => return Ok(Some(Exit::TripleFault)),
            KVM_EXIT_INTERNAL_ERROR => return Ok(Some(self.internal_error())),
            KVM_EXIT_FAIL_ENTRY => {
                let why = raw::entry_failure(&mut self.fd);
                return Ok(Some(
                    self.fail(format!("the host's processor does not enter the guest (reason {why:#x})")),
                ));
            }
            _ => {
                return Ok(Some(
                    self.fail(format!("KVM came out for reason {reason}, which Ringer does not know")),
                ));
            }
        }
        Ok(None)
    }

    fn port(&mut self) {
        self.unfinished = true;
        self.stats.pio += 1;
        let Some(p) = raw::pio(&mut self.fd, self.shared.run_size) else { return };
        for data in p.data.chunks_exact_mut(p.size) {
            if p.write {
                self.io.pio_write(p.port, data);
            } else {
                self.io.pio_read(p.port, data);
            }
        }
    }

    fn mmio(&mut self) {
        self.unfinished = true;
        self.stats.mmio += 1;
        let m = raw::mmio(&mut self.fd);
        if m.write {
            self.io.mmio_write(m.gpa, m.data);
        } else {
            self.io.mmio_read(m.gpa, m.data);
        }
    }

    fn msr(&mut self, write: bool) -> Done<Option<Exit>> {
        self.unfinished = true;
        let index = raw::msr(&mut self.fd).index;
        let clocks = self.clocks(index)?;
        let m = raw::msr(&mut self.fd);
        let model = &self.shared.params.cpu;
        let io = self.io.as_ref();
        let mut effect = Effect::None;
        let done = if write {
            self.own.write(model, io, clocks, m.index, *m.data).map(|e| effect = e)
        } else {
            self.own.read(model, io, clocks, m.index).map(|v| *m.data = v)
        };
        *m.error = u8::from(done.is_none());
        match effect {
            Effect::None => {}
            Effect::Tsc => self.set_tsc()?,
            Effect::ApicBase => self.new_apic_base = true,
        }
        Ok(None)
    }

    /// What an access to the MSR needs of the clocks. As they drift apart, the guest's TSC is asked for rather than computed.
    fn clocks(&self, index: u32) -> Done<Clocks> {
        let machine = self.io.tsc();
        let guest = match index {
            _ if self.shared.quirks.fixed_tsc => raw::host_tsc(),
            msr::TSC | msr::TSC_DEADLINE => msrs::tsc(&self.fd).map_err(host_error("reading the TSC"))?,
            _ => 0,
        };
        Ok(Clocks { guest, machine })
    }

    fn internal_error(&mut self) -> Exit {
        let (kind, bytes) = raw::internal_error(&mut self.fd);
        let rip = self.fd.get_regs().map_or(0, |r| r.rip);
        let why = if kind == KVM_INTERNAL_ERROR_EMULATION {
            let bytes: Vec<_> = bytes.iter().map(|b| format!("{b:02x}")).collect();
            format!("KVM cannot emulate the instruction at {rip:#x} (bytes {})", bytes.join(" "))
        } else {
            format!("KVM met an error of its own at {rip:#x} (kind {kind})")
        };
        self.fail(why)
    }
}
