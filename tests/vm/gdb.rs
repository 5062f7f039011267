//! `--gdb`, by Debian's gdb and by a little client of our own.

use crate::log::complains;
use crate::support::{Guard, LIMIT, Started, guest, output, quick, run, skip};
use rustix::fs::OFlags;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The kernel at its link addresses, so that they are known beforehand.
const CMDLINE: &str = "nokaslr cryptomgr.notests";
const SYMBOLS: [&str; 5] =
    ["start_kernel", "start_secondary", "system_state", "linux_banner", "__x64_sys_sethostname"];

/// Addresses in Debian's cloud kernel, looked up in a guest.
fn symbols() -> Option<&'static BTreeMap<String, u64>> {
    static FOUND: OnceLock<BTreeMap<String, u64>> = OnceLock::new();
    guest("cloud")?;
    Some(FOUND.get_or_init(|| {
        let script = format!("grep -wE '{}' /proc/kallsyms", SYMBOLS.join("|"));
        let text = output(run(["--cmdline", CMDLINE, "--", "sh", "-c", &script])).ended(0).text();
        let symbols: BTreeMap<_, _> = text
            .lines()
            .filter_map(|l| {
                let words: Vec<_> = l.split_whitespace().collect();
                Some(((*words.get(2)?).to_owned(), u64::from_str_radix(words[0], 16).ok()?))
            })
            .collect();
        assert!(SYMBOLS.iter().all(|s| symbols.get(*s).is_some_and(|a| *a > 1 << 63)), "{text}");
        symbols
    }))
}

/// Whether gdb is installed.
#[track_caller]
fn gdb_is_there() -> bool {
    let there =
        Command::new("gdb").arg("--version").stdout(Stdio::null()).status().is_ok_and(|s| s.success());
    if !there {
        skip("gdb is not installed");
    }
    there
}

/// A place for a socket, and gdb's commands that connect to it.
struct Place {
    _dir: TempDir,
    socket: PathBuf,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        Place { socket: dir.path().join("gdb"), _dir: dir }
    }

    fn option(&self) -> String {
        format!("--gdb={}", self.socket.display())
    }

    /// gdb, with commands to be read once it is connected.
    fn gdb(&self, script: &str) -> Command {
        await_file(&self.socket);
        let file = self.socket.with_extension("script");
        let connect = format!(
            "set pagination off\nset confirm off\nset remotetimeout 1000\ntarget remote {}\n",
            self.socket.display()
        );
        std::fs::write(&file, connect + script).unwrap();
        let mut c = Command::new("gdb");
        // What the caller's gdb is set up to do does not matter here; nor does a debug-info server.
        c.args(["-nx", "-batch", "-x"]).arg(&file).env_remove("DEBUGINFOD_URLS").stdin(Stdio::null());
        c
    }

    fn client(&self) -> Client {
        await_file(&self.socket);
        Client::new(UnixStream::connect(&self.socket).unwrap())
    }
}

fn await_file(path: &Path) {
    let began = Instant::now();
    while !path.exists() {
        assert!(began.elapsed() < LIMIT, "no socket");
        thread::sleep(Duration::from_millis(5));
    }
}

/// That these stand in `text` in this order.
#[track_caller]
fn in_order(text: &str, parts: &[&str]) {
    let mut rest = text;
    for p in parts {
        match rest.split_once(p) {
            Some((_, after)) => rest = after,
            None => panic!("{p:?} is not where it should be in\n{text}"),
        }
    }
}

