//! [`Helper`]: a thread that ends what does not end by itself, and interrupts what is to be interrupted.

use crate::io::TestIo;
use ringer_difftest::rng::Rng;
use ringer_engine::StopToken;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::Duration;

/// How often the watchdog looks.
const LOOK: Duration = Duration::from_millis(15);
/// A program that has had a processor for longer than this is stopped.
const LONG: Duration = Duration::from_millis(15);
/// So is one that has had none in so many looks: its processor halts, and nothing is to wake it.
const IDLE: u32 = 40;

/// Who is to be helped, and how.
struct Target {
    help: Help,
    stop: StopToken,
    io: Arc<TestIo>,
}

struct Shared {
    quit: AtomicBool,
    /// Held while something is raised: nothing more is once it is empty.
    target: Mutex<Option<Target>>,
    /// Odd while a program runs.
    runs: AtomicU64,
    running: Mutex<Option<StopToken>>,
}

/// The thread, and a second one, which is the watchdog.
pub struct Helper {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// What the helper is to do during a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Help {
    /// Only to watch.
    Watch,
    /// To raise STOP again and again.
    Halt,
    /// To interrupt.
    Interrupt,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Helper {
    /// Starts the threads. They watch the thread that calls this.
    ///
    /// # Errors
    /// The host's.
    pub fn new() -> std::io::Result<Helper> {
        let shared = Arc::new(Shared {
            quit: AtomicBool::new(false),
            target: Mutex::new(None),
            runs: AtomicU64::new(0),
            running: Mutex::new(None),
        });
        let (a, b) = (shared.clone(), shared.clone());
        let worker = std::fs::read_link("/proc/thread-self")?;
        let times = PathBuf::from("/proc").join(worker).join("schedstat");
        let threads = vec![
            std::thread::Builder::new().name("helper".into()).spawn(move || help(&a))?,
            std::thread::Builder::new().name("watchdog".into()).spawn(move || watch(&b, &times))?,
        ];
        Ok(Helper { shared, threads })
    }

    fn thread(&self) -> &Thread {
        self.threads[0].thread()
    }

    /// Runs `f` with help for the processor of `stop`. When it is over, nothing more is raised.
    pub fn during<T>(&self, help: Help, stop: &StopToken, io: &Arc<TestIo>, f: impl FnOnce() -> T) -> T {
        if help != Help::Watch {
            *lock(&self.shared.target) = Some(Target { help, stop: stop.clone(), io: io.clone() });
            self.thread().unpark();
        }
        *lock(&self.shared.running) = Some(stop.clone());
        self.shared.runs.fetch_add(1, Ordering::SeqCst);
        let out = f();
        self.shared.runs.fetch_add(1, Ordering::SeqCst);
        if help != Help::Watch {
            *lock(&self.shared.target) = None;
        }
        out
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.shared.quit.store(true, Ordering::SeqCst);
        for t in self.threads.drain(..) {
            t.thread().unpark();
            let _panicked = t.join();
        }
    }
}

fn help(s: &Shared) {
    let mut r = Rng::new(1, 1);
    while !s.quit.load(Ordering::SeqCst) {
        let help = lock(&s.target).as_ref().map(|t| t.help);
        match help {
            None | Some(Help::Watch) => std::thread::park(),
            Some(Help::Halt) => std::thread::sleep(Duration::from_micros(20)),
            Some(Help::Interrupt) => {
                for _ in 0..r.below(400) {
                    std::hint::spin_loop();
                }
            }
        }
        if let Some(t) = &*lock(&s.target) {
            match t.help {
                Help::Watch => {}
                Help::Halt => t.stop.raise(StopToken::STOP),
                Help::Interrupt => t.io.interrupt(),
            }
        }
    }
}

fn watch(s: &Shared, times: &Path) {
    // The program that was running when the watchdog first saw it, and what its thread had run for then.
    let (mut last, mut since) = (0, Duration::ZERO);
    // What the thread had run for at the last look, and how many looks that has been so.
    let (mut before, mut idle) = (Duration::ZERO, 0);
    while !s.quit.load(Ordering::SeqCst) {
        std::thread::park_timeout(LOOK);
        let now = s.runs.load(Ordering::SeqCst);
        if now & 1 == 0 {
            continue;
        }
        let had = on_cpu(times);
        idle = if now == last && had == before { idle + 1 } else { 0 };
        before = had;
        if now != last {
            (last, since) = (now, had);
        } else if (had.saturating_sub(since) > LONG || idle > IDLE)
            && let Some(stop) = &*lock(&s.running)
        {
            stop.raise(StopToken::STOP);
        }
    }
}

/// How long a thread has had a processor, from its `schedstat` in /proc (Linux, Documentation/scheduler/sched-stats.rst). Time that
/// passed says little on a host that has other things to do.
fn on_cpu(times: &Path) -> Duration {
    let text = std::fs::read_to_string(times).unwrap_or_default();
    Duration::from_nanos(text.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0))
}
