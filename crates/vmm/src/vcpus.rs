//! The processors' threads.

use crate::VmmError;
use crate::machine::Message;
use ringer_arch::VcpuState;
use ringer_engine::{CpuIo, DebugStop, EngineError, Exit, Stats, StopToken, Vcpu, Vm};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;

enum Slot {
    Parked(Box<dyn Vcpu>),
    Running(JoinHandle<(Box<dyn Vcpu>, Exit)>),
    /// It ended by itself while all were being stopped: nobody has dealt with that yet.
    Ended(Box<dyn Vcpu>, Exit),
    /// Its thread panicked.
    Lost,
}

/// All processors of a machine: each parked here, or on a thread of its own, named "vcpu N", while it runs.
pub(crate) struct Vcpus {
    slots: Vec<(StopToken, Slot)>,
    sender: Sender<Message>,
    /// Counts starts, so that the end of an earlier run's thread is not taken for this one's.
    run: u64,
    /// What each did under earlier engines.
    past: Vec<Stats>,
    /// They count all instructions.
    count: bool,
}

impl Vcpus {
    pub(crate) fn new(
        vm: &dyn Vm,
        processors: Vec<(Arc<dyn CpuIo>, StopToken)>,
        sender: Sender<Message>,
        count: bool,
    ) -> Result<Vcpus, VmmError> {
        let mut slots = Vec::new();
        for (index, (io, stop)) in (0..).zip(processors) {
            let mut vcpu = vm.create_vcpu(index, io, stop.clone())?;
            if count {
                vcpu.count_instructions();
            }
            slots.push((stop, Slot::Parked(vcpu)));
        }
        let past = vec![Stats::default(); slots.len()];
        Ok(Vcpus { slots, sender, run: 0, past, count })
    }

    /// Replaces each by one of `vm` in the same state. None may run. If that cannot be, all stay as they are.
    pub(crate) fn hand_over(
        &mut self,
        vm: &dyn Vm,
        processors: Vec<(Arc<dyn CpuIo>, StopToken)>,
    ) -> Result<(), VmmError> {
        let mut next = Vec::new();
        for ((index, (io, stop)), (_, slot)) in (0..).zip(processors).zip(&self.slots) {
            let (Slot::Parked(old) | Slot::Ended(old, _)) = slot else {
                return Err(VmmError::Panicked(index));
            };
            let mut vcpu = vm.create_vcpu(index, io, stop)?;
            vcpu.set_state(&old.state())?;
            if self.count {
                vcpu.count_instructions();
            }
            next.push(vcpu);
        }
        for (((stop, slot), vcpu), past) in self.slots.iter_mut().zip(next).zip(&mut self.past) {
            let (Slot::Parked(old) | Slot::Ended(old, _)) = slot else { continue };
            *past += old.stats();
            *old = vcpu;
            // What the old engine's processors wanted of each other.
            stop.take(StopToken::ENGINE | StopToken::CODE);
        }
        Ok(())
    }

    /// Sets the state of each by its index. All must be parked.
    pub(crate) fn set_states(&mut self, state: impl Fn(u32) -> VcpuState) -> Result<(), VmmError> {
        for (index, (_, slot)) in (0..).zip(&mut self.slots) {
            match slot {
                Slot::Parked(vcpu) | Slot::Ended(vcpu, _) => vcpu.set_state(&state(index))?,
                Slot::Running(_) => unreachable!("processors are stopped before their state is set"),
                Slot::Lost => return Err(VmmError::Panicked(index)),
            }
            // How it ended before does not matter any more.
            *slot = match std::mem::replace(slot, Slot::Lost) {
                Slot::Ended(vcpu, _) => Slot::Parked(vcpu),
                other => other,
            };
        }
        Ok(())
    }

    /// Processor `index`, if it does not run.
    pub(crate) fn parked(&mut self, index: u32) -> Option<&mut dyn Vcpu> {
        match self.slots.get_mut(index as usize) {
            Some((_, Slot::Parked(vcpu) | Slot::Ended(vcpu, _))) => Some(vcpu.as_mut()),
            _ => None,
        }
    }

