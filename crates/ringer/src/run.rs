//! `ringer run`.

use crate::cli::{self, RunArgs};
use crate::control::{self, Claim, Controlled};
use crate::escape::{self, Action, Escape};
use crate::shared::{Out, Shared, StatusLine, Words};
use crate::terminal::{self, RawTerminal};
use crate::{signals, stats, stdin_line};
use anyhow::{Context, bail};
use ringer_image::boot::BootProtocol;
use ringer_image::debian::{Cache, GuestKind, Progress, Session, TerminalInfo, guest, session_initramfs};
use ringer_vmm::{
    GdbServer, Machine, OnReset, Outcome, SerialInput, SerialSides, VmSpec, choose, cpu_model, needs,
};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// What the guests that Ringer makes are told; what the user adds comes after it. Of the kernel's messages only those of
/// its death are shown (`dmesg` has the rest): each character costs an exit.
const GUEST_CMDLINE: &str = "console=ttyS0,115200 loglevel=3";
/// Added when a command runs: a guest that panics is dead, not stuck.
const COMMAND_CMDLINE: &str = "panic=-1";
/// With less, the installer goes into its low-memory mode.
const INSTALLER_MEMORY: u64 = 1 << 30;
/// For kernels of the user's, if nothing is said.
const DEFAULT_CMDLINE: &str = "console=ttyS0";

/// What the host's standard streams are connected to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Streams {
    /// COM1, the console.
    Console,
    /// A command by pipes: COM2 (input, output), COM3 (error).
    Pipes,
    /// A command on the user's terminal: COM2.
    Terminal,
}

pub fn run(args: &RunArgs, started: Instant) -> anyhow::Result<ExitCode> {
    let streams =
        match (args.command.is_empty(), terminal::stdin_is_terminal() && terminal::stdout_is_terminal()) {
            (true, _) => Streams::Console,
            (false, true) => Streams::Terminal,
            (false, false) => Streams::Pipes,
        };
    let mut spec = VmSpec::new(PathBuf::new());
    spec.cpus = args.cpus;
    if let Some(memory) = args.memory {
        spec.memory = memory;
    } else if args.guest == "installer" {
        spec.memory = INSTALLER_MEMORY;
    }
    spec.cpu.clone_from(&args.cpu);
    spec.engine.clone_from(&args.engine);
    spec.code_memory = args.code_memory;
    spec.count = args.stats;
    if args.engine.starts_with("lockstep") {
        // Two engines would draw different numbers.
        spec.cpu.push_str(",-rdrand,-rdseed");
    }
    spec.protocol = protocol(&args.boot)?;
    if args.triple_fault == "reset" {
        spec.on_triple_fault = OnReset::Restart;
    }
    // All that can be refused is, before anything is fetched.
    spec.check()?;
    let choice = choose(&spec.engine)?;
    spec.also.clone_from(&args.also);
    cpu_model(&spec.cpu, &needs(choice.engine.as_ref(), &spec.also)?)?;
    let gdb = args.gdb.as_deref().map(listen_for_gdb).transpose()?;
    let claim = args.name.as_ref().map(Claim::new).transpose()?;
    let ours = find_images(args, &mut spec)?;
    set_session(args, &mut spec, streams, ours)?;
    if args.engine == "auto" {
        eprintln!("ringer: engine {}: {}", choice.engine.name(), choice.why);
    }

    let shared = Arc::new(Shared::default());
    let code_limit = spec.code_limit();
    let mut machine = Machine::new(spec, choice.engine.as_ref(), outputs(streams, &shared)?, started)?;
    shared.set_machine(machine.handle());
    if let Some((server, wait)) = gdb {
        let verb = if wait { "waiting for gdb" } else { "gdb may connect" };
        eprintln!("ringer: {verb}: target remote {}", server.address());
        machine.serve_gdb(server, wait)?;
    }
    if let Some(claim) = &claim {
        let controlled = Controlled { machine: machine.handle(), shared: Arc::clone(&shared), started };
        control::listen(claim, controlled)?;
    }
    signals::watch(&shared).context("cannot watch for signals")?;
    let raw = streams != Streams::Pipes && terminal::stdin_is_terminal();
    let guard = if raw { Some(RawTerminal::enter().context("cannot set the terminal raw")?) } else { None };
    let line = usize::from(streams != Streams::Console);
    if let Some(input) = machine.serial(line) {
        let shared = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("input".into())
            .spawn(move || feed(&input, streams, raw, ours, &shared))
            .context("cannot start a thread for the input")?;
    }
    let began = Instant::now();
    let outcome = machine.run();
    let wall = began.elapsed();
    drop(guard);
    if args.stats {
        eprint!(
            "ringer: {} on engine {}\n{}",
            machine.kernel(),
            machine.engine(),
            stats::report(&machine.stats(), wall, code_limit, machine.memory_peak())
        );
    }
    Ok(ExitCode::from(status(outcome?, streams, &shared)))
}

/// The socket for gdb, and whether the machine waits for it.
fn listen_for_gdb(at: &str) -> anyhow::Result<(GdbServer, bool)> {
    let (at, wait) = at.strip_suffix(",nowait").map_or((at, true), |at| (at, false));
    Ok((GdbServer::listen(at)?, wait))
}

fn protocol(name: &str) -> anyhow::Result<BootProtocol> {
    Ok(match name {
        "auto" => BootProtocol::Auto,
        "pvh" => BootProtocol::Pvh,
        "linux64" => BootProtocol::Linux64,
        "linux32" => BootProtocol::Linux32,
        "multiboot" => BootProtocol::Multiboot,
        "sector" => BootProtocol::BootSector,
        _ => bail!(
            "no boot protocol is called {name:?}: choose auto, pvh, linux64, linux32, multiboot or sector"
        ),
    })
}

