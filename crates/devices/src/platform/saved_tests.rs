//! Every component's state, saved and loaded into another machine.

use super::tests::Machine;
use super::*;
use crate::testing::Rng;
use ringer_engine::CpuIo;
use serde_json::Value;
use std::collections::BTreeSet;

/// Ports of the machine but the RTC's, whose time of day is the host's.
const PORTS: &[(u16, u16)] = &[
    (0x20, 2),
    (0xa0, 2),
    (0x4d0, 2),
    (0x40, 4),
    (0x61, 1),
    (0x60, 1),
    (0x64, 1),
    (0x92, 1),
    (0x600, 12),
    (0x620, 4),
    (0xcf8, 8),
    (0x3f8, 8),
    (0x2f8, 8),
];

/// One random access by a processor, or something else that happens; what it showed.
fn act(m: &Machine, rng: &mut Rng, rtc: bool) -> Vec<u8> {
    let io = m.io(rng.below(2) as usize);
    let value = rng.value().to_le_bytes();
    let mut seen = value;
    let n = [1, 1, 1, 2, 4][rng.below(5) as usize];
    match rng.below(16) {
        0..6 => {
            let (first, len) = PORTS[rng.below(PORTS.len() as u64) as usize];
            let port = first + rng.below(u64::from(len)) as u16;
            if rng.below(2) == 0 {
                io.pio_read(port, &mut seen[..n]);
            } else {
                io.pio_write(port, &value[..n]);
            }
        }
        6 if rtc => {
            // Not the time: all but the host's seconds.
            io.pio_write(0x70, &[[0x0b, 0x0d, 0x10, 0x5f, 1, 3, 5][rng.below(7) as usize]]);
            if rng.below(2) == 0 {
                io.pio_read(0x71, &mut seen[..1]);
            } else {
                io.pio_write(0x71, &[value[0] & 0x0f]);
            }
        }
        7 | 8 => {
            let gpa = map::HPET
                + [0, 0x10, 0x20, 0xf0, 0x100, 0x108, 0x110, 0x120, 0x128, 0x140][rng.below(10) as usize];
            if rng.below(3) == 0 { io.mmio_read(gpa, &mut seen) } else { io.mmio_write(gpa, &value) }
        }
        9 => {
            io.mmio_write(map::IOAPIC, &[(0x10 + rng.below(0x30)) as u8, 0, 0, 0]);
            let data = [value[0], value[1] & 0xaf, value[2] & 1, 0];
            if rng.below(3) == 0 {
                io.mmio_read(map::IOAPIC + 0x10, &mut seen[..4])
            } else {
                io.mmio_write(map::IOAPIC + 0x10, &data)
            }
        }
        10 | 11 => {
            let regs =
                [0x8, 0xb, 0xd, 0xe, 0xf, 0x20, 0x28, 0x31, 0x32, 0x34, 0x35, 0x36, 0x37, 0x38, 0x39, 0x3e];
            let gpa = 0xfee0_0000 + 16 * regs[rng.below(16) as usize];
            if rng.below(3) == 0 {
                io.mmio_read(gpa, &mut seen[..4])
            } else {
                io.mmio_write(gpa, &value[..4])
            }
        }
        12 => {
            let icr = rng.below(0x100) | rng.below(8) << 8 | rng.below(4) << 18;
            io.mmio_write(0xfee0_0300, &(icr as u32).to_le_bytes());
        }
        13 => {
            let p = io.pending();
            let v = if p.intr { io.acknowledge() } else { None };
            seen = [
                p.intr.into(),
                p.nmi.into(),
                p.init.into(),
                p.sipi.unwrap_or(0),
                p.unhalt.into(),
                v.unwrap_or(0),
                0,
                0,
            ];
        }
        14 => {
            let serial = m.platform.serial(rng.below(2) as usize).unwrap();
            seen[0] = serial.receive(&value[..n]) as u8;
            if rng.below(8) == 0 {
                m.platform.power_button();
                m.platform.ctrl_alt_del();
                m.platform.nmi();
            }
        }
        _ => {
            let ns = m.clock.now_ns() + (1 << rng.below(34));
            m.at(ns);
        }
    }
    if rng.below(64) == 0 {
        let msrs = [
            (0x4b56_4d01, 0x2001),
            (0x4b56_4d00, 0x3000),
            (0x4b56_4d05, 1),
            (0x4b56_4d04, 0x4001),
            (0x6e0, rng.next() >> 24),
        ];
        let (nr, v) = msrs[rng.below(5) as usize];
        let _refused = io.msr_write(nr, v);
    }
    seen.to_vec()
}

/// As a file holds it.
fn bytes(saved: &[Saved]) -> Vec<u8> {
    serde_json::to_vec(saved).unwrap()
}

