//! [`Peak`]: the most memory that this process has held beside a guest's RAM.

use ringer_memory::GuestMemory;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

/// How often it looks.
const LOOK: Duration = Duration::from_millis(50);

/// Looks from time to time, on a thread of its own, as long as it lives.
pub(crate) struct Peak {
    most: Arc<AtomicU64>,
    /// Closed when the value goes, which ends the thread.
    _alive: Sender<()>,
}

impl Peak {
    /// Starts to look. None if the host gives no thread.
    pub(crate) fn watch(memory: GuestMemory) -> Option<Peak> {
        let most = Arc::new(AtomicU64::new(0));
        let (alive, over) = channel();
        let seen = Arc::clone(&most);
        std::thread::Builder::new()
            .name("peak".into())
            .spawn(move || {
                loop {
                    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
                    let beside = resident(&status).saturating_sub(memory.resident());
                    seen.fetch_max(beside, Ordering::Relaxed);
                    if over.recv_timeout(LOOK) != Err(RecvTimeoutError::Timeout) {
                        return;
                    }
                }
            })
            .ok()?;
        Some(Peak { most, _alive: alive })
    }

    /// The most so far, in bytes.
    pub(crate) fn most(&self) -> u64 {
        self.most.load(Ordering::Relaxed)
    }
}

/// Resident bytes, from a process's status in /proc (proc(5), VmRSS). A page that is mapped twice, as those of translated code are,
/// counts twice.
fn resident(status: &str) -> u64 {
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) << 10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_seen_and_guest_ram_is_not() {
        assert_eq!(resident("Name:\tx\nVmRSS:\t  1234 kB\nRssAnon: 3 kB\n"), 1234 << 10);
        assert_eq!(resident(""), 0);
        let memory = GuestMemory::new(256 << 20).unwrap();
        memory.write(0, &vec![1; 200 << 20]).unwrap();
        let peak = Peak::watch(memory).unwrap();
        std::thread::sleep(LOOK * 3);
        let before = peak.most();
        assert!(before > 0 && before < 200 << 20, "{before}");
        let held = vec![1u8; 300 << 20];
        std::thread::sleep(LOOK * 6);
        assert!(held.iter().all(|b| *b == 1));
        assert!(peak.most() >= 300 << 20, "{} after {before}", peak.most());
    }
}
