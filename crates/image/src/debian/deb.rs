//! Reading .deb packages (deb(5)): an ar archive that holds a compressed tar of the files.

use super::DebianError;
use lzma_rust2::XzReader;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Component, Path};

/// The most bytes one file of a package may have for us to hold it.
const MAX_FILE: u64 = 512 << 20;

/// What stands under one name in a package, folders left out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Entry {
    /// A regular file.
    File {
        /// Whether its owner may execute it.
        executable: bool,
        /// Its contents.
        data: Vec<u8>,
    },
    /// A symbolic link: where it leads, as the package says.
    Symlink(String),
    /// A hard link to a file that came before.
    Hardlink(String),
}

/// Walks the regular files of the package at `path`, in its order. `wanted` is given each one's path without a leading
/// slash, and says whether it wants the contents, which `take` then gets. Names that lead out of
/// the package's root are refused.
///
/// # Errors
/// [`DebianError::BadPackage`] for what is not a whole package; errors of `take`.
pub fn for_each_file(
    path: &Path,
    wanted: impl FnMut(&str) -> bool,
    take: impl FnMut(&str, Vec<u8>) -> Result<(), DebianError>,
) -> Result<(), DebianError> {
    read_files(path, open(path)?, wanted, take)
}

/// [`for_each_file`] of a package that is being read; `path` is what errors call it.
///
/// # Errors
/// As there.
pub fn read_files(
    path: &Path,
    package: impl Read,
    wanted: impl FnMut(&str) -> bool,
    mut take: impl FnMut(&str, Vec<u8>) -> Result<(), DebianError>,
) -> Result<(), DebianError> {
    read_entries(path, package, wanted, |name, entry| match entry {
        Entry::File { data, .. } => take(name, data),
        Entry::Symlink(_) | Entry::Hardlink(_) => Ok(()),
    })
}

/// As [`for_each_file`], with links and permissions.
///
/// # Errors
/// As there.
pub fn for_each_entry(
    path: &Path,
    wanted: impl FnMut(&str) -> bool,
    take: impl FnMut(&str, Entry) -> Result<(), DebianError>,
) -> Result<(), DebianError> {
    read_entries(path, open(path)?, wanted, take)
}

fn open(path: &Path) -> Result<BufReader<File>, DebianError> {
    Ok(BufReader::new(File::open(path).map_err(|e| DebianError::io("open", path, e))?))
}

fn read_entries(
    path: &Path,
    package: impl Read,
    mut wanted: impl FnMut(&str) -> bool,
    mut take: impl FnMut(&str, Entry) -> Result<(), DebianError>,
) -> Result<(), DebianError> {
    let bad = |why: String| DebianError::BadPackage { path: path.to_owned(), why };
    let mut ar = ar::Archive::new(package);
    while let Some(member) = ar.next_entry() {
        let member = member.map_err(|e| bad(format!("its ar archive is damaged ({e})")))?;
        let name = String::from_utf8_lossy(member.header().identifier()).into_owned();
        if !name.starts_with("data.tar") {
            continue;
        }
        let reader = decoder(&name, member).ok_or_else(|| bad(format!("{name} is in an unknown form")))?;
        let mut tar = tar::Archive::new(reader);
        let damaged = |e: io::Error| bad(format!("{name} is damaged or cut short ({e})"));
        for entry in tar.entries().map_err(damaged)? {
            let mut entry = entry.map_err(damaged)?;
            let kind = entry.header().entry_type();
            if !(kind.is_file() || kind.is_symlink() || kind.is_hard_link()) {
                continue;
            }
            let file = {
                let raw = entry.path().map_err(damaged)?;
                clean(&raw).ok_or_else(|| bad(format!("a file in it is called {raw:?}")))?
            };
            if !wanted(&file) {
                continue;
            }
            if !kind.is_file() {
                let target = entry.link_name().map_err(damaged)?.unwrap_or_default();
                let strange = || bad(format!("{file} is a link to {target:?}"));
                let made = if kind.is_symlink() {
                    Entry::Symlink(target.to_str().ok_or_else(strange)?.to_owned())
                } else {
                    Entry::Hardlink(clean(&target).ok_or_else(strange)?)
                };
                take(&file, made)?;
                continue;
            }
            let size = entry.size();
            if size > MAX_FILE {
                return Err(bad(format!("{file} is {size} bytes long")));
            }
            let executable = entry.header().mode().map_err(damaged)? & 0o100 != 0;
            let mut data = Vec::new();
            entry.read_to_end(&mut data).map_err(damaged)?;
            if data.len() as u64 != size {
                return Err(bad(format!("{file} is cut short")));
            }
            take(&file, Entry::File { executable, data })?;
        }
        return Ok(());
    }
    Err(bad("it holds no data.tar".to_owned()))
}

