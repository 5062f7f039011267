//! Lists the files of the conformance suite, so that adding a check is adding a file.

use std::fmt::Write as _;
use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-changed=src/conformance/checks");
    if std::env::var_os("CARGO_FEATURE_CONFORMANCE").is_none() {
        return;
    }
    let root = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let mut names: Vec<String> = std::fs::read_dir(root.join("src/conformance/checks"))
        .expect("the folder is beside the sources")
        .filter_map(|e| e.expect("it can be listed").file_name().into_string().ok())
        .filter_map(|n| n.strip_suffix(".rs").map(str::to_owned))
        .collect();
    names.sort();
    let mut text = String::new();
    for n in &names {
        let path = root.join("src/conformance/checks").join(format!("{n}.rs"));
        writeln!(text, "#[path = {path:?}]\nmod {n};").expect("a string grows");
    }
    writeln!(text, "const FILES: &[(&str, &[Check])] = &[").expect("a string grows");
    for n in &names {
        writeln!(text, "    ({n:?}, {n}::CHECKS),").expect("a string grows");
    }
    text.push_str("];\n");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));
    std::fs::write(out.join("checks.rs"), text).expect("the output folder is writable");
}
