//! Full and locked cache folders.

use crate::support::{Ran, guest, note, output, ringer};
use std::path::Path;
use std::process::Command;

/// Files under `dir` that a later run would take for something whole.
fn guests_in(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir.join("ringer/guests")).into_iter().flatten().flatten();
    entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
}

/// Runs `ringer fetch` with a cache folder on a tmpfs of `kib` that first gets what is in `with`. What it leaves
/// under `guests` is listed behind its own output. `None` if this user cannot mount one here.
fn fetch_on_small_disk(kib: u64, with: Option<&Path>) -> Option<Ran> {
    let dir = tempfile::tempdir().unwrap();
    let script = r#"
        mount -t tmpfs -o size="$2"k tmpfs "$1" || exit 99
        if [ -n "$3" ]; then mkdir "$1/ringer" && cp -r "$3" "$1/ringer/apt" || exit 98; fi
        XDG_CACHE_HOME="$1" "$4" fetch cloud
        status=$?
        ls -A "$1/ringer/guests" 2>/dev/null
        umount "$1"
        exit $status"#;
    let mut command = Command::new("unshare");
    // As root, or as one who becomes root of a user namespace.
    let flags = if rustix::process::geteuid().is_root() { "-m" } else { "-rm" };
    command.args([flags, "sh", "-c", script, "sh"]).arg(dir.path()).arg(kib.to_string());
    command.arg(with.unwrap_or(Path::new(""))).arg(ringer().get_program());
    let ran = output(command);
    if ran.status == 99 || ran.status == 1 || ran.status == 127 {
        note(&format!("skipped tests of a full disk: no tmpfs can be mounted here ({})", ran.error().trim()));
        return None;
    }
    Some(ran)
}

fn size_kib(path: &Path) -> u64 {
    let meta = path.symlink_metadata().unwrap();
    if !meta.is_dir() {
        return meta.len().div_ceil(4096) * 4;
    }
    std::fs::read_dir(path).unwrap().map(|e| size_kib(&e.unwrap().path())).sum()
}

#[track_caller]
fn is_full(ran: &Ran) {
    let err = ran.error();
    let last = err.lines().last().unwrap_or_default();
    assert_eq!(ran.status, 125, "{err}");
    assert!(last.starts_with("ringer: the disk is full: "), "{err}");
    assert_eq!(ran.text(), "", "left behind");
}

#[test]
fn full_while_the_lists_come() {
    if guest("cloud").is_none() {
        return;
    }
    if let Some(ran) = fetch_on_small_disk(4096, None) {
        is_full(&ran);
    }
}

#[test]
fn full_while_a_guest_is_made() {
    let Some(images) = guest("cloud") else { return };
    // The packages are there already; there is room for them and half a guest.
    let apt = images.kernel.ancestors().nth(3).unwrap().join("apt");
    if !apt.join("cache/archives").is_dir() {
        return;
    }
    if let Some(ran) = fetch_on_small_disk(size_kib(&apt) + (16 << 10), Some(&apt)) {
        is_full(&ran);
    }
}

#[test]
fn a_cache_that_cannot_be_written() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("ringer"), "a file where the folder should be").unwrap();
    let mut command = ringer();
    command.arg("run").env("XDG_CACHE_HOME", dir.path());
    output(command).refused(&["cannot make", "ringer"]);
    assert!(guests_in(dir.path()).is_empty());
}
