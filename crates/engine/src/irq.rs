//! [`IrqChip`]: the interrupt fabric, in user space or in the kernel.

/// The interrupt chips of a machine, seen by devices. May be called from any thread.
pub trait IrqChip: Send + Sync {
    /// Drives the line of a global system interrupt (0 to 23; ISA interrupts have their own number). Edge-triggered
    /// inputs act on a rise, level-triggered ones as long as the line is up.
    fn set_irq(&self, gsi: u32, level: bool);
    /// Delivers a message-signalled interrupt (Intel SDM vol. 3A §10.11): what a write of `data` to `address` means.
    fn msi(&self, address: u64, data: u32);
}
