//! Machines under an engine whose processors do what a test says.

use super::*;
use ringer_engine::{CpuIo, EngineError, Probe, StopToken, Vcpu, Vm};
use std::sync::atomic::{AtomicU32, Ordering};

/// What a processor does at each start: called with its index, how often any has been started, its view of the machine.
type Script = Arc<dyn Fn(u32, u32, &dyn CpuIo) -> Option<Exit> + Send + Sync>;

struct Scripted(Script);

impl Engine for Scripted {
    fn name(&self) -> &'static str {
        "scripted"
    }
    fn probe(&self) -> Probe {
        Probe::Works { rate: 1.0 }
    }
    fn create_vm(&self, _: VmParams) -> Result<Box<dyn Vm>, EngineError> {
        Ok(Box::new(ScriptedVm(self.0.clone(), Arc::default())))
    }
}

struct ScriptedVm(Script, Arc<AtomicU32>);

impl Vm for ScriptedVm {
    fn create_vcpu(
        &self,
        index: u32,
        io: Arc<dyn CpuIo>,
        stop: StopToken,
    ) -> Result<Box<dyn Vcpu>, EngineError> {
        let state = VcpuState::reset(0, index == 0);
        Ok(Box::new(ScriptedVcpu { script: self.0.clone(), starts: self.1.clone(), index, io, stop, state }))
    }
}

struct ScriptedVcpu {
    script: Script,
    starts: Arc<AtomicU32>,
    index: u32,
    io: Arc<dyn CpuIo>,
    stop: StopToken,
    state: VcpuState,
}

impl Vcpu for ScriptedVcpu {
    fn run(&mut self) -> Exit {
        let start = self.starts.fetch_add(1, Ordering::SeqCst);
        if let Some(exit) = (self.script)(self.index, start, self.io.as_ref()) {
            return exit;
        }
        while self.stop.load() & StopToken::STOP == 0 {
            self.stop.take(StopToken::ATTENTION);
            self.stop.wait(None);
        }
        Exit::Stopped
    }
    fn state(&self) -> VcpuState {
        self.state.clone()
    }
    fn set_state(&mut self, state: &VcpuState) -> Result<(), EngineError> {
        self.state = state.clone();
        Ok(())
    }
    fn stats(&self) -> Stats {
        Stats { instructions: 7, ..Stats::default() }
    }
}

fn machine(
    change: impl FnOnce(&mut VmSpec),
    script: impl Fn(u32, u32, &dyn CpuIo) -> Option<Exit> + Send + Sync + 'static,
) -> Machine {
    let mut sector = vec![0xf4; 512];
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), sector).unwrap();
    let mut spec = VmSpec { memory: 4 << 20, ..VmSpec::new(file.path().to_owned()) };
    spec.cpu = "x86-64-v2".to_owned();
    change(&mut spec);
    Machine::new(spec, &Scripted(Arc::new(script)), SerialSides::default(), Instant::now()).unwrap()
}

#[test]
fn debug_exit_gives_its_status() {
    let mut m = machine(
        |_| {},
        |_, _, io| {
            io.pio_write(0xf4, &[21]);
            None
        },
    );
    assert_eq!(m.run().unwrap(), Outcome::DebugExit(43));
    assert_eq!(m.stats()[0].instructions, 7);
}

#[test]
fn all_processors_start_and_stop() {
    let mut m = machine(
        |s| s.cpus = 3,
        |index, _, io| {
            if index == 2 {
                io.pio_write(0xf4, &[0]);
            }
            None
        },
    );
    assert_eq!(m.run().unwrap(), Outcome::DebugExit(1));
}

#[test]
fn a_reset_starts_again() {
    let again = |_: u32, start: u32, io: &dyn CpuIo| {
        let mut byte = [0];
        // What the guest left in a device is gone after a reset.
        io.pio_read(0x3fb, &mut byte);
        if start < 2 {
            io.pio_write(0x3fb, &[0x1b]);
            io.pio_write(0xcf9, &[6]);
        } else {
            io.pio_write(0xf4, &byte);
        }
        None
    };
    assert_eq!(machine(|_| {}, again).run().unwrap(), Outcome::DebugExit(0xff));
    assert_eq!(machine(|s| s.on_reset = OnReset::Exit, again).run().unwrap(), Outcome::Reset);
}

#[test]
fn a_triple_fault_ends_or_resets() {
    let faults = |_: u32, start: u32, io: &dyn CpuIo| {
        if start == 0 {
            return Some(Exit::TripleFault);
        }
        io.pio_write(0xf4, &[0]);
        None
    };
    assert_eq!(machine(|_| {}, faults).run().unwrap(), Outcome::TripleFault);
    let resets = machine(|s| s.on_triple_fault = OnReset::Restart, faults).run();
    assert_eq!(resets.unwrap(), Outcome::DebugExit(1));
}

#[test]
fn a_panic_on_a_processors_thread_ends_the_machine() {
    let mut m = machine(|s| s.cpus = 2, |index, _, _| if index == 1 { panic!("on purpose") } else { None });
    assert!(matches!(m.run(), Err(VmmError::Panicked(1))));
}

#[test]
fn the_owner_pauses_resumes_resets_and_stops() {
    let starts = Arc::new(AtomicU32::new(0));
    let seen = Arc::clone(&starts);
    let mut m = machine(
        |_| {},
        move |_, start, _| {
            seen.store(start + 1, Ordering::SeqCst);
            None
        },
    );
    for c in [Control::Pause, Control::Pause, Control::Resume, Control::Resume, Control::Reset, Control::Stop]
    {
        m.handle().ask(c);
    }
    assert_eq!(m.run().unwrap(), Outcome::Stopped);
    assert_eq!(starts.load(Ordering::SeqCst), 3);
}
