//! What the results come to: means of classes, and what was to be shown of them.

use super::catalog::{Class, PROGRAMS, Side};
use super::results::Results;
use super::stats::geometric_mean;

/// Geometric means of one class, or of all programs, with one processor.
#[derive(Debug)]
pub struct Mean {
    /// The class's name.
    pub title: &'static str,
    /// How many times QEMU's speed Ringer is to have.
    pub goal: Option<f64>,
    /// Slowdown against the host, a guest side each.
    pub slowdowns: Vec<Option<f64>>,
    /// Speed against QEMU, an engine of Ringer each.
    pub speeds: Vec<Option<f64>>,
}

/// Sides that are guests.
pub fn guests(r: &Results) -> Vec<&Side> {
    r.sides.iter().filter(|s| **s != Side::Native).collect()
}

/// Sides that are Ringer's engines.
pub fn engines(r: &Results) -> Vec<&Side> {
    r.sides.iter().filter(|s| matches!(s, Side::Ringer(_))).collect()
}

/// Slowdown of a side against the host.
pub fn slowdown(r: &Results, side: &Side, cpus: u32, program: &str) -> Option<f64> {
    Some(r.time(side, cpus, program)? / r.time(&Side::Native, cpus, program)?)
}

/// Speed of a side against QEMU.
pub fn speed(r: &Results, side: &Side, cpus: u32, program: &str) -> Option<f64> {
    Some(r.time(&Side::Qemu, cpus, program)? / r.time(side, cpus, program)?)
}

/// The means of all, and of each class.
pub fn means(r: &Results, cpus: u32) -> Vec<Mean> {
    let one = |class: Option<Class>| {
        let of = || PROGRAMS.iter().filter(move |p| class.is_none_or(|c| p.class == c)).map(|p| p.name);
        Mean {
            title: class.map_or("all", Class::title),
            goal: match class {
                None | Some(Class::Programs) => Some(4.0),
                Some(Class::Float) => Some(8.0),
                Some(Class::System) => Some(3.0),
                Some(Class::Code) => Some(10.0),
                Some(Class::User | Class::Kernel) => None,
            },
            slowdowns: guests(r)
                .into_iter()
                .map(|s| geometric_mean(of().filter_map(|p| slowdown(r, s, cpus, p))))
                .collect(),
            speeds: engines(r)
                .into_iter()
                .map(|s| geometric_mean(of().filter_map(|p| speed(r, s, cpus, p))))
                .collect(),
        }
    };
    let mut means: Vec<_> = Class::ALL.into_iter().map(Some).chain([None]).map(one).collect();
    means.retain(|m| m.slowdowns.iter().chain(&m.speeds).any(Option::is_some));
    means
}

/// Programs that an engine runs slower than QEMU, with the speed against it.
pub fn slower(r: &Results, engine: &Side) -> Vec<(&'static str, f64)> {
    let speeds = PROGRAMS.iter().filter_map(|p| Some((p.name, speed(r, engine, 1, p.name)?)));
    speeds.filter(|(_, s)| *s < 1.0).collect()
}

/// Time of two busy threads against that of one, each with as much to do, on two processors.
pub fn two_threads(r: &Results, side: &Side) -> Option<f64> {
    Some(r.time(side, 2, "busy2")? / r.time(side, 2, "busy1")?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::line::Outcome;
    use crate::bench::results::Key;

    #[test]
    fn means_and_stragglers() {
        let (ringer, all) = (Side::Ringer("translator".into()), "cc1 gzip");
        let mut r = Results::new(vec![Side::Native, ringer.clone(), Side::Qemu], vec![1, 2]);
        let mut add = |side: &Side, cpus, program: &str, seconds| {
            let key = Key { side: side.clone(), cpus, program: program.to_owned() };
            r.add(key, Outcome::Done { seconds, cpu: 0.0, iterations: 1, check: String::new() });
        };
        for p in all.split(' ') {
            add(&Side::Native, 1, p, 1.0);
        }
        add(&ringer, 1, "cc1", 2.0);
        add(&Side::Qemu, 1, "cc1", 32.0);
        add(&ringer, 1, "gzip", 8.0);
        add(&Side::Qemu, 1, "gzip", 4.0);
        add(&ringer, 2, "busy1", 1.0);
        add(&ringer, 2, "busy2", 1.05);
        let m = means(&r, 1);
        assert_eq!(m.iter().map(|m| m.title).collect::<Vec<_>>(), ["integer programs", "all"]);
        assert!((m[0].slowdowns[0].unwrap() - 4.0).abs() < 1e-9);
        assert!((m[0].speeds[0].unwrap() - 8f64.sqrt()).abs() < 1e-9);
        assert_eq!(slower(&r, &ringer), [("gzip", 0.5)]);
        assert_eq!(two_threads(&r, &ringer), Some(1.05));
        assert_eq!(two_threads(&r, &Side::Qemu), None);
    }
}
