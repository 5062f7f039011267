//! The conformance suite on every engine of this build, and with processors handed from one to another.

use ringer_engine::conformance::layout::KCODE;
use ringer_engine::conformance::setup::Mode;
use ringer_engine::conformance::{self as suite, Check, Outcome, Target};
use ringer_engine_test::conformance::{Cell, Config, column, columns, rows, run, table};
use ringer_engine_test::debugged::STOPS;
use ringer_engine_test::engines::{Broken, Fault, engine};
use ringer_engine_test::exceptions::EXCEPTIONS;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

#[test]
fn every_engine_passes() {
    let rows = rows("").unwrap();
    let done: Vec<_> =
        columns().iter().map(|name| run(&rows, &column(name, &Config::default()).unwrap(), 2)).collect();
    let told = table(&rows, &done);
    println!("{told}");
    let failed = done.iter().flat_map(|d| &d.cells).any(|c| matches!(c, Cell::Failed(_)));
    assert!(!failed, "{told}");
    let stops = STOPS.load(Ordering::Relaxed);
    assert!(stops > 10 * rows.len() as u64, "{stops} stops for a debugger");
    for d in &done {
        if ["interpreter", "translator"].contains(&d.name.as_str()) {
            let passed = d.cells.iter().filter(|c| **c == Cell::Passed).count();
            assert!(passed * 10 > rows.len() * 9, "{} passes only {passed} checks", d.name);
        }
        let both = d.name.contains('>') && !d.cells.iter().all(|c| matches!(c, Cell::Skipped(_)));
        assert!(!both || d.hand_overs > rows.len() as u64, "{}: {} hand-overs", d.name, d.hand_overs);
    }
}

#[test]
fn the_page_has_the_table_of_exceptions() {
    let names: BTreeSet<_> = rows("").unwrap().iter().map(|r| r.check.name).collect();
    let page = include_str!("../../../docs/conformance.md");
    let lines = page.lines().filter(|l| l.starts_with("| ") && !l.starts_with("| engine ")).count();
    assert_eq!(lines, EXCEPTIONS.len(), "the table in docs/conformance.md has other exceptions");
    for e in EXCEPTIONS {
        assert!(names.contains(e.check), "no check is called {:?}", e.check);
        let line = format!("| {} | {} | {} |", e.on, e.check, e.why);
        assert!(page.contains(&line), "docs/conformance.md has not the line\n{line}");
    }
}

/// A target of a broken interpreter.
fn broken(fault: Fault) -> Target {
    let config = Config { limit: Duration::from_millis(300), ..Config::default() };
    let mut target = column("interpreter", &config).unwrap().target.unwrap();
    target.engines = vec![Arc::new(Broken::new(engine("interpreter").unwrap(), fault))];
    target
}

fn failures(fault: Fault) -> usize {
    let target = broken(fault);
    let rows = rows("flags").unwrap();
    rows.iter().filter(|r| matches!(suite::run(&r.check, &target).outcome, Outcome::Failed(_))).count()
}

#[test]
fn a_wrong_flag_fails_checks() {
    let right = Fault { run: |_, _| {}, step: |_| {} };
    assert_eq!(failures(right), 0);
    // The parity flag, in the state after each run: where the guest itself looks at its flags it is right.
    assert!(failures(Fault { run: |s, _| s.rflags ^= 4, step: |_| {} }) >= 2);
}

#[test]
fn a_guest_without_an_end_is_stopped_and_one_that_panics_told() {
    let endless = Check {
        name: "endless",
        run: |t| {
            let mut g = t.guest(Mode::Long)?;
            g.mem.write(KCODE, &[0xeb, 0xfe])?;
            g.end()
        },
    };
    let target = broken(Fault { run: |_, _| {}, step: |_| {} });
    let Outcome::Failed(what) = suite::run(&endless, &target).outcome else { panic!("it ended") };
    assert!(what.starts_with("came to no end in 300ms; stands at 0x8:0x10000"), "{what}");
    let panics = Check { name: "panics", run: |_| panic!("over {}", 9) };
    let Outcome::Failed(what) = suite::run(&panics, &target).outcome else { panic!("it passed") };
    assert_eq!(what, "the engine or the check panicked: over 9");
}
