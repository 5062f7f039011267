//! Machines under an engine whose processors do what a test says.

use super::*;
use ringer_arch::cpu::Feature;
use ringer_engine::{CpuIo, EngineError, Needs, Probe, StopToken, Vcpu, Vm};
use std::sync::atomic::{AtomicU32, Ordering};

/// What a processor does at each start: called with its index, how often any has been started, its view of the machine.
type Script = Arc<dyn Fn(u32, u32, &dyn CpuIo) -> Option<Exit> + Send + Sync>;

struct Scripted(Script, &'static str);

impl Engine for Scripted {
    fn name(&self) -> &'static str {
        self.1
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
    Machine::new(spec, &Scripted(Arc::new(script), "scripted"), SerialSides::default(), Instant::now())
        .unwrap()
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

/// An engine that cannot run the machine.
struct Unable;

impl Engine for Unable {
    fn name(&self) -> &'static str {
        "unable"
    }
    fn probe(&self) -> Probe {
        Probe::Missing("it is not there".into())
    }
    fn create_vm(&self, _: VmParams) -> Result<Box<dyn Vm>, EngineError> {
        Err(EngineError::Unavailable { engine: "unable", why: "it is not there".into() })
    }
}

/// An engine for machines of its own.
struct Needy(Needs);

impl Engine for Needy {
    fn name(&self) -> &'static str {
        "needy"
    }
    fn probe(&self) -> Probe {
        Probe::Works { rate: 1.0 }
    }
    fn needs(&self) -> Result<Needs, EngineError> {
        Ok(self.0)
    }
    fn create_vm(&self, _: VmParams) -> Result<Box<dyn Vm>, EngineError> {
        Ok(Box::new(ScriptedVm(Arc::new(nothing), Arc::default())))
    }
}

/// An engine whose processors take no state but their own.
struct Stubborn;

impl Engine for Stubborn {
    fn name(&self) -> &'static str {
        "stubborn"
    }
    fn probe(&self) -> Probe {
        Probe::Works { rate: 1.0 }
    }
    fn create_vm(&self, _: VmParams) -> Result<Box<dyn Vm>, EngineError> {
        Ok(Box::new(StubbornVm))
    }
}

struct StubbornVm;

impl Vm for StubbornVm {
    fn create_vcpu(&self, _: u32, _: Arc<dyn CpuIo>, _: StopToken) -> Result<Box<dyn Vcpu>, EngineError> {
        Err(EngineError::BadState("no processor is like that"))
    }
}

fn nothing(_: u32, _: u32, _: &dyn CpuIo) -> Option<Exit> {
    None
}

#[test]
fn another_engine_goes_on_with_the_state() {
    let mut m = machine(|s| s.cpus = 2, nothing);
    let handle = m.handle();
    let owner = std::thread::spawn(move || {
        let before = handle.status().unwrap();
        assert_eq!(
            (before.engine, before.vcpus, before.instructions, before.paused),
            ("scripted", 2, Some(14), false)
        );
        assert_eq!(before.memory, 4 << 20);
        assert!(before.resident > 0 && before.resident <= 4 << 20);
        // Two processors of each engine, 7 instructions each.
        let after = handle.change_engine(Box::new(Scripted(Arc::new(nothing), "other"))).unwrap();
        assert_eq!((after.engine, after.instructions), ("other", Some(28)));
        assert!(after.machine_ns > before.machine_ns);
        let paused = handle.control(Control::Pause).unwrap();
        assert!(paused.paused);
        let script: Script = Arc::new(|index, _, io: &dyn CpuIo| {
            if index == 1 {
                io.pio_write(0xf4, &[3]);
            }
            None
        });
        let last = handle.change_engine(Box::new(Scripted(script, "last"))).unwrap();
        assert!(last.paused && last.machine_ns == paused.machine_ns);
        handle.control(Control::Resume).unwrap();
        handle
    });
    assert_eq!(m.run().unwrap(), Outcome::DebugExit(7));
    assert_eq!(m.engine(), "last");
    assert_eq!(m.stats().iter().map(|s| s.instructions).collect::<Vec<_>>(), [21, 21]);
    assert!(matches!(owner.join().unwrap().status(), Err(ControlError::Ended)));
}

#[test]
fn a_refused_engine_leaves_the_machine_as_it_was() {
    let mut m = machine(|_| {}, nothing);
    let handle = m.handle();
    let owner = std::thread::spawn(move || {
        let e = handle.change_engine(Box::new(Unable)).unwrap_err().to_string();
        assert_eq!(e, "the machine stays on engine scripted: engine unable cannot run here: it is not there");
        let e = handle.change_engine(Box::new(Stubborn)).unwrap_err().to_string();
        assert_eq!(
            e,
            "the machine stays on engine scripted: not a processor state: no processor is like that"
        );
        let refused = |needs: Needs| {
            let e = handle.change_engine(Box::new(Needy(needs))).unwrap_err().to_string();
            e.strip_prefix("the machine stays on engine scripted: engine needy ").unwrap().to_owned()
        };
        let mut features = ringer_engine_soft::offered();
        features.remove(Feature::POPCNT);
        features.remove(Feature::SSSE3);
        assert_eq!(
            refused(Needs { features: Some(features), ..Needs::default() }),
            "lacks ssse3, popcnt, which this machine's processor model x86-64-v2 has"
        );
        let tsc = refused(Needs { tsc_khz: Some(2_500_000), ..Needs::default() });
        assert!(tsc.contains("a TSC of 2500000 kHz") && tsc.contains("this machine's has 1000000"), "{tsc}");
        assert!(refused(Needs { no_hypercalls: true, ..Needs::default() }).contains("hypercalls"));
        assert_eq!(handle.status().unwrap().engine, "scripted");
        let fitting = Needs { tsc_khz: Some(1_000_000), ..Needs::default() };
        assert_eq!(handle.change_engine(Box::new(Needy(fitting))).unwrap().engine, "needy");
        handle.control(Control::Stop).unwrap();
    });
    assert_eq!(m.run().unwrap(), Outcome::Stopped);
    owner.join().unwrap();
}

/// A processor that ends by itself while its machine is being paused, asked or handed over has still ended.
#[test]
fn no_end_is_lost() {
    for _ in 0..200 {
        let mut m = machine(|s| s.cpus = 2, |index, _, _| (index == 1).then_some(Exit::TripleFault));
        let handle = m.handle();
        handle.ask(Control::Pause);
        handle.ask(Control::Resume);
        let owner = std::thread::spawn(move || {
            while handle.change_engine(Box::new(Scripted(Arc::new(nothing), "other"))).is_ok() {}
        });
        assert_eq!(m.run().unwrap(), Outcome::TripleFault);
        owner.join().unwrap();
    }
}

#[test]
fn a_reset_by_the_guest_does_not_end_a_pause() {
    let (started, starts) = channel();
    let mut m = machine(
        |_| {},
        move |_, start, io| {
            if start == 0 {
                io.pio_write(0xcf9, &[6]);
            }
            let _test_ended = started.send(start);
            None
        },
    );
    let handle = m.handle();
    let owner = std::thread::spawn(move || {
        handle.control(Control::Pause).unwrap();
        // The reset came before or after.
        let begun = starts.try_iter().count();
        assert!(handle.status().unwrap().paused);
        assert_eq!(starts.try_iter().count(), 0, "{begun} before");
        handle.control(Control::Resume).unwrap();
        handle.control(Control::Stop).unwrap();
    });
    assert_eq!(m.run().unwrap(), Outcome::Stopped);
    owner.join().unwrap();
}
