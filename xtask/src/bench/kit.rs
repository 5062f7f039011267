//! What is run: the programs of ours, compiled, and those of Debian's packages, in one root for the host and for guests.

use crate::tree::Tree;
use anyhow::{Context, Result, bail, ensure};
use ringer_image::debian::cpio::CpioWriter;
use ringer_image::debian::{Cache, DebianError, GuestKind, Progress, guest, packages};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// apt's names; patterns where a name holds a version.
const PACKAGES: &[&str] = &["^python3\\.[0-9]+-minimal$", "cpp", "sqlite3", "gzip", "busybox-static"];
/// Changes when the same sources and packages would give another kit.
const RECIPE: &str = "1";
/// Bytes that gzip compresses.
const GZIP_INPUT: usize = 1_500_000;

/// How long a kit of other sources is kept.
const KEPT: Duration = Duration::from_secs(24 * 3600);

/// Paths of what was made.
#[derive(Debug)]
pub struct Kit {
    /// Debian's cloud kernel.
    pub kernel: PathBuf,
    /// The whole root as an initramfs.
    pub initrd: PathBuf,
    /// An initramfs of the driver alone, to measure the boot with.
    pub boot_initrd: PathBuf,
    /// The whole root as a folder.
    pub root: PathBuf,
}

impl Kit {
    fn at(dir: &Path, kernel: PathBuf) -> Kit {
        Kit {
            kernel,
            initrd: dir.join("initrd"),
            boot_initrd: dir.join("boot-initrd"),
            root: dir.join("root"),
        }
    }

    /// The driver, for the host.
    pub fn driver(&self) -> PathBuf {
        self.root.join("init")
    }
}

/// Returns the kit from the cache, making it first if it is not there or made from other sources.
///
/// # Errors
/// If apt, the compiler or the disk fails.
pub fn kit() -> Result<Kit> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../benches/guest");
    let cache = Cache::of_user()?;
    let progress = Progress::stderr();
    let kernel = guest(&cache, GuestKind::Cloud, &progress)?.kernel;
    let name = format!("bench-{:016x}", recipe(&sources)?);
    let dir = cache.root().join("guests").join(&name);
    if dir.is_dir() {
        return Ok(Kit::at(&dir, kernel));
    }
    let lock = cache.lock(&progress)?;
    let driver = compile(&sources)?;
    let debs = packages(&cache, &lock, PACKAGES, &progress)?;
    progress.say("making the benchmark's root");
    let tree = tree(&sources, driver, &debs)?;
    let mut failed = None;
    let made = cache.make(&lock, &name, |dir| {
        write(&tree, dir).map_err(|e| {
            failed = Some(e);
            DebianError::BadPackage { path: dir.to_owned(), why: "it cannot be written".to_owned() }
        })
    });
    if let Some(e) = failed {
        return Err(e);
    }
    let dir = made?;
    remove_old(&dir);
    Ok(Kit::at(&dir, kernel))
}

/// Removes kits of other sources, but not those of today: another checkout may be measuring with one.
fn remove_old(made: &Path) {
    let old = |p: &Path| {
        let made = fs::metadata(p).and_then(|m| m.modified()).ok();
        made.and_then(|t| t.elapsed().ok()).is_some_and(|age| age > KEPT)
    };
    for other in made.parent().and_then(|d| fs::read_dir(d).ok()).into_iter().flatten().flatten() {
        let path = other.path();
        if path != made && other.file_name().to_string_lossy().starts_with("bench-") && old(&path) {
            let _may_stay = fs::remove_dir_all(path);
        }
    }
}

/// A number that tells this recipe from others: FNV-1a over all that goes in but the packages' own versions.
fn recipe(sources: &Path) -> Result<u64> {
    let mut files = Vec::new();
    for dir in [sources.to_owned(), sources.join("data")] {
        let list = fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))?;
        files.extend(list.flatten().map(|e| e.path()).filter(|p| p.is_file()));
    }
    files.sort();
    let gcc = Command::new("gcc").arg("--version").stderr(Stdio::null()).output();
    let gcc = gcc.context(
        "cannot start gcc: the benchmark needs it, with a static libc (apt-get install gcc libc6-dev)",
    )?;
    let mut parts = vec![RECIPE.as_bytes().to_vec(), gcc.stdout, PACKAGES.join(" ").into_bytes()];
    for f in files {
        parts.push(fs::read(&f).with_context(|| format!("cannot read {}", f.display()))?);
    }
    Ok(parts
        .iter()
        .flat_map(|p| p.iter().copied().chain([0]))
        .fold(0xcbf2_9ce4_8422_2325, |h: u64, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3)))
}

/// What was compiled.
struct Driver {
    program: Vec<u8>,
    /// A preprocessed source, for the compiler to be measured with.
    preprocessed: Vec<u8>,
}

