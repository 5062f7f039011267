//! [`Apics`]: messages between local APICs, and from the I/O APIC and MSIs to them.

use super::lapic::Lapic;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How an interrupt message acts on its target (Intel SDM vol. 3A figure 11-12).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Delivery {
    /// The vector, to every processor addressed.
    Fixed,
    /// The vector, to the one of them that runs at the lowest priority.
    LowestPriority,
    /// System management interrupt: there is none here, and it is dropped.
    Smi,
    /// Non-maskable interrupt.
    Nmi,
    /// INIT.
    Init,
    /// Start-up IPI; the vector is the page to start at.
    Startup,
    /// External interrupt: the vector comes from the PIC.
    ExtInt,
}

impl Delivery {
    /// From the three bits of ICR, LVT, I/O APIC and MSI entries; `None` for the reserved value 3.
    #[must_use]
    pub fn from_bits(bits: u32) -> Option<Delivery> {
        Some(match bits & 7 {
            0 => Delivery::Fixed,
            1 => Delivery::LowestPriority,
            2 => Delivery::Smi,
            4 => Delivery::Nmi,
            5 => Delivery::Init,
            6 => Delivery::Startup,
            7 => Delivery::ExtInt,
            _ => return None,
        })
    }
}

/// Whom a message addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dest {
    /// The local APIC with this id.
    Physical(u32),
    /// Those whose logical id matches, each by its own mode (flat, cluster or x2APIC).
    Logical(u32),
    /// All.
    All,
    /// All but this index.
    AllBut(usize),
    /// This index alone.
    Index(usize),
}

impl Dest {
    /// From an 8-bit destination field, as in I/O APIC entries, MSI addresses and the xAPIC ICR.
    #[must_use]
    pub fn from_byte(id: u8, logical: bool) -> Dest {
        match (id, logical) {
            (0xff, _) => Dest::All,
            (_, true) => Dest::Logical(u32::from(id)),
            (_, false) => Dest::Physical(u32::from(id)),
        }
    }

    /// From the 32-bit destination field of the x2APIC ICR.
    #[must_use]
    pub fn from_word(id: u32, logical: bool) -> Dest {
        match (id, logical) {
            (u32::MAX, _) => Dest::All,
            (_, true) => Dest::Logical(id),
            (_, false) => Dest::Physical(id),
        }
    }
}

/// An interrupt message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message {
    /// Whom it addresses.
    pub dest: Dest,
    /// What it does there.
    pub delivery: Delivery,
    /// The vector.
    pub vector: u8,
    /// Level-triggered: its EOI is broadcast to the I/O APIC.
    pub level: bool,
}

/// All local APICs of a machine, by index; a local APIC's id is its index.
pub struct Apics {
    lapics: Vec<Arc<Lapic>>,
    /// Where the search for a lowest-priority target starts, so that equals take turns.
    pub(super) turn: AtomicUsize,
}

impl Apics {
    /// Connects local APICs; that at place `i` has id `i`.
    #[must_use]
    pub fn new(lapics: Vec<Arc<Lapic>>) -> Apics {
        Apics { lapics, turn: AtomicUsize::new(0) }
    }

    /// The local APIC of processor `index`.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<&Arc<Lapic>> {
        self.lapics.get(index)
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> &[Arc<Lapic>] {
        &self.lapics
    }

    /// Delivers a message; returns how many local APICs took it.
    pub fn deliver(&self, m: &Message) -> u32 {
        if m.delivery == Delivery::LowestPriority {
            return self.deliver_lowest(m);
        }
        match m.dest {
            Dest::Physical(id) => {
                usize::try_from(id).ok().and_then(|i| self.get(i)).map_or(0, |l| u32::from(l.accept(m)))
            }
            Dest::Index(i) => self.get(i).map_or(0, |l| u32::from(l.accept(m))),
            _ => self
                .lapics
                .iter()
                .enumerate()
                .map(|(i, l)| u32::from(addresses(m.dest, i, l) && l.accept(m)))
                .sum(),
        }
    }

    fn deliver_lowest(&self, m: &Message) -> u32 {
        let n = self.lapics.len().max(1);
        let start = self.turn.fetch_add(1, Ordering::Relaxed) % n;
        let best = (0..self.lapics.len())
            .map(|k| (start + k) % n)
            .filter_map(|i| {
                let l = &self.lapics[i];
                let addressed = addresses(m.dest, i, l);
                addressed.then(|| l.arbitration()).flatten().map(|p| (p, l))
            })
            .min_by_key(|(p, _)| *p);
        best.map_or(0, |(_, l)| u32::from(l.accept(m)))
    }
}

fn addresses(dest: Dest, index: usize, l: &Lapic) -> bool {
    match dest {
        Dest::All => true,
        Dest::AllBut(i) => i != index,
        Dest::Index(i) => i == index,
        Dest::Physical(id) => usize::try_from(id) == Ok(index),
        Dest::Logical(id) => l.matches_logical(id),
    }
}
