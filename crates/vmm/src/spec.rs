//! [`VmSpec`]: what a machine is made from, checked before anything is.

use ringer_engine::CODE_LIMIT;
use ringer_image::boot::BootProtocol;
use std::path::PathBuf;
use thiserror::Error;

/// The most processors a machine can have: APIC ids fit in a byte, with 255 meaning all.
pub const MAX_CPUS: u32 = 254;
/// Guest RAM if nothing is said.
pub const DEFAULT_MEMORY: u64 = 512 << 20;
/// The least guest RAM.
pub const MIN_MEMORY: u64 = 1 << 20;

/// The least that a processor's translated code takes, with its tables.
pub const LEAST_CODE: u64 = 4 << 20;
/// The most that those of all processors can take: as far as jumps reach in it.
pub const MOST_CODE: u64 = 1 << 30;

/// What happens when the guest resets the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OnReset {
    /// It starts again from its kernel.
    #[default]
    Restart,
    /// It ends.
    Exit,
}

/// A machine to be. All fields may be set freely; [`check`](VmSpec::check) says whether it can be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VmSpec {
    /// Processors, 1 to [`MAX_CPUS`].
    pub cpus: u32,
    /// Bytes of RAM, a multiple of 4096.
    pub memory: u64,
    /// The kernel file.
    pub kernel: PathBuf,
    /// How to enter it.
    pub protocol: BootProtocol,
    /// The initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// An archive to put behind it.
    pub extra_initrd: Option<Vec<u8>>,
    /// The kernel command line.
    pub cmdline: String,
    /// The processor model's name.
    pub cpu: String,
    /// The engine's name, or `auto`.
    pub engine: String,
    /// What an engine may take for the code that it makes of the guest's, with its tables, in bytes: [`LEAST_CODE`] for each
    /// processor to [`MOST_CODE`]. None: [`CODE_LIMIT`](ringer_engine::CODE_LIMIT), or what so many processors need.
    pub code_memory: Option<u64>,
    /// Names of engines that the machine may be handed over to later: it is made so that they can run it. Those that need nothing of
    /// their own, as the software engines, need not be named.
    pub also: Vec<String>,
    /// Count all guest instructions, though the engine may be slower then, and watch the process's memory.
    pub count: bool,
    /// What a reset by the guest does.
    pub on_reset: OnReset,
    /// What a triple fault does, which resets a real machine.
    pub on_triple_fault: OnReset,
}

impl VmSpec {
    /// One processor, [`DEFAULT_MEMORY`], the host's processor model, the best engine.
    #[must_use]
    pub fn new(kernel: PathBuf) -> VmSpec {
        VmSpec {
            cpus: 1,
            memory: DEFAULT_MEMORY,
            kernel,
            protocol: BootProtocol::Auto,
            initrd: None,
            extra_initrd: None,
            cmdline: String::new(),
            cpu: "host".to_owned(),
            engine: "auto".to_owned(),
            also: Vec::new(),
            code_memory: None,
            count: false,
            on_reset: OnReset::Restart,
            on_triple_fault: OnReset::Exit,
        }
    }

    /// [`VmParams::code_limit`](ringer_engine::VmParams::code_limit) of the machine.
    #[must_use]
    pub fn code_limit(&self) -> u64 {
        self.code_memory.unwrap_or((LEAST_CODE * u64::from(self.cpus)).max(CODE_LIMIT))
    }

    /// Checks what can be checked without making anything.
    ///
    /// # Errors
    /// [`SpecError`].
    pub fn check(&self) -> Result<(), SpecError> {
        self.check_on(host_memory())
    }

    fn check_on(&self, host: u64) -> Result<(), SpecError> {
        if !(1..=MAX_CPUS).contains(&self.cpus) {
            return Err(SpecError::Cpus(self.cpus));
        }
        if self.memory < MIN_MEMORY || !self.memory.is_multiple_of(4096) {
            return Err(SpecError::Memory(self.memory));
        }
        if let Some(asked) = self.code_memory {
            let least = LEAST_CODE * u64::from(self.cpus);
            if !(least..=MOST_CODE).contains(&asked) {
                return Err(SpecError::CodeMemory { asked, cpus: self.cpus, least });
            }
        }
        if self.memory > host {
            return Err(SpecError::HostMemory { asked: self.memory, host });
        }
        Ok(())
    }
}

/// RAM of the host in bytes.
fn host_memory() -> u64 {
    let i = rustix::system::sysinfo();
    (i.totalram as u64).saturating_mul(u64::from(i.mem_unit))
}

