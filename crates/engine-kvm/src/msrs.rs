//! MSRs: which KVM keeps, which the machine answers, and which only hold what the model says.

use crate::host_error;
use kvm_bindings::{
    KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_FILTER, KVM_MSR_EXIT_REASON_INVAL,
    KVM_MSR_EXIT_REASON_UNKNOWN, Msrs, kvm_enable_cap, kvm_msr_entry,
};
use kvm_ioctls::{Error, MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VcpuFd, VmFd};
use ringer_arch::cpu::{CpuModel, Feature};
use ringer_arch::msr;
use ringer_engine::{CpuIo, EngineError};
use std::collections::BTreeMap;

/// MSRs that KVM keeps and that are part of the state under their numbers.
const KEPT: [u32; 9] = [
    msr::STAR,
    msr::LSTAR,
    msr::CSTAR,
    msr::SFMASK,
    msr::KERNEL_GS_BASE,
    msr::SYSENTER_CS,
    msr::SYSENTER_ESP,
    msr::SYSENTER_EIP,
    msr::TSC_AUX,
];

/// Those of them that a processor of the model has.
fn kept(model: &CpuModel) -> impl Iterator<Item = u32> {
    let aux = model.has(Feature::RDTSCP) || model.has(Feature::RDPID);
    KEPT.into_iter().filter(move |n| *n != msr::TSC_AUX || aux)
}

/// Whether KVM executes the guest's RDMSR and WRMSR of it. Of the TSC it is only the first.
fn is_native(n: u32) -> bool {
    KEPT.contains(&n) || matches!(n, msr::EFER | msr::FS_BASE | msr::GS_BASE)
}

/// MSRs that the machine answers.
fn is_machine(n: u32) -> bool {
    matches!(
        n,
        msr::APIC_BASE
            | msr::X2APIC_FIRST..=msr::X2APIC_LAST
            | msr::KVM_SYSTEM_TIME_OLD
            | msr::KVM_WALL_CLOCK_OLD
            | 0x4b56_4d00..=0x4b56_4dff
    )
}

/// Has the VM pass on every access that KVM is not to execute, and those that it refuses.
pub fn filter(vm: &VmFd, fixed_tsc: bool) -> Result<(), EngineError> {
    let reasons = KVM_MSR_EXIT_REASON_FILTER | KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_UNKNOWN;
    let mut cap = kvm_enable_cap { cap: KVM_CAP_X86_USER_SPACE_MSR, ..Default::default() };
    cap.args[0] = u64::from(reasons);
    vm.enable_cap(&cap).map_err(host_error("having MSR accesses passed on"))?;
    let both = MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE;
    let range = |base, msr_count, bitmap, flags| MsrFilterRange { flags, base, msr_count, bitmap };
    // Of a TSC that cannot be set, KVM would tell what it was set to.
    let tsc = [u8::from(!fixed_tsc)];
    let ranges = [
        range(msr::TSC, 1, &tsc[..], MsrFilterRangeFlags::READ),
        range(msr::SYSENTER_CS, 3, &[7], both),
        range(msr::EFER, 5, &[0x1f], both),
        range(msr::FS_BASE, 4, &[0xf], both),
    ];
    vm.set_msr_filter(MsrFilterDefaultAction::DENY, &ranges).map_err(host_error("setting the MSR filter"))
}

/// The MSRs of a processor that KVM does not keep.
#[derive(Clone, Debug, Default)]
pub struct OwnMsrs {
    /// Of the model's, those that are not at their reset values.
    values: BTreeMap<u32, u64>,
    /// TSC_ADJUST: what is added to the machine's TSC.
    pub tsc_adjust: u64,
}

/// The two clocks that a TSC deadline is between.
#[derive(Clone, Copy, Debug)]
pub struct Clocks {
    /// The TSC as the guest reads it now.
    pub guest: u64,
    /// The machine's now.
    pub machine: u64,
}

impl Clocks {
    /// What the machine is told for the guest's deadline. Zero is "none" on both sides.
    fn to_machine(self, deadline: u64) -> u64 {
        if deadline == 0 { 0 } else { deadline.wrapping_sub(self.guest).wrapping_add(self.machine).max(1) }
    }

    fn to_guest(self, deadline: u64) -> u64 {
        if deadline == 0 { 0 } else { deadline.wrapping_sub(self.machine).wrapping_add(self.guest).max(1) }
    }
}

/// What an MSR access asks for beside its answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    None,
    /// TSC_ADJUST has changed.
    Tsc,
    /// The APIC base has changed.
    ApicBase,
}

impl OwnMsrs {
    /// RDMSR of what KVM passed on; `None`: #GP(0).
    pub fn read(&self, model: &CpuModel, io: &dyn CpuIo, clocks: Clocks, n: u32) -> Option<u64> {
        Some(match n {
            msr::TSC => clocks.guest,
            msr::TSC_ADJUST if model.has(Feature::TSC_ADJUST) => self.tsc_adjust,
            msr::TSC_DEADLINE => clocks.to_guest(io.msr_read(n)?),
            _ if is_machine(n) => return io.msr_read(n),
            // KVM refused it.
            _ if is_native(n) => return None,
            _ => {
                let m = model.msr(n).filter(|m| m.readable())?;
                self.values.get(&n).copied().unwrap_or(m.reset)
            }
        })
    }

