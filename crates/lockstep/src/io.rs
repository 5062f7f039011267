//! What devices answer the first engine is written on a [`Tape`] ([`Recorder`]), from which the second reads it ([`Player`]).

use ringer_arch::cpu::CpuidDynamic;
use ringer_engine::{CpuIo, Pending, StopToken};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The MSRs of KVM's paravirtual interface (Linux Documentation/virt/kvm/x86/msr.rst), the two old ones first.
const KVM_MSRS: [std::ops::RangeInclusive<u32>; 2] = [0x11..=0x12, 0x4b56_4d00..=0x4b56_4dff];

/// A call of the first engine, and its answer.
#[derive(Clone, PartialEq, Debug)]
struct Call {
    /// What was called with what.
    what: What,
    /// Bytes written or read.
    data: Vec<u8>,
    /// A number that was answered; `None` means what the call says it does.
    answer: Option<u64>,
    cpuid: CpuidDynamic,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum What {
    In(u16, usize),
    Out(u16),
    Load(u64, usize),
    Store(u64),
    Acknowledge,
    Cr8,
    SetCr8(u64),
    ReadMsr(u32),
    WriteMsr(u32, u64),
    Cpuid,
    Hypercall(u64, [u64; 4]),
    Tsc,
    Reset,
}

#[derive(Default)]
struct State {
    calls: VecDeque<Call>,
    pending: VecDeque<Pending>,
    /// Calls are written down: the processor runs, and is not merely asked for its state.
    on: bool,
    /// The first call of the second engine that was not the first's.
    astray: Option<String>,
}

/// What has passed between the first engine and the machine and not yet been seen by the second.
#[derive(Default)]
pub(crate) struct Tape(Mutex<State>);

impl Tape {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether calls count.
    pub(crate) fn turn(&self, on: bool) {
        self.state().on = on;
    }

    /// Ends a step: what went wrong with its calls.
    pub(crate) fn finish(&self) -> Option<String> {
        let mut s = self.state();
        // How often an engine asks what is pending is its own business.
        s.pending.clear();
        if let Some(first) = s.calls.front() {
            let left = format!(
                "{} calls of the first engine that the second did not make: {first:x?}",
                s.calls.len()
            );
            s.astray.get_or_insert(left);
        }
        s.calls.clear();
        s.astray.take()
    }
}

/// The machine as the first engine sees it.
pub(crate) struct Recorder {
    io: Arc<dyn CpuIo>,
    tape: Arc<Tape>,
    /// What the machine raises.
    raised: StopToken,
    /// What ends the engine's step when it does so.
    stop: StopToken,
}

impl Recorder {
    pub(crate) fn new(io: Arc<dyn CpuIo>, tape: Arc<Tape>, raised: StopToken, stop: StopToken) -> Recorder {
        Recorder { io, tape, raised, stop }
    }

    fn put(&self, what: What, data: &[u8], answer: Option<u64>) {
        self.put_cpuid(what, data, answer, CpuidDynamic::default());
    }

    fn put_cpuid(&self, what: What, data: &[u8], answer: Option<u64>, cpuid: CpuidDynamic) {
        // Only in the middle of an instruction: when an interrupt is taken none has begun yet, and the second engine, which
        // is told how many have, would not stop there.
        let by_instruction = !matches!(what, What::Acknowledge | What::Reset);
        if by_instruction && self.raised.load() != 0 {
            self.stop.raise(StopToken::STOP);
        }
        let mut s = self.tape.state();
        if s.on {
            s.calls.push_back(Call { what, data: data.to_vec(), answer, cpuid });
        }
    }
}

impl CpuIo for Recorder {
    fn pio_read(&self, port: u16, data: &mut [u8]) {
        self.io.pio_read(port, data);
        self.put(What::In(port, data.len()), data, None);
    }
    fn pio_write(&self, port: u16, data: &[u8]) {
        self.io.pio_write(port, data);
        self.put(What::Out(port), data, None);
    }
    fn mmio_read(&self, gpa: u64, data: &mut [u8]) {
        self.io.mmio_read(gpa, data);
        self.put(What::Load(gpa, data.len()), data, None);
    }
    fn mmio_write(&self, gpa: u64, data: &[u8]) {
        self.io.mmio_write(gpa, data);
        self.put(What::Store(gpa), data, None);
    }
    fn pending(&self) -> Pending {
        let p = self.io.pending();
        let mut s = self.tape.state();
        if s.on {
            s.pending.push_back(p);
        }
        p
    }
    fn acknowledge(&self) -> Option<u8> {
        let v = self.io.acknowledge();
        self.put(What::Acknowledge, &[], v.map(u64::from));
        v
    }
    fn cr8(&self) -> u64 {
        let v = self.io.cr8();
        self.put(What::Cr8, &[], Some(v));
        v
    }
    fn set_cr8(&self, value: u64) {
        self.io.set_cr8(value);
        self.put(What::SetCr8(value), &[], None);
    }
    fn msr_read(&self, msr: u32) -> Option<u64> {
        let hidden = KVM_MSRS.iter().any(|r| r.contains(&msr));
        let v = if hidden { None } else { self.io.msr_read(msr) };
        self.put(What::ReadMsr(msr), &[], v);
        v
    }
    fn msr_write(&self, msr: u32, value: u64) -> Option<()> {
        let hidden = KVM_MSRS.iter().any(|r| r.contains(&msr));
        let done = if hidden { None } else { self.io.msr_write(msr, value) };
        self.put(What::WriteMsr(msr, value), &[], done.map(|()| 1));
        done
    }
    fn cpuid(&self) -> CpuidDynamic {
        let v = CpuidDynamic { kvm_features: 0, kvm_hints: 0, ..self.io.cpuid() };
        self.put_cpuid(What::Cpuid, &[], None, v);
        v
    }
    fn hypercall(&self, nr: u64, args: [u64; 4]) -> u64 {
        let v = self.io.hypercall(nr, args);
        self.put(What::Hypercall(nr, args), &[], Some(v));
        v
    }
    fn tsc(&self) -> u64 {
        let v = self.io.tsc();
        self.put(What::Tsc, &[], Some(v));
        v
    }
    fn reset_apic(&self) {
        self.io.reset_apic();
        self.put(What::Reset, &[], None);
    }
}

/// The machine as the second engine sees it.
pub(crate) struct Player(Arc<Tape>, Mutex<bool>);

impl Player {
    pub(crate) fn new(tape: Arc<Tape>) -> Player {
        Player(tape, Mutex::new(false))
    }

