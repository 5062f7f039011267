//! A machine that is handed from engine to engine while Debian's kernel boots in it and works.

use crate::kernels::{INSIDE, MEMORY_MIB, judge, now_s};
use crate::support::{LIMIT, Started, guest, note, output, quick, ringer, run};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How often, unless `RINGER_HANDOVERS` says.
const TIMES: u32 = 40;

fn times() -> u32 {
    std::env::var("RINGER_HANDOVERS").ok().and_then(|n| n.parse().ok()).unwrap_or(TIMES)
}

/// xorshift64.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// Hands the machine over `times` times, at random moments, last to the last of `engines`: the faster.
fn hand_over(socket: &Path, times: u32, engines: &[&str]) {
    let began = Instant::now();
    let stream = loop {
        match UnixStream::connect(socket) {
            Ok(s) => break s,
            Err(e) => assert!(began.elapsed() < LIMIT, "{}: {e}", socket.display()),
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let seed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64 | 1;
    let mut rng = Rng(seed);
    // A few seconds in all, or as many as a boot takes.
    let pause = (16_000 / u64::from(times)).clamp(50, 1000);
    let (mut to, mut from) = (stream.try_clone().unwrap(), BufReader::new(stream));
    let mut longest = Duration::ZERO;
    for n in 0..times {
        std::thread::sleep(Duration::from_millis(rng.below(pause)));
        let engine = engines[n as usize % engines.len()];
        let asked = Instant::now();
        writeln!(to, "{{\"do\":\"engine\",\"engine\":\"{engine}\"}}").unwrap();
        let mut answer = String::new();
        from.read_line(&mut answer).unwrap();
        longest = longest.max(asked.elapsed());
        let wanted = format!("\"engine\":\"{engine}\"");
        assert!(answer.starts_with("{\"ok\"") && answer.contains(&wanted), "after {n}: {answer:?}");
    }
    note(&format!("handed over {times} times, in {longest:?} at most (seed {seed})"));
}

/// Boots Debian's cloud kernel, hands it over all the while, and looks at it from inside.
fn handed_over(cpus: usize, times: u32, engines: &[&str]) {
    if guest("cloud").is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let before = now_s();
    let name = format!("hand-{cpus}");
    let mut command: Command = run(["--engine", "interpreter", "--guest", "cloud", "--name", &name]);
    command.args(["--cpus", &cpus.to_string(), "--memory", &format!("{MEMORY_MIB}M")]);
    // It looks at its log when standard input ends, which is after the last time.
    let script = INSIDE.replace("section log;", "cat >/dev/null\nsection log;");
    assert_ne!(script, INSIDE);
    command.args(["--", "sh", "-c", &script]).env("XDG_RUNTIME_DIR", folder.path()).stdin(Stdio::piped());
    let mut started = Started::new(command);
    let stdin = started.child.0.stdin.take();
    hand_over(&folder.path().join("ringer").join(format!("{name}.sock")), times, engines);
    drop(stdin);
    judge(started.end(), cpus, "-cloud-amd64", before);
    let left = ringer().arg("ps").env("XDG_RUNTIME_DIR", folder.path()).output().unwrap();
    assert_eq!(left.stdout.iter().filter(|b| **b == b'\n').count(), 1, "its socket is gone");
}

#[test]
fn interpreter_and_translator_2() {
    handed_over(2, times(), &["interpreter", "translator"]);
}

#[test]
fn interpreter_and_translator_1() {
    handed_over(1, times() / 2, &["interpreter", "translator"]);
}

/// Ringer's own guests honour the power button: their init ends all in order.
#[test]
fn stop_shuts_a_guest_down() {
    if guest("cloud").is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut command = quick(["--name", "web"]);
    command.env("XDG_RUNTIME_DIR", folder.path()).stdin(Stdio::null());
    let started = Started::new(command);
    let began = Instant::now();
    while !folder.path().join("ringer/web.sock").exists() {
        assert!(began.elapsed() < LIMIT);
        std::thread::sleep(Duration::from_millis(10));
    }
    // It is still booting: the button is pressed again and again.
    let mut stop = ringer();
    stop.args(["stop", "web", "--timeout", &LIMIT.as_secs().to_string()]);
    stop.env("XDG_RUNTIME_DIR", folder.path());
    let stopped = output(stop);
    assert_eq!(stopped.ended(0).error(), "");
    let text = started.end().ended(0).text();
    assert!(text.contains("Requesting system poweroff"), "{text}");
}
