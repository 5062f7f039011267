//! The registers that a debugger sees, and the target description that tells it of them.
//!
//! One description for all modes, that of 64-bit mode: gdb cannot be told that registers change their width. The features named
//! `org.gnu.gdb.i386` are gdb's, with the registers that it wants in them (gdb manual, "i386 Features"); the last is our own.

use ringer_arch::VcpuState;
use ringer_arch::msr::KERNEL_GS_BASE;
use ringer_arch::seg::sreg;
use ringer_arch::state::XSAVE_YMM_HI;
use std::fmt::Write;
use std::sync::LazyLock;

/// In the FXSAVE image: FCW, FSW, the abridged tags, FOP, FIP, FDP, MXCSR, ST0 and XMM0 (Intel SDM vol. 1 table 10-2).
const FCW: usize = 0;
const FSW: usize = 2;
const FTW: usize = 4;
const FOP: usize = 6;
const FIP: usize = 8;
const FDP: usize = 16;
const MXCSR: usize = 24;
const ST0: usize = 32;
const XMM0: usize = 160;

/// Where a register's value is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    Gpr(usize),
    Rip,
    Eflags,
    Selector(usize),
    /// Bytes of the XSAVE area, at an offset.
    Xsave(usize),
    /// The x87 tags in two bits each, which the XSAVE area keeps in one.
    Tags,
    Base(usize),
    KernelGsBase,
    Cr(u8),
    Efer,
}

/// A register.
#[derive(Clone, Copy, Debug)]
struct Reg {
    /// Bytes that the debugger has of it.
    len: usize,
    /// Bytes that it has here; those above are zero.
    used: usize,
    place: Place,
}

/// All of them, numbered by their place here, and their description in XML.
struct Table {
    regs: Vec<Reg>,
    xml: String,
}

static TABLE: LazyLock<Table> = LazyLock::new(Table::new);

/// The sum of the registers' lengths.
pub static LEN: LazyLock<usize> = LazyLock::new(|| TABLE.regs.iter().map(|r| r.len).sum());

/// Types beyond gdb's own ones: of flags, and of vectors seen as elements.
const FLAGS: &str = r#"<flags id="i386_eflags" size="4">
<field name="CF" start="0" end="0"/><field name="" start="1" end="1"/><field name="PF" start="2" end="2"/>
<field name="AF" start="4" end="4"/><field name="ZF" start="6" end="6"/><field name="SF" start="7" end="7"/>
<field name="TF" start="8" end="8"/><field name="IF" start="9" end="9"/><field name="DF" start="10" end="10"/>
<field name="OF" start="11" end="11"/><field name="NT" start="14" end="14"/><field name="RF" start="16" end="16"/>
<field name="VM" start="17" end="17"/><field name="AC" start="18" end="18"/><field name="VIF" start="19" end="19"/>
<field name="VIP" start="20" end="20"/><field name="ID" start="21" end="21"/>
</flags>"#;
const VECTORS: &str = r#"<vector id="v4f" type="ieee_single" count="4"/><vector id="v2d" type="ieee_double" count="2"/>
<vector id="v16i8" type="int8" count="16"/><vector id="v8i16" type="int16" count="8"/>
<vector id="v4i32" type="int32" count="4"/><vector id="v2i64" type="int64" count="2"/>
<union id="vec128">
<field name="v4_float" type="v4f"/><field name="v2_double" type="v2d"/><field name="v16_int8" type="v16i8"/>
<field name="v8_int16" type="v8i16"/><field name="v4_int32" type="v4i32"/><field name="v2_int64" type="v2i64"/>
<field name="uint128" type="uint128"/>
</union>
<flags id="i386_mxcsr" size="4">
<field name="IE" start="0" end="0"/><field name="DE" start="1" end="1"/><field name="ZE" start="2" end="2"/>
<field name="OE" start="3" end="3"/><field name="UE" start="4" end="4"/><field name="PE" start="5" end="5"/>
<field name="DAZ" start="6" end="6"/><field name="IM" start="7" end="7"/><field name="DM" start="8" end="8"/>
<field name="ZM" start="9" end="9"/><field name="OM" start="10" end="10"/><field name="UM" start="11" end="11"/>
<field name="PM" start="12" end="12"/><field name="FZ" start="15" end="15"/>
</flags>"#;

