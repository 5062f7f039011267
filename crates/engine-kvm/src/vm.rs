//! One machine in KVM: RAM, and what it has written.

use crate::engine::{create_vcpu, create_vm, unavailable};
use crate::kick::Kicker;
use crate::quirks::{Quirks, quirks};
use crate::tsc::MachineTsc;
use crate::vcpu::KvmVcpu;
use crate::{cpuid, host_error, msrs, raw};
use kvm_ioctls::{Cap, Kvm, VmFd};
use ringer_engine::{CpuIo, EngineError, StopToken, Vcpu, Vm, VmParams};
use ringer_memory::PAGE_SIZE;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Three pages and one, below the firmware's at 4 GiB and above RAM, that KVM uses where the processor cannot run real mode by itself
/// (Linux Documentation/virt/kvm/api.rst 4.5, 4.43).
pub const TSS: usize = 0xfffb_d000;
pub const IDENTITY_MAP: u64 = 0xfffb_c000;

/// What the processors of a machine share. Keeps RAM mapped for as long as one of them lives.
pub struct Shared {
    pub params: VmParams,
    pub vm: VmFd,
    pub tsc: MachineTsc,
    pub scales_tsc: bool,
    pub quirks: Quirks,
    pub run_size: usize,
    /// KVM keeps a log of what is written.
    logging: AtomicBool,
    /// Processors that run.
    running: Mutex<u32>,
}

impl Shared {
    /// A processor starts to run.
    pub fn starts(&self) {
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) += 1;
    }

    /// A processor has stopped. When the last one has, `memory` learns what was written: the pages in KVM's log, or, without one, all.
    /// Either way code that any engine has of those pages is stale from then on.
    pub fn stopped(&self) -> Result<(), EngineError> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        *running = running.saturating_sub(1);
        if *running == 0 { self.note_writes() } else { Ok(()) }
    }

    fn note_writes(&self) -> Result<(), EngineError> {
        let memory = &self.params.memory;
        for (slot, r) in (0..).zip(memory.regions()) {
            if !self.logging.load(Ordering::SeqCst) {
                memory.note_write(r.gpa, r.size);
                continue;
            }
            let log =
                self.vm.get_dirty_log(slot, r.size as usize).map_err(host_error("reading the dirty log"))?;
            for (word, first) in log.iter().zip((0..).step_by(64)) {
                let mut bits = *word;
                while bits != 0 {
                    let page = first + u64::from(bits.trailing_zeros());
                    memory.note_write(r.gpa + page * PAGE_SIZE, PAGE_SIZE);
                    bits &= bits - 1;
                }
            }
        }
        Ok(())
    }

    fn log_writes(&self, on: bool) -> Result<(), EngineError> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if self.logging.swap(on, Ordering::SeqCst) != on {
            let set = raw::set_memory(&self.vm, &self.params.memory, on);
            set.map_err(host_error("switching the dirty log"))?;
        }
        drop(running);
        Ok(())
    }
}

/// The engine's side of a machine.
pub struct KvmVm(Arc<Shared>);

impl KvmVm {
    pub fn new(kvm: &Kvm, params: VmParams) -> Result<KvmVm, EngineError> {
        let offered =
            cpuid::offered(kvm).map_err(host_error("listing the processor features that KVM has"))?;
        let missing = cpuid::missing(&params.cpu, &offered);
        if !missing.is_empty() {
            let model = params.cpu.name();
            return Err(unavailable(format!(
                "this KVM does not offer {missing}, which the processor model {model} has"
            )));
        }
        let most = kvm.get_max_vcpus();
        if params.vcpus as usize > most {
            return Err(unavailable(format!(
                "this KVM runs at most {most} processors, not {}",
                params.vcpus
            )));
        }
        let vm = create_vm(kvm)?;
        let shared = Shared {
            tsc: MachineTsc::default(),
            quirks: quirks(kvm)?,
            scales_tsc: kvm.check_extension_int(Cap::TscControl) > 0,
            run_size: kvm.get_vcpu_mmap_size().map_err(host_error("asking for the size of the run area"))?,
            vm,
            params,
            logging: AtomicBool::new(false),
            running: Mutex::new(0),
        };
        let vm = &shared.vm;
        vm.set_tss_address(TSS).map_err(host_error("placing the TSS"))?;
        vm.set_identity_map_address(IDENTITY_MAP).map_err(host_error("placing the identity map"))?;
        msrs::filter(vm, shared.quirks.fixed_tsc)?;
        raw::set_memory(vm, &shared.params.memory, false).map_err(host_error("giving it the guest's RAM"))?;
        Ok(KvmVm(Arc::new(shared)))
    }
}

impl Vm for KvmVm {
    fn create_vcpu(
        &self,
        index: u32,
        io: Arc<dyn CpuIo>,
        stop: StopToken,
    ) -> Result<Box<dyn Vcpu>, EngineError> {
        let fd = create_vcpu(&self.0.vm, index)?;
        Ok(Box::new(KvmVcpu::new(Arc::clone(&self.0), fd, index, io, stop, Kicker::new())?))
    }

    fn log_writes(&self, on: bool) -> Result<(), EngineError> {
        self.0.log_writes(on)
    }
}
