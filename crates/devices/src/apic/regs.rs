//! The local APIC's register file: by MMIO in xAPIC mode, by MSR in x2APIC mode. Registers go by the number that both
//! share: page offset / 16, or MSR - 0x800 (Intel SDM vol. 3A tables 11-1 and 11-6).

use super::bus::{Delivery, Dest, Message};
use super::lapic::{BASE_EN, BASE_X2, Effect, LVT_MASKED, Lapic, SVR_ENABLE, State, esr, lvt, x2_ldr};
use super::timer::Mode;
use ringer_arch::msr;

const ID: u32 = 0x02;
const VERSION: u32 = 0x03;
const TPR: u32 = 0x08;
const APR: u32 = 0x09;
const PPR: u32 = 0x0a;
const EOI: u32 = 0x0b;
const RRD: u32 = 0x0c;
const LDR: u32 = 0x0d;
const DFR: u32 = 0x0e;
const SVR: u32 = 0x0f;
const ISR: u32 = 0x10;
const TMR: u32 = 0x18;
const IRR: u32 = 0x20;
const ESR: u32 = 0x28;
const ICR_LOW: u32 = 0x30;
const ICR_HIGH: u32 = 0x31;
const LVT_FIRST: u32 = 0x32;
const LVT_LAST: u32 = 0x37;
const INITIAL_COUNT: u32 = 0x38;
const CURRENT_COUNT: u32 = 0x39;
const DIVIDE: u32 = 0x3e;
const SELF_IPI: u32 = 0x3f;

/// Version 0x14 (integrated), six LVT entries, no suppression of EOI broadcasts.
const VERSION_VALUE: u32 = 0x14 | (LVT_LAST - LVT_FIRST) << 16;

/// Bits of each LVT entry that software sets.
pub(super) const LVT_WRITABLE: [u32; lvt::COUNT] =
    [0x7_00ff, 0x1_07ff, 0x1_07ff, 0x1_a7ff, 0x1_a7ff, 0x1_00ff];
/// Bits of LVT entries that are there to be read: delivery status and remote IRR.
const LVT_READ_ONLY: u32 = 0x5000;
/// Bits of the ICR's low half that software sets: vector, delivery, destination mode, level, trigger, shorthand.
const ICR_WRITABLE: u32 = 0xc_cfff;

impl Lapic {
    fn reg(&self, s: &State, reg: u32) -> Option<u32> {
        Some(match reg {
            ID if s.x2() => self.id(),
            ID => self.id() << 24,
            VERSION => VERSION_VALUE,
            TPR => s.tpr,
            APR | RRD if !s.x2() => 0,
            PPR => s.ppr(),
            LDR if s.x2() => x2_ldr(self.id()),
            LDR => s.ldr,
            DFR if !s.x2() => s.dfr,
            SVR => s.svr,
            ISR..TMR => s.isr.word((reg - ISR) as usize),
            TMR..IRR => s.tmr.word((reg - TMR) as usize),
            IRR..ESR => s.irr.word((reg - IRR) as usize),
            ESR => s.esr,
            ICR_LOW => (s.icr & 0xffff_ffff) as u32,
            ICR_HIGH if !s.x2() => (s.icr >> 32) as u32,
            LVT_FIRST..=LVT_LAST => s.lvt[(reg - LVT_FIRST) as usize],
            INITIAL_COUNT => s.initial_count,
            CURRENT_COUNT => s.current_count(self.timer.now_ns()),
            DIVIDE => s.divide,
            EOI if !s.x2() => 0,
            _ => return None,
        })
    }

    /// Loads `data.len()` bytes from `offset` of the register page (xAPIC mode). Registers are 32 bits wide, at every
    /// 16 bytes; between them are zeros.
    pub fn mmio_read(&self, offset: u64, data: &mut [u8]) {
        let mut s = self.lock();
        self.sync_pv_eoi(&mut s);
        let (mut last, mut value) = (u64::MAX, 0u32);
        for (at, b) in (offset..).zip(data.iter_mut()) {
            if at / 16 != last {
                last = at / 16;
                value = match u32::try_from(last).ok().filter(|r| *r < 0x40).and_then(|r| self.reg(&s, r)) {
                    Some(v) => v,
                    None => {
                        self.error(&mut s, esr::ILLEGAL_REGISTER);
                        0
                    }
                };
            }
            *b = if at % 16 < 4 { value.to_le_bytes()[(at % 4) as usize] } else { 0 };
        }
    }

