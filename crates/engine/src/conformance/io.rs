//! The machine around the processors of a check: ports, a page of registers, and a tiny interrupt fabric.

use super::layout as l;
use crate::{CpuIo, Pending, StopToken, VmClock};
use ringer_arch::cpu::CpuidDynamic;
use ringer_arch::msr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Accesses that are kept.
const KEEP: usize = 4096;

/// The way of an access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Way {
    In,
    Out,
    Load,
    Store,
}

/// An access to a port or to what is not RAM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Access {
    /// The way.
    pub way: Way,
    /// Port or guest-physical address.
    pub at: u64,
    /// What was written, or zeros of the length that was read.
    pub data: Vec<u8>,
}

/// The interrupt side of one processor: requests and interrupts in service by vector, as in a local APIC.
#[derive(Default)]
struct Local {
    irr: [u64; 4],
    isr: [u64; 4],
    cr8: u64,
    nmi: bool,
    init: bool,
    sipi: Option<u8>,
    unhalt: bool,
    /// TSC at which the timer fires; 0: never.
    deadline: u64,
}

fn highest(bits: &[u64; 4]) -> Option<u8> {
    (0..4u8).rev().find(|n| bits[usize::from(*n)] != 0).map(|n| {
        let word = bits[usize::from(n)];
        n * 64 + (63 - word.leading_zeros()) as u8
    })
}

impl Local {
    /// The vector that may interrupt: above the task priority and what is in service, by class (Intel SDM vol. 3A §11.8.3.1).
    fn ready(&self) -> Option<u8> {
        let v = highest(&self.irr)?;
        let class = |v: u8| u64::from(v >> 4);
        let floor = self.cr8.max(highest(&self.isr).map_or(0, class));
        (class(v) > floor).then_some(v)
    }
}

struct One {
    stop: StopToken,
    local: Mutex<Local>,
}

/// What all processors share.
pub struct Machine {
    cpus: Vec<One>,
    log: Mutex<Vec<Access>>,
    ended: AtomicBool,
    stopped: AtomicBool,
    /// The machine's time.
    pub clock: VmClock,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a byte of a port or of MMIO reads as.
#[must_use]
pub fn byte(at: u64) -> u8 {
    (at as u8).wrapping_mul(0x1d) ^ 0xa5 ^ (at >> 8) as u8
}

/// What `len` (up to 8) bytes there read as, as a number.
#[must_use]
pub fn value(at: u64, len: u64) -> u64 {
    (0..len).fold(0, |v, i| v | u64::from(byte(at + i)) << (8 * i))
}

impl Machine {
    /// A machine of so many processors whose clock stands.
    #[must_use]
    pub fn new(cpus: usize, tsc_khz: u64) -> Arc<Machine> {
        let one = || One { stop: StopToken::new(), local: Mutex::default() };
        let cpus = std::iter::repeat_with(one).take(cpus).collect();
        let log = Mutex::default();
        Arc::new(Machine {
            cpus,
            log,
            ended: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            clock: VmClock::new(tsc_khz),
        })
    }

    /// The stop word of processor `cpu`.
    #[must_use]
    pub fn stop(&self, cpu: usize) -> &StopToken {
        &self.cpus[cpu].stop
    }

    /// Raises STOP on all.
    pub fn stop_all(&self) {
        for c in &self.cpus {
            c.stop.raise(StopToken::STOP);
        }
    }

    /// Ends the run that is under way, or the next one, from outside.
    pub fn stop_run(&self) {
        self.end();
        self.stop_all();
    }

    /// The run is at its end.
    pub(super) fn end(&self) {
        self.stopped.store(true, Ordering::SeqCst);
    }

    /// Whether a guest has ended the run; forgets it, and an end from outside.
    pub(super) fn take_ended(&self) -> bool {
        self.stopped.store(false, Ordering::SeqCst);
        self.ended.swap(false, Ordering::SeqCst)
    }

