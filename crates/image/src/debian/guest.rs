//! The guests that Ringer can fetch and make.

use super::DebianError;
use super::apt::Apt;
use super::cache::{Cache, CacheLock};
use super::deb::for_each_file;
use super::initramfs::{self, Contents};
use super::modules;
use super::progress::Progress;
use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

/// Which guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GuestKind {
    /// Debian's cloud kernel with busybox: the default.
    Cloud,
    /// Debian's stock kernel with busybox.
    Amd64,
    /// Debian's real-time kernel with busybox.
    Rt,
    /// Debian's installer (netboot, text), as it is.
    Installer,
}

impl std::str::FromStr for GuestKind {
    type Err = DebianError;

    fn from_str(s: &str) -> Result<GuestKind, DebianError> {
        Ok(match s {
            "cloud" => GuestKind::Cloud,
            "amd64" => GuestKind::Amd64,
            "rt" => GuestKind::Rt,
            "installer" => GuestKind::Installer,
            _ => return Err(DebianError::UnknownGuest(s.to_owned())),
        })
    }
}

/// A guest that is ready to boot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Guest {
    /// Its kernel (bzImage).
    pub kernel: PathBuf,
    /// Its initramfs.
    pub initrd: PathBuf,
}

impl GuestKind {
    fn name(self) -> &'static str {
        match self {
            GuestKind::Cloud => "cloud",
            GuestKind::Amd64 => "amd64",
            GuestKind::Rt => "rt",
            GuestKind::Installer => "installer",
        }
    }

    /// Packages to fetch; kernels by the meta-package that depends on the newest one.
    fn packages(self) -> &'static [&'static str] {
        match self {
            GuestKind::Cloud => &["linux-image-cloud-amd64", "busybox-static"],
            GuestKind::Amd64 => &["linux-image-amd64", "busybox-static"],
            GuestKind::Rt => &["linux-image-rt-amd64", "busybox-static"],
            GuestKind::Installer => &["^debian-installer-[0-9]+-netboot-amd64$"],
        }
    }
}

/// Returns the guest from `cache`, making it first if it is not there.
///
/// # Errors
/// All of [`DebianError`].
pub fn guest(cache: &Cache, kind: GuestKind, progress: &Progress) -> Result<Guest, DebianError> {
    let name = format!("{}-{:016x}", kind.name(), initramfs::recipe_version());
    let dir = cache.root().join("guests").join(&name);
    if let Some(g) = whole(&dir) {
        return Ok(g);
    }
    let lock = cache.lock(progress)?;
    if let Some(g) = whole(&dir) {
        return Ok(g);
    }
    let debs = packages(cache, &lock, kind.packages(), progress)?;
    progress.say(&format!("making the {} guest", kind.name()));
    let made = cache.make(&lock, &name, |dir| match kind {
        GuestKind::Installer => unpack_installer(&debs, dir),
        _ => build(&debs, dir),
    })?;
    whole(&made)
        .ok_or(DebianError::BadPackage { path: made, why: "it holds no kernel or no initrd".to_owned() })
}

/// Fetches `packages` and what they depend on by apt, as for a guest; the .deb files, each checked.
///
/// # Errors
/// Those of apt, [`DebianError::Io`].
pub fn packages(
    cache: &Cache,
    _lock: &CacheLock,
    packages: &[&str],
    progress: &Progress,
) -> Result<Vec<PathBuf>, DebianError> {
    Apt::new(&cache.root().join("apt"))?.fetch(packages, progress)
}

/// The guest in `dir`. A folder of its name is only ever there whole.
fn whole(dir: &Path) -> Option<Guest> {
    let g = Guest { kernel: dir.join("vmlinuz"), initrd: dir.join("initrd") };
    (g.kernel.is_file() && g.initrd.is_file()).then_some(g)
}

fn store(dir: &Path, name: &str, data: &[u8]) -> Result<(), DebianError> {
    let p = dir.join(name);
    fs::write(&p, data).map_err(|e| DebianError::io("write", &p, e))
}