    /// Stores to the register page (xAPIC mode). Only aligned stores of 32 bits or more act, by their first 32.
    #[must_use]
    pub fn mmio_write(&self, offset: u64, data: &[u8]) -> Effect {
        let Some(value) = data.first_chunk::<4>() else { return Effect::None };
        let value = u32::from_le_bytes(*value);
        match u32::try_from(offset / 16) {
            Ok(reg) if offset.is_multiple_of(16) && reg < 0x40 => self.write_xapic(reg, value),
            _ => Effect::None,
        }
    }

    fn write_xapic(&self, reg: u32, value: u32) -> Effect {
        if reg == EOI {
            return self.eoi();
        }
        let mut s = self.lock();
        self.sync_pv_eoi(&mut s);
        match reg {
            // The id is fixed, as on every processor with x2APIC; the others are read-only.
            ID | VERSION | APR | PPR | RRD | CURRENT_COUNT | ISR..ESR => {}
            LDR => s.ldr = value & 0xff00_0000,
            DFR => s.dfr = value | 0x0fff_ffff,
            ICR_LOW => {
                s.icr = s.icr & !0xffff_ffff | u64::from(value & ICR_WRITABLE);
                let icr = s.icr;
                return self.send(&mut s, icr).unwrap_or(Effect::None);
            }
            ICR_HIGH => s.icr = s.icr & 0xffff_ffff | u64::from(value & 0xff00_0000) << 32,
            SELF_IPI => self.error(&mut s, esr::ILLEGAL_REGISTER),
            _ => {
                if !self.write_common(&mut s, reg, value) {
                    self.error(&mut s, esr::ILLEGAL_REGISTER);
                }
            }
        }
        Effect::None
    }

    /// Registers that are written alike in both modes. `false`: no such register.
    fn write_common(&self, s: &mut State, reg: u32, value: u32) -> bool {
        match reg {
            TPR => {
                s.tpr = value & 0xff;
                self.wake_if_deliverable(s);
            }
            SVR => {
                s.svr = value & 0x1ff;
                if s.svr & SVR_ENABLE == 0 {
                    s.lvt.iter_mut().for_each(|e| *e |= LVT_MASKED);
                }
            }
            ESR => s.esr = std::mem::take(&mut s.esr_new),
            LVT_FIRST..=LVT_LAST => self.write_lvt(s, (reg - LVT_FIRST) as usize, value),
            INITIAL_COUNT => self.load_count(s, value),
            DIVIDE => self.set_divide(s, value),
            _ => return false,
        }
        true
    }

    fn write_lvt(&self, s: &mut State, entry: usize, value: u32) {
        let mut value = value & LVT_WRITABLE[entry];
        if s.svr & SVR_ENABLE == 0 {
            value |= LVT_MASKED;
        }
        match entry {
            // Mode 3 is reserved; the mode stays what it was.
            lvt::TIMER if value >> 17 & 3 == 3 => {
                let mode = s.lvt[lvt::TIMER] & 0x6_0000;
                self.set_timer_lvt(s, value & !0x6_0000 | mode);
            }
            lvt::TIMER => self.set_timer_lvt(s, value),
            lvt::LINT0 => {
                s.lvt[entry] = value;
                // The PIC's line may be up already.
                self.wake();
            }
            _ => s.lvt[entry] = value,
        }
    }

