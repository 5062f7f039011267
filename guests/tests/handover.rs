//! Tiny guests that are handed from engine to engine while they run, at moments that nobody chose.

use ringer_guests::{ALL, End, Guest, PASSED};
use ringer_vmm::{Control, ControlError, Machine, OnReset, Outcome, SerialSides, VmSpec, choose};
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

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

/// Runs a guest to its end, handing it on among `engines`; how often that was.
fn run(guest: &Guest, engines: &[&'static str], seed: u64) -> u32 {
    let mut kernel = tempfile::NamedTempFile::new().unwrap();
    kernel.write_all(guest.image).unwrap();
    let mut spec = VmSpec::new(kernel.path().to_owned());
    spec.cpus = guest.vcpus;
    spec.memory = 32 << 20;
    spec.cpu = guest.cpu.to_owned();
    if guest.end == End::DebugExitAfterResets {
        spec.on_triple_fault = OnReset::Restart;
    }
    let console = Console::default();
    let outputs = [Some(Box::new(console.clone()) as Box<dyn Write + Send>), None, None, None];
    let first = choose(engines[0]).unwrap().engine;
    let mut machine = Machine::new(spec, first.as_ref(), SerialSides { outputs }, Instant::now()).unwrap();
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
    let wanted = if guest.end == End::PowerOff { Outcome::PowerOff } else { Outcome::DebugExit(PASSED) };
    let said = console.0.lock().unwrap();
    let said = String::from_utf8_lossy(&said);
    match outcome {
        Ok(o) if o == wanted => times,
        Ok(o) => panic!("{} (seed {seed}): {o:?} instead of {wanted:?}; its console:\n{said}", guest.name),
        Err(e) => panic!("{} (seed {seed}): {e}; its console:\n{said}", guest.name),
    }
}

#[test]
fn between_interpreter_and_translator() {
    let mut times = 0;
    for (guest, seed) in ALL.iter().zip(1..) {
        times += run(guest, &["interpreter", "translator"], seed);
    }
    eprintln!("handed over {times} times");
    assert!(times > 50, "only {times} times");
}