impl Table {
    fn new() -> Table {
        let xml = "<?xml version=\"1.0\"?>\n<!DOCTYPE target SYSTEM \"gdb-target.dtd\">\n<target>\n\
            <architecture>i386:x86-64</architecture>\n";
        let mut t = Table { regs: Vec::new(), xml: xml.to_owned() };
        t.core();
        t.feature("org.gnu.gdb.i386.sse", VECTORS, |t| {
            for n in 0..16 {
                t.reg(&format!("xmm{n}"), 128, "vec128", Place::Xsave(XMM0 + 16 * n));
            }
            t.reg("mxcsr", 32, "i386_mxcsr", Place::Xsave(MXCSR));
        });
        t.feature("org.gnu.gdb.i386.avx", "", |t| {
            for n in 0..16 {
                t.reg(&format!("ymm{n}h"), 128, "uint128", Place::Xsave(XSAVE_YMM_HI + 16 * n));
            }
        });
        t.feature("org.gnu.gdb.i386.segments", "", |t| {
            t.reg("fs_base", 64, "int", Place::Base(sreg::FS));
            t.reg("gs_base", 64, "int", Place::Base(sreg::GS));
        });
        t.feature("org.ringer.system", "", |t| {
            t.reg("k_gs_base", 64, "int", Place::KernelGsBase);
            for n in [0, 2, 3, 4, 8] {
                t.reg(&format!("cr{n}"), 64, "int", Place::Cr(n));
            }
            t.reg("efer", 64, "int", Place::Efer);
        });
        t.xml.push_str("</target>\n");
        t
    }

    fn core(&mut self) {
        const NAMES: [&str; 8] = ["rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp"];
        const ENCODED: [usize; 8] = [0, 3, 1, 2, 6, 7, 5, 4];
        self.feature("org.gnu.gdb.i386.core", FLAGS, |t| {
            for (name, n) in NAMES.into_iter().zip(ENCODED) {
                let typ = if matches!(name, "rbp" | "rsp") { "data_ptr" } else { "int64" };
                t.reg(name, 64, typ, Place::Gpr(n));
            }
            for n in 8..16 {
                t.reg(&format!("r{n}"), 64, "int64", Place::Gpr(n));
            }
            t.reg("rip", 64, "code_ptr", Place::Rip);
            t.reg("eflags", 32, "i386_eflags", Place::Eflags);
            let segments = [
                ("cs", sreg::CS),
                ("ss", sreg::SS),
                ("ds", sreg::DS),
                ("es", sreg::ES),
                ("fs", sreg::FS),
                ("gs", sreg::GS),
            ];
            for (name, n) in segments {
                t.reg(name, 32, "int32", Place::Selector(n));
            }
            for n in 0..8 {
                t.reg(&format!("st{n}"), 80, "i387_ext", Place::Xsave(ST0 + 16 * n));
            }
            // FIP and FDP are of 64 bits, of which these are the parts that they had in 32-bit mode.
            let control = [
                ("fctrl", 2, Place::Xsave(FCW)),
                ("fstat", 2, Place::Xsave(FSW)),
                ("ftag", 2, Place::Tags),
                ("fiseg", 2, Place::Xsave(FIP + 4)),
                ("fioff", 4, Place::Xsave(FIP)),
                ("foseg", 2, Place::Xsave(FDP + 4)),
                ("fooff", 4, Place::Xsave(FDP)),
                ("fop", 2, Place::Xsave(FOP)),
            ];
            for (name, used, place) in control {
                t.reg(name, 32, "int", place);
                if let Some(r) = t.regs.last_mut() {
                    r.used = used;
                }
            }
        });
    }

