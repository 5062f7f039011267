//! What can go wrong while a guest is made.

use std::path::PathBuf;
use thiserror::Error;

/// Why a Debian guest could not be fetched or made.
#[derive(Debug, Error)]
pub enum DebianError {
    /// There is no apt on this host.
    #[error(
        "the default guest is fetched by apt-get, which this host does not have: give --kernel and --initrd instead"
    )]
    NoApt,
    /// The host's apt knows no Debian archive.
    #[error(
        "no Debian archive in the package sources under {}: name a sources file in RINGER_APT_SOURCES, or give --kernel and --initrd",
        .0.display()
    )]
    NoSources(PathBuf),
    /// The keyring that signatures are checked with is missing.
    #[error(
        "the Debian archive keyring ({}) is missing, so nothing fetched could be trusted: install debian-archive-keyring, or give --kernel and --initrd",
        .0.display()
    )]
    NoKeyring(PathBuf),
    /// Neither `XDG_CACHE_HOME` nor `HOME` names a folder.
    #[error("no cache folder: set XDG_CACHE_HOME or HOME to an absolute path")]
    NoCacheFolder,
    /// apt-get failed, after retries.
    #[error("apt-get could not {what}: {why}")]
    Apt {
        /// What was asked of it.
        what: String,
        /// Its own words.
        why: String,
    },
    /// The disk that holds the cache is full.
    #[error("the disk is full: {} needs {needed}; make room there, or set XDG_CACHE_HOME to another disk", .folder.display())]
    DiskFull {
        /// Folder on that disk.
        folder: PathBuf,
        /// What was to be stored.
        needed: String,
    },
    /// A file of the cache could not be read or written.
    #[error("cannot {what} {}", .path.display())]
    Io {
        /// The verb.
        what: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The host's error.
        #[source]
        source: std::io::Error,
    },
    /// A package does not hold what it should.
    #[error("package {} is not usable: {why}", .path.display())]
    BadPackage {
        /// The .deb file.
        path: PathBuf,
        /// One clause.
        why: String,
    },
    /// There is no guest of this name.
    #[error("no guest is called {0:?}: choose cloud, amd64, rt or installer")]
    UnknownGuest(String),
}

impl DebianError {
    /// An I/O error on `path`; a full disk gets its own sentence.
    pub(super) fn io(what: &'static str, path: &std::path::Path, source: std::io::Error) -> DebianError {
        use std::io::ErrorKind;
        if matches!(source.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) {
            let needed = "more space".to_owned();
            return DebianError::DiskFull { folder: path.parent().unwrap_or(path).to_owned(), needed };
        }
        DebianError::Io { what, path: path.to_owned(), source }
    }
}
