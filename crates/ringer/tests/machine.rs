//! The command with kernels of a few bytes: boot sectors at 0x7c00 in real mode.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

struct Sector(tempfile::TempDir);

impl Sector {
    fn new(code: &[u8]) -> Sector {
        let mut s = code.to_vec();
        s.resize(510, 0);
        s.extend([0x55, 0xaa]);
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("k"), s).unwrap();
        Sector(dir)
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("k")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut c = Command::new(env!("CARGO_BIN_EXE_ringer"));
        c.args(["run", "--engine", "interpreter", "--memory", "4M", "--kernel"]).arg(self.path()).args(args);
        c.stdin(Stdio::null());
        c
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }
}

#[track_caller]
fn is(out: &Output, status: i32, stdout: &[u8], stderr: &str) {
    let err = String::from_utf8_lossy(&out.stderr);
    assert_eq!((out.status.code(), &*out.stdout), (Some(status), stdout), "{err}");
    assert!(if stderr.is_empty() { err.is_empty() } else { err.contains(stderr) }, "{err}");
}

/// mov dx, 0x3f8; mov al, 'A'; out dx, al; mov al, 'B'; out dx, al; mov al, 21; out 0xf4, al; hlt
const SAYS_AB: &[u8] = &[0xba, 0xf8, 3, 0xb0, b'A', 0xee, 0xb0, b'B', 0xee, 0xb0, 21, 0xe6, 0xf4, 0xf4];

#[test]
fn the_console_is_standard_output_and_debug_exit_the_status() {
    is(&Sector::new(SAYS_AB).run(&[]), 43, b"AB", "");
}

#[test]
fn auto_says_which_engine_runs_and_stats_what_it_did() {
    let out = Sector::new(SAYS_AB).run(&["--engine", "auto", "--stats"]);
    is(&out, 43, b"AB", "ringer: engine translator: ");
    is(&out, 43, b"AB", "guest instructions");
    is(&out, 43, b"AB", "first userspace        never");
}

#[test]
fn a_triple_fault_is_told() {
    // cli; lidt [0x7c10]; int3: an interrupt table of no length.
    let code = [0xfa, 0x0f, 0x01, 0x1e, 0x10, 0x7c, 0xcc];
    is(&Sector::new(&code).run(&[]), 126, b"", "triple fault");
}

#[test]
fn a_reset_starts_the_kernel_again() {
    // CMOS RAM outlives a reset: count in byte 0x40, say so, reset until it is 3, then end.
    let code: &[u8] = &[
        0xb0, 0x40, 0xe6, 0x70, // mov al, 0x40; out 0x70, al
        0xe4, 0x71, // in al, 0x71
        0xfe, 0xc0, // inc al
        0x88, 0xc4, // mov ah, al
        0xe6, 0x71, // out 0x71, al
        0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0x04, b'0', 0xee, // add al, '0'; out dx, al
        0x80, 0xfc, 3, // cmp ah, 3
        0x74, 8, // je end
        0xb0, 6, 0xba, 0xf9, 0x0c, 0xee, // mov al, 6; mov dx, 0xcf9; out dx, al
        0xf4, 0xf4, // hlt
        0xb0, 0, 0xe6, 0xf4, // end: mov al, 0; out 0xf4, al
    ];
    is(&Sector::new(code).run(&[]), 1, b"123", "");
}

#[test]
fn standard_input_reaches_the_console() {
    // Sets RTS, echoes up to a '.', then ends.
    let code: &[u8] = &[
        0xba, 0xfc, 0x03, 0xb0, 3, 0xee, // mov dx, 0x3fc; mov al, 3; out dx, al
        0xba, 0xfd, 0x03, 0xec, // wait: mov dx, 0x3fd; in al, dx
        0xa8, 1, 0x74, 0xf8, // test al, 1; jz wait
        0xba, 0xf8, 0x03, 0xec, 0xee, // mov dx, 0x3f8; in al, dx; out dx, al
        0x3c, b'.', 0x75, 0xef, // cmp al, '.'; jne wait
        0xb0, 0, 0xe6, 0xf4, // mov al, 0; out 0xf4, al
    ];
    let mut text = vec![b'x'; 3000];
    text.extend(b"\x00\xff end.");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &text).unwrap();
    let sector = Sector::new(code);
    let out = sector.command(&[]).stdin(std::fs::File::open(file.path()).unwrap()).output().unwrap();
    is(&out, 1, &text, "");
}

#[test]
fn a_signal_ends_it_with_128_and_its_number() {
    // Says 'A' and hangs.
    let sector = Sector::new(&[0xba, 0xf8, 3, 0xb0, b'A', 0xee, 0xfa, 0xf4, 0xeb, 0xfd]);
    let mut child = sector.command(&[]).stdout(Stdio::piped()).spawn().unwrap();
    let mut byte = [0];
    child.stdout.as_mut().unwrap().read_exact(&mut byte).unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(128 + 15));
}

#[test]
fn a_reader_that_goes_away_ends_it() {
    // Says 'A' for ever.
    let sector = Sector::new(&[0xba, 0xf8, 3, 0xb0, b'A', 0xee, 0xeb, 0xfd]);
    let mut child = sector.command(&[]).stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(128 + 13));
}