    /// Whether the run is at its end.
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst) || self.stopped.load(Ordering::SeqCst)
    }

    fn with(&self, cpu: usize, f: impl FnOnce(&mut Local)) {
        if let Some(c) = self.cpus.get(cpu) {
            f(&mut lock(&c.local));
            c.stop.raise(StopToken::ATTENTION);
        }
    }

    /// Makes `vector` pending.
    pub fn interrupt(&self, cpu: usize, vector: u8) {
        self.with(cpu, |s| s.irr[usize::from(vector / 64)] |= 1 << (vector % 64));
    }

    /// Makes an NMI pending.
    pub fn nmi(&self, cpu: usize) {
        self.with(cpu, |s| s.nmi = true);
    }

    /// Ends a HLT, as KVM_HC_KICK_CPU does.
    pub fn unhalt(&self, cpu: usize) {
        self.with(cpu, |s| s.unhalt = true);
    }

    /// Ends the interrupt in service.
    pub fn eoi(&self, cpu: usize) {
        self.with(cpu, |s| {
            if let Some(v) = highest(&s.isr) {
                s.isr[usize::from(v / 64)] &= !(1 << (v % 64));
            }
        });
    }

    /// Vectors that wait, in `irr`, and that are in service.
    #[must_use]
    pub fn waiting(&self, cpu: usize) -> (Option<u8>, Option<u8>) {
        let s = lock(&self.cpus[cpu].local);
        (highest(&s.irr), highest(&s.isr))
    }

    /// CR8 as the fabric has it.
    #[must_use]
    pub fn tpr(&self, cpu: usize) -> u64 {
        lock(&self.cpus[cpu].local).cr8
    }

    fn send(&self, command: u32) {
        let (cpu, vector) = ((command >> 16 & 0xff) as usize, command as u8);
        match command >> 8 & 0xff {
            0 => self.interrupt(cpu, vector),
            1 => self.nmi(cpu),
            2 => self.with(cpu, |s| s.init = true),
            _ => self.with(cpu, |s| s.sipi = Some(vector)),
        }
    }

    /// Fires the timers that are due; when the next one is, in nanoseconds of machine time from now.
    pub(super) fn timers(&self) -> Option<u64> {
        let now = self.clock.tsc();
        let mut next = None;
        for (n, c) in self.cpus.iter().enumerate() {
            let due = {
                let mut s = lock(&c.local);
                let due = s.deadline != 0 && s.deadline <= now;
                if due {
                    s.deadline = 0;
                } else if s.deadline != 0 {
                    let ns = self.clock.tsc_to_ns(s.deadline).saturating_sub(self.clock.now_ns());
                    next = Some(next.map_or(ns, |x: u64| x.min(ns)));
                }
                due
            };
            if due {
                self.interrupt(n, l::TIMER_VECTOR);
            }
        }
        next
    }

    fn note(&self, way: Way, at: u64, data: &[u8]) {
        let mut log = lock(&self.log);
        if log.len() < KEEP {
            log.push(Access { way, at, data: data.to_vec() });
        }
    }

    /// The accesses since the last call, but for those of the ports that the harness has for itself.
    #[must_use]
    pub fn take_log(&self) -> Vec<Access> {
        std::mem::take(&mut lock(&self.log))
    }
}

/// The machine as one processor sees it.
pub(super) struct Io {
    pub machine: Arc<Machine>,
    pub cpu: usize,
}

impl Io {
    fn local(&self) -> MutexGuard<'_, Local> {
        lock(&self.machine.cpus[self.cpu].local)
    }
}

impl CpuIo for Io {
    fn pio_read(&self, port: u16, data: &mut [u8]) {
        for (i, b) in (0u64..).zip(data.iter_mut()) {
            *b = byte(u64::from(port) + i);
        }
        self.machine.note(Way::In, port.into(), &vec![0; data.len()]);
    }

    fn pio_write(&self, port: u16, data: &[u8]) {
        let mut word = [0; 4];
        word[..data.len().min(4)].copy_from_slice(&data[..data.len().min(4)]);
        let word = u32::from_le_bytes(word);
        match i32::from(port) {
            l::END => {
                self.machine.ended.store(true, Ordering::SeqCst);
                self.machine.stop_all();
            }
            l::RAISE => self.machine.interrupt(self.cpu, word as u8),
            l::NMI => self.machine.nmi(self.cpu),
            l::EOI => self.machine.eoi(self.cpu),
            l::SEND => self.machine.send(word),
            _ => self.machine.note(Way::Out, port.into(), data),
        }
    }

    fn mmio_read(&self, gpa: u64, data: &mut [u8]) {
        for (i, b) in (0u64..).zip(data.iter_mut()) {
            *b = byte(gpa + i);
        }
        self.machine.note(Way::Load, gpa, &vec![0; data.len()]);
    }

    fn mmio_write(&self, gpa: u64, data: &[u8]) {
        self.machine.note(Way::Store, gpa, data);
    }

    fn pending(&self) -> Pending {
        let mut s = self.local();
        Pending {
            intr: s.ready().is_some(),
            nmi: std::mem::take(&mut s.nmi),
            init: std::mem::take(&mut s.init),
            sipi: s.sipi.take(),
            unhalt: std::mem::take(&mut s.unhalt),
        }
    }

    fn acknowledge(&self) -> Option<u8> {
        let mut s = self.local();
        let v = s.ready()?;
        s.irr[usize::from(v / 64)] &= !(1 << (v % 64));
        s.isr[usize::from(v / 64)] |= 1 << (v % 64);
        Some(v)
    }

    fn cr8(&self) -> u64 {
        self.local().cr8
    }

    fn set_cr8(&self, value: u64) {
        self.machine.with(self.cpu, |s| s.cr8 = value);
    }

    fn msr_read(&self, n: u32) -> Option<u64> {
        match n {
            msr::APIC_BASE => Some(0xfee0_0800 | u64::from(self.cpu == 0) << 8),
            msr::TSC_DEADLINE => Some(self.local().deadline),
            _ => None,
        }
    }

    fn msr_write(&self, n: u32, value: u64) -> Option<()> {
        match n {
            msr::APIC_BASE => Some(()),
            msr::TSC_DEADLINE => {
                self.local().deadline = value;
                Some(())
            }
            _ => None,
        }
    }

    fn cpuid(&self) -> CpuidDynamic {
        CpuidDynamic {
            apic_id: self.cpu as u32,
            vcpus: self.machine.cpus.len() as u32,
            apic_enabled: true,
            tsc_khz: self.machine.clock.tsc_khz() as u32,
            ..CpuidDynamic::default()
        }
    }

    fn hypercall(&self, nr: u64, args: [u64; 4]) -> u64 {
        args.iter().fold(nr, |a, b| a.rotate_left(8) ^ b)
    }

    fn tsc(&self) -> u64 {
        self.machine.clock.tsc()
    }

    fn reset_apic(&self) {
        let mut s = self.local();
        // A start-up that follows closely must not be lost.
        *s = Local { sipi: s.sipi, ..Local::default() };
    }
}
