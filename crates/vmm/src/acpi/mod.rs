//! What firmware tells an operating system about the machine: ACPI tables (ACPI specification 6.5, ch. 5) and
//! the older MP table (Intel MultiProcessor Specification 1.4).
//!
//! The machine is always in ACPI mode (no SMI command port), with the fixed hardware of chapter 4: PM1a event and
//! control blocks, PM timer, one GPE block, power button, and a reset register.

mod dsdt;
mod mptable;
mod tables;

#[cfg(test)]
mod tests;

pub use mptable::mp_table;

use thiserror::Error;

/// PM1a event block: status and enable, 2 bytes each (ACPI §4.8.4.1).
pub const PM1A_EVENT: u16 = 0x600;
/// PM1a control block, 2 bytes (ACPI §4.8.4.2).
pub const PM1A_CONTROL: u16 = 0x604;
/// PM timer, 32 bits at 3.579545 MHz (ACPI §4.8.4.3).
pub const PM_TIMER: u16 = 0x608;
/// General-purpose event block 0: 2 bytes of status, 2 of enable (ACPI §4.8.5.1).
pub const GPE0: u16 = 0x620;
/// The system control interrupt: level-triggered, active high.
pub const SCI_IRQ: u8 = 9;
/// Reset register, an I/O port.
pub const RESET_PORT: u16 = 0xcf9;
/// What to write to [`RESET_PORT`].
pub const RESET_VALUE: u8 = 6;
/// SLP_TYP of the soft-off state, S5.
pub const SLP_TYP_S5: u8 = 5;
/// The local APICs' registers.
pub const LAPIC_BASE: u32 = 0xfee0_0000;
/// The I/O APIC's registers.
pub const IOAPIC_BASE: u32 = 0xfec0_0000;
/// The HPET's registers.
pub const HPET_BASE: u32 = 0xfed0_0000;

/// Guest-physical address of the root pointer: on a 16-byte boundary in 0xE0000..0x100000 (ACPI §5.2.5.1).
pub const RSDP: u64 = 0xe_0000;
/// Tables end here at the latest.
const END: u64 = 0xf_0000;

/// A 16550 serial port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SerialPort {
    /// First of its 8 I/O ports.
    pub port: u16,
    /// Its global system interrupt.
    pub gsi: u8,
}

/// What of the machine the tables depend on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AcpiConfig {
    /// Processors; the APIC id of processor i is i.
    pub vcpus: u32,
    /// The low 32 bits of the HPET's capabilities register, if there is an HPET.
    pub hpet: Option<u32>,
    /// COM1 and on, in order.
    pub serial: Vec<SerialPort>,
    /// There is a PS/2 mouse on the keyboard controller.
    pub mouse: bool,
    /// CPUID.1:EAX, for the MP table.
    pub cpu_signature: u32,
    /// CPUID.1:EDX, for the MP table.
    pub cpu_features: u32,
}

impl AcpiConfig {
    /// The I/O APIC's id: the first that no processor has, or 0 if that does not fit in 8 bits.
    #[must_use]
    pub fn ioapic_id(&self) -> u8 {
        u8::try_from(self.vcpus).unwrap_or(0)
    }
}

/// The tables cannot be made.
#[derive(Debug, Error)]
pub enum AcpiError {
    /// They do not fit below 0xF0000.
    #[error(
        "the ACPI tables of {vcpus} processors need {size} bytes, but {room} are kept for them: use fewer"
    )]
    TooLarge {
        /// Processors.
        vcpus: u32,
        /// Bytes needed.
        size: u64,
        /// Bytes there are.
        room: u64,
    },
}

/// Bytes to be written at a guest-physical address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Blob {
    /// Where.
    pub gpa: u64,
    /// What.
    pub bytes: Vec<u8>,
}

/// Makes all tables, from the root pointer at [`RSDP`] on; none overlap.
///
/// # Errors
/// [`AcpiError::TooLarge`] beyond about 1,200 processors.
pub fn build(config: &AcpiConfig) -> Result<Vec<Blob>, AcpiError> {
    let mut placer = Placer { next: RSDP + tables::RSDP_LEN, blobs: Vec::new() };
    // ACPI §5.2.10 wants the FACS on a 64-byte boundary; 16 is common for the rest.
    let facs = placer.place(64, tables::facs());
    let dsdt = placer.place(16, dsdt::dsdt(config));
    let mut list = vec![placer.place(16, tables::fadt(facs as u32, dsdt as u32))];
    list.push(placer.place(16, tables::madt(config)));
    if let Some(id) = config.hpet {
        list.push(placer.place(16, tables::hpet(id)));
    }
    let xsdt = placer.place(16, tables::xsdt(&list));
    placer.blobs.push(Blob { gpa: RSDP, bytes: tables::rsdp(xsdt) });
    if placer.next > END {
        let (size, room) = (placer.next - RSDP, END - RSDP);
        return Err(AcpiError::TooLarge { vcpus: config.vcpus, size, room });
    }
    Ok(placer.blobs)
}

/// Hands out addresses one after the other.
struct Placer {
    next: u64,
    blobs: Vec<Blob>,
}

impl Placer {
    fn place(&mut self, align: u64, bytes: Vec<u8>) -> u64 {
        let gpa = self.next.next_multiple_of(align);
        self.next = gpa + bytes.len() as u64;
        self.blobs.push(Blob { gpa, bytes });
        gpa
    }
}
