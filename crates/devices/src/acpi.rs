//! [`AcpiPm`]: ACPI's fixed hardware: PM1a event and control blocks, PM timer, GPE0 (ACPI 6.5 §4.8).

mod saved;
#[cfg(test)]
mod tests;

use crate::bus::{PioDevice, each_byte_read, each_byte_write};
use crate::events::{MachineEvent, MachineEvents};
use crate::line::IrqLine;
use crate::sync::lock;
use crate::timer::{TimerHandle, TimerTarget, Timers, mul_div};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, Weak};

/// PM timer frequency in Hz.
pub const PM_TIMER_HZ: u64 = 3_579_545;
/// The sleep type that is S5 (soft off); the DSDT's `\_S5` says the same.
pub const S5_TYPE: u8 = 5;

const TMR_STS: u16 = 1 << 0;
const PWRBTN: u16 = 1 << 8;
/// Status bits that exist: timer, global, power button, sleep button, RTC, wake.
const STS_BITS: u16 = 0x8721;
/// Enable bits that exist.
const EN_BITS: u16 = 0x0721;
const SCI_EN: u16 = 1;
const SLP_EN: u8 = 1 << 5;

/// Its registers.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    pm1_sts: u16,
    pm1_en: u16,
    /// Without SCI_EN (always 1: there is no SMM to hand ACPI over) and SLP_EN (write-only).
    pm1_cnt: u16,
    gpe_sts: u16,
    gpe_en: u16,
    /// Half-turns of the PM timer (its top bit's changes) that `TMR_STS` has told of.
    half_turns: u64,
}

/// ACPI's fixed registers, and the SCI.
pub struct AcpiPm {
    state: Mutex<State>,
    sci: IrqLine,
    events: Arc<dyn MachineEvents>,
    timer: TimerHandle,
}

fn pm_ticks(ns: u64) -> u64 {
    mul_div(ns, PM_TIMER_HZ, 1_000_000_000)
}

/// One byte of a register with bytes `v`.
fn replace(reg: u16, byte: u16, v: u8) -> u16 {
    let mut b = reg.to_le_bytes();
    b[usize::from(byte & 1)] = v;
    u16::from_le_bytes(b)
}

impl AcpiPm {
    /// Fixed hardware that raises `sci` (level-triggered) and tells `events` when the guest powers off.
    #[must_use]
    pub fn new(sci: IrqLine, events: Arc<dyn MachineEvents>, timers: &Timers) -> Arc<AcpiPm> {
        Arc::new_cyclic(|weak: &Weak<AcpiPm>| AcpiPm {
            state: Mutex::default(),
            sci,
            events,
            timer: timers.add(weak.clone()),
        })
    }

    /// Power-up.
    pub fn reset(&self) {
        let mut s = lock(&self.state);
        *s = State { half_turns: self.half_turns(), ..State::default() };
        self.update(&mut s);
    }

    /// The power button is pressed: the guest gets an SCI and shuts down as it sees fit.
    pub fn power_button(&self) {
        let mut s = lock(&self.state);
        s.pm1_sts |= PWRBTN;
        self.update(&mut s);
    }

    /// Sets general-purpose event bits (0 to 15).
    pub fn raise_gpe(&self, bits: u16) {
        let mut s = lock(&self.state);
        s.gpe_sts |= bits;
        self.update(&mut s);
    }

    fn half_turns(&self) -> u64 {
        pm_ticks(self.timer.now_ns()) >> 31
    }

    /// Notices the PM timer's half-turns, plans the next, and drives the SCI.
    fn update(&self, s: &mut State) {
        let turns = self.half_turns();
        if turns != s.half_turns {
            s.half_turns = turns;
            s.pm1_sts |= TMR_STS;
        }
        if s.pm1_en & TMR_STS != 0 {
            let next = u128::from(turns + 1) << 31;
            let ns = (next * 1_000_000_000).div_ceil(u128::from(PM_TIMER_HZ));
            self.timer.arm(u64::try_from(ns).unwrap_or(u64::MAX));
        } else {
            self.timer.disarm();
        }
        self.sci.set(s.pm1_sts & s.pm1_en & EN_BITS != 0 || s.gpe_sts & s.gpe_en != 0);
    }

    fn write_pm1(&self, s: &mut State, offset: u16, v: u8) {
        match offset {
            0 | 1 => s.pm1_sts &= !(u16::from(v) << (8 * offset)),
            2 | 3 => s.pm1_en = replace(s.pm1_en, offset, v) & EN_BITS,
            4 => s.pm1_cnt = replace(s.pm1_cnt, 0, v) & !SCI_EN,
            5 => {
                s.pm1_cnt = replace(s.pm1_cnt, 1, v & !SLP_EN);
                if v & SLP_EN != 0 && v >> 2 & 7 == S5_TYPE {
                    self.events.event(MachineEvent::PowerOff);
                }
            }
            // The PM timer is read-only.
            _ => {}
        }
    }
}

impl TimerTarget for AcpiPm {
    fn on_timer(&self, _now_ns: u64) {
        self.update(&mut lock(&self.state));
    }
}

/// PM1a event block (4 bytes), control block (2), two bytes of nothing, PM timer (4).
impl PioDevice for AcpiPm {
    fn pio_read(&self, offset: u16, data: &mut [u8]) {
        let ticks = (pm_ticks(self.timer.now_ns()) & 0xffff_ffff) as u32;
        let mut s = lock(&self.state);
        self.update(&mut s);
        let mut block = [0; 12];
        block[0..2].copy_from_slice(&(s.pm1_sts & STS_BITS).to_le_bytes());
        block[2..4].copy_from_slice(&s.pm1_en.to_le_bytes());
        block[4..6].copy_from_slice(&(s.pm1_cnt | SCI_EN).to_le_bytes());
        block[8..12].copy_from_slice(&ticks.to_le_bytes());
        each_byte_read(offset, data, |o| block.get(usize::from(o)).copied().unwrap_or(0xff));
    }

    fn pio_write(&self, offset: u16, data: &[u8]) {
        let mut s = lock(&self.state);
        // What is written to clear must not come back as news.
        self.update(&mut s);
        each_byte_write(offset, data, |o, v| self.write_pm1(&mut s, o, v));
        self.update(&mut s);
    }
}

/// GPE0: two bytes of status, two of enable.
pub struct GpePorts(pub Arc<AcpiPm>);

impl PioDevice for GpePorts {
    fn pio_read(&self, offset: u16, data: &mut [u8]) {
        let s = lock(&self.0.state);
        let [a, b] = s.gpe_sts.to_le_bytes();
        let [c, d] = s.gpe_en.to_le_bytes();
        each_byte_read(offset, data, |o| [a, b, c, d][usize::from(o & 3)]);
    }

    fn pio_write(&self, offset: u16, data: &[u8]) {
        let mut s = lock(&self.0.state);
        each_byte_write(offset, data, |o, v| match o & 3 {
            n @ (0 | 1) => s.gpe_sts &= !(u16::from(v) << (8 * n)),
            n => s.gpe_en = replace(s.gpe_en, n, v),
        });
        self.0.update(&mut s);
    }
}
