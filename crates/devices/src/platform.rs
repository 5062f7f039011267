//! [`Platform`]: all of the machine around the processors, wired by its map.

#[cfg(test)]
pub(crate) mod tests;

use crate::acpi::{AcpiPm, GpePorts};
use crate::bus::{Bus, BusError};
use crate::events::{Latch, MachineEvents};
use crate::fabric::{IrqFabric, TIMER_GSI};
use crate::hpet::Hpet;
use crate::i8042::{I8042, I8042Ports};
use crate::kvm;
use crate::line::IrqLine;
use crate::pci::PciHost;
use crate::pic::{ElcrPorts, PicPorts};
use crate::pit::{Pit, PitControlPort};
use crate::ports::{DebugExit, ResetControl, SystemControl};
use crate::rtc::{Rtc, cmos_for};
use crate::serial::Serial;
use crate::timer::Timers;
use crate::vcpu_io::VcpuIo;
use ringer_engine::{IrqChip, StopToken, VmClock};
use ringer_memory::GuestMemory;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Where the devices are.
#[allow(missing_docs)]
pub mod map {
    pub const IOAPIC: u64 = 0xfec0_0000;
    pub const HPET: u64 = 0xfed0_0000;
    pub const HPET_LEN: u64 = 0x400;
    pub const PAGE: u64 = 0x1000;
    /// Ports of COM1 to COM4, and the interrupt of each.
    pub const SERIAL: [(u16, u32); 4] = [(0x3f8, 4), (0x2f8, 3), (0x3e8, 5), (0x2e8, 7)];
    pub const PM1: u16 = 0x600;
    pub const PM1_LEN: u16 = 12;
    pub const GPE0: u16 = 0x620;
    pub const SCI: u32 = 9;
    pub const DEBUG_EXIT: u16 = 0xf4;
}

/// One serial port's far side.
pub struct SerialConfig {
    /// Takes what the guest writes; see [`Serial::new`].
    pub output: Box<dyn Write + Send>,
    /// Input waits until the guest opens the port.
    pub flow_control: bool,
}

/// What a platform is made from.
pub struct PlatformConfig {
    /// Guest RAM.
    pub memory: GuestMemory,
    /// The machine's clock. The platform starts and stops it.
    pub clock: VmClock,
    /// The token of each processor; their number is the number of processors, at least 1.
    pub stops: Vec<StopToken>,
    /// Who hears of power-off, reset and debug exit: of the first, and after a [`reset`](Platform::reset) again of the
    /// first.
    pub events: Arc<dyn MachineEvents>,
    /// Whether the processors' engine passes KVM's hypercalls on: without, none is offered.
    pub hypercalls: bool,
    /// COM1 to COM4; a port that is `None` is not there.
    pub serial: [Option<SerialConfig>; 4],
}

/// The machine around the processors.
pub struct Platform {
    bus: Arc<Bus>,
    pub(crate) fabric: Arc<IrqFabric>,
    vcpus: Vec<Arc<VcpuIo>>,
    serial: [Option<Arc<Serial>>; 4],
    pit: Arc<Pit>,
    hpet: Arc<Hpet>,
    rtc: Arc<Rtc>,
    i8042: Arc<I8042>,
    acpi: Arc<AcpiPm>,
    pci: Arc<PciHost>,
    system_control: Arc<SystemControl>,
    latch: Arc<Latch>,
    clock: VmClock,
    /// Dropped last, so that no timer fires into a half-dropped machine.
    timers: Timers,
}

impl Platform {
    /// Makes and wires everything, at power-up. Time stands still until [`resume`](Self::resume).
    ///
    /// # Errors
    /// [`BusError`] if two devices claim one place.
    pub fn new(config: PlatformConfig) -> Result<Platform, BusError> {
        let PlatformConfig { memory, clock, stops, events, hypercalls, serial } = config;
        let pv = if hypercalls { kvm::KVM_FEATURES } else { kvm::KVM_FEATURES & !kvm::HYPERCALLS };
        let timers = Timers::new(clock.clone());
        let latch = Arc::new(Latch::new(events));
        let events: Arc<dyn MachineEvents> = latch.clone();
        let bus = Arc::new(Bus::new());
        let fabric = IrqFabric::new(&stops, &memory, &timers);
        let chip: Arc<dyn IrqChip> = fabric.clone();
        let line = |gsi| IrqLine::new(Arc::clone(&chip), gsi);
        let legacy = Arc::new(AtomicBool::new(false));
        let replaced = |gsi| IrqLine::with_mute(Arc::clone(&chip), gsi, Arc::clone(&legacy));

        let high = memory.regions().get(1).map_or(0, |r| r.size);
        let cmos = cmos_for(memory.size() - high, high, stops.len());
        let platform = Platform {
            pit: Pit::new(replaced(TIMER_GSI), &timers),
            hpet: Hpet::new(Arc::clone(&chip), Arc::clone(&legacy), &timers),
            rtc: Rtc::new(replaced(8), &timers, cmos),
            i8042: Arc::new(I8042::new(line(1), line(12), Arc::clone(&events))),
            acpi: AcpiPm::new(line(map::SCI), Arc::clone(&events), &timers),
            pci: Arc::new(PciHost::new(Arc::new(ResetControl::new(Arc::clone(&events))))),
            system_control: Arc::new(SystemControl::new(Arc::clone(&events))),
            serial: wire_serial(serial, &timers, line),
            vcpus: wire_vcpus(&fabric, &bus, &memory, &clock, pv),
            bus,
            fabric,
            latch,
            clock,
            timers,
        };
        platform.register()?;
        platform.bus.add_pio("debug exit", map::DEBUG_EXIT, 1, Arc::new(DebugExit::new(events)))?;
        Ok(platform)
    }

