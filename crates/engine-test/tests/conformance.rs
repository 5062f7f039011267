//! The conformance suite on every engine of this build, and with processors handed from one to another.

use ringer_engine_test::conformance::{Cell, Config, column, columns, rows, run, table};
use ringer_engine_test::debugged::STOPS;
use ringer_engine_test::exceptions::EXCEPTIONS;
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

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