/// A machine that cannot be.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum SpecError {
    /// No processors, or too many.
    #[error("a machine cannot have {0} processors: choose 1 to {MAX_CPUS}")]
    Cpus(u32),
    /// Too little RAM, or a part of a page.
    #[error("a machine cannot have {} of memory: choose at least 1M, in whole pages of 4K", show_size(*.0))]
    Memory(u64),
    /// More RAM than the host's.
    #[error("{} of memory is more than the host has ({}): choose less", show_size(*.asked), show_size(*.host))]
    HostMemory {
        /// What was asked for, in bytes.
        asked: u64,
        /// The host's.
        host: u64,
    },
    /// Too little room for translated code, or more than can be used.
    #[error(
        "translated code cannot have {} of memory with {cpus} processor(s): choose {} to {}",
        show_size(*.asked),
        show_size(*.least),
        show_size(MOST_CODE)
    )]
    CodeMemory {
        /// What was asked for, in bytes.
        asked: u64,
        /// Processors.
        cpus: u32,
        /// What they need.
        least: u64,
    },
    /// Text that is no size.
    #[error("{0:?} is not a size: write a number and K, M, G or T, as in 512M")]
    Size(String),
}

/// Reads a size such as `512M`: a whole number and a unit, K, M, G or T (powers of 1024), with `iB` or `B` if one likes.
///
/// # Errors
/// [`SpecError::Size`].
pub fn parse_size(text: &str) -> Result<u64, SpecError> {
    let bad = || SpecError::Size(text.to_owned());
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| bad())?;
    let unit = unit.to_ascii_lowercase();
    let shift = match unit.strip_suffix("ib").or_else(|| unit.strip_suffix('b')).unwrap_or(&unit) {
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(bad()),
    };
    number.checked_mul(1 << shift).ok_or_else(bad)
}

/// A size as people write it: the largest unit in which it is a whole number, or one decimal.
#[must_use]
pub fn show_size(bytes: u64) -> String {
    let units = [("T", 40), ("G", 30), ("M", 20), ("K", 10)];
    for (name, shift) in units {
        if bytes >> shift > 0 {
            let unit = 1u64 << shift;
            return if bytes.is_multiple_of(unit) {
                format!("{}{name}", bytes / unit)
            } else {
                format!("{:.1}{name}", bytes as f64 / unit as f64)
            };
        }
    }
    format!("{bytes} bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("512M", 512 << 20),
            ("2G", 2 << 30),
            ("1t", 1 << 40),
            ("64k", 65536),
            ("3GiB", 3 << 30),
            ("1mb", 1 << 20),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in [
            "",
            "M",
            "512",
            "-1M",
            "1.5G",
            "12X",
            "99999999999T",
            "18446744073709551616K",
            "1 M",
            "1MM",
            "½G",
        ] {
            assert_eq!(parse_size(text), Err(SpecError::Size(text.to_owned())), "{text}");
        }
        assert_eq!(show_size(512 << 20), "512M");
        assert_eq!(show_size((3 << 30) + (1 << 29)), "3.5G");
        assert_eq!(show_size(17), "17 bytes");
    }

    #[test]
    fn checks() {
        let good = VmSpec::new("k".into());
        let host = 8 << 30;
        assert_eq!(good.check_on(host), Ok(()));
        for cpus in [0, 255, 4096] {
            let spec = VmSpec { cpus, ..good.clone() };
            assert_eq!(spec.check_on(host), Err(SpecError::Cpus(cpus)));
        }
        for memory in [0, 4096, (1 << 20) + 1] {
            let spec = VmSpec { memory, ..good.clone() };
            assert_eq!(spec.check_on(host), Err(SpecError::Memory(memory)));
        }
        for asked in [0, (4 << 20) - 1, (1 << 30) + 1, u64::MAX] {
            let spec = VmSpec { code_memory: Some(asked), ..good.clone() };
            assert!(matches!(spec.check_on(host), Err(SpecError::CodeMemory { .. })), "{asked}");
        }
        let spec = VmSpec { cpus: 3, code_memory: Some(8 << 20), ..good.clone() };
        let e = spec.check_on(host).unwrap_err().to_string();
        assert_eq!(e, "translated code cannot have 8M of memory with 3 processor(s): choose 12M to 1G");
        assert_eq!(good.code_limit(), 64 << 20);
        assert_eq!(VmSpec { cpus: MAX_CPUS, ..good.clone() }.code_limit(), u64::from(MAX_CPUS) << 22);
        let spec = VmSpec { memory: 9 << 30, ..good };
        let e = spec.check_on(host).unwrap_err().to_string();
        assert_eq!(e, "9G of memory is more than the host has (8G): choose less");
    }
}
