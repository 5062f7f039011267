//! Running Ringer, and the guests to run.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Only what hangs ever waits for this: many times what the longest test takes on a host that is busy with other things.
pub const LIMIT: Duration = Duration::from_secs(1200);
/// Ringer could not do what was asked.
pub const ERROR: i32 = 125;
/// The guest died or left before its command ended.
pub const GUEST_DIED: i32 = 126;

/// The program under test.
pub fn ringer() -> Command {
    Command::new(env!("CARGO_BIN_EXE_ringer"))
}

/// `ringer run`, with what follows.
pub fn run<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut c = ringer();
    c.arg("run").args(args);
    c
}

/// The same with a kernel that does not test its ciphers when it comes up: two thirds of the instructions of a boot. For what is
/// not about the kernel; where it is, its log says how these tests ended.
pub fn quick<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut c = run(["--cmdline", "cryptomgr.notests"]);
    c.args(args);
    c
}

/// A child that does not outlive its test.
pub struct Guard(pub Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _gone = self.0.wait();
    }
}

impl Guard {
    /// Waits for its end; the exit status, or 128 and the signal as a shell has it.
    #[track_caller]
    pub fn status(&mut self) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        let began = Instant::now();
        loop {
            if let Some(s) = self.0.try_wait().unwrap() {
                return s.code().unwrap_or_else(|| 128 + s.signal().unwrap_or_default());
            }
            assert!(began.elapsed() < LIMIT, "it does not end");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// What a run came to.
pub struct Ran {
    pub status: i32,
    pub out: Vec<u8>,
    /// Standard error without the line on which engine runs.
    pub err: Vec<u8>,
}

impl Ran {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }

    pub fn error(&self) -> String {
        String::from_utf8_lossy(&self.err).into_owned()
    }

    /// Panics with everything there is unless the status is `status`.
    #[track_caller]
    pub fn ended(self, status: i32) -> Ran {
        assert_eq!(
            self.status,
            status,
            "standard output:\n{}\nstandard error:\n{}",
            self.text(),
            self.error()
        );
        self
    }

    /// Ended with [`ERROR`], nothing on standard output, and one sentence of Ringer's that holds `words`.
    #[track_caller]
    pub fn refused(self, words: &[&str]) {
        let r = self.ended(ERROR);
        let err = r.error();
        assert!(r.out.is_empty());
        assert_eq!(err.lines().count(), 1, "{err}");
        assert!(err.starts_with("ringer: "), "{err}");
        for w in words {
            assert!(err.contains(w), "{err:?} lacks {w:?}");
        }
    }
}

fn collect(mut from: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut all = Vec::new();
        from.read_to_end(&mut all).unwrap();
        all
    })
}

/// Starts it with pipes for output and error.
pub struct Started {
    pub child: Guard,
    out: JoinHandle<Vec<u8>>,
    err: JoinHandle<Vec<u8>>,
}

impl Started {
    pub fn new(mut command: Command) -> Started {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Started::of(command.spawn().unwrap())
    }

    /// Collects what is left of the outputs.
    pub fn of(mut child: Child) -> Started {
        let out = child.stdout.take().map_or_else(|| collect(std::io::empty()), collect);
        let err = child.stderr.take().map_or_else(|| collect(std::io::empty()), collect);
        Started { child: Guard(child), out, err }
    }

    #[track_caller]
    pub fn end(mut self) -> Ran {
        let status = self.child.status();
        let out = self.out.join().unwrap();
        let mut err = self.err.join().unwrap();
        if err.starts_with(b"ringer: engine ") {
            let end = err.iter().position(|b| *b == b'\n').map_or(err.len(), |i| i + 1);
            err.drain(..end);
        }
        Ran { status, out, err }
    }
}

/// Runs it to its end without input.
#[track_caller]
pub fn output(mut command: Command) -> Ran {
    command.stdin(Stdio::null());
    Started::new(command).end()
}

/// Runs it to its end with this input.
#[track_caller]
pub fn output_with(mut command: Command, input: Vec<u8>) -> Ran {
    command.stdin(Stdio::piped());
    let mut started = Started::new(command);
    let mut stdin = started.child.0.stdin.take().unwrap();
    let writer = thread::spawn(move || {
        let _reader_gone = stdin.write_all(&input);
    });
    let ran = started.end();
    writer.join().unwrap();
    ran
}

/// Kernel and initramfs of a guest.
#[derive(Clone)]
pub struct Images {
    pub kernel: PathBuf,
    pub initrd: PathBuf,
}

/// Says that this test does not run here; fails it if guests are required.
#[track_caller]
pub fn skip(why: &str) {
    let test = thread::current().name().unwrap_or("a test").to_owned();
    assert!(std::env::var_os("RINGER_REQUIRE_GUESTS").is_none_or(|v| v == "0"), "{test} cannot run: {why}");
    note(&format!("skipped {test}: {why}"));
}

/// Says something that the test harness does not keep to itself.
pub fn note(line: &str) {
    let _closed = writeln!(std::io::stderr(), "{line}");
}

/// The guest of this name, made on the first call; `None` if that cannot be (the test has been skipped).
#[track_caller]
pub fn guest(name: &'static str) -> Option<Images> {
    static MADE: Mutex<BTreeMap<&str, Result<Images, String>>> = Mutex::new(BTreeMap::new());
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    let found = made.entry(name).or_insert_with(|| fetch(name)).clone();
    drop(made);
    found.map_err(|why| skip(&why)).ok()
}

fn fetch(name: &str) -> Result<Images, String> {
    let mut command = ringer();
    command.args(["fetch", name]);
    let ran = output(command);
    let text = ran.text();
    let path = |key: &str| text.lines().find_map(|l| l.strip_prefix(key)).map(PathBuf::from);
    match (ran.status, path("kernel "), path("initrd ")) {
        (0, Some(kernel), Some(initrd)) => Ok(Images { kernel, initrd }),
        _ => Err(ran.error().lines().last().unwrap_or("ringer fetch gave no reason").to_owned()),
    }
}

/// Bytes that look random and are the same on every run (xorshift64).
pub fn noise(len: usize) -> Vec<u8> {
    let mut x = 0x9e37_79b9_7f4a_7c15_u64;
    let next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x.to_le_bytes()[3]
    };
    std::iter::repeat_with(next).take(len).collect()
}
