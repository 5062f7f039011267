//! Kernels made for tests, of this crate and of others: small, but whole.

use crate::kernel::Compression;
use std::io::Write;

/// Where the ELF samples load.
pub const LOAD: u64 = 0x100_0000;
/// The PVH entry of the 64-bit sample.
pub const PVH_ENTRY: u32 = LOAD as u32 + 0x10;

/// A small 64-bit vmlinux: one segment of code at [`LOAD`] with 0x1000 bytes in the file and 0x3000 in memory, one of
/// data after it, and Xen's and Linux's notes.
pub fn vmlinux() -> Vec<u8> {
    let code = code();
    let notes = [note(b"Xen\0", 18, &u64::from(PVH_ENTRY).to_le_bytes()), note(b"Linux\0", 0x100, b"salt")];
    let notes = notes.concat();
    let code_at = 64 + 3 * 56;
    let notes_at = code_at + code.len() as u64;
    let mut f = elf_header_64(LOAD, 3);
    f.extend(phdr_64(1, code_at, LOAD, code.len() as u64, 0x3000));
    f.extend(phdr_64(1, code_at, LOAD + 0x20_0000, 0x100, 0x100));
    f.extend(phdr_64(4, notes_at, 0, notes.len() as u64, notes.len() as u64));
    f.extend(code);
    f.extend(notes);
    f
}

/// Bytes that compress, with x86 calls among them for the branch filter to chew on.
fn code() -> Vec<u8> {
    (0..0x1000u32)
        .map(|i| {
            if i % 16 == 3 {
                0xe8
            } else if i % 16 == 7 {
                0
            } else {
                (i / 7) as u8
            }
        })
        .collect()
}

/// The ELF64 header with `n` program headers right after it.
pub fn elf_header_64(entry: u64, n: u16) -> Vec<u8> {
    let mut h = b"\x7fELF\x02\x01\x01".to_vec();
    h.resize(16, 0);
    h.extend(2u16.to_le_bytes());
    h.extend(62u16.to_le_bytes());
    h.extend(1u32.to_le_bytes());
    for v in [entry, 64, 0] {
        h.extend(v.to_le_bytes());
    }
    h.extend(0u32.to_le_bytes());
    for v in [64, 56, n, 64, 0, 0] {
        h.extend(v.to_le_bytes());
    }
    h
}

/// An ELF64 program header.
pub fn phdr_64(kind: u32, offset: u64, addr: u64, filesz: u64, memsz: u64) -> Vec<u8> {
    let mut h = [kind.to_le_bytes(), 5u32.to_le_bytes()].concat();
    for v in [offset, addr | 0xffff_ffff_8000_0000, addr, filesz, memsz, 4] {
        h.extend(v.to_le_bytes());
    }
    h
}

fn note(name: &[u8], kind: u32, desc: &[u8]) -> Vec<u8> {
    let mut n = Vec::new();
    for v in [name.len() as u32, desc.len() as u32, kind] {
        n.extend(v.to_le_bytes());
    }
    for part in [name, desc] {
        n.extend(part);
        n.resize(n.len().next_multiple_of(4), 0);
    }
    n
}

/// A 32-bit multiboot ELF kernel at 1 MiB.
pub fn multiboot_elf() -> Vec<u8> {
    let mut body = multiboot_header(3, &[]);
    body.extend([0xf4; 100]);
    let mut h = b"\x7fELF\x01\x01\x01".to_vec();
    h.resize(16, 0);
    h.extend(2u16.to_le_bytes());
    h.extend(3u16.to_le_bytes());
    for v in [1u32, 0x10_000c, 52, 0, 0] {
        h.extend(v.to_le_bytes());
    }
    for v in [52u16, 32, 1, 40, 0, 0] {
        h.extend(v.to_le_bytes());
    }
    for v in [1, 84, 0xc010_0000, 0x10_0000, body.len() as u32, 0x2000, 7, 4] {
        h.extend(u32::to_le_bytes(v));
    }
    h.extend(body);
    h
}

/// A multiboot header with these flags and address fields.
pub fn multiboot_header(flags: u32, addresses: &[u32]) -> Vec<u8> {
    let magic = 0x1bad_b002u32;
    let mut h = Vec::new();
    for v in [magic, flags, 0u32.wrapping_sub(magic).wrapping_sub(flags)].iter().chain(addresses) {
        h.extend(v.to_le_bytes());
    }
    h
}

/// A flat multiboot kernel with address fields, its header 0x20 bytes into the file, loaded at 0x200000.
pub fn multiboot_flat() -> Vec<u8> {
    let mut f = vec![0x90; 0x20];
    f.extend(multiboot_header(1 << 16, &[0x20_0020, 0x20_0000, 0x20_0080, 0x20_1000, 0x20_0040]));
    f.resize(0x100, 0xf4);
    f
}

/// A boot sector that halts.
pub fn boot_sector() -> Vec<u8> {
    let mut f = vec![0xf4; 510];
    f.extend([0x55, 0xaa]);
    f
}

