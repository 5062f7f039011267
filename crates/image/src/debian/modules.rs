//! Kernel modules: which ones a guest gets, what they depend on, and the tables that modprobe reads.

use elf::ElfBytes;
use elf::endian::LittleEndian;
use std::collections::{BTreeMap, BTreeSet};

/// Modules that a guest may need, by name. What a kernel has built in, or does not have, is passed over.
pub const WANTED: &[&str] = &[
    // Devices of ours.
    "virtio",
    "virtio_mmio",
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "virtio_rng",
    "virtio_scsi",
    "virtio_balloon",
    "virtio_mem",
    "virtio_pmem",
    "virtiofs",
    "vmw_vsock_virtio_transport",
    "9p",
    "9pnet_virtio",
    "button",
    "evdev",
    "i8042",
    "psmouse",
    "rtc_cmos",
    "msr",
    "cpuid",
    // File systems and what stands beneath them.
    "ext4",
    "crc32c_generic",
    "crc32c_intel",
    "crc32_pclmul",
    "overlay",
    "squashfs",
    "isofs",
    "vfat",
    "nls_cp437",
    "nls_ascii",
    "nls_utf8",
    "nls_iso8859_1",
    "fuse",
    "loop",
    "dm_mod",
    "zram",
    "autofs4",
    // Networks: containers and firewalls inside the guest.
    "af_packet",
    "ipv6",
    "tun",
    "veth",
    "bridge",
    "macvlan",
    "dummy",
    "nf_tables",
    "nft_chain_nat",
    "nft_compat",
    "nft_ct",
    "nft_masq",
    "xt_MASQUERADE",
    "xt_conntrack",
    "xt_addrtype",
    "ip_tables",
    "iptable_nat",
    "iptable_filter",
    "br_netfilter",
    "unix",
    // Cryptography by instruction.
    "aesni_intel",
    "ghash_clmulni_intel",
    "sha1_ssse3",
    "sha256_ssse3",
    "sha512_ssse3",
    "crct10dif_pclmul",
];

/// Folders below `kernel/` of modules that none of [`WANTED`] needs: not worth the memory to look at.
const PASSED_OVER: &[&str] = &[
    "sound/",
    "drivers/gpu/",
    "drivers/media/",
    "drivers/infiniband/",
    "drivers/staging/",
    "drivers/iio/",
    "drivers/usb/",
    "drivers/hid/",
    "drivers/isdn/",
    "drivers/net/ethernet/",
    "drivers/net/wireless/",
    "drivers/hwmon/",
    "drivers/mtd/",
    "drivers/bluetooth/",
    "drivers/comedi/",
    "drivers/platform/",
    "drivers/edac/",
    "fs/ocfs2/",
    "fs/gfs2/",
    "net/mac80211/",
];

/// One module of a kernel package.
#[derive(Debug)]
pub struct Module {
    /// Path below `lib/modules/VERSION/`, ending in `.ko`.
    pub path: String,
    /// The ELF file, not compressed.
    pub data: Vec<u8>,
    depends: Vec<String>,
    softdeps: Vec<String>,
    aliases: Vec<String>,
}

/// Modules by name, with `_` for `-`.
pub type Modules = BTreeMap<String, Module>;

/// Whether the file at this path below `lib/modules/VERSION/` is a module worth reading.
#[must_use]
pub fn worth_reading(path: &str) -> bool {
    let Some(rest) = path.strip_prefix("kernel/") else { return false };
    let module = rest.ends_with(".ko") || rest.ends_with(".ko.xz") || rest.ends_with(".ko.gz");
    module && !PASSED_OVER.iter().any(|p| rest.starts_with(p))
}

/// The name that modprobe knows a module file by.
#[must_use]
pub fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

/// Reads a module's own description (its `.modinfo` section); `None` if it is not a module.
#[must_use]
pub fn parse(path: &str, data: Vec<u8>) -> Option<Module> {
    let (mut depends, mut softdeps, mut aliases) = (Vec::new(), Vec::new(), Vec::new());
    {
        let elf = ElfBytes::<LittleEndian>::minimal_parse(&data).ok()?;
        let section = elf.section_header_by_name(".modinfo").ok()??;
        let (info, _) = elf.section_data(&section).ok()?;
        for line in info.split(|b| *b == 0) {
            let Ok(line) = std::str::from_utf8(line) else { continue };
            match line.split_once('=') {
                Some(("depends", v)) => {
                    depends.extend(v.split(',').filter(|d| !d.is_empty()).map(|d| d.replace('-', "_")));
                }
                Some(("softdep", v)) => softdeps.push(v.to_owned()),
                Some(("alias", v)) => aliases.push(v.to_owned()),
                _ => {}
            }
        }
    }
    Some(Module { path: path.to_owned(), data, depends, softdeps, aliases })
}

