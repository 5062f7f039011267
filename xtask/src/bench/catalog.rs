//! The programs, their classes, and how often each does its work.

/// What a program is counted under.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// Whole integer programs.
    Programs,
    /// Floating point, vectors, x87.
    Float,
    /// What the kernel does.
    System,
    /// Code that writes code.
    Code,
    /// Other work of user code.
    User,
    /// Other work of the kernel.
    Kernel,
}

impl Class {
    /// All, in the order of the tables.
    pub const ALL: [Class; 6] =
        [Class::Programs, Class::Float, Class::System, Class::Code, Class::User, Class::Kernel];

    /// What tables call it.
    pub fn title(self) -> &'static str {
        match self {
            Class::Programs => "integer programs",
            Class::Float => "floating point, SIMD, x87",
            Class::System => "system",
            Class::Code => "self-modifying and JIT-like",
            Class::User => "other user code",
            Class::Kernel => "other kernel work",
        }
    }
}

/// One program of the guest's driver.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// Its name there.
    pub name: &'static str,
    /// Its class.
    pub class: Class,
    /// How often it does its work on the host: some 0.1 to 0.3 s of it.
    pub native: u64,
    /// How often under an emulator; fewer only where emulators are hundreds of times slower.
    pub emulated: u64,
    /// Whether it is measured with several processors too.
    pub smp: bool,
}

const fn p(name: &'static str, class: Class, iterations: u64) -> Program {
    Program { name, class, native: iterations, emulated: iterations, smp: false }
}

/// One that is measured with several processors too.
const fn smp(name: &'static str, class: Class, iterations: u64) -> Program {
    Program { smp: true, ..p(name, class, iterations) }
}

/// One that some emulators are hundreds of times slower at.
const fn hard(name: &'static str, class: Class, native: u64, emulated: u64) -> Program {
    Program { emulated, ..p(name, class, native) }
}

/// All programs, in the order they run in.
pub const PROGRAMS: &[Program] = &[
    p("sqlite", Class::Programs, 1),
    p("python", Class::Programs, 1),
    p("cc1", Class::Programs, 1),
    p("gzip", Class::Programs, 1),
    p("coremark", Class::Programs, 1_500),
    p("linpack", Class::Float, 120),
    p("nbody", Class::Float, 500),
    p("libm", Class::Float, 700),
    hard("sse2", Class::Float, 500, 200),
    hard("avx2", Class::Float, 1_200, 300),
    p("sse2-int", Class::Float, 60_000),
    p("avx2-int", Class::Float, 100_000),
    p("x87", Class::Float, 3_000),
    p("syscall", Class::System, 400_000),
    p("fault", Class::System, 20_000),
    p("fork", Class::System, 500),
    p("exec", Class::System, 300),
    p("mmap", Class::System, 6_000),
    smp("pipe", Class::System, 10_000),
    hard("jit", Class::Code, 400_000, 10_000),
    hard("smc", Class::Code, 2_000_000, 20_000),
    hard("patch", Class::Code, 1_000_000, 10_000),
    p("shell", Class::User, 2),
    p("sha256", Class::User, 100),
    p("quicksort", Class::User, 50),
    p("hash", Class::User, 50),
    p("aes-table", Class::User, 500),
    p("aes-ni", Class::User, 5_000),
    p("sha-ni", Class::User, 1_000),
    p("calls", Class::User, 600),
    p("indirect", Class::User, 8_000),
    p("vm-switch", Class::User, 400),
    p("vm-goto", Class::User, 800),
    smp("atomics", Class::User, 5_000_000),
    p("tlb", Class::User, 400_000),
    hard("memcpy", Class::User, 40_000, 5_000),
    hard("rep-long", Class::User, 30_000, 4_000),
    p("rep-short", Class::User, 4_000_000),
    p("strings", Class::User, 300_000),
    p("signal", Class::Kernel, 30_000),
    hard("socket", Class::Kernel, 4_000, 1_000),
    p("file", Class::Kernel, 500),
    smp("threads", Class::Kernel, 2_000),
    smp("futex", Class::Kernel, 10_000),
    smp("mutex", Class::Kernel, 2_000_000),
    smp("busy1", Class::User, 100),
    smp("busy2", Class::User, 100),
];

/// How much slower than other emulators the interpreter is reckoned.
const INTERPRETER: u64 = 8;
/// How much less `--quick` does.
const QUICK: u64 = 8;

/// Who runs the programs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Side {
    /// The host itself.
    Native,
    /// Ringer, with an engine of this name.
    Ringer(String),
    /// QEMU's TCG.
    Qemu,
}

impl Program {
    /// How often it does its work on `side`.
    pub fn iterations(&self, side: &Side, quick: bool) -> u64 {
        let n = match side {
            Side::Native => self.native,
            Side::Ringer(engine) if engine == "interpreter" => self.emulated / INTERPRETER,
            Side::Ringer(_) | Side::Qemu => self.emulated,
        };
        (if quick { n / QUICK } else { n }).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_short() {
        for (i, p) in PROGRAMS.iter().enumerate() {
            assert!(PROGRAMS[..i].iter().all(|q| q.name != p.name), "{} stands twice", p.name);
            assert!(p.name.len() <= 12 && p.native >= p.emulated && p.emulated > 0, "{}", p.name);
        }
    }

    #[test]
    fn the_driver_has_them() {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../benches/guest");
        let files = std::fs::read_dir(dir).unwrap().flatten().filter(|e| e.path().is_file());
        let sources: String = files.map(|e| std::fs::read_to_string(e.path()).unwrap()).collect();
        for p in PROGRAMS {
            assert!(sources.contains(&format!("{{\"{}\", ", p.name)), "{} stands in no table", p.name);
        }
    }

    #[test]
    fn slow_sides_do_less() {
        let p = Program { name: "x", class: Class::User, native: 1000, emulated: 100, smp: false };
        assert_eq!(p.iterations(&Side::Native, false), 1000);
        assert_eq!(p.iterations(&Side::Qemu, false), 100);
        assert_eq!(p.iterations(&Side::Ringer("interpreter".into()), false), 12);
        assert_eq!(p.iterations(&Side::Ringer("interpreter".into()), true), 1);
    }
}
