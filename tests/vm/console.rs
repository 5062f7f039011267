//! On a terminal.

use crate::pty::{COLS, ROWS, Terminal};
use crate::support::{guest, output_with, quick, run};
use rustix::process::{Pid, Signal, kill_process};

const PROMPT: &str = "root@ringer:~# ";

#[test]
fn shell_reboot_poweroff() {
    if guest("cloud").is_none() {
        return;
    }
    let mut t = Terminal::start(quick(["--cpus", "2"]));
    t.wait_for(PROMPT);
    assert!(!t.is_itself());
    // Ringer's line, the shell's greeting, the prompt: nothing of the kernel's.
    assert!(!t.text().contains("[    "), "{}", t.text());
    t.keys(b"echo $((6*7))-$(stty size)-$TERM-$(tty)\r");
    t.wait_for(&format!("42-{ROWS} {COLS}-vt220-/dev/"));
    t.wait_for(PROMPT);
    // What Ctrl-C is to end must itself say that it runs. If the shell said so, the key could come before its child
    // has a process group of its own on the terminal; the shell would take the signal, and wait for the child.
    t.keys(b"sh -c 'echo r$((1))n; exec sleep 1000'\r");
    t.wait_for("r1n");
    t.keys(b"\x03");
    t.wait_for(PROMPT);
    t.keys(b"touch /root/mark; reboot -f\r");
    t.wait_for("reboot -f");
    t.wait_for(PROMPT);
    t.keys(b"ls /root | wc -l; nproc\r");
    t.wait_for("nproc");
    t.wait_for("0\r\n2\r\n");
    t.keys(b"poweroff\r");
    assert_eq!(t.end(), 0, "{}", t.text());
    assert!(t.is_itself());
    t.left_the_title_alone();
}

#[test]
fn leaving_the_shell_ends_the_machine() {
    if guest("cloud").is_none() {
        return;
    }
    let mut t = Terminal::start(run::<&str>([]));
    t.wait_for(PROMPT);
    t.keys(b"exit\r");
    assert_eq!(t.end(), 0);
    assert!(t.is_itself());
}

#[test]
fn keys_of_ringers_own() {
    if guest("cloud").is_none() {
        return;
    }
    let mut t = Terminal::start(quick::<&str>([]));
    t.wait_for(PROMPT);
    t.keys(b"\x01h");
    t.wait_for("Ctrl-A x");
    // Sent on, Ctrl-A is the shell's key to the start of the line.
    t.keys(b"cho up-$((1+1))\x01\x01e\r");
    t.wait_for("up-2\r\n");
    t.keys(b"\x01x");
    assert_eq!(t.end(), 0);
    assert!(t.is_itself());
    t.left_the_title_alone();
}

#[test]
fn a_command_on_a_terminal() {
    if guest("cloud").is_none() {
        return;
    }
    let script = "test -t 0 && test -t 1 && test -t 2 && stty size; read line; echo \"got $line\"; exit 3";
    let mut t = Terminal::start(quick(["--", "sh", "-c", script]));
    t.wait_for(&format!("{ROWS} {COLS}\r\n"));
    t.keys(b"words\r");
    t.wait_for("got words\r\n");
    assert_eq!(t.end(), 3);
    assert!(t.is_itself());
    t.left_the_title_alone();
}

/// Whatever ends Ringer, the terminal is given back.
#[test]
fn the_terminal_survives_ringer() {
    if guest("cloud").is_none() {
        return;
    }
    for (signal, status) in [(Signal::TERM, 143), (Signal::KILL, 137), (Signal::ABORT, 134)] {
        let mut t = Terminal::start(quick::<&str>([]));
        t.wait_for(PROMPT);
        assert!(!t.is_itself());
        kill_process(Pid::from_child(&t.child.0), signal).unwrap();
        assert_eq!(t.end(), status);
        t.wait_until_itself();
    }
}

#[test]
fn a_console_that_is_no_terminal() {
    if guest("cloud").is_none() {
        return;
    }
    let ran = output_with(quick::<&str>([]), b"echo h$((1+1))i\npoweroff\n".to_vec()).ended(0);
    assert!(ran.text().contains("h2i"), "{}", ran.text());
}
