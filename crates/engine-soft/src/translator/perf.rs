//! The map file by which `perf` names translated blocks (Linux tools/perf/Documentation/jit-interface.txt).

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;

/// The environment variable that asks for the file.
const VARIABLE: &str = "RINGER_PERF_MAP";

/// `/tmp/perf-PID.map`.
#[derive(Debug)]
pub struct PerfMap(BufWriter<File>);

impl PerfMap {
    /// The file, if it is asked for and can be made.
    #[must_use]
    pub fn open() -> Option<PerfMap> {
        std::env::var_os(VARIABLE)?;
        let path = format!("/tmp/perf-{}.map", std::process::id());
        // The name can be guessed, and the folder is everybody's.
        match File::options().create(true).append(true).custom_flags(libc::O_NOFOLLOW).open(&path) {
            Ok(f) => Some(PerfMap(BufWriter::new(f))),
            Err(e) => {
                tracing::warn!("{path} cannot be written: {e}");
                None
            }
        }
    }

    /// Adds a block: `len` bytes of code at host address `at`, for guest-physical address `gpa` under `key`.
    pub fn add(&mut self, at: u64, len: usize, gpa: u64, key: u32) {
        let ring = if key & super::key::USER != 0 { "user" } else { "kernel" };
        // The file is for a person who looks: what cannot be written is not in it.
        let _lost = writeln!(self.0, "{at:x} {len:x} {ring}:{gpa:x}").and_then(|()| self.0.flush());
    }
}
