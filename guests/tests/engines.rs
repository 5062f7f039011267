//! Every guest under every engine.

use ringer_engine::Probe;
use ringer_guests::{ALL, End, Guest, PASSED, find};
use ringer_vmm::{Control, Machine, OnReset, Outcome, SerialSides, VmSpec, choose, cpu_model};
use std::io::Write;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// No guest takes a second; a loaded host may need many. Only a guest that hangs ever waits for this.
const LIMIT: Duration = Duration::from_secs(120);

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

/// Runs a guest to its end; panics with its console if that is not what it should be.
fn run(guest: &Guest, engine: &str) {
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
    let engine = choose(engine).unwrap().engine;
    let mut machine = Machine::new(spec, engine.as_ref(), SerialSides { outputs }, Instant::now()).unwrap();
    let handle = machine.handle();
    let (ended, end) = channel::<()>();
    let watch = std::thread::spawn(move || {
        let late = end.recv_timeout(LIMIT) == Err(RecvTimeoutError::Timeout);
        if late {
            handle.ask(Control::Stop);
        }
    });
    let outcome = machine.run();
    drop(ended);
    watch.join().unwrap();
    let wanted = if guest.end == End::PowerOff { Outcome::PowerOff } else { Outcome::DebugExit(PASSED) };
    let said = console.0.lock().unwrap();
    let said = String::from_utf8_lossy(&said);
    match outcome {
        Ok(o) if o == wanted => {}
        Ok(o) => panic!("{}: {o:?} instead of {wanted:?}; its console:\n{said}", guest.name),
        Err(e) => panic!("{}: {e}; its console:\n{said}", guest.name),
    }
}

/// Guests that a KVM cannot run that emulates ring 0 (docs/kvm.md has the same table). One that runs both rings on the processor runs all.
const NOT_EMULATED: &[(&str, &str)] = &[
    ("paging-32", "there is no paging outside long mode"),
    ("paging-pae", "there is no paging outside long mode"),
    ("paging-4level", "INT is not emulated: ring 3 cannot call"),
    ("exceptions", "INT3 is not emulated"),
    ("exceptions-32", "BOUND is not emulated"),
    ("iret-64", "INT is not emulated: ring 3 cannot call"),
    ("interrupts", "interrupts are taken one instruction late behind IRET"),
    ("segmentation", "IRET is not emulated in 32-bit protected mode"),
    ("modes", "ARPL is not emulated"),
    ("syscall", "SYSRET with EFER.SCE clear is no #UD"),
    ("smp", "CMPXCHG16B is not emulated"),
    ("task-switch", "far jumps to a TSS are not emulated"),
    ("modes-long", "INT is not emulated: ring 3 cannot call"),
    ("sysenter-32", "IRET is not emulated in 32-bit protected mode"),
    ("debug", "a single step over REP is one over all its turns"),
    ("fpu", "FNSTSW AX is not emulated"),
    ("msr", "CPUID in ring 3 is #UD"),
    ("io", "ring 3 has no port access, whatever IOPL and the I/O map say"),
    ("reset", "INT3 is not emulated"),
];

/// As [`run`], if this host's KVM can; if not, says why.
fn run_on_kvm(guest: &Guest) {
    let engine = choose("kvm").unwrap().engine;
    let cannot = match engine.probe() {
        Probe::Works { .. } => None,
        Probe::Missing(why) => Some(why),
        Probe::Slow(why) => {
            let entry = NOT_EMULATED.iter().find(|(name, _)| *name == guest.name);
            entry.map(|(_, what)| format!("{what} ({why})"))
        }
    };
    let cannot = cannot.or_else(|| {
        let needs = engine.needs().unwrap();
        cpu_model(guest.cpu, &needs).err().map(|e| e.to_string())
    });
    match cannot {
        Some(why) => println!("{}: skipped: {why}", guest.name),
        None => run(guest, "kvm"),
    }
}

macro_rules! tests {
    ($($test:ident $name:literal,)*) => {
        mod interpreter {
            $(#[test]
            fn $test() {
                super::run(super::find($name).unwrap(), "interpreter");
            })*
        }
        mod translator {
            $(#[test]
            fn $test() {
                super::run(super::find($name).unwrap(), "translator");
            })*
        }

        mod kvm {
            $(#[test]
            fn $test() {
                super::run_on_kvm(super::find($name).unwrap());
            })*
        }

        /// No guest is left out.
        #[test]
        fn all_have_a_test() {
            let names: Vec<_> = ALL.iter().map(|g| g.name).collect();
            assert_eq!(names, [$($name),*]);
        }
    };
}

tests! {
    paging_32 "paging-32",
    paging_pae "paging-pae",
    paging_4level "paging-4level",
    paging_5level "paging-5level",
    exceptions "exceptions",
    exceptions_32 "exceptions-32",
    iret_64 "iret-64",
    interrupts "interrupts",
    segmentation "segmentation",
    modes "modes",
    syscall "syscall",
    smp "smp",
    smc "smc",
    task_switch "task-switch",
    modes_long "modes-long",
    sysenter_32 "sysenter-32",
    debug "debug",
    fpu "fpu",
    msr "msr",
    io "io",
    timer "timer",
    latency "latency",
    reset "reset",
    poweroff "poweroff",
    strings "strings",
}
