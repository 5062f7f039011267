//! apt-get with state folders of our own: nothing of the host's package state is read or changed, so an ordinary user
//! can run it. The host's settings (proxies, certificates) hold, except its hooks.

use super::progress::Progress;
use super::{DebianError, sources};
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How often a failed fetch is tried in all; the wait before the next try doubles from one second.
const TRIES: u32 = 4;

/// A fetch in which nothing comes for so long has failed.
const STALLED: Duration = Duration::from_secs(120);

/// Hooks of the host that write to the host's own folders.
const OVERRIDES: &str = "\
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear APT::Architectures;
";

/// A package that stands for what guest kernels depend on and Ringer brings along itself, so that apt does not fetch
/// a whole system with them (dpkg's status file form, deb-control(5)).
const STATUS: &str = "\
Package: ringer-guest
Status: install ok installed
Version: 1
Architecture: amd64
Maintainer: Ringer
Description: what a guest kernel depends on
Provides: kmod (= 9999), linux-base (= 9999), initramfs-tools (= 9999), linux-initramfs-tool
";

/// apt with its state under one folder.
#[derive(Debug)]
pub struct Apt {
    dir: PathBuf,
}

/// One file to fetch.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Item {
    name: String,
    size: u64,
}

impl Apt {
    /// Lays out the state folders under `dir` (kept between runs), with the host's Debian archives as sources.
    ///
    /// # Errors
    /// [`DebianError::NoApt`], [`DebianError::NoSources`], [`DebianError::NoKeyring`], [`DebianError::Io`].
    pub fn new(dir: &Path) -> Result<Apt, DebianError> {
        match Command::new("apt-get").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status() {
            Ok(s) if s.success() => {}
            _ => return Err(DebianError::NoApt),
        }
        let sources = sources::host_sources(Path::new("/etc/apt"))?;
        let text = sources::render(&sources, sources::keyring()?);
        for sub in ["etc", "state/lists/partial", "cache/archives/partial", "cache/none/partial"] {
            let p = dir.join(sub);
            fs::create_dir_all(&p).map_err(|e| DebianError::io("make", &p, e))?;
        }
        for (name, text) in [
            ("etc/debian.sources", text.as_str()),
            ("etc/overrides.conf", OVERRIDES),
            ("state/status", STATUS),
        ] {
            let p = dir.join(name);
            fs::write(&p, text).map_err(|e| DebianError::io("write", &p, e))?;
        }
        Ok(Apt { dir: dir.to_owned() })
    }

    /// Fetches `packages` and what they depend on (kernels behind meta-packages), unless they are here already,
    /// and returns the .deb files. apt has checked each against the signed lists.
    ///
    /// # Errors
    /// [`DebianError::Apt`] after several tries, [`DebianError::DiskFull`], [`DebianError::Io`].
    pub fn fetch(&self, packages: &[&str], progress: &Progress) -> Result<Vec<PathBuf>, DebianError> {
        // With lists of an earlier run everything may be here: no network is needed then.
        if let Ok(items) = self.resolve(packages)
            && !items.is_empty()
            && self.missing(&items).is_empty()
        {
            return Ok(self.paths(&items));
        }
        progress.say("updating Debian's package lists");
        self.retry("update the package lists", progress, || {
            self.run(&["update", "-q", "-o", "APT::Update::Error-Mode=any"], || {}).map(drop)
        })?;
        let items = self
            .resolve(packages)
            .map_err(|why| self.error(&format!("find {}", packages.join(", ")), why))?;
        let missing = self.missing(&items);
        if missing.is_empty() {
            return Ok(self.paths(&items));
        }
        let total: u64 = missing.iter().map(|i| i.size).sum();
        let archives = self.archives();
        if let Ok(s) = rustix::fs::statvfs(&archives)
            && s.f_bavail.saturating_mul(s.f_frsize) < total
        {
            return Err(DebianError::DiskFull {
                folder: archives,
                needed: format!("{} MB", total.div_ceil(1_000_000)),
            });
        }
        let (count, s) = (missing.len(), if missing.len() == 1 { "" } else { "s" });
        progress.say(&format!("fetching {count} package{s} from Debian, {:.1} MB", total as f64 / 1e6));
        let mut args = vec!["install", "--download-only", "-y", "-q"];
        args.extend(packages);
        self.retry(&format!("fetch {}", packages.join(", ")), progress, || {
            self.run(&args, || progress.bytes(self.fetched(&missing), total)).map(drop)
        })?;
        progress.bytes(total, total);
        progress.done();
        if let Some(i) = self.missing(&items).first() {
            return Err(self.error(&format!("fetch {}", i.name), "it was not stored".to_owned()));
        }
        Ok(self.paths(&items))
    }

