//! Tiny guests that are handed from engine to engine while they run, at moments that nobody chose.

use ringer_engine::{Engine, Probe};
use ringer_guests::{ALL, End, Guest, PASSED};
use ringer_vmm::{
    Control, ControlError, Machine, OnReset, Outcome, SerialSides, VmSpec, VmmError, choose, engines,
};
use std::io::Write;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tempfile::NamedTempFile;

/// Only a guest that hangs ever waits for this.
const LIMIT: Duration = Duration::from_secs(300);

/// What the guest wrote on COM1.
#[derive(Clone, Default)]
struct Console(Arc<Mutex<Vec<u8>>>);

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// xorshift64.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// A machine for the guest that all of `engines` can run, on the first.
fn machine(guest: &Guest, engines: &[&str], console: &Console) -> Result<(Machine, NamedTempFile), VmmError> {
    let mut kernel = NamedTempFile::new().unwrap();
    kernel.write_all(guest.image).unwrap();
    let mut spec = VmSpec::new(kernel.path().to_owned());
    spec.cpus = guest.vcpus;
    spec.memory = 32 << 20;
    spec.cpu = guest.cpu.to_owned();
    spec.also = engines.iter().map(|e| (*e).to_owned()).collect();
    if guest.end == End::DebugExitAfterResets {
        spec.on_triple_fault = OnReset::Restart;
    }
    let outputs = [Some(Box::new(console.clone()) as Box<dyn Write + Send>), None, None, None];
    let engine = choose(engines[0]).unwrap().engine;
    Ok((Machine::new(spec, engine.as_ref(), SerialSides { outputs }, Instant::now())?, kernel))
}

/// How it ends if all is well.
fn wanted(guest: &Guest) -> Outcome {
    if guest.end == End::PowerOff { Outcome::PowerOff } else { Outcome::DebugExit(PASSED) }
}

/// Panics with the guest's console unless it ended as it should.
fn judge(guest: &Guest, seed: u64, outcome: Result<Outcome, VmmError>, console: &Console) {
    let wanted = wanted(guest);
    let said = console.0.lock().unwrap();
    let said = String::from_utf8_lossy(&said);
    match outcome {
        Ok(o) if o == wanted => {}
        Ok(o) => panic!("{} (seed {seed}): {o:?} instead of {wanted:?}; its console:\n{said}", guest.name),
        Err(e) => panic!("{} (seed {seed}): {e}; its console:\n{said}", guest.name),
    }
}