    fn feature(&mut self, name: &str, types: &str, regs: impl FnOnce(&mut Table)) {
        let _infallible = writeln!(self.xml, "<feature name=\"{name}\">\n{types}");
        regs(self);
        self.xml.push_str("</feature>\n");
    }

    fn reg(&mut self, name: &str, bits: usize, typ: &str, place: Place) {
        let _infallible = writeln!(self.xml, "<reg name=\"{name}\" bitsize=\"{bits}\" type=\"{typ}\"/>");
        self.regs.push(Reg { len: bits / 8, used: bits / 8, place });
    }
}

/// The target description.
#[must_use]
pub fn description() -> &'static str {
    &TABLE.xml
}

/// How many registers there are.
#[must_use]
pub fn count() -> usize {
    TABLE.regs.len()
}

/// Bytes of register `n`.
#[must_use]
pub fn len(n: usize) -> Option<usize> {
    Some(TABLE.regs.get(n)?.len)
}

/// The value of register `n`, [`len`] bytes, low ones first. `cr8` is the task-priority class, which is no part of the state.
#[must_use]
pub fn read(s: &VcpuState, cr8: u64, n: usize) -> Option<Vec<u8>> {
    let r = TABLE.regs.get(n)?;
    let v = match r.place {
        Place::Gpr(g) => s.gpr[g],
        Place::Rip => s.rip,
        Place::Eflags => s.rflags,
        Place::Selector(g) => u64::from(s.seg[g].selector),
        Place::Tags => u64::from(tags(s)),
        Place::Base(g) => s.seg[g].base,
        Place::KernelGsBase => s.msrs.get(&KERNEL_GS_BASE).copied().unwrap_or(0),
        Place::Cr(0) => s.cr0,
        Place::Cr(2) => s.cr2,
        Place::Cr(3) => s.cr3,
        Place::Cr(4) => s.cr4,
        Place::Cr(_) => cr8,
        Place::Efer => s.efer,
        Place::Xsave(at) => {
            let mut v = s.xsave[at..at + r.used].to_vec();
            v.resize(r.len, 0);
            return Some(v);
        }
    };
    Some(v.to_le_bytes()[..r.len].to_vec())
}

/// What became of a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Written {
    /// It is in the state.
    State,
    /// CR8 is to be this.
    Cr8(u64),
    /// There is no such register, it cannot be written, or not with this many bytes.
    Refused,
}

/// Writes register `n`. Selectors can only be what they are: the segment behind one is more than its number.
pub fn write(s: &mut VcpuState, n: usize, bytes: &[u8]) -> Written {
    let Some(r) = TABLE.regs.get(n) else { return Written::Refused };
    if bytes.len() != r.len {
        return Written::Refused;
    }
    if let Place::Xsave(at) = r.place {
        s.xsave[at..at + r.used].copy_from_slice(&bytes[..r.used]);
        return Written::State;
    }
    let mut v = [0; 8];
    v[..r.len].copy_from_slice(bytes);
    let v = u64::from_le_bytes(v);
    match r.place {
        Place::Gpr(g) => s.gpr[g] = v,
        Place::Rip => s.rip = v,
        Place::Eflags => s.rflags = v,
        Place::Selector(g) if v == u64::from(s.seg[g].selector) => {}
        Place::Tags => set_tags(s, v as u16),
        Place::Base(g) => s.seg[g].base = v,
        Place::KernelGsBase => {
            s.msrs.insert(KERNEL_GS_BASE, v);
        }
        Place::Cr(0) => s.cr0 = v,
        Place::Cr(2) => s.cr2 = v,
        Place::Cr(3) => s.cr3 = v,
        Place::Cr(4) => s.cr4 = v,
        Place::Cr(_) if v < 16 => return Written::Cr8(v),
        Place::Efer => s.efer = v,
        Place::Selector(_) | Place::Cr(_) | Place::Xsave(_) => return Written::Refused,
    }
    Written::State
}