/// Finds kernel and initrd, making a guest of Ringer's if no kernel is given; whether the initrd is Ringer's.
fn find_images(args: &RunArgs, spec: &mut VmSpec) -> anyhow::Result<bool> {
    spec.initrd.clone_from(&args.initrd);
    let kind: GuestKind = args.guest.parse()?;
    let make = || -> anyhow::Result<_> { Ok(guest(&Cache::of_user()?, kind, &Progress::stderr())?) };
    let Some(kernel) = &args.kernel else {
        let g = make()?;
        spec.kernel = g.kernel;
        let ours = spec.initrd.is_none() && kind != GuestKind::Installer;
        if !ours && !args.command.is_empty() && spec.initrd.is_none() {
            bail!("the installer runs no commands: leave COMMAND away, or choose another --guest");
        }
        spec.initrd.get_or_insert(g.initrd);
        return Ok(ours || !args.command.is_empty());
    };
    spec.kernel.clone_from(kernel);
    if args.command.is_empty() {
        return Ok(false);
    }
    if spec.initrd.is_none() {
        spec.initrd = Some(make()?.initrd);
    }
    Ok(true)
}

/// Command line and session archive. `ours`: the initrd starts sessions.
fn set_session(args: &RunArgs, spec: &mut VmSpec, streams: Streams, ours: bool) -> anyhow::Result<()> {
    let user = args.cmdline.as_deref();
    if !ours && args.kernel.is_some() {
        user.unwrap_or(DEFAULT_CMDLINE).clone_into(&mut spec.cmdline);
        return Ok(());
    }
    let command = if streams == Streams::Console { None } else { Some(COMMAND_CMDLINE) };
    let parts = [Some(GUEST_CMDLINE), command, user];
    spec.cmdline = parts.into_iter().flatten().collect::<Vec<_>>().join(" ");
    if !ours {
        return Ok(());
    }
    let argv = || args.command.iter().map(|a| a.as_bytes().to_vec()).collect();
    let session = match streams {
        Streams::Console => Session::Console,
        Streams::Pipes => Session::Pipes(argv()),
        Streams::Terminal => Session::Terminal(argv()),
    };
    if streams != Streams::Console {
        spec.on_reset = OnReset::Exit;
    }
    let term = std::env::var_os("TERM").map(OsStringExt::into_vec);
    let info = TerminalInfo { term, size: terminal::size() };
    spec.extra_initrd =
        Some(session_initramfs(&session, &info).context("the command cannot be passed to the guest")?);
    Ok(())
}

/// Where what the guest says on its serial lines goes.
fn outputs(streams: Streams, shared: &Arc<Shared>) -> anyhow::Result<SerialSides> {
    // Straight to the descriptor: the standard library's own buffering would hold back a prompt.
    let out = File::from(rustix::io::dup(io::stdout()).context("standard output cannot be used")?);
    let out: Box<dyn Write + Send> = Box::new(Out::new(out, shared));
    let mut sides = SerialSides::default();
    sides.outputs[3] = Some(Box::new(StatusLine::new(shared)));
    if streams == Streams::Console {
        sides.outputs[0] = Some(out);
        return Ok(sides);
    }
    sides.outputs[0] = Some(Box::new(Words(Arc::clone(shared))));
    sides.outputs[1] = Some(out);
    if streams == Streams::Pipes {
        sides.outputs[2] = Some(Box::new(Out::new(io::stderr(), shared)));
    }
    Ok(sides)
}

/// Passes standard input on until it ends.
fn feed(input: &SerialInput, streams: Streams, raw: bool, ours: bool, shared: &Shared) {
    // What comes before the guest's driver listens is lost; people at a keyboard see that, pipes do not.
    if ours && !(raw && streams == Streams::Console) {
        shared.wait_ready();
    }
    let mut escape = Escape::default();
    let mut buf = [0; stdin_line::PIECE];
    loop {
        let n = match io::stdin().lock().read(&mut buf) {
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => 0,
        };
        if streams == Streams::Pipes {
            input.send(&stdin_line::encode(&buf[..n]));
        } else if raw {
            let mut keys = Vec::new();
            for action in escape.feed(&buf[..n], &mut keys) {
                match action {
                    Action::Leave => {
                        shared.left.store(true, Ordering::Relaxed);
                        shared.stop();
                    }
                    Action::Help => eprint!("{}", escape::HELP),
                }
            }
            input.send(&keys);
        } else {
            input.send(&buf[..n]);
        }
        if n == 0 {
            return;
        }
    }
}

/// Ringer's exit status for the machine's end; tells of ends that are no good ones.
fn status(outcome: Outcome, streams: Streams, shared: &Shared) -> u8 {
    if let Some(status) = shared.status() {
        return status;
    }
    let signal = shared.signal.load(Ordering::Relaxed);
    if signal != 0 {
        return cli::EXIT_SIGNAL + signal;
    }
    if shared.broken_pipe.load(Ordering::Relaxed) {
        return cli::EXIT_SIGNAL + signal_hook::consts::SIGPIPE as u8;
    }
    let why = match outcome {
        Outcome::DebugExit(status) => return status,
        Outcome::Stopped => return 0,
        Outcome::PowerOff if streams == Streams::Console => return 0,
        Outcome::PowerOff => "the guest powered off before the command ended",
        Outcome::Reset => "the guest reset before the command ended",
        Outcome::TripleFault => "the guest died of a triple fault",
    };
    let words = shared.last_words();
    if words.is_empty() {
        eprintln!("ringer: {why}");
    } else {
        eprintln!("ringer: {why}; its last words:\n{words}");
    }
    cli::EXIT_GUEST_DIED
}
