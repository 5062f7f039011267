//! Processor time, for hosts that have other things to do: a guest's clock goes on while its threads wait for a processor.

use super::catalog::Side;
use super::line::Outcome;
use std::fs;
use std::time::{Duration, Instant};

/// Processor time of all threads of a process up to a moment.
#[derive(Clone, Copy, Debug)]
pub struct Snapshot {
    at: Instant,
    used: Duration,
}

impl Snapshot {
    /// Takes one.
    pub fn of(pid: u32) -> Snapshot {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let used = tasks.filter_map(|t| fs::read_to_string(t.path().join("schedstat")).ok());
        let used = used.filter_map(|s| on_cpu(&s)).sum();
        Snapshot { at: Instant::now(), used: Duration::from_nanos(used) }
    }

    /// The share of the time until `later` for which the process had a processor.
    pub fn share_until(&self, later: &Snapshot) -> f64 {
        let used = later.used.saturating_sub(self.used).as_secs_f64();
        (used / (later.at - self.at).as_secs_f64()).min(1.0)
    }
}

/// Nanoseconds on a processor: the first field of /proc/PID/task/TID/schedstat (Linux Documentation/scheduler/sched-stats.rst).
fn on_cpu(schedstat: &str) -> Option<u64> {
    schedstat.split_whitespace().next()?.parse().ok()
}

/// `outcome` with processor time for time: on the host what its kernel counted, in a guest its time scaled by `share`. A program
/// that does not keep its processor busy would come out too fast, but none does that with one processor.
pub fn in_cpu_time(side: &Side, outcome: Outcome, share: f64) -> Outcome {
    match outcome {
        Outcome::Done { seconds, cpu, iterations, check } => {
            let seconds = if *side == Side::Native { cpu } else { seconds * share };
            Outcome::Done { seconds, cpu, iterations, check }
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares() {
        let at = Instant::now();
        let a = Snapshot { at, used: Duration::from_millis(100) };
        let b = Snapshot { at: at + Duration::from_millis(400), used: Duration::from_millis(300) };
        assert!((a.share_until(&b) - 0.5).abs() < 1e-9);
        assert_eq!(on_cpu("123456 99 3\n"), Some(123_456));
        assert_eq!(on_cpu(""), None);
    }

    #[test]
    fn scales_guests_alone() {
        let done = || Outcome::Done { seconds: 2.0, cpu: 1.5, iterations: 1, check: String::new() };
        let time = |side| match in_cpu_time(&side, done(), 0.5) {
            Outcome::Done { seconds, .. } => seconds,
            _ => 0.0,
        };
        assert_eq!((time(Side::Native), time(Side::Qemu)), (1.5, 1.0));
    }
}
