//! [`Bus`]: which device answers an I/O port or a guest-physical address.

use crate::sync::{read, write};
use std::sync::{Arc, RwLock};
use thiserror::Error;

/// A device behind I/O ports. Accesses are 1, 2 or 4 bytes long, or a part of one that straddles devices.
pub trait PioDevice: Send + Sync {
    /// Reads `data.len()` bytes from `offset` within the range it is registered at. `data` comes all ones.
    fn pio_read(&self, offset: u16, data: &mut [u8]);
    /// Writes `data` at `offset` within the range.
    fn pio_write(&self, offset: u16, data: &[u8]);
}

/// A device behind guest-physical addresses. Accesses are 1 to 64 bytes long.
pub trait MmioDevice: Send + Sync {
    /// Reads `data.len()` bytes from `offset` within the range it is registered at. `data` comes all ones.
    fn mmio_read(&self, offset: u64, data: &mut [u8]);
    /// Writes `data` at `offset` within the range.
    fn mmio_write(&self, offset: u64, data: &[u8]);
}

/// A range that cannot be registered.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum BusError {
    /// It overlaps one that is registered.
    #[error("{new} at {start:#x}..={end:#x} overlaps {old}: give one of them another place")]
    Overlap {
        /// Who asked.
        new: &'static str,
        /// Who is there.
        old: &'static str,
        /// First address asked for.
        start: u64,
        /// Last address asked for.
        end: u64,
    },
    /// It is empty, or runs past the end of the address space.
    #[error("{new} asks for {len:#x} bytes at {start:#x}, which is not a range of the address space")]
    BadRange {
        /// Who asked.
        new: &'static str,
        /// First address asked for.
        start: u64,
        /// Bytes asked for.
        len: u64,
    },
}

struct Entry<D: ?Sized> {
    start: u64,
    /// Last address, inclusive.
    end: u64,
    name: &'static str,
    device: Arc<D>,
}

/// Ranges in ascending order, disjoint.
struct RangeMap<D: ?Sized>(RwLock<Vec<Entry<D>>>);

/// A piece of an access: its bytes, and who owns them at which offset.
struct Piece<D: ?Sized> {
    len: usize,
    owner: Option<(Arc<D>, u64)>,
}

impl<D: ?Sized> RangeMap<D> {
    fn insert(
        &self,
        name: &'static str,
        start: u64,
        len: u64,
        limit: u64,
        device: Arc<D>,
    ) -> Result<(), BusError> {
        let end = len.checked_sub(1).and_then(|l| start.checked_add(l)).filter(|e| *e <= limit);
        let Some(end) = end else { return Err(BusError::BadRange { new: name, start, len }) };
        let mut v = write(&self.0);
        let at = v.partition_point(|e| e.end < start);
        if let Some(old) = v.get(at).filter(|e| e.start <= end) {
            return Err(BusError::Overlap { new: name, old: old.name, start, end });
        }
        v.insert(at, Entry { start, end, name, device });
        Ok(())
    }

    fn remove(&self, start: u64) -> bool {
        let mut v = write(&self.0);
        let Ok(at) = v.binary_search_by_key(&start, |e| e.start) else { return false };
        v.remove(at);
        true
    }

    /// The first piece of an access of `len` bytes at `addr`. The device is handed out, not called under the lock, so
    /// that a device may move ranges (a PCI BAR) from within an access.
    fn piece(&self, addr: u64, len: usize) -> Piece<D> {
        let v = read(&self.0);
        let at = v.partition_point(|e| e.end < addr);
        let clip = |room: u64| usize::try_from(room).unwrap_or(usize::MAX).min(len);
        match v.get(at) {
            Some(e) if e.start <= addr => Piece {
                len: clip((e.end - addr).saturating_add(1)),
                owner: Some((Arc::clone(&e.device), addr - e.start)),
            },
            Some(e) => Piece { len: clip(e.start - addr), owner: None },
            None => Piece { len, owner: None },
        }
    }
}

