//! The local APICs and the bus between them (Intel SDM vol. 3A chapter 11 "APIC").

mod bits;
mod bus;
mod lapic;
mod pv_eoi;
mod regs;
mod saved;
#[cfg(test)]
mod tests;
mod timer;

pub use bus::{Apics, Delivery, Dest, Message};
pub use lapic::{BASE_EN, Effect, Lapic};

/// Frequency of the bus that the local APIC timers count, before their dividers: one tick a nanosecond.
pub const BUS_KHZ: u32 = 1_000_000;
