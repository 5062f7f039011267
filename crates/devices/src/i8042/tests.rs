use super::*;
use crate::testing::{Bench, hammer_pio, inb, outb};
use std::sync::mpsc::{Receiver, channel};

struct Rig {
    b: Bench,
    data: I8042Ports,
    command: I8042Ports,
    events: Receiver<MachineEvent>,
}

impl Rig {
    fn new() -> Rig {
        let b = Bench::new();
        let (tx, events) = channel();
        let c = Arc::new(I8042::new(b.line(1), b.line(12), Arc::new(tx)));
        Rig { b, data: I8042Ports(c.clone(), false), command: I8042Ports(c, true), events }
    }

    fn cmd(&self, v: u8) {
        outb(&self.command, 0, v);
    }

    fn data(&self, v: u8) {
        outb(&self.data, 0, v);
    }

    /// All that waits.
    fn read(&self) -> Vec<u8> {
        let mut out = Vec::new();
        while inb(&self.command, 0) & 1 != 0 {
            out.push(inb(&self.data, 0));
        }
        out
    }
}

#[test]
fn what_linux_probes() {
    let r = Rig::new();
    assert_eq!(inb(&r.command, 0), 0x14);
    r.cmd(0xaa);
    assert_eq!(inb(&r.command, 0), 0x1d);
    assert_eq!(r.read(), [0x55]);
    r.cmd(0x20);
    assert_eq!(r.read(), [0x65]);
    r.cmd(0x60);
    r.data(0x74);
    r.cmd(0x20);
    assert_eq!(r.read(), [0x74]);
    r.cmd(0xab);
    assert_eq!(r.read(), [0]);
    // No mouse port: loop-back is silent, the test fails.
    r.cmd(0xd3);
    r.data(0x5a);
    assert!(r.read().is_empty());
    r.cmd(0xa9);
    assert_eq!(r.read(), [1]);
    // The keyboard's interface is off: its answers wait.
    r.data(0xf2);
    r.cmd(0xad);
    assert_eq!(r.read(), [0xfa]);
    r.cmd(0xae);
    assert_eq!(r.read(), [0xab, 0x41]);
}

#[test]
fn keyboard_commands() {
    let r = Rig::new();
    // Without translation.
    r.cmd(0x60);
    r.data(0x05);
    for (send, answer) in [
        (vec![0xff], vec![0xfa, 0xaa]),
        (vec![0xf2], vec![0xfa, 0xab, 0x83]),
        (vec![0xed, 7], vec![0xfa, 0xfa]),
        (vec![0xf0, 0], vec![0xfa, 0xfa, 2]),
        (vec![0xf0, 1], vec![0xfa, 0xfa]),
        (vec![0xf0, 9], vec![0xfa, 0xfe]),
        (vec![0xf3, 0], vec![0xfa, 0xfa]),
        (vec![0xee], vec![0xee]),
        (vec![0xfe], vec![0xee]),
        (vec![0x12], vec![0xfe]),
        (vec![0xf4], vec![0xfa]),
    ] {
        let got: Vec<u8> = send
            .iter()
            .flat_map(|v| {
                r.data(*v);
                r.read()
            })
            .collect();
        assert_eq!(got, answer, "{send:x?}");
    }
}

#[test]
fn each_byte_interrupts() {
    let r = Rig::new();
    r.data(0xf2);
    assert!(r.b.chip.level(1));
    r.read();
    assert_eq!((r.b.chip.edges(1), r.b.chip.level(1)), (3, false));
    r.cmd(0x60);
    r.data(0x67);
    r.cmd(0xd4);
    r.data(0xff);
    assert!(r.b.chip.level(12));
    assert_eq!(inb(&r.command, 0) & 0xe1, 0x61);
    assert_eq!(r.read(), [0xfe]);
}

#[test]
fn ctrl_alt_del_in_the_codes_that_the_guest_expects() {
    let r = Rig::new();
    r.command.0.ctrl_alt_del();
    assert_eq!(r.read(), [0x1d, 0x38, 0xe0, 0x53, 0xe0, 0xd3, 0xb8, 0x9d]);
    r.cmd(0x60);
    r.data(0x05);
    r.command.0.ctrl_alt_del();
    assert_eq!(r.read()[..4], [0x14, 0x11, 0xe0, 0x71]);
    r.data(0xf5);
    r.read();
    r.command.0.ctrl_alt_del();
    assert!(r.read().is_empty());
}

#[test]
fn resets_and_a20() {
    let r = Rig::new();
    r.cmd(0xfe);
    r.cmd(0xff);
    r.cmd(0xd1);
    r.data(0xdf);
    r.cmd(0xd0);
    assert_eq!(r.read(), [0xdf]);
    r.cmd(0xdd);
    r.cmd(0xd0);
    assert_eq!(r.read(), [0xdd]);
    assert_eq!(r.events.try_iter().collect::<Vec<_>>(), [MachineEvent::Reset]);
    r.cmd(0xd1);
    r.data(0xde);
    assert_eq!(r.events.try_iter().collect::<Vec<_>>(), [MachineEvent::Reset]);
    r.command.0.reset();
    assert_eq!(inb(&r.command, 0), 0x14);
}

#[test]
fn any_access_is_harmless() {
    let r = Rig::new();
    let mut n = 0u32;
    for d in [&r.data, &r.command] {
        hammer_pio(&r.b, d, 1, 51, || {
            n += 1;
            if n.is_multiple_of(5) {
                r.cmd((n >> 2) as u8);
                r.data((n >> 3) as u8);
            }
            if n.is_multiple_of(999) {
                r.command.0.ctrl_alt_del();
            }
            assert!(lock(&r.command.0.state).replies.len() <= 8);
            assert!(r.events.try_iter().all(|e| e == MachineEvent::Reset));
        });
    }
}
