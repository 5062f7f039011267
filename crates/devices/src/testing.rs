//! What the tests of several devices share.

use crate::bus::{MmioDevice, PioDevice};
use crate::line::IrqLine;
use crate::sync::lock;
use crate::timer::Timers;
use ringer_engine::{IrqChip, VmClock};
use std::sync::{Arc, Mutex};

/// A chip that writes down what happens on its inputs.
#[derive(Default)]
pub(crate) struct FakeChip {
    lines: Mutex<[(bool, u32); 32]>,
    msis: Mutex<Vec<(u64, u32)>>,
}

impl FakeChip {
    pub(crate) fn level(&self, gsi: usize) -> bool {
        lock(&self.lines)[gsi].0
    }

    /// Rising edges so far.
    pub(crate) fn edges(&self, gsi: usize) -> u32 {
        lock(&self.lines)[gsi].1
    }

    pub(crate) fn msis(&self) -> Vec<(u64, u32)> {
        lock(&self.msis).clone()
    }
}

impl IrqChip for FakeChip {
    fn set_irq(&self, gsi: u32, level: bool) {
        let mut lines = lock(&self.lines);
        let (old, edges) = &mut lines[gsi as usize];
        *edges += u32::from(level && !*old);
        *old = level;
    }

    fn msi(&self, address: u64, data: u32) {
        lock(&self.msis).push((address, data));
    }
}

/// A chip, a clock at zero that stands, and timers that only fire when told.
pub(crate) struct Bench {
    pub chip: Arc<FakeChip>,
    pub clock: VmClock,
    pub timers: Timers,
}

impl Bench {
    pub(crate) fn new() -> Bench {
        let clock = VmClock::new(2_000_000);
        Bench { chip: Arc::default(), timers: Timers::new(clock.clone()), clock }
    }

    pub(crate) fn line(&self, gsi: u32) -> IrqLine {
        IrqLine::new(self.chip.clone(), gsi)
    }

    /// Machine time becomes `ns`, and what is due fires.
    pub(crate) fn at(&self, ns: u64) {
        self.clock.set_ns(ns);
        self.timers.run_expired();
    }

    /// As a host that keeps up would do it: machine time becomes `ns` with a stop at every deadline on the way.
    pub(crate) fn run_to(&self, ns: u64) {
        while let Some(d) = self.timers.next_deadline().filter(|d| *d <= ns) {
            self.at(d.max(self.clock.now_ns()));
        }
        self.at(ns);
    }
}

/// xorshift64*.
pub(crate) struct Rng(pub u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// A value with few, many, or all bits set, as registers like them.
    pub(crate) fn value(&mut self) -> u64 {
        match self.below(6) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << self.below(64),
            3 => self.below(256),
            4 => self.next() & self.next(),
            _ => self.next(),
        }
    }
}

pub(crate) fn inb(d: &dyn PioDevice, offset: u16) -> u8 {
    let mut v = [0xff];
    d.pio_read(offset, &mut v);
    v[0]
}

pub(crate) fn outb(d: &dyn PioDevice, offset: u16, v: u8) {
    d.pio_write(offset, &[v]);
}

pub(crate) fn load<const N: usize>(d: &dyn MmioDevice, offset: u64) -> [u8; N] {
    let mut v = [0xff; N];
    d.mmio_read(offset, &mut v);
    v
}

/// Accesses all over a device's ports, in all sizes and also past its end, while time jumps forward; `check` looks at
/// the device after each.
pub(crate) fn hammer_pio(bench: &Bench, d: &dyn PioDevice, len: u16, seed: u64, mut check: impl FnMut()) {
    let mut rng = Rng(seed);
    for _ in 0..200_000 {
        let offset = rng.below(u64::from(len) + 2) as u16;
        let n = [1, 1, 1, 2, 3, 4][rng.below(6) as usize];
        let mut v = rng.value().to_le_bytes();
        if rng.below(2) == 0 {
            d.pio_read(offset, &mut v[..n]);
        } else {
            d.pio_write(offset, &v[..n]);
        }
        jump(bench, &mut rng);
        check();
    }
}

/// The same for a device behind addresses.
pub(crate) fn hammer_mmio(bench: &Bench, d: &dyn MmioDevice, len: u64, seed: u64, mut check: impl FnMut()) {
    let mut rng = Rng(seed);
    for _ in 0..200_000 {
        let offset = if rng.below(4) == 0 { rng.below(len) } else { rng.below(len / 8) * 8 };
        let n = [1, 2, 4, 4, 8, 8, 16, 64][rng.below(8) as usize];
        let mut v = [0; 64];
        v.chunks_mut(8).for_each(|c| c.copy_from_slice(&rng.value().to_le_bytes()));
        if rng.below(2) == 0 {
            d.mmio_read(offset, &mut v[..n]);
        } else {
            d.mmio_write(offset, &v[..n]);
        }
        jump(bench, &mut rng);
        check();
    }
}

fn jump(bench: &Bench, rng: &mut Rng) {
    let ns = match rng.below(16) {
        0 => 1 << rng.below(44),
        1..4 => rng.below(1_000_000),
        _ => return,
    };
    bench.at(bench.clock.now_ns() + ns);
}
