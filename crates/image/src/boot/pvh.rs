//! The PVH protocol (Xen: docs/misc/pvh.pandoc and the public header arch-x86/hvm/start_info.h).

use super::linux::CMDLINE_LIMIT;
use super::memmap::memory_map;
use super::placement::Placement;
use super::{BootConfig, BootProtocol, CMDLINE, CMDLINE_ROOM, START_INFO, cannot, state};
use crate::ImageError;
use crate::kernel::{ElfImage, Format, Kernel};
use ringer_arch::VcpuState;
use ringer_arch::regs::gpr;

const MAGIC: u32 = 0x336e_c578;
const VERSION: u32 = 1;
const INFO_SIZE: u64 = 56;
const MODULE_SIZE: u64 = 32;

/// Places the ELF segments and the start info; EBX points to it.
pub(crate) fn load(
    kernel: &Kernel,
    placement: &mut Placement,
    config: &BootConfig,
) -> Result<VcpuState, ImageError> {
    let (file, elf) = elf_of(kernel)?;
    let Some(entry) = elf.pvh_entry else {
        let why = "it has no PVH entry point (ELF note XEN_ELFNOTE_PHYS32_ENTRY)";
        return Err(cannot(kernel, BootProtocol::Pvh, why));
    };
    for s in &elf.segments {
        placement.segment(file, s)?;
    }
    let mut vcpu = state::flat_32(placement, config.signature, entry)?;
    // Linux cuts a longer line off without a word.
    let limit = if elf.is_linux { CMDLINE_LIMIT } else { CMDLINE_ROOM as usize };
    placement.cmdline("", config.cmdline, limit)?;

    let map = memory_map(placement.memory());
    let map_at = START_INFO + INFO_SIZE + MODULE_SIZE;
    // The map has a handful of entries: it ends well before the zero page.
    let size = map_at + 24 * map.len() as u64 - START_INFO;
    placement.claim(START_INFO, size, "the PVH start info")?;
    let module = config.initrd.map(|i| Ok::<_, ImageError>((placement.initrd(i, 1 << 32, false)?, i.len())));
    let module = module.transpose()?;
    let module_at = if module.is_some() { START_INFO + INFO_SIZE } else { 0 };

    let mut b = Vec::new();
    b.extend(MAGIC.to_le_bytes());
    b.extend(VERSION.to_le_bytes());
    b.extend(0u32.to_le_bytes());
    b.extend(u32::from(module.is_some()).to_le_bytes());
    for v in [module_at, CMDLINE, config.rsdp.unwrap_or(0), map_at] {
        b.extend(v.to_le_bytes());
    }
    b.extend((map.len() as u32).to_le_bytes());
    b.extend(0u32.to_le_bytes());
    let (gpa, len) = module.unwrap_or((0, 0));
    for v in [gpa, len, 0, 0] {
        b.extend(v.to_le_bytes());
    }
    for e in &map {
        b.extend(e.gpa.to_le_bytes());
        b.extend(e.size.to_le_bytes());
        b.extend((e.kind as u32).to_le_bytes());
        b.extend(0u32.to_le_bytes());
    }
    placement.memory().write(START_INFO, &b)?;
    vcpu.gpr[gpr::RBX] = START_INFO;
    Ok(vcpu)
}

/// The ELF file in question: the kernel itself, or what was packed in a bzImage.
fn elf_of(kernel: &Kernel) -> Result<(&[u8], &ElfImage), ImageError> {
    match kernel.format() {
        Format::Elf(elf, _) => Ok((kernel.bytes(), elf)),
        Format::BzImage(b) if let Some(p) = &b.payload => Ok((&p.bytes, &p.elf)),
        _ => Err(cannot(kernel, BootProtocol::Pvh, "it is not an ELF file")),
    }
}