/// The machine's I/O-port and memory-mapped address spaces. What nobody owns reads all ones and swallows writes. An
/// access that straddles ranges is split where they meet.
pub struct Bus {
    pio: RangeMap<dyn PioDevice>,
    mmio: RangeMap<dyn MmioDevice>,
}

impl Default for Bus {
    fn default() -> Bus {
        Bus::new()
    }
}

impl Bus {
    /// A bus with nothing on it.
    #[must_use]
    pub fn new() -> Bus {
        Bus { pio: RangeMap(RwLock::default()), mmio: RangeMap(RwLock::default()) }
    }

    /// Puts `device` at `len` ports from `port`.
    ///
    /// # Errors
    /// [`BusError`] if the ports are taken or do not exist.
    pub fn add_pio(
        &self,
        name: &'static str,
        port: u16,
        len: u16,
        device: Arc<dyn PioDevice>,
    ) -> Result<(), BusError> {
        self.pio.insert(name, u64::from(port), u64::from(len), 0xffff, device)
    }

    /// Puts `device` at `len` bytes from guest-physical `gpa`.
    ///
    /// # Errors
    /// [`BusError`] if the addresses are taken or do not exist.
    pub fn add_mmio(
        &self,
        name: &'static str,
        gpa: u64,
        len: u64,
        device: Arc<dyn MmioDevice>,
    ) -> Result<(), BusError> {
        self.mmio.insert(name, gpa, len, u64::MAX, device)
    }

    /// Takes away the ports that were registered from `port` on; whether there were any.
    pub fn remove_pio(&self, port: u16) -> bool {
        self.pio.remove(u64::from(port))
    }

    /// Takes away the addresses that were registered from `gpa` on; whether there were any.
    pub fn remove_mmio(&self, gpa: u64) -> bool {
        self.mmio.remove(gpa)
    }

    /// IN.
    pub fn pio_read(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        let (mut addr, mut rest) = (u64::from(port), data);
        while !rest.is_empty() {
            let p = self.pio.piece(addr, rest.len());
            let (now, later) = rest.split_at_mut(p.len);
            if let Some((d, offset)) = p.owner {
                // Offsets within a range of ports fit 16 bits.
                d.pio_read((offset & 0xffff) as u16, now);
            }
            addr += p.len as u64;
            rest = later;
        }
    }

    /// OUT.
    pub fn pio_write(&self, port: u16, data: &[u8]) {
        let (mut addr, mut rest) = (u64::from(port), data);
        while !rest.is_empty() {
            let p = self.pio.piece(addr, rest.len());
            let (now, later) = rest.split_at(p.len);
            if let Some((d, offset)) = p.owner {
                d.pio_write((offset & 0xffff) as u16, now);
            }
            addr += p.len as u64;
            rest = later;
        }
    }

    /// Load from guest-physical addresses.
    pub fn mmio_read(&self, gpa: u64, data: &mut [u8]) {
        data.fill(0xff);
        let (mut addr, mut rest) = (gpa, data);
        while !rest.is_empty() {
            let p = self.mmio.piece(addr, rest.len());
            let (now, later) = rest.split_at_mut(p.len);
            if let Some((d, offset)) = p.owner {
                d.mmio_read(offset, now);
            }
            let Some(next) = addr.checked_add(p.len as u64) else { return };
            addr = next;
            rest = later;
        }
    }

    /// Store to guest-physical addresses.
    pub fn mmio_write(&self, gpa: u64, data: &[u8]) {
        let (mut addr, mut rest) = (gpa, data);
        while !rest.is_empty() {
            let p = self.mmio.piece(addr, rest.len());
            let (now, later) = rest.split_at(p.len);
            if let Some((d, offset)) = p.owner {
                d.mmio_write(offset, now);
            }
            let Some(next) = addr.checked_add(p.len as u64) else { return };
            addr = next;
            rest = later;
        }
    }
}

/// An I/O access to a device that is 8 bits wide, as the ISA bus makes it: byte by byte, ascending.
pub(crate) fn each_byte_read(offset: u16, data: &mut [u8], mut f: impl FnMut(u16) -> u8) {
    for (i, b) in (0u16..).zip(data.iter_mut()) {
        *b = f(offset.wrapping_add(i));
    }
}