    /// Does something to each. None may run.
    pub(crate) fn each(
        &mut self,
        mut f: impl FnMut(u32, &mut dyn Vcpu) -> Result<(), EngineError>,
    ) -> Result<(), VmmError> {
        for index in 0..self.slots.len() as u32 {
            f(index, self.parked(index).ok_or(VmmError::Panicked(index))?)?;
        }
        Ok(())
    }

    /// Forgets of those that ended by themselves, while all were being stopped, what the debugger need not know of any more: `keep` says
    /// whether it must.
    pub(crate) fn forget(&mut self, keep: impl Fn(&dyn Vcpu, DebugStop) -> bool) {
        for (_, slot) in &mut self.slots {
            *slot = match std::mem::replace(slot, Slot::Lost) {
                Slot::Ended(vcpu, Exit::Debug(stop)) if !keep(vcpu.as_ref(), stop) => Slot::Parked(vcpu),
                other => other,
            };
        }
    }

    /// Whether any has a thread.
    pub(crate) fn running(&self) -> bool {
        self.slots.iter().any(|(_, s)| matches!(s, Slot::Running(_)))
    }

    /// Gives each that `which` is true of a thread.
    pub(crate) fn start(&mut self, which: impl Fn(u32) -> bool) -> Result<(), VmmError> {
        self.run += 1;
        for (index, (stop, slot)) in (0u32..).zip(&mut self.slots) {
            if !which(index) {
                continue;
            }
            stop.take(StopToken::STOP);
            let done = Done { sender: self.sender.clone(), index, run: self.run };
            let mut vcpu = match std::mem::replace(slot, Slot::Lost) {
                Slot::Parked(vcpu) => vcpu,
                other => {
                    // Of one that has ended already, `done` tells again.
                    *slot = other;
                    continue;
                }
            };
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
        self.take_back(|i| i == index)?;
        let Some((_, slot)) = self.slots.get_mut(index as usize) else { return Ok(None) };
        match std::mem::replace(slot, Slot::Lost) {
            Slot::Ended(vcpu, exit) => {
                *slot = Slot::Parked(vcpu);
                Ok(Some(exit))
            }
            other => {
                *slot = other;
                Ok(None)
            }
        }
    }

    /// Why processor `index`, which is parked, failed.
    pub(crate) fn failure(&self, index: u32) -> String {
        match self.slots.get(index as usize) {
            Some((_, Slot::Parked(vcpu))) => vcpu.failure().unwrap_or("it does not say why").to_owned(),
            _ => String::new(),
        }
    }

    /// Stops all.
    pub(crate) fn stop(&mut self) -> Result<(), VmmError> {
        for (stop, _) in &self.slots {
            stop.raise(StopToken::STOP);
        }
        self.take_back(|_| true)
    }

    fn take_back(&mut self, which: impl Fn(u32) -> bool) -> Result<(), VmmError> {
        let mut lost = None;
        for (index, (_, slot)) in (0..).zip(&mut self.slots) {
            match std::mem::replace(slot, Slot::Lost) {
                Slot::Running(t) if which(index) => match t.join() {
                    Ok((vcpu, Exit::Stopped)) => *slot = Slot::Parked(vcpu),
                    Ok((vcpu, exit)) => *slot = Slot::Ended(vcpu, exit),
                    Err(_) => lost = Some(index),
                },
                other => *slot = other,
            }
        }
        lost.map_or(Ok(()), |i| Err(VmmError::Panicked(i)))
    }

    pub(crate) fn stats(&self) -> Vec<Stats> {
        let one = |((_, slot), past): (&(StopToken, Slot), &Stats)| {
            let mut all = *past;
            if let Slot::Parked(v) | Slot::Ended(v, _) = slot {
                all += v.stats();
            }
            all
        };
        self.slots.iter().zip(&self.past).map(one).collect()
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