/// A bzImage around `payload` (packed, with its size field if it has one).
pub fn bzimage(payload: &[u8]) -> Vec<u8> {
    const SECTORS: usize = 3;
    const PAYLOAD_OFFSET: usize = 0x210;
    let code_start = (SECTORS + 1) * 512;
    let mut f = vec![0; code_start + PAYLOAD_OFFSET];
    f.extend(payload);
    f.resize(f.len().next_multiple_of(16), 0);
    let syssize = (f.len() - code_start) / 16;
    let mut put = |at: usize, bytes: &[u8]| f[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[SECTORS as u8]);
    put(0x1f4, &(syssize as u32).to_le_bytes());
    put(0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    put(0x202, b"HdrS\x0f\x02");
    put(0x20e, &0x300u16.to_le_bytes());
    put(0x500, b"6.99 sample\0");
    put(0x211, &[1]);
    put(0x214, &0x10_0000u32.to_le_bytes());
    put(0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(0x234, &[1, 21]);
    put(0x236, &3u16.to_le_bytes());
    put(0x238, &2047u32.to_le_bytes());
    put(0x248, &(PAYLOAD_OFFSET as u32).to_le_bytes());
    put(0x24c, &(payload.len() as u32).to_le_bytes());
    put(0x258, &LOAD.to_le_bytes());
    put(0x260, &0x40_0000u32.to_le_bytes());
    f
}

/// `bytes` packed as Linux's build packs them: with their size at the end, but for gzip.
pub fn pack(compression: Compression, bytes: &[u8]) -> Vec<u8> {
    let mut out = match compression {
        Compression::Gzip => {
            let mut w = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
            w.write_all(bytes).unwrap();
            return w.finish().unwrap();
        }
        Compression::Bzip2 => {
            let mut w = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::best());
            w.write_all(bytes).unwrap();
            w.finish().unwrap()
        }
        Compression::Lzma => {
            let options = lzma_rust2::LzmaOptions::with_preset(6);
            let mut w = lzma_rust2::LzmaWriter::new_use_header(Vec::new(), &options, None).unwrap();
            w.write_all(bytes).unwrap();
            w.finish().unwrap()
        }
        Compression::Xz => {
            let mut options = lzma_rust2::XzOptions::with_preset(6);
            options.set_check_sum_type(lzma_rust2::CheckType::Crc32);
            options.prepend_pre_filter(lzma_rust2::filter::FilterType::BcjX86, 0);
            let mut w = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
            w.write_all(bytes).unwrap();
            w.finish().unwrap()
        }
        Compression::Lz4 => {
            let mut out = vec![0x02, 0x21, 0x4c, 0x18];
            for chunk in bytes.chunks(8 << 20) {
                let packed = lz4_flex::block::compress(chunk);
                out.extend((packed.len() as u32).to_le_bytes());
                out.extend(packed);
            }
            out
        }
        Compression::Zstd => {
            ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
        }
    };
    out.extend((bytes.len() as u32).to_le_bytes());
    out
}

/// A kernel module with this text as its `.modinfo`.
pub fn module(info: &[u8]) -> Vec<u8> {
    const NAMES: &[u8] = b"\0.modinfo\0.shstrtab\0";
    let mut f = elf_header_64(0, 0);
    let section = |name: u32, kind: u32, at: usize, len: usize| {
        let mut h = [name.to_le_bytes(), kind.to_le_bytes()].concat();
        for v in [0, 0, at as u64, len as u64, 0, 1, 0] {
            h.extend(u64::to_le_bytes(v));
        }
        h
    };
    let names_at = 64 + info.len();
    let table_at = (names_at + NAMES.len()).next_multiple_of(8);
    f[40..48].copy_from_slice(&(table_at as u64).to_le_bytes());
    f[60..64].copy_from_slice(&[3, 0, 2, 0]);
    f.extend(info);
    f.extend(NAMES);
    f.resize(table_at, 0);
    f.extend([0; 64]);
    f.extend(section(1, 1, 64, info.len()));
    f.extend(section(10, 3, names_at, NAMES.len()));
    f
}

/// One sample of each kind of kernel, with its name.
pub fn all() -> Vec<(String, Vec<u8>)> {
    let mut out = vec![
        ("vmlinux".to_owned(), vmlinux()),
        ("multiboot ELF".to_owned(), multiboot_elf()),
        ("flat multiboot".to_owned(), multiboot_flat()),
        ("boot sector".to_owned(), boot_sector()),
        ("unpacked bzImage".to_owned(), bzimage(&vmlinux())),
    ];
    for c in COMPRESSIONS {
        out.push((format!("{} bzImage", c.name()), bzimage(&pack(c, &vmlinux()))));
    }
    out
}

/// All of them.
pub const COMPRESSIONS: [Compression; 6] = [
    Compression::Gzip,
    Compression::Bzip2,
    Compression::Lzma,
    Compression::Xz,
    Compression::Lz4,
    Compression::Zstd,
];
