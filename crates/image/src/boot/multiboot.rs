//! Multiboot 1 (Multiboot Specification 0.6.96, §3.2 and §3.3).

use super::memmap::{MapKind, memory_map};
use super::placement::Placement;
use super::{BootConfig, BootProtocol, CMDLINE, CMDLINE_ROOM, LOADER_NAME, START_INFO, cannot, state};
use crate::ImageError;
use crate::kernel::{Format, Kernel};
use ringer_arch::VcpuState;
use ringer_arch::regs::gpr;

const BOOTLOADER_MAGIC: u64 = 0x2bad_b002;
const INFO_SIZE: u64 = 116;
const MODULE_SIZE: u64 = 16;
/// Bytes of a memory map entry: its size field and the 20 bytes that this counts.
const MAP_ENTRY: u64 = 24;

/// Bits of the information's first word: which fields are valid.
mod flag {
    pub const MEMORY: u32 = 1;
    pub const CMDLINE: u32 = 1 << 2;
    pub const MODULES: u32 = 1 << 3;
    pub const MEMORY_MAP: u32 = 1 << 6;
    pub const LOADER_NAME: u32 = 1 << 9;
}

/// Places the segments and the information structure; EAX holds the magic, EBX points to the structure.
pub(crate) fn load(
    kernel: &Kernel,
    placement: &mut Placement,
    config: &BootConfig,
) -> Result<VcpuState, ImageError> {
    let image = match kernel.format() {
        Format::Elf(_, Some(m)) | Format::Multiboot(m) => m,
        _ => return Err(cannot(kernel, BootProtocol::Multiboot, "it has no multiboot header")),
    };
    if image.wants_video {
        tracing::warn!(kernel = kernel.name(), "the kernel asks for a video mode; there is no video adapter");
    }
    for s in &image.segments {
        placement.segment(kernel.bytes(), s)?;
    }
    let mut vcpu = state::flat_32(placement, config.signature, image.entry)?;
    // Loaders pass the kernel's file name as the first word, and kernels skip it. Its path is the host's own affair.
    let prefix = format!("{} ", base_name(kernel.name()));
    let prefix = if config.cmdline.is_empty() { prefix.trim_end() } else { &prefix };
    placement.cmdline(prefix, config.cmdline, CMDLINE_ROOM as usize)?;
    let initrd = config.initrd;

    let map = memory_map(placement.memory());
    let module_at = START_INFO + INFO_SIZE;
    let map_at = module_at + MODULE_SIZE;
    let map_size = MAP_ENTRY * map.len() as u64;
    let names_at = map_at + map_size;
    let mut names = [LOADER_NAME.as_bytes(), &[0]].concat();
    let module_name_at = names_at + names.len() as u64;
    if let Some(i) = initrd {
        // Cut off so that it stays within the page; it is a mere label.
        names.extend(base_name(i.name()).bytes().take(255));
        names.push(0);
    }
    placement.claim(START_INFO, names_at + names.len() as u64 - START_INFO, "the multiboot information")?;
    let module = initrd.map(|i| Ok::<_, ImageError>((placement.initrd(i, 1 << 32, false)?, i.len())));
    let module = module.transpose()?;

    // KiB from 0, and from 1 MiB to the first hole.
    let upper = map.iter().find(|e| e.gpa == 1 << 20 && e.kind == MapKind::Ram).map_or(0, |e| e.size >> 10);
    let lower = map.first().map_or(0, |e| e.size >> 10);
    let mut flags = flag::MEMORY | flag::CMDLINE | flag::MEMORY_MAP | flag::LOADER_NAME;
    if module.is_some() {
        flags |= flag::MODULES;
    }
    let mut info = [0u8; INFO_SIZE as usize];
    // All addresses are below 4 GiB.
    let mut put = |offset: usize, v: u64| {
        info[offset..offset + 4].copy_from_slice(&(v as u32).to_le_bytes());
    };
    put(0, u64::from(flags));
    put(4, lower);
    put(8, upper);
    put(16, CMDLINE);
    put(20, u64::from(module.is_some()));
    put(24, module_at);
    put(44, map_size);
    put(48, map_at);
    put(64, names_at);
    let mut b = info.to_vec();
    let (gpa, len) = module.unwrap_or((0, 0));
    for v in [gpa, gpa + len, if module.is_some() { module_name_at } else { 0 }, 0] {
        b.extend((v as u32).to_le_bytes());
    }
    for e in &map {
        b.extend(20u32.to_le_bytes());
        b.extend(e.gpa.to_le_bytes());
        b.extend(e.size.to_le_bytes());
        b.extend((e.kind as u32).to_le_bytes());
    }
    b.extend(names);
    placement.memory().write(START_INFO, &b)?;
    vcpu.gpr[gpr::RAX] = BOOTLOADER_MAGIC;
    vcpu.gpr[gpr::RBX] = START_INFO;
    Ok(vcpu)
}

fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}
