//! Runs the fuzz targets without libFuzzer: `cargo run -p ringer-fuzz -- --seconds N [TARGET | TARGET=FILE]...`

use ringer_fuzz::mutate;
use ringer_fuzz::targets::{ALL, Body};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

const USAGE: &str = "usage: ringer-fuzz [--seconds N] [--seed N] [TARGET | TARGET=FILE]...
       ringer-fuzz --corpus FOLDER TARGET...
Runs each target (all, if none is named) for N seconds in turn, or on the input in FILE; or writes what the mutator
starts from into FOLDER, for libFuzzer.
The input under way is kept in fuzz-TARGET.input, for when a target does not come back.";

fn find(name: &str) -> Option<(&'static str, Body)> {
    ALL.iter().copied().find(|t| t.0 == name)
}

fn main() -> ExitCode {
    let (mut seconds, mut seed, mut chosen) = (10u64, 1u64, Vec::new());
    let mut corpus = None;
    let mut args = std::env::args().skip(1);
    while let Some(a) = args.next() {
        let number = |v: Option<String>| v.and_then(|v| v.parse().ok());
        match a.as_str() {
            "--seconds" | "--seed" => {
                let Some(n) = number(args.next()) else { return usage(&format!("{a} takes a number")) };
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
                if let Err(e) = run(name, body, seed, Duration::from_secs(seconds)) {
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

fn run(name: &str, body: Body, seed: u64, time: Duration) -> std::io::Result<()> {
    let keep = format!("fuzz-{name}.input");
    // Kept open: closing a truncated file makes some file systems write it out.
    let file = File::create(&keep)?;
    let n = mutate::run(name, body, seed, time, |input| {
        let len = input.len() as u64;
        file.write_all_at(input, 0).and_then(|()| file.set_len(len)).expect("room for an input");
    });
    println!("{name}: {n} inputs");
    std::fs::remove_file(&keep)
}

fn usage(why: &str) -> ExitCode {
    eprintln!("{why}\n{USAGE}\nTargets: {}", ALL.iter().map(|t| t.0).collect::<Vec<_>>().join(" "));
    ExitCode::from(2)
}
