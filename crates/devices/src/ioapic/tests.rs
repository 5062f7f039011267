use super::*;
use crate::apic::Lapic;
use crate::testing::{Bench, hammer_mmio};
use ringer_engine::StopToken;
use ringer_memory::GuestMemory;

fn setup() -> (Bench, Arc<Apics>, IoApic) {
    let b = Bench::new();
    let memory = GuestMemory::new(1 << 20).unwrap();
    let lapics =
        (0..2).map(|i| Lapic::new(i, StopToken::new(), memory.clone(), &b.timers)).collect::<Vec<_>>();
    for l in &lapics {
        let _none = l.mmio_write(0xf0, &0x1ffu32.to_le_bytes());
    }
    let apics = Arc::new(Apics::new(lapics));
    let io = IoApic::new(apics.clone(), 2);
    (b, apics, io)
}

fn set(io: &IoApic, reg: u32, v: u32) {
    io.mmio_write(IOREGSEL, &reg.to_le_bytes());
    io.mmio_write(IOWIN, &v.to_le_bytes());
}

fn get(io: &IoApic, reg: u32) -> u32 {
    io.mmio_write(IOREGSEL, &reg.to_le_bytes());
    let mut d = [0; 4];
    io.mmio_read(IOWIN, &mut d);
    u32::from_le_bytes(d)
}

fn route(io: &IoApic, pin: u32, low: u32, dest: u32) {
    set(io, 0x11 + 2 * pin, dest << 24);
    set(io, 0x10 + 2 * pin, low);
}

#[test]
fn identification_and_entries() {
    let (_b, _a, io) = setup();
    assert_eq!((get(&io, 0), get(&io, 1)), (2 << 24, 0x0017_0020));
    set(&io, 0, 0xff00_0000);
    assert_eq!(get(&io, 0), 0x0f00_0000);
    assert_eq!(get(&io, 0x10), 0x1_0000);
    set(&io, 0x3e, 0xffff_ffff);
    set(&io, 0x3f, 0xffff_ffff);
    // Delivery status and remote IRR are not for software; the middle is reserved.
    assert_eq!((get(&io, 0x3e), get(&io, 0x3f)), (0x0001_afff, 0xff00_0000));
    assert_eq!((get(&io, 0x40), get(&io, 0xff)), (0, 0));
}

#[test]
fn edges_are_lost_while_masked() {
    let (_b, a, io) = setup();
    let l = a.get(0).unwrap();
    io.set_line(3, true);
    route(&io, 3, 0x43, 0);
    assert_eq!(l.acknowledge(), None);
    io.set_line(3, true);
    assert_eq!(l.acknowledge(), None);
    io.set_line(3, false);
    io.set_line(3, true);
    assert_eq!(l.acknowledge(), Some(0x43));
    let _none = l.eoi();
    assert_eq!(l.acknowledge(), None);
}

#[test]
fn a_level_is_delivered_again_after_its_end() {
    let (_b, a, io) = setup();
    let l = a.get(1).unwrap();
    route(&io, 9, 0x8059, 1);
    io.set_line(9, true);
    assert_eq!(l.acknowledge(), Some(0x59));
    assert_eq!(get(&io, 0x22), 0xc059);
    // Held up by remote IRR.
    io.set_line(9, false);
    io.set_line(9, true);
    assert_eq!(l.eoi(), crate::Effect::Eoi(0x59));
    assert_eq!(l.acknowledge(), None);
    io.eoi(0x59);
    assert_eq!(l.acknowledge(), Some(0x59));
    io.set_line(9, false);
    let _some = l.eoi();
    // The EOI register does what the broadcast does.
    io.mmio_write(EOIR, &0x59u32.to_le_bytes());
    assert_eq!(get(&io, 0x22), 0x8059);
    assert_eq!(l.acknowledge(), None);
}

#[test]
fn a_level_waits_for_the_mask_to_go() {
    let (_b, a, io) = setup();
    let l = a.get(0).unwrap();
    route(&io, 9, 0x1_8059, 0);
    io.set_line(9, true);
    assert_eq!(l.acknowledge(), None);
    route(&io, 9, 0x8059, 0);
    assert_eq!(l.acknowledge(), Some(0x59));
    // To edge and back clears remote IRR, and the line is still up.
    set(&io, 0x22, 0x1_0059);
    assert_eq!(get(&io, 0x22), 0x1_0059);
    let _some = l.eoi();
    set(&io, 0x22, 0x8059);
    assert_eq!(l.acknowledge(), Some(0x59));
}

#[test]
fn remote_irr_needs_a_taker() {
    let (_b, a, io) = setup();
    route(&io, 9, 0x8059, 7);
    io.set_line(9, true);
    assert_eq!(get(&io, 0x22), 0x8059);
    set(&io, 0x23, 1 << 24);
    assert_eq!(get(&io, 0x22), 0xc059);
    assert_eq!(a.get(1).unwrap().acknowledge(), Some(0x59));
}

#[test]
fn nmi_and_reset() {
    let (_b, a, io) = setup();
    route(&io, 4, 0x8400, 0xff);
    io.set_line(4, true);
    assert!(a.get(0).unwrap().pending(false).nmi && a.get(1).unwrap().pending(false).nmi);
    io.reset();
    assert_eq!(get(&io, 0x18), 0x1_0000);
    io.set_line(99, true);
}

#[test]
fn any_access_is_harmless() {
    let (b, a, io) = setup();
    let mut n = 0;
    hammer_mmio(&b, &io, 0x1000, 5, || {
        n += 1;
        io.set_line(n % 25, n % 3 != 0);
        for l in a.all() {
            if l.acknowledge().is_some()
                && let crate::Effect::Eoi(v) = l.eoi()
            {
                io.eoi(v);
            }
        }
    });
    let s = lock(&io.state).clone();
    for e in s.entries {
        assert_eq!(e & !(entry::WRITABLE | entry::REMOTE_IRR), 0);
        assert!(e & entry::REMOTE_IRR == 0 || e & entry::LEVEL != 0);
    }
}
