//! docs/performance.md.

use super::results::{Results, title};
use super::summary::{engines, slower};
use super::table::{Rows, classes, processes, programs, ratio};

/// A table in Markdown.
fn table(rows: &Rows) -> String {
    let mut out = String::new();
    for (i, row) in rows.iter().enumerate() {
        out.push_str(&format!("| {} |\n", row.join(" | ")));
        if i == 0 {
            out.push_str(&format!("|---{}|\n", "|---:".repeat(row.len() - 1)));
        }
    }
    out
}

/// What stands under the heading if processor time was counted.
const CPU_TIME: &str = "\n*These are processor times (`--cpu-time`), but for those with two processors: the host had other things to do.*\n";

/// The whole page.
pub fn page(r: &Results, host: &str, rounds: u32, cpu_time: bool) -> String {
    let mut out = format!(
        "# Performance\n\n\
         Written by `cargo xtask bench --write`; [testing.md](testing.md#speed) says how it measures. Medians of {rounds} rounds, in which \
         the host, Ringer's engines and QEMU (`-accel tcg -machine q35 -cpu max`) took turns, on {host}. Ratios count, absolute \
         times do not: the host may have been shared.\n\n\
         *X / native* is a slowdown: how many times longer than on the host. *QEMU / X* is a speed: how many times faster than \
         QEMU.\n"
    );
    if cpu_time {
        out.push_str(CPU_TIME);
    }
    let mut section = |heading: &str, rows: &Rows| {
        if rows.len() > 1 {
            out.push_str(&format!("\n## {heading}\n\n{}", table(rows)));
        }
    };
    section("Geometric means, one processor", &classes(r));
    section("Boot, memory, processors", &processes(r));
    for &cpus in &r.cpus {
        let s = if cpus == 1 { "" } else { "s" };
        section(&format!("Programs, {cpus} processor{s}"), &programs(r, cpus));
    }
    for engine in engines(r) {
        let slow: Vec<_> = slower(r, engine).iter().map(|(p, s)| format!("`{p}` ({})", ratio(*s))).collect();
        if !slow.is_empty() {
            out.push_str(&format!("\nSlower than QEMU under the {}: {}.\n", title(engine), slow.join(", ")));
        }
    }
    for f in r.failures() {
        out.push_str(&format!("\nFailed: {f}.\n"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_was_counted() {
        let r = Results::new(Vec::new(), vec![1]);
        assert!(!page(&r, "a host", 3, false).contains(CPU_TIME));
        assert!(page(&r, "a host", 3, true).contains(CPU_TIME));
    }

    #[test]
    fn tables_are_markdown() {
        let rows = vec![vec!["a".to_owned(), "b".to_owned()], vec!["x".to_owned(), "1".to_owned()]];
        assert_eq!(table(&rows), "| a | b |\n|---|---:|\n| x | 1 |\n");
    }
}
