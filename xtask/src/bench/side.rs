//! Running programs on one side: the host, Ringer, or QEMU.

use super::catalog::Side;
use super::kit::Kit;
use super::line::{Line, Outcome, parse};
use super::memory::Peak;
use anyhow::{Context, Result};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// RAM of the guests.
pub const MEMORY_MIB: u64 = 1024;
/// A side that says nothing for so long hangs. The driver gives a program 300 s.
const SILENCE: Duration = Duration::from_secs(330);
/// How long a machine may take to power off.
const PATIENCE: Duration = Duration::from_secs(20);
/// As Ringer's own guests, so that a kernel that panics ends.
const CMDLINE: &str = "console=ttyS0,115200 loglevel=3 panic=-1";
/// QEMU's program.
const QEMU: &str = "qemu-system-x86_64";

/// Whether QEMU is installed.
pub fn has_qemu() -> bool {
    let version = Command::new(QEMU).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    version.is_ok_and(|s| s.success())
}

/// The command that runs the programs of `list` (NAME:ITERATIONS,..., or "-" for what it is told) in the kit on a side.
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

/// A process that runs programs one by one as it is told: the host's driver, or a virtual machine.
#[derive(Debug)]
pub struct Session {
    name: String,
    began: Instant,
    child: Child,
    input: Option<ChildStdin>,
    lines: mpsc::Receiver<(Instant, String)>,
    errors: Option<JoinHandle<String>>,
    peak: Peak,
    /// The last words that were not of the driver.
    words: String,
}

impl Session {
    /// Starts it.
    ///
    /// # Errors
    /// If there is no such program.
    pub fn start(mut command: Command) -> Result<Session> {
        let name = PathBuf::from(command.get_program());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let began = Instant::now();
        let mut child = command.spawn().with_context(|| format!("cannot start {}", name.display()))?;
        Ok(Session {
            name: name.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            began,
            input: child.stdin.take(),
            lines: read_lines(&mut child),
            errors: child.stderr.take().map(read_all),
            peak: Peak::new(child.id(), MEMORY_MIB << 20),
            words: String::new(),
            child,
        })
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the first line of userspace; the time since the process started.
    ///
    /// # Errors
    /// The reason, if it does not come.
    pub fn boot(&mut self) -> Result<Duration, String> {
        loop {
            if let (at, Line::Up) = self.next()? {
                return Ok(at - self.began);
            }
        }
    }

    /// Waits until it takes orders.
    ///
    /// # Errors
    /// The reason, if it does not come to that.
    pub fn ready(&mut self) -> Result<(), String> {
        while self.next()?.1 != Line::Ready {}
        Ok(())
    }

    /// Runs one program. If the machine is gone after it, it has failed.
    ///
    /// # Errors
    /// The reason, if the machine is gone.
    pub fn run(&mut self, name: &str, iterations: u64) -> Result<Outcome, String> {
        self.say(&format!("{name}:{iterations}\n"));
        loop {
            if let (_, Line::Program(got, outcome)) = self.next()?
                && got == name
            {
                self.peak.sample();
                return Ok(outcome);
            }
        }
    }

    /// Ends it; the most memory that it held beside guest RAM.
    pub fn end(mut self) -> Option<u64> {
        self.say("end\n");
        let asked = Instant::now();
        while asked.elapsed() < PATIENCE && !matches!(self.child.try_wait(), Ok(Some(_))) {
            thread::sleep(Duration::from_millis(20));
        }
        self.peak.most()
    }

    fn say(&mut self, words: &str) {
        if let Some(input) = &mut self.input {
            // If it is gone, the next line will tell.
            let _gone = input.write_all(words.as_bytes()).and_then(|()| input.flush());
        }
    }

    fn next(&mut self) -> Result<(Instant, Line), String> {
        loop {
            match self.lines.recv_timeout(SILENCE) {
                Ok((at, line)) => match parse(&line) {
                    Line::Other if line.trim().is_empty() => {}
                    Line::Other => line.trim().clone_into(&mut self.words),
                    line => return Ok((at, line)),
                },
                Err(RecvTimeoutError::Timeout) => {
                    return Err(format!("nothing came from {} for {} s", self.name, SILENCE.as_secs()));
                }
                Err(RecvTimeoutError::Disconnected) => return Err(self.epitaph()),
            }
        }
    }

    /// Why it is gone.
    fn epitaph(&mut self) -> String {
        let status = self.child.wait().map_or_else(|e| e.to_string(), |s| s.to_string());
        let said = self.errors.take().and_then(|e| e.join().ok()).unwrap_or_default();
        let last = said.trim().lines().last().unwrap_or_default().to_owned();
        let words = [last, std::mem::take(&mut self.words)];
        let words: Vec<_> = words.iter().filter(|w| !w.is_empty()).map(String::as_str).collect();
        format!("{} ended with {status}: {}", self.name, words.join("; "))
    }
}

/// Nothing that was started outlives this program's interest in it.
impl Drop for Session {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            let _gone = self.child.kill().and_then(|()| self.child.wait());
        }
    }
}

fn read_all(mut from: impl Read + Send + 'static) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut text = Vec::new();
        let _read = from.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    })
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
