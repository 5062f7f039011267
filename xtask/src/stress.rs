//! `cargo xtask stress`: stress-ng, which checks what it does, in a guest with Debian's cloud kernel.

use crate::bench::build_ringer;
use crate::log::complains;
use crate::tree::Tree;
use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use clap::builder::PossibleValuesParser;
use ringer_image::debian::cpio::CpioWriter;
use ringer_image::debian::{Cache, GuestKind, Progress, guest, packages};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

/// apt's names.
const PACKAGES: &[&str] = &["stress-ng", "busybox-static"];
/// Kinds of work; of each there run as many as there are processors, all at once.
const CLASSES: &[&str] = &["cpu", "vm", "fork", "switch", "signal", "futex", "mmap"];
/// A kernel that panics resets by a triple fault, which ends the machine.
const CMDLINE: &str = "console=ttyS0,115200 loglevel=3 panic=-1 reboot=triple";
/// What the guest does.
const INIT: &str = include_str!("stress.sh");
/// Beyond the time asked for, to boot and to end, on a host that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(600);

/// What to run.
#[derive(Debug, Args)]
pub struct Options {
    /// How long, in seconds
    #[arg(long, default_value_t = 60, value_name = "N")]
    seconds: u64,
    /// Processors
    #[arg(long, default_value_t = 2, value_name = "N")]
    cpus: u32,
    /// Classes of work [default: all]
    #[arg(long, value_delimiter = ',', value_name = "CLASS", value_parser = PossibleValuesParser::new(CLASSES))]
    only: Vec<String>,
    /// Ringer's engine
    #[arg(long, default_value = "translator", value_name = "NAME")]
    engine: String,
}

/// Whether all went well.
///
/// # Errors
/// If something that it needs is missing, or the guest does not end.
pub fn run(options: &Options) -> Result<bool> {
    ensure!(options.seconds > 0, "--seconds must be at least 1");
    let ringer = build_ringer()?;
    let cache = Cache::of_user()?;
    let progress = Progress::stderr();
    let kernel = guest(&cache, GuestKind::Cloud, &progress)?.kernel;
    let initrd = initrd(&cache, &progress, options)?;
    let mut c = Command::new(ringer);
    c.args(["run", "--engine", &options.engine, "--cpus", &options.cpus.to_string()]);
    c.args(["--memory", "1G", "--cmdline", CMDLINE, "--kernel"]).arg(kernel);
    c.arg("--initrd").arg(initrd.path());
    let text = output(c, Duration::from_secs(options.seconds) + PATIENCE)?;
    let faults = judge(&text);
    for line in text.lines().filter(|l| !l.starts_with('<')) {
        println!("{line}");
    }
    for f in &faults {
        println!("bad: {f}");
    }
    Ok(faults.is_empty())
}

/// The guest's files, in a file that goes when the value goes.
fn initrd(cache: &Cache, progress: &Progress, options: &Options) -> Result<tempfile::NamedTempFile> {
    let mut t = Tree::default();
    let debs: Vec<PathBuf> = packages(cache, &cache.lock(progress)?, PACKAGES, progress)?;
    for deb in debs {
        t.unpack(&deb, wanted)?;
    }
    t.need("stress-ng", |n| n == "usr/bin/stress-ng")?;
    t.need("busybox", |n| n == "usr/bin/busybox")?;
    let mut stress = format!("stress-ng --verify --metrics-brief --timeout {}s", options.seconds);
    for class in CLASSES.iter().filter(|c| options.only.is_empty() || options.only.iter().any(|o| o == *c)) {
        stress += &format!(" --{class} {}", options.cpus);
    }
    stress += " --vm-bytes 32m --mmap-bytes 32m";
    t.file("init", true, INIT.replace("STRESS", &stress).into_bytes());
    // The kernel opens the console before /dev is mounted.
    let mut w = CpioWriter::new(Vec::new());
    w.dir("dev", 0o755)?;
    w.char_device("dev/console", 0o600, 5, 1)?;
    let mut file = tempfile::NamedTempFile::new().context("cannot make a file for the guest")?;
    file.write_all(&t.write_cpio(w.finish()?)?).context("cannot write the guest's files")?;
    Ok(file)
}

fn wanted(path: &str) -> bool {
    matches!(path, "usr/bin/stress-ng" | "usr/bin/busybox")
        || path.starts_with("usr/lib64/")
        || path
            .strip_prefix("usr/lib/x86_64-linux-gnu/")
            .is_some_and(|n| !n.contains('/') && n.contains(".so"))
}

/// What it says until it ends.
fn output(mut c: Command, limit: Duration) -> Result<String> {
    let mut child = c
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", c.get_program().display()))?;
    let Some(mut out) = child.stdout.take() else { bail!("its output is closed") };
    let (send, recv) = channel();
    let reader = thread::spawn(move || {
        let mut all = Vec::new();
        let read = std::io::copy(&mut out, &mut all);
        let _nobody_waits = send.send(());
        read.map(|_| all)
    });
    let late = recv.recv_timeout(limit) == Err(RecvTimeoutError::Timeout);
    if late {
        child.kill().context("cannot end the machine")?;
    }
    let status = child.wait()?;
    let Ok(all) = reader.join() else { bail!("the reader died") };
    let text = String::from_utf8_lossy(&all?).replace('\r', "");
    ensure!(!late, "the guest does not end; its last words:\n{}", last_words(&text));
    ensure!(
        status.success(),
        "the machine ended with {status}; the guest's last words:\n{}",
        last_words(&text)
    );
    Ok(text)
}

fn last_words(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

/// What is wrong with a run that said this.
fn judge(text: &str) -> Vec<String> {
    let mut bad = Vec::new();
    if !text.lines().any(|l| l == "stress: ended with 0") {
        bad.push("stress-ng did not end well".to_owned());
    }
    let log: Vec<_> = text.lines().filter(|l| l.starts_with('<')).collect();
    if log.len() < 100 {
        bad.push(format!("the kernel's log has only {} lines", log.len()));
    }
    bad.extend(log.into_iter().filter(|l| complains(l)).map(|l| format!("the kernel says {l}")));
    bad
}

#[cfg(test)]
mod tests {
    use super::judge;

    #[test]
    fn what_is_bad_is_seen() {
        let log = "<6>[    0.1] fine\n".repeat(100);
        let good = format!("stress-ng: info\nstress: ended with 0\n{log}");
        assert!(judge(&good).is_empty());
        assert_eq!(judge(&good.replace("with 0", "with 2")).len(), 1);
        assert_eq!(judge(&good.replace("<6>", "")).len(), 1);
        assert_eq!(judge(&format!("{good}<4>[ 1.0] it warns\n<6>[ 2.0] BUG: x\n")).len(), 2);
    }
}
