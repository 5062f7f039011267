//! What is in guest memory, and in the boot processor, after each protocol's loader.

use super::*;
use crate::samples::{self, LOAD, PVH_ENTRY};
use ringer_arch::regs::{cr0, cr4, efer, gpr};
use ringer_arch::seg::sreg;
use ringer_memory::HIGH_START;
use std::path::Path;

const MIB: u64 = 1 << 20;

fn config<'a>(protocol: BootProtocol, initrd: Option<&'a Initrd>) -> BootConfig<'a> {
    BootConfig { protocol, cmdline: "console=ttyS0", initrd, rsdp: Some(FIRMWARE), signature: 0x306c3 }
}

fn kernel(bytes: Vec<u8>) -> Kernel {
    Kernel::parse("dir/test-kernel", bytes).unwrap()
}

fn memory(mib: u64) -> GuestMemory {
    GuestMemory::new(mib * MIB).unwrap()
}

fn bytes_at(m: &GuestMemory, gpa: u64, len: usize) -> Vec<u8> {
    let mut b = vec![0; len];
    m.read(gpa, &mut b).unwrap();
    b
}

fn u32_at(m: &GuestMemory, gpa: u64) -> u32 {
    m.load(gpa).unwrap()
}

fn u64_at(m: &GuestMemory, gpa: u64) -> u64 {
    m.load(gpa).unwrap()
}

fn text_at(m: &GuestMemory, gpa: u64) -> String {
    let b = bytes_at(m, gpa, 256);
    String::from_utf8_lossy(b.split(|&b| b == 0).next().unwrap()).into_owned()
}

/// Walks the page tables at `cr3` as the processor does.
fn translate(m: &GuestMemory, cr3: u64, gva: u64) -> Option<u64> {
    let mut table = cr3;
    for shift in [39, 30, 21, 12] {
        let e = u64_at(m, table + ((gva >> shift) & 511) * 8);
        if e & 1 == 0 {
            return None;
        }
        let base = e & 0xf_ffff_ffff_f000;
        if shift == 12 || e & 0x80 != 0 {
            return Some(base + (gva & ((1 << shift) - 1)));
        }
        table = base;
    }
    None
}

#[test]
fn linux_64_enters_the_unpacked_kernel_in_long_mode() {
    let m = memory(64);
    m.write(LOAD + 0x1000, &[0xaa; 0x2000]).unwrap();
    let k = kernel(samples::bzimage(&samples::pack(crate::kernel::Compression::Gzip, &samples::vmlinux())));
    let initrd = Initrd::from_bytes("initrd", vec![7; 5000]);
    let l = load(&k, &m, &config(BootProtocol::Auto, Some(&initrd))).unwrap();
    let s = &l.vcpu;
    assert_eq!((l.protocol, s.rip, s.gpr[gpr::RSI]), (BootProtocol::Linux64, LOAD, ZERO_PAGE));
    assert_eq!(s.efer, efer::LME | efer::LMA);
    assert_eq!(s.cr0 & (cr0::PE | cr0::PG), cr0::PE | cr0::PG);
    assert_ne!(s.cr4 & cr4::PAE, 0);
    assert!(s.seg[sreg::CS].attr.long() && s.seg[sreg::CS].selector == 0x10);
    assert_eq!(s.seg[sreg::DS].selector, 0x18);
    // What the GDT says is what is loaded.
    assert_eq!(u64_at(&m, GDT + 0x10), 0x00af_9b00_0000_ffff);
    for gva in [0, 0x1234, LOAD + 5, 0x3fff_ffff, 0xffff_ffff] {
        assert_eq!(translate(&m, s.cr3, gva), Some(gva));
    }
    assert_eq!(translate(&m, s.cr3, 1 << 32), None);
    // The segment's bytes, then zeroes where something stood.
    assert_eq!(bytes_at(&m, LOAD, 4), bytes_at(&m, LOAD + 0x20_0000, 4));
    assert_eq!(bytes_at(&m, LOAD + 0x1000, 0x2000), vec![0; 0x2000]);
    // boot_params.
    assert_eq!(bytes_at(&m, ZERO_PAGE + 0x202, 4), b"HdrS");
    assert_eq!(bytes_at(&m, ZERO_PAGE + 0x210, 1), [0xff]);
    assert_eq!(u64_at(&m, ZERO_PAGE + 0x70), FIRMWARE);
    assert_eq!(text_at(&m, u64::from(u32_at(&m, ZERO_PAGE + 0x228))), "console=ttyS0");
    let (at, len) = (u32_at(&m, ZERO_PAGE + 0x218), u32_at(&m, ZERO_PAGE + 0x21c));
    assert_eq!((u64::from(at), len), (64 * MIB - 8192, 5000));
    assert_eq!(bytes_at(&m, u64::from(at), 5000), vec![7; 5000]);
    let e820: Vec<_> = (0..u64::from(bytes_at(&m, ZERO_PAGE + 0x1e8, 1)[0]))
        .map(|i| ZERO_PAGE + 0x2d0 + 20 * i)
        .map(|e| (u64_at(&m, e), u64_at(&m, e + 8), u32_at(&m, e + 16)))
        .collect();
    assert_eq!(e820[0], (0, 0x9_fc00, 1));
    assert_eq!(e820[1], (0x9_fc00, 0x400, 2));
    assert_eq!(e820[2], (0xe_0000, 0x2_0000, 2));
    assert_eq!(e820[3..], [(MIB, 63 * MIB, 1)]);
    // The BIOS data area tells of the EBDA.
    assert_eq!(bytes_at(&m, 0x40e, 2), [0xc0, 0x9f]);
    assert_eq!(bytes_at(&m, 0x413, 2), [0x7f, 0x02]);
}

