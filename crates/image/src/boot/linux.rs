//! The Linux boot protocols (Linux kernel: Documentation/arch/x86/boot.rst and zero-page.rst).

use super::memmap::memory_map;
use super::placement::Placement;
use super::{BootConfig, BootProtocol, CMDLINE, ZERO_PAGE, cannot, state};
use crate::ImageError;
use crate::kernel::{BzImage, ElfImage, Format, HEADER_START, Kernel};
use ringer_arch::VcpuState;
use ringer_arch::regs::gpr;
use std::ops::Range;

const PAGE: usize = 4096;
/// The most entries that the e820 table of boot_params holds.
const E820_MAX: usize = 128;
/// Linux's COMMAND_LINE_SIZE on x86, less the NUL.
pub(crate) const CMDLINE_LIMIT: usize = 2047;
/// How far the 64-bit entry of a bzImage is from its 32-bit one.
const ENTRY_64: u64 = 0x200;

/// Offsets in boot_params; those from [`HEADER_START`] on are the setup header's.
mod off {
    pub const ACPI_RSDP_ADDR: usize = 0x070;
    pub const EXT_RAMDISK_IMAGE: usize = 0x0c0;
    pub const EXT_RAMDISK_SIZE: usize = 0x0c4;
    pub const E820_ENTRIES: usize = 0x1e8;
    pub const BOOT_FLAG: usize = 0x1fe;
    pub const MAGIC: usize = 0x202;
    pub const VERSION: usize = 0x206;
    pub const TYPE_OF_LOADER: usize = 0x210;
    pub const LOADFLAGS: usize = 0x211;
    pub const CODE32_START: usize = 0x214;
    pub const RAMDISK_IMAGE: usize = 0x218;
    pub const RAMDISK_SIZE: usize = 0x21c;
    pub const CMD_LINE_PTR: usize = 0x228;
    pub const CMDLINE_SIZE: usize = 0x238;
    pub const E820_TABLE: usize = 0x2d0;
}

/// boot_params being filled in.
struct ZeroPage(Box<[u8; PAGE]>);

