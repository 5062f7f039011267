//! The local APICs and the bus between them (Intel SDM vol. 3A chapter 11 "APIC").

mod bits;
mod bus;
mod lapic;
mod pv_eoi;
mod regs;
#[cfg(test)]
mod tests;
mod timer;

pub use bus::{Apics, Delivery, Dest, Message};
pub use lapic::{Effect, Lapic};
