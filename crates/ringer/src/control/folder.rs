//! The user's run-time folder: a socket and a lock for each machine with a name.
//!
//! `NAME.lock` is locked (flock) by the machine's process for as long as it lives, and holds its process id; whoever has the lock owns
//! `NAME.sock`. Both are removed under the lock, so that nobody removes what has just become another machine's.

use super::name::VmName;
use anyhow::{Context, anyhow, bail};
use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, flock, open, statat, unlink};
use rustix::io::Errno;
use rustix::process::geteuid;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The longest path of a Unix socket (unix(7)): 108 bytes with the NUL at the end.
const MOST_SOCKET: usize = 107;
/// Whoever cleans up after a dead machine holds its lock for a moment: a new one of that name tries so often.
const TRIES: u32 = 10;
const BETWEEN_TRIES: Duration = Duration::from_millis(20);

/// The folder of the user's machines, made if need be; `None` if it is not there and is not to be made.
///
/// `$XDG_RUNTIME_DIR/ringer` (XDG Base Directory Specification), else `/run/user/UID/ringer`, else `ringer-UID` in the folder for
/// temporary files.
pub fn folder(make: bool) -> anyhow::Result<Option<PathBuf>> {
    let uid = geteuid().as_raw();
    let set = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|p| p.is_absolute());
    let of_user = PathBuf::from(format!("/run/user/{uid}"));
    let path = match set {
        Some(dir) => dir.join("ringer"),
        None if of_user.is_dir() => of_user.join("ringer"),
        None => std::env::temp_dir().join(format!("ringer-{uid}")),
    };
    private_folder(&path, make).map(|there| there.then_some(path))
}

/// Whether `path` is there, after making it if it is to be: a folder that nobody but the user can look into.
fn private_folder(path: &Path, make: bool) -> anyhow::Result<bool> {
    if make {
        match std::fs::DirBuilder::new().mode(0o700).create(path) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(e).with_context(|| format!("the folder {} cannot be made", path.display()));
            }
            _ => {}
        }
    }
    // Not through a symbolic link: in a folder that all can write to, another user may have put one there.
    let s = match statat(rustix::fs::CWD, path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(s) => s,
        Err(Errno::NOENT) => return Ok(false),
        Err(e) => return Err(e).with_context(|| format!("the folder {} cannot be read", path.display())),
    };
    let ours = FileType::from_raw_mode(s.st_mode) == FileType::Directory && s.st_uid == geteuid().as_raw();
    if !ours || s.st_mode & 0o077 != 0 {
        bail!(
            "{} is not a folder of yours alone (mode 0700): remove it, or set XDG_RUNTIME_DIR to another place",
            path.display()
        );
    }
    Ok(true)
}

pub fn socket_path(folder: &Path, name: &VmName) -> PathBuf {
    folder.join(format!("{name}.sock"))
}

fn lock_path(folder: &Path, name: &VmName) -> PathBuf {
    folder.join(format!("{name}.lock"))
}

/// The names of which there is a socket or a lock, in order.
pub fn names(folder: &Path) -> anyhow::Result<Vec<VmName>> {
    let list = std::fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let stem = |name: &OsStr| {
        let name = Path::new(name);
        let ours = name.extension().is_some_and(|e| e == "sock" || e == "lock");
        // Of names that no machine can have, another owns the file.
        name.file_stem().filter(|_| ours).and_then(OsStr::to_str).and_then(|n| n.parse().ok())
    };
    let mut names: Vec<VmName> = list.filter_map(|e| stem(&e.ok()?.file_name())).collect();
    names.sort();
    names.dedup();
    Ok(names)
}

/// A name that is this process's until this is dropped.
#[derive(Debug)]
pub struct Claim {
    folder: PathBuf,
    name: VmName,
    lock: File,
}

impl Claim {
    /// Claims `name` for this process.
    pub fn new(name: &VmName) -> anyhow::Result<Claim> {
        let folder = folder(true)?.ok_or_else(|| anyhow!("the run-time folder has vanished"))?;
        let path = socket_path(&folder, name);
        if path.as_os_str().len() > MOST_SOCKET {
            bail!("the path {} is too long for a socket: choose a shorter --name", path.display());
        }
        for _ in 0..TRIES {
            if let Some(mut claim) = Claim::take(&folder, name)? {
                claim.write_pid()?;
                let _none = unlink(claim.socket_path());
                return Ok(claim);
            }
            std::thread::sleep(BETWEEN_TRIES);
        }
        let mut pid = String::new();
        let _unknown = File::open(lock_path(&folder, name)).and_then(|f| f.take(20).read_to_string(&mut pid));
        let who = pid.trim().parse::<u32>().map_or(String::new(), |pid| format!(" (process {pid})"));
        bail!("a machine called {name} is running already{who}: choose another --name")
    }

