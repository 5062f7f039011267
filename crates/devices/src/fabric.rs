//! [`IrqFabric`]: the interrupt chips, connected: PIC → LINT0 of the boot processor, I/O APIC → local APICs.

use crate::apic::{Apics, Delivery, Dest, Effect, Lapic, Message};
use crate::ioapic::IoApic;
use crate::pic::Pic;
use crate::timer::Timers;
use ringer_engine::{IrqChip, Pending, StopToken};
use ringer_memory::GuestMemory;
use std::sync::Arc;

/// The I/O APIC input that ISA interrupt 0, the PIT's, is wired to (the ACPI MADT's override says so).
pub const TIMER_GSI: u32 = 2;

/// All interrupt chips of a machine.
pub struct IrqFabric {
    apics: Arc<Apics>,
    ioapic: Arc<IoApic>,
    pic: Arc<Pic>,
}

impl IrqFabric {
    /// Chips for as many processors as there are tokens, at least one.
    #[must_use]
    pub fn new(stops: &[StopToken], memory: &GuestMemory, timers: &Timers) -> Arc<IrqFabric> {
        let lapics: Vec<_> = stops
            .iter()
            .enumerate()
            .map(|(i, stop)| Lapic::new(i, stop.clone(), memory.clone(), timers))
            .collect();
        let id = u8::try_from(lapics.len()).unwrap_or(0);
        let apics = Arc::new(Apics::new(lapics));
        let ioapic = Arc::new(IoApic::new(Arc::clone(&apics), id));
        let pic = Arc::new(Pic::new(stops.first().cloned().unwrap_or_default()));
        Arc::new(IrqFabric { apics, ioapic, pic })
    }

    /// The local APICs.
    #[must_use]
    pub fn apics(&self) -> &Arc<Apics> {
        &self.apics
    }

    /// The I/O APIC.
    #[must_use]
    pub fn ioapic(&self) -> &Arc<IoApic> {
        &self.ioapic
    }

    /// The PIC pair.
    #[must_use]
    pub fn pic(&self) -> &Arc<Pic> {
        &self.pic
    }

    /// Whether the PIC asks for processor `index`.
    #[inline]
    fn pic_intr(&self, index: usize) -> bool {
        index == 0 && self.pic.intr()
    }

    /// What waits for processor `index`.
    #[must_use]
    pub fn pending(&self, index: usize, lapic: &Lapic) -> Pending {
        lapic.pending(self.pic_intr(index))
    }

    /// Acknowledges an interrupt for processor `index`: the PIC's first, as it has no priority to compare.
    #[must_use]
    pub fn acknowledge(&self, index: usize, lapic: &Lapic) -> Option<u8> {
        if self.pic_intr(index) && lapic.take_pic() {
            return Some(self.pic.acknowledge());
        }
        lapic.acknowledge()
    }

    /// Does what a register access left to do.
    #[inline]
    pub fn apply(&self, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::Send(m) => {
                self.apics.deliver(&m);
            }
            Effect::Eoi(vector) => self.ioapic.eoi(vector),
        }
    }
}

impl IrqChip for IrqFabric {
    fn set_irq(&self, gsi: u32, level: bool) {
        let isa = match gsi {
            TIMER_GSI => Some(0),
            0 => None,
            n => u8::try_from(n).ok().filter(|n| *n < 16),
        };
        if let Some(irq) = isa {
            self.pic.set_line(irq, level);
        }
        if let Ok(pin) = usize::try_from(gsi) {
            self.ioapic.set_line(pin, level);
        }
    }

    fn msi(&self, address: u64, data: u32) {
        // Intel SDM vol. 3A §11.11.1: destination in bits 19:12, redirection hint in 3, destination mode in 2.
        if address >> 20 != 0xfee {
            return;
        }
        let redirect = address & 8 != 0;
        let logical = address & 4 != 0;
        let dest = Dest::from_byte((address >> 12 & 0xff) as u8, logical);
        let Some(mut delivery) = Delivery::from_bits(data >> 8) else { return };
        if redirect && logical && delivery == Delivery::Fixed {
            delivery = Delivery::LowestPriority;
        }
        self.apics.deliver(&Message {
            dest,
            delivery,
            vector: (data & 0xff) as u8,
            level: data & 1 << 15 != 0,
        });
    }
}
