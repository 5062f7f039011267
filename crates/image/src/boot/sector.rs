//! Raw boot images: code for 0x7c00 in real mode, as a BIOS starts it, though without a BIOS to call.

use super::placement::Placement;
use super::{BOOT_SECTOR, BootConfig, BootProtocol, cannot};
use crate::ImageError;
use crate::kernel::{Format, Kernel};
use ringer_arch::VcpuState;
use ringer_arch::regs::{cr0, gpr};
use ringer_arch::seg::{Segment, sreg};

/// The first hard disk, as a BIOS numbers the drive that it booted from.
const BOOT_DRIVE: u64 = 0x80;
/// Where the IBM PC's BIOS has its IRET for unused vectors (F000:FF53).
const IRET_SEGMENT: u16 = 0xf000;
const IRET_OFFSET: u16 = 0xff53;
const IRET: u8 = 0xcf;

/// Places the image and points all interrupt vectors to an IRET.
pub(crate) fn load(
    kernel: &Kernel,
    placement: &mut Placement,
    config: &BootConfig,
) -> Result<VcpuState, ImageError> {
    if *kernel.format() != Format::BootSector {
        return Err(cannot(kernel, BootProtocol::BootSector, "it is not a raw boot sector"));
    }
    if config.initrd.is_some() {
        return Err(cannot(kernel, BootProtocol::BootSector, "a boot sector takes no initrd; leave it out"));
    }
    placement.put(BOOT_SECTOR, kernel.bytes(), "the boot sector")?;
    let memory = placement.memory();
    let vector = u32::from(IRET_SEGMENT) << 16 | u32::from(IRET_OFFSET);
    for i in 0..256 {
        memory.store(i * 4, vector)?;
    }
    memory.store((u64::from(IRET_SEGMENT) << 4) + u64::from(IRET_OFFSET), IRET)?;
    let mut s = VcpuState::reset(config.signature, true);
    s.seg[sreg::CS] = Segment { attr: s.seg[sreg::CS].attr, ..Segment::real(0) };
    s.rip = BOOT_SECTOR;
    s.gpr = [0; 16];
    s.gpr[gpr::RSP] = BOOT_SECTOR;
    s.gpr[gpr::RDX] = BOOT_DRIVE;
    // A BIOS turns the caches on.
    s.cr0 = cr0::ET;
    s.idtr.limit = 0x3ff;
    Ok(s)
}