    fn register(&self) -> Result<(), BusError> {
        let bus = &self.bus;
        let pic = self.fabric.pic();
        bus.add_mmio("I/O APIC", map::IOAPIC, map::PAGE, self.fabric.ioapic().clone())?;
        bus.add_mmio("HPET", map::HPET, map::HPET_LEN, self.hpet.clone())?;
        bus.add_pio("PIC", 0x20, 2, Arc::new(PicPorts(pic.clone(), 0)))?;
        bus.add_pio("slave PIC", 0xa0, 2, Arc::new(PicPorts(pic.clone(), 1)))?;
        bus.add_pio("ELCR", 0x4d0, 2, Arc::new(ElcrPorts(pic.clone())))?;
        bus.add_pio("PIT", 0x40, 4, self.pit.clone())?;
        bus.add_pio("PIT control", 0x61, 1, Arc::new(PitControlPort(self.pit.clone())))?;
        bus.add_pio("i8042 data", 0x60, 1, Arc::new(I8042Ports(self.i8042.clone(), false)))?;
        bus.add_pio("i8042 command", 0x64, 1, Arc::new(I8042Ports(self.i8042.clone(), true)))?;
        bus.add_pio("RTC", 0x70, 2, self.rtc.clone())?;
        bus.add_pio("system control", 0x92, 1, self.system_control.clone())?;
        bus.add_pio("ACPI PM", map::PM1, map::PM1_LEN, self.acpi.clone())?;
        bus.add_pio("GPE0", map::GPE0, 4, Arc::new(GpePorts(self.acpi.clone())))?;
        bus.add_pio("PCI host", 0xcf8, 8, self.pci.clone())?;
        for ((port, _), serial) in map::SERIAL.iter().zip(&self.serial) {
            if let Some(s) = serial {
                bus.add_pio("serial", *port, 8, s.clone())?;
            }
        }
        Ok(())
    }

    /// The buses, for more devices.
    #[must_use]
    pub fn bus(&self) -> &Arc<Bus> {
        &self.bus
    }

    /// The interrupt chips, for more devices.
    #[must_use]
    pub fn irqchip(&self) -> Arc<dyn IrqChip> {
        self.fabric.clone()
    }

    /// What each processor sees of the machine, by index.
    #[must_use]
    pub fn vcpus(&self) -> &[Arc<VcpuIo>] {
        &self.vcpus
    }

    /// A serial port (0 is COM1), if it is there.
    #[must_use]
    pub fn serial(&self, index: usize) -> Option<&Arc<Serial>> {
        self.serial.get(index)?.as_ref()
    }

    /// The timers, for more devices, and for tests that drive the clock by hand.
    #[must_use]
    pub fn timers(&self) -> &Timers {
        &self.timers
    }

    /// The machine's clock.
    #[must_use]
    pub fn clock(&self) -> &VmClock {
        &self.clock
    }

    /// Starts the timers' thread. Time stands still until [`resume`](Self::resume).
    ///
    /// # Errors
    /// The host's, if it has no thread to give.
    pub fn start(&mut self) -> std::io::Result<()> {
        self.timers.start()
    }

    /// Lets time run, and timers fire. Before the processors run.
    pub fn resume(&self) {
        self.clock.start();
        self.timers.resume();
    }

    /// Makes time stand still; when it returns no timer fires any more. After the processors have stopped.
    pub fn pause(&self) {
        self.clock.stop();
        self.timers.pause();
    }

    /// Everything back to power-up, but the time of day, CMOS RAM and input for serial ports that the guest has not
    /// read. While paused, with the processors stopped.
    pub fn reset(&self) {
        self.pit.reset();
        self.hpet.reset();
        self.rtc.reset();
        self.i8042.reset();
        self.acpi.reset();
        self.pci.reset();
        self.system_control.reset();
        self.serial.iter().flatten().for_each(|s| s.reset());
        self.vcpus.iter().for_each(|v| v.reset());
        // Last, so that no edge from above is left in it.
        self.fabric.reset();
        self.latch.open();
    }

    /// Presses Ctrl-Alt-Del.
    pub fn ctrl_alt_del(&self) {
        self.i8042.ctrl_alt_del();
    }

    /// Presses the power button.
    pub fn power_button(&self) {
        self.acpi.power_button();
    }

    /// Sends every processor an NMI through LINT1, if the guest has wired that so.
    pub fn nmi(&self) {
        self.fabric.apics().all().iter().for_each(|l| l.lint1());
    }
}

fn wire_serial(
    config: [Option<SerialConfig>; 4],
    timers: &Timers,
    line: impl Fn(u32) -> IrqLine,
) -> [Option<Arc<Serial>>; 4] {
    let mut irqs = map::SERIAL.iter().map(|(_, irq)| *irq);
    config.map(|c| {
        let irq = irqs.next()?;
        c.map(|c| Serial::new(line(irq), timers, c.output, c.flow_control))
    })
}

fn wire_vcpus(
    fabric: &Arc<IrqFabric>,
    bus: &Arc<Bus>,
    memory: &GuestMemory,
    clock: &VmClock,
    pv: u32,
) -> Vec<Arc<VcpuIo>> {
    let lapics = fabric.apics().all().iter().enumerate();
    lapics
        .map(|(i, l)| {
            let (fabric, bus) = (fabric.clone(), bus.clone());
            Arc::new(VcpuIo::new(i, l.clone(), fabric, bus, memory.clone(), clock.clone(), pv))
        })
        .collect()
}
