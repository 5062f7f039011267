//! [`Lapic`]: one processor's local APIC: its state, what it accepts, and what it hands to its processor.

use super::bits::Vectors;
use super::bus::{Delivery, Message};
use super::pv_eoi::PvEoi;
use crate::sync::lock;
use crate::timer::{TimerHandle, Timers};
use ringer_engine::{Pending, StopToken};
use ringer_memory::GuestMemory;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

/// APIC base MSR: this is the boot processor.
pub(super) const BASE_BSP: u64 = 1 << 8;
/// APIC base MSR: x2APIC mode.
pub(super) const BASE_X2: u64 = 1 << 10;
/// APIC base MSR: the local APIC is on.
pub const BASE_EN: u64 = 1 << 11;
/// Where the local APIC's page is after reset.
pub(super) const BASE_DEFAULT: u64 = 0xfee0_0000;
/// An LVT entry's mask bit.
pub(super) const LVT_MASKED: u32 = 1 << 16;
/// SVR: software enable.
pub(super) const SVR_ENABLE: u32 = 1 << 8;

/// Places of the entries in [`State::lvt`], in register order from 0x32.
pub(super) mod lvt {
    pub const TIMER: usize = 0;
    pub const PERF: usize = 2;
    pub const LINT0: usize = 3;
    pub const LINT1: usize = 4;
    pub const ERROR: usize = 5;
    pub const COUNT: usize = 6;
}

/// Bits of the error status register.
pub(super) mod esr {
    pub const SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
    pub const RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
    pub const ILLEGAL_REGISTER: u32 = 1 << 7;
}

/// What remains to be done after a register access, by whoever knows the other chips; with no lock held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Nothing.
    None,
    /// Send this message to the other local APICs.
    Send(Message),
    /// Broadcast the end of a level-triggered interrupt to the I/O APIC.
    Eoi(u8),
}

/// A local APIC's registers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct State {
    pub base: u64,
    pub tpr: u32,
    pub ldr: u32,
    pub dfr: u32,
    pub svr: u32,
    pub irr: Vectors,
    pub isr: Vectors,
    pub tmr: Vectors,
    /// The error status that reads return, and the errors since it was last written.
    pub esr: u32,
    pub esr_new: u32,
    pub icr: u64,
    pub lvt: [u32; lvt::COUNT],
    pub initial_count: u32,
    pub divide: u32,
    /// Machine time at which the counter stood at `initial_count`; before zero (wrapped) if the divider has changed
    /// since.
    pub count_start_ns: u64,
    /// TSC value at which the timer fires in TSC-deadline mode; 0: not armed.
    pub tsc_deadline: u64,
    /// Machine time at which the timer is due; `u64::MAX`: not armed.
    pub timer_due_ns: u64,
    pub nmi: bool,
    pub init: bool,
    pub sipi: Option<u8>,
    pub unhalt: bool,
    /// An ExtINT message came (the PIC through the I/O APIC).
    pub ext_int: bool,
    pub pv_eoi: PvEoi,
}

impl State {
    /// State after power-up (Intel SDM vol. 3A §11.4.7.1), but with LINT0 of the boot processor open to the PIC, as
    /// firmware leaves it.
    fn power_up(boot: bool) -> State {
        let mut s = State {
            base: BASE_DEFAULT | BASE_EN | if boot { BASE_BSP } else { 0 },
            tpr: 0,
            ldr: 0,
            dfr: u32::MAX,
            svr: 0xff,
            irr: Vectors::default(),
            isr: Vectors::default(),
            tmr: Vectors::default(),
            esr: 0,
            esr_new: 0,
            icr: 0,
            lvt: [LVT_MASKED; lvt::COUNT],
            initial_count: 0,
            divide: 0,
            count_start_ns: 0,
            tsc_deadline: 0,
            timer_due_ns: u64::MAX,
            nmi: false,
            init: false,
            sipi: None,
            unhalt: false,
            ext_int: false,
            pv_eoi: PvEoi::default(),
        };
        if boot {
            s.lvt[lvt::LINT0] = 0x700;
        }
        s
    }

    pub(super) fn enabled(&self) -> bool {
        self.base & BASE_EN != 0
    }

    pub(super) fn x2(&self) -> bool {
        self.base & BASE_X2 != 0
    }

    pub(super) fn software_enabled(&self) -> bool {
        self.enabled() && self.svr & SVR_ENABLE != 0
    }

    /// Processor priority (Intel SDM vol. 3A §11.8.3.1).
    #[inline]
    pub(super) fn ppr(&self) -> u32 {
        let isrv = u32::from(self.isr.highest().unwrap_or(0));
        if self.tpr & 0xf0 >= isrv & 0xf0 { self.tpr } else { isrv & 0xf0 }
    }