    /// The message that an ICR value means. `None`: nothing leaves this local APIC.
    fn send(&self, s: &mut State, icr: u64) -> Option<Effect> {
        let (low, vector) = ((icr & 0xffff_ffff) as u32, (icr & 0xff) as u8);
        let delivery = Delivery::from_bits(low >> 8)?;
        let level = low & 1 << 15 != 0;
        // INIT level de-assert only synchronized arbitration ids, long ago.
        if delivery == Delivery::ExtInt || (delivery == Delivery::Init && level && low & 1 << 14 == 0) {
            return None;
        }
        if vector < 16 && matches!(delivery, Delivery::Fixed | Delivery::LowestPriority) {
            self.error(s, esr::SEND_ILLEGAL_VECTOR);
            return None;
        }
        let logical = low & 1 << 11 != 0;
        let dest = match low >> 18 & 3 {
            0 if s.x2() => Dest::from_word((icr >> 32) as u32, logical),
            0 => Dest::from_byte((icr >> 56) as u8, logical),
            1 => Dest::Index(self.index),
            2 => Dest::All,
            _ => Dest::AllBut(self.index),
        };
        // IPIs are edge-triggered whatever the trigger bit says (Intel SDM vol. 3A §11.6.1).
        Some(Effect::Send(Message { dest, delivery, vector, level: false }))
    }

    /// Reads x2APIC register MSR `nr`; `None`: #GP.
    #[must_use]
    pub fn x2_read(&self, nr: u32) -> Option<u64> {
        let mut s = self.lock();
        if !s.x2() {
            return None;
        }
        self.sync_pv_eoi(&mut s);
        match nr.checked_sub(msr::X2APIC_FIRST)? {
            ICR_LOW => Some(s.icr),
            reg => self.reg(&s, reg).map(u64::from),
        }
    }

    /// Writes x2APIC register MSR `nr`; `None`: #GP.
    #[must_use]
    pub fn x2_write(&self, nr: u32, value: u64) -> Option<Effect> {
        let reg = nr.checked_sub(msr::X2APIC_FIRST)?;
        if reg == EOI {
            let on = self.lock().x2();
            return (on && value == 0).then(|| self.eoi());
        }
        let mut s = self.lock();
        if !s.x2() {
            return None;
        }
        self.sync_pv_eoi(&mut s);
        if reg == ICR_LOW {
            if value & 0xffff_ffff & !u64::from(ICR_WRITABLE | 0x1000) != 0 {
                return None;
            }
            s.icr = value & !0x1000;
            let icr = s.icr;
            return Some(self.send(&mut s, icr).unwrap_or(Effect::None));
        }
        let low = u32::try_from(value).ok()?;
        let reserved = match reg {
            TPR => !0xff,
            SVR => !0x1ff,
            ESR => !0,
            LVT_FIRST..=LVT_LAST => !(LVT_WRITABLE[(reg - LVT_FIRST) as usize] | LVT_READ_ONLY),
            INITIAL_COUNT => 0,
            DIVIDE => !0xb,
            SELF_IPI => !0xff,
            _ => return None,
        };
        if low & reserved != 0 {
            return None;
        }
        if reg == SELF_IPI {
            let icr = u64::from(low) | 1 << 18;
            return Some(self.send(&mut s, icr).unwrap_or(Effect::None));
        }
        self.write_common(&mut s, reg, low);
        Some(Effect::None)
    }

    /// The APIC base MSR.
    #[must_use]
    pub fn base_msr(&self) -> u64 {
        self.lock().base
    }

    /// Writes the APIC base MSR; `None` (#GP) for reserved bits and transitions that are not allowed (Intel SDM
    /// vol. 3A §11.12.5): straight from off to x2APIC, or from x2APIC to xAPIC.
    #[must_use]
    pub fn set_base_msr(&self, value: u64) -> Option<()> {
        let mut s = self.lock();
        if value & 0x2ff != 0 || value >> 40 != 0 {
            return None;
        }
        let (on, x2) = (value & BASE_EN != 0, value & BASE_X2 != 0);
        if (x2 && (!on || !s.enabled())) || (s.x2() && on && !x2) {
            return None;
        }
        if s.enabled() && !on {
            // Off loses all state but the mode (§11.4.3).
            drop(s);
            self.init_reset();
            s = self.lock();
            s.lvt[lvt::LINT0] |= LVT_MASKED;
        }
        s.base = value;
        if x2 {
            s.icr &= 0xffff_ffff;
        }
        self.publish_base(&s);
        // The PIC may get through now.
        self.wake();
        Some(())
    }

    /// Whether the timer is in TSC-deadline mode, for tests and statistics.
    #[must_use]
    pub fn in_tsc_deadline_mode(&self) -> bool {
        self.lock().timer_mode() == Mode::TscDeadline
    }
}