/// Runs a guest to its end, handing it on among `engines`; how often that was.
fn run(guest: &Guest, engines: &[&'static str], seed: u64) -> u32 {
    let console = Console::default();
    let (mut machine, _kernel) = machine(guest, engines, &console).unwrap();
    let handle = machine.handle();
    let names = engines.to_vec();
    let owner = std::thread::spawn(move || {
        let (mut rng, began) = (Rng(seed), Instant::now());
        for n in 0.. {
            if began.elapsed() > LIMIT {
                handle.ask(Control::Stop);
                return n;
            }
            std::thread::sleep(Duration::from_micros(rng.next() % 3000));
            let name = names[(rng.next() % names.len() as u64) as usize];
            match handle.change_engine(choose(name).unwrap().engine) {
                Ok(s) => assert_eq!(s.engine, name),
                Err(ControlError::Ended) => return n,
                Err(e) => panic!("after {n} times: {e}"),
            }
        }
        unreachable!("it counts for ever");
    });
    let outcome = machine.run();
    let times = owner.join().unwrap();
    judge(guest, seed, outcome, &console);
    times
}

/// Does `f` with all guests, and again until it has come to pass often enough: on a fast host the guests are soon at their end.
fn often(mut seed: u64, f: impl Fn(&Guest, u64) -> u32) -> u32 {
    let mut times = 0;
    for _ in 0..20 {
        for guest in ALL {
            times += f(guest, seed);
            seed += 1;
        }
        if times > 50 {
            return times;
        }
    }
    panic!("only {times} times");
}

#[test]
fn between_interpreter_and_translator() {
    let times = often(1, |guest, seed| run(guest, &["interpreter", "translator"], seed));
    eprintln!("handed over {times} times");
}

/// Each run is stopped after some milliseconds, saved, and gone on with in another machine, under another engine.
fn saved_and_loaded(guest: &Guest, engines: &[&'static str], seed: u64) -> u32 {
    let (mut rng, console) = (Rng(seed), Console::default());
    let mut order = engines.to_vec();
    let (mut now, mut _kernel) = machine(guest, &order, &console).unwrap();
    for n in 0.. {
        let (handle, wait) = (now.handle(), Duration::from_micros(rng.next() % 20_000));
        let owner = std::thread::spawn(move || {
            std::thread::sleep(wait);
            handle.ask(Control::Stop);
        });
        let outcome = now.run();
        owner.join().unwrap();
        if !matches!(outcome, Ok(Outcome::Stopped)) || n == 3000 {
            judge(guest, seed, outcome, &console);
            return n;
        }
        let state = serde_json::to_string(&now.save().unwrap()).unwrap();
        let mut ram = vec![0; 32 << 20];
        now.memory().read(0, &mut ram).unwrap();
        order.rotate_left(1);
        let (mut next, kernel) = machine(guest, &order, &console).unwrap();
        next.memory().write(0, &ram).unwrap();
        next.load(&serde_json::from_str(&state).unwrap()).unwrap();
        assert_eq!(
            serde_json::to_string(&next.save().unwrap()).unwrap(),
            state,
            "{} (seed {seed})",
            guest.name
        );
        (now, _kernel) = (next, kernel);
    }
    unreachable!("it counts for ever");
}

#[test]
fn saved_under_one_engine_and_loaded_under_the_other() {
    let times = often(101, |guest, seed| saved_and_loaded(guest, &["translator", "interpreter"], seed));
    eprintln!("saved and loaded {times} times");
}

/// Whether a guest passes under one engine by itself within a few seconds.
fn passes_alone(guest: &Guest, engine: &'static str) -> bool {
    let console = Console::default();
    let Ok((mut machine, _kernel)) = machine(guest, &[engine], &console) else { return false };
    let handle = machine.handle();
    let (ended, end) = channel::<()>();
    let watch = std::thread::spawn(move || {
        if end.recv_timeout(Duration::from_secs(10)) == Err(RecvTimeoutError::Timeout) {
            handle.ask(Control::Stop);
        }
    });
    let outcome = machine.run();
    drop(ended);
    watch.join().unwrap();
    outcome.is_ok_and(|o| o == wanted(guest))
}

/// With KVM, where it can be used at all: however slow it is, the machine goes on under the others. What this host's KVM cannot run by
/// itself (tests/engines.rs has the reasons) is left out.
#[test]
fn among_all_engines() {
    let usable = |e: &dyn Engine| e.needs().inspect_err(|why| eprintln!("skipped: {why}")).is_ok();
    let all: Vec<_> = engines().iter().filter(|e| usable(e.as_ref())).map(|e| e.name()).collect();
    if !all.contains(&"kvm") {
        return;
    }
    let emulated = matches!(choose("kvm").unwrap().engine.probe(), Probe::Slow(_));
    let (mut times, mut guests) = (0, 0);
    for (guest, seed) in ALL.iter().zip(201..) {
        if guest.name == "timer" && emulated {
            eprintln!(
                "skipped timer: this host's KVM emulates ring 0, and a hand-over moves its TSC (docs/kvm.md)"
            );
            continue;
        }
        if !passes_alone(guest, "kvm") {
            eprintln!("skipped {}: this host's KVM does not run it", guest.name);
            continue;
        }
        times += run(guest, &all, seed);
        guests += 1;
    }
    eprintln!("handed {guests} guests over {times} times");
    assert!(guests > 0 && times > guests, "{guests} guests, {times} times");
}
