//! Debian's kernels as they are, with one and two processors, under each software engine, looked at from inside.

use crate::log::complains;
use crate::support::{Guard, LIMIT, Ran, guest, output, run};
use std::collections::BTreeMap;
use std::io::Read;
use std::process::Stdio;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

pub const MEMORY_MIB: u64 = 600;
pub const INSIDE: &str = include_str!("inside.sh");

struct Report(BTreeMap<String, Vec<String>>);

impl Report {
    fn new(text: &str) -> Report {
        let mut sections: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut name = String::new();
        for line in text.lines() {
            match line.strip_prefix("== ") {
                Some(n) => name = n.to_owned(),
                None => sections.entry(name.clone()).or_default().push(line.to_owned()),
            }
        }
        assert_eq!(name, "end", "{text}");
        Report(sections)
    }

    #[track_caller]
    fn lines(&self, section: &str) -> &[String] {
        self.0.get(section).unwrap_or_else(|| panic!("nothing in section {section}"))
    }

    /// The first line of a section.
    #[track_caller]
    fn one(&self, section: &str) -> &str {
        &self.lines(section)[0]
    }

    #[track_caller]
    fn is(&self, section: &str, lines: &[&str]) {
        assert_eq!(self.lines(section), lines, "section {section}");
    }

    /// Local timer interrupts of each processor.
    fn ticks(&self, section: &str) -> Vec<u64> {
        self.one(section).split_whitespace().filter_map(|w| w.parse().ok()).collect()
    }
}

pub fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn kernel(engine: &str, name: &'static str, cpus: usize, release: &str) {
    if guest(name).is_none() {
        return;
    }
    let before = now_s();
    let memory = format!("{MEMORY_MIB}M");
    let mut command = run(["--engine", engine, "--guest", name, "--cpus", &cpus.to_string()]);
    command.args(["--memory", &memory, "--", "sh", "-c", INSIDE]);
    let ran = output(command);
    judge(ran, cpus, release, before);
}

/// Judges what [`INSIDE`] said in a machine that was started at `before`.
pub fn judge(ran: Ran, cpus: usize, release: &str, before: u64) {
    let after = now_s();
    let ran = ran.ended(0);
    assert_eq!(ran.error(), "");
    let r = Report::new(&ran.text());

    r.is("cpus", &[&cpus.to_string()]);
    assert!(r.one("release").ends_with(release), "{}", r.one("release"));
    for section in ["date", "date-after"] {
        let guest: u64 = r.one(section).parse().unwrap();
        assert!((before - 2..=after + 2).contains(&guest), "{section}: {guest} is not in {before}..{after}");
    }
    memory_is_right(&r);
    let up: Vec<f64> = r.one("sleep").split(' ').map(|n| n.parse().unwrap()).collect();
    assert!(up[1] - up[0] > 0.98, "{up:?}");
    r.is("forks", &["100"]);
    r.is("signals", &["139", "143"]);
    r.is(
        "pipes",
        &["f086f3755f2c32d21e66cf1ace39d27cda75593d2e19d9ae3f7a534265fdbda4  -", "200010000 66670000"],
    );
    r.is("float", &["69042.46726444 0.33333333333333331"]);
    r.is("deflate", &["same"]);
    r.is("modules", &["dummy", "loop", "crc32c_intel", "sha256_ssse3", "aesni_intel"]);
    r.is("disk", &["same"]);
    processors_work(&r, cpus);
    if cpus > 1 {
        r.is("hotplug", &["1", "2", "1", "2"]);
    }
    log_is_clean(r.lines("log"));
}

fn memory_is_right(r: &Report) {
    let kib = |text: &str| text.trim_end_matches("K available").parse::<u64>().unwrap();
    let whole = kib(r.one("memory").rsplit('/').next().unwrap());
    let asked = MEMORY_MIB << 10;
    // All but the legacy hole and the tables under 1 MiB.
    assert!((asked - 1024..=asked).contains(&whole), "{whole} of {asked} KiB");
    let total: u64 = r.one("free").split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!((asked / 4 * 3..asked).contains(&total), "{total} of {asked} KiB");
}

