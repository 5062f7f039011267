//! Named machines and the commands that reach them, with kernels of a few bytes.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

const ERROR: i32 = 125;
/// Only what hangs waits for this.
const LIMIT: Duration = Duration::from_secs(120);

/// l: inc ax; jmp l
const SPINS: &[u8] = &[0x40, 0xeb, 0xfd];
/// Powers off when the power button is pressed: l: mov dx, 0x600; in ax, dx; test ah, 1; jz l; mov dx, 0x604; mov ax, 0x3400; out dx, ax
const HONOURS_THE_BUTTON: &[u8] =
    &[0xba, 0, 6, 0xed, 0xf6, 0xc4, 1, 0x74, 0xf7, 0xba, 4, 6, 0xb8, 0, 0x34, 0xef, 0xf4];

/// A user's run-time folder, and kernels.
struct User(tempfile::TempDir);

impl User {
    fn new() -> User {
        User(tempfile::tempdir().unwrap())
    }

    fn ringer(&self, args: &[&str]) -> Command {
        let mut c = Command::new(env!("CARGO_BIN_EXE_ringer"));
        c.args(args).env("XDG_RUNTIME_DIR", self.0.path()).stdin(Stdio::null());
        c
    }

    fn run_command(&self, name: &str, code: &[u8]) -> Command {
        let kernel = self.0.path().join(format!("kernel-{name}"));
        let mut sector = code.to_vec();
        sector.resize(510, 0);
        sector.extend([0x55, 0xaa]);
        std::fs::write(&kernel, sector).unwrap();
        let mut c = self.ringer(&["run", "--engine", "interpreter", "--memory", "4M", "--name", name]);
        c.arg("--kernel").arg(kernel).stdout(Stdio::null()).stderr(Stdio::piped());
        c
    }

    /// Starts a machine and waits until it can be reached.
    fn start(&self, name: &str, code: &[u8]) -> Running {
        let mut running = Running(self.run_command(name, code).spawn().unwrap());
        let began = Instant::now();
        while !self.ringer(&["info", name]).output().unwrap().status.success() {
            assert!(began.elapsed() < LIMIT && running.0.try_wait().unwrap().is_none());
            std::thread::sleep(Duration::from_millis(20));
        }
        running
    }

    fn does(&self, args: &[&str]) -> String {
        let out = self.ringer(args).output().unwrap();
        assert!(out.status.success() && out.stderr.is_empty(), "{}", text(&out.stderr));
        text(&out.stdout)
    }

    /// Status 125, nothing on standard output, and one sentence that holds `words`.
    #[track_caller]
    fn fails(&self, args: &[&str], words: &[&str]) {
        refused(&self.ringer(args).output().unwrap(), words);
    }

    fn info(&self, name: &str) -> String {
        self.does(&["info", name, "--json"])
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.0.path().join("ringer").join(format!("{name}.sock"))
    }

