//! Placing a kernel in guest RAM, and the state its boot processor starts in.
//!
//! The first MiB is laid out as a PC's: the structures that a boot loader makes lie below 640 KiB, the EBDA
//! (for the MP table) at its end, and 0xE0000 to 1 MiB belongs to firmware tables.

mod initrd;
mod linux;
mod memmap;
mod multiboot;
mod placement;
mod pvh;
mod sector;
mod state;
#[cfg(test)]
mod tests;

pub use initrd::Initrd;
pub use memmap::{MapEntry, MapKind, memory_map};

use crate::ImageError;
use crate::kernel::{Format, Kernel};
use placement::Placement;
use ringer_arch::VcpuState;
use ringer_memory::GuestMemory;

/// Guest-physical address of the boot GDT.
pub const GDT: u64 = 0x500;
/// Guest-physical address of the PVH start info or the multiboot info, and what they point to.
pub const START_INFO: u64 = 0x6000;
/// Guest-physical address of Linux's boot_params ("zero page").
pub const ZERO_PAGE: u64 = 0x7000;
/// Where a boot sector is loaded and entered.
pub const BOOT_SECTOR: u64 = 0x7c00;
/// Initial stack pointer; the stack grows down from here to the zero page's end.
pub const STACK_TOP: u64 = 0x9000;
/// Guest-physical address of the boot page tables.
pub const PAGE_TABLES: u64 = 0x9000;
/// Guest-physical address of the kernel command line.
pub const CMDLINE: u64 = 0x20000;
/// Bytes kept for the command line, with its NUL.
pub const CMDLINE_ROOM: u64 = 0x10000;
/// The extended BIOS data area: 1 KiB at the end of the first 640.
pub const EBDA: u64 = 0x9_fc00;
/// Bytes in the EBDA.
pub const EBDA_SIZE: u64 = 0x400;
/// Firmware tables lie from here to 1 MiB; the ACPI root pointer is at its start.
pub const FIRMWARE: u64 = 0xe_0000;
/// The name that boot protocols pass on as the boot loader's.
const LOADER_NAME: &str = "Ringer";

/// How to enter a kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum BootProtocol {
    /// The best that the kernel offers: of a bzImage, the unpacked vmlinux by [`Linux64`](Self::Linux64), or
    /// else the kernel's own decompressor; of an ELF file, PVH, multiboot, 64-bit Linux, in this order.
    #[default]
    Auto,
    /// Xen's PVH (32-bit, paging off).
    Pvh,
    /// Linux, entered in 64-bit mode.
    Linux64,
    /// Linux, entered in 32-bit mode at the bzImage's decompressor.
    Linux32,
    /// Multiboot 1.
    Multiboot,
    /// Raw code at 0x7c00 in real mode.
    BootSector,
}

impl BootProtocol {
    /// The name for messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            BootProtocol::Auto => "automatic",
            BootProtocol::Pvh => "PVH",
            BootProtocol::Linux64 => "64-bit Linux",
            BootProtocol::Linux32 => "32-bit Linux",
            BootProtocol::Multiboot => "multiboot",
            BootProtocol::BootSector => "boot sector",
        }
    }

    /// What [`Auto`](Self::Auto) stands for with this kernel.
    #[must_use]
    pub fn resolve(self, kernel: &Kernel) -> BootProtocol {
        if self != BootProtocol::Auto {
            return self;
        }
        match kernel.format() {
            Format::BzImage(b) if b.entry_64 => BootProtocol::Linux64,
            Format::BzImage(_) => BootProtocol::Linux32,
            Format::Elf(e, _) if e.pvh_entry.is_some() => BootProtocol::Pvh,
            Format::Elf(_, Some(_)) | Format::Multiboot(_) => BootProtocol::Multiboot,
            Format::Elf(_, None) => BootProtocol::Linux64,
            Format::BootSector => BootProtocol::BootSector,
        }
    }
}

/// What a boot loader is told beside the kernel.
#[derive(Clone, Copy, Debug)]
pub struct BootConfig<'a> {
    /// How to enter the kernel.
    pub protocol: BootProtocol,
    /// The kernel's command line.
    pub cmdline: &'a str,
    /// The initial RAM disk, or the only multiboot module.
    pub initrd: Option<&'a Initrd>,
    /// Guest-physical address of the ACPI root pointer, if there are ACPI tables.
    pub rsdp: Option<u64>,
    /// CPUID.1:EAX, which RDX holds at reset.
    pub signature: u32,
}

/// A kernel that is loaded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Loaded {
    /// The boot processor's state.
    pub vcpu: VcpuState,
    /// The protocol used, never [`BootProtocol::Auto`].
    pub protocol: BootProtocol,
}

/// Writes the kernel, the initrd and the structures of the boot protocol into guest RAM, and tells the state in
/// which the boot processor starts. RAM need not be zero: what the kernel expects zeroed is zeroed.
///
/// # Errors
/// [`ImageError`]: the kernel does not know the protocol, something does not fit in RAM or overlaps, or the
/// command line is too long. RAM may be partly written then.
pub fn load(kernel: &Kernel, memory: &GuestMemory, config: &BootConfig) -> Result<Loaded, ImageError> {
    if let Some(at) = config.cmdline.bytes().position(|b| b == 0) {
        return Err(ImageError::CommandLineNul { at });
    }
    let mut placement = Placement::new(kernel.name(), memory);
    placement.firmware_areas()?;
    let protocol = config.protocol.resolve(kernel);
    let vcpu = match protocol {
        BootProtocol::Linux64 => linux::load_64(kernel, &mut placement, config)?,
        BootProtocol::Linux32 => linux::load_32(kernel, &mut placement, config)?,
        BootProtocol::Pvh => pvh::load(kernel, &mut placement, config)?,
        BootProtocol::Multiboot => multiboot::load(kernel, &mut placement, config)?,
        BootProtocol::BootSector | BootProtocol::Auto => sector::load(kernel, &mut placement, config)?,
    };
    Ok(Loaded { vcpu, protocol })
}

/// The error for a kernel that lacks what a protocol needs.
fn cannot(kernel: &Kernel, protocol: BootProtocol, why: impl Into<String>) -> ImageError {
    ImageError::Protocol { name: kernel.name().to_owned(), protocol: protocol.name(), why: why.into() }
}
