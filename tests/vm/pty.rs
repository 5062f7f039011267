//! A terminal with Ringer on it.

use crate::support::{Guard, LIMIT};
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

pub const ROWS: u16 = 33;
pub const COLS: u16 = 101;

/// The terminal and who runs on it.
pub struct Terminal {
    keyboard: File,
    /// Kept open, so that its settings can be looked at.
    line: OwnedFd,
    before: Termios,
    screen: Receiver<Vec<u8>>,
    /// All that was ever shown.
    pub shown: Vec<u8>,
    /// Up to where [`Terminal::wait_for`] has come.
    seen: usize,
    pub child: Guard,
}

impl Terminal {
    pub fn start(mut command: Command) -> Terminal {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let line = rustix::fs::open(name.as_c_str(), OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
        let size = Winsize { ws_row: ROWS, ws_col: COLS, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&line, size).unwrap();
        let before = tcgetattr(&line).unwrap();
        let keyboard = File::from(master);
        let mut reader = keyboard.try_clone().unwrap();
        let (send, screen) = channel();
        thread::spawn(move || {
            let mut buf = [0; 4096];
            // The end is an error (EIO) here.
            while let Ok(n @ 1..) = reader.read(&mut buf) {
                if send.send(buf[..n].to_vec()).is_err() {
                    return;
                }
            }
        });
        let side = || Stdio::from(line.try_clone().unwrap());
        command.env("TERM", "vt220").stdin(side()).stdout(side()).stderr(side());
        let child = Guard(command.spawn().unwrap());
        // The command holds copies of the line, which would keep the screen open.
        drop(command);
        Terminal { keyboard, line, before, screen, shown: Vec::new(), seen: 0, child }
    }

    pub fn keys(&mut self, keys: &[u8]) {
        self.keyboard.write_all(keys).unwrap();
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.shown).into_owned()
    }

    /// Waits until `text` is shown after what was waited for before.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str) {
        let began = Instant::now();
        loop {
            let new = &self.shown[self.seen..];
            if let Some(i) = new.windows(text.len()).position(|w| w == text.as_bytes()) {
                self.seen += i + text.len();
                return;
            }
            match self.screen.recv_timeout(LIMIT.saturating_sub(began.elapsed())) {
                Ok(more) => self.shown.extend(more),
                Err(e) => panic!("{text:?} is not shown ({e}):\n{}", self.text()),
            }
        }
    }

    /// Waits for the end; the status. The screen has been read to the end then.
    #[track_caller]
    pub fn end(&mut self) -> i32 {
        let status = self.child.status();
        while let Ok(more) = self.screen.recv_timeout(Duration::from_millis(200)) {
            self.shown.extend(more);
        }
        status
    }

    /// Whether the terminal is as it was before Ringer came.
    pub fn is_itself(&self) -> bool {
        let now = tcgetattr(&self.line).unwrap();
        let b = &self.before;
        (now.input_modes, now.output_modes, now.control_modes, now.local_modes)
            == (b.input_modes, b.output_modes, b.control_modes, b.local_modes)
    }

    /// Waits until it is.
    #[track_caller]
    pub fn wait_until_itself(&self) {
        let began = Instant::now();
        while !self.is_itself() {
            assert!(began.elapsed() < LIMIT, "the terminal stays raw");
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Nothing has set a window's title (xterm control sequences: OSC 0 to 2).
    #[track_caller]
    pub fn left_the_title_alone(&self) {
        let osc = |w: &[u8]| w[0] == 0x1b && w[1] == b']';
        assert!(!self.shown.windows(2).any(osc), "{:?}", self.text());
    }
}