    /// The answer to the next call, which is to be `what` with `data` (what it writes, if it writes).
    fn next(&self, what: What, written: Option<&[u8]>) -> Option<Call> {
        let mut s = self.0.state();
        if !s.on {
            return None;
        }
        let call = s.calls.pop_front();
        match &call {
            Some(c) if c.what == what && written.is_none_or(|w| w == c.data) => return call,
            _ => {}
        }
        let text = format!("the second engine calls {what:x?} {written:x?}, the first called {call:x?}");
        s.astray.get_or_insert(text);
        None
    }

    fn number(&self, what: What) -> Option<u64> {
        self.next(what, None).and_then(|c| c.answer)
    }

    fn read(&self, what: What, data: &mut [u8]) {
        match self.next(what, None) {
            Some(c) => data.copy_from_slice(&c.data),
            None => data.fill(0xff),
        }
    }
}

impl CpuIo for Player {
    fn pio_read(&self, port: u16, data: &mut [u8]) {
        self.read(What::In(port, data.len()), data);
    }
    fn pio_write(&self, port: u16, data: &[u8]) {
        self.next(What::Out(port), Some(data));
    }
    fn mmio_read(&self, gpa: u64, data: &mut [u8]) {
        self.read(What::Load(gpa, data.len()), data);
    }
    fn mmio_write(&self, gpa: u64, data: &[u8]) {
        self.next(What::Store(gpa), Some(data));
    }
    fn pending(&self) -> Pending {
        let mut s = self.0.state();
        if s.astray.is_some() {
            // The step is to come to its end, not to wait for an interrupt that the first did not take.
            return Pending::default();
        }
        let p = s.pending.pop_front();
        drop(s);
        let mut last = self.1.lock().unwrap_or_else(PoisonError::into_inner);
        match p {
            Some(p) => {
                *last = p.intr;
                p
            }
            // What has an edge has been told.
            None => Pending { intr: *last, ..Pending::default() },
        }
    }
    fn acknowledge(&self) -> Option<u8> {
        self.number(What::Acknowledge).map(|v| v as u8)
    }
    fn cr8(&self) -> u64 {
        self.number(What::Cr8).unwrap_or(0)
    }
    fn set_cr8(&self, value: u64) {
        self.next(What::SetCr8(value), None);
    }
    fn msr_read(&self, msr: u32) -> Option<u64> {
        self.number(What::ReadMsr(msr))
    }
    fn msr_write(&self, msr: u32, value: u64) -> Option<()> {
        self.number(What::WriteMsr(msr, value)).map(|_| ())
    }
    fn cpuid(&self) -> CpuidDynamic {
        self.next(What::Cpuid, None).map(|c| c.cpuid).unwrap_or_default()
    }
    fn hypercall(&self, nr: u64, args: [u64; 4]) -> u64 {
        self.number(What::Hypercall(nr, args)).unwrap_or(0)
    }
    fn tsc(&self) -> u64 {
        self.number(What::Tsc).unwrap_or(0)
    }
    fn reset_apic(&self) {
        self.next(What::Reset, None);
    }
}
