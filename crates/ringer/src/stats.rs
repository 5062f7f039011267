//! What `--stats` prints.

use ringer_engine::{EXITS, Stats};
use ringer_vmm::show_size;
use std::fmt::Write;
use std::time::Duration;

/// The report: sums over all processors, `wall` the time that the machine ran, `limit` what translated code may take, `peak` the most
/// that the process has held beside guest RAM.
pub fn report(stats: &[Stats], wall: Duration, limit: u64, peak: Option<u64>) -> String {
    let mut out = String::new();
    let sum = |f: fn(&Stats) -> u64| stats.iter().map(f).sum::<u64>();
    let mut line = |name: &str, text: String| {
        let _infallible = writeln!(out, "  {name:<22} {text}");
    };
    let instructions = sum(|s| s.instructions);
    let mips = instructions as f64 / wall.as_secs_f64().max(1e-9) / 1e6;
    line("run time", format!("{:.3} s", wall.as_secs_f64()));
    let user = stats.iter().map(|s| s.first_user_ns).filter(|t| *t > 0).min();
    line("first userspace", user.map_or("never".to_owned(), |ns| format!("{:.3} s", ns as f64 / 1e9)));
    let partly = if stats.iter().any(|s| s.partial) { ", not all are counted" } else { "" };
    line("guest instructions", format!("{instructions} ({mips:.1} MIPS{partly})"));
    line("blocks run", sum(|s| s.blocks_run).to_string());
    line("blocks decoded", sum(|s| s.blocks_decoded).to_string());
    line("blocks dropped", sum(|s| s.blocks_dropped).to_string());
    line("port I/O", sum(|s| s.pio).to_string());
    line("memory-mapped I/O", sum(|s| s.mmio).to_string());
    line("interrupts", sum(|s| s.interrupts).to_string());
    line("exceptions", format!("{} ({} page faults)", sum(|s| s.exceptions), sum(|s| s.page_faults)));
    line("halts", sum(|s| s.halts).to_string());
    let (accesses, fills, slow) = (sum(|s| s.memory_accesses), sum(|s| s.tlb_fills), sum(|s| s.tlb_slow));
    // Translated code counts none.
    let accesses = if accesses < fills { 0 } else { accesses };
    line("TLB hit rate", share(accesses.saturating_sub(fills), accesses));
    line("TLB fills", fills.to_string());
    line("TLB slow accesses", slow.to_string());
    line("TLB flushes", sum(|s| s.tlb_flushes).to_string());
    let exits: Vec<u64> = (0..EXITS.len()).map(|n| stats.iter().map(|s| s.exits[n]).sum()).collect();
    if exits.iter().any(|n| *n != 0) {
        let named: Vec<_> = EXITS.iter().zip(&exits).map(|(name, n)| format!("{n} {name}")).collect();
        line("translated code left", format!("{} ({})", exits.iter().sum::<u64>(), named.join(", ")));
    }
    let code = sum(|s| s.code_memory);
    if code != 0 {
        line("code and its tables", format!("{} at most, of {}", show_size(code), show_size(limit)));
    }
    if let Some(peak) = peak {
        line("memory beside RAM", format!("{} at most", show_size(peak)));
    }
    if stats.len() > 1 {
        for (i, s) in stats.iter().enumerate() {
            line(&format!("processor {i}"), format!("{} instructions, {} halts", s.instructions, s.halts));
        }
    }
    out
}

fn share(part: u64, all: u64) -> String {
    if all == 0 {
        return "unknown (memory accesses were not counted)".to_owned();
    }
    format!("{:.3} % of {all} memory accesses", part as f64 * 100.0 / all as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_over_processors() {
        let exits = |first: &[u64]| std::array::from_fn(|n| first.get(n).copied().unwrap_or(0));
        let one = Stats {
            instructions: 1_000_000,
            memory_accesses: 1000,
            tlb_fills: 5,
            first_user_ns: 2_500_000_000,
            exits: exits(&[1, 0, 7]),
            code_memory: 4 << 20,
            ..Stats::default()
        };
        let other =
            Stats { instructions: 500_000, exits: exits(&[4]), code_memory: 2 << 20, ..Stats::default() };
        let text = report(&[one, other], Duration::from_secs(1), 64 << 20, Some(96 << 20));
        assert!(text.contains("1500000 (1.5 MIPS)"), "{text}");
        assert!(text.contains("99.500 % of 1000"), "{text}");
        assert!(text.contains("6M at most, of 64M") && text.contains("96M at most"), "{text}");
        assert!(text.contains("12 (5 link, 0 indirect jump, 7 instruction, 0 site miss"), "{text}");
        assert!(text.contains("2.500 s"), "{text}");
        assert!(report(&[Stats::default()], Duration::ZERO, 0, None).contains("never"));
    }
}
