//! Real files that have come to harm. (Made-up ones: the `ringer` crate's own tests.)

use crate::support::{guest, output, run};
use std::path::Path;

#[track_caller]
fn refused(args: &[&str], words: &[&str]) {
    output(run(args)).refused(words);
}

fn write(dir: &Path, name: &str, data: &[u8]) -> String {
    let path = dir.join(name);
    std::fs::write(&path, data).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn kernels_cut_short() {
    let Some(images) = guest("cloud") else { return };
    let whole = std::fs::read(&images.kernel).unwrap();
    let dir = tempfile::tempdir().unwrap();
    for len in [0, 1, 2, 511, 512, 513, 0x250, 4096, 100_000, whole.len() / 2, whole.len() - 4096] {
        let kernel = write(dir.path(), "vmlinuz", &whole[..len]);
        refused(&["--kernel", &kernel], &[&kernel]);
    }
}

/// The compressed payload has a flipped bit in each of these.
#[test]
fn kernels_with_damage_inside() {
    let Some(images) = guest("cloud") else { return };
    let whole = std::fs::read(&images.kernel).unwrap();
    let dir = tempfile::tempdir().unwrap();
    for part in [3, 5, 7] {
        let mut bad = whole.clone();
        let at = bad.len() * part / 8;
        bad[at..at + 4096].fill(0xff);
        let kernel = write(dir.path(), "vmlinuz", &bad);
        refused(&["--kernel", &kernel], &[&kernel]);
    }
}

#[test]
fn kernels_for_other_processors() {
    let dir = tempfile::tempdir().unwrap();
    // Documentation/arm64/booting.rst: "ARM\x64" at 56; riscv/boot-image-header.rst: "RSC\x05" there.
    for (name, magic) in [("arm64", b"ARM\x64"), ("riscv", b"RSC\x05")] {
        let mut image = vec![0; 8192];
        image[56..60].copy_from_slice(magic);
        let kernel = write(dir.path(), name, &image);
        refused(&["--kernel", &kernel], &[&kernel]);
    }
    // ELF: an i386 vmlinux, without a multiboot header; EM_386 is 3.
    let mut i386 = vec![0; 8192];
    i386[..20].copy_from_slice(&[0x7f, b'E', b'L', b'F', 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 3, 0]);
    let kernel = write(dir.path(), "i386", &i386);
    refused(&["--kernel", &kernel], &[&kernel]);
}

/// Each of these has no end or no length.
#[test]
fn kernels_that_are_no_files() {
    refused(&["--kernel", "/dev/zero"], &["/dev/zero", "too much"]);
    refused(&["--kernel", "/dev/null"], &["/dev/null", "empty"]);
    refused(&["--kernel", "/proc/self/mem"], &["/proc/self/mem"]);
    refused(&["--kernel", "/proc/self"], &["directory"]);
}

#[test]
fn initial_ram_disks() {
    let Some(images) = guest("cloud") else { return };
    let kernel = images.kernel.to_str().unwrap();
    refused(&["--kernel", kernel, "--initrd", "/nonexistent"], &["/nonexistent"]);
    refused(&["--kernel", kernel, "--initrd", "/proc"], &["/proc", "directory"]);
    refused(&["--kernel", kernel, "--initrd", "/dev/zero"], &["/dev/zero"]);
    let dir = tempfile::tempdir().unwrap();
    let big = dir.path().join("initrd");
    std::fs::File::create(&big).unwrap().set_len(400 << 20).unwrap();
    let big = big.to_str().unwrap();
    refused(&["--kernel", kernel, "--initrd", big, "--memory", "256M"], &[big, "memory"]);
    refused(&["--memory", "16M"], &["memory"]);
}
