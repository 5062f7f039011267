//! The user's terminal: raw while a machine runs, and as it was when Ringer ends, however it ends.

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Termios, tcgetattr};
use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

struct Terminal {
    keyboard: File,
    slave: File,
    before: String,
    child: Child,
    _kernel: tempfile::NamedTempFile,
}

fn show(t: &Termios) -> String {
    format!("{t:?}")
}

impl Terminal {
    /// Starts a machine that hangs at once, on a terminal of its own, and waits until that is raw.
    fn start() -> Terminal {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let slave = File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
        let before = show(&tcgetattr(&slave).unwrap());
        let mut kernel = tempfile::NamedTempFile::new().unwrap();
        let mut sector = vec![0xfa, 0xf4, 0xeb, 0xfd];
        sector.resize(510, 0);
        sector.extend([0x55, 0xaa]);
        kernel.write_all(&sector).unwrap();
        let side = || Stdio::from(slave.try_clone().unwrap());
        let child = Command::new(env!("CARGO_BIN_EXE_ringer"))
            .args(["run", "--memory", "4M", "--kernel"])
            .arg(kernel.path())
            .stdin(side())
            .stdout(side())
            .stderr(side())
            .spawn()
            .unwrap();
        let t = Terminal { keyboard: File::from(master), slave, before, child, _kernel: kernel };
        t.wait_for(|s| {
            !s.local_modes.contains(LocalModes::ICANON) && !s.local_modes.contains(LocalModes::ECHO)
        });
        t
    }

    #[track_caller]
    fn wait_for(&self, what: impl Fn(&Termios) -> bool) {
        let end = Instant::now() + Duration::from_secs(60);
        while !what(&tcgetattr(&self.slave).unwrap()) {
            assert!(Instant::now() < end, "the terminal did not come to be as it should");
            std::thread::yield_now();
        }
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Waits for its end; the terminal must be as before by then, or, after a crash, soon.
    fn ends(&mut self) -> std::process::ExitStatus {
        let status = self.child.wait().unwrap();
        if status.code().is_some() {
            assert_eq!(show(&tcgetattr(&self.slave).unwrap()), self.before);
        }
        self.wait_for(|t| show(t) == self.before);
        status
    }
}

#[test]
fn ctrl_a_x_leaves() {
    let mut t = Terminal::start();
    t.keyboard.write_all(b"abc\x01x").unwrap();
    assert_eq!(t.ends().code(), Some(0));
}

#[test]
fn ctrl_a_h_helps_and_ctrl_c_goes_to_the_guest() {
    let mut t = Terminal::start();
    t.keyboard.write_all(b"\x03\x01h").unwrap();
    let (mut seen, mut buf) = (Vec::new(), [0; 256]);
    while !String::from_utf8_lossy(&seen).contains("send Ctrl-A to the guest") {
        let n = t.keyboard.read(&mut buf).unwrap();
        seen.extend(&buf[..n]);
    }
    t.keyboard.write_all(b"\x01x").unwrap();
    assert_eq!(t.ends().code(), Some(0));
}

#[test]
fn signals_give_it_back() {
    for (signal, status) in [(Signal::TERM, 143), (Signal::HUP, 129)] {
        let mut t = Terminal::start();
        kill_process(t.pid(), signal).unwrap();
        assert_eq!(t.ends().code(), Some(status));
    }
}

#[test]
fn crashes_give_it_back() {
    for signal in [Signal::KILL, Signal::ABORT] {
        let mut t = Terminal::start();
        kill_process(t.pid(), signal).unwrap();
        assert_eq!(t.ends().code(), None);
    }
}
