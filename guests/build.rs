//! Assembles the guests in `asm/` with the C compiler driver and binutils that Rust's linker needs anyway.

use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=asm");
    println!("cargo::rerun-if-env-changed=CC");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let mut sources: Vec<PathBuf> = std::fs::read_dir("asm")
        .expect("asm/ is beside build.rs")
        .map(|e| e.expect("asm/ can be listed").path())
        .filter(|p| p.extension().is_some_and(|e| e == "S"))
        .collect();
    sources.sort();
    for source in &sources {
        let name = source.file_stem().and_then(|s| s.to_str()).expect("guests have plain names");
        if name == "bench" {
            bench(source, &out);
        } else {
            multiboot(source, &out.join(name));
        }
    }
}

/// A 32-bit ELF file with a multiboot header. The guest is linked as 64-bit code, for its relocations, then renamed:
/// multiboot loaders want ELF32.
fn multiboot(source: &Path, base: &Path) {
    let (object, linked, image) =
        (base.with_extension("o"), base.with_extension("elf64"), base.with_extension("elf"));
    compile(source, &object, &[]);
    run(Command::new("ld")
        .args([
            "-m",
            "elf_x86_64",
            "-static",
            "-nostdlib",
            "--build-id=none",
            "-z",
            "noexecstack",
            "--no-warn-rwx-segments",
        ])
        .args(["-T", "asm/link.ld", "-o"])
        .args([&linked, &object]));
    run(Command::new("objcopy").args(["-O", "elf32-i386"]).args([&linked, &image]));
}

/// The loops of the benchmark: name, turns, instructions a turn as `bench.S` says.
const LOOPS: [(&str, u64, u64); 3] =
    [("integer", 8_000_000, 14), ("memory", 9_000_000, 12), ("branch", 7_000_000, 16)];

/// The boot sectors of the benchmark: each loop, with its full count and with one turn.
fn bench(source: &Path, out: &Path) {
    for (kind, (name, turns, instructions)) in LOOPS.iter().enumerate() {
        println!("cargo::rustc-env=BENCH_{}={}", name.to_uppercase(), (turns - 1) * instructions);
        for (part, count) in [("full", *turns), ("one", 1)] {
            let object = out.join(format!("bench-{name}-{part}.o"));
            compile(source, &object, &[format!("-DKIND={kind}"), format!("-DCOUNT={count}")]);
            run(Command::new("ld")
                .args(["-m", "elf_x86_64", "--oformat", "binary", "-Ttext", "0x7c00", "-e", "start", "-o"])
                .args([&object.with_extension("bin"), &object]));
        }
    }
}

fn compile(source: &Path, object: &Path, defines: &[String]) {
    let cc = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    run(Command::new(cc).args(["-m64", "-c", "-Iasm"]).args(defines).arg("-o").args([object, source]));
}

fn run(command: &mut Command) {
    match command.status() {
        Ok(s) if s.success() => {}
        Ok(s) => panic!("{command:?} ended with {s}"),
        Err(e) => panic!("cannot run {:?} ({e}); install gcc and binutils", command.get_program()),
    }
}
