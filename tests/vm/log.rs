//! What a kernel's log may hold and what not. `cargo xtask stress` uses it too.

/// What the kernel may warn of, each with the reason.
const ALLOWED: &[&str] = &[
    // There is a keyboard and no mouse.
    "PS/2 appears to have AUX port disabled",
    // The host did not run the guest for some milliseconds.
    "RTC interrupts",
    "hrtimer: interrupt took",
];

/// What must not be in a kernel's log at any level.
const BAD: &[&str] = &[
    "BUG:",
    "WARNING:",
    "Call Trace",
    "soft lockup",
    "hard LOCKUP",
    "rcu_sched",
    "rcu_preempt detected",
    "unstable",
    "Oops",
    "too much work",
    "nobody cared",
    "failed self-test",
];

/// Whether the kernel complains in this line of `dmesg -r`.
pub fn complains(line: &str) -> bool {
    let level = line.strip_prefix('<').and_then(|l| l.split_once('>')).and_then(|l| l.0.parse::<u32>().ok());
    // Facility kernel is 0; 4 is a warning, less is worse.
    let warns = level.is_some_and(|l| l <= 4) && !ALLOWED.iter().any(|a| line.contains(a));
    warns || BAD.iter().any(|b| line.contains(b))
}