    /// WRMSR of what KVM passed on; `None`: #GP(0).
    pub fn write(
        &mut self,
        model: &CpuModel,
        io: &dyn CpuIo,
        clocks: Clocks,
        n: u32,
        v: u64,
    ) -> Option<Effect> {
        match n {
            // Changes TSC_ADJUST by as much (Intel SDM vol. 3B §18.17.3).
            msr::TSC => self.tsc_adjust = v.wrapping_sub(clocks.machine),
            msr::TSC_ADJUST if model.has(Feature::TSC_ADJUST) => self.tsc_adjust = v,
            msr::TSC_DEADLINE => {
                io.msr_write(n, clocks.to_machine(v))?;
                return Some(Effect::None);
            }
            _ if is_machine(n) => {
                io.msr_write(n, v)?;
                return Some(if n == msr::APIC_BASE { Effect::ApicBase } else { Effect::None });
            }
            _ if is_native(n) => return None,
            _ => {
                self.set(model, n, v)?;
                return Some(Effect::None);
            }
        }
        Some(Effect::Tsc)
    }

    /// Writes an MSR of the model.
    fn set(&mut self, model: &CpuModel, n: u32, v: u64) -> Option<()> {
        let m = model.msr(n)?;
        let old = self.values.get(&n).copied().unwrap_or(m.reset);
        let new = m.write(old, v)?;
        if new == m.reset {
            self.values.remove(&n);
        } else {
            self.values.insert(n, new);
        }
        Some(())
    }

    /// Takes those that KVM does not keep from a state.
    pub fn from_state(model: &CpuModel, msrs: &BTreeMap<u32, u64>) -> Result<OwnMsrs, &'static str> {
        let mut own = OwnMsrs::default();
        for (&n, &v) in msrs {
            if n == msr::TSC_ADJUST && model.has(Feature::TSC_ADJUST) {
                own.tsc_adjust = v;
            } else if let Some(m) = model.msr(n) {
                if v != m.reset {
                    own.set(model, n, v).ok_or("an MSR of the model holds a value that it cannot take")?;
                }
            } else if !kept(model).any(|k| k == n) {
                return Err("the processor model has not all of the MSRs");
            }
        }
        Ok(own)
    }

    /// Adds them to a state.
    pub fn save(&self, model: &CpuModel, msrs: &mut BTreeMap<u32, u64>) {
        msrs.extend(&self.values);
        if model.has(Feature::TSC_ADJUST) {
            msrs.insert(msr::TSC_ADJUST, self.tsc_adjust);
        }
    }
}

fn list(entries: &[kvm_msr_entry]) -> Result<Msrs, Error> {
    Msrs::from_entries(entries).map_err(|_| Error::new(libc::E2BIG))
}

/// Sets those that KVM keeps, as the state has them, else to 0; `false`: KVM does not take one of the values.
pub fn load(fd: &VcpuFd, model: &CpuModel, msrs: &BTreeMap<u32, u64>) -> Result<bool, Error> {
    let entry =
        |n| kvm_msr_entry { index: n, data: msrs.get(&n).copied().unwrap_or(0), ..Default::default() };
    let entries: Vec<_> = kept(model).map(entry).collect();
    Ok(fd.set_msrs(&list(&entries)?)? == entries.len())
}

/// Adds those that KVM keeps to a state.
pub fn save(fd: &VcpuFd, model: &CpuModel, msrs: &mut BTreeMap<u32, u64>) -> Result<(), Error> {
    let entries: Vec<_> = kept(model).map(|n| kvm_msr_entry { index: n, ..Default::default() }).collect();
    let mut list = list(&entries)?;
    let n = fd.get_msrs(&mut list)?;
    msrs.extend(list.as_slice()[..n].iter().map(|e| (e.index, e.data)));
    Ok(())
}

/// The processor's TSC.
pub fn tsc(fd: &VcpuFd) -> Result<u64, Error> {
    let mut list = list(&[kvm_msr_entry { index: msr::TSC, ..Default::default() }])?;
    match fd.get_msrs(&mut list)? {
        1 => Ok(list.as_slice()[0].data),
        _ => Err(Error::new(libc::EINVAL)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_keep_their_distance() {
        let c = Clocks { guest: 1000, machine: 5 };
        assert_eq!((c.to_machine(1010), c.to_guest(15)), (15, 1010));
        assert_eq!((c.to_machine(0), c.to_guest(0)), (0, 0));
        // One that has passed long ago is due, not none.
        assert_eq!(c.to_machine(995), 1);
    }

    #[test]
    fn the_models_msrs_hold_what_they_may() {
        let host = |leaf, subleaf| {
            let r = std::arch::x86_64::__cpuid_count(leaf, subleaf);
            [r.eax, r.ebx, r.ecx, r.edx]
        };
        let offered = ringer_arch::cpu::FeatureSet::software(&host);
        let model = CpuModel::named("host", &host, &offered).unwrap();
        let mut own = OwnMsrs::default();
        assert!(own.set(&model, msr::PAT, 0x0606_0606_0606_0606).is_some());
        assert!(own.set(&model, msr::PAT, 0xff).is_none());
        let mut saved = BTreeMap::new();
        own.save(&model, &mut saved);
        assert_eq!(saved.get(&msr::PAT), Some(&0x0606_0606_0606_0606));
        let again = OwnMsrs::from_state(&model, &saved).unwrap();
        assert_eq!(again.values, own.values);
        saved.insert(0x1234_5678, 1);
        assert!(OwnMsrs::from_state(&model, &saved).is_err());
        // Back at its reset value, it is not in the state.
        own.set(&model, msr::PAT, model.msr_reset(msr::PAT).unwrap()).unwrap();
        assert!(own.values.is_empty());
    }
}
