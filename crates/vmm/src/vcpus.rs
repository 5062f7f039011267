//! The processors' threads.

use crate::VmmError;
use crate::machine::Message;
use ringer_arch::VcpuState;
use ringer_engine::{CpuIo, Exit, Stats, StopToken, Vcpu, Vm};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;

enum Slot {
    Parked(Box<dyn Vcpu>),
    Running(JoinHandle<(Box<dyn Vcpu>, Exit)>),
    /// Its thread panicked.
    Lost,
}

/// All processors of a machine: each parked here, or on a thread of its own, named "vcpu N", while it runs.
pub(crate) struct Vcpus {
    slots: Vec<(StopToken, Slot)>,
    sender: Sender<Message>,
    /// Counts starts, so that the end of an earlier run's thread is not taken for this one's.
    run: u64,
}

impl Vcpus {
    pub(crate) fn new(
        vm: &dyn Vm,
        processors: Vec<(Arc<dyn CpuIo>, StopToken)>,
        sender: Sender<Message>,
    ) -> Result<Vcpus, VmmError> {
        let mut slots = Vec::new();
        for (index, (io, stop)) in (0..).zip(processors) {
            let vcpu = vm.create_vcpu(index, io, stop.clone())?;
            slots.push((stop, Slot::Parked(vcpu)));
        }
        Ok(Vcpus { slots, sender, run: 0 })
    }

    /// Sets the state of each by its index. All must be parked.
    pub(crate) fn set_states(&mut self, state: impl Fn(u32) -> VcpuState) -> Result<(), VmmError> {
        for (index, (_, slot)) in (0..).zip(&mut self.slots) {
            match slot {
                Slot::Parked(vcpu) => vcpu.set_state(&state(index))?,
                Slot::Running(_) => unreachable!("processors are stopped before their state is set"),
                Slot::Lost => return Err(VmmError::Panicked(index)),
            }
        }
        Ok(())
    }

    /// Whether any has a thread.
    pub(crate) fn running(&self) -> bool {
        self.slots.iter().any(|(_, s)| matches!(s, Slot::Running(_)))
    }

    /// Gives each a thread.
    pub(crate) fn start(&mut self) -> Result<(), VmmError> {
        self.run += 1;
        for (index, (stop, slot)) in (0u32..).zip(&mut self.slots) {
            stop.take(StopToken::STOP);
            let Slot::Parked(mut vcpu) = std::mem::replace(slot, Slot::Lost) else { continue };
            let done = Done { sender: self.sender.clone(), index, run: self.run };
            let thread = std::thread::Builder::new().name(format!("vcpu {index}")).spawn(move || {
                let _done = done;
                let exit = vcpu.run();
                (vcpu, exit)
            });
            let thread = thread.map_err(|source| VmmError::Host {
                what: format!("a thread for processor {index}"),
                source,
            })?;
            *slot = Slot::Running(thread);
        }
        Ok(())
    }

    /// Takes back processor `index`, whose thread of start `run` is about to end, and tells why it did; `None` if that
    /// was an earlier start's.
    pub(crate) fn reap(&mut self, index: u32, run: u64) -> Result<Option<Exit>, VmmError> {
        if run != self.run {
            return Ok(None);
        }
        Ok(self.take_back(|i| i == index)?.pop())
    }

    /// Stops all.
    pub(crate) fn stop(&mut self) -> Result<(), VmmError> {
        for (stop, _) in &self.slots {
            stop.raise(StopToken::STOP);
        }
        self.take_back(|_| true).map(drop)
    }

    fn take_back(&mut self, which: impl Fn(u32) -> bool) -> Result<Vec<Exit>, VmmError> {
        let mut exits = Vec::new();
        let mut lost = None;
        for (index, (_, slot)) in (0..).zip(&mut self.slots) {
            match std::mem::replace(slot, Slot::Lost) {
                Slot::Running(t) if which(index) => match t.join() {
                    Ok((vcpu, exit)) => {
                        exits.push(exit);
                        *slot = Slot::Parked(vcpu);
                    }
                    Err(_) => lost = Some(index),
                },
                other => *slot = other,
            }
        }
        lost.map_or(Ok(exits), |i| Err(VmmError::Panicked(i)))
    }

    pub(crate) fn stats(&self) -> Vec<Stats> {
        let one = |slot: &Slot| if let Slot::Parked(v) = slot { v.stats() } else { Stats::default() };
        self.slots.iter().map(|(_, s)| one(s)).collect()
    }
}

impl Drop for Vcpus {
    fn drop(&mut self) {
        let _panicked = self.stop();
    }
}

/// Tells the machine that a thread is about to end, also when it ends by a panic.
struct Done {
    sender: Sender<Message>,
    index: u32,
    run: u64,
}

impl Drop for Done {
    fn drop(&mut self) {
        let _ended = self.sender.send(Message::Vcpu { index: self.index, run: self.run });
    }
}
