//! [`Helper`]: a thread that ends what does not end by itself, and interrupts what is to be interrupted.

use crate::io::TestIo;
use ringer_difftest::rng::Rng;
use ringer_engine::StopToken;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::Duration;

const IDLE: u32 = 0;
const HALT: u32 = 1;
const INTERRUPT: u32 = 2;
const QUIT: u32 = 3;

/// How often the watchdog looks: a program that two looks find running is stopped.
const LOOK: Duration = Duration::from_millis(15);

struct Shared {
    mode: AtomicU32,
    /// What the thread does now.
    now: AtomicU32,
    target: Mutex<Option<(StopToken, Arc<TestIo>)>>,
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

impl Helper {
    /// Starts the threads.
    ///
    /// # Errors
    /// The host's.
    pub fn new() -> std::io::Result<Helper> {
        let shared = Arc::new(Shared {
            mode: AtomicU32::new(IDLE),
            now: AtomicU32::new(IDLE),
            target: Mutex::new(None),
            runs: AtomicU64::new(0),
            running: Mutex::new(None),
        });
        let (a, b) = (shared.clone(), shared.clone());
        let threads = vec![
            std::thread::Builder::new().name("helper".into()).spawn(move || help(&a))?,
            std::thread::Builder::new().name("watchdog".into()).spawn(move || watch(&b))?,
        ];
        Ok(Helper { shared, threads })
    }

    fn thread(&self) -> &Thread {
        self.threads[0].thread()
    }

    fn set(&self, mode: u32) {
        self.shared.mode.store(mode, Ordering::SeqCst);
        self.thread().unpark();
    }

    /// Runs `f` with help for the processor of `stop`. When it is over, nothing more is raised.
    pub fn during<T>(&self, help: Help, stop: &StopToken, io: &Arc<TestIo>, f: impl FnOnce() -> T) -> T {
        if help != Help::Watch {
            *self.shared.target.lock().unwrap_or_else(PoisonError::into_inner) =
                Some((stop.clone(), io.clone()));
            self.set(if help == Help::Halt { HALT } else { INTERRUPT });
        }
        *self.shared.running.lock().unwrap_or_else(PoisonError::into_inner) = Some(stop.clone());
        self.shared.runs.fetch_add(1, Ordering::SeqCst);
        let out = f();
        self.shared.runs.fetch_add(1, Ordering::SeqCst);
        if help != Help::Watch {
            self.set(IDLE);
            while self.shared.now.load(Ordering::SeqCst) != IDLE {
                std::thread::yield_now();
            }
        }
        out
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.set(QUIT);
        for t in self.threads.drain(..) {
            t.thread().unpark();
            let _panicked = t.join();
        }
    }
}

fn help(s: &Shared) {
    let mut r = Rng::new(1, 1);
    loop {
        let mode = s.mode.load(Ordering::SeqCst);
        // The order with the loads in `during`: it sees IDLE here only after it was seen there.
        s.now.store(mode, Ordering::SeqCst);
        if s.mode.load(Ordering::SeqCst) != mode {
            continue;
        }
        match mode {
            QUIT => return,
            IDLE => std::thread::park(),
            _ => {
                let target = s.target.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let Some((stop, io)) = target else { continue };
                if mode == HALT {
                    std::thread::sleep(Duration::from_micros(20));
                    stop.raise(StopToken::STOP);
                } else {
                    for _ in 0..r.below(400) {
                        std::hint::spin_loop();
                    }
                    io.interrupt();
                }
            }
        }
    }
}

fn watch(s: &Shared) {
    let mut last = 0;
    let mut looks = 0;
    while s.mode.load(Ordering::SeqCst) != QUIT {
        std::thread::park_timeout(LOOK);
        let now = s.runs.load(Ordering::SeqCst);
        looks = if now == last && now & 1 == 1 { looks + 1 } else { 0 };
        last = now;
        if looks >= 1
            && let Some(stop) = &*s.running.lock().unwrap_or_else(PoisonError::into_inner)
        {
            stop.raise(StopToken::STOP);
        }
    }
}
