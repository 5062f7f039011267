//! The DSDT: what cannot be found by probing, in AML (ACPI specification ch. 6, 19 and 20).

use super::tables::table;
use super::{
    AcpiConfig, GPE0, HPET_BASE, IOAPIC_BASE, LAPIC_BASE, PM1A_EVENT, RESET_PORT, SLP_TYP_S5, SerialPort,
};
use acpi_tables::Aml;
use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, Path, ResourceTemplate, Scope,
};

/// Since revision 2 integers have 64 bits.
const REVISION: u8 = 2;

/// One resource of a device.
type Resource = Box<dyn Aml>;

pub(super) fn dsdt(config: &AcpiConfig) -> Vec<u8> {
    let mut devices = Vec::new();
    for id in 0..config.vcpus {
        processor(id, &mut devices);
    }
    for (i, s) in config.serial.iter().enumerate() {
        serial(i, *s, &mut devices);
    }
    fixed_devices(config, &mut devices);
    let mut body = Vec::new();
    // \_S5: SLP_TYP of PM1a and PM1b; the other two elements are reserved (ACPI §7.4.2.6).
    let s5 = Package::new(vec![&SLP_TYP_S5, &SLP_TYP_S5, &0u8, &0u8]);
    Name::new("_S5_".into(), &s5).to_aml_bytes(&mut body);
    body.extend(Scope::raw(Path::new("\\_SB_"), devices));
    table(*b"DSDT", REVISION, &body)
}

/// A processor device; its _UID ties it to the MADT's entry.
fn processor(id: u32, out: &mut Vec<u8>) {
    let name = format!("C{id:03X}");
    let hid = Name::new("_HID".into(), &"ACPI0007");
    let uid = Name::new("_UID".into(), &id);
    Device::new(name.as_str().into(), vec![&hid, &uid]).to_aml_bytes(out);
}

fn ports(first: u16, count: u8) -> Resource {
    Box::new(IO::new(first, first, 1, count))
}

/// An edge-triggered, active-high interrupt that is not shared, as ISA's are.
fn isa_irq(gsi: u8) -> Resource {
    Box::new(Interrupt::new(true, true, false, false, u32::from(gsi)))
}

fn memory(base: u32, size: u32) -> Resource {
    Box::new(Memory32Fixed::new(true, base, size))
}

/// A device with an identifier, a number, and resources.
fn device(name: &str, hid: &str, uid: u32, resources: &[Resource], out: &mut Vec<u8>) {
    let hid = Name::new("_HID".into(), &EISAName::new(hid));
    let uid = Name::new("_UID".into(), &uid);
    let resources = ResourceTemplate::new(resources.iter().map(AsRef::as_ref).collect());
    let crs = Name::new("_CRS".into(), &resources);
    Device::new(name.into(), vec![&hid, &uid, &crs]).to_aml_bytes(out);
}

fn serial(index: usize, s: SerialPort, out: &mut Vec<u8>) {
    let number = index as u32 + 1;
    device(&format!("COM{number}"), "PNP0501", number, &[ports(s.port, 8), isa_irq(s.gsi)], out);
}

/// The chipset: Plug and Play ids as in ACPI §5.6.7 and Microsoft's list of PNP ids.
fn fixed_devices(config: &AcpiConfig, out: &mut Vec<u8>) {
    device("PIC_", "PNP0000", 0, &[ports(0x20, 2), ports(0xa0, 2), ports(0x4d0, 2)], out);
    device("TIMR", "PNP0100", 0, &[ports(0x40, 4), isa_irq(0)], out);
    device("SPKR", "PNP0800", 0, &[ports(0x61, 1)], out);
    device("RTC_", "PNP0B00", 0, &[ports(0x70, 2), isa_irq(8)], out);
    device("KBD_", "PNP0303", 0, &[ports(0x60, 1), ports(0x64, 1), isa_irq(1)], out);
    if config.mouse {
        device("MOU_", "PNP0F13", 0, &[isa_irq(12)], out);
    }
    if config.hpet.is_some() {
        device("HPET", "PNP0103", 0, &[memory(HPET_BASE, 0x400)], out);
    }
    let board = [
        ports(PM1A_EVENT, 0x10),
        ports(GPE0, 4),
        ports(RESET_PORT, 1),
        memory(IOAPIC_BASE, 0x1000),
        memory(LAPIC_BASE, 0x1000),
    ];
    device("MBRD", "PNP0C02", 0, &board, out);
}
