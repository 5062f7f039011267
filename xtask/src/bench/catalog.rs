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
    /// What is in no class of its own.
    Other,
}

impl Class {
    /// All, in the order of the tables.
    pub const ALL: [Class; 5] = [Class::Programs, Class::Float, Class::System, Class::Code, Class::Other];

    /// What tables call it.
    pub fn title(self) -> &'static str {
        match self {
            Class::Programs => "integer programs",
            Class::Float => "floating point, SIMD, x87",
            Class::System => "system",
            Class::Code => "self-modifying and JIT-like",
            Class::Other => "other",
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

/// All programs, in the order they run in.
pub const PROGRAMS: &[Program] = &[
    p("sqlite", Class::Programs, 2),
    p("python", Class::Programs, 2),
    p("cc1", Class::Programs, 1),
    p("gzip", Class::Programs, 1),
    p("sha256", Class::Other, 300),
    p("shell", Class::Other, 2),
    p("syscall", Class::System, 1_000_000),
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
    fn slow_sides_do_less() {
        let p = Program { name: "x", class: Class::Other, native: 1000, emulated: 100, smp: false };
        assert_eq!(p.iterations(&Side::Native, false), 1000);
        assert_eq!(p.iterations(&Side::Qemu, false), 100);
        assert_eq!(p.iterations(&Side::Ringer("interpreter".into()), false), 12);
        assert_eq!(p.iterations(&Side::Ringer("interpreter".into()), true), 1);
    }
}
