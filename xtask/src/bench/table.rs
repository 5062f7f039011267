//! Tables of the results.

use super::catalog::{Class, PROGRAMS, Side};
use super::results::{Results, title};
use super::stats::geometric_mean;

/// A table of text cells: first row is the head. Numbers stand to the right, the first column to the left.
fn grid(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0);
    let widths: Vec<_> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let cells: Vec<_> = row
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(i, (s, w))| if i == 0 { format!("{s:<w$}") } else { format!("{s:>w$}") })
            .collect();
        out.push_str(cells.join("  ").trim_end());
        out.push('\n');
    }
    out
}

/// Seconds as a person says them.
fn seconds(t: f64) -> String {
    match t {
        t if t >= 1.0 => format!("{t:.2} s"),
        t if t >= 1e-3 => format!("{:.2} ms", t * 1e3),
        t if t >= 1e-6 => format!("{:.2} us", t * 1e6),
        t => format!("{:.1} ns", t * 1e9),
    }
}

/// A ratio with three digits.
fn ratio(r: f64) -> String {
    match r {
        r if r >= 99.95 => format!("{r:.0}"),
        r if r >= 9.995 => format!("{r:.1}"),
        r => format!("{r:.2}"),
    }
}

/// All results as text.
pub fn text(r: &Results) -> String {
    let mut out = String::new();
    for &cpus in &r.cpus {
        let rows = rows(r, cpus);
        if rows.len() > 1 {
            out.push_str(&format!(
                "\n{cpus} processor(s); time of one iteration natively, slowdowns against it\n"
            ));
            out.push_str(&grid(&rows));
        }
    }
    for side in &r.sides {
        if let Some(t) = r.boot_time(side) {
            out.push_str(&format!("boot to the first userspace line, {}: {}\n", title(side), seconds(t)));
        }
        if let Some(p) = r.peak(side) {
            out.push_str(&format!("peak memory beside guest RAM, {}: {} MiB\n", title(side), p >> 20));
        }
    }
    out
}

fn engines(r: &Results) -> Vec<&Side> {
    r.sides.iter().filter(|s| matches!(s, Side::Ringer(_))).collect()
}

fn rows(r: &Results, cpus: u32) -> Vec<Vec<String>> {
    let native = |p: &str| r.cpus.iter().find_map(|&n| r.time(&Side::Native, n, p));
    let guests: Vec<_> = r.sides.iter().filter(|s| **s != Side::Native).collect();
    let mut rows = vec![vec!["program".to_owned(), "native".to_owned()]];
    rows[0].extend(guests.iter().map(|s| format!("{} x", title(s))));
    let qemu = r.sides.contains(&Side::Qemu);
    if qemu {
        rows[0].extend(engines(r).iter().map(|s| format!("{} vs QEMU", title(s))));
    }
    let dash = || "-".to_owned();
    for p in PROGRAMS {
        let times: Vec<_> = guests.iter().map(|s| r.time(s, cpus, p.name)).collect();
        if times.iter().all(Option::is_none) && (cpus != r.cpus[0] || native(p.name).is_none()) {
            continue;
        }
        let base = native(p.name);
        let mut row = vec![p.name.to_owned(), base.map_or_else(dash, seconds)];
        for (side, t) in guests.iter().zip(&times) {
            row.push(match (t, base) {
                (Some(t), Some(b)) => ratio(t / b),
                (Some(t), None) => seconds(*t),
                (None, _) if r.skipped(side, cpus, p.name).is_some() => "skipped".to_owned(),
                (None, _) => dash(),
            });
        }
        if qemu {
            let q = r.time(&Side::Qemu, cpus, p.name);
            for side in engines(r) {
                let t = r.time(side, cpus, p.name);
                row.push(q.zip(t).map_or_else(dash, |(q, t)| ratio(q / t)));
            }
        }
        rows.push(row);
    }
    if rows.len() > 2 {
        rows.extend(means(r, cpus, &guests, &native));
    }
    rows
}

/// Geometric means: of each class, and of all.
fn means(r: &Results, cpus: u32, guests: &[&Side], native: &dyn Fn(&str) -> Option<f64>) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    let dash = || "-".to_owned();
    for class in Class::ALL.into_iter().map(Some).chain([None]) {
        let of: Vec<_> =
            PROGRAMS.iter().filter(|p| class.is_none_or(|c| p.class == c)).map(|p| p.name).collect();
        let mut row = vec![format!("= {}", class.map_or("all", Class::title)), String::new()];
        for side in guests {
            let slow = of.iter().filter_map(|p| Some(r.time(side, cpus, p)? / native(p)?));
            row.push(geometric_mean(slow).map_or_else(dash, ratio));
        }
        if r.sides.contains(&Side::Qemu) {
            for side in engines(r) {
                let fast =
                    of.iter().filter_map(|p| Some(r.time(&Side::Qemu, cpus, p)? / r.time(side, cpus, p)?));
                row.push(geometric_mean(fast).map_or_else(dash, ratio));
            }
        }
        if row[2..].iter().any(|c| c != "-") {
            rows.push(row);
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(seconds(1.234), "1.23 s");
        assert_eq!(seconds(0.0021), "2.10 ms");
        assert_eq!(seconds(3.5e-9), "3.5 ns");
        assert_eq!(ratio(660.4), "660");
        assert_eq!(ratio(18.04), "18.0");
        assert_eq!(ratio(1.0), "1.00");
    }

    #[test]
    fn columns_line_up() {
        let rows = [vec!["a".to_owned(), "head".to_owned()], vec!["long".to_owned(), "1".to_owned()]];
        assert_eq!(grid(&rows), "a     head\nlong     1\n");
    }
}
