use super::*;
use crate::testing::{Bench, hammer_pio, inb, outb};
use std::sync::mpsc::{Receiver, channel};

fn rig() -> (Bench, Arc<AcpiPm>, Receiver<MachineEvent>) {
    let b = Bench::new();
    let (tx, rx) = channel();
    let pm = AcpiPm::new(b.line(9), Arc::new(tx), &b.timers);
    (b, pm, rx)
}

fn word(d: &dyn PioDevice, offset: u16) -> u16 {
    let mut v = [0; 2];
    d.pio_read(offset, &mut v);
    u16::from_le_bytes(v)
}

#[test]
fn the_pm_timer_runs_at_its_rate() {
    let (b, pm, _rx) = rig();
    b.clock.set_ns(2_000_000_000);
    let mut v = [0; 4];
    pm.pio_read(8, &mut v);
    assert_eq!(u64::from(u32::from_le_bytes(v)), 2 * PM_TIMER_HZ);
    pm.pio_write(8, &[0; 4]);
    pm.pio_read(8, &mut v);
    assert_eq!(u64::from(u32::from_le_bytes(v)), 2 * PM_TIMER_HZ);
}

#[test]
fn its_half_turns_interrupt() {
    let (b, pm, _rx) = rig();
    pm.pio_write(2, &TMR_STS.to_le_bytes());
    let half = b.timers.next_deadline().unwrap();
    assert_eq!(half / 1_000_000_000, 599);
    b.at(half);
    assert!(b.chip.level(9));
    pm.pio_write(0, &TMR_STS.to_le_bytes());
    assert!(!b.chip.level(9));
    b.at(b.timers.next_deadline().unwrap());
    assert!(b.chip.level(9));
    assert_eq!(word(&*pm, 0), TMR_STS);
}

#[test]
fn the_power_button_raises_the_sci() {
    let (b, pm, _rx) = rig();
    pm.power_button();
    assert!(!b.chip.level(9));
    pm.pio_write(2, &PWRBTN.to_le_bytes());
    assert!(b.chip.level(9));
    assert_eq!(word(&*pm, 0), PWRBTN);
    pm.pio_write(0, &PWRBTN.to_le_bytes());
    assert!(!b.chip.level(9));
    assert_eq!(word(&*pm, 0), 0);
}

#[test]
fn only_s5_powers_off() {
    let (_b, pm, rx) = rig();
    assert_eq!(word(&*pm, 4), 1);
    pm.pio_write(4, &0x1401u16.to_le_bytes());
    pm.pio_write(4, &0x2c01u16.to_le_bytes());
    assert!(rx.try_recv().is_err());
    // SLP_EN reads as zero.
    assert_eq!(word(&*pm, 4), 0x0c01);
    outb(&*pm, 5, 0x34);
    assert_eq!(rx.try_recv(), Ok(MachineEvent::PowerOff));
}

#[test]
fn general_purpose_events() {
    let (b, pm, _rx) = rig();
    let g = GpePorts(pm.clone());
    pm.raise_gpe(0x0102);
    g.pio_write(2, &0x0100u16.to_le_bytes());
    assert!(b.chip.level(9));
    assert_eq!((word(&g, 0), word(&g, 2)), (0x0102, 0x0100));
    outb(&g, 1, 1);
    assert!(!b.chip.level(9));
    assert_eq!((inb(&g, 0), inb(&g, 1)), (2, 0));
    pm.reset();
    assert_eq!(word(&g, 0), 0);
}

#[test]
fn any_access_is_harmless() {
    let (b, pm, rx) = rig();
    let g = GpePorts(pm.clone());
    for (d, len) in [(&*pm as &dyn PioDevice, 12), (&g, 4)] {
        hammer_pio(&b, d, len, 31, || {
            let s = lock(&pm.state);
            assert_eq!(s.pm1_cnt & 0x2001, 0);
            assert!(rx.try_iter().all(|e| e == MachineEvent::PowerOff));
        });
        pm.power_button();
        pm.raise_gpe(0xffff);
    }
}
