//! The fixed tables: RSDP, XSDT, FADT, FACS, MADT, HPET.

use super::{
    AcpiConfig, GPE0, HPET_BASE, IOAPIC_BASE, LAPIC_BASE, PM_TIMER, PM1A_CONTROL, PM1A_EVENT, RESET_PORT,
    RESET_VALUE, SCI_IRQ,
};
use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;

pub(super) const OEM: [u8; 6] = *b"RINGER";
pub(super) const OEM_TABLE: [u8; 8] = *b"RINGERVM";
pub(super) const OEM_REVISION: u32 = 1;
/// Bytes of the root pointer.
pub(super) const RSDP_LEN: u64 = 36;
/// Bytes of the header that all tables but RSDP and FACS share.
const HEADER: u32 = 36;

fn bytes_of(table: &dyn Aml) -> Vec<u8> {
    let mut out = Vec::new();
    table.to_aml_bytes(&mut out);
    out
}

pub(super) fn rsdp(xsdt: u64) -> Vec<u8> {
    bytes_of(&Rsdp::new(OEM, xsdt))
}

pub(super) fn xsdt(tables: &[u64]) -> Vec<u8> {
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    for &t in tables {
        xsdt.add_entry(t);
    }
    bytes_of(&xsdt)
}

pub(super) fn facs() -> Vec<u8> {
    bytes_of(&FACS::new())
}

fn io(port: u16, bits: u8, access: AccessSize) -> GAS {
    GAS::new(AddressSpace::SystemIo, bits, 0, access, u64::from(port))
}

/// ACPI §5.2.9. Addresses of blocks stand in it twice, as ports and as generic addresses.
pub(super) fn fadt(facs: u32, dsdt: u32) -> Vec<u8> {
    /// IAPC_BOOT_ARCH: there are devices of the ISA bus, and a keyboard controller; there is no VGA to probe.
    const LEGACY_DEVICES: u16 = 1;
    const KEYBOARD_CONTROLLER: u16 = 1 << 1;
    const VGA_NOT_PRESENT: u16 = 1 << 2;
    /// Latencies in microseconds above which C2 (100) and C3 (1000) are taken as missing.
    const NO_C2: u16 = 0xfff;
    const NO_C3: u16 = 0xfff;
    /// The century's place in CMOS RAM.
    const CENTURY: u8 = 0x32;
    // The power button is fixed hardware (flag clear), the sleep button is missing (flag set), and the clock's
    // alarm cannot wake through fixed hardware (flag set).
    let mut t = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .firmware_ctrl_32(facs)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .gpe_info(u32::from(GPE0), 0, 4, 0, 0)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::TmrValExt)
        .flag(Flags::ResetRegSup);
    t.dsdt = dsdt.into();
    t.x_dsdt = u64::from(dsdt).into();
    t.sci_int = u16::from(SCI_IRQ).into();
    t.pm1a_evt_blk = u32::from(PM1A_EVENT).into();
    t.pm1_evt_len = 4;
    t.x_pm1a_evt_blk = io(PM1A_EVENT, 32, AccessSize::WordAccess);
    t.pm1a_cnt_blk = u32::from(PM1A_CONTROL).into();
    t.pm1_cnt_len = 2;
    t.x_pm1a_cnt_blk = io(PM1A_CONTROL, 16, AccessSize::WordAccess);
    t.pm_tmr_blk = u32::from(PM_TIMER).into();
    t.pm_tmr_len = 4;
    t.x_pm_tmr_blk = io(PM_TIMER, 32, AccessSize::DwordAccess);
    t.x_gpe0_blk = io(GPE0, 32, AccessSize::ByteAccess);
    t.p_lvl2_lat = NO_C2.into();
    t.p_lvl3_lat = NO_C3.into();
    t.century = CENTURY;
    t.iapc_boot_arch = (LEGACY_DEVICES | KEYBOARD_CONTROLLER | VGA_NOT_PRESENT).into();
    t.reset_reg = io(RESET_PORT, 8, AccessSize::ByteAccess);
    t.reset_value = RESET_VALUE;
    bytes_of(&t.finalize())
}

/// ACPI §5.2.12.
pub(super) fn madt(config: &AcpiConfig) -> Vec<u8> {
    const REVISION: u8 = 5;
    /// There is also a pair of 8259s.
    const PCAT_COMPAT: u32 = 1;
    const ENABLED: u32 = 1;
    let mut body = Vec::new();
    body.extend(LAPIC_BASE.to_le_bytes());
    body.extend(PCAT_COMPAT.to_le_bytes());
    for id in 0..config.vcpus {
        match u8::try_from(id) {
            // Type 0, processor local APIC. The id 255 addresses all processors.
            Ok(id) if id < 255 => {
                body.extend([0, 8, id, id]);
                body.extend(ENABLED.to_le_bytes());
            }
            // Type 9, processor local x2APIC.
            _ => {
                body.extend([9, 16, 0, 0]);
                for v in [id, ENABLED, id] {
                    body.extend(v.to_le_bytes());
                }
            }
        }
    }
    // Type 1, I/O APIC; its interrupts start at 0.
    body.extend([1, 12, config.ioapic_id(), 0]);
    body.extend(IOAPIC_BASE.to_le_bytes());
    body.extend(0u32.to_le_bytes());
    // Type 2, interrupt source override: the timer is on pin 2; flags: bits 0-1 polarity, bits 2-3 trigger mode
    // (Table 5.26).
    const EDGE_HIGH: u16 = 0b0101;
    const LEVEL_HIGH: u16 = 0b1101;
    for (irq, gsi, flags) in [(0, 2u32, EDGE_HIGH), (SCI_IRQ, u32::from(SCI_IRQ), LEVEL_HIGH)] {
        body.extend([2, 10, 0, irq]);
        body.extend(gsi.to_le_bytes());
        body.extend(flags.to_le_bytes());
    }
    // Type 4, local APIC NMI: LINT1 of all processors.
    body.extend([4, 6, 0xff, 0, 0, 1]);
    if config.vcpus > 255 {
        // Type 0xA, the same for x2APIC ids.
        body.extend([0xa, 12, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0]);
    }
    table(*b"APIC", REVISION, &body)
}

/// IA-PC HPET Specification 1.0a, §3.2.4; `id` is the event timer block id, equal to the capabilities register.
pub(super) fn hpet(id: u32) -> Vec<u8> {
    /// The fewest ticks of 10 ns that a periodic comparator is asked to take: 100 microseconds.
    const MIN_TICKS: u16 = 10_000;
    let mut body = id.to_le_bytes().to_vec();
    let gas = GAS::new(AddressSpace::SystemMemory, 64, 0, AccessSize::Undefined, u64::from(HPET_BASE));
    gas.to_aml_bytes(&mut body);
    // HPET number 0.
    body.push(0);
    body.extend(MIN_TICKS.to_le_bytes());
    // No page protection.
    body.push(0);
    table(*b"HPET", 1, &body)
}

/// A table of the common header and `body`.
pub(super) fn table(signature: [u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut sdt = Sdt::new(signature, HEADER, revision, OEM, OEM_TABLE, OEM_REVISION);
    sdt.append_slice(body);
    sdt.as_slice().to_vec()
}