fn decoder<'a>(name: &str, r: impl Read + 'a) -> Option<Box<dyn Read + 'a>> {
    Some(match name.trim_end_matches('/') {
        "data.tar" => Box::new(r),
        "data.tar.xz" => Box::new(XzReader::new(BufReader::with_capacity(1 << 16, r), true)),
        "data.tar.gz" => Box::new(flate2::read::GzDecoder::new(r)),
        "data.tar.zst" => Box::new(ruzstd::decoding::StreamingDecoder::new(r).ok()?),
        _ => return None,
    })
}

/// `path` as plain components joined by slashes; `None` if it is not UTF-8, or climbs.
fn clean(path: &Path) -> Option<String> {
    let mut out = Vec::new();
    for c in path.components() {
        match c {
            Component::Normal(s) => out.push(s.to_str()?),
            Component::CurDir => {}
            _ => return None,
        }
    }
    Some(out.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn package(data_name: &str, data: &[u8]) -> Vec<u8> {
        let mut ar = ar::Builder::new(Vec::new());
        let mut put = |name: &str, data: &[u8]| {
            let h = ar::Header::new(name.as_bytes().to_vec(), data.len() as u64);
            ar.append(&h, data).unwrap();
        };
        put("debian-binary", b"2.0\n");
        put("control.tar.gz", b"");
        put(data_name, data);
        ar.into_inner().unwrap()
    }

    fn tarball(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, data) in files {
            let mut h = tar::Header::new_gnu();
            // Written raw: the crate refuses to build names that climb.
            h.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
            h.set_size(data.len() as u64);
            h.set_mode(0o644);
            h.set_cksum();
            tar.append(&h, *data).unwrap();
        }
        tar.into_inner().unwrap()
    }

    fn files(deb: &[u8]) -> Result<Vec<(String, Vec<u8>)>, String> {
        let mut f = tempfile::NamedTempFile::new().unwrap();
        f.write_all(deb).unwrap();
        let mut out = Vec::new();
        for_each_file(
            f.path(),
            |n| !n.ends_with("skip"),
            |n, d| {
                out.push((n.to_owned(), d));
                Ok(())
            },
        )
        .map_err(|e| e.to_string())?;
        Ok(out)
    }

    #[test]
    fn reads_plain_and_gzip_members() {
        let tar = tarball(&[("./bin/a", b"AA"), ("./bin/skip", b"x")]);
        assert_eq!(files(&package("data.tar", &tar)).unwrap(), [("bin/a".to_owned(), b"AA".to_vec())]);
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(&tar).unwrap();
        let gz = gz.finish().unwrap();
        assert_eq!(files(&package("data.tar.gz", &gz)).unwrap().len(), 1);
        assert!(files(&package("data.tar.gz", &gz[..gz.len() / 2])).unwrap_err().contains("data.tar.gz"));
    }

    #[test]
    fn reads_links_and_permissions() {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, kind, mode) in [
            ("bin/a", tar::EntryType::Regular, 0o755),
            ("bin/b", tar::EntryType::Symlink, 0o777),
            ("bin/c", tar::EntryType::Link, 0o755),
        ] {
            let mut h = tar::Header::new_gnu();
            h.set_path(name).unwrap();
            h.set_entry_type(kind);
            h.set_size(0);
            h.set_mode(mode);
            if mode != 0o755 || kind == tar::EntryType::Link {
                h.set_link_name("bin/a").unwrap();
            }
            h.set_cksum();
            tar.append(&h, &[][..]).unwrap();
        }
        let deb = package("data.tar", &tar.into_inner().unwrap());
        let mut got = Vec::new();
        read_entries(
            Path::new("x.deb"),
            deb.as_slice(),
            |_| true,
            |n, e| {
                got.push((n.to_owned(), e));
                Ok(())
            },
        )
        .unwrap();
        assert_eq!(
            got,
            [
                ("bin/a".to_owned(), Entry::File { executable: true, data: vec![] }),
                ("bin/b".to_owned(), Entry::Symlink("bin/a".to_owned())),
                ("bin/c".to_owned(), Entry::Hardlink("bin/a".to_owned())),
            ]
        );
    }

    #[test]
    fn refuses_what_climbs_or_is_cut() {
        let deb = package("data.tar", &tarball(&[("../../etc/passwd", b"x")]));
        assert!(files(&deb).unwrap_err().contains("../../etc/passwd"));
        let deb = package("data.tar", &tarball(&[("a", &[7; 2000])]));
        assert!(files(&deb[..deb.len() - 2500]).is_err());
        assert!(files(b"!<arch>\n").unwrap_err().contains("no data.tar"));
        assert!(files(b"not a package at all").is_err());
        assert!(files(&package("data.tar.lrz", b"")).unwrap_err().contains("unknown form"));
    }
}
