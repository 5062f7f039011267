//! `ringer run -- COMMAND`: its streams, its arguments, its status.

use crate::support::{GUEST_DIED, Ran, Started, guest, noise, output, output_with, quick, run};
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Stdio};

#[test]
fn uname() {
    if guest("cloud").is_none() {
        return;
    }
    let ran = output(run(["--", "uname", "-a"])).ended(0);
    let text = ran.text();
    assert!(text.starts_with("Linux ringer ") && text.contains("-cloud-amd64 "), "{text}");
    assert_eq!(text.lines().count(), 1);
}

/// Arguments of any bytes, the two outputs apart, nothing added to either, and the status.
#[test]
fn arguments_outputs_and_status() {
    if guest("cloud").is_none() {
        return;
    }
    let words: [&[u8]; 9] = [
        b"",
        b"two words",
        b"it's \"quoted\" `id` $HOME $(id) \\ * ? [a-z] ~ # ; & | < > !",
        b"new\nline\n",
        b"\ttab\r\x1b[0m\x07",
        "Gr\u{fc}\u{df}e \u{1f600}".as_bytes(),
        b"\x80\xfe\xff not utf-8",
        b"--help",
        b"-n",
    ];
    let mut args: Vec<&OsStr> = ["--cpus", "2", "--", "sh", "-c"].map(OsStr::new).to_vec();
    let script = "printf '[%s]' \"$@\"; printf 'bad\\nthings' >&2; exit 7";
    args.extend([OsStr::new(script), OsStr::new("sh")]);
    args.extend(words.iter().map(|w| OsStr::from_bytes(w)));
    let ran = output(quick(args)).ended(7);
    let expected: Vec<u8> = words.iter().flat_map(|w| [b"[", *w, b"]"].concat()).collect();
    assert_eq!(ran.out, expected, "{:?}", ran.text());
    assert_eq!(ran.error(), "bad\nthings");
}

#[test]
fn any_bytes_through_all_three_streams() {
    if guest("cloud").is_none() {
        return;
    }
    let mut bytes: Vec<u8> = (0..=255).collect();
    bytes.extend(noise(1 << 20));
    let ran = output_with(quick(["--", "tee", "/dev/stderr"]), bytes.clone()).ended(0);
    assert!(ran.out == bytes, "{} bytes came back from {}", ran.out.len(), bytes.len());
    assert!(ran.err == bytes, "{} bytes came back from {}", ran.err.len(), bytes.len());
}

#[test]
fn input_that_ends_at_once_and_input_that_nobody_reads() {
    if guest("cloud").is_none() {
        return;
    }
    assert_eq!(output(quick(["--", "wc", "-c"])).ended(0).text(), "0\n");
    assert_eq!(output_with(quick(["--", "echo", "done"]), noise(1 << 20)).ended(0).text(), "done\n");
}

#[test]
fn a_command_that_is_not_there() {
    if guest("cloud").is_none() {
        return;
    }
    let ran = output(quick(["--", "frobnicate", "--now"])).ended(127);
    assert!(ran.error().contains("frobnicate: not found"), "{}", ran.error());
    assert!(ran.out.is_empty());
}

#[track_caller]
fn dies(script: &str, words: &[&str]) -> Ran {
    let ran = output(quick(["--", "sh", "-c", script])).ended(GUEST_DIED);
    let err = ran.error();
    assert!(words.iter().all(|w| err.contains(w)), "{err}");
    ran
}

#[test]
fn a_guest_that_leaves_before_the_command_ends() {
    if guest("cloud").is_none() {
        return;
    }
    let ran = dies("echo before; poweroff -f; sleep 1000", &["powered off before the command ended"]);
    assert_eq!(ran.text(), "before\n");
    dies("reboot -f; sleep 1000", &["reset before the command ended"]);
}

#[test]
fn a_kernel_that_panics_has_last_words() {
    if guest("cloud").is_none() {
        return;
    }
    dies(
        "echo c >/proc/sysrq-trigger; sleep 1000",
        &["before the command ended", "Kernel panic - not syncing: sysrq triggered crash"],
    );
}

/// Starts a command that never ends and waits for its first line.
fn endless() -> (Started, Pid) {
    let mut command = quick(["--", "sh", "-c", "echo up >&2; exec sleep 100000"]);
    command.stdin(Stdio::null()).stderr(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.any(|l| l.unwrap() == "up"));
    let pid = Pid::from_child(&child);
    (Started::of(child), pid)
}

#[test]
fn signals_end_it() {
    if guest("cloud").is_none() {
        return;
    }
    for (signal, status) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let (started, pid) = endless();
        kill_process(pid, signal).unwrap();
        started.end().ended(status);
    }
}

/// As in `ringer run -- yes | head -1`.
#[test]
fn a_reader_that_goes_away_ends_it() {
    if guest("cloud").is_none() {
        return;
    }
    let mut command: Command = quick(["--", "yes"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = crate::support::Guard(command.spawn().unwrap());
    let mut line = String::new();
    BufReader::new(child.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!((line.as_str(), child.status()), ("y\n", 141));
}
