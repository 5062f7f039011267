//! [`Platform`]: all of the machine around the processors, wired by its map.

#[cfg(test)]
mod saved_tests;
#[cfg(test)]
pub(crate) mod tests;

use crate::acpi::{AcpiPm, GpePorts};
use crate::bus::{Bus, BusError};
use crate::clock::Clock;
use crate::component::{Component, Saved, StateError};
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
use std::collections::BTreeMap;
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
    debug_exit: Arc<DebugExit>,
    latch: Arc<Latch>,
    /// Dropped last, so that no timer fires into a half-dropped machine.
    clock: Clock,
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
            debug_exit: Arc::new(DebugExit::new(events)),
            bus,
            fabric,
            latch,
            clock: Clock::new(clock, timers),
        };
        platform.register()?;
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
        bus.add_pio("debug exit", map::DEBUG_EXIT, 1, self.debug_exit.clone())?;
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
        self.clock.timers()
    }

    /// The machine's clock.
    #[must_use]
    pub fn clock(&self) -> &VmClock {
        self.clock.clock()
    }

    /// All components, in the order in which they are paused, resumed and loaded.
    fn components(&self) -> Vec<&dyn Component> {
        let mut all: Vec<&dyn Component> = vec![&self.clock];
        all.push(self.pit.as_ref());
        all.push(self.hpet.as_ref());
        all.push(self.rtc.as_ref());
        all.push(self.i8042.as_ref());
        all.push(self.acpi.as_ref());
        all.push(self.pci.as_ref());
        all.push(self.system_control.as_ref());
        all.push(self.debug_exit.as_ref());
        all.extend(self.serial.iter().flatten().map(|s| s.as_ref() as &dyn Component));
        all.extend(self.vcpus.iter().map(|v| v.pv() as &dyn Component));
        // After all that has lines to them, so that a reset leaves no edge in them.
        all.push(self.fabric.pic().as_ref());
        all.push(self.fabric.ioapic().as_ref());
        all.push(self.fabric.apics().as_ref());
        all.extend(self.fabric.apics().all().iter().map(|l| l.as_ref() as &dyn Component));
        all
    }

    /// Gets threads for what acts by itself. Time stands still until [`resume`](Self::resume).
    ///
    /// # Errors
    /// The host's, if it has no thread to give.
    pub fn start(&self) -> std::io::Result<()> {
        self.components().iter().try_for_each(|c| c.start())
    }

    /// Lets time run, and timers fire. Before the processors run.
    pub fn resume(&self) {
        self.components().iter().for_each(|c| c.resume());
    }

    /// Makes time stand still; when it returns no timer fires any more. After the processors have stopped.
    pub fn pause(&self) {
        self.components().iter().for_each(|c| c.pause());
    }

    /// Everything back to power-up, but the time of day, CMOS RAM and input for serial ports that the guest has not
    /// read. While paused, with the processors stopped.
    pub fn reset(&self) {
        self.components().iter().for_each(|c| c.reset());
        self.latch.open();
    }

    /// The state of every component. While paused, with the processors stopped.
    #[must_use]
    pub fn save(&self) -> Vec<Saved> {
        self.components().iter().map(|c| c.save()).collect()
    }

    /// Takes on the saved states of all components, in any order. While paused, with the processors stopped.
    ///
    /// # Errors
    /// [`StateError`] if one is missing, comes twice, or is not of such a component: nothing has changed if a component is missing or
    /// too many; else the platform is to be [`reset`](Self::reset) or dropped.
    pub fn restore(&self, saved: &[Saved]) -> Result<(), StateError> {
        let mut left: BTreeMap<&str, &Saved> = BTreeMap::new();
        for s in saved {
            if left.insert(&s.component, s).is_some() {
                return Err(StateError::Surplus(s.component.clone()));
            }
        }
        let mut found = Vec::new();
        for c in self.components() {
            let name = c.name();
            let s = left.remove(&*name).ok_or(StateError::Missing(name))?;
            found.push((c, s));
        }
        if let Some(name) = left.keys().next() {
            return Err(StateError::Surplus((*name).to_owned()));
        }
        found.iter().try_for_each(|(c, s)| c.restore(s))
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
    let mut ports = (1..).zip(map::SERIAL);
    config.map(|c| {
        let (number, (_, irq)) = ports.next()?;
        c.map(|c| Serial::numbered(line(irq), timers, c.output, c.flow_control, number))
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
