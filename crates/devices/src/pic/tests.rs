use super::*;
use crate::testing::{Bench, Rng, hammer_pio, inb, outb};
use std::sync::Arc;

struct Rig {
    pic: Arc<Pic>,
    stop: StopToken,
    ports: [PicPorts; 2],
}

impl Rig {
    fn new(icw4: u8) -> Rig {
        let stop = StopToken::new();
        let pic = Arc::new(Pic::new(stop.clone()));
        let ports = [PicPorts(pic.clone(), 0), PicPorts(pic.clone(), 1)];
        for (p, base) in ports.iter().zip([0x20, 0x28]) {
            for (offset, v) in [(0, 0x11), (1, base), (1, 4), (1, icw4)] {
                outb(p, offset, v);
            }
        }
        Rig { pic, stop, ports }
    }

    fn edge(&self, irq: u8) {
        self.pic.set_line(irq, false);
        self.pic.set_line(irq, true);
    }

    fn take(&self) -> Option<u8> {
        self.pic.intr().then(|| self.pic.acknowledge())
    }

    fn eoi(&self, irq: u8) {
        if irq >= 8 {
            outb(&self.ports[1], 0, 0x20);
        }
        outb(&self.ports[0], 0, 0x20);
    }
}

#[test]
fn priorities_and_ends() {
    let r = Rig::new(1);
    r.edge(4);
    assert_eq!(r.stop.take(StopToken::ATTENTION), StopToken::ATTENTION);
    r.edge(1);
    assert_eq!(r.take(), Some(0x21));
    assert_eq!(r.take(), None);
    // A stronger one nests.
    r.edge(0);
    assert_eq!(r.take(), Some(0x20));
    r.eoi(0);
    assert_eq!(r.take(), None);
    r.eoi(1);
    assert_eq!(r.take(), Some(0x24));
    r.eoi(4);
    assert_eq!(r.take(), None);
}

#[test]
fn the_slave_comes_through_input_2() {
    let r = Rig::new(1);
    r.edge(14);
    r.edge(3);
    r.edge(8);
    assert_eq!(r.take(), Some(0x28));
    assert_eq!(r.take(), None);
    r.eoi(8);
    assert_eq!(r.take(), Some(0x2e));
    // The master counts the slave as its input 2, stronger than 3.
    assert_eq!(r.take(), None);
    r.eoi(14);
    assert_eq!(r.take(), Some(0x23));
}

#[test]
fn edges_and_levels() {
    let r = Rig::new(1);
    r.edge(5);
    assert_eq!(r.take(), Some(0x25));
    r.eoi(5);
    // Still up, but no new edge.
    r.pic.set_line(5, true);
    assert_eq!(r.take(), None);
    let elcr = ElcrPorts(r.pic.clone());
    outb(&elcr, 0, 0xff);
    outb(&elcr, 1, 0xff);
    assert_eq!((inb(&elcr, 0), inb(&elcr, 1)), (0xf8, 0xde));
    for irq in [5, 10] {
        r.pic.set_line(irq, true);
        assert_eq!(r.take(), Some(0x20 + irq));
        r.eoi(irq);
        assert_eq!(r.take(), Some(0x20 + irq));
        r.pic.set_line(irq, false);
        r.eoi(irq);
        assert_eq!(r.take(), None);
    }
}

#[test]
fn requests_that_go_are_spurious() {
    let r = Rig::new(1);
    outb(&ElcrPorts(r.pic.clone()), 1, 0x04);
    outb(&ElcrPorts(r.pic.clone()), 0, 0x20);
    r.pic.set_line(5, true);
    r.pic.set_line(5, false);
    assert!(!r.pic.intr());
    assert_eq!(r.pic.acknowledge(), 0x27);
    r.pic.set_line(10, true);
    // The master has latched the slave's request; the slave's own is gone.
    r.pic.set_line(10, false);
    assert_eq!(r.take(), Some(0x2f));
    outb(&r.ports[0], 0, 0x0b);
    outb(&r.ports[1], 0, 0x0b);
    assert_eq!((inb(&r.ports[0], 0), inb(&r.ports[1], 0)), (4, 0));
}

