//! The machine around the processors: its buses ([`Bus`]), interrupt chips ([`IrqFabric`]: local APICs, I/O APIC,
//! the two 8259s), timers ([`Timers`]), the legacy devices of a PC, and [`Platform`], which wires them by the
//! machine's map. [`VcpuIo`] is what one processor sees of it all.
//!
//! Locks: every device has one mutex of its own. A device may drive its interrupt line and arm its timer while it
//! holds it; the chips never call back into devices, and timers fire with no lock held. The order is
//! device → PIC → I/O APIC → local APIC → timer list.
#![forbid(unsafe_code)]
// Where a part of a guest's value is meant, a mask says so.
#![cfg_attr(not(test), warn(clippy::cast_possible_truncation))]

mod acpi;
mod apic;
mod bus;
mod clock;
mod component;
mod events;
mod fabric;
mod hpet;
mod i8042;
mod ioapic;
mod kvm;
mod line;
mod pci;
mod pic;
mod pit;
mod platform;
mod ports;
mod rtc;
mod serial;
mod sync;
#[cfg(test)]
mod testing;
mod timer;
mod vcpu_io;

pub use acpi::{AcpiPm, GpePorts};
pub use apic::{Apics, Delivery, Dest, Effect, Lapic, Message};
pub use bus::{Bus, BusError, MmioDevice, PioDevice};
pub use clock::Clock;
pub use component::{Component, Saved, StateError};
pub use events::{MachineEvent, MachineEvents};
pub use fabric::IrqFabric;
pub use hpet::Hpet;
pub use i8042::{I8042, I8042Ports};
pub use ioapic::IoApic;
pub use kvm::KVM_FEATURES;
pub use line::IrqLine;
pub use pci::PciHost;
pub use pic::{ElcrPorts, Pic, PicPorts};
pub use pit::{Pit, PitControlPort};
pub use platform::{Platform, PlatformConfig, SerialConfig, map};
pub use ports::{DebugExit, ResetControl, SystemControl};
pub use rtc::{Rtc, cmos_for};
pub use serial::Serial;
pub use timer::{TimerHandle, TimerTarget, Timers};
pub use vcpu_io::VcpuIo;
