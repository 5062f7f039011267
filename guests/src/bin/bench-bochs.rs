//! Runs the same boot sectors under Ringer's interpreter and under Debian's Bochs, and prints guest instructions per
//! second of both and their ratio.
//!
//! A figure is the median wall time of whole processes, less the median of the same image with one turn of its loop;
//! the runs of all images and both emulators are interleaved, so that a busy host hits them alike.

use anyhow::{Context, Result, bail, ensure};
use ringer_guests::PASSED;
use ringer_guests::bench::{LOOPS, Loop};
use ringer_vmm::{Machine, Outcome, SerialSides, VmSpec, choose};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// How the program calls itself to run one image under Ringer.
const RUN: &str = "--run-image";
const ROUNDS: usize = 5;
/// Bytes on a 1.44 MB floppy disk.
const FLOPPY: usize = 1_474_560;

fn main() -> Result<ExitCode> {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    match args.as_slice() {
        [flag, image] if flag == RUN => run_image(Path::new(image)),
        [] => compare(),
        _ => bail!("bench-bochs takes no arguments"),
    }
}

/// Runs an image in this process.
fn run_image(image: &Path) -> Result<ExitCode> {
    let mut spec = VmSpec::new(image.to_owned());
    spec.memory = 32 << 20;
    let engine = choose("interpreter")?.engine;
    let outputs = [None, None, None, None];
    let mut machine = Machine::new(spec, engine.as_ref(), SerialSides { outputs }, Instant::now())?;
    match machine.run()? {
        Outcome::DebugExit(PASSED) => Ok(ExitCode::SUCCESS),
        other => bail!("the image ended with {other:?}"),
    }
}

/// Wall times of one loop.
struct Times {
    /// Of the full image, a round each: Ringer, Bochs.
    full: [Vec<Duration>; 2],
    one: [Vec<Duration>; 2],
}

fn compare() -> Result<ExitCode> {
    let Some(rom) = bochs_roms() else {
        eprintln!(
            "bench-bochs: Bochs or its BIOS is not installed; apt-get install bochs bochs-term bochsbios"
        );
        return Ok(ExitCode::FAILURE);
    };
    let dir = tempfile::tempdir().context("cannot make a temporary folder")?;
    let images: Vec<_> = LOOPS.iter().map(|l| Images::write(dir.path(), l, &rom)).collect::<Result<_>>()?;
    let mut times: Vec<_> =
        LOOPS.iter().map(|_| Times { full: Default::default(), one: Default::default() }).collect();
    for _ in 0..ROUNDS {
        for (i, t) in images.iter().zip(&mut times) {
            for (files, into) in [(&i.full, &mut t.full), (&i.one, &mut t.one)] {
                into[0].push(ringer(&files.image)?);
                into[1].push(bochs(&files.config)?);
            }
        }
    }
    println!(
        "{:8} {:>14} {:>22} {:>22} {:>7}",
        "loop", "instructions", "Ringer (per second)", "Bochs (per second)", "ratio"
    );
    for (l, t) in LOOPS.iter().zip(&mut times) {
        let count: f64 = l.instructions.parse().context("build.rs gives a number")?;
        let mut rate = [0.0; 2];
        for (n, r) in rate.iter_mut().enumerate() {
            let took = median(&mut t.full[n]).saturating_sub(median(&mut t.one[n]));
            ensure!(!took.is_zero(), "the {} loop took no time; the host is too busy to measure on", l.name);
            *r = count / took.as_secs_f64();
        }
        println!(
            "{:8} {:>14} {:>22.3e} {:>22.3e} {:>7.2}",
            l.name,
            l.instructions,
            rate[0],
            rate[1],
            rate[0] / rate[1]
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// The files of one image.
struct Files {
    image: PathBuf,
    config: PathBuf,
}

struct Images {
    full: Files,
    one: Files,
}

impl Images {
    fn write(dir: &Path, l: &Loop, rom: &Path) -> Result<Images> {
        let write = |part: &str, sector: &[u8]| -> Result<Files> {
            let file = |kind: &str| dir.join(format!("{}-{part}.{kind}", l.name));
            let (image, floppy, config) = (file("bin"), file("floppy"), file("bochsrc"));
            let mut disk = sector.to_vec();
            disk.resize(FLOPPY, 0);
            let text = format!(
                "megs: 32\nromimage: file={rom}/BIOS-bochs-latest\nvgaromimage: file={rom}/VGABIOS-lgpl-latest\n\
                 boot: floppy\nfloppya: 1_44={}, status=inserted\ncpu: model=corei7_haswell_4770, ips=50000000\n\
                 clock: sync=none\ndisplay_library: term\nplugin_ctrl: speaker=0\n\
                 sound: waveoutdrv=dummy, waveindrv=dummy, midioutdrv=dummy\nlog: /dev/null\npanic: action=fatal\nerror: action=ignore\n\
                 info: action=ignore\ndebug: action=ignore\n",
                floppy.display(),
                rom = rom.display(),
            );
            for (path, bytes) in [(&image, sector), (&floppy, &disk), (&config, text.as_bytes())] {
                std::fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
            }
            Ok(Files { image, config })
        };
        Ok(Images { full: write("full", l.full)?, one: write("one", l.one)? })
    }
}

/// Where Debian's ROM images are, if Bochs is installed.
fn bochs_roms() -> Option<PathBuf> {
    let tried = Command::new("bochs").arg("--help").stdout(Stdio::null()).stderr(Stdio::null()).status();
    let found = !matches!(tried, Err(e) if e.kind() == ErrorKind::NotFound);
    let rom = PathBuf::from("/usr/share/bochs");
    (found && rom.join("BIOS-bochs-latest").exists()).then_some(rom)
}

fn ringer(image: &Path) -> Result<Duration> {
    let own = std::env::current_exe().context("cannot find this program's file")?;
    let began = Instant::now();
    let status = Command::new(own).arg(RUN).arg(image).status().context("cannot start Ringer")?;
    ensure!(status.success(), "Ringer ended with {status}");
    Ok(began.elapsed())
}

fn bochs(config: &Path) -> Result<Duration> {
    // Debian's Bochs has its debugger built in, which waits for a command.
    let commands = config.with_extension("rc");
    std::fs::write(&commands, "c\nq\n").context("cannot write Bochs's commands")?;
    let began = Instant::now();
    let status = Command::new("bochs")
        .arg("-q")
        .arg("-f")
        .arg(config)
        .arg("-rc")
        .arg(commands)
        // For its text display, which writes to nowhere.
        .env("TERM", "xterm")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .context("cannot start Bochs")?;
    // What it calls the exit status of a shutdown by the port, and of a user's too.
    ensure!(status.code() == Some(1), "Bochs ended with {status}; is bochs-term installed?");
    Ok(began.elapsed())
}