#[test]
fn a_bare_vmlinux_gets_a_header() {
    let m = memory(64);
    let k = kernel(samples::vmlinux());
    assert_eq!(BootProtocol::Auto.resolve(&k), BootProtocol::Pvh);
    let l = load(&k, &m, &config(BootProtocol::Linux64, None)).unwrap();
    assert_eq!((l.vcpu.rip, bytes_at(&m, ZERO_PAGE + 0x1fe, 2)), (LOAD, vec![0x55, 0xaa]));
    assert_eq!(bytes_at(&m, ZERO_PAGE + 0x202, 6), b"HdrS\x0f\x02");
}

#[test]
fn unknown_packings_start_in_their_own_decompressor() {
    let m = memory(64);
    let image = samples::bzimage(b"\x89LZO\0\r\n\x1a\n and so on");
    let k = kernel(image.clone());
    let l = load(&k, &m, &config(BootProtocol::Auto, None)).unwrap();
    assert_eq!((l.protocol, l.vcpu.rip), (BootProtocol::Linux64, LOAD + 0x200));
    assert_eq!(bytes_at(&m, LOAD, image.len() - 2048), image[2048..]);
    let l = load(&k, &m, &config(BootProtocol::Linux32, None)).unwrap();
    let s = &l.vcpu;
    assert_eq!((s.rip, s.gpr[gpr::RSI], s.efer, s.cr0 & cr0::PG), (LOAD, ZERO_PAGE, 0, 0));
    assert!(s.seg[sreg::CS].attr.big() && s.seg[sreg::CS].limit == u32::MAX);
    assert_eq!(u32_at(&m, ZERO_PAGE + 0x214), LOAD as u32);
}

#[test]
fn pvh_start_info() {
    let m = memory(64);
    let initrd = Initrd::from_bytes("initrd", vec![9; 100]);
    let l = load(&kernel(samples::vmlinux()), &m, &config(BootProtocol::Auto, Some(&initrd))).unwrap();
    let s = &l.vcpu;
    assert_eq!((l.protocol, s.rip, s.gpr[gpr::RBX]), (BootProtocol::Pvh, u64::from(PVH_ENTRY), START_INFO));
    assert_eq!((s.cr0 & (cr0::PE | cr0::PG), s.cr4), (cr0::PE, 0));
    let head: Vec<_> = (0..4).map(|i| u32_at(&m, START_INFO + 4 * i)).collect();
    assert_eq!(head, [0x336e_c578, 1, 0, 1]);
    let word = |i: u64| u64_at(&m, START_INFO + 16 + 8 * i);
    assert_eq!((text_at(&m, word(1)), word(2)), ("console=ttyS0".to_owned(), FIRMWARE));
    assert_eq!((u64_at(&m, word(0)), u64_at(&m, word(0) + 8)), (64 * MIB - 4096, 100));
    assert_eq!(bytes_at(&m, 64 * MIB - 4096, 100), vec![9; 100]);
    let (map, n) = (word(3), u32_at(&m, START_INFO + 48));
    let last = map + 24 * u64::from(n - 1);
    assert_eq!((u64_at(&m, map), u64_at(&m, map + 8), u32_at(&m, map + 16)), (0, 0x9_fc00, 1));
    assert_eq!((u64_at(&m, last), u64_at(&m, last + 8), u32_at(&m, last + 16)), (MIB, 63 * MIB, 1));
}