/// A session from the first instruction of a boot to its end: breakpoints, steps, memory, registers, a watched variable, both
/// processors; the guest goes on without noticing.
fn boot(engine: &str) {
    let Some(symbols) = symbols() else { return };
    if !gdb_is_there() {
        return;
    }
    let at = |s: &str| format!("{:#x}", symbols[s]);
    let (start, banner, state) = (at("start_kernel"), at("linux_banner"), at("system_state"));
    let script = format!(
        r#"
printf "first %x %x\n", $cs, $cr0 & 1
hbreak *{start}
continue
printf "start %lx\n", $rip
set $insn = *(unsigned char*)$rip
stepi
stepi
printf "steps %d %d %d\n", $insn == *(unsigned char*){start}, $rip != {start}, $eflags & 0x100
x/1s {banner}
set {{char[6]}} {banner} = "GDBux"
set $r15 = 0x123456789abc
set $xmm5.v2_int64[1] = 77
stepi
printf "written %lx %d\n", $r15, $xmm5.v2_int64[1]
set $r15 = 0
delete
watch *(int*){state}
continue
printf "state %d\n", *(int*){state}
delete
break *{secondary}
continue
printf "second %d %d\n", $_thread, $_gthread
info threads
x/1i $pc
stepi
delete
break *{sethostname}
continue
set $name = *(char**)($rdi + 0x70)
x/1s $name
set *$name = 'b'
printf "user %d\n", *(long*)($rdi + 0x88) & 3
monitor info
delete
detach
"#,
        secondary = at("start_secondary"),
        sethostname = at("__x64_sys_sethostname"),
    );
    let place = Place::new();
    let inside = "hostname zork; hostname; nproc; uptime; dmesg -r";
    let command = run([
        "--engine",
        engine,
        "--cpus",
        "2",
        &place.option(),
        "--cmdline",
        CMDLINE,
        "--",
        "sh",
        "-c",
        inside,
    ]);
    let started = Started::new(command);
    let debugger = Started::new(place.gdb(&script)).end();
    let text = debugger.text() + &debugger.error();
    let ran = started.end().ended(0);

    in_order(&text, &["first 10 1\n", "hit Breakpoint 1", &format!("start {}\n", &start[2..])]);
    in_order(&text, &["steps 1 1 0\n", "\"Linux version 6", "written 123456789abc 77\n"]);
    in_order(&text, &["hit Hardware watchpoint 2", "Old value = 0\nNew value = 1\n", "state 1\n"]);
    in_order(&text, &["Thread 2 hit Breakpoint 3", "second 2 2\n", "* 2 ", "processor 1: runs"]);
    in_order(
        &text,
        &["hit Breakpoint 4", "\"zork\"\n", "user 3\n", &format!("engine {engine}, 2 processor(s)")],
    );
    in_order(&text, &["[Inferior 1 (process 1) detached]"]);
    let said = ran.text();
    in_order(&said, &["bork\n2\n", "] GDBux\n"]);
    let bad: Vec<_> = said.lines().filter(|l| complains(l)).collect();
    assert!(bad.is_empty(), "{bad:?}");
}

#[test]
fn boot_under_the_interpreter() {
    boot("interpreter");
}

#[test]
fn boot_under_the_translator() {
    boot("translator");
}

