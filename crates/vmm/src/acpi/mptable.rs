//! The MP table (Intel MultiProcessor Specification 1.4, ch. 4), for systems that do not read ACPI tables.

use super::{AcpiConfig, Blob, IOAPIC_BASE, LAPIC_BASE, SCI_IRQ};

/// The floating pointer is searched for in the first KiB of the EBDA (MP specification §4).
const EBDA: u64 = 0x9_fc00;
const EBDA_SIZE: usize = 0x400;
const POINTER: usize = 16;
const HEADER: usize = 44;
const LAPIC_VERSION: u8 = 0x14;
const IOAPIC_VERSION: u8 = 0x20;
const ISA_BUS: u8 = 0;
const ALL_APICS: u8 = 0xff;

/// Interrupt types (table 4-11).
const INT: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;
/// Polarity in bits 0-1, trigger mode in bits 2-3: as the bus has it, or level and active high.
const CONFORMS: u16 = 0;
const LEVEL_HIGH: u16 = 0b1101;

/// The floating pointer and the configuration table after it, in the EBDA. `None` if there are more processors
/// than the EBDA has room for: such a system must read the ACPI tables.
#[must_use]
pub fn mp_table(config: &AcpiConfig) -> Option<Blob> {
    let ioapic = config.ioapic_id();
    let (mut entries, mut count) = (Vec::new(), 0u16);
    let mut entry = |bytes: &[u8]| {
        entries.extend_from_slice(bytes);
        count += 1;
    };
    for id in 0..config.vcpus {
        let id = u8::try_from(id).ok().filter(|&id| id < ALL_APICS)?;
        entry(&processor(id, config));
    }
    let [b0, b1, b2, b3] = IOAPIC_BASE.to_le_bytes();
    entry(&[1, ISA_BUS, b'I', b'S', b'A', b' ', b' ', b' ']);
    entry(&[2, ioapic, IOAPIC_VERSION, 1, b0, b1, b2, b3]);
    // IRQ 2 is the 8259s' cascade; the timer takes its pin.
    for irq in (0..16).filter(|&irq| irq != 2) {
        let [f0, f1] = if irq == SCI_IRQ { LEVEL_HIGH } else { CONFORMS }.to_le_bytes();
        entry(&[3, INT, f0, f1, ISA_BUS, irq, ioapic, if irq == 0 { 2 } else { irq }]);
    }
    entry(&[4, EXT_INT, 0, 0, ISA_BUS, 0, ALL_APICS, 0]);
    entry(&[4, NMI, 0, 0, ISA_BUS, 0, ALL_APICS, 1]);

    let length = HEADER + entries.len();
    if POINTER + length > EBDA_SIZE {
        return None;
    }
    let mut table = b"PCMP".to_vec();
    table.extend((length as u16).to_le_bytes());
    // Specification revision 1.4, room for the checksum.
    table.extend([4, 0]);
    table.extend(b"RINGER  Ringer VM   ");
    // No OEM table.
    table.extend([0; 6]);
    table.extend(count.to_le_bytes());
    table.extend(LAPIC_BASE.to_le_bytes());
    // No extended entries.
    table.extend([0; 4]);
    table.extend(entries);
    table[7] = checksum(&table);

    let mut bytes = b"_MP_".to_vec();
    bytes.extend((EBDA as u32 + POINTER as u32).to_le_bytes());
    // Length in units of 16 bytes, revision 1.4, checksum, no default configuration, virtual wire mode.
    bytes.extend([1, 4, 0, 0, 0, 0, 0, 0]);
    bytes[10] = checksum(&bytes);
    bytes.extend(table);
    Some(Blob { gpa: EBDA, bytes })
}

fn processor(id: u8, config: &AcpiConfig) -> [u8; 20] {
    const ENABLED: u8 = 1;
    const BOOT_PROCESSOR: u8 = 2;
    let mut e = [0; 20];
    e[1] = id;
    e[2] = LAPIC_VERSION;
    e[3] = if id == 0 { ENABLED | BOOT_PROCESSOR } else { ENABLED };
    e[4..8].copy_from_slice(&config.cpu_signature.to_le_bytes());
    e[8..12].copy_from_slice(&config.cpu_features.to_le_bytes());
    e
}

/// The byte that makes all bytes add up to 0.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, b| sum.wrapping_sub(*b))
}
