//! The PCI host: configuration mechanism 1 (PCI Local Bus specification 3.0 §3.2.2.3.2) with a bus that holds the host bridge.

use crate::bus::PioDevice;
use crate::component::{Component, Saved, StateError};
use crate::ports::ResetControl;
use crate::sync::lock;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex};

/// Of the saved state.
const VERSION: u32 = 1;

/// Ports 0xCF8 to 0xCFF: the address register, which shares its second port with [`ResetControl`], and the data window.
pub struct PciHost {
    reset: Arc<ResetControl>,
    address: Mutex<u32>,
}

impl PciHost {
    /// The address register's enable bit.
    const ENABLE: u32 = 1 << 31;
    /// Bits of the address register that hold: the rest reads zero.
    const ADDRESS_MASK: u32 = 0x80ff_fffc;
    const DATA: u16 = 4;

    /// A bus with the host bridge alone.
    #[must_use]
    pub fn new(reset: Arc<ResetControl>) -> PciHost {
        PciHost { reset, address: Mutex::new(0) }
    }

    /// Power-up.
    pub fn reset(&self) {
        *lock(&self.address) = 0;
        self.reset.reset();
    }

    /// The configuration register at the dword that the address register names; all ones where no function is.
    fn config(&self) -> u32 {
        let address = *lock(&self.address);
        if address & Self::ENABLE == 0 || address & 0x00ff_ff00 != 0 {
            return u32::MAX;
        }
        match address & 0xfc {
            // Vendor and device: Red Hat's generic host bridge, which no driver claims.
            0x00 => 0x0008_1b36,
            // Class 06 (bridge), subclass 00 (host), revision 0.
            0x08 => 0x0600_0000,
            _ => 0,
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedPciHost {
    address: u32,
    reset_control: u8,
}

impl Component for PciHost {
    fn name(&self) -> String {
        "pci-host".into()
    }

    fn reset(&self) {
        PciHost::reset(self);
    }

    fn save(&self) -> Saved {
        let (address, reset_control) = (*lock(&self.address), self.reset.value());
        Saved::of(self, VERSION, &SavedPciHost { address, reset_control })
    }

    fn restore(&self, saved: &Saved) -> Result<(), StateError> {
        let SavedPciHost { address, reset_control } = saved.read(self, VERSION)?;
        saved.ensure(address & !Self::ADDRESS_MASK == 0, "the address has unknown bits")?;
        saved.ensure(reset_control & !0x0e == 0, "the reset control register has unknown bits")?;
        *lock(&self.address) = address;
        self.reset.set_value(reset_control);
        Ok(())
    }
}

impl PioDevice for PciHost {
    fn pio_read(&self, offset: u16, data: &mut [u8]) {
        if offset >= Self::DATA {
            let bytes = self.config().to_le_bytes();
            for (b, at) in data.iter_mut().zip(usize::from(offset - Self::DATA)..) {
                *b = bytes.get(at).copied().unwrap_or(0xff);
            }
        } else if offset == 0 && data.len() == 4 {
            data.copy_from_slice(&lock(&self.address).to_le_bytes());
        } else {
            self.reset.pio_read(offset, data);
        }
    }

    fn pio_write(&self, offset: u16, data: &[u8]) {
        match <[u8; 4]>::try_from(data) {
            Ok(v) if offset == 0 => *lock(&self.address) = u32::from_le_bytes(v) & Self::ADDRESS_MASK,
            // The host bridge has no register that can be written.
            _ if offset >= Self::DATA => {}
            _ => self.reset.pio_write(offset, data),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::MachineEvent;
    use std::sync::mpsc;

    fn host() -> (PciHost, mpsc::Receiver<MachineEvent>) {
        let (tx, rx) = mpsc::channel();
        (PciHost::new(Arc::new(ResetControl::new(Arc::new(tx)))), rx)
    }

    fn read(h: &PciHost, address: u32, offset: u16, len: usize) -> u32 {
        h.pio_write(0, &address.to_le_bytes());
        let mut b = [0; 4];
        h.pio_read(4 + offset, &mut b[..len]);
        u32::from_le_bytes(b)
    }

    #[test]
    fn one_host_bridge() {
        let (h, _) = host();
        assert_eq!(read(&h, 0x8000_0000, 0, 4), 0x0008_1b36);
        assert_eq!(read(&h, 0x8000_0008, 2, 2), 0x0600);
        assert_eq!(read(&h, 0x8000_0008, 3, 1), 6);
        assert_eq!(read(&h, 0x8000_0800, 0, 4), u32::MAX, "no second device");
        assert_eq!(read(&h, 0x8001_0000, 0, 2), 0xffff, "no second bus");
        assert_eq!(read(&h, 0, 0, 4), u32::MAX, "not enabled");
    }

    #[test]
    fn the_address_reads_back() {
        let (h, _) = host();
        h.pio_write(0, &u32::MAX.to_le_bytes());
        let mut b = [0; 4];
        h.pio_read(0, &mut b);
        assert_eq!(u32::from_le_bytes(b), 0x80ff_fffc);
    }

    #[test]
    fn reset_control_keeps_its_port() {
        let (h, rx) = host();
        h.pio_write(1, &[6]);
        assert!(matches!(rx.try_recv(), Ok(MachineEvent::Reset)));
        h.pio_write(0, &0x8000_0600u32.to_le_bytes());
        assert!(rx.try_recv().is_err());
    }

    #[test]
    fn any_access_is_harmless() {
        let (h, rx) = host();
        crate::testing::hammer_pio(&crate::testing::Bench::new(), &h, 8, 71, || {
            assert_eq!(*lock(&h.address) & !PciHost::ADDRESS_MASK, 0);
            assert!(rx.try_iter().all(|e| e == MachineEvent::Reset));
        });
    }
}
