//! Tables of the results: rows of text cells, and how they look on a terminal.

use super::catalog::{PROGRAMS, Side};
use super::results::{Results, title};
use super::summary::{engines, guests, means, slowdown, speed, two_threads};

/// Rows of cells; the first is the head.
pub type Rows = Vec<Vec<String>>;

/// A table for the terminal. Numbers stand to the right, the first column to the left.
fn grid(rows: &Rows) -> String {
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
pub fn seconds(t: f64) -> String {
    match t {
        t if t >= 1.0 => format!("{t:.2} s"),
        t if t >= 1e-3 => format!("{:.2} ms", t * 1e3),
        t if t >= 1e-6 => format!("{:.2} us", t * 1e6),
        t => format!("{:.1} ns", t * 1e9),
    }
}

/// A ratio with three digits.
pub fn ratio(r: f64) -> String {
    match r {
        r if r >= 99.95 => format!("{r:.0}"),
        r if r >= 9.995 => format!("{r:.1}"),
        r => format!("{r:.2}"),
    }
}

fn or_dash(cell: Option<f64>, show: fn(f64) -> String) -> String {
    cell.map_or_else(|| "-".to_owned(), show)
}

/// All results as text.
pub fn text(r: &Results) -> String {
    let mut out = String::new();
    for &cpus in &r.cpus {
        let rows = programs(r, cpus);
        if rows.len() > 1 {
            out.push_str(&format!(
                "\n{cpus} processor{}: native time of one iteration, slowdown against it, speed against QEMU\n\n",
                if cpus == 1 { "" } else { "s" }
            ));
            out.push_str(&grid(&rows));
        }
    }
    for (what, rows) in [("geometric means", classes(r)), ("whole processes", processes(r))] {
        if rows.len() > 1 {
            out.push_str(&format!("\n{what}\n\n{}", grid(&rows)));
        }
    }
    if !r.failures().is_empty() {
        out.push_str(&format!("\nfailed:\n  {}\n", r.failures().join("\n  ")));
    }
    out
}

fn head(r: &Results, first: &[&str]) -> Vec<String> {
    let mut row: Vec<_> = first.iter().map(|s| (*s).to_owned()).collect();
    row.extend(guests(r).iter().map(|s| format!("{} / native", title(s))));
    if r.sides.contains(&Side::Qemu) {
        row.extend(engines(r).iter().map(|s| format!("QEMU / {}", title(s))));
    }
    row
}

/// One row a program that ran with this many processors.
pub fn programs(r: &Results, cpus: u32) -> Rows {
    let mut rows = vec![head(r, &["program", "native"])];
    for p in PROGRAMS {
        let native = r.time(&Side::Native, cpus, p.name);
        if native.is_none() && guests(r).iter().all(|s| r.time(s, cpus, p.name).is_none()) {
            continue;
        }
        let mut row = vec![p.name.to_owned(), or_dash(native, seconds)];
        for side in guests(r) {
            row.push(match (r.time(side, cpus, p.name), slowdown(r, side, cpus, p.name)) {
                (_, Some(s)) => ratio(s),
                // Without the host, the time itself.
                (Some(t), None) => seconds(t),
                (None, None) if r.skipped(side, cpus, p.name).is_some() => "cannot".to_owned(),
                (None, None) => "-".to_owned(),
            });
        }
        if r.sides.contains(&Side::Qemu) {
            row.extend(engines(r).iter().map(|s| or_dash(speed(r, s, cpus, p.name), ratio)));
        }
        rows.push(row);
    }
    rows
}

/// Geometric means of the classes, with one processor.
pub fn classes(r: &Results) -> Rows {
    let qemu = r.sides.contains(&Side::Qemu);
    let mut rows = vec![head(r, &["class"])];
    if qemu {
        rows[0].push("goal".to_owned());
    }
    for m in means(r, 1) {
        let mut row = vec![m.title.to_owned()];
        row.extend(m.slowdowns.iter().map(|s| or_dash(*s, ratio)));
        if qemu {
            row.extend(m.speeds.iter().map(|s| or_dash(*s, ratio)));
            row.push(or_dash(m.goal, |g| format!("{g}")));
        }
        rows.push(row);
    }
    rows
}

/// What concerns whole processes: boot, memory, two threads.
pub fn processes(r: &Results) -> Rows {
    let mut rows = vec![vec![String::new()]];
    rows[0].extend(guests(r).iter().map(|s| title(s)));
    let mut add = |what: &str, cells: Vec<Option<String>>| {
        if cells.iter().any(Option::is_some) {
            let cells = cells.into_iter().map(|c| c.unwrap_or_else(|| "-".to_owned()));
            rows.push([what.to_owned()].into_iter().chain(cells).collect());
        }
    };
    let all = |f: &dyn Fn(&Side) -> Option<String>| guests(r).into_iter().map(f).collect();
    add("boot to the first userspace line", all(&|s| r.boot_time(s).map(seconds)));
    add(
        "the same against QEMU's (goal: 0.33)",
        all(&|s| Some(ratio(r.boot_time(s)? / r.boot_time(&Side::Qemu)?))),
    );
    add("peak memory beside guest RAM", all(&|s| r.peak(s).map(|p| format!("{} MiB", p >> 20))));
    add("two busy threads against one, two processors (goal: 1.1)", all(&|s| two_threads(r, s).map(ratio)));
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
        let rows = vec![vec!["a".to_owned(), "head".to_owned()], vec!["long".to_owned(), "1".to_owned()]];
        assert_eq!(grid(&rows), "a     head\nlong     1\n");
    }
}