    fn archives(&self) -> PathBuf {
        self.dir.join("cache/archives")
    }

    fn paths(&self, items: &[Item]) -> Vec<PathBuf> {
        items.iter().map(|i| self.archives().join(&i.name)).collect()
    }

    /// Items that are not here whole. apt moves a file to this folder only once it is whole and checked.
    fn missing(&self, items: &[Item]) -> Vec<Item> {
        let here = |i: &&Item| fs::metadata(self.archives().join(&i.name)).is_ok_and(|m| m.len() == i.size);
        items.iter().filter(|i| !here(i)).cloned().collect()
    }

    /// Bytes of `items` that have arrived.
    fn fetched(&self, items: &[Item]) -> u64 {
        let size = |p: PathBuf| fs::metadata(p).map_or(0, |m| m.len());
        let one = |i: &Item| {
            let whole = size(self.archives().join(&i.name));
            whole.max(size(self.archives().join("partial").join(&i.name))).min(i.size)
        };
        items.iter().map(one).sum()
    }

    /// The files that `packages` come to by the lists that are here.
    fn resolve(&self, packages: &[&str]) -> Result<Vec<Item>, String> {
        // An empty archive folder makes apt name all files, fetched or not.
        let none = format!("Dir::Cache::archives={}", self.dir.join("cache/none").display());
        let mut args = vec!["install", "--print-uris", "-y", "-qq", "-o", &none];
        args.extend(packages);
        Ok(parse_uris(&self.run(&args, || {})?))
    }

    /// Runs apt-get, calling `tick` now and then; its standard output, or its words on why it failed.
    fn run(&self, args: &[&str], tick: impl Fn()) -> Result<String, String> {
        let option = |key: &str, path: &str| format!("{key}={}", self.dir.join(path).display());
        let options = [
            option("Dir::State", "state"),
            option("Dir::State::status", "state/status"),
            option("Dir::Cache", "cache"),
            option("Dir::Etc::sourceparts", "etc"),
            "Dir::Etc::sourcelist=/dev/null".to_owned(),
            "Dir::Etc::preferences=/dev/null".to_owned(),
            "Dir::Etc::preferencesparts=/dev/null".to_owned(),
            "APT::Architecture=amd64".to_owned(),
            "APT::Architectures::=amd64".to_owned(),
            "APT::Install-Recommends=false".to_owned(),
            "APT::Install-Suggests=false".to_owned(),
            // As root apt would drop to a user who cannot enter root's cache folder.
            "APT::Sandbox::User=root".to_owned(),
            // Whatever the host allows itself: nothing unsigned comes into a guest.
            "APT::Get::AllowUnauthenticated=false".to_owned(),
            "Acquire::AllowInsecureRepositories=false".to_owned(),
            "Acquire::AllowWeakRepositories=false".to_owned(),
            "Acquire::AllowDowngradeToInsecureRepositories=false".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::http::Timeout=30".to_owned(),
            "Acquire::https::Timeout=30".to_owned(),
        ];
        let mut cmd = Command::new("apt-get");
        cmd.arg("-c").arg(self.dir.join("etc/overrides.conf"));
        for o in &options {
            cmd.args(["-o", o]);
        }
        cmd.args(args).env("LC_ALL", "C").env_remove("APT_CONFIG");
        cmd.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = cmd.spawn().map_err(|e| e.to_string())?;
        let out = drain(child.stdout.take());
        let err = drain(child.stderr.take());
        let mut watch = Watch::new(&self.dir);
        let status = loop {
            match child.try_wait() {
                Ok(Some(s)) => break s,
                Ok(None) => tick(),
                Err(e) => return Err(e.to_string()),
            }
            if let Some(why) = watch.stuck() {
                let _gone = child.kill().and_then(|()| child.wait());
                return Err(why.to_owned());
            }
            thread::sleep(Duration::from_millis(50));
        };
        let (out, err) = (out.join().unwrap_or_default(), err.join().unwrap_or_default());
        if status.success() { Ok(out) } else { Err(complaint(&err)) }
    }

    fn retry(
        &self,
        what: &str,
        progress: &Progress,
        step: impl Fn() -> Result<(), String>,
    ) -> Result<(), DebianError> {
        let mut wait = Duration::from_secs(1);
        for left in (0..TRIES).rev() {
            match step() {
                Ok(()) => return Ok(()),
                Err(why) if left == 0 || is_final(&why) => return Err(self.error(what, why)),
                Err(why) => {
                    progress.say(&format!("could not {what} ({why}); trying again in {} s", wait.as_secs()));
                    thread::sleep(wait);
                    wait *= 2;
                }
            }
        }
        Ok(())
    }

