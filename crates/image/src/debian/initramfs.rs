//! The initramfs of a guest: busybox, Ringer's own start-up scripts, kernel modules.

use super::cpio::CpioWriter;
use super::modules::{self, Modules};
use std::collections::BTreeSet;
use std::io::{self, Write};

const INIT: &str = include_str!("files/init");
const FSTAB: &str = include_str!("files/fstab");
const INITTAB: &str = include_str!("files/inittab");
const SESSION: &str = include_str!("files/session");
const POWER_BUTTON: &str = include_str!("files/powerbutton");
const PROFILE: &str = include_str!("files/profile");
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n";
const GROUP: &str = "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n";
const HOSTS: &str = "127.0.0.1 localhost ringer\n::1 localhost\n";

/// What goes into an initramfs.
#[derive(Debug, Default)]
pub struct Contents {
    /// The static busybox.
    pub busybox: Vec<u8>,
    /// The kernel's release, as in `lib/modules/RELEASE`.
    pub release: String,
    /// Its modules.
    pub modules: Modules,
    /// The package's own `modules.builtin` and the like: name and contents.
    pub tables: Vec<(String, Vec<u8>)>,
}

/// A number that changes when the same packages would give another initramfs.
#[must_use]
pub fn recipe_version() -> u64 {
    let mut texts = vec![INIT, FSTAB, INITTAB, SESSION, POWER_BUTTON, PROFILE, PASSWD, GROUP, HOSTS, "2"];
    texts.extend(modules::WANTED);
    // FNV-1a: not against enemies, only to tell one Ringer's recipe from another's.
    texts
        .iter()
        .flat_map(|t| t.bytes().chain([0]))
        .fold(0xcbf2_9ce4_8422_2325, |h: u64, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3))
}

/// Writes the initramfs to `out`, not compressed: for an interpreted guest a copy is cheaper than unpacking.
///
/// # Errors
/// Those of `out`.
pub fn write(out: impl Write, c: &Contents) -> io::Result<()> {
    let mut w = CpioWriter::new(out);
    for dir in
        ["bin", "dev", "etc", "lib", "lib/modules", "mnt", "proc", "ringer", "run", "sys", "usr", "var"]
    {
        w.dir(dir, 0o755)?;
    }
    w.dir("etc/acpi", 0o755)?;
    w.dir("etc/acpi/PWRF", 0o755)?;
    w.dir("root", 0o700)?;
    w.dir("tmp", 0o1777)?;
    for (name, target) in
        [("sbin", "bin"), ("usr/bin", "../bin"), ("usr/sbin", "../bin"), ("var/run", "../run")]
    {
        w.symlink(name, target)?;
    }
    // The kernel opens the console before any program could have made it.
    w.char_device("dev/console", 0o600, 5, 1)?;
    w.char_device("dev/null", 0o666, 1, 3)?;
    for (name, mode, text) in [
        ("init", 0o755, INIT),
        ("etc/fstab", 0o644, FSTAB),
        ("etc/inittab", 0o644, INITTAB),
        ("ringer/session", 0o755, SESSION),
        ("etc/acpi/PWRF/00000080", 0o755, POWER_BUTTON),
        ("etc/profile", 0o644, PROFILE),
        ("etc/passwd", 0o644, PASSWD),
        ("etc/group", 0o644, GROUP),
        ("etc/hosts", 0o644, HOSTS),
    ] {
        w.file(name, mode, text.as_bytes())?;
    }
    w.file("bin/busybox", 0o755, &c.busybox)?;
    for applet in applets(&c.busybox) {
        w.symlink(&format!("bin/{applet}"), "busybox")?;
    }
    write_modules(&mut w, c)?;
    w.finish()?.flush()
}

fn write_modules<W: Write>(w: &mut CpioWriter<W>, c: &Contents) -> io::Result<()> {
    let base = format!("lib/modules/{}", c.release);
    w.dir(&base, 0o755)?;
    let chosen = modules::closure(&c.modules, modules::WANTED);
    let mut dirs = BTreeSet::new();
    for m in chosen.iter().filter_map(|n| c.modules.get(n)) {
        let mut at = 0;
        while let Some(i) = m.path[at..].find('/') {
            dirs.insert(m.path[..at + i].to_owned());
            at += i + 1;
        }
    }
    for d in &dirs {
        w.dir(&format!("{base}/{d}"), 0o755)?;
    }
    for m in chosen.iter().filter_map(|n| c.modules.get(n)) {
        w.file(&format!("{base}/{}", m.path), 0o644, &m.data)?;
    }
    for (name, text) in modules::tables(&c.modules, &chosen) {
        w.file(&format!("{base}/{name}"), 0o644, text.as_bytes())?;
    }
    for (name, data) in &c.tables {
        w.file(&format!("{base}/{name}"), 0o644, data)?;
    }
    Ok(())
}

/// The commands that a busybox binary answers to, from the table of names in it (sorted, NUL after each, an empty
/// one at the end; its first are `[` and `[[`).
fn applets(busybox: &[u8]) -> Vec<String> {
    let Some(start) = busybox.windows(5).position(|w| w == b"[\0[[\0") else {
        // A busybox without `[`: enough to come up, and its own --install can make the rest.
        return ["sh", "init", "mount", "stty", "cat", "poweroff", "reboot", "ls"]
            .map(str::to_owned)
            .to_vec();
    };
    busybox[start..]
        .split(|b| *b == 0)
        .map_while(|n| std::str::from_utf8(n).ok().filter(|n| !n.is_empty()))
        .filter(|n| !n.contains('/') && *n != "busybox")
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn applet_names_come_from_the_binary() {
        let bin = b"\x7fELFxxx\0[\0[[\0ash\0busybox\0cat\0\0/var/log\0";
        assert_eq!(applets(bin), ["[", "[[", "ash", "cat"]);
        assert!(applets(b"nothing").contains(&"sh".to_owned()));
    }

    #[test]
    fn equal_contents_give_equal_bytes() {
        let make = || {
            let mut out = Vec::new();
            let c =
                Contents { busybox: b"[\0[[\0sh\0\0".to_vec(), release: "6.1".into(), ..Contents::default() };
            write(&mut out, &c).unwrap();
            out
        };
        assert_eq!(make(), make());
        assert!(make().windows(22).any(|w| w == b"lib/modules/6.1/module"));
    }
}