impl ZeroPage {
    fn put(&mut self, offset: usize, bytes: &[u8]) {
        self.0[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn put_u32(&mut self, offset: usize, v: u32) {
        self.put(offset, &v.to_le_bytes());
    }

    /// With the setup header of a bzImage.
    fn of_bzimage(b: &BzImage) -> ZeroPage {
        let mut z = ZeroPage(Box::new([0; PAGE]));
        z.put(HEADER_START, &b.header);
        z
    }

    /// With the header that a bzImage around a bare vmlinux would have, as far as the kernel reads it.
    fn of_vmlinux() -> ZeroPage {
        let mut z = ZeroPage(Box::new([0; PAGE]));
        z.put(off::BOOT_FLAG, &[0x55, 0xaa]);
        z.put(off::MAGIC, b"HdrS");
        z.put(off::VERSION, &0x20fu16.to_le_bytes());
        z.put(off::LOADFLAGS, &[1]);
        z.put_u32(off::CMDLINE_SIZE, CMDLINE_LIMIT as u32);
        z
    }

    /// Where the initrd is, in two halves each.
    fn initrd(&mut self, gpa: u64, size: u64) {
        self.put_u32(off::RAMDISK_IMAGE, gpa as u32);
        self.put_u32(off::EXT_RAMDISK_IMAGE, (gpa >> 32) as u32);
        self.put_u32(off::RAMDISK_SIZE, size as u32);
        self.put_u32(off::EXT_RAMDISK_SIZE, (size >> 32) as u32);
    }
}

/// What the two protocols differ in, as the common part needs it.
struct Limits {
    cmdline: usize,
    initrd_max: u64,
    above_4g: bool,
}

impl Limits {
    fn of_bzimage(b: &BzImage) -> Limits {
        Limits { cmdline: b.cmdline_limit, initrd_max: b.initrd_max.saturating_add(1), above_4g: b.above_4g }
    }
}

/// Enters a vmlinux at its ELF entry point, or a bzImage's own decompressor, in 64-bit mode.
pub(crate) fn load_64(
    kernel: &Kernel,
    placement: &mut Placement,
    config: &BootConfig,
) -> Result<VcpuState, ImageError> {
    let (entry, zero_page, limits) = match kernel.format() {
        Format::BzImage(b) if b.entry_64 => {
            let limits = Limits::of_bzimage(b);
            let entry = match &b.payload {
                Some(p) => {
                    let start = p.elf.span().start;
                    place_vmlinux(
                        kernel,
                        &p.bytes,
                        &p.elf,
                        start..start.saturating_add(b.init_size),
                        placement,
                    )?
                }
                None => place_code(kernel, b, placement)? + ENTRY_64,
            };
            (entry, ZeroPage::of_bzimage(b), limits)
        }
        Format::BzImage(_) => {
            let why = "it is a 32-bit kernel; use the 32-bit Linux protocol";
            return Err(cannot(kernel, BootProtocol::Linux64, why));
        }
        Format::Elf(elf, _) if elf.is_64 => {
            let entry = place_vmlinux(kernel, kernel.bytes(), elf, 0..0, placement)?;
            let limits = Limits { cmdline: CMDLINE_LIMIT, initrd_max: u64::MAX, above_4g: true };
            (entry, ZeroPage::of_vmlinux(), limits)
        }
        _ => {
            let why = "it is neither a bzImage nor a 64-bit ELF file";
            return Err(cannot(kernel, BootProtocol::Linux64, why));
        }
    };
    // The first mapping reaches that far; so does Linux's own until it has read the memory map.
    if entry >= 1 << 32 {
        return Err(cannot(kernel, BootProtocol::Linux64, format!("its entry {entry:#x} is above 4 GiB")));
    }
    let mut vcpu = state::long_64(placement, config.signature, entry)?;
    boot_params(zero_page, &limits, placement, config)?;
    vcpu.gpr[gpr::RSI] = ZERO_PAGE;
    Ok(vcpu)
}

/// Enters the protected-mode code of a bzImage in 32-bit mode.
pub(crate) fn load_32(
    kernel: &Kernel,
    placement: &mut Placement,
    config: &BootConfig,
) -> Result<VcpuState, ImageError> {
    let Format::BzImage(b) = kernel.format() else {
        return Err(cannot(kernel, BootProtocol::Linux32, "it is not a bzImage"));
    };
    let start = place_code(kernel, b, placement)?;
    let entry = u32::try_from(start)
        .map_err(|_| cannot(kernel, BootProtocol::Linux32, format!("it loads at {start:#x}, above 4 GiB")))?;
    let mut vcpu = state::flat_32(placement, config.signature, entry)?;
    let mut zero_page = ZeroPage::of_bzimage(b);
    zero_page.put_u32(off::CODE32_START, entry);
    // A 32-bit entry cannot reach an initrd above 4 GiB.
    let limits = Limits { above_4g: false, ..Limits::of_bzimage(b) };
    boot_params(zero_page, &limits, placement, config)?;
    vcpu.gpr[gpr::RSI] = ZERO_PAGE;
    Ok(vcpu)
}

/// Places the segments of a vmlinux, keeps `room` for it to grow in, and returns its entry point.
fn place_vmlinux(
    kernel: &Kernel,
    file: &[u8],
    elf: &ElfImage,
    room: Range<u64>,
    placement: &mut Placement,
) -> Result<u64, ImageError> {
    let Some(entry) = elf.physical_entry() else {
        let why = format!("its entry point {:#x} is in none of its segments' physical ranges", elf.entry);
        return Err(cannot(kernel, BootProtocol::Linux64, why));
    };
    for s in &elf.segments {
        placement.segment(file, s)?;
    }
    let end = elf.span().end;
    if room.end > end {
        placement.claim(end, room.end - end, "the room that the kernel starts in")?;
    }
    Ok(entry)
}

/// Places the protected-mode code of a bzImage; returns its address.
fn place_code(kernel: &Kernel, b: &BzImage, placement: &mut Placement) -> Result<u64, ImageError> {
    let code = &kernel.bytes()[b.code.clone()];
    placement.claim(b.load_address, b.init_size, "the kernel and the room that it unpacks in")?;
    placement.memory().write(b.load_address, code)?;
    Ok(b.load_address)
}

/// Places the initrd, the command line and boot_params.
fn boot_params(
    mut z: ZeroPage,
    limits: &Limits,
    placement: &mut Placement,
    config: &BootConfig,
) -> Result<(), ImageError> {
    placement.cmdline("", config.cmdline, limits.cmdline)?;
    z.put_u32(off::CMD_LINE_PTR, CMDLINE as u32);
    // An unregistered loader.
    z.put(off::TYPE_OF_LOADER, &[0xff]);
    let map = memory_map(placement.memory());
    for (i, e) in map.iter().take(E820_MAX).enumerate() {
        let at = off::E820_TABLE + i * 20;
        z.put(at, &e.gpa.to_le_bytes());
        z.put(at + 8, &e.size.to_le_bytes());
        z.put_u32(at + 16, e.kind as u32);
    }
    z.put(off::E820_ENTRIES, &[map.len().min(E820_MAX) as u8]);
    z.put(off::ACPI_RSDP_ADDR, &config.rsdp.unwrap_or(0).to_le_bytes());
    // The page must be taken before the initrd looks for room.
    placement.claim(ZERO_PAGE, PAGE as u64, "boot_params")?;
    if let Some(initrd) = config.initrd {
        let gpa = placement.initrd(initrd, limits.initrd_max, limits.above_4g)?;
        z.initrd(gpa, initrd.len());
    }
    Ok(placement.memory().write(ZERO_PAGE, z.0.as_slice())?)
}