    fn error(&self, what: &str, why: String) -> DebianError {
        if is_disk_full(&why) {
            // What has come so far would only keep the disk full.
            for partial in ["state/lists", "cache/archives/partial"] {
                let _may_stay: io::Result<()> = fs::remove_dir_all(self.dir.join(partial));
            }
            return DebianError::DiskFull { folder: self.dir.clone(), needed: "more space".to_owned() };
        }
        DebianError::Apt { what: what.to_owned(), why }
    }
}

/// Notices that apt-get is stuck: it can wait for ever for a helper that a full disk has killed.
struct Watch<'a> {
    dir: &'a Path,
    looked: Instant,
    /// Bytes stored, and since when they have been so many.
    stored: u64,
    since: Instant,
}

impl Watch<'_> {
    fn new(dir: &Path) -> Watch<'_> {
        let now = Instant::now();
        Watch { dir, looked: now, stored: 0, since: now }
    }

    /// Why apt-get should be ended, if it should.
    fn stuck(&mut self) -> Option<&'static str> {
        if self.looked.elapsed() < Duration::from_secs(1) {
            return None;
        }
        self.looked = Instant::now();
        let folders = ["state/lists", "state/lists/partial", "cache/archives", "cache/archives/partial"];
        let entries = folders.iter().filter_map(|f| fs::read_dir(self.dir.join(f)).ok()).flatten().flatten();
        let stored = entries.filter_map(|e| e.metadata().ok()).map(|m| m.len()).sum();
        if stored != self.stored {
            (self.stored, self.since) = (stored, self.looked);
        }
        let idle = self.since.elapsed();
        let full = || rustix::fs::statvfs(self.dir).is_ok_and(|s| s.f_bavail == 0);
        if idle > Duration::from_secs(5) && full() {
            return Some("No space left on device");
        }
        (idle > STALLED).then_some("nothing came for two minutes")
    }
}

fn drain(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut text = Vec::new();
        if let Some(mut p) = pipe {
            let _: io::Result<usize> = p.read_to_end(&mut text);
        }
        String::from_utf8_lossy(&text).into_owned()
    })
}

/// The lines of `apt-get --print-uris`: 'URI' NAME SIZE HASH. Names are file names, not paths.
fn parse_uris(text: &str) -> Vec<Item> {
    let line = |l: &str| {
        let mut words = l.strip_prefix('\'')?.split_once("' ")?.1.split(' ');
        let name = words.next().filter(|n| n.ends_with(".deb") && !n.contains('/'))?;
        Some(Item { name: name.to_owned(), size: words.next()?.parse().ok()? })
    };
    text.lines().filter_map(line).collect()
}

/// apt's reason in one line: the first error that names a cause, or the last words it said.
fn complaint(stderr: &str) -> String {
    let errors = || stderr.lines().filter_map(|l| l.strip_prefix("E: "));
    let full = stderr.lines().find(|l| is_disk_full(l));
    let one = full
        .or_else(|| errors().next())
        .or_else(|| stderr.lines().next_back())
        .unwrap_or("it gave no reason");
    one.trim().trim_end_matches('.').to_owned()
}

fn is_disk_full(why: &str) -> bool {
    ["No space left on device", "enough free space", "Disk quota exceeded"].iter().any(|w| why.contains(w))
}

/// Whether trying again cannot help.
fn is_final(why: &str) -> bool {
    let hopeless =
        ["is not signed", "GPG error", "NO_PUBKEY", "Unable to locate", "no installation candidate"];
    is_disk_full(why) || why.contains("Permission denied") || hopeless.iter().any(|w| why.contains(w))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_apt_would_fetch() {
        let text = "'http://m.example/b_1%2b1.deb' b_1%3a1+1_amd64.deb 928188 MD5Sum:f6\n\
                    'http://m.example/l.deb' l_2_amd64.deb 26713492 \n\
                    'http://m.example/x' ../../x.deb 5 \nReading...\n";
        assert_eq!(
            parse_uris(text),
            [
                Item { name: "b_1%3a1+1_amd64.deb".into(), size: 928_188 },
                Item { name: "l_2_amd64.deb".into(), size: 26_713_492 },
            ]
        );
    }

    #[test]
    fn finds_the_reason() {
        let e = "W: noise\nE: Failed to fetch http://x  Error writing - write (28: No space left on device)\nE: Some files";
        assert!(is_disk_full(&complaint(e)));
        assert!(is_final(&complaint(e)));
        assert_eq!(complaint("E: Unable to locate package foo.\n"), "Unable to locate package foo");
        assert_eq!(complaint(""), "it gave no reason");
        assert!(!is_final("Temporary failure resolving 'm.example'"));
    }
}
