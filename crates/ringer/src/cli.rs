//! What the command line may say.

use clap::{Args, Parser, Subcommand};

/// Ringer could not do what was asked: bad input, or the host refused.
pub const EXIT_ERROR: u8 = 125;

/// A virtual machine monitor that needs no hardware virtualization.
#[derive(Debug, Parser)]
#[command(name = "ringer", version, about, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a guest ahead of time and print where its kernel and initramfs are
    Fetch(FetchArgs),
}

/// `ringer fetch`
#[derive(Debug, Args)]
pub struct FetchArgs {
    /// cloud (what `ringer run` takes), amd64, rt or installer
    #[arg(default_value = "cloud")]
    pub guest: String,
}
