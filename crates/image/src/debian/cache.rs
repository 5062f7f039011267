//! The cache folder: what was made once, whole or not at all.

use super::DebianError;
use super::progress::Progress;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

/// Ringer's folder under the user's cache folder.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

/// Only one process at a time makes things; dropping it lets the next one in.
#[derive(Debug)]
pub struct CacheLock {
    _file: File,
}

impl Cache {
    /// `$XDG_CACHE_HOME/ringer`, or `~/.cache/ringer` (XDG Base Directory Specification: relative paths do not count).
    ///
    /// # Errors
    /// [`DebianError::NoCacheFolder`].
    pub fn of_user() -> Result<Cache, DebianError> {
        let var = |name| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
        let base = var("XDG_CACHE_HOME").or_else(|| var("HOME").map(|h| h.join(".cache")));
        Ok(Cache { root: base.ok_or(DebianError::NoCacheFolder)?.join("ringer") })
    }

    /// A cache in this folder.
    #[must_use]
    pub fn at(root: &Path) -> Cache {
        Cache { root: root.to_owned() }
    }

    /// The folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Waits until no other process makes something here.
    ///
    /// # Errors
    /// [`DebianError::Io`], [`DebianError::DiskFull`].
    pub fn lock(&self, progress: &Progress) -> Result<CacheLock, DebianError> {
        fs::create_dir_all(&self.root).map_err(|e| DebianError::io("make", &self.root, e))?;
        let path = self.root.join("lock");
        let file = File::options().create(true).append(true).open(&path);
        let file = file.map_err(|e| DebianError::io("open", &path, e))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                progress.say("waiting for another Ringer that makes a guest");
                file.lock().map_err(|e| DebianError::io("lock", &path, e))?;
            }
            Err(TryLockError::Error(e)) => return Err(DebianError::io("lock", &path, e)),
        }
        Ok(CacheLock { _file: file })
    }

    /// Removes folders of guests whose name starts with `prefix`, except `keep`. A machine that runs from one is not
    /// harmed: it has its files open.
    pub fn remove_others(&self, _lock: &CacheLock, prefix: &str, keep: &str) {
        for old in fs::read_dir(self.root.join("guests")).into_iter().flatten().flatten() {
            let name = old.file_name();
            if name != keep && name.to_string_lossy().starts_with(prefix) {
                let _may_stay: io::Result<()> = fs::remove_dir_all(old.path());
            }
        }
    }

    /// Makes the folder `guests/NAME` by letting `fill` write into a new one, which takes that name when it is whole and
    /// on disk. Whatever fails, nothing is left behind.
    ///
    /// # Errors
    /// Those of `fill`, [`DebianError::Io`], [`DebianError::DiskFull`].
    pub fn make(
        &self,
        _lock: &CacheLock,
        name: &str,
        fill: impl FnOnce(&Path) -> Result<(), DebianError>,
    ) -> Result<PathBuf, DebianError> {
        let guests = self.root.join("guests");
        fs::create_dir_all(&guests).map_err(|e| DebianError::io("make", &guests, e))?;
        // What a killed process left: nobody else can be at it, we hold the lock.
        for old in fs::read_dir(&guests).into_iter().flatten().flatten() {
            if old.file_name().to_string_lossy().starts_with(".new-") {
                let _may_stay: io::Result<()> = fs::remove_dir_all(old.path());
            }
        }
        let new = guests.join(format!(".new-{name}"));
        let target = guests.join(name);
        let made = fs::create_dir(&new)
            .map_err(|e| DebianError::io("make", &new, e))
            .and_then(|()| fill(&new))
            .and_then(|()| sync(&new).map_err(|e| DebianError::io("store", &new, e)))
            .and_then(|()| {
                if target.exists() {
                    fs::remove_dir_all(&target).map_err(|e| DebianError::io("replace", &target, e))?;
                }
                fs::rename(&new, &target).map_err(|e| DebianError::io("rename", &new, e))
            });
        if let Err(e) = made {
            let _may_stay: io::Result<()> = fs::remove_dir_all(&new);
            return Err(match e {
                DebianError::DiskFull { needed, .. } => DebianError::DiskFull { folder: guests, needed },
                e => e,
            });
        }
        sync_dir(&guests).map_err(|e| DebianError::io("store", &guests, e))?;
        Ok(target)
    }
}

/// Puts the files of `dir` and itself on disk.
fn sync(dir: &Path) -> io::Result<()> {
    for f in fs::read_dir(dir)? {
        File::open(f?.path())?.sync_all()?;
    }
    sync_dir(dir)
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path());
        let lock = cache.lock(&Progress::silent()).unwrap();
        fs::create_dir_all(dir.path().join("guests/.new-killed")).unwrap();
        let fails = cache.make(&lock, "g", |d| {
            fs::write(d.join("half"), "x").unwrap();
            Err(DebianError::NoApt)
        });
        assert!(matches!(fails, Err(DebianError::NoApt)));
        assert_eq!(fs::read_dir(dir.path().join("guests")).unwrap().count(), 0);
        for text in ["one", "two"] {
            let made = cache.make(&lock, "g", |d| {
                fs::write(d.join("f"), text).map_err(|e| DebianError::io("write", d, e))
            });
            assert_eq!(fs::read_to_string(made.unwrap().join("f")).unwrap(), text);
        }
        fs::create_dir_all(dir.path().join("guests/g2")).unwrap();
        cache.remove_others(&lock, "g", "g2");
        assert!(!dir.path().join("guests/g").exists() && dir.path().join("guests/g2").exists());
    }
}
