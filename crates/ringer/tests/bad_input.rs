//! Every bad input ends in one clear sentence and a status that is not zero.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const ERROR: i32 = 125;
const USAGE: i32 = 2;

fn ringer(args: &[&str]) -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_ringer"));
    c.args(args).stdin(std::process::Stdio::null());
    // No test may make a guest by accident.
    c.env("XDG_CACHE_HOME", "/proc/nowhere");
    c
}

fn output(args: &[&str]) -> Output {
    ringer(args).output().unwrap()
}

/// Runs it and checks: this status, nothing on standard output, one sentence that holds `words`.
#[track_caller]
fn fails(args: &[&str], status: i32, words: &[&str]) {
    check(&output(args), status, words);
}

#[track_caller]
fn check(out: &Output, status: i32, words: &[&str]) {
    let err = String::from_utf8(out.stderr.clone()).unwrap();
    assert_eq!(out.status.code(), Some(status), "{err}");
    assert!(out.stdout.is_empty());
    // The line on the engine that was chosen may come before.
    let lines: Vec<&str> = err.lines().filter(|l| !l.starts_with("ringer: engine ")).collect();
    assert_eq!(lines.len(), 1, "{err}");
    assert!(lines[0].starts_with("ringer: "), "{err}");
    for w in words {
        assert!(lines[0].contains(w), "{err:?} lacks {w:?}");
    }
}

fn file(dir: &Path, name: &str, data: &[u8]) -> String {
    let p = dir.join(name);
    std::fs::write(&p, data).unwrap();
    p.to_str().unwrap().to_owned()
}

/// An ELF header and nothing more: 64-bit, executable, for this machine type.
fn elf(machine: u16) -> Vec<u8> {
    let mut e = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0];
    e.extend(machine.to_le_bytes());
    e.resize(64, 0);
    e
}

#[test]
fn code_memory() {
    for (size, cpus) in [("3M", "1"), ("2G", "1"), ("7M", "2")] {
        let args = ["run", "--code-memory", size, "--cpus", cpus, "--kernel", "k"];
        fails(&args, ERROR, &[size, cpus, "choose", "1G"]);
    }
    fails(&["run", "--code-memory", "much"], USAGE, &["much", "--code-memory"]);
}

#[test]
fn processors() {
    for n in ["0", "255", "4096"] {
        fails(&["run", "--cpus", n, "--kernel", "k"], ERROR, &[n, "1 to 254"]);
    }
    fails(&["run", "--cpus", "many"], USAGE, &["many", "--cpus"]);
    fails(&["run", "--cpus=-1"], USAGE, &["-1"]);
}

#[test]
fn memory() {
    fails(&["run", "--memory", "900T", "--kernel", "k"], ERROR, &["900T", "more than the host has"]);
    fails(&["run", "--memory", "512K", "--kernel", "k"], ERROR, &["512K", "at least 1M"]);
    fails(&["run", "--memory", "1025K", "--kernel", "k"], ERROR, &["whole pages"]);
    fails(&["run", "--memory", "512"], USAGE, &["512", "512M"]);
    fails(&["run", "--memory", "lots"], USAGE, &["lots"]);
    fails(&["run", "--memory", "99999999999999T"], USAGE, &["is not a size"]);
}

#[test]
fn names() {
    fails(&["run", "--engine", "warp", "--kernel", "k"], ERROR, &["warp", "interpreter"]);
    fails(&["run", "--cpu", "z80", "--kernel", "k"], ERROR, &["z80", "x86-64-v2"]);
    fails(&["run", "--cpu", "host,+warp", "--kernel", "k"], ERROR, &["warp"]);
    fails(&["run", "--guest", "hurd"], ERROR, &["hurd", "installer"]);
    fails(&["run", "--boot", "floppy", "--kernel", "k"], ERROR, &["floppy", "multiboot"]);
    fails(&["fetch", "hurd"], ERROR, &["hurd", "cloud"]);
    fails(&["run", "--triple-fault", "explode"], USAGE, &["explode"]);
    fails(&["frobnicate"], USAGE, &["frobnicate"]);
    fails(&["run", "--frobnicate"], USAGE, &["--frobnicate"]);
    fails(&["run", "--kernel"], USAGE, &["--kernel"]);
}

