//! Runs the fuzz targets without libFuzzer: `cargo run -p ringer-fuzz -- --seconds N [TARGET | TARGET=FILE]...`

use ringer_fuzz::mutate;
use ringer_fuzz::targets::{ALL, Body};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

const USAGE: &str = "usage: ringer-fuzz [--seconds N | --cpu-seconds N] [--seed N] [TARGET | TARGET=FILE]...
       ringer-fuzz --corpus FOLDER TARGET...
Runs each target (all, if none is named) for N seconds in turn (of processor time, if --cpu-seconds says so), or on the input in FILE; or writes what the mutator
starts from into FOLDER, for libFuzzer.
The input under way is kept in fuzz-TARGET.input, for when a target does not come back.";

fn find(name: &str) -> Option<(&'static str, Body)> {
    ALL.iter().copied().find(|t| t.0 == name)
}

fn main() -> ExitCode {
    let (mut seconds, mut seed, mut chosen) = (10u64, 1u64, Vec::new());
    let (mut corpus, mut by_cpu) = (None, false);
    let mut args = std::env::args().skip(1);
    while let Some(a) = args.next() {
        let number = |v: Option<String>| v.and_then(|v| v.parse().ok());
        match a.as_str() {
            "--seconds" | "--cpu-seconds" | "--seed" => {
                let Some(n) = number(args.next()) else { return usage(&format!("{a} takes a number")) };
                by_cpu |= a == "--cpu-seconds";
                *(if a == "--seed" { &mut seed } else { &mut seconds }) = n;
            }
            "--corpus" => {
                let Some(folder) = args.next() else { return usage("--corpus takes a folder") };
                corpus = Some(PathBuf::from(folder));
            }
            name => {
                let (name, file) =
                    name.split_once('=').map_or((name, None), |(n, f)| (n, Some(f.to_owned())));
                let Some(t) = find(name) else { return usage(&format!("there is no target {name}")) };
                chosen.push((t, file));
            }
        }
    }
    if chosen.is_empty() {
        chosen = ALL.iter().map(|t| (*t, None)).collect();
    }
    for ((name, body), file) in chosen {
        if let Some(folder) = &corpus {
            if let Err(e) = write_seeds(folder, name) {
                return usage(&format!("{}: {e}", folder.display()));
            }
            continue;
        }
        match file {
            Some(file) => match std::fs::read(&file) {
                Ok(input) => body(&input),
                Err(e) => return usage(&format!("{file}: {e}")),
            },
            None => {
                if let Err(e) = run(name, body, seed, Duration::from_secs(seconds), by_cpu) {
                    return usage(&format!("fuzz-{name}.input: {e}"));
                }
            }
        }
    }
    ExitCode::SUCCESS
}

fn write_seeds(folder: &Path, name: &str) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    for (n, seed) in mutate::seeds(name).iter().enumerate() {
        std::fs::write(folder.join(format!("{name}-{n}")), seed)?;
    }
    Ok(())
}

fn run(name: &str, body: Body, seed: u64, time: Duration, by_cpu: bool) -> std::io::Result<()> {
    let keep = format!("fuzz-{name}.input");
    // Kept open: closing a truncated file makes some file systems write it out.
    let file = File::create(&keep)?;
    let before = |input: &[u8]| {
        let len = input.len() as u64;
        file.write_all_at(input, 0).and_then(|()| file.set_len(len)).expect("room for an input");
    };
    let (start, first) = (Instant::now(), processor_time());
    let mut asked = 0u32;
    let done = || {
        // Asking the kernel takes longer than some inputs.
        asked = asked.wrapping_add(1);
        let over = |passed| passed >= time;
        if by_cpu {
            asked.is_multiple_of(64) && over(processor_time() - first)
        } else {
            over(start.elapsed())
        }
    };
    let n = mutate::run_until(name, body, seed, done, before);
    let (used, peak) = (processor_time() - first, peak_memory());
    println!("{name}: {n} inputs, {:.1} s of processor time, peak {} MiB", used.as_secs_f64(), peak >> 20);
    assert!(peak < MOST_MEMORY, "{name} takes memory without bound");
    std::fs::remove_file(&keep)
}

/// What this process may ever have in memory: some hundred MiB for a few machines, and room.
const MOST_MEMORY: u64 = 2 << 30;

/// Processor time of this process, in the kernel's hundredths of a second (proc(5), /proc/pid/stat, utime and stime).
fn processor_time() -> Duration {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = text.rsplit(')').next().unwrap_or_default().split_whitespace();
    Duration::from_millis(fields.skip(11).take(2).filter_map(|f| f.parse::<u64>().ok()).sum::<u64>() * 10)
}

/// The most bytes that this process has had in memory (proc(5), VmHWM).
fn peak_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) << 10
}

fn usage(why: &str) -> ExitCode {
    eprintln!("{why}\n{USAGE}\nTargets: {}", ALL.iter().map(|t| t.0).collect::<Vec<_>>().join(" "));
    ExitCode::from(2)
}