/// The names of [`WANTED`] modules that `all` has, with everything that they depend on.
#[must_use]
pub fn closure(all: &Modules, wanted: &[&str]) -> BTreeSet<String> {
    let mut out = BTreeSet::new();
    let mut todo: Vec<String> = wanted.iter().map(|w| w.replace('-', "_")).collect();
    while let Some(name) = todo.pop() {
        let Some(m) = all.get(&name) else { continue };
        if out.insert(name) {
            todo.extend(m.depends.iter().cloned());
        }
    }
    out
}

/// `modules.dep`, `modules.alias` and `modules.softdep` for the modules `chosen` (modprobe's text tables, as depmod
/// writes them: dependencies nearest first).
#[must_use]
pub fn tables(all: &Modules, chosen: &BTreeSet<String>) -> [(&'static str, String); 3] {
    let (mut dep, mut alias, mut soft) = (String::new(), String::new(), String::new());
    for name in chosen {
        let Some(m) = all.get(name) else { continue };
        let mut order = Vec::new();
        dependencies(all, m, &mut order, 0);
        dep.push_str(&m.path);
        dep.push(':');
        for d in order.iter().rev() {
            dep.push(' ');
            dep.push_str(d);
        }
        dep.push('\n');
        for a in &m.aliases {
            alias.push_str(&format!("alias {a} {name}\n"));
        }
        for s in &m.softdeps {
            soft.push_str(&format!("softdep {name} {s}\n"));
        }
    }
    [("modules.dep", dep), ("modules.alias", alias), ("modules.softdep", soft)]
}

/// Paths of all that `m` needs, each after what it needs itself.
fn dependencies<'a>(all: &'a Modules, m: &'a Module, order: &mut Vec<&'a str>, depth: u32) {
    // No real chain is longer than about ten; a package with a cycle must not end in a stack overflow.
    if depth > 64 {
        return;
    }
    for d in &m.depends {
        let Some(d) = all.get(d) else { continue };
        if !order.contains(&d.path.as_str()) {
            dependencies(all, d, order, depth + 1);
            if !order.contains(&d.path.as_str()) {
                order.push(&d.path);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(path: &str, depends: &[&str]) -> (String, Module) {
        let m = Module {
            path: path.to_owned(),
            data: Vec::new(),
            depends: depends.iter().map(|d| (*d).to_owned()).collect(),
            softdeps: vec![],
            aliases: vec![format!("a:{path}")],
        };
        (module_name(path), m)
    }

    #[test]
    fn names() {
        assert_eq!(module_name("kernel/drivers/char/hw_random/virtio-rng.ko.xz"), "virtio_rng");
        assert!(worth_reading("kernel/fs/ext4/ext4.ko"));
        assert!(!worth_reading("kernel/sound/core/snd.ko"));
        assert!(!worth_reading("modules.order"));
    }

    #[test]
    fn closure_and_tables_follow_dependencies() {
        let all: Modules = [
            module("k/a.ko", &["b", "c"]),
            module("k/b.ko", &["c"]),
            module("k/c.ko", &[]),
            module("k/d.ko", &["d"]),
        ]
        .into();
        let chosen = closure(&all, &["a", "nothing"]);
        assert_eq!(chosen.iter().map(String::as_str).collect::<Vec<_>>(), ["a", "b", "c"]);
        let [(_, dep), (_, alias), _] = tables(&all, &chosen);
        assert_eq!(dep, "k/a.ko: k/b.ko k/c.ko\nk/b.ko: k/c.ko\nk/c.ko:\n");
        assert!(alias.contains("alias a:k/b.ko b\n"));
        // A module that needs itself ends.
        let d = closure(&all, &["d"]);
        assert!(tables(&all, &d)[0].1.starts_with("k/d.ko:"));
    }

    #[test]
    fn reads_a_module() {
        let m =
            parse("k/x.ko", crate::samples::module(b"depends=b-c,d\0alias=pci:*\0license=GPL\0")).unwrap();
        assert_eq!(
            (m.depends, m.aliases),
            (vec!["b_c".to_owned(), "d".to_owned()], vec!["pci:*".to_owned()])
        );
    }

    #[test]
    fn what_is_no_module_is_passed_over() {
        assert!(parse("k/x.ko", b"\x7fELF nonsense".to_vec()).is_none());
        assert!(parse("k/x.ko", vec![]).is_none());
    }
}