#[test]
fn files() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let run = |k: &str, words: &[&str]| fails(&["run", "--kernel", k], ERROR, words);
    run("/nonexistent/vmlinuz", &["/nonexistent/vmlinuz", "No such file"]);
    run(d.to_str().unwrap(), &["is a directory"]);
    run(&file(d, "empty", b""), &["empty"]);
    run(&file(d, "text", b"hello, this is no kernel\n"), &["text"]);
    // EM_AARCH64, EM_RISCV.
    run(&file(d, "arm", &elf(183)), &["arm", "Ringer does not boot"]);
    run(&file(d, "riscv", &elf(243)), &["riscv"]);
    run(&file(d, "cut", &elf(62)[..40]), &["cut"]);
    // A bzImage whose header promises more than there is.
    let mut bz = vec![0; 0x400];
    bz[0x1f1] = 4;
    bz[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    bz[0x202..0x206].copy_from_slice(b"HdrS");
    bz[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
    bz[0x211] = 1;
    run(&file(d, "bz", &bz), &["bz"]);
    // A boot sector is the smallest good kernel: with it the initrd's turn comes.
    let mut sector = vec![0xf4; 512];
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    let sector = file(d, "sector", &sector);
    fails(&["run", "--kernel", &sector, "--initrd", "/nonexistent/initrd"], ERROR, &["/nonexistent/initrd"]);
    fails(&["run", "--kernel", &sector, "--boot", "pvh"], ERROR, &["PVH"]);
}

#[test]
fn cache_folders() {
    let no_home = ringer(&["run"]).env_remove("XDG_CACHE_HOME").env_remove("HOME").output().unwrap();
    check(&no_home, ERROR, &["XDG_CACHE_HOME"]);
    check(&output(&["run"]), ERROR, &["cannot make", "/proc/nowhere/ringer"]);
}

/// Programs that stand in for apt-get; the real ones are out of reach.
fn with_apt(dir: &Path, script: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let bin = dir.join("bin");
    std::fs::create_dir_all(&bin).unwrap();
    let apt = bin.join("apt-get");
    std::fs::write(&apt, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&apt, std::fs::Permissions::from_mode(0o755)).unwrap();
    bin
}

#[test]
fn no_apt() {
    let dir = tempfile::tempdir().unwrap();
    let out =
        ringer(&["run"]).env("XDG_CACHE_HOME", dir.path()).env("PATH", "/nonexistent").output().unwrap();
    check(&out, ERROR, &["apt-get", "--kernel"]);
}

#[test]
fn a_full_disk_leaves_nothing_that_looks_whole() {
    let dir = tempfile::tempdir().unwrap();
    let sources = file(
        dir.path(),
        "s.sources",
        b"Types: deb\nURIs: http://mirror.invalid/debian\nSuites: stable\nComponents: main\n",
    );
    // apt's own words when the disk is full.
    let script = "case \"$*\" in\n*--version*) exit 0;;\n\
        *) echo 'E: Write error - write (28: No space left on device)' >&2; exit 100;; esac";
    let bin = with_apt(dir.path(), script);
    let out = ringer(&["run"])
        .env("XDG_CACHE_HOME", dir.path())
        .env("RINGER_APT_SOURCES", &sources)
        .env("PATH", format!("{}:/usr/bin:/bin", bin.display()))
        .output()
        .unwrap();
    if Path::new("/usr/share/keyrings/debian-archive-keyring.gpg").exists() {
        let err = String::from_utf8(out.stderr.clone()).unwrap();
        assert_eq!(out.status.code(), Some(ERROR), "{err}");
        let last = err.lines().last().unwrap();
        assert!(last.starts_with("ringer: the disk is full: "), "{err}");
    } else {
        check(&out, ERROR, &["keyring"]);
    }
    let guests = std::fs::read_dir(dir.path().join("ringer/guests"));
    assert_eq!(guests.map_or(0, Iterator::count), 0);
}

#[test]
fn help_is_no_error() {
    for args in [&["--help"][..], &["run", "--help"], &["--version"]] {
        let out = output(args);
        assert!(out.status.success());
        assert!(!out.stdout.is_empty() && out.stderr.is_empty());
    }
}