/// A machine to which much has happened.
fn busy(seed: u64, steps: u32) -> (Machine, Rng) {
    let (m, mut rng) = (Machine::new(2), Rng(seed));
    for l in 0..2 {
        m.enable_apic(l);
    }
    for _ in 0..steps {
        act(&m, &mut rng, true);
    }
    (m, rng)
}

/// The same machine, made anew from what was saved of it.
fn copy(m: &Machine) -> Machine {
    let saved = m.platform.save();
    let text = bytes(&saved);
    let read: Vec<Saved> = serde_json::from_slice(&text).unwrap();
    let other = Machine::new(2);
    let mut ram = vec![0; 1 << 20];
    m.memory.read(0, &mut ram).unwrap();
    other.memory.write(0, &ram).unwrap();
    other.platform.restore(&read).unwrap();
    assert_eq!(String::from_utf8(bytes(&other.platform.save())), String::from_utf8(text));
    other
}

#[test]
fn a_loaded_machine_behaves_as_the_saved_one() {
    let mut acted = BTreeSet::new();
    for seed in 1..=150 {
        let (a, mut rng) = busy(seed, 400);
        let b = copy(&a);
        let mut rng_b = Rng(rng.0);
        for step in 0..400 {
            let (x, y) = (act(&a, &mut rng, false), act(&b, &mut rng_b, false));
            assert_eq!(x, y, "seed {seed}, step {step}");
            assert_eq!(rng.0, rng_b.0);
        }
        let of =
            |m: &Machine| m.platform.save().into_iter().filter(|s| s.component != "rtc").collect::<Vec<_>>();
        for (x, y) in of(&a).iter().zip(&of(&b)) {
            assert_eq!(x, y, "seed {seed}");
        }
        let fresh = Machine::new(2).platform.save();
        acted.extend(
            a.platform.save().into_iter().zip(fresh).filter(|(s, f)| s != f).map(|(s, _)| s.component),
        );
    }
    // The test is worth something only of components to which something happened.
    let all: BTreeSet<_> = Machine::new(2).platform.save().into_iter().map(|s| s.component).collect();
    let idle: Vec<_> = all.difference(&acted).map(String::as_str).collect();
    assert_eq!(idle, ["com3", "com4", "debug-exit"], "nothing happened to them");
}

#[test]
fn what_waits_is_not_lost() {
    let m = Machine::new(2);
    m.enable_apic(0);
    m.enable_apic(1);
    // An IPI, an NMI, INIT and SIPI, a kick, a timer that is due, and input on a serial line.
    m.store(1, 0xfee0_0310, 0);
    m.store(1, 0xfee0_0300, 0x4055);
    m.store(0, 0xfee0_0310, 1 << 24);
    for icr in [0x4400, 0x4500, 0x4612] {
        m.store(0, 0xfee0_0300, icr);
    }
    assert_eq!(m.io(0).hypercall(5, [0, 1, 0, 0]), 0);
    m.store(1, 0xfee0_0320, 0x77);
    m.store(1, 0xfee0_0380, 500);
    assert_eq!(m.platform.serial(0).unwrap().receive(b"ringer"), 6);
    m.clock.set_ns(10_000);

    let b = copy(&m);
    assert!(b.stops.iter().all(|s| s.take(StopToken::ATTENTION) != 0), "the processors look");
    let p = b.io(1).pending();
    assert!(!p.nmi && p.init && p.unhalt && p.sipi == Some(0x12), "an INIT overtakes an NMI");
    assert_eq!((b.io(0).pending().intr, b.io(0).acknowledge()), (true, Some(0x55)));
    b.platform.timers().run_expired();
    assert_eq!((b.io(1).pending().intr, b.io(1).acknowledge()), (true, Some(0x77)));
    let text: Vec<u8> = (0..6).map(|_| b.inb(0x3f8)).collect();
    assert_eq!(text, b"ringer");
}

#[test]
fn lines_do_not_move() {
    let m = Machine::new(1);
    m.init_pics();
    m.out(0x21, 0);
    // The PIT's line is up, and its interrupt has been taken.
    m.out(0x43, 0x30);
    m.out(0x40, 1);
    m.out(0x40, 0);
    m.at(1_000_000);
    assert_eq!((m.io(0).pending().intr, m.io(0).acknowledge()), (true, Some(0x30)));
    m.out(0x20, 0x20);
    let other = Machine::new(1);
    other.platform.restore(&m.platform.save()).unwrap();
    other.at(2_000_000);
    assert!(!other.io(0).pending().intr, "no edge is seen twice");
}

