//! One counter of the 8254. All times are ticks of its input clock since power-up.

use serde::{Deserialize, Serialize};

/// Which bytes of the count a port access moves.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Access {
    Low,
    High,
    /// Low, then high.
    Both,
}

/// A counter.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Counter {
    /// 0 to 5.
    mode: u8,
    bcd: bool,
    access: Access,
    /// The count it starts from, 1 to 65,536 (10,000 in BCD).
    reload: u32,
    /// A count was written since it was programmed.
    loaded: bool,
    /// Modes 1 and 5: the gate has triggered it.
    triggered: bool,
    /// Tick at which the count was `reload`.
    start: u64,
    /// While the gate holds the count: ticks that it has counted.
    held: Option<u64>,
    gate: bool,
    /// Modes 2 and 3: a new count, and the tick at which the running period ends and it takes over.
    next: Option<(u32, u64)>,
    /// First byte of a count that is being written.
    write_low: Option<u8>,
    /// The next byte read is the high one.
    read_high: bool,
    latched_count: Option<u16>,
    latched_status: Option<u8>,
}

impl Counter {
    pub(super) fn new() -> Counter {
        Counter {
            mode: 0,
            bcd: false,
            access: Access::Both,
            reload: 0x1_0000,
            loaded: false,
            triggered: false,
            start: 0,
            held: None,
            gate: true,
            next: None,
            write_low: None,
            read_high: false,
            latched_count: None,
            latched_status: None,
        }
    }

    /// Whether it is one that can be at tick `now`: what `elapsed` and the divisions by the count rest on.
    pub(super) fn is_possible(&self, now: u64) -> bool {
        let count = |n: u32| (1..=0x1_0000).contains(&n);
        self.mode <= 5
            && count(self.reload)
            && self.next.is_none_or(|(n, _)| count(n))
            && self.start <= now
            && self.held.is_none_or(|h| h <= now)
    }

    fn is_periodic(&self) -> bool {
        matches!(self.mode, 2 | 3)
    }

    /// Ticks of a period, as far as it has one; else 0.
    pub(super) fn period(&self) -> u32 {
        if self.is_periodic() { self.reload } else { 0 }
    }

    /// Lets a new count take over if the period it waited for has ended.
    pub(super) fn settle(&mut self, now: u64) {
        if let Some((reload, at)) = self.next
            && at <= now
            && self.held.is_none()
        {
            self.reload = reload;
            self.start = at;
            self.next = None;
        }
    }

    fn elapsed(&self, now: u64) -> u64 {
        self.held.unwrap_or_else(|| now.saturating_sub(self.start))
    }

    /// The counting element.
    fn count(&self, now: u64) -> u16 {
        let modulus = if self.bcd { 10_000u64 } else { 0x1_0000 };
        let n = u64::from(self.reload);
        let e = if self.triggered || !matches!(self.mode, 1 | 5) { self.elapsed(now) } else { 0 };
        let value = match self.mode {
            _ if !self.loaded => 0,
            2 => n - e % n,
            3 => {
                let half = n.div_ceil(2);
                let e = e % n;
                (n & !1).saturating_sub(2 * if e < half { e } else { e - half })
            }
            // On past zero it wraps around.
            _ => (n + modulus - e % modulus) % modulus,
        };
        let value = ((value % modulus) & 0xffff) as u16;
        if self.bcd { to_bcd(value) } else { value }
    }

    /// The OUT pin.
    pub(super) fn out(&mut self, now: u64) -> bool {
        self.settle(now);
        let n = u64::from(self.reload);
        let e = self.elapsed(now);
        match self.mode {
            0 => self.loaded && e >= n,
            1 => !self.triggered || e >= n,
            2 => !self.loaded || !self.gate || e % n != n - 1 || n == 1,
            3 => !self.loaded || !self.gate || e % n < n.div_ceil(2),
            4 => !self.loaded || e != n,
            _ => !self.triggered || e != n,
        }
    }

    /// The first tick after `after` at which OUT rises.
    pub(super) fn next_rise(&self, after: u64) -> Option<u64> {
        if !self.loaded || self.held.is_some() || (matches!(self.mode, 1 | 5) && !self.triggered) {
            return None;
        }
        let n = u64::from(self.reload);
        let once = match self.mode {
            2 | 3 => {
                if let Some((_, at)) = self.next {
                    return Some(at.max(after + 1));
                }
                return Some(self.start + (after.saturating_sub(self.start) / n + 1) * n);
            }
            0 | 1 => self.start + n,
            _ => self.start + n + 1,
        };
        (once > after).then_some(once)
    }