    /// Claims it if nobody has it.
    pub fn take(folder: &Path, name: &VmName) -> anyhow::Result<Option<Claim>> {
        let path = lock_path(folder, name);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let lock = open(&path, flags, Mode::RUSR | Mode::WUSR)
            .with_context(|| format!("cannot open {}", path.display()))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Ok(None),
            r => r.with_context(|| format!("cannot lock {}", path.display()))?,
        }
        // Whoever had it may have removed the file meanwhile: what counts is the lock of the file that is there.
        let there = statat(rustix::fs::CWD, &path, AtFlags::SYMLINK_NOFOLLOW);
        let same = match (there, rustix::fs::fstat(&lock)) {
            (Ok(a), Ok(b)) => (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino),
            _ => false,
        };
        Ok(same.then(|| Claim { folder: folder.to_owned(), name: name.clone(), lock: File::from(lock) }))
    }

    fn write_pid(&mut self) -> anyhow::Result<()> {
        let text = format!("{}\n", std::process::id());
        self.lock.set_len(0).and_then(|()| self.lock.write_all_at(text.as_bytes(), 0))?;
        Ok(self.lock.flush()?)
    }

    pub fn name(&self) -> &VmName {
        &self.name
    }

    pub fn socket_path(&self) -> PathBuf {
        socket_path(&self.folder, &self.name)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let _gone = unlink(self.socket_path());
        let _gone = unlink(lock_path(&self.folder, &self.name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::PermissionsExt;

    fn temp() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn a_name_is_one_machines_at_a_time() {
        let dir = temp();
        let name: VmName = "web".parse().unwrap();
        let first = Claim::take(dir.path(), &name).unwrap().unwrap();
        std::fs::write(first.socket_path(), "").unwrap();
        assert!(Claim::take(dir.path(), &name).unwrap().is_none());
        assert!(Claim::take(dir.path(), &"db".parse().unwrap()).unwrap().is_some());
        assert_eq!(names(dir.path()).unwrap(), std::slice::from_ref(&name));
        drop(first);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "all is removed");
        assert!(Claim::take(dir.path(), &name).unwrap().is_some());
    }

    #[test]
    fn many_at_once() {
        let dir = temp();
        let name: VmName = "web".parse().unwrap();
        let holders = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    for _ in 0..500 {
                        if let Some(claim) = Claim::take(dir.path(), &name).unwrap() {
                            assert_eq!(holders.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0);
                            std::thread::yield_now();
                            holders.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                            drop(claim);
                        }
                    }
                });
            }
        });
    }

    #[test]
    fn other_files_are_no_machines() {
        let dir = temp();
        for f in ["-x.sock", "a b.lock", "note.txt", "b.sock", "a.lock", "a.sock", ".sock"] {
            std::fs::write(dir.path().join(f), "").unwrap();
        }
        std::fs::write(dir.path().join(OsStr::from_bytes(b"\xff.sock")), "").unwrap();
        let found: Vec<String> = names(dir.path()).unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(found, ["a", "b"]);
    }

    #[test]
    fn a_folder_that_others_can_enter_is_refused() {
        let dir = temp();
        let made = dir.path().join("made");
        assert!(!private_folder(&made, false).unwrap());
        assert!(private_folder(&made, true).unwrap());
        assert_eq!(std::fs::metadata(&made).unwrap().permissions().mode() & 0o777, 0o700);
        std::fs::set_permissions(&made, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(private_folder(&made, true).unwrap_err().to_string().contains("0700"));
        let link = dir.path().join("link");
        std::fs::set_permissions(&made, std::fs::Permissions::from_mode(0o700)).unwrap();
        std::os::unix::fs::symlink(&made, &link).unwrap();
        assert!(private_folder(&link, true).is_err());
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(private_folder(&file, false).is_err());
    }
}