#[test]
fn a_state_is_for_its_own_component_and_version() {
    let (m, _) = busy(7, 300);
    let saved = m.platform.save();
    let other = Machine::new(2);
    let say = |s: &[Saved]| other.platform.restore(s).unwrap_err().to_string();
    let names: Vec<&str> = saved.iter().map(|s| &*s.component).collect();
    assert_eq!(
        names,
        [
            "clock",
            "pit",
            "hpet",
            "rtc",
            "i8042",
            "acpi",
            "pci-host",
            "system-control",
            "debug-exit",
            "com1",
            "com2",
            "com3",
            "com4",
            "kvm0",
            "kvm1",
            "pic",
            "ioapic",
            "apic-bus",
            "lapic0",
            "lapic1"
        ]
    );
    for n in 0..saved.len() {
        let name = names[n];
        let mut s = saved.clone();
        s.remove(n);
        assert_eq!(say(&s), format!("the saved state has nothing of {name}, which this machine has"));
        s = saved.clone();
        s.push(saved[n].clone());
        assert_eq!(say(&s), format!("the saved state has {name} once more than this machine"));
        s = saved.clone();
        s[n].version = 2;
        let e = say(&s);
        assert_eq!(e, format!("the saved state of {name} has version 2, and this Ringer reads version 1"));
        s = saved.clone();
        s[n].state.as_object_mut().unwrap().insert("warp".into(), Value::from(1));
        assert_eq!(say(&s), format!("the saved state of {name} cannot be read"));
        let fields: Vec<String> = saved[n].state.as_object().unwrap().keys().cloned().collect();
        for f in fields {
            s = saved.clone();
            s[n].state.as_object_mut().unwrap().remove(&f);
            // What need not be there is there as null.
            assert!(
                other.platform.restore(&s).is_err() || saved[n].state[&f].is_null(),
                "{name} without {f}"
            );
        }
    }
    let e = other.platform.components()[1].restore(&saved[0]).unwrap_err().to_string();
    assert_eq!(e, "this is the saved state of clock, not of pit");
    other.platform.restore(&saved).unwrap();
}

/// Every place in a value that holds a number, text, or the like.
fn leaves<'a>(v: &'a mut Value, out: &mut Vec<&'a mut Value>) {
    match v {
        Value::Array(a) => a.iter_mut().for_each(|v| leaves(v, out)),
        Value::Object(o) => o.values_mut().for_each(|v| leaves(v, out)),
        v => out.push(v),
    }
}

fn spoil(v: &mut Value, rng: &mut Rng) {
    let mut places = Vec::new();
    leaves(v, &mut places);
    let n = places.len() as u64;
    for _ in 0..=rng.below(2) {
        if n == 0 {
            return;
        }
        let p = &mut places[rng.below(n) as usize];
        let value = rng.value();
        **p = match p {
            Value::Bool(b) => Value::Bool(!*b),
            Value::String(s) if rng.below(4) != 0 => {
                let at = rng.below(s.len() as u64 + 1) as usize;
                let digit = char::from_digit((value & 15) as u32, 16).unwrap();
                Value::String(s.chars().enumerate().map(|(i, c)| if i == at { digit } else { c }).collect())
            }
            Value::Null if value & 3 == 0 => {
                Value::Array(vec![Value::from(value >> 33), Value::from(rng.value())])
            }
            _ if value & 63 == 0 => Value::Null,
            // What fits the field more often than not.
            _ => Value::from(value >> [0, 1, 33, 48, 56, 60, 62][rng.below(7) as usize]),
        };
    }
}

/// A state of anybody's making is refused, or the machine lives with it.
#[test]
fn hostile_states() {
    let (mut taken, mut refused) = (BTreeSet::new(), BTreeSet::new());
    for seed in 1..=60 {
        let (m, mut rng) = busy(seed * 1_000_003, 120);
        let good = m.platform.save();
        for n in 0..good.len() {
            let mut saved = good.clone();
            spoil(&mut saved[n].state, &mut rng);
            let b = Machine::new(2);
            let name = good[n].component.clone();
            match b.platform.restore(&saved) {
                Err(_) => refused.insert(name),
                Ok(()) => {
                    assert_eq!(b.platform.save()[n].state, saved[n].state, "it is taken as it is");
                    taken.insert(name)
                }
            };
            for _ in 0..60 {
                act(&b, &mut rng, true);
            }
            b.platform.reset();
        }
    }
    let never: Vec<_> = refused.difference(&taken).collect();
    assert!(never.is_empty(), "always refused: {never:?}");
    let free: Vec<&str> = taken.difference(&refused).map(String::as_str).collect();
    assert_eq!(free, ["debug-exit"], "never refused");
}

#[test]
fn a_refused_state_changes_nothing() {
    let (m, mut rng) = busy(3, 300);
    let before = m.platform.save();
    for c in m.platform.components() {
        for _ in 0..200 {
            let mut saved = c.save();
            spoil(&mut saved.state, &mut rng);
            if c.restore(&saved).is_err() {
                assert_eq!(before.iter().find(|b| b.component == c.name()), Some(&c.save()));
            } else {
                c.restore(before.iter().find(|b| b.component == c.name()).unwrap()).unwrap();
            }
        }
    }
    assert_eq!(m.platform.save(), before);
}
