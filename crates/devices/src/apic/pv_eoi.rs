//! The end of an interrupt by a bit in guest memory (Linux Documentation/virt/kvm/x86/msr.rst, MSR_KVM_PV_EOI_EN).
//!
//! The processor's thread sets bit 0 of a word in guest RAM when it hands the guest an interrupt whose end needs
//! nothing from the chip. The guest ends the interrupt by clearing the bit if it is set, and writes the EOI register
//! only if it is not. The guest's test-and-clear is not locked, so the word is only touched on the processor's own
//! thread; when another thread requests an interrupt meanwhile it gets the processor's attention, whatever the
//! priorities say, and the processor sorts it out in `pending`.

use super::lapic::{Lapic, State};
use ringer_memory::GuestMemory;
use serde::{Deserialize, Serialize};

/// Bit 0 of the MSR, and of the word.
const ENABLED: u64 = 1;

/// State of the handshake.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PvEoi {
    /// The MSR.
    pub msr: u64,
    /// The bit was set for the interrupt in service, and not looked at since.
    pub armed: bool,
}

impl PvEoi {
    /// Whether it is one that can be, with this memory.
    pub fn is_possible(self, memory: &GuestMemory) -> bool {
        let on = self.msr & ENABLED != 0;
        self.msr & 2 == 0 && (!on || memory.contains(self.gpa(), 4)) && (on || !self.armed)
    }

    fn gpa(self) -> u64 {
        self.msr & !3
    }
}

impl Lapic {
    /// After `vector` was acknowledged: lets the guest end it in memory, if nothing else waits (its end must then be
    /// seen at once) and it needs no broadcast.
    #[inline]
    pub(super) fn arm_pv_eoi(&self, s: &mut State, vector: u8) {
        if s.pv_eoi.msr & ENABLED == 0 || !s.irr.is_empty() || s.isr.count() != 1 || s.tmr.has(vector) {
            return;
        }
        let gpa = s.pv_eoi.gpa();
        if let Ok(word) = self.memory.load::<u8>(gpa)
            && self.memory.store::<u8>(gpa, word | 1).is_ok()
        {
            s.pv_eoi.armed = true;
        }
    }

    /// Looks at whether the guest has ended its interrupt in memory, and ends it in the chip then. If not and another
    /// interrupt waits, takes the offer back. On the processor's thread only.
    #[inline]
    pub(super) fn sync_pv_eoi(&self, s: &mut State) {
        if !s.pv_eoi.armed {
            return;
        }
        let word = self.memory.load::<u8>(s.pv_eoi.gpa()).unwrap_or(1);
        if word & 1 == 0 {
            s.pv_eoi.armed = false;
            // It was not level-triggered when it was acknowledged, so nothing is broadcast.
            self.end_highest(s);
        } else if !s.irr.is_empty() {
            self.disarm_pv_eoi(s);
        }
    }

    /// Takes the offer back: the guest must write the EOI register.
    pub(super) fn disarm_pv_eoi(&self, s: &mut State) {
        if !std::mem::take(&mut s.pv_eoi.armed) {
            return;
        }
        let gpa = s.pv_eoi.gpa();
        if let Ok(word) = self.memory.load::<u8>(gpa) {
            // RAM stays RAM, so what could be read can be written.
            let _in_ram = self.memory.store::<u8>(gpa, word & !1);
        }
    }

    /// Reads the MSR.
    #[must_use]
    pub fn pv_eoi_msr(&self) -> u64 {
        self.lock().pv_eoi.msr
    }

    /// Writes the MSR: bit 0 enables, bits 63:2 are the word's address. `None` if that is not RAM, or bit 1 is set.
    #[must_use]
    pub fn set_pv_eoi_msr(&self, value: u64) -> Option<()> {
        if value & 2 != 0 || (value & ENABLED != 0 && !self.memory.contains(value & !3, 4)) {
            return None;
        }
        let mut s = self.lock();
        self.sync_pv_eoi(&mut s);
        self.disarm_pv_eoi(&mut s);
        s.pv_eoi.msr = value;
        Some(())
    }
}