    /// The vector that can be delivered now.
    #[inline]
    pub(super) fn deliverable(&self) -> Option<u8> {
        let v = self.irr.highest()?;
        (self.enabled() && u32::from(v) & 0xf0 > self.ppr() & 0xf0).then_some(v)
    }

    /// Whether the PIC's INTR line gets through: LINT0 in ExtINT mode, or the local APIC off, when LINT0 is the
    /// processor's INTR pin. (Software disable masks the LVT entries when it happens.)
    #[inline]
    pub(super) fn takes_pic(&self) -> bool {
        !self.enabled() || self.lvt[lvt::LINT0] & (LVT_MASKED | 0x700) == 0x700
    }
}

/// One processor's local APIC. Other processors and devices reach it through [`accept`](Lapic::accept); everything
/// else is called on its own processor's thread.
pub struct Lapic {
    pub(super) index: usize,
    pub(super) state: Mutex<State>,
    stop: StopToken,
    pub(super) memory: GuestMemory,
    pub(super) timer: TimerHandle,
    /// A copy of the base MSR that can be read without the lock.
    base: AtomicU64,
}

impl Lapic {
    /// The local APIC of processor `index` (its APIC id; 0 is the boot processor), whose attention `stop` gets.
    #[must_use]
    pub fn new(index: usize, stop: StopToken, memory: GuestMemory, timers: &Timers) -> Arc<Lapic> {
        Arc::new_cyclic(|weak: &Weak<Lapic>| {
            let state = State::power_up(index == 0);
            let base = AtomicU64::new(state.base);
            Lapic { index, state: Mutex::new(state), stop, memory, timer: timers.add(weak.clone()), base }
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    pub(super) fn id(&self) -> u32 {
        u32::try_from(self.index).unwrap_or(u32::MAX)
    }

    /// Power-up: every register to its first value, nothing pending.
    pub fn reset(&self) {
        let mut s = self.lock();
        self.timer.disarm();
        *s = State::power_up(self.index == 0);
        self.base.store(s.base, Ordering::SeqCst);
    }

    /// INIT: as after power-up, but for the base MSR, which keeps its mode, and what came since for the processor
    /// (Intel SDM vol. 3A §11.4.7.3).
    pub fn init_reset(&self) {
        let mut s = self.lock();
        self.timer.disarm();
        let old = s.clone();
        *s = State::power_up(self.index == 0);
        s.base = old.base;
        (s.nmi, s.init, s.sipi) = (old.nmi, old.init, old.sipi);
    }

    /// The page of its registers while it is in xAPIC mode.
    #[must_use]
    #[inline]
    pub fn page(&self) -> Option<u64> {
        let base = self.base.load(Ordering::Relaxed);
        (base & (BASE_EN | BASE_X2) == BASE_EN).then_some(base & !0xfff)
    }

    pub(super) fn publish_base(&self, s: &State) {
        self.base.store(s.base, Ordering::SeqCst);
    }

    /// Gets the processor's attention.
    pub fn wake(&self) {
        self.stop.raise(StopToken::ATTENTION);
    }

    /// Gets its attention if there is something to take.
    #[inline]
    pub(super) fn wake_if_deliverable(&self, s: &State) {
        if s.deliverable().is_some() {
            self.wake();
        }
    }

    /// A message for this local APIC. Returns whether it took it.
    pub fn accept(&self, m: &Message) -> bool {
        self.accept_locked(&mut self.lock(), m.delivery, m.vector, m.level)
    }

    pub(super) fn accept_locked(&self, s: &mut State, delivery: Delivery, vector: u8, level: bool) -> bool {
        if !s.enabled() {
            return false;
        }
        match delivery {
            Delivery::Fixed | Delivery::LowestPriority => return self.request(s, vector, level),
            Delivery::Smi => return true,
            Delivery::Nmi => s.nmi = true,
            Delivery::Init => {
                s.init = true;
                s.nmi = false;
                s.sipi = None;
            }
            Delivery::Startup => s.sipi = Some(vector),
            Delivery::ExtInt => s.ext_int = true,
        }
        self.wake();
        true
    }

    /// A fixed interrupt comes in.
    #[inline]
    fn request(&self, s: &mut State, vector: u8, level: bool) -> bool {
        if !s.software_enabled() {
            return false;
        }
        if vector < 16 {
            self.error(s, esr::RECEIVE_ILLEGAL_VECTOR);
            return true;
        }
        s.irr.set(vector, true);
        s.tmr.set(vector, level);
        // While the guest may have ended its interrupt in memory only, nobody but its processor can tell whether
        // this one can be delivered.
        if s.pv_eoi.armed || s.deliverable() == Some(vector) {
            self.wake();
        }
        true
    }

    /// Records errors, and raises the error interrupt.
    pub(super) fn error(&self, s: &mut State, bits: u32) {
        s.esr_new |= bits;
        let entry = s.lvt[lvt::ERROR];
        // The error vector itself may be illegal; that is recorded, but not reported by yet another interrupt.
        match (entry & 0xff) as u8 {
            _ if entry & LVT_MASKED != 0 => {}
            0..16 => s.esr_new |= esr::RECEIVE_ILLEGAL_VECTOR,
            v => {
                self.request(s, v, false);
            }
        }
    }

    /// A local interrupt source fires: delivers what its LVT entry says.
    pub(super) fn local(&self, s: &mut State, entry: usize) {
        let e = s.lvt[entry];
        if e & LVT_MASKED != 0 || !s.enabled() {
            return;
        }
        let delivery = if entry == lvt::TIMER || entry == lvt::ERROR { 0 } else { e >> 8 };
        if let Some(d) = Delivery::from_bits(delivery) {
            self.accept_locked(s, d, (e & 0xff) as u8, false);
        }
        if entry == lvt::PERF {
            s.lvt[entry] |= LVT_MASKED;
        }
    }

    /// A pulse on LINT1, which PC boards wire to NMI.
    pub fn lint1(&self) {
        self.local(&mut self.lock(), lvt::LINT1);
    }

    /// Priority for lowest-priority arbitration; `None` if it takes no interrupts.
    pub(super) fn arbitration(&self) -> Option<u32> {
        let s = self.lock();
        s.software_enabled().then(|| s.ppr())
    }

    /// Whether a logical destination addresses it (Intel SDM vol. 3A §11.6.2.2, §11.12.10.2).
    pub(super) fn matches_logical(&self, dest: u32) -> bool {
        let s = self.lock();
        if s.x2() {
            let ldr = x2_ldr(self.id());
            return ldr >> 16 == dest >> 16 && ldr & dest & 0xffff != 0;
        }
        let (mine, dest) = (s.ldr >> 24, if dest > 0xff { 0 } else { dest });
        if s.dfr >> 28 == 0xf {
            return mine & dest != 0;
        }
        (dest >> 4 == 0xf || dest >> 4 == mine >> 4) && dest & mine & 0xf != 0
    }

    /// Asks the processor to leave HLT.
    pub fn unhalt(&self) {
        self.lock().unhalt = true;
        self.wake();
    }

    /// What waits for the processor; takes NMI, INIT, SIPI and the request to leave
    /// HLT. `pic` is the PIC's INTR line.
    #[must_use]
    pub fn pending(&self, pic: bool) -> Pending {
        let mut s = self.lock();
        self.sync_pv_eoi(&mut s);
        Pending {
            intr: s.deliverable().is_some() || (pic && (s.ext_int || s.takes_pic())),
            nmi: std::mem::take(&mut s.nmi),
            init: std::mem::take(&mut s.init),
            sipi: s.sipi.take(),
            unhalt: std::mem::take(&mut s.unhalt),
        }
    }

    /// Whether the PIC's INTR line, which is up, gets through to the processor. If it does and the local APIC has an
    /// interrupt of its own besides, gets the processor's attention for that.
    #[must_use]
    pub fn take_pic(&self) -> bool {
        let mut s = self.lock();
        let takes = std::mem::take(&mut s.ext_int) || s.takes_pic();
        if takes {
            self.wake_if_deliverable(&s);
        }
        takes
    }

    /// Acknowledges the highest-priority interrupt; those that are left have to wait for its end.
    #[must_use]
    pub fn acknowledge(&self) -> Option<u8> {
        let mut s = self.lock();
        self.sync_pv_eoi(&mut s);
        let v = s.deliverable()?;
        s.irr.set(v, false);
        s.isr.set(v, true);
        self.arm_pv_eoi(&mut s, v);
        Some(v)
    }

    /// CR8.
    #[must_use]
    pub fn cr8(&self) -> u64 {
        u64::from(self.lock().tpr >> 4)
    }

    /// Sets CR8 (0 to 15).
    pub fn set_cr8(&self, value: u64) {
        let mut s = self.lock();
        self.sync_pv_eoi(&mut s);
        s.tpr = ((value & 15) as u32) << 4;
        self.wake_if_deliverable(&s);
    }

    /// End of interrupt.
    #[must_use]
    pub fn eoi(&self) -> Effect {
        let mut s = self.lock();
        self.sync_pv_eoi(&mut s);
        self.disarm_pv_eoi(&mut s);
        match self.end_highest(&mut s) {
            Some(v) if s.tmr.has(v) => Effect::Eoi(v),
            _ => Effect::None,
        }
    }

    /// Takes the highest vector out of service.
    pub(super) fn end_highest(&self, s: &mut State) -> Option<u8> {
        let v = s.isr.highest()?;
        s.isr.set(v, false);
        self.wake_if_deliverable(s);
        Some(v)
    }
}

/// The logical id of an x2APIC: cluster in the upper half, one bit in the lower (Intel SDM vol. 3A §11.12.10.2).
pub(super) fn x2_ldr(id: u32) -> u32 {
    (id >> 4) << 16 | 1 << (id & 15)
}
