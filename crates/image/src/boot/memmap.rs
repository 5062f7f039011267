//! The memory map that boot protocols pass on (ACPI specification §15, "System Address Map Interfaces").

use super::{EBDA, EBDA_SIZE, FIRMWARE};
use ringer_memory::GuestMemory;

/// What a range is for, with the numbers that e820, PVH and multiboot share.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum MapKind {
    /// RAM that the guest may use.
    Ram = 1,
    /// Not to be used.
    Reserved = 2,
}

/// One range of the map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapEntry {
    /// First guest-physical address.
    pub gpa: u64,
    /// Bytes.
    pub size: u64,
    /// What for.
    pub kind: MapKind,
}

/// The map of a machine with this RAM, sorted by address: RAM but for the EBDA, the video hole (not listed) and the
/// firmware tables.
#[must_use]
pub fn memory_map(memory: &GuestMemory) -> Vec<MapEntry> {
    const MIB: u64 = 1 << 20;
    let mut map = vec![
        MapEntry { gpa: 0, size: EBDA, kind: MapKind::Ram },
        MapEntry { gpa: EBDA, size: EBDA_SIZE, kind: MapKind::Reserved },
        MapEntry { gpa: FIRMWARE, size: MIB - FIRMWARE, kind: MapKind::Reserved },
    ];
    for r in memory.regions() {
        let start = r.gpa.max(MIB);
        let end = r.gpa + r.size;
        if end > start {
            map.push(MapEntry { gpa: start, size: end - start, kind: MapKind::Ram });
        }
    }
    map
}