    /// Takes a control word.
    pub(super) fn program(&mut self, v: u8) {
        let (gate, held) = (self.gate, (!self.gate).then_some(0));
        let mode = v >> 1 & 7;
        *self = Counter {
            // The top bit of modes 2 and 3 does not matter.
            mode: if mode >= 6 { mode - 4 } else { mode },
            bcd: v & 1 != 0,
            access: match v >> 4 & 3 {
                1 => Access::Low,
                2 => Access::High,
                _ => Access::Both,
            },
            gate,
            held,
            ..Counter::new()
        };
    }

    /// Latches the count, the status, or both, unless they are latched and not read yet.
    pub(super) fn latch(&mut self, count: bool, status: bool, now: u64) {
        self.settle(now);
        if status && self.latched_status.is_none() {
            let access = match self.access {
                Access::Low => 1,
                Access::High => 2,
                Access::Both => 3,
            };
            // Null count: what was written last is not what is being counted.
            let null = u8::from(!self.loaded || self.next.is_some());
            let out = u8::from(self.out(now));
            self.latched_status =
                Some(out << 7 | null << 6 | access << 4 | self.mode << 1 | u8::from(self.bcd));
        }
        if count && self.latched_count.is_none() {
            self.latched_count = Some(self.count(now));
        }
    }

    /// Reads a byte: latched status first, then the latched count, then the count as it runs.
    pub(super) fn read(&mut self, now: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        self.settle(now);
        let count = self.latched_count.unwrap_or_else(|| self.count(now));
        let [low, high] = count.to_le_bytes();
        let take_high = match self.access {
            Access::Low => false,
            Access::High => true,
            Access::Both => {
                self.read_high = !self.read_high;
                !self.read_high
            }
        };
        if take_high || self.access != Access::Both {
            self.latched_count = None;
        }
        if take_high { high } else { low }
    }

    /// Writes a byte of the count; whether the counter was loaded.
    pub(super) fn write(&mut self, v: u8, now: u64) -> bool {
        let value = match (self.access, self.write_low.take()) {
            (Access::Low, _) => u16::from(v),
            (Access::High, _) => u16::from(v) << 8,
            (Access::Both, Some(low)) => u16::from_le_bytes([low, v]),
            (Access::Both, None) => {
                self.write_low = Some(v);
                if self.mode == 0 {
                    // The first byte stops the count (8254 datasheet, mode 0).
                    self.loaded = false;
                }
                return self.mode == 0;
            }
        };
        self.settle(now);
        let reload = if self.bcd { from_bcd(value) } else { u32::from(value) };
        let reload = match (reload, self.bcd) {
            (0, true) => 10_000,
            (0, false) => 0x1_0000,
            (n, _) => n,
        };
        if self.loaded && self.is_periodic() && self.held.is_none() {
            let n = u64::from(self.reload);
            let end = self.start + (self.elapsed(now) / n + 1) * n;
            self.next = Some((reload, end));
            return true;
        }
        if self.loaded && self.triggered && matches!(self.mode, 1 | 5) {
            // Takes effect at the next trigger: keep counting towards the old end.
            self.next = Some((reload, u64::MAX));
            return false;
        }
        self.reload = reload;
        self.loaded = true;
        self.start = now;
        self.held = (!self.gate && !matches!(self.mode, 1 | 5)).then_some(0);
        true
    }

    /// Drives the GATE pin.
    pub(super) fn set_gate(&mut self, gate: bool, now: u64) {
        self.settle(now);
        let rises = gate && !self.gate;
        let falls = !gate && self.gate;
        self.gate = gate;
        match self.mode {
            1 | 5 if rises && self.loaded => {
                if let Some((reload, _)) = self.next.take() {
                    self.reload = reload;
                }
                self.triggered = true;
                self.held = None;
                self.start = now;
            }
            1 | 5 => {}
            _ if falls => self.held = Some(self.elapsed(now)),
            2 | 3 if rises => {
                if let Some((reload, _)) = self.next.take() {
                    self.reload = reload;
                }
                self.held = None;
                self.start = now;
            }
            _ if rises => {
                self.start = now.saturating_sub(self.held.take().unwrap_or(0));
            }
            _ => {}
        }
    }
}

fn to_bcd(v: u16) -> u16 {
    (v / 1000 % 10) << 12 | (v / 100 % 10) << 8 | (v / 10 % 10) << 4 | (v % 10)
}

fn from_bcd(v: u16) -> u32 {
    [12, 8, 4, 0].iter().fold(0, |n, shift| n * 10 + u32::from(v >> shift & 15).min(9))
}