fn processors_work(r: &Report, cpus: usize) {
    let load = r.lines("load");
    assert_eq!(load.iter().filter(|l| *l == "done").count(), cpus, "{load:?}");
    for cpu in load.iter().filter(|l| l.starts_with("cpu")) {
        let ticks: u64 = cpu.split(' ').skip(1).take(3).map(|n| n.parse::<u64>().unwrap()).sum();
        assert!(ticks > 0, "{load:?}");
    }
    let (t0, t1) = (r.ticks("ticks-before"), r.ticks("ticks-after"));
    assert_eq!((t0.len(), t1.len()), (cpus, cpus));
    assert!(t0.iter().zip(&t1).all(|(a, b)| a < b), "{t0:?} {t1:?}");
    // The line that all this came by.
    let line = r.lines("lines").iter().find(|l| l.contains("ttyS1")).unwrap();
    assert!(line.split_whitespace().filter_map(|w| w.parse::<u64>().ok()).sum::<u64>() > 0, "{line}");
}

fn log_is_clean(log: &[String]) {
    assert!(log.len() > 100);
    for line in log {
        assert!(!complains(line), "{line}\nin\n{}", log.join("\n"));
    }
}

/// Boots the installer until its first dialog stands on the serial line.
fn installer(engine: &str, cpus: &str) {
    if guest("installer").is_none() {
        return;
    }
    // A terminal that its terminfo knows, and no second copy of the dialogs on the screen that is not there.
    let cmdline = "console=ttyS0 TERM=vt102";
    let mut command = run(["--engine", engine, "--guest", "installer", "--cpus", cpus]);
    command.args(["--memory", "1G", "--cmdline", cmdline]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = Guard(command.spawn().unwrap());
    let mut out = child.0.stdout.take().unwrap();
    let (said, hears) = channel();
    std::thread::spawn(move || {
        let mut buf = [0; 4096];
        while let Ok(n @ 1..) = out.read(&mut buf) {
            if said.send(buf[..n].to_vec()).is_err() {
                return;
            }
        }
    });
    let (mut screen, began) = (Vec::new(), Instant::now());
    loop {
        let text = String::from_utf8_lossy(&screen);
        if ["Select a language", "Choose the language", "English"].iter().all(|t| text.contains(t)) {
            return;
        }
        match hears.recv_timeout(LIMIT.saturating_sub(began.elapsed())) {
            Ok(more) => screen.extend(more),
            Err(RecvTimeoutError::Timeout) => panic!("no dialog:\n{text}"),
            Err(RecvTimeoutError::Disconnected) => panic!("it ended:\n{text}"),
        }
    }
}

macro_rules! tests {
    ($($engine:ident)*) => {
        $(mod $engine {
            use super::{installer, kernel};

            const ENGINE: &str = stringify!($engine);

            #[test]
            fn cloud_1() {
                kernel(ENGINE, "cloud", 1, "-cloud-amd64");
            }

            #[test]
            fn cloud_2() {
                kernel(ENGINE, "cloud", 2, "-cloud-amd64");
            }

            #[test]
            fn amd64_1() {
                kernel(ENGINE, "amd64", 1, "-amd64");
            }

            #[test]
            fn amd64_2() {
                kernel(ENGINE, "amd64", 2, "-amd64");
            }

            #[test]
            fn rt_1() {
                kernel(ENGINE, "rt", 1, "-rt-amd64");
            }

            #[test]
            fn rt_2() {
                kernel(ENGINE, "rt", 2, "-rt-amd64");
            }

            #[test]
            fn installer_1() {
                installer(ENGINE, "1");
            }

            #[test]
            fn installer_2() {
                installer(ENGINE, "2");
            }
        })*
    };
}

tests! { interpreter translator }
