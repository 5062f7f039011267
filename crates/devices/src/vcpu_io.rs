//! [`VcpuIo`]: the machine as one processor sees it.

use crate::apic::{BASE_EN, BUS_KHZ, Lapic};
use crate::bus::Bus;
use crate::fabric::IrqFabric;
use crate::kvm::{self, KvmPv};
use ringer_arch::cpu::CpuidDynamic;
use ringer_arch::msr;
use ringer_engine::{CpuIo, Pending, VmClock};
use ringer_memory::GuestMemory;
use std::sync::Arc;

/// One processor's way to buses, interrupt chips and paravirtual services.
pub struct VcpuIo {
    index: usize,
    bus: Arc<Bus>,
    fabric: Arc<IrqFabric>,
    lapic: Arc<Lapic>,
    pv: KvmPv,
    clock: VmClock,
    kvm_features: u32,
}

impl VcpuIo {
    /// For the processor that `lapic` of `fabric` belongs to, at place `index`; `kvm_features` is what of KVM's paravirtual
    /// interface it is offered.
    #[must_use]
    pub fn new(
        index: usize,
        lapic: Arc<Lapic>,
        fabric: Arc<IrqFabric>,
        bus: Arc<Bus>,
        memory: GuestMemory,
        clock: VmClock,
        kvm_features: u32,
    ) -> VcpuIo {
        VcpuIo {
            index,
            bus,
            fabric,
            lapic,
            pv: KvmPv::new(index, memory, clock.clone()),
            clock,
            kvm_features,
        }
    }

    /// Its paravirtual MSRs.
    pub(crate) fn pv(&self) -> &KvmPv {
        &self.pv
    }

    /// The offset in the local APIC's page that `gpa` is at.
    #[inline]
    fn apic_offset(&self, gpa: u64, len: usize) -> Option<u64> {
        let offset = gpa.checked_sub(self.lapic.page()?)?;
        (offset.checked_add(len as u64)? <= 0x1000).then_some(offset)
    }
}

impl CpuIo for VcpuIo {
    fn pio_read(&self, port: u16, data: &mut [u8]) {
        self.bus.pio_read(port, data);
    }

    fn pio_write(&self, port: u16, data: &[u8]) {
        self.bus.pio_write(port, data);
    }

    fn mmio_read(&self, gpa: u64, data: &mut [u8]) {
        match self.apic_offset(gpa, data.len()) {
            Some(offset) => self.lapic.mmio_read(offset, data),
            None => self.bus.mmio_read(gpa, data),
        }
    }

    fn mmio_write(&self, gpa: u64, data: &[u8]) {
        match self.apic_offset(gpa, data.len()) {
            Some(offset) => self.fabric.apply(self.lapic.mmio_write(offset, data)),
            None => self.bus.mmio_write(gpa, data),
        }
    }

    fn pending(&self) -> Pending {
        self.fabric.pending(self.index, &self.lapic)
    }

    fn acknowledge(&self) -> Option<u8> {
        self.fabric.acknowledge(self.index, &self.lapic)
    }

    fn cr8(&self) -> u64 {
        self.lapic.cr8()
    }

    fn set_cr8(&self, value: u64) {
        self.lapic.set_cr8(value);
    }

    fn msr_read(&self, nr: u32) -> Option<u64> {
        match nr {
            msr::APIC_BASE => Some(self.lapic.base_msr()),
            msr::TSC_DEADLINE => Some(self.lapic.tsc_deadline()),
            msr::X2APIC_FIRST..=msr::X2APIC_LAST => self.lapic.x2_read(nr),
            _ => self.pv.msr_read(&self.lapic, nr),
        }
    }

    fn msr_write(&self, nr: u32, value: u64) -> Option<()> {
        match nr {
            msr::TSC_DEADLINE => self.lapic.set_tsc_deadline(value),
            msr::X2APIC_FIRST..=msr::X2APIC_LAST => self.fabric.apply(self.lapic.x2_write(nr, value)?),
            msr::APIC_BASE => self.lapic.set_base_msr(value)?,
            _ => self.pv.msr_write(&self.lapic, nr, value)?,
        }
        Some(())
    }

    fn cpuid(&self) -> CpuidDynamic {
        CpuidDynamic {
            apic_enabled: self.lapic.base_msr() & BASE_EN != 0,
            tsc_khz: u32::try_from(self.clock.tsc_khz()).unwrap_or(u32::MAX),
            apic_bus_khz: BUS_KHZ,
            kvm_features: self.kvm_features,
            ..CpuidDynamic::default()
        }
    }

    fn hypercall(&self, nr: u64, args: [u64; 4]) -> u64 {
        kvm::hypercall(self.fabric.apics(), nr, args)
    }

    fn tsc(&self) -> u64 {
        self.clock.tsc()
    }

    fn reset_apic(&self) {
        self.lapic.init_reset();
    }
}