/// Takes kernel, modules and busybox out of `debs`.
fn build(debs: &[PathBuf], dir: &Path) -> Result<(), DebianError> {
    let mut c = Contents::default();
    let mut kernel = false;
    for deb in debs {
        let wanted = |p: &str| {
            p == "bin/busybox"
                || p == "usr/bin/busybox"
                || p.starts_with("boot/vmlinuz-")
                || module_path(p).is_some_and(|(_, m)| modules::worth_reading(m) || m.starts_with("modules."))
        };
        for_each_file(deb, wanted, |path, data| {
            if path.starts_with("boot/") {
                kernel = true;
                return store(dir, "vmlinuz", &data);
            }
            let Some((release, module)) = module_path(path) else {
                c.busybox = data;
                return Ok(());
            };
            release.clone_into(&mut c.release);
            if module.starts_with("modules.") {
                c.tables.push((module.to_owned(), data));
                return Ok(());
            }
            let bad = |why: String| DebianError::BadPackage { path: deb.clone(), why };
            let data = unpack_module(module, data).map_err(|e| bad(format!("{module} is damaged ({e})")))?;
            let plain = module.split(".ko").next().unwrap_or(module).to_owned() + ".ko";
            if let Some(m) = modules::parse(&plain, data) {
                c.modules.insert(modules::module_name(&plain), m);
            }
            Ok(())
        })?;
    }
    let lacks = |what: &str| DebianError::BadPackage {
        path: debs.first().cloned().unwrap_or_default(),
        why: format!("no {what} came with it"),
    };
    if !kernel {
        return Err(lacks("kernel"));
    }
    if c.busybox.is_empty() {
        return Err(lacks("busybox"));
    }
    let p = dir.join("initrd");
    let err = |e| DebianError::io("write", &p, e);
    let mut out = BufWriter::new(File::create(&p).map_err(err)?);
    initramfs::write(&mut out, &c).map_err(err)?;
    out.flush().map_err(err)
}

/// Splits `[usr/]lib/modules/RELEASE/REST`.
fn module_path(path: &str) -> Option<(&str, &str)> {
    path.strip_prefix("usr/").unwrap_or(path).strip_prefix("lib/modules/")?.split_once('/')
}

fn unpack_module(name: &str, data: Vec<u8>) -> std::io::Result<Vec<u8>> {
    /// No module is near this long.
    const MAX: u64 = 64 << 20;
    let mut out = Vec::new();
    if name.ends_with(".xz") {
        lzma_rust2::XzReader::new(data.as_slice(), true).take(MAX).read_to_end(&mut out)?;
    } else if name.ends_with(".gz") {
        flate2::read::GzDecoder::new(data.as_slice()).take(MAX).read_to_end(&mut out)?;
    } else {
        out = data;
    }
    Ok(out)
}

/// Takes the installer's kernel and initrd out of its package.
fn unpack_installer(debs: &[PathBuf], dir: &Path) -> Result<(), DebianError> {
    for deb in debs {
        let wanted = |p: &str| {
            p.contains("/amd64/text/debian-installer/amd64/")
                && (p.ends_with("/linux") || p.ends_with("/initrd.gz"))
        };
        for_each_file(deb, wanted, |path, data| {
            store(dir, if path.ends_with("/linux") { "vmlinuz" } else { "initrd" }, &data)
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn module_paths() {
        assert_eq!(module_path("lib/modules/6.1.0-1/kernel/a.ko"), Some(("6.1.0-1", "kernel/a.ko")));
        assert_eq!(module_path("usr/lib/modules/6.12/modules.order"), Some(("6.12", "modules.order")));
        assert_eq!(module_path("usr/share/doc/x"), None);
    }

    #[test]
    fn a_cached_guest_is_taken_without_apt() {
        let dir = tempfile::tempdir().unwrap();
        let name = format!("rt-{:016x}", initramfs::recipe_version());
        let g = dir.path().join("guests").join(name);
        fs::create_dir_all(&g).unwrap();
        for f in ["vmlinuz", "initrd"] {
            fs::write(g.join(f), f).unwrap();
        }
        let got = guest(&Cache::at(dir.path()), GuestKind::Rt, &Progress::silent()).unwrap();
        assert_eq!(got.kernel, g.join("vmlinuz"));
        assert!("sid".parse::<GuestKind>().unwrap_err().to_string().contains("\"sid\""));
    }
}