#[test]
fn multiboot_information() {
    let m = memory(16);
    let initrd = Initrd::from_bytes("some/where/module", vec![9; 100]);
    let l = load(&kernel(samples::multiboot_elf()), &m, &config(BootProtocol::Auto, Some(&initrd))).unwrap();
    let s = &l.vcpu;
    assert_eq!((l.protocol, s.rip, s.gpr[gpr::RAX]), (BootProtocol::Multiboot, 0x10_000c, 0x2bad_b002));
    let info = s.gpr[gpr::RBX];
    let word = |i: u64| u32_at(&m, info + i);
    assert_eq!((word(0), word(4), word(8)), (0x24d, 639, 15 * 1024));
    assert_eq!(text_at(&m, u64::from(word(16))), "test-kernel console=ttyS0");
    assert_eq!((word(20), text_at(&m, u64::from(word(64))).as_str()), (1, "Ringer"));
    let module = |i: u64| u32_at(&m, u64::from(word(24)) + i);
    assert_eq!((u64::from(module(0)), u64::from(module(4))), (16 * MIB - 4096, 16 * MIB - 4096 + 100));
    assert_eq!(text_at(&m, u64::from(module(8))), "module");
    let (mut at, end, mut map) = (u64::from(word(48)), u64::from(word(48) + word(44)), Vec::new());
    while at < end {
        map.push((u64_at(&m, at + 4), u64_at(&m, at + 12), u32_at(&m, at + 20)));
        at += u64::from(u32_at(&m, at)) + 4;
    }
    assert_eq!((map.len(), map[3]), (4, (MIB, 15 * MIB, 1)));
    // The flat form.
    let l = load(&kernel(samples::multiboot_flat()), &m, &config(BootProtocol::Auto, None)).unwrap();
    assert_eq!((l.vcpu.rip, bytes_at(&m, 0x20_0000, 0x80).last()), (0x20_0040, Some(&0xf4)));
    assert_eq!(bytes_at(&m, 0x20_0080, 0x80), [0; 0x80]);
}

#[test]
fn boot_sectors_start_in_real_mode() {
    let m = memory(1);
    let l = load(&kernel(samples::boot_sector()), &m, &config(BootProtocol::Auto, None)).unwrap();
    let s = &l.vcpu;
    assert_eq!((s.seg[sreg::CS].base, s.rip, s.gpr[gpr::RDX], s.cr0 & cr0::PE), (0, 0x7c00, 0x80, 0));
    assert_eq!((s.gpr[gpr::RSP], s.seg[sreg::SS].base, s.idtr.limit), (0x7c00, 0, 0x3ff));
    assert_eq!(bytes_at(&m, 0x7dfe, 2), [0x55, 0xaa]);
    let vector = u32_at(&m, 0x13 * 4);
    let handler = u64::from(vector >> 16) * 16 + u64::from(vector & 0xffff);
    assert_eq!(bytes_at(&m, handler, 1), [0xcf]);
}

#[test]
fn initrd_parts_follow_each_other_aligned() {
    let m = memory(16);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("initrd");
    let big: Vec<u8> = (0..3_000_001u32).map(|i| (i % 251) as u8).collect();
    std::fs::write(&path, &big).unwrap();
    let initrd = Initrd::open(&path).unwrap().with(vec![1, 2, 3]);
    assert_eq!(initrd.len(), 3_000_007);
    load(&kernel(samples::multiboot_elf()), &m, &config(BootProtocol::Auto, Some(&initrd))).unwrap();
    let at = 16 * MIB - 3_000_007_u64.next_multiple_of(4096);
    assert_eq!(bytes_at(&m, at, big.len()), big);
    assert_eq!(bytes_at(&m, at + 3_000_001, 6), [0, 0, 0, 1, 2, 3]);
    std::fs::write(&path, &big[..100]).unwrap();
    let e = load(&kernel(samples::multiboot_elf()), &m, &config(BootProtocol::Auto, Some(&initrd)));
    assert!(matches!(e, Err(ImageError::Read { .. })), "the file shrank");
    std::fs::write(&path, b"").unwrap();
    assert!(matches!(Initrd::open(&path), Err(ImageError::Empty { .. })));
    assert!(matches!(Initrd::open(dir.path()), Err(ImageError::Directory { .. })));
    assert!(matches!(Initrd::open(Path::new("/dev/zero")), Err(ImageError::Foreign { .. })));
}

#[test]
fn initrd_goes_where_the_kernel_can_reach_it() {
    let initrd = Initrd::from_bytes("initrd", vec![1; 5000]);
    let m = memory(5 << 10);
    let mut image = samples::bzimage(&samples::vmlinux());
    let at = |image: &[u8]| {
        load(&kernel(image.to_vec()), &m, &config(BootProtocol::Auto, Some(&initrd))).unwrap();
        u64::from(u32_at(&m, ZERO_PAGE + 0x218)) | u64::from(u32_at(&m, ZERO_PAGE + 0xc0)) << 32
    };
    assert_eq!(at(&image), (2 << 30) - 8192);
    // A limit that leaves no room: anywhere in low RAM, for a kernel that can.
    image[0x22c..0x230].copy_from_slice(&0x10_0000u32.to_le_bytes());
    assert_eq!(at(&image), (3 << 30) - 8192);
    image[0x236] = 1;
    let e = load(&kernel(image), &m, &config(BootProtocol::Auto, Some(&initrd))).unwrap_err();
    assert!(e.to_string().contains("the initrd initrd has 5000 bytes, but at most 1 are free"), "{e}");
    assert!(m.contains(HIGH_START, 1));
}

