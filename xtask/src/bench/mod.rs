//! `cargo xtask bench`: the same programs on the host, in Ringer's guests and in QEMU's, interleaved in one run.

mod catalog;
mod cpu_time;
mod host;
mod kit;
mod line;
mod markdown;
mod measure;
mod memory;
mod results;
mod side;
mod stats;
mod summary;
mod table;

use anyhow::{Context, Result, bail, ensure};
use catalog::{PROGRAMS, Program, Side};
use clap::Args;
use kit::Kit;
use measure::Measurement;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What to measure.
#[derive(Debug, Args)]
pub struct Options {
    /// Programs to run, by name, separated by commas; "boot" measures the boot [default: all]
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    only: Vec<String>,
    /// List the programs
    #[arg(long)]
    list: bool,
    /// How often each side runs; medians are taken
    #[arg(long, default_value_t = 3, value_name = "N")]
    rounds: u32,
    /// Numbers of processors; above one only the programs that concerns run, unless --only names others
    #[arg(long, value_delimiter = ',', default_value = "1,2", value_name = "LIST")]
    cpus: Vec<u32>,
    /// Ringer's engines
    #[arg(long, value_delimiter = ',', default_value = "translator", value_name = "LIST")]
    engines: Vec<String>,
    /// An eighth of the work: less exact
    #[arg(long)]
    quick: bool,
    /// Count processor time instead of time that passed, where there is one processor: for a host that has other
    /// things to do
    #[arg(long)]
    cpu_time: bool,
    /// Write docs/performance.md (of a full run)
    #[arg(long, conflicts_with_all = ["only", "quick", "no_qemu", "no_native"])]
    write: bool,
    /// Leave QEMU out
    #[arg(long)]
    no_qemu: bool,
    /// Leave the host out
    #[arg(long)]
    no_native: bool,
    /// Another ringer than this workspace's
    #[arg(long, value_name = "FILE")]
    ringer: Option<PathBuf>,
    /// Only make what is run, and print commands to run one program by hand
    #[arg(long)]
    prepare: bool,
}

/// Whether all programs ran well.
///
/// # Errors
/// If something that all of it needs is missing.
pub fn run(options: &Options) -> Result<bool> {
    if options.list {
        for p in PROGRAMS {
            println!("{:12} {:28} {:>9} iterations", p.name, p.class.title(), p.native);
        }
        return Ok(true);
    }
    ensure!(options.rounds > 0, "--rounds must be at least 1");
    ensure!(options.cpus.iter().all(|n| (1..=254).contains(n)), "--cpus takes numbers from 1 to 254");
    for name in &options.only {
        ensure!(
            name == "boot" || PROGRAMS.iter().any(|p| p.name == name),
            "no program is called {name:?}: --list names them"
        );
    }
    let ringer = match &options.ringer {
        Some(file) => file.clone(),
        None => build_ringer()?,
    };
    let kit = kit::kit()?;
    if options.prepare {
        prepare(&kit, &ringer, options);
        return Ok(true);
    }
    let results = Measurement { options, kit: &kit, ringer: &ringer }.all(&sides(options))?;
    println!("{}", table::text(&results));
    if options.write {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/performance.md");
        let text = markdown::page(&results, &host::describe(), options.rounds, options.cpu_time);
        std::fs::write(&page, text).with_context(|| format!("cannot write {}", page.display()))?;
    }
    Ok(results.failures().is_empty())
}

fn sides(options: &Options) -> Vec<Side> {
    let mut sides = Vec::new();
    if !options.no_native {
        sides.push(Side::Native);
    }
    sides.extend(options.engines.iter().filter(|e| !e.is_empty()).cloned().map(Side::Ringer));
    if !options.no_qemu {
        if side::has_qemu() {
            sides.push(Side::Qemu);
        } else {
            eprintln!("xtask: QEMU is not installed, so it is left out: apt-get install qemu-system-x86");
        }
    }
    sides
}

/// The programs to run with this many processors.
fn chosen(options: &Options, cpus: u32) -> Vec<&'static Program> {
    let named = |p: &Program| options.only.iter().any(|o| o == p.name);
    PROGRAMS
        .iter()
        .filter(|p| {
            if options.only.is_empty() {
                cpus == 1 || p.smp
            } else {
                named(p) && (cpus == 1 || p.smp || options.cpus == [cpus])
            }
        })
        .collect()
}

/// Builds this workspace's command, beside this program.
///
/// # Errors
/// If cargo cannot.
pub fn build_ringer() -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")))
        .args(["build", "--release", "--quiet", "--package", "ringer"])
        .status()
        .context("cannot start cargo")?;
    ensure!(status.success(), "Ringer cannot be built");
    let own = std::env::current_exe().context("cannot find this program's file")?;
    let Some(target) = own.parent().and_then(Path::parent) else { bail!("this program stands in no folder") };
    Ok(target.join("release/ringer"))
}

/// Prints how to run one program by hand.
fn prepare(kit: &Kit, ringer: &Path, options: &Options) {
    let list = options.only.first().map_or("syscall", String::as_str);
    let n = PROGRAMS.iter().find(|p| p.name == list).map_or(1, |p| p.emulated);
    let list = format!("{list}:{n}");
    for side in sides(options) {
        let c = side::command(&side, kit, ringer, &kit.initrd, options.cpus[0], Some(&list));
        let words: Vec<_> =
            [c.get_program()].into_iter().chain(c.get_args()).map(|w| quoted(&w.to_string_lossy())).collect();
        println!("{}", words.join(" "));
    }
    println!("(without bench=... on the kernel's command line, the guest gives a shell)");
}

fn quoted(word: &str) -> String {
    if word.contains(|c: char| c.is_whitespace()) { format!("'{word}'") } else { word.to_owned() }
}