fn compile(sources: &Path) -> Result<Driver> {
    let list = fs::read_dir(sources).with_context(|| format!("cannot list {}", sources.display()))?;
    let mut files: Vec<_> = list.flatten().map(|e| e.path()).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "c"));
    files.sort();
    let out = std::env::temp_dir().join(format!("ringer-bench-{}", std::process::id()));
    let mut all = Command::new("gcc");
    all.args(["-O2", "-static", "-pthread", "-Wall", "-o"]).arg(&out).args(&files).arg("-lm");
    let program = output(&mut all).and_then(|_| fs::read(&out).context("cannot read what gcc made"));
    let _gone = fs::remove_file(&out);
    let mut cpp = Command::new("gcc");
    let preprocessed = output(cpp.args(["-E", "-P"]).arg(sources.join("integer.c")))?;
    Ok(Driver { program: program?, preprocessed })
}

fn output(command: &mut Command) -> Result<Vec<u8>> {
    let done = command.output().context("cannot start gcc")?;
    if !done.status.success() {
        bail!("gcc failed: {}", String::from_utf8_lossy(&done.stderr).trim());
    }
    Ok(done.stdout)
}

/// Of the packages only what the programs need: a guest unpacks all of it into its memory.
fn wanted(path: &str) -> bool {
    if let Some(name) = path.strip_prefix("usr/bin/") {
        return matches!(name, "sqlite3" | "gzip" | "busybox") || name.starts_with("python3.");
    }
    if let Some(name) = path.strip_prefix("usr/lib/x86_64-linux-gnu/") {
        return !name.contains('/') && name.contains(".so");
    }
    path.starts_with("usr/lib64/") || path.starts_with("usr/lib/python3") || path.ends_with("/cc1")
}

fn tree(sources: &Path, driver: Driver, debs: &[PathBuf]) -> Result<Tree> {
    let mut t = Tree::default();
    for deb in debs {
        t.unpack(deb, wanted)?;
    }
    for (what, name) in
        [("sqlite3", "usr/bin/sqlite3"), ("gzip", "usr/bin/gzip"), ("busybox", "usr/bin/busybox")]
    {
        t.need(what, |n| n == name)?;
    }
    t.need("python3", |n| n.starts_with("usr/bin/python3."))?;
    t.need("cc1", |n| n.ends_with("/cc1"))?;
    // Machine code and tables, whatever the release: what is compressed need not be the same on all hosts.
    let data = t.need("libc", |n| n == "usr/lib/x86_64-linux-gnu/libc.so.6")?;
    ensure!(data.len() >= GZIP_INPUT, "Debian's libc is shorter than {GZIP_INPUT} bytes");
    let input = data[..GZIP_INPUT].to_vec();
    t.file("bench/gzip.in", false, input);
    t.file("bench/cc1.i", false, driver.preprocessed);
    for name in ["sqlite.sql", "python.py", "shell.sh"] {
        let p = sources.join("data").join(name);
        t.file(
            &format!("bench/{name}"),
            false,
            fs::read(&p).with_context(|| format!("cannot read {}", p.display()))?,
        );
    }
    t.file("init", true, driver.program);
    Ok(t)
}

fn write(tree: &Tree, dir: &Path) -> Result<()> {
    // The kernel opens the console before /dev is mounted.
    let mut w = CpioWriter::new(Vec::new());
    w.dir("dev", 0o755)?;
    w.char_device("dev/console", 0o600, 5, 1)?;
    let console = w.finish()?;
    let mut boot = CpioWriter::new(console.clone());
    for d in ["proc", "sys", "tmp"] {
        boot.dir(d, 0o755)?;
    }
    boot.file("init", 0o755, tree.need("init", |n| n == "init")?)?;
    fs::write(dir.join("boot-initrd"), boot.finish()?).context("cannot write the small initramfs")?;
    fs::write(dir.join("initrd"), tree.write_cpio(console)?).context("cannot write the initramfs")?;
    tree.write_folder(&dir.join("root"))
}

#[cfg(test)]
mod tests {
    use super::wanted;

    #[test]
    fn takes_programs_and_their_libraries() {
        for yes in [
            "usr/bin/python3.11",
            "usr/lib/x86_64-linux-gnu/libz.so.1",
            "usr/lib64/ld-linux-x86-64.so.2",
            "usr/lib/gcc/x86_64-linux-gnu/12/cc1",
            "usr/lib/python3.11/os.py",
        ] {
            assert!(wanted(yes), "{yes}");
        }
        for no in ["usr/share/doc/x", "usr/bin/dpkg", "usr/lib/x86_64-linux-gnu/gconv/IBM.so"] {
            assert!(!wanted(no), "{no}");
        }
    }
}