/// Debuggers come to a machine that runs, interrupt it, leave, and come again; the last kills it.
#[test]
fn come_and_go() {
    if guest("cloud").is_none() || !gdb_is_there() {
        return;
    }
    let place = Place::new();
    let option = format!("{},nowait", place.option());
    let mut command =
        quick(["--cpus", "2", &option, "--", "sh", "-c", "while :; do echo up; usleep 50000; done"]);
    let mut ringer = Guard(command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
    let mode = std::fs::metadata(&place.socket).map(|m| m.permissions().mode() & 0o777);
    let mut out = ringer.0.stdout.take().unwrap();
    let mut up = [0; 3];
    out.read_exact(&mut up).unwrap();
    assert_eq!(&up, b"up\n");
    assert_eq!(mode.unwrap_or(0o600), 0o600);
    for _ in 0..2 {
        let mut gdb =
            place.gdb("printf \"stopped\\n\"\ncontinue\nprintf \"interrupted\\n\"\nx/1i $pc\ndetach\n");
        let mut gdb = Guard(gdb.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
        let mut said = gdb.0.stdout.take().unwrap();
        let mut text = String::new();
        let mut buf = [0; 256];
        while !text.contains("stopped\n") {
            let n = said.read(&mut buf).unwrap();
            assert!(n > 0, "{text}");
            text.push_str(&String::from_utf8_lossy(&buf[..n]));
        }
        // All stands still. What the guest says after what it has said so far tells that gdb has let it go on.
        rustix::fs::fcntl_setfl(&out, OFlags::NONBLOCK).unwrap();
        while out.read(&mut buf).is_ok() {}
        rustix::fs::fcntl_setfl(&out, OFlags::empty()).unwrap();
        out.read_exact(&mut up).unwrap();
        let pid = rustix::process::Pid::from_raw(gdb.0.id() as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        said.read_to_string(&mut text).unwrap();
        assert_eq!(gdb.status(), 0, "{text}");
        in_order(&text, &["received signal SIGINT", "interrupted\n", "=> 0x", "detached]"]);
    }
    let last = Started::new(place.gdb("kill\n")).end();
    in_order(&(last.text() + &last.error()), &["killed]"]);
    assert_eq!(ringer.status(), 0);
    assert!(!place.socket.exists());
}

/// gdb's remote protocol, as far as these tests go.
struct Client(UnixStream);

impl Client {
    fn new(stream: UnixStream) -> Client {
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        Client(stream)
    }

    fn send(&mut self, packet: &str) {
        let sum = packet.bytes().fold(0, u8::wrapping_add);
        self.0.write_all(format!("${packet}#{sum:02x}").as_bytes()).unwrap();
    }

    /// The next packet, acknowledged.
    fn receive(&mut self) -> String {
        let mut byte = [0];
        let mut next = || {
            self.0.read_exact(&mut byte).unwrap();
            byte[0]
        };
        while next() != b'$' {}
        let mut text = Vec::new();
        loop {
            match next() {
                b'#' => break,
                // Run-length encoding.
                b'*' => {
                    let (n, last) = (next() - 29, *text.last().unwrap());
                    text.extend(vec![last; n.into()]);
                }
                b => text.push(b),
            }
        }
        // The checksum.
        let _ = [next(), next()];
        self.0.write_all(b"+").unwrap();
        String::from_utf8_lossy(&text).into_owned()
    }

    fn ask(&mut self, packet: &str) -> String {
        self.send(packet);
        self.receive()
    }

    /// A register, as gdb numbers them.
    fn register(&mut self, n: u32) -> u64 {
        let text = self.ask(&format!("p{n:x}"));
        let bytes =
            (0..text.len().min(16)).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap());
        bytes.rev().fold(0, |v, b| v << 8 | u64::from(b))
    }
}

const RAX: u32 = 0;
const RIP: u32 = 16;
const EFLAGS: u32 = 17;
const RSP: u32 = 7;

/// `code` as a boot sector.
fn sector(place: &Place, code: &[u8]) -> PathBuf {
    let mut image = code.to_vec();
    image.resize(510, 0);
    image.extend([0x55, 0xaa]);
    let path = place.socket.with_extension("sector");
    std::fs::write(&path, image).unwrap();
    path
}

/// It counts: l: inc ax; mov [0x600], ax; pushf; pop bx; jmp l
const COUNTING: [u8; 8] = [0x40, 0xa3, 0x00, 0x06, 0x9c, 0x5b, 0xeb, 0xf8];

/// It waits until the clock's seconds have changed three times, then stays at 0x7c13: cli; mov bx, 3; l: call sec; mov cl, al; m: call sec;
/// cmp al, cl; je m; dec bx; jnz l; t: nop; jmp t; sec: mov al, 0; out 0x70, al; in al, 0x71; ret
const WAITING: [u8; 29] = [
    0xfa, 0xbb, 3, 0, 0xe8, 0x0f, 0, 0x88, 0xc1, 0xe8, 0x0a, 0, 0x38, 0xc8, 0x74, 0xf9, 0x4b, 0x75, 0xf1,
    0x90, 0xeb, 0xfd, 0xb0, 0, 0xe6, 0x70, 0xe4, 0x71, 0xc3,
];

/// A machine that waits for its debugger at the first instruction of that sector.
fn counting(engine: &str, place: &Place) -> Guard {
    let kernel = sector(place, &COUNTING);
    let mut command =
        run(["--engine", engine, "--boot", "sector", "--memory", "2M", &place.option(), "--kernel"]);
    command.arg(kernel).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Guard(command.spawn().unwrap())
}

#[test]
fn the_protocol() {
    for engine in ["interpreter", "translator"] {
        let place = Place::new();
        let mut ringer = counting(engine, &place);
        let mut c = place.client();
        c.ask("qSupported:multiprocess+;swbreak+;hwbreak+;vContSupported+");
        assert!(c.ask("?").starts_with("T05"));
        let xml = c.ask("qXfer:features:read:target.xml:0,fff0");
        assert!(xml.contains("org.gnu.gdb.i386.avx") && xml.ends_with("</target>\n"), "{xml}");
        assert_eq!(c.register(RIP), 0x7c00);
        let all = c.ask("g");
        assert_eq!(all.len(), 864 * 2);
        // Breakpoints of both kinds at one place, steps, and what the guest sees of them.
        assert_eq!(c.ask("Z0,7c01,1"), "OK");
        assert_eq!(c.ask("Z1,7c01,1"), "OK");
        for n in 1..=3 {
            assert!(c.ask("vCont;c").starts_with("T05"));
            assert_eq!((c.register(RIP), c.register(RAX) & 0xffff), (0x7c01, n));
            assert_eq!(c.ask("m7c00,8"), "40a300069c5bebf8");
            for at in [0x7c04, 0x7c05, 0x7c06, 0x7c00] {
                assert!(c.ask("vCont;s:p1.1").starts_with("T05"));
                assert_eq!(c.register(RIP), at);
                if at == 0x7c05 {
                    let sp = c.register(RSP) & 0xffff;
                    let pushed = c.ask(&format!("m{sp:x},2"));
                    assert_eq!(u8::from_str_radix(&pushed[2..], 16).unwrap() & 1, 0, "TF in {pushed}");
                }
            }
            assert_eq!(c.register(EFLAGS) & 0x1_0100, 0);
        }
        assert_eq!(c.ask("z0,7c01,1"), "OK");
        assert!(c.ask("vCont;c").starts_with("T05"));
        assert_eq!(c.register(RIP), 0x7c01);
        assert_eq!(c.ask("z1,7c01,1"), "OK");
        // Watched data; memory and registers are written, to be used and to be refused.
        assert_eq!(c.ask("Z2,601,1"), "OK");
        let stop = c.ask("vCont;c");
        assert!(stop.contains("watch:0601;"), "{stop}");
        assert_eq!(c.register(RIP), 0x7c04);
        assert_eq!(c.ask("z2,601,1"), "OK");
        assert_eq!(c.ask("P0=feff000000000000"), "OK");
        assert_eq!(c.ask("M7c01,1:90"), "OK");
        assert_eq!(c.ask("m7c00,2"), "4090");
        assert_eq!(c.ask("m200000,4"), "E0e");
        assert_eq!(c.ask("M1fffff,2:0000"), "E0e");
        assert_eq!(c.ask("P12=ff000000"), "E16", "the selector of CS");
        // Never more than the machine has, whatever is asked.
        assert!(c.ask("Z2,0,ffffffffffff").starts_with('E') || c.ask("Z2,0,0").starts_with('E'));
        assert!(c.ask("m0,ffffffffffffffff").len() < 5 << 20);
        c.send("k");
        assert_eq!(ringer.status(), 0);
    }
}

/// What is not the protocol ends a session at most; the machine goes on, and waits for the next debugger.
#[test]
fn nonsense_from_a_debugger() {
    let place = Place::new();
    let mut ringer = counting("translator", &place);
    let long = format!("${}", "x".repeat(100_000));
    let nonsense: &[&[u8]] = &[
        b"",
        b"\x03\x03\x03",
        b"$#00",
        b"$#zz",
        b"$g#ff$g#ff$g#ff",
        b"$m#6d$mzz,1#5f$m1,zz#5f",
        b"$vCont;s:p9.9#00",
        b"\xff\xfe\x00$\x00\x01\x7d#",
        long.as_bytes(),
    ];
    let send = |bytes: &[u8]| {
        let mut c = place.client();
        // It may have hung up by then.
        let _gone = c.0.write_all(bytes);
        let _gone = c.0.shutdown(std::net::Shutdown::Write);
        let mut rest = Vec::new();
        let _reset = c.0.read_to_end(&mut rest);
    };
    for bytes in nonsense {
        send(bytes);
    }
    let packets = [
        "Hg0",
        "Hg-1",
        "Hg99",
        "Hc0",
        "T99",
        "T0",
        "pffff",
        "P0",
        "P0=",
        "Pffff=00",
        "G00",
        "Z9,0,0",
        "Z0,",
        "z0,1,1",
        "Z2,0,ffffffffffffffff",
        "vCont;c:p7.7",
        "vCont;s:p1.2",
        "vCont;x",
        "qXfer:features:read:target.xml:fffffff,1",
        "qXfer:features:read:other.xml:0,1",
        "qRcmd,zz",
        "qThreadExtraInfo,p9.9",
        "mffffffffffffffff,10",
        "Mffffffffffffffff,2:0000",
        "X0,4:x",
    ];
    for p in packets {
        let sum = p.bytes().fold(0, u8::wrapping_add);
        send(format!("$qSupported:multiprocess+#c6${p}#{sum:02x}").as_bytes());
    }
    let mut c = place.client();
    assert!(c.ask("?").starts_with("T05"));
    c.send("k");
    assert_eq!(ringer.status(), 0);
}

#[test]
fn sockets_that_cannot_be() {
    let place = Place::new();
    std::fs::write(&place.socket, b"not a socket").unwrap();
    output(run(["--kernel", "/dev/null", &place.option()])).refused(&["gdb", "exists"]);
    assert_eq!(std::fs::read(&place.socket).unwrap(), b"not a socket");
    output(run(["--kernel", "/dev/null", "--gdb", "/nowhere/at/all"]))
        .refused(&["/nowhere/at/all", "No such file"]);
}

/// Breakpoints go along when a machine that runs changes its engine; the owner's pause and the debugger's are two things.
#[test]
fn beside_the_owner() {
    let place = Place::new();
    let folder = tempfile::tempdir().unwrap();
    let kernel = sector(&place, &WAITING);
    let mut command =
        run(["--engine", "translator", "--boot", "sector", "--memory", "2M", "--name", "debugged"]);
    command.arg(place.option()).arg("--kernel").arg(kernel).env("XDG_RUNTIME_DIR", folder.path());
    let mut ringer =
        Guard(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let owner = |args: &[&str]| {
        let mut c = crate::support::ringer();
        c.args(args).env("XDG_RUNTIME_DIR", folder.path());
        output(c).ended(0).text()
    };
    let mut c = place.client();
    c.ask("qSupported:multiprocess+;swbreak+;hwbreak+");
    assert_eq!(c.ask("Z0,7c13,1"), "OK");
    c.send("vCont;c");
    owner(&["engine", "debugged", "interpreter"]);
    assert!(c.receive().starts_with("T05"));
    assert_eq!(c.register(RIP), 0x7c13);
    let info = owner(&["info", "debugged"]);
    assert!(info.contains("interpreter") && info.contains("paused"), "{info}");
    owner(&["resume", "debugged"]);
    owner(&["engine", "debugged", "translator"]);
    assert_eq!(c.register(RIP), 0x7c13);
    owner(&["pause", "debugged"]);
    assert_eq!(c.ask("z0,7c13,1"), "OK");
    assert_eq!(c.ask("Z0,7c14,1"), "OK");
    c.send("vCont;c");
    assert!(owner(&["info", "debugged"]).contains("paused"));
    owner(&["resume", "debugged"]);
    assert!(c.receive().starts_with("T05"));
    assert_eq!(c.register(RIP), 0x7c14);
    owner(&["kill", "debugged"]);
    ringer.status();
}