#[test]
fn masks_and_status() {
    let r = Rig::new(1);
    outb(&r.ports[0], 1, 0xfd);
    r.edge(3);
    assert_eq!(r.take(), None);
    assert_eq!((inb(&r.ports[0], 1), inb(&r.ports[0], 0)), (0xfd, 8));
    outb(&r.ports[0], 1, 0);
    assert_eq!(r.take(), Some(0x23));
    outb(&r.ports[0], 0, 0x0b);
    assert_eq!(inb(&r.ports[0], 0), 8);
    outb(&r.ports[0], 0, 0x0a);
    assert_eq!(inb(&r.ports[0], 0), 0);
    // Special mask mode: masking what is in service lets weaker ones through.
    r.edge(6);
    assert_eq!(r.take(), None);
    outb(&r.ports[0], 0, 0x68);
    outb(&r.ports[0], 1, 8);
    assert_eq!(r.take(), Some(0x26));
    // Specific end of 3.
    outb(&r.ports[0], 0, 0x63);
    outb(&r.ports[0], 0, 0x0b);
    assert_eq!(inb(&r.ports[0], 0), 0x40);
}

#[test]
fn rotation() {
    let r = Rig::new(1);
    r.edge(3);
    assert_eq!(r.take(), Some(0x23));
    // End with rotation: 3 becomes the weakest.
    outb(&r.ports[0], 0, 0xa0);
    r.edge(3);
    r.edge(6);
    assert_eq!(r.take(), Some(0x26));
    outb(&r.ports[0], 0, 0x20);
    assert_eq!(r.take(), Some(0x23));
    outb(&r.ports[0], 0, 0x20);
    // Set priority: 5 the weakest, so 6 the strongest.
    outb(&r.ports[0], 0, 0xc5);
    r.edge(0);
    r.edge(7);
    assert_eq!(r.take(), Some(0x27));
    outb(&r.ports[0], 0, 0xe7);
    assert_eq!(r.take(), Some(0x20));
}

#[test]
fn automatic_ends() {
    let r = Rig::new(3);
    outb(&r.ports[0], 0, 0x80);
    r.edge(1);
    r.edge(6);
    assert_eq!(r.take(), Some(0x21));
    assert_eq!(r.take(), Some(0x26));
    r.edge(1);
    r.edge(7);
    // Rotated: after 6, 7 is the strongest.
    assert_eq!(r.take(), Some(0x27));
    assert_eq!(r.take(), Some(0x21));
    assert_eq!(r.take(), None);
}

#[test]
fn polling() {
    let r = Rig::new(1);
    outb(&r.ports[0], 0, 0x0c);
    assert_eq!(inb(&r.ports[0], 0), 0);
    r.edge(4);
    outb(&r.ports[0], 0, 0x0c);
    assert_eq!(inb(&r.ports[0], 0), 0x84);
    assert!(!r.pic.intr());
    outb(&r.ports[0], 0, 0x0b);
    assert_eq!(inb(&r.ports[0], 0), 0x10);
}

#[test]
fn special_fully_nested_mode_lets_the_slave_nest() {
    let r = Rig::new(0x11);
    r.edge(12);
    assert_eq!(r.take(), Some(0x2c));
    r.edge(9);
    assert_eq!(r.take(), Some(0x29));
}

#[test]
fn any_access_is_harmless() {
    let bench = Bench::new();
    let r = Rig::new(1);
    let mut rng = Rng(9);
    for port in 0..2 {
        hammer_pio(&bench, &r.ports[port], 2, 77 + port as u64, || {
            let x = rng.next();
            r.pic.set_line((x & 15) as u8, x & 16 != 0);
            if x & 0x60 == 0 {
                let _vector = r.pic.acknowledge();
            }
            let mut s = lock(&r.pic.state);
            assert_eq!(s.output(), r.pic.intr());
            assert!(s.chips.iter().all(|c| c.top < 8 && c.base & 7 == 0));
        });
    }
    hammer_pio(&bench, &ElcrPorts(r.pic.clone()), 2, 79, || {});
    r.pic.reset();
    assert!(!r.pic.intr());
}
