//! Kernel files whole, cut off, damaged, foreign and hostile.

use super::*;
use crate::samples::{self, COMPRESSIONS, LOAD, PVH_ENTRY};

fn parse(bytes: Vec<u8>) -> Result<Kernel, ImageError> {
    Kernel::parse("test-kernel", bytes)
}

/// The message for bytes that must be refused.
fn refusal(bytes: Vec<u8>) -> String {
    let text = parse(bytes).unwrap_err().to_string();
    assert!(text.contains("test-kernel"), "{text}");
    text
}

fn bzimage_of(bytes: Vec<u8>) -> BzImage {
    match parse(bytes).unwrap().format {
        Format::BzImage(b) => *b,
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_packing_gives_the_same_vmlinux() {
    for c in COMPRESSIONS {
        let b = bzimage_of(samples::bzimage(&samples::pack(c, &samples::vmlinux())));
        let p = b.payload.unwrap();
        assert_eq!((p.compression, &p.bytes), (Some(c), &samples::vmlinux()), "{}", c.name());
        assert_eq!((p.elf.entry, p.elf.segments.len(), p.elf.pvh_entry), (LOAD, 2, Some(PVH_ENTRY)));
        assert!(p.elf.is_linux);
    }
    let b = bzimage_of(samples::bzimage(&samples::vmlinux()));
    assert_eq!(b.payload.unwrap().compression, None);
}

#[test]
fn setup_header_is_read() {
    let b = bzimage_of(samples::bzimage(&samples::vmlinux()));
    assert_eq!((b.version, b.load_address, b.init_size), (0x20f, LOAD, 0x40_0000));
    assert_eq!((b.initrd_max, b.cmdline_limit, b.entry_64, b.above_4g), (0x7fff_ffff, 2047, true, true));
    assert_eq!(b.version_string.as_deref(), Some("6.99 sample"));
    assert_eq!((b.code.start, b.header.len()), (2048, 0x26c - 0x1f1));
}

#[test]
fn unknown_packing_is_left_to_the_kernel() {
    let b = bzimage_of(samples::bzimage(b"\x89LZO\0\r\n\x1a\n and so on"));
    assert_eq!(b.payload, None);
}

#[test]
fn a_compressed_file_is_unpacked_first() {
    let mut packed = samples::pack(Compression::Xz, &samples::multiboot_elf());
    packed.truncate(packed.len() - 4);
    assert!(matches!(parse(packed).unwrap().format, Format::Elf(_, Some(_))));
}

#[test]
fn multiboot_headers() {
    let Format::Elf(elf, Some(m)) = parse(samples::multiboot_elf()).unwrap().format else { panic!() };
    assert_eq!((m.entry, elf.is_64, &m.segments), (0x10_000c, false, &elf.segments));
    let Format::Multiboot(m) = parse(samples::multiboot_flat()).unwrap().format else { panic!() };
    assert_eq!(m.entry, 0x20_0040);
    assert_eq!(m.segments, [LoadSegment { gpa: 0x20_0000, file: 0..0x80, size: 0x1000 }]);
    // No end: to the end of the file; no bss.
    let mut f = samples::multiboot_header(1 << 16, &[0x8000, 0x8000, 0, 0, 0x8020]);
    f.resize(0x333, 0xf4);
    let Format::Multiboot(m) = parse(f).unwrap().format else { panic!() };
    assert_eq!(m.segments, [LoadSegment { gpa: 0x8000, file: 0..0x333, size: 0x333 }]);
    assert!(refusal(samples::multiboot_header(1 << 5, &[])).contains("unknown requirements (flags 0x20)"));
    assert!(refusal(samples::multiboot_header(3, &[])).contains("no load addresses"));
    for bad in [
        [0x8000, 0x9000, 0, 0, 0],
        [0x8000, 0, 0, 0, 0],
        [0x8000, 0x8000, 0x7000, 0, 0],
        [0x8000, 0x8000, 0x8010, 0x8008, 0],
        [0x8000, 0x8000, 0xffff_ffff, 0, 0],
    ] {
        refusal(samples::multiboot_header(1 << 16, &bad));
    }
}

#[test]
fn boot_sectors_are_whole_sectors() {
    assert_eq!(parse(samples::boot_sector()).unwrap().format, Format::BootSector);
    let mut f = samples::boot_sector();
    f.resize(64 << 10, 0);
    assert_eq!(parse(f.clone()).unwrap().format, Format::BootSector);
    f.resize((64 << 10) + 512, 0);
    assert!(refusal(f).contains("a disk image"));
}

#[test]
fn kernels_for_other_machines_are_named() {
    let arm64 = |machine: u16, class: u8, data: u8| {
        let mut f = samples::vmlinux();
        (f[4], f[5]) = (class, data);
        let m = if data == 2 { machine.to_be_bytes() } else { machine.to_le_bytes() };
        f[18..20].copy_from_slice(&m);
        refusal(f)
    };
    assert!(arm64(183, 2, 1).contains("an ELF file for 64-bit ARM"));
    assert!(arm64(8, 1, 2).contains("an ELF file for MIPS"));
    assert!(arm64(21, 2, 2).contains("64-bit PowerPC"));
    assert!(arm64(4711, 2, 1).contains("machine number 4711"));
    assert!(arm64(62, 1, 1).contains("x32"));
    let mut f = samples::multiboot_elf();
    f[84] = 0;
    assert!(refusal(f).contains("for 32-bit Linux, give its bzImage"));
    let mut image = vec![0; 4096];
    image[..2].copy_from_slice(b"MZ");
    assert!(refusal(image.clone()).contains("an EFI program without a Linux boot header"));
    image[0x38..0x3c].copy_from_slice(b"ARM\x64");
    assert!(refusal(image).contains("a 64-bit ARM kernel"));
}

#[test]
fn what_is_no_kernel_is_named() {
    assert!(refusal(Vec::new()).contains("is empty"));
    assert!(refusal(samples::pack(Compression::Gzip, &[])).contains("is empty"));
    assert!(refusal(b"MZ".repeat(100)).contains("cut off"));
    assert!(refusal(b"070701 and so on".repeat(100)).contains("a cpio archive"));
    assert!(refusal(b"#!/bin/sh\nexit 0\n".to_vec()).contains("a script"));
    assert!(refusal(b"Hello, world\n".to_vec()).contains("a text file"));
    assert!(refusal(vec![0; 5000]).contains("only zeroes"));
    assert!(refusal(vec![0xcd; 5001]).contains("no kernel format"));
    let mut program = samples::vmlinux();
    program[64] = 3;
    assert!(refusal(program).contains("a program for Linux"));
    let open = |p: &str| KernelFile::open(Path::new(p)).unwrap_err().to_string();
    assert!(open("/").contains("/ is a directory"));
    assert!(open("/does/not/exist").contains("/does/not/exist cannot be opened"));
}

#[test]
fn old_and_odd_bzimages_are_refused() {
    let with = |at: usize, v: &[u8]| {
        let mut f = samples::bzimage(&samples::vmlinux());
        f[at..at + v.len()].copy_from_slice(v);
        refusal(f)
    };
    assert!(with(0x206, &[5, 2]).contains("boot protocol 2.05"));
    assert!(with(0x211, &[0]).contains("a zImage"));
    assert!(with(0x1f4, &[0, 0, 1, 0]).contains("its protected-mode code ends at byte"));
    assert!(with(0x24c, &[0, 0, 0, 1]).contains("its compressed kernel ends at byte"));
}

#[test]
fn a_wrong_unpacked_size_is_damage() {
    for c in COMPRESSIONS {
        for wrong in [100u32, 100_000, 600 << 20] {
            let mut p = samples::pack(c, &samples::vmlinux());
            let at = p.len() - 4;
            p[at..].copy_from_slice(&wrong.to_le_bytes());
            let e = parse(samples::bzimage(&p)).unwrap_err();
            let expected = matches!(e, ImageError::Damaged { .. } | ImageError::Unpack { .. });
            assert!(expected, "{} {wrong}: {e}", c.name());
        }
    }
}

/// A 64-bit ELF file with these program headers and 0x100 bytes after them.
fn elf_with(headers: &[Vec<u8>]) -> Vec<u8> {
    let mut f = samples::elf_header_64(LOAD, headers.len() as u16);
    f.extend(headers.concat());
    f.resize(f.len() + 0x100, 0x90);
    f
}

#[test]
fn hostile_elf_headers_are_refused() {
    let ph = samples::phdr_64;
    for (headers, part) in [
        (vec![ph(1, u64::MAX - 3, LOAD, 8, 8)], "cut off"),
        (vec![ph(1, 0, LOAD, u64::MAX, u64::MAX)], "cut off"),
        (vec![ph(1, 1 << 40, LOAD, 1, 1)], "cut off"),
        (vec![ph(1, 0, u64::MAX - 5, 16, 16)], "damaged"),
        (vec![ph(1, 0, LOAD, 16, u64::MAX)], "damaged"),
        (vec![ph(1, 0, LOAD, 16, 8)], "damaged"),
        (vec![ph(1, 0, LOAD, 16, 16), ph(1, 0, LOAD + 15, 16, 16)], "overlap"),
        (vec![ph(4, 64, 0, 8, 8)], "nothing to load"),
        (vec![ph(1, 0, LOAD, 0, 1); 600], "600 program headers"),
    ] {
        let text = refusal(elf_with(&headers));
        assert!(text.contains(part), "{part}: {text}");
    }
    let mut f = samples::vmlinux();
    f[56..58].copy_from_slice(&500u16.to_le_bytes());
    assert!(refusal(f).contains("cut off"));
    let mut f = samples::vmlinux();
    f[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
    refusal(f);
}

#[test]
fn cut_off_at_any_byte_never_panics() {
    for (name, whole) in samples::all() {
        for len in 0..whole.len() {
            // What is cut off may still be a kernel (of a boot sector's size, say); most is refused in words.
            if let Err(e) = parse(whole[..len].to_vec()) {
                assert!(e.to_string().contains("test-kernel"), "{name} cut at {len}: {e}");
            }
        }
    }
}

#[test]
fn a_file_is_read_again_and_a_pipe_is_kept() {
    use std::io::Write;
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&samples::vmlinux()).unwrap();
    let mut k = KernelFile::open(file.path()).unwrap();
    assert_eq!(k.description(), "64-bit ELF kernel");
    let first = k.with(Kernel::clone).unwrap();
    assert!(k.kernel.is_none(), "it is let go");
    assert_eq!(k.with(Kernel::clone).unwrap(), first);
    // Whatever it is by then.
    file.as_file().set_len(0).unwrap();
    assert!(k.with(|_| ()).unwrap_err().to_string().contains("is empty"));

    let (from, mut to) = std::io::pipe().unwrap();
    to.write_all(&samples::vmlinux()).unwrap();
    drop(to);
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&from));
    let mut k = KernelFile::open(Path::new(&path)).unwrap();
    for _ in 0..3 {
        assert_eq!(k.with(|k| k.bytes().to_vec()).unwrap(), first.bytes());
    }
}