    /// Nothing of a machine is left.
    #[track_caller]
    fn is_clean(&self) {
        assert_eq!(std::fs::read_dir(self.0.path().join("ringer")).unwrap().count(), 0);
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
fn refused(out: &Output, words: &[&str]) {
    let err = text(&out.stderr);
    assert_eq!(out.status.code(), Some(ERROR), "{err}");
    assert!(out.stdout.is_empty());
    assert!(err.starts_with("ringer: ") && err.lines().count() == 1, "{err}");
    for w in words {
        assert!(err.contains(w), "{err:?} lacks {w:?}");
    }
}

/// A machine's process, which does not outlive its test.
struct Running(Child);

impl Running {
    fn ended(&mut self) -> ExitStatus {
        let began = Instant::now();
        loop {
            if let Some(s) = self.0.try_wait().unwrap() {
                return s;
            }
            assert!(began.elapsed() < LIMIT, "it does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _gone = self.0.wait();
    }
}

#[test]
fn a_machine_is_listed_asked_paused_and_killed() {
    let user = User::new();
    assert_eq!(user.does(&["ps"]).lines().count(), 1, "a heading");
    assert_eq!(user.does(&["ps", "--json"]), "[]\n");
    let mut web = user.start("web", SPINS);
    let _db = user.start("db.2", SPINS);
    let list = user.does(&["ps"]);
    let rows: Vec<Vec<&str>> = list.lines().map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["NAME", "PID", "STATE", "ENGINE", "VCPUS", "MEMORY", "UPTIME"]);
    let pid = web.0.id().to_string();
    assert_eq!(rows[2][..6], ["web", &pid, "running", "interpreter", "1", "4M"]);
    assert_eq!((rows[1][0], rows.len()), ("db.2", 3));

    let running = user.info("web");
    assert!(!running.contains("\"mips\": 0.0"), "{running}");
    user.does(&["pause", "web"]);
    let paused = user.info("web");
    assert!(paused.contains("\"state\": \"paused\"") && paused.contains("\"mips\": 0.0"), "{paused}");
    let line = |t: &str, key: &str| t.lines().find(|l| l.contains(key)).unwrap().to_owned();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(line(&user.info("web"), "run_ms"), line(&paused, "run_ms"), "time stands still");
    user.does(&["resume", "web"]);
    let people = user.does(&["info", "web"]);
    for key in ["name ", "state         running", "MIPS", "memory        4M, ", "vcpus         1", "pid"] {
        assert!(people.contains(key), "{people}");
    }
    assert_eq!(user.does(&["kill", "web"]), "");
    assert_eq!(web.ended().code(), Some(128 + 9));
    user.fails(&["info", "web"], &["no machine called web", "ringer ps"]);
    assert_eq!(user.does(&["kill", "db.2"]), "");
    user.is_clean();
}

#[test]
fn a_running_machine_changes_its_engine() {
    let user = User::new();
    let _web = user.start("web", SPINS);
    for engine in ["translator", "translator", "interpreter"] {
        assert_eq!(user.does(&["engine", "web", engine]), "");
        let info = user.info("web");
        assert!(info.contains(&format!("\"engine\": \"{engine}\"")), "{info}");
        assert!(!info.contains("\"mips\": 0.0"), "{info}");
    }
    for bad in ["warp", "lockstep", "auto", ""] {
        user.fails(&["engine", "web", bad], &[&format!("{bad:?}"), "translator, interpreter"]);
    }
    user.does(&["pause", "web"]);
    user.does(&["engine", "web", "translator"]);
    let info = user.info("web");
    assert!(info.contains("\"state\": \"paused\"") && info.contains("\"engine\": \"translator\""), "{info}");
}

#[test]
fn two_machines_cannot_have_one_name() {
    let user = User::new();
    let web = user.start("web", SPINS);
    let mut second = user.run_command("web", SPINS);
    let pid = web.0.id().to_string();
    refused(&second.output().unwrap(), &["web is running already", &pid, "--name"]);
    assert!(user.info("web").contains("running"), "the first is unharmed");
    // Not by removing its socket either.
    std::fs::remove_file(user.socket("web")).unwrap();
    refused(&second.output().unwrap(), &["web is running already"]);
}

#[test]
fn what_a_dead_machine_left_is_told_of_and_removed() {
    let user = User::new();
    let die = |name: &str| {
        let mut machine = user.start(name, SPINS);
        machine.0.kill().unwrap();
        assert_eq!(machine.ended().signal(), Some(9));
        assert!(user.socket(name).exists());
    };
    for command in [&["info"][..], &["pause"], &["resume"], &["stop"], &["kill"]] {
        die("web");
        user.fails(&[command[0], "web"], &["web has died"]);
        user.is_clean();
        user.fails(&[command[0], "web"], &["no machine called web"]);
    }
    die("web");
    user.fails(&["engine", "web", "translator"], &["web has died"]);
    die("web");
    let alive = user.start("db", SPINS);
    let out = user.ringer(&["ps"]).output().unwrap();
    assert!(out.status.success());
    let (list, err) = (text(&out.stdout), text(&out.stderr));
    assert!(list.lines().count() == 2 && list.contains("db"), "{list}");
    assert!(err.lines().count() == 1 && err.contains("web has died"), "{err}");
    assert!(!user.socket("web").exists());
    drop(alive);
    die("web");
    let again = user.start("web", SPINS);
    assert!(user.info("web").contains(&again.0.id().to_string()));
}

#[test]
fn no_such_machine_and_no_such_name() {
    let user = User::new();
    user.fails(&["info", "web"], &["no machine called web"]);
    for bad in ["", "../web", "a/b", "-", "a b", &"x".repeat(65)] {
        for args in [&["info", "--", bad][..], &["run", "--kernel", "k", &format!("--name={bad}")]] {
            let out = user.ringer(args).output().unwrap();
            assert_eq!(out.status.code(), Some(2), "{args:?}");
            assert_eq!(text(&out.stderr).lines().count(), 1);
        }
    }
    // A socket that nobody of ours made.
    let folder = user.0.path().join("ringer");
    std::fs::create_dir(&folder).unwrap();
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    for args in [&["ps"][..], &["info", "web"], &["run", "--kernel", "k", "--name", "web"]] {
        user.fails(args, &["ringer", "0700"]);
    }
    let deep = user.0.path().join("d".repeat(90));
    std::fs::create_dir(&deep).unwrap();
    let mut c = user.run_command("web", SPINS);
    refused(&c.env("XDG_RUNTIME_DIR", deep).output().unwrap(), &["too long for a socket", "--name"]);
}

#[test]
fn stop_presses_the_power_button() {
    let user = User::new();
    let mut web = user.start("web", HONOURS_THE_BUTTON);
    assert_eq!(user.does(&["stop", "web"]), "");
    assert_eq!(web.ended().code(), Some(0));
    user.is_clean();
    // A paused one could not see it.
    let mut web = user.start("web", HONOURS_THE_BUTTON);
    user.does(&["pause", "web"]);
    assert_eq!(user.does(&["stop", "web"]), "");
    assert_eq!(web.ended().code(), Some(0));
}

#[test]
fn stop_ends_what_does_not_power_off() {
    let user = User::new();
    let mut web = user.start("web", SPINS);
    let out = user.ringer(&["stop", "web", "--timeout", "1"]).output().unwrap();
    assert!(out.status.success());
    let err = text(&out.stderr);
    assert!(err.contains("web did not power off within 1 s") && err.lines().count() == 1, "{err}");
    assert_eq!(web.ended().code(), Some(128 + 9));
}

/// A process that does not answer, as a stopped one.
#[test]
fn kill_ends_a_process_that_hangs() {
    let user = User::new();
    let mut web = user.start("web", SPINS);
    let pid = rustix::process::Pid::from_child(&web.0);
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    let killed = user.ringer(&["kill", "web"]).output().unwrap();
    assert!(killed.status.success(), "{}", text(&killed.stderr));
    assert_eq!(web.ended().signal(), Some(9));
    user.fails(&["info", "web"], &["web has died"]);
}

fn answer(socket: &UnixStream) -> String {
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    let mut line = String::new();
    BufReader::new(socket).read_line(&mut line).unwrap();
    line
}

#[test]
fn any_bytes_on_the_socket_are_harmless() {
    let user = User::new();
    let _web = user.start("web", SPINS);
    let connect = || UnixStream::connect(user.socket("web")).unwrap();
    let long = vec![b'x'; 1 << 20];
    for bad in
        [&b"\n"[..], b"{\"do\":\"fly\"}\n", b"[[[[[[\n", b"\xff\x00\n", b"{\"do\":\"engine\"}\n", &long]
    {
        let mut c = connect();
        // It hangs up on what is too long.
        let _hung_up = c.write_all(bad);
        let line = answer(&c);
        assert!(line.starts_with("{\"error\":\"not a request: "), "{line}");
    }
    // Several on one connection, one after the other; half a request, and then nothing.
    let mut c = connect();
    for _ in 0..3 {
        c.write_all(b"{\"do\":\"info\"}\n").unwrap();
        assert!(answer(&c).starts_with("{\"ok\":{\"name\":\"web\","));
    }
    c.write_all(b"{\"do\":").unwrap();
    drop(c);
    // More than it serves at once.
    let mut many: Vec<_> = (0..20).map(|_| connect()).collect();
    let mut last = many.pop().unwrap();
    let mut said = String::new();
    last.set_read_timeout(Some(LIMIT)).unwrap();
    last.read_to_string(&mut said).unwrap();
    assert!(said.contains("connected already"), "{said}");
    drop(many);
    let began = Instant::now();
    while !user.ringer(&["info", "web"]).output().unwrap().status.success() {
        assert!(began.elapsed() < LIMIT);
    }
}

#[test]
fn no_name_no_socket() {
    let user = User::new();
    let mut c = user.run_command("x", SPINS);
    let args: Vec<_> = c.get_args().map(ToOwned::to_owned).filter(|a| a != "--name" && a != "x").collect();
    let mut c2 = user.ringer(&[]);
    let mut machine = Running(c2.args(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    std::thread::sleep(Duration::from_millis(300));
    assert!(machine.0.try_wait().unwrap().is_none(), "it runs");
    assert!(!user.0.path().join("ringer").exists());
    let _unused = c.stdin(Stdio::null());
}
