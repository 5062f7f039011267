//! Ends a processor's run after a moment, and the process when the processor does not obey.

use ringer_engine::StopToken;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// How often the thread looks: a run is stopped after one to two of these.
const TICK: Duration = Duration::from_micros(300);
/// A processor that has not stopped this long after it was told to never will.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Default)]
struct Watch {
    /// Whose run is under way, and its number.
    running: Option<(StopToken, u64)>,
    next: u64,
}

fn watches() -> &'static Mutex<Vec<Watch>> {
    static ALL: OnceLock<Mutex<Vec<Watch>>> = OnceLock::new();
    ALL.get_or_init(|| {
        std::thread::spawn(watch);
        Mutex::default()
    })
}

/// A place among the watched, one for each thread that runs processors.
pub(crate) struct Watchdog(usize);

impl Watchdog {
    pub fn new() -> Watchdog {
        let mut all = watches().lock().unwrap_or_else(PoisonError::into_inner);
        all.push(Watch::default());
        Watchdog(all.len() - 1)
    }

    /// Runs `f`, raising [`StopToken::STOP`] after a moment. No stop is left in the token.
    pub fn limit<T>(&self, stop: &StopToken, f: impl FnOnce() -> T) -> T {
        let set = |running: bool| {
            let mut all = watches().lock().unwrap_or_else(PoisonError::into_inner);
            let w = &mut all[self.0];
            w.next += 1;
            w.running = running.then(|| (stop.clone(), w.next));
        };
        set(true);
        let r = f();
        set(false);
        stop.take(StopToken::STOP);
        r
    }
}

fn watch() {
    let mut seen: Vec<(u64, Instant)> = Vec::new();
    loop {
        std::thread::sleep(TICK);
        let all = watches().lock().unwrap_or_else(PoisonError::into_inner);
        seen.resize(all.len(), (0, Instant::now()));
        for (w, s) in all.iter().zip(&mut seen) {
            let Some((stop, run)) = &w.running else { continue };
            if s.0 != *run {
                *s = (*run, Instant::now());
                continue;
            }
            stop.raise(StopToken::STOP);
            if s.1.elapsed() > PATIENCE {
                eprintln!("a processor does not stop");
                std::process::abort();
            }
        }
    }
}
