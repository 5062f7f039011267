use super::*;
use crate::testing::{Bench, hammer_pio, inb, outb};
use std::sync::atomic::{AtomicUsize, Ordering};

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, b: &[u8]) -> std::io::Result<usize> {
        lock(&self.0).extend(b);
        Ok(b.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

struct Rig {
    b: Bench,
    sink: Sink,
    s: Arc<Serial>,
}

impl Rig {
    fn new(flow_control: bool) -> Rig {
        let b = Bench::new();
        let sink = Sink::default();
        let s = Serial::new(b.line(4), &b.timers, Box::new(sink.clone()), flow_control);
        Rig { b, sink, s }
    }

    fn r(&self, reg: u16) -> u8 {
        inb(&*self.s, reg)
    }

    fn w(&self, reg: u16, v: u8) {
        outb(&*self.s, reg, v);
    }

    fn up(&self) -> bool {
        self.b.chip.level(4)
    }
}

#[test]
fn output_and_its_interrupt() {
    let r = Rig::new(false);
    assert_eq!(r.r(5), 0x60);
    r.w(0, b'h');
    assert!(!r.up());
    r.w(1, ier::THR_EMPTY);
    assert!(r.up());
    assert_eq!(r.r(2), 0x02);
    assert!(!r.up());
    assert_eq!(r.r(2), 0x01);
    r.w(0, b'i');
    assert!(r.up());
    assert_eq!(*lock(&r.sink.0), b"hi");
    // Turning the enable off and on again gives another.
    assert_eq!(r.r(2), 0x02);
    r.w(1, 0);
    r.w(1, ier::THR_EMPTY);
    assert_eq!(r.r(2), 0x02);
}

#[test]
fn divisor_latch_and_scratch() {
    let r = Rig::new(false);
    r.w(3, 0x83);
    r.w(0, 1);
    r.w(1, 2);
    assert_eq!((r.r(0), r.r(1)), (1, 2));
    r.w(3, 3);
    assert_eq!((r.r(0), r.r(1), r.r(3)), (0, 0, 3));
    r.w(7, 0x5a);
    assert_eq!(r.r(7), 0x5a);
    assert!(lock(&r.sink.0).is_empty());
}

#[test]
fn input_with_trigger_levels_and_timeout() {
    let r = Rig::new(false);
    r.w(2, 0x81);
    r.w(1, ier::RECEIVED);
    assert_eq!(r.s.receive(b"1234567"), 7);
    // Below eight: what would be four character times later.
    assert!(r.up());
    assert_eq!(r.r(2), 0xcc);
    assert_eq!(r.s.receive(b"8"), 1);
    assert_eq!(r.r(2), 0xc4);
    assert_eq!(r.r(0), b'1');
    assert_eq!(r.r(2), 0xcc);
    for c in b"2345678" {
        assert_eq!(r.r(5), 0x61);
        assert_eq!(r.r(0), *c);
    }
    assert_eq!((r.r(5), r.r(2), r.up()), (0x60, 0xc1, false));
}

#[test]
fn without_fifo_one_character_at_a_time() {
    let r = Rig::new(false);
    r.w(1, ier::RECEIVED);
    assert_eq!(r.s.receive(b"ab"), 2);
    assert_eq!((r.r(2), r.r(0)), (0x04, b'a'));
    assert_eq!(r.r(2), 0x01);
    assert_eq!((r.r(2), r.r(0)), (0x04, b'b'));
    assert_eq!((r.r(2), r.up()), (0x01, false));
}

/// Linux's handler reads while LSR says that there is something, and leaves when IIR says that there is nothing.
#[test]
fn a_flood_of_input_comes_in_pieces_each_with_an_edge() {
    let r = Rig::new(false);
    r.w(2, 0x81);
    r.w(1, ier::RECEIVED);
    let text: Vec<u8> = (0..100).collect();
    assert_eq!(r.s.receive(&text), 100);
    let (mut got, mut interrupts) = (Vec::new(), 0);
    while r.up() {
        interrupts += 1;
        assert_eq!(r.b.chip.edges(4), interrupts);
        while r.r(2) & 1 == 0 {
            while r.r(5) & lsr::DATA != 0 {
                got.push(r.r(0));
            }
        }
    }
    assert_eq!(got, text);
    assert_eq!(interrupts, 7);
}

/// A handler that takes one character an interrupt, without asking for more.
#[test]
fn what_is_held_back_comes_by_itself() {
    let r = Rig::new(false);
    r.w(1, ier::RECEIVED);
    assert_eq!(r.s.receive(b"ab"), 2);
    assert_eq!(r.r(0), b'a');
    assert!(!r.up());
    r.b.run_to(HOLD_NS);
    assert!(r.up());
    assert_eq!(r.r(0), b'b');
    r.b.run_to(3 * HOLD_NS);
    assert!(!r.up());
}

#[test]
fn fifo_resets_drop_what_is_in_the_fifo_only() {
    let r = Rig::new(false);
    r.w(2, 1);
    let text: Vec<u8> = (0..20).collect();
    assert_eq!(r.s.receive(&text), 20);
    r.w(2, 3);
    assert_eq!(r.r(0), 16);
    r.w(2, 0);
    assert_eq!((r.r(2), r.r(5)), (0x01, 0x60));
}

#[test]
fn flow_control_keeps_input_until_the_port_is_open() {
    let r = Rig::new(true);
    assert_eq!(r.s.receive(b"hello"), 5);
    r.w(2, 7);
    assert_eq!((r.r(5), r.r(0), r.s.unread()), (0x60, 0, 5));
    r.w(4, 0x0b);
    assert_eq!(r.r(0), b'h');
}

#[test]
fn refused_input_is_called_for_when_there_is_room() {
    let r = Rig::new(false);
    let calls = Arc::new(AtomicUsize::new(0));
    let c = calls.clone();
    r.s.on_room(Box::new(move || {
        c.fetch_add(1, Ordering::SeqCst);
    }));
    let big = vec![b'x'; 10_000];
    let taken = r.s.receive(&big);
    assert_eq!(taken, QUEUE);
    assert_eq!(r.s.receive(&big), 1);
    for _ in 0..QUEUE / 2 - 1 {
        r.r(0);
    }
    assert_eq!(calls.load(Ordering::SeqCst), 0);
    r.r(0);
    r.r(0);
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

#[test]
fn loopback_as_drivers_probe_it() {
    let r = Rig::new(false);
    r.r(6);
    r.w(4, 0x1a);
    assert_eq!(r.r(6) & 0xf0, 0x90);
    r.w(2, 1);
    r.w(0, 0xae);
    assert_eq!((r.r(5), r.r(0)), (0x61, 0xae));
    assert!(lock(&r.sink.0).is_empty());
    for i in 0..17 {
        r.w(0, i);
    }
    assert_eq!(r.r(5), 0x63);
    assert_eq!(r.r(5), 0x61);
    // A break is a zero with an error bit of its own, and the strongest interrupt.
    r.w(2, 3);
    r.w(1, ier::LINE | ier::RECEIVED);
    r.w(3, 0x43);
    assert_eq!(r.r(2), 0xc6);
    assert_eq!(r.r(5), 0xf1);
    assert_eq!((r.r(5), r.r(2)), (0x61, 0xc4));
}

#[test]
fn modem_lines() {
    let r = Rig::new(false);
    assert_eq!(r.r(6), 0xb0);
    r.w(1, ier::MODEM);
    r.s.set_carrier(false);
    assert!(r.up());
    assert_eq!((r.r(2), r.r(6), r.r(2)), (0x00, 0x38, 0x01));
    r.s.set_carrier(true);
    assert_eq!((r.r(6), r.r(6), r.up()), (0xb8, 0xb0, false));
    // The trailing edge of the ring input counts.
    r.w(4, 0x14);
    r.r(6);
    r.w(4, 0x10);
    assert_eq!(r.r(6), 0x04);
}

#[test]
fn a_break_from_the_host() {
    let r = Rig::new(false);
    r.w(1, ier::LINE);
    r.s.send_break();
    assert_eq!((r.r(2), r.r(5), r.r(0)), (0x06, 0x71, 0));
}

#[test]
fn reset_keeps_what_was_not_read() {
    let r = Rig::new(true);
    assert_eq!(r.s.receive(b"later"), 5);
    r.w(1, 0xf);
    r.s.reset();
    assert_eq!((r.r(1), r.r(6), r.up(), r.s.unread()), (0, 0xb0, false, 5));
}

#[test]
fn any_access_is_harmless() {
    let r = Rig::new(false);
    let mut n = 0u32;
    hammer_pio(&r.b, &*r.s, 8, 21, || {
        n += 1;
        if n.is_multiple_of(50) {
            let _taken = r.s.receive(&[n as u8; 7]);
        }
        let s = lock(&r.s.state);
        assert!(s.fifo.len() <= s.capacity() && s.queue.len() <= QUEUE);
        assert_eq!(r.up(), s.interrupt() != iir::NONE);
    });
}
