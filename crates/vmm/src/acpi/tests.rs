//! The tables as an operating system reads them: found through pointers, checksummed, of the lengths they claim.

use super::*;

fn config(vcpus: u32) -> AcpiConfig {
    AcpiConfig {
        vcpus,
        hpet: Some(0x8086_a201),
        serial: vec![SerialPort { port: 0x3f8, gsi: 4 }, SerialPort { port: 0x2f8, gsi: 3 }],
        mouse: false,
        cpu_signature: 0x306c3,
        cpu_features: 0x178b_fbff,
    }
}

/// Guest memory from 0xE0000 to 1 MiB with the tables in it.
fn image(config: &AcpiConfig) -> Vec<u8> {
    let mut ram = vec![0; 0x2_0000];
    let mut spans: Vec<(u64, u64)> = Vec::new();
    for b in build(config).unwrap() {
        let end = b.gpa + b.bytes.len() as u64;
        assert!(spans.iter().all(|&(s, e)| end <= s || e <= b.gpa), "{:#x} overlaps", b.gpa);
        spans.push((b.gpa, end));
        let at = (b.gpa - RSDP) as usize;
        ram[at..at + b.bytes.len()].copy_from_slice(&b.bytes);
    }
    ram
}

fn u32_of(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(b[at..at + 4].try_into().unwrap())
}

fn u64_of(b: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(b[at..at + 8].try_into().unwrap())
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |s, b| s.wrapping_add(*b))
}

/// The table at `gpa`, by its own length, with a good checksum.
fn table_at(ram: &[u8], gpa: u64) -> &[u8] {
    let at = (gpa - RSDP) as usize;
    let len = u32_of(ram, at + 4) as usize;
    let t = &ram[at..at + len];
    assert_eq!(sum(t), 0, "{}", String::from_utf8_lossy(&t[..4]));
    t
}

fn by_signature(ram: &[u8], signature: &[u8]) -> Option<Vec<u8>> {
    let xsdt = table_at(ram, u64_of(ram, 24));
    assert_eq!(&xsdt[..4], b"XSDT");
    let entries = xsdt[36..].chunks_exact(8).map(|c| u64_of(c, 0));
    entries.map(|gpa| table_at(ram, gpa)).find(|t| t.starts_with(signature)).map(<[u8]>::to_vec)
}

#[test]
fn root_pointer_leads_to_all_tables() {
    let ram = image(&config(2));
    assert_eq!(&ram[..8], b"RSD PTR ");
    assert_eq!((sum(&ram[..20]), sum(&ram[..36]), ram[15]), (0, 0, 2));
    let fadt = by_signature(&ram, b"FACP").unwrap();
    assert_eq!((fadt.len(), fadt[8]), (276, 6));
    let facs = u32_of(&fadt, 36);
    assert_eq!(facs % 64, 0);
    let at = facs as usize - RSDP as usize;
    assert_eq!((&ram[at..at + 4], u32_of(&ram, at + 4)), (b"FACS".as_slice(), 64));
    assert_eq!(u64::from(u32_of(&fadt, 40)), u64_of(&fadt, 140));
    assert_eq!(&table_at(&ram, u64_of(&fadt, 140))[..4], b"DSDT");
    let hpet = by_signature(&ram, b"HPET").unwrap();
    assert_eq!((hpet.len(), u32_of(&hpet, 36), u64_of(&hpet, 44)), (56, 0x8086_a201, 0xfed0_0000));
    assert!(by_signature(&image(&AcpiConfig { hpet: None, ..config(1) }), b"HPET").is_none());
}

#[test]
fn fadt_has_the_machines_ports() {
    let fadt = by_signature(&image(&config(1)), b"FACP").unwrap();
    assert_eq!(u32_of(&fadt, 48), 0, "SMI_CMD");
    assert_eq!([56, 64, 76, 80].map(|o| u32_of(&fadt, o)), [0x600, 0x604, 0x608, 0x620]);
    assert_eq!(fadt[88..95], [4, 2, 0, 4, 4, 0, 0]);
    assert_eq!(fadt[46], 9);
    // Reset register: I/O, 8 bits, 0xCF9, 6.
    assert_eq!((fadt[116], fadt[117], u64_of(&fadt, 120), fadt[128]), (1, 8, 0xcf9, 6));
    // Not hardware-reduced, power button fixed, reset register there, 32-bit timer.
    assert_eq!(u32_of(&fadt, 112) & (1 << 20 | 1 << 4 | 1 << 10 | 1 << 8), 1 << 10 | 1 << 8);
}

/// (type, bytes) of each structure in the MADT.
fn madt_entries(vcpus: u32) -> Vec<Vec<u8>> {
    let madt = by_signature(&image(&config(vcpus)), b"APIC").unwrap();
    let (mut rest, mut out) = (&madt[44..], Vec::new());
    while !rest.is_empty() {
        let (e, after) = rest.split_at(rest[1] as usize);
        out.push(e.to_vec());
        rest = after;
    }
    out
}

#[test]
fn madt_lists_processors_and_interrupts() {
    let e = madt_entries(2);
    assert_eq!(e[0], [0, 8, 0, 0, 1, 0, 0, 0]);
    assert_eq!(e[1], [0, 8, 1, 1, 1, 0, 0, 0]);
    assert_eq!(e[2], [1, 12, 2, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]);
    assert_eq!(e[3], [2, 10, 0, 0, 2, 0, 0, 0, 5, 0]);
    assert_eq!(e[4], [2, 10, 0, 9, 9, 0, 0, 0, 13, 0]);
    assert_eq!(e[5], [4, 6, 0xff, 0, 0, 1]);
    assert_eq!(e.len(), 6);
    let e = madt_entries(300);
    assert_eq!(e.iter().filter(|e| e[0] == 0).count(), 255);
    assert_eq!(e.iter().filter(|e| e[0] == 9).count(), 45);
    assert_eq!(u32_of(e.iter().find(|e| e[0] == 9).unwrap(), 4), 255);
}

#[test]
fn too_many_processors_are_refused() {
    assert!(build(&config(1000)).is_ok());
    assert!(matches!(build(&config(4096)), Err(AcpiError::TooLarge { vcpus: 4096, .. })));
}

#[test]
fn mp_table_is_whole_or_missing() {
    let b = mp_table(&config(2)).unwrap();
    assert_eq!((b.gpa, &b.bytes[..4]), (0x9_fc00, b"_MP_".as_slice()));
    assert_eq!((sum(&b.bytes[..16]), sum(&b.bytes[16..])), (0, 0));
    assert_eq!(u32_of(&b.bytes, 4), 0x9_fc10);
    let table = &b.bytes[16..];
    assert_eq!(usize::from(u16::from_le_bytes([table[4], table[5]])), table.len());
    let count = u16::from_le_bytes([table[34], table[35]]);
    let (mut rest, mut n) = (&table[44..], 0);
    while !rest.is_empty() {
        rest = &rest[if rest[0] == 0 { 20 } else { 8 }..];
        n += 1;
    }
    assert_eq!((n, count), (21, 21));
    assert!(mp_table(&config(40)).is_some_and(|b| b.bytes.len() <= 1024));
    assert!(mp_table(&config(41)).is_none());
}
