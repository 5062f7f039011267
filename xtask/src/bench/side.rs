//! Running a list of programs on one side: the host, Ringer, or QEMU.

use super::catalog::Side;
use super::kit::Kit;
use super::line::{Line, Outcome, parse};
use super::memory::Peak;
use anyhow::{Context, Result};
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

/// RAM of the guests.
pub const MEMORY_MIB: u64 = 1024;
/// A side that says nothing for so long hangs. The driver gives a program 300 s.
const SILENCE: Duration = Duration::from_secs(330);
/// As Ringer's own guests, so that a kernel that panics ends.
const CMDLINE: &str = "console=ttyS0,115200 loglevel=3 panic=-1";
/// QEMU's program.
const QEMU: &str = "qemu-system-x86_64";

/// Whether QEMU is installed.
pub fn has_qemu() -> bool {
    let version = Command::new(QEMU).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    version.is_ok_and(|s| s.success())
}

/// How a run went.
#[derive(Debug, Default)]
pub struct Report {
    /// Outcomes, in order.
    pub outcomes: Vec<(String, Outcome)>,
    /// From the start of the process to the first line of userspace.
    pub boot: Option<Duration>,
    /// Most memory that the process held beside guest RAM.
    pub peak: Option<u64>,
}

/// The command that runs the programs of `list` (NAME:ITERATIONS,...) in the kit on a side.
pub fn command(
    side: &Side,
    kit: &Kit,
    ringer: &Path,
    initrd: &Path,
    cpus: u32,
    list: Option<&str>,
) -> Command {
    let cmdline = match list {
        Some(list) => format!("{CMDLINE} bench={list}"),
        None => CMDLINE.to_owned(),
    };
    match side {
        Side::Native => {
            let mut c = Command::new(kit.driver());
            c.args(["--cpus", &cpus.to_string(), "--root"]).arg(&kit.root).args(list);
            c
        }
        Side::Ringer(engine) => {
            let mut c = Command::new(ringer);
            c.args(["run", "--engine", engine, "--cpus", &cpus.to_string()]);
            c.args(["--memory", &format!("{MEMORY_MIB}M"), "--kernel"]).arg(&kit.kernel);
            c.arg("--initrd").arg(initrd).args(["--cmdline", &cmdline]);
            c
        }
        Side::Qemu => {
            let mut c = Command::new(QEMU);
            c.args(["-accel", "tcg", "-machine", "q35", "-cpu", "max", "-smp", &cpus.to_string()]);
            c.args(["-m", &MEMORY_MIB.to_string(), "-nodefaults", "-display", "none", "-serial", "stdio"]);
            c.args(["-no-reboot", "-kernel"]).arg(&kit.kernel);
            c.arg("-initrd").arg(initrd).args(["-append", &cmdline]);
            c
        }
    }
}

/// Runs programs to the end. A program that takes the machine down with it has failed; those after it run in another
/// machine. Where no machine comes up, the first program has failed and the rest are left out.
///
/// # Errors
/// If a process cannot be started.
pub fn run(side: &Side, items: &[(String, u64)], mut make: impl FnMut(&str) -> Command) -> Result<Report> {
    let mut all = Report::default();
    let mut left: VecDeque<_> = items.iter().cloned().collect();
    while !left.is_empty() {
        let list: Vec<_> = left.iter().map(|(name, n)| format!("{name}:{n}")).collect();
        let (part, why) = once(side, make(&list.join(",")))?;
        let up = *side == Side::Native || part.boot.is_some();
        all.boot = all.boot.or(part.boot);
        all.peak = all.peak.max(part.peak);
        for (name, outcome) in part.outcomes {
            left.retain(|(n, _)| *n != name);
            all.outcomes.push((name, outcome));
        }
        if let Some((name, _)) = left.pop_front() {
            let why = why.unwrap_or_else(|| "it did not report".to_owned());
            all.outcomes.push((name, Outcome::Failed(why)));
        }
        if !up {
            break;
        }
    }
    Ok(all)
}

/// Runs one process until it ends; what it reported, and if it did not come to the end of its list, why.
///
/// # Errors
/// If it cannot be started.
pub fn once(side: &Side, mut command: Command) -> Result<(Report, Option<String>)> {
    let name = PathBuf::from(command.get_program());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let began = Instant::now();
    let mut child = command.spawn().with_context(|| format!("cannot start {}", name.display()))?;
    let lines = read_lines(&mut child);
    let errors = child.stderr.take().map(|mut e| {
        thread::spawn(move || {
            let mut text = Vec::new();
            let _read = e.read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        })
    });
    let mut report = Report::default();
    let mut peak = Peak::new(child.id(), MEMORY_MIB << 20);
    let mut heard = Instant::now();
    let (mut ended, mut hangs, mut last) = (false, false, String::new());
    loop {
        match lines.recv_timeout(Duration::from_millis(250)) {
            Ok((at, line)) => {
                heard = Instant::now();
                match parse(&line) {
                    Line::Up => report.boot = Some(at - began),
                    Line::End => ended = true,
                    Line::Program(name, outcome) => report.outcomes.push((name, outcome)),
                    Line::Other if line.trim().is_empty() => {}
                    Line::Other => line.trim().clone_into(&mut last),
                }
            }
            Err(RecvTimeoutError::Timeout) if heard.elapsed() > SILENCE => {
                hangs = true;
                break;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        peak.sample();
    }
    if hangs {
        let _gone = child.kill();
    }
    report.peak = peak.beside_ram();
    let status = child.wait().context("cannot wait for a process")?;
    let said = errors.and_then(|e| e.join().ok()).unwrap_or_default();
    // A native run ends with 1 if a program failed, which its line has said.
    let complete = ended || *side == Side::Native && status.code().is_some_and(|c| c <= 1);
    let why = (!complete).then(|| match said.trim().lines().last() {
        _ if hangs => format!("nothing came for {} s", SILENCE.as_secs()),
        Some(words) => format!("{}: {words}", name.display()),
        None => format!("{} ended with {status} {last}", name.display()),
    });
    Ok((report, why))
}

fn read_lines(child: &mut Child) -> mpsc::Receiver<(Instant, String)> {
    let (tx, rx) = mpsc::channel();
    if let Some(out) = child.stdout.take() {
        thread::spawn(move || {
            let mut out = BufReader::new(out);
            let mut line = Vec::new();
            while matches!(out.read_until(b'\n', &mut line), Ok(n) if n > 0) {
                if tx.send((Instant::now(), String::from_utf8_lossy(&line).into_owned())).is_err() {
                    return;
                }
                line.clear();
            }
        });
    }
    rx
}
