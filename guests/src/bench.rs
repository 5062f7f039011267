//! The boot sectors of the speed comparison: one image for every emulator.

/// A loop in a boot sector, which ends the machine by the debug-exit port and by Bochs's shutdown port.
#[derive(Clone, Copy, Debug)]
pub struct Loop {
    /// What it does.
    pub name: &'static str,
    /// The boot sector.
    pub full: &'static [u8],
    /// The same with one turn: what booting alone takes.
    pub one: &'static [u8],
    /// Instructions that `full` executes and `one` does not, in decimal.
    pub instructions: &'static str,
}

macro_rules! loops {
    ($($name:literal $instructions:literal;)*) => {
        /// All loops.
        pub const LOOPS: &[Loop] = &[$(Loop {
            name: $name,
            full: include_bytes!(concat!(env!("OUT_DIR"), "/bench-", $name, "-full.bin")),
            one: include_bytes!(concat!(env!("OUT_DIR"), "/bench-", $name, "-one.bin")),
            instructions: env!($instructions),
        },)*];
    };
}

loops! {
    "integer" "BENCH_INTEGER";
    "memory" "BENCH_MEMORY";
    "branch" "BENCH_BRANCH";
}
