//! A root file system in memory, from Debian packages and files of ours, and its two forms: a folder on the host and an
//! initramfs.

use anyhow::{Context, Result, bail};
use ringer_image::debian::cpio::CpioWriter;
use ringer_image::debian::deb::{Entry, for_each_entry};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

/// Folders that stand under /usr alone, with links at the root (Debian's merged /usr).
const MERGED: [&str; 4] = ["bin", "lib", "lib64", "sbin"];

/// Files and links by their path without a leading slash. Folders follow from the paths.
#[derive(Debug, Default)]
pub struct Tree {
    entries: BTreeMap<String, Entry>,
}

impl Tree {
    /// Puts a file.
    pub fn file(&mut self, path: &str, executable: bool, data: Vec<u8>) {
        self.entries.insert(path.to_owned(), Entry::File { executable, data });
    }

    /// Contents of the first file whose path `is` accepts.
    pub fn find(&self, is: impl Fn(&str) -> bool) -> Option<&[u8]> {
        self.entries.iter().find_map(|(name, e)| match e {
            Entry::File { data, .. } if is(name) => Some(data.as_slice()),
            _ => None,
        })
    }

    /// Adds what `wanted` accepts (of merged paths) of a package.
    ///
    /// # Errors
    /// If it is not a whole package.
    pub fn unpack(&mut self, deb: &Path, wanted: impl Fn(&str) -> bool) -> Result<()> {
        for_each_entry(
            deb,
            |name| wanted(&merged(name)),
            |name, entry| {
                let entry = match entry {
                    Entry::Hardlink(to) => match self.entries.get(&merged(&to)) {
                        Some(e) => e.clone(),
                        None => Entry::Symlink(format!("/{}", merged(&to))),
                    },
                    e => e,
                };
                self.entries.insert(merged(name), entry);
                Ok(())
            },
        )?;
        Ok(())
    }

    fn dirs(&self) -> BTreeSet<&str> {
        let mut dirs =
            BTreeSet::from(["dev", "proc", "sys", "tmp", "usr/bin", "usr/lib", "usr/lib64", "usr/sbin"]);
        dirs.insert("usr");
        for name in self.entries.keys() {
            dirs.extend(name.match_indices('/').map(|(i, _)| &name[..i]));
        }
        dirs
    }

    /// Writes it as an initramfs.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write_cpio<W: Write>(&self, out: W) -> io::Result<W> {
        let mut w = CpioWriter::new(out);
        for d in self.dirs() {
            w.dir(d, 0o755)?;
        }
        for d in MERGED {
            w.symlink(d, &format!("usr/{d}"))?;
        }
        for (name, e) in &self.entries {
            match e {
                Entry::File { executable, data } => {
                    w.file(name, if *executable { 0o755 } else { 0o644 }, data)?;
                }
                Entry::Symlink(to) | Entry::Hardlink(to) => w.symlink(name, to)?,
            }
        }
        w.finish()
    }

    /// Writes it as a folder.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn write_folder(&self, root: &Path) -> Result<()> {
        for d in self.dirs() {
            let p = root.join(d);
            fs::create_dir_all(&p).with_context(|| format!("cannot make {}", p.display()))?;
        }
        for (name, e) in &self.entries {
            if let Entry::File { executable, data } = e {
                let p = root.join(name);
                let mode = fs::Permissions::from_mode(if *executable { 0o755 } else { 0o644 });
                fs::write(&p, data)
                    .and_then(|()| fs::set_permissions(&p, mode))
                    .with_context(|| format!("cannot write {}", p.display()))?;
            }
        }
        // Links come last, so that nothing is written through one.
        let merged = MERGED.map(|d| (d.to_owned(), format!("usr/{d}")));
        let links = self.entries.iter().filter_map(|(name, e)| match e {
            Entry::Symlink(to) | Entry::Hardlink(to) => Some((name.clone(), to.clone())),
            Entry::File { .. } => None,
        });
        for (name, to) in links.chain(merged) {
            let p = root.join(&name);
            symlink(&to, &p).with_context(|| format!("cannot make the link {}", p.display()))?;
        }
        Ok(())
    }

    /// Fails unless it holds a file that `is` accepts.
    ///
    /// # Errors
    /// If there is none.
    pub fn need(&self, what: &str, is: impl Fn(&str) -> bool) -> Result<&[u8]> {
        match self.find(is) {
            Some(data) => Ok(data),
            None => bail!("Debian's packages did not bring {what}; the benchmark does not know this release"),
        }
    }
}

/// Where a path of a package is with a merged /usr.
fn merged(path: &str) -> String {
    match path.split_once('/') {
        Some((first, _)) if MERGED.contains(&first) => format!("usr/{path}"),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_merged() {
        assert_eq!(merged("lib64/ld.so"), "usr/lib64/ld.so");
        assert_eq!(merged("usr/bin/x"), "usr/bin/x");
        assert_eq!(merged("libexec/x"), "libexec/x");
    }

    #[test]
    fn folders_come_before_what_stands_in_them() {
        let mut t = Tree::default();
        t.file("a/b/c", true, b"data".to_vec());
        let dirs: Vec<_> = t.dirs().into_iter().collect();
        assert!(dirs.starts_with(&["a", "a/b", "dev"]) && dirs.is_sorted());
        let cpio = t.write_cpio(Vec::new()).unwrap();
        let at = |what: &[u8]| cpio.windows(what.len()).position(|w| w == what).unwrap();
        assert!(at(b"a/b\0") < at(b"a/b/c\0"));
        assert_eq!(t.need("c", |n| n.ends_with("/c")).unwrap(), b"data");
        assert!(t.need("d", |n| n == "d").is_err());
    }
}
