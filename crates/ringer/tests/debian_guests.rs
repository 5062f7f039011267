//! Debian's kernels, unmodified, from their packages, to userspace and to the end.
//!
//! The first run fetches them into the user's cache. Where that cannot be (no apt, no network) these tests say so and
//! pass, unless RINGER_REQUIRE_GUESTS is set.

use std::io::{Read, Write};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// One guest at a time is made, and one of these tests' machines at a time runs: they share a few processors.
static ONE: Mutex<()> = Mutex::new(());
/// No machine of these tests needs so long, on any host.
const LIMIT: Duration = Duration::from_secs(600);

fn ringer() -> Command {
    Command::new(env!("CARGO_BIN_EXE_ringer"))
}

/// Makes sure that the guest is there; `None` if it cannot be had here.
fn need(guest: &str) -> Option<MutexGuard<'static, ()>> {
    let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let out = ringer().args(["fetch", guest]).stdin(Stdio::null()).output().unwrap();
    if out.status.success() {
        return Some(one);
    }
    let why = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(std::env::var_os("RINGER_REQUIRE_GUESTS").is_none(), "{why}");
    eprintln!("skipped: the {guest} guest cannot be had here: {why}");
    None
}

/// Ends a machine that takes too long.
struct Limit(std::sync::mpsc::Sender<()>);

fn limit(child: &Child) -> Limit {
    let pid = rustix::process::Pid::from_child(child);
    let (sender, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        if ended.recv_timeout(LIMIT) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            let _gone = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    });
    Limit(sender)
}

fn run(args: &[&str], input: &[u8]) -> Output {
    let mut child = ringer()
        .arg("run")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let limit = limit(&child);
    let (mut stdin, input) = (child.stdin.take().unwrap(), input.to_vec());
    // A guest that ends early closes the pipe.
    let feeder = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let out = child.wait_with_output().unwrap();
    feeder.join().unwrap();
    drop(limit.0);
    out
}

#[track_caller]
fn is(out: &Output, status: i32, stdout: &[u8]) {
    let (said, err) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.code() == Some(status) && out.stdout == stdout, "{:?}\n{said}\n{err}", out.status);
}

/// Its release, its processors, modules from its package, no complaint of the kernel's, and a status.
fn boots(guest: &str, cpus: &str, release: &str) {
    let Some(_one) = need(guest) else { return };
    let script = "uname -r; nproc; modprobe virtio_blk && modprobe overlay && lsmod | grep -c -w -e virtio_blk -e overlay;\
        dmesg | grep -E 'WARNING|BUG|Oops|soft lockup|unstable' >&2; exit 7";
    let out = run(&["--guest", guest, "--cpus", cpus, "--", "sh", "-c", script], b"");
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    let err = String::from_utf8_lossy(&out.stderr).into_owned();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(out.status.code(), Some(7), "{said}\n{err}");
    assert!(lines[0].ends_with(release), "{said}");
    assert_eq!(lines[1], cpus);
    assert!(lines[2].parse::<u32>().unwrap() >= 2, "{said}");
    assert!(err.lines().all(|l| l.starts_with("ringer: engine ")), "{err}");
}

#[test]
fn cloud_kernel() {
    boots("cloud", "1", "-cloud-amd64");
    boots("cloud", "2", "-cloud-amd64");
}

#[test]
fn stock_kernel() {
    boots("amd64", "1", "-amd64");
    boots("amd64", "2", "-amd64");
}

#[test]
fn rt_kernel() {
    boots("rt", "1", "-rt-amd64");
    boots("rt", "2", "-rt-amd64");
}

#[test]
fn installer_to_its_first_screen() {
    let Some(_one) = need("installer") else { return };
    for cpus in ["1", "2"] {
        let mut child = ringer()
            .args(["run", "--guest", "installer", "--cpus", cpus])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let limit = limit(&child);
        let mut screen = Vec::new();
        let mut buf = [0; 4096];
        let mut out = child.stdout.take().unwrap();
        // The first dialog asks for the language.
        while !screen.windows(8).any(|w| w == b"language") {
            let n = out.read(&mut buf).unwrap();
            assert!(n > 0, "it ended: {}", String::from_utf8_lossy(&screen));
            screen.extend(&buf[..n]);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        drop(limit.0);
    }
}

#[test]
fn a_command_has_the_hosts_streams() {
    let Some(_one) = need("cloud") else { return };
    // Every byte, and more than any buffer on the way holds.
    let input: Vec<u8> =
        (0..=255).cycle().take(100_000).chain(*b"\x04\x16\x03 end without newline").collect();
    is(&run(&["--", "cat"], &input), 0, &input);
    // Words arrive as they are; output and error stay apart; none of them is a terminal.
    let words = [
        "--",
        "sh",
        "-c",
        "printf '[%s]' \"$@\"; tty; echo oops >&2; exit 3",
        "sh",
        "a b",
        "",
        "it's",
        "$(id)\n*",
    ];
    let out = run(&words, b"");
    is(&out, 3, b"[a b][][it's][$(id)\n*]not a tty\n");
    assert!(String::from_utf8_lossy(&out.stderr).ends_with("oops\n"));
    // A command that is not there.
    assert_eq!(run(&["--", "no-such-command"], b"").status.code(), Some(127));
}

#[test]
fn the_guest_ends_and_restarts_the_machine() {
    let Some(_one) = need("cloud") else { return };
    // The shell restarts the machine, and in its second life powers it off.
    let mut child = ringer()
        .arg("run")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let limit = limit(&child);
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut said = Vec::new();
    for command in ["reboot -f\n", "poweroff\n"] {
        let from = said.len();
        let mut buf = [0; 4096];
        while !said[from..].windows(13).any(|w| w == b"root@ringer:~") {
            let n = stdout.read(&mut buf).unwrap();
            assert!(n > 0, "{}", String::from_utf8_lossy(&said));
            said.extend(&buf[..n]);
        }
        stdin.write_all(command.as_bytes()).unwrap();
        stdin.flush().unwrap();
    }
    let rest = std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
    assert_eq!(child.wait().unwrap().code(), Some(0));
    drop(rest.join());
    drop(limit.0);
    // A kernel that panics is dead; what it said last is shown.
    let out = run(&["--", "sh", "-c", "echo c >/proc/sysrq-trigger"], b"");
    is(&out, 126, b"");
    assert!(String::from_utf8_lossy(&out.stderr).contains("Kernel panic"));
}
