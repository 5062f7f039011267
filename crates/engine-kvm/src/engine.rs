//! KVM as an [`Engine`].

use crate::host::{self, Tried};
use crate::vm::KvmVm;
use crate::{NAME, cpuid, host_error, probe};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use ringer_engine::{Engine, EngineError, Needs, Probe, Vm, VmParams};

/// KVM, with the machine's interrupt chips and timers in user space. Runs on Linux hosts whose `/dev/kvm` may be used.
#[derive(Clone, Copy, Debug, Default)]
pub struct KvmEngine;

pub(crate) fn unavailable(why: String) -> EngineError {
    EngineError::Unavailable { engine: NAME, why }
}

pub(crate) fn open() -> Result<Kvm, EngineError> {
    host::open(host::NODE).map_err(unavailable)
}

/// A VM without memory.
pub(crate) fn create_vm(kvm: &Kvm) -> Result<VmFd, EngineError> {
    let node = host::NODE.to_string_lossy();
    kvm.create_vm().map_err(|e| unavailable(host::clause(&node, Tried::CreateVm, e.errno())))
}

pub(crate) fn create_vcpu(vm: &VmFd, index: u32) -> Result<VcpuFd, EngineError> {
    let node = host::NODE.to_string_lossy();
    vm.create_vcpu(index.into()).map_err(|e| unavailable(host::clause(&node, Tried::CreateVcpu, e.errno())))
}

impl Engine for KvmEngine {
    fn name(&self) -> &'static str {
        NAME
    }

    fn probe(&self) -> Probe {
        probe::probe()
    }

    fn needs(&self) -> Result<Needs, EngineError> {
        let kvm = open()?;
        let features =
            cpuid::offered(&kvm).map_err(host_error("listing the processor features that KVM has"))?;
        let scales = kvm.check_extension_int(kvm_ioctls::Cap::TscControl) > 0;
        let tsc_khz = if scales { None } else { Some(native_tsc_khz(&kvm)?) };
        // KVM answers KVM's hypercalls itself, and those that need a local APIC only with its own.
        Ok(Needs { tsc_khz, features: Some(features), no_hypercalls: true })
    }

    fn create_vm(&self, params: VmParams) -> Result<Box<dyn Vm>, EngineError> {
        Ok(Box::new(KvmVm::new(&open()?, params)?))
    }
}

/// The rate of the guest's TSC if nothing is done to it: the host's.
fn native_tsc_khz(kvm: &Kvm) -> Result<u64, EngineError> {
    let vcpu = create_vcpu(&create_vm(kvm)?, 0)?;
    let khz = vcpu.get_tsc_khz().map_err(|_| unavailable("the host's TSC has no fixed rate".to_owned()))?;
    Ok(u64::from(khz))
}