#[test]
fn what_does_not_fit_is_refused_in_words() {
    let auto = |c| config(BootProtocol::Auto, c);
    let bz = kernel(samples::bzimage(&samples::vmlinux()));
    let say = |k: &Kernel, m: &GuestMemory, c: &BootConfig| load(k, m, c).unwrap_err().to_string();
    let text = say(&bz, &memory(8), &auto(None));
    assert!(
        text.contains("needs guest memory 0x1000000..0x1003000, but the guest has RAM up to 0x800000"),
        "{text}"
    );
    let text = say(&bz, &memory(19), &auto(None));
    assert!(text.contains("the room that the kernel starts in"), "{text}");
    let initrd = Initrd::from_bytes("big.img", vec![0; 40 << 20]);
    let text = say(&bz, &memory(32), &auto(Some(&initrd)));
    assert!(text.contains("big.img has 41943040 bytes, but at most 15728640 are free"), "{text}");

    let m = memory(32);
    let long = "x".repeat(2048);
    let text = say(&bz, &m, &BootConfig { cmdline: &long, ..auto(None) });
    assert!(text.contains("has 2048 bytes, but dir/test-kernel takes at most 2047"), "{text}");
    assert!(load(&bz, &m, &BootConfig { cmdline: &long[1..], ..auto(None) }).is_ok());
    let text = say(&kernel(samples::vmlinux()), &m, &BootConfig { cmdline: &long, ..auto(None) });
    assert!(text.contains("at most 2047"), "{text}");
    let text = say(&bz, &m, &BootConfig { cmdline: "a\0b", ..auto(None) });
    assert!(text.contains("NUL byte at 1"), "{text}");

    let sector = kernel(samples::boot_sector());
    assert!(say(&sector, &m, &auto(Some(&initrd))).contains("takes no initrd"));
    for (k, p) in [
        (&sector, BootProtocol::Linux64),
        (&sector, BootProtocol::Linux32),
        (&sector, BootProtocol::Pvh),
        (&sector, BootProtocol::Multiboot),
        (&bz, BootProtocol::Multiboot),
        (&bz, BootProtocol::BootSector),
    ] {
        let text = say(k, &m, &config(p, None));
        assert!(text.contains(&format!("by the {} boot protocol", p.name())), "{text}");
    }
}

#[test]
fn segments_over_boot_structures_are_refused() {
    let m = memory(32);
    for gpa in
        [0x0, 0x4f0, 0x500, 0x6010, ZERO_PAGE, PAGE_TABLES, CMDLINE, EBDA, 0xa_0000, FIRMWARE, 0xf_fff0]
    {
        let mut f = samples::elf_header_64(gpa, 1);
        f.extend(samples::phdr_64(1, 0, gpa, 0x20, 0x20));
        let e = load(&kernel(f), &m, &config(BootProtocol::Linux64, None));
        assert!(
            matches!(e, Err(ImageError::Overlap { .. })) || gpa == 0x6010 && e.is_ok(),
            "{gpa:#x}: {e:?}"
        );
    }
}

/// A small generator with a fixed seed (xorshift64*), so that a failure repeats.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n
    }
}

#[test]
fn mutated_kernels_never_panic_or_leave_ram() {
    const EDGES: [u8; 6] = [0, 1, 0x7f, 0x80, 0xfe, 0xff];
    let mut random = Random(0x5eed_0000_0000_0001);
    let m = memory(24);
    let initrd = Initrd::from_bytes("initrd", vec![3; 3000]);
    for (name, whole) in samples::all() {
        // Headers are at the front; a third of the changes go anywhere.
        let header = whole.len().min(0x300);
        let mut loaded = 0;
        for _ in 0..400 {
            let mut f = whole.clone();
            for _ in 0..=random.below(4) {
                let range = if random.below(3) == 0 { f.len() } else { header };
                let at = random.below(range);
                f[at] = if random.below(2) == 0 { EDGES[random.below(6)] } else { random.below(256) as u8 };
            }
            let Ok(k) = Kernel::parse(&name, f) else { continue };
            for protocol in [BootProtocol::Auto, BootProtocol::Linux32, BootProtocol::Pvh] {
                loaded += u32::from(load(&k, &m, &config(protocol, Some(&initrd))).is_ok());
            }
        }
        assert!(loaded > 0 || name == "boot sector", "{name}: no mutation was ever loaded");
    }
}