/// See [`each_byte_read`].
pub(crate) fn each_byte_write(offset: u16, data: &[u8], mut f: impl FnMut(u16, u8)) {
    for (i, b) in (0u16..).zip(data.iter()) {
        f(offset.wrapping_add(i), *b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    struct Probe(u8, Mutex<Vec<(u64, Vec<u8>)>>);

    impl Probe {
        fn new(v: u8) -> Arc<Probe> {
            Arc::new(Probe(v, Mutex::default()))
        }
    }

    impl PioDevice for Probe {
        fn pio_read(&self, offset: u16, data: &mut [u8]) {
            each_byte_read(offset, data, |o| self.0 + o as u8);
        }
        fn pio_write(&self, offset: u16, data: &[u8]) {
            self.1.lock().unwrap().push((u64::from(offset), data.to_vec()));
        }
    }

    impl MmioDevice for Probe {
        fn mmio_read(&self, offset: u64, data: &mut [u8]) {
            data.fill(self.0 + offset as u8);
        }
        fn mmio_write(&self, offset: u64, data: &[u8]) {
            self.1.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    #[test]
    fn splits_accesses_where_ranges_meet() {
        let bus = Bus::new();
        let (a, b) = (Probe::new(0x10), Probe::new(0x20));
        bus.add_pio("a", 0x100, 2, a.clone()).unwrap();
        bus.add_pio("b", 0x102, 1, b.clone()).unwrap();
        let mut d = [0; 4];
        bus.pio_read(0x101, &mut d);
        assert_eq!(d, [0x11, 0x20, 0xff, 0xff]);
        bus.pio_write(0xff, &[1, 2, 3, 4]);
        assert_eq!(*a.1.lock().unwrap(), [(0, vec![2, 3])]);
        assert_eq!(*b.1.lock().unwrap(), [(0, vec![4])]);
    }

    #[test]
    fn the_ends_of_the_address_spaces() {
        let bus = Bus::new();
        let a = Probe::new(0);
        bus.add_pio("a", 0xffff, 1, a.clone()).unwrap();
        bus.add_mmio("a", u64::MAX - 1, 2, a.clone()).unwrap();
        let mut d = [0; 4];
        bus.pio_read(0xffff, &mut d);
        assert_eq!(d, [0, 0xff, 0xff, 0xff]);
        let mut d = [0; 64];
        bus.mmio_read(u64::MAX, &mut d);
        assert_eq!(d[..2], [1, 0xff]);
        bus.mmio_write(u64::MAX - 2, &[5; 64]);
        assert_eq!(*a.1.lock().unwrap(), [(0, vec![5, 5])]);
    }

    #[test]
    fn refuses_overlaps_by_name() {
        let bus = Bus::new();
        bus.add_mmio("a", 0x1000, 0x1000, Probe::new(0)).unwrap();
        for (start, len) in [(0x1000, 1), (0xfff, 2), (0x1fff, 1), (0, 0x4000)] {
            let e = bus.add_mmio("b", start, len, Probe::new(0)).unwrap_err();
            assert!(matches!(e, BusError::Overlap { old: "a", .. }), "{start:#x} {e}");
        }
        assert!(matches!(bus.add_mmio("b", 0, 0, Probe::new(0)), Err(BusError::BadRange { .. })));
        assert!(matches!(bus.add_mmio("b", u64::MAX, 2, Probe::new(0)), Err(BusError::BadRange { .. })));
        assert!(matches!(bus.add_pio("b", 0xffff, 2, Probe::new(0)), Err(BusError::BadRange { .. })));
        bus.add_mmio("b", 0xfff, 1, Probe::new(0)).unwrap();
        bus.add_mmio("c", 0x2000, 1, Probe::new(0)).unwrap();
        assert!(bus.remove_mmio(0x1000) && !bus.remove_mmio(0x1001));
        bus.add_mmio("d", 0x1000, 0x1000, Probe::new(0)).unwrap();
    }
}