/// The tag word as FSTENV stores it: two bits a physical register, of which FXSAVE keeps whether it is empty (Intel SDM vol. 1
/// §8.1.7, §10.5.1.1).
fn tags(s: &VcpuState) -> u16 {
    let top = usize::from(s.xsave[FSW + 1] >> 3 & 7);
    let mut word = 0;
    for physical in 0..8 {
        let at = ST0 + 16 * ((physical + 8 - top) % 8);
        let fraction = u64::from_le_bytes(std::array::from_fn(|i| s.xsave[at + i]));
        let exponent = u16::from_le_bytes([s.xsave[at + 8], s.xsave[at + 9]]) & 0x7fff;
        let tag = if s.xsave[FTW] >> physical & 1 == 0 {
            3
        } else if exponent == 0 && fraction == 0 {
            1
        } else if exponent == 0x7fff || fraction >> 63 == 0 {
            2
        } else {
            0
        };
        word |= tag << (2 * physical);
    }
    word
}

fn set_tags(s: &mut VcpuState, word: u16) {
    s.xsave[FTW] = (0..8).filter(|n| word >> (2 * n) & 3 != 3).map(|n| 1 << n).sum();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(name: &str) -> usize {
        let names = description().lines().filter_map(|l| l.strip_prefix("<reg name=\"")?.split('"').next());
        names.into_iter().position(|n| n == name).unwrap()
    }

    #[test]
    fn each_register_is_written_as_it_is_read() {
        let mut s = VcpuState::reset(0, true);
        assert_eq!(count(), description().matches("<reg ").count());
        assert_eq!(number("rip"), 16);
        for n in 0..count() {
            let before = read(&s, 0, n).unwrap();
            assert_eq!(before.len(), len(n).unwrap());
            assert_ne!(write(&mut s, n, &before), Written::Refused, "{n}");
            assert_eq!(write(&mut s, n, &before[1..]), Written::Refused);
            assert_eq!(read(&s, 0, n).unwrap(), before);
            let selectors = number("cs")..=number("gs");
            let mut other = before.clone();
            other[0] ^= 5;
            let whole = len(n).unwrap() - usize::from(n == number("ftag"));
            match write(&mut s, n, &other) {
                Written::State if n == number("ftag") => {}
                Written::State => assert_eq!(read(&s, 0, n).unwrap(), other, "{n} of {whole}"),
                Written::Cr8(v) => assert_eq!((n, v), (number("cr8"), 5)),
                Written::Refused => assert!(selectors.contains(&n)),
            }
        }
        assert_eq!(read(&s, 9, number("cr8")).unwrap()[0], 9);
        assert_eq!(read(&s, 0, count()), None);
        assert_eq!(write(&mut s, count(), &[]), Written::Refused);
        assert_eq!(write(&mut s, number("cr8"), &16u64.to_le_bytes()), Written::Refused);
    }

    #[test]
    fn tags_by_content() {
        let mut s = VcpuState::reset(0, true);
        assert_eq!(tags(&s), 0xffff);
        // TOP is 6: ST0 is R6, ST1 is R7, ST2 is R0.
        s.xsave[FSW + 1] = 6 << 3;
        s.xsave[FTW] = 0b1100_0001;
        s.xsave[ST0 + 7] = 0x80;
        s.xsave[ST0 + 9] = 0x3f;
        s.xsave[ST0 + 32 + 8..ST0 + 32 + 10].copy_from_slice(&[0xff, 0x7f]);
        assert_eq!(tags(&s), 0b01_00_11_11_11_11_11_10);
        let t = tags(&s);
        s.xsave[FTW] = 0;
        set_tags(&mut s, t);
        assert_eq!(s.xsave[FTW], 0b1100_0001);
    }
}
