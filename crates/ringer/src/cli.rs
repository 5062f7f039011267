//! What the command line may say.

use crate::control::VmName;
use clap::{Args, Parser, Subcommand};
use ringer_vmm::parse_size;
use std::ffi::OsString;
use std::path::PathBuf;

/// Ringer could not do what was asked: bad input, or the host refused.
pub const EXIT_ERROR: u8 = 125;
/// The guest died, or ended without saying how its command did.
pub const EXIT_GUEST_DIED: u8 = 126;
/// The command line cannot be understood.
pub const EXIT_USAGE: u8 = 2;
/// Added to the number of the signal that ended Ringer.
pub const EXIT_SIGNAL: u8 = 128;

const STATUSES: &str = "\
Exit status:
  0        the guest powered off, or was left with Ctrl-A x
  N        the status of COMMAND; or, after a write of v to the debug-exit port 0xf4, (v << 1) | 1
  2        the command line cannot be understood
  125      Ringer could not do what was asked; one sentence on standard error says why
  126      the guest died, or ended before COMMAND did
  128 + N  Ringer was ended by signal N";

const KEYS: &str = "\
On a terminal, all keys go to the guest but Ctrl-A: Ctrl-A x leaves, Ctrl-A h lists the others.";

/// A virtual machine monitor that needs no hardware virtualization.
#[derive(Debug, Parser)]
#[command(name = "ringer", version, about, arg_required_else_help = true, disable_help_subcommand = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a virtual machine
    #[command(args_override_self = true, after_help = format!("{KEYS}\n\n{STATUSES}"))]
    Run(Box<RunArgs>),
    /// List the engines, with what each does on this host or why it cannot run
    Engines,
    /// List the running machines that have a name
    Ps(PsArgs),
    /// Say how a running machine does: state, engine, speed, memory
    Info(InfoArgs),
    /// Make a running machine stand still; its time does so too
    Pause(NameArg),
    /// Let a paused machine go on
    Resume(NameArg),
    /// Hand a running machine over to another engine
    Engine(EngineArgs),
    /// Press a running machine's power button, and end it if its guest does not power off in time
    Stop(StopArgs),
    /// End a running machine at once
    Kill(NameArg),
    /// Make a guest ahead of time and print where its kernel and initramfs are
    Fetch(FetchArgs),
    /// Ringer's own: restores the terminal if its parent dies
    #[command(name = crate::watcher::NAME, hide = true)]
    RestoreTerminal,
}

/// `ringer run`
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Kernel: bzImage, ELF vmlinux, multiboot image or boot sector [default: Debian's cloud kernel, fetched once]
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk; the only module of a multiboot kernel
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// Kernel command line; added to Ringer's own for its guests, else "console=ttyS0" if not given
    #[arg(long, value_name = "TEXT")]
    pub cmdline: Option<String>,
    /// Which of Ringer's guests: cloud, amd64, rt or installer
    #[arg(long, value_name = "NAME", default_value = "cloud", conflicts_with = "kernel")]
    pub guest: String,
    /// Processors, 1 to 254
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub cpus: u32,
    /// Memory, as in 512M or 2G [default: 512M; 1G for the installer]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub memory: Option<u64>,
    /// Processor model: host, x86-64-v2 or x86-64-v3, then ,+FEATURE or ,-FEATURE
    #[arg(long, value_name = "MODEL", default_value = "host")]
    pub cpu: String,
    /// Engine: auto, or a name that `ringer engines` lists
    #[arg(long, value_name = "NAME", default_value = "auto")]
    pub engine: String,
    /// Memory for translated code and all that belongs to it, at least 4M for each processor [default: 64M, or what they need]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub code_memory: Option<u64>,
    /// Engines that the machine is to be able to change to later, beside the software ones: it is made so that they can run it
    #[arg(long, value_name = "ENGINE", value_delimiter = ',')]
    pub also: Vec<String>,
    /// Boot protocol: auto, pvh, linux64, linux32, multiboot or sector
    #[arg(long, value_name = "NAME", default_value = "auto")]
    pub boot: String,
    /// Name by which ringer ps, info, pause, resume, engine, stop and kill reach the machine [default: none, and they do not]
    #[arg(long, value_name = "NAME")]
    pub name: Option<VmName>,
    /// What a triple fault does: exit, or reset as on a real machine
    #[arg(long, value_name = "ACTION", default_value = "exit", value_parser = ["exit", "reset"])]
    pub triple_fault: String,
    /// Wait for gdb on a TCP port of this host or a Unix socket before the first instruction; with ,nowait start without it
    #[arg(long, value_name = "PORT|PATH[,nowait]")]
    pub gdb: Option<String>,
    /// Print what the processors did when the machine ends
    #[arg(long)]
    pub stats: bool,
    /// Command to run in the guest instead of a shell (Ringer's guests, or an --initrd that `ringer fetch` made)
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// `ringer fetch`
#[derive(Debug, Args)]
pub struct FetchArgs {
    /// cloud (what `ringer run` takes), amd64, rt or installer
    #[arg(default_value = "cloud")]
    pub guest: String,
}

/// A machine.
#[derive(Debug, Args)]
pub struct NameArg {
    /// The machine's name
    pub name: VmName,
}

/// `ringer ps`
#[derive(Debug, Args)]
pub struct PsArgs {
    /// For programs: JSON
    #[arg(long)]
    pub json: bool,
}

/// `ringer info`
#[derive(Debug, Args)]
pub struct InfoArgs {
    /// The machine's name
    pub name: VmName,
    /// For programs: JSON
    #[arg(long)]
    pub json: bool,
}

/// `ringer engine`
#[derive(Debug, Args)]
pub struct EngineArgs {
    /// The machine's name
    pub name: VmName,
    /// The engine, by a name that `ringer engines` lists
    pub engine: String,
}

/// `ringer stop`
#[derive(Debug, Args)]
pub struct StopArgs {
    /// The machine's name
    pub name: VmName,
    /// Seconds that the guest has to power off
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(..=86_400))]
    pub timeout: u64,
}
