//! Golden files: guest code, and the host code that it becomes.
//!
//! The files are in `tests/golden`. Each case names a mode and guest bytes; the rest of it is made, and written anew with
//! `RINGER_BLESS=1 cargo test -p ringer-engine-soft --lib golden`. A change of the emitter then shows as a diff of host code. What it does is
//! for other tests (`engine-test`); these show that it is what was meant, and that nothing else changed.

use super::ctx::off;
use super::emit::{self, Source};
use super::groups::Early;
use super::key;
use super::store::{NONE, Second, Store, Told, Versions};
use super::stubs::{self, Stubs};
use crate::sites::Site;
use crate::sys::testing;
use iced_x86::{
    Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register, SpecializedFormatter,
    SpecializedFormatterTraitOptions, SymbolResolver, SymbolResult,
};
use ringer_arch::cpu::Vendor;
use std::fmt::Write;
use std::path::Path;

/// What asks for the files to be written anew.
const BLESS: &str = "RINGER_BLESS";
/// Where the page lies that the code is in.
const PAGE: u64 = 0x1_0000;
/// How a case begins.
const CASE: &str = "== ";

/// A case as its file has it.
struct Case {
    name: String,
    /// Words: `64` or `32`, `user` or `kernel`, `ac`, `cold`, `dense`, `scattered`, `count`, `no-fpu`, `@OFFSET`.
    mode: String,
    bytes: String,
}

struct Labels;

impl SpecializedFormatterTraitOptions for Labels {
    const ENABLE_SYMBOL_RESOLVER: bool = true;
}

/// Names for addresses that differ from run to run.
struct Names {
    stubs: Stubs,
    code: u64,
    len: u64,
    cold: u64,
    sites: u64,
}

impl Names {
    fn address(&self, a: u64) -> Option<String> {
        let s = &self.stubs;
        let stubs = [
            (s.link, "link"),
            (s.bridge, "bridge"),
            (s.indirect, "indirect"),
            (s.jump, "jump"),
            (s.interp, "interp"),
            (s.stale, "stale"),
            (s.x87, "load_x87"),
            (s.load_vec, "load_vec"),
            (s.miss[0], "miss_read"),
            (s.miss[1], "miss_write"),
            (s.hot, "hot"),
            (s.look[0], "look_read"),
            (s.look[1], "look_write"),
            (s.stack[0][0], "stack_read"),
            (s.stack[0][1], "stack_write"),
            (s.stack[1][0], "kernel_stack_read"),
            (s.stack[1][1], "kernel_stack_write"),
        ];
        for (n, what) in ["read", "write"].into_iter().enumerate() {
            let checks = [
                (s.check[n], "check"),
                (s.check_stack[0][n], "check_stack"),
                (s.check_stack[1][n], "check_kernel_stack"),
            ];
            for (all, name) in checks {
                if let Some(size) = all.iter().position(|at| *at == a) {
                    return Some(format!("{name}_{what}{}", stubs::checked(size)));
                }
            }
        }
        if let Some((_, name)) = stubs.iter().find(|(at, _)| *at == a) {
            return Some((*name).to_owned());
        }
        if a.wrapping_sub(self.code) <= self.len {
            return Some(format!("L{:03x}", a - self.code));
        }
        if (self.cold..self.sites).contains(&a) {
            return Some(format!("C{:03x}", a - self.cold));
        }
        let site = a.checked_sub(self.sites)?;
        let (n, field) = (site / size_of::<Site>() as u64, site % size_of::<Site>() as u64);
        let field = match field {
            0 => "",
            8 => ".host",
            _ => return None,
        };
        (n < 1000).then(|| format!("site{n}{field}"))
    }

    fn field(disp: u64) -> Option<String> {
        let d = i32::try_from(disp).ok()?;
        let plain = [
            (0, "r9"),
            (8, "r10"),
            (16, "r11"),
            (off::FL, "fl"),
            (off::FL + 1, "fl+1"),
            (off::VPAGE, "vpage"),
            (off::GEN, "gen"),
            (off::TABLE, "table"),
            (off::STOP, "stop"),
            (off::STACK, "stack.read"),
            (off::STACK + 8, "stack.read.host"),
            (off::STACK + 16, "stack.write"),
            (off::STACK + 24, "stack.write.host"),
            (off::STACK + 32, "kernel_stack.read"),
            (off::STACK + 40, "kernel_stack.read.host"),
            (off::STACK + 48, "kernel_stack.write"),
            (off::STACK + 56, "kernel_stack.write.host"),
            (off::FS, "fs"),
            (off::GS, "gs"),
            (off::VEC, "vec"),
            (off::X87, "x87"),
            (off::TMP + 16, "tmp"),
            (off::INSTRET, "instret"),
            (off::REGS, "regs"),
            (off::BASE, "base"),
            (off::X87_OP, "x87_op"),
            (off::X87_PAGE, "x87_page"),
            (off::X87_OPERAND, "x87_operand"),
            (off::X87_NEXT, "x87_next"),
            (off::SYSFLAGS, "sysflags"),
            (off::GS_BASE, "gs_base"),
            (off::KERNEL_GS_BASE, "kernel_gs_base"),
            (off::CR2, "cr2"),
            (off::SEGMENTS, "segments"),
            (off::IRQ, "irq"),
            (off::JUMPS, "jumps.lin"),
            (off::JUMP_CODE, "jumps.code"),
            (off::JUMP_GEN, "jumps.gen"),
        ];
        plain.iter().find(|(at, _)| *at == d).map(|(_, name)| format!("ctx.{name}"))
    }
}

impl SymbolResolver for Names {
    fn symbol(
        &mut self,
        i: &Instruction,
        _operand: u32,
        at: Option<u32>,
        address: u64,
        _size: u32,
    ) -> Option<SymbolResult<'_>> {
        let name = match i.op_kind(at?) {
            OpKind::NearBranch64 => self.address(address),
            OpKind::Memory if i.memory_base() == Register::RSP => Names::field(address),
            OpKind::Memory if i.is_ip_rel_memory_operand() => self.address(address),
            _ => None,
        };
        Some(SymbolResult::with_string(address, name?))
    }
}

fn parse(text: &str) -> (String, Vec<Case>) {
    let mut parts = text.split("\n== ");
    let head = parts.next().unwrap_or_default().trim_end().to_owned();
    let cases = parts.map(|p| {
        let mut lines = p.lines();
        let mut line = || lines.next().unwrap_or_default().trim().to_owned();
        Case { name: line(), mode: line(), bytes: line() }
    });
    (head, cases.collect())
}

/// The host code at `base` in a store of one block, whose code starts at `block` of the area, with each place named after its `kind`.
fn disassemble(
    store: &Store,
    block: u32,
    (kind, base, host): (char, u64, &[u8]),
    named: &mut SpecializedFormatter<Labels>,
    out: &mut String,
) {
    let mut text = String::new();
    let mut d = Decoder::with_ip(64, host, base, DecoderOptions::NONE);
    // What is left at the end is there for the next block to begin where it should.
    while host[d.position()..].iter().any(|b| *b != 0) {
        let i = d.decode();
        text.clear();
        named.format(&i, &mut text);
        let at = i.ip() - base;
        let op = store.ops.iter().position(|o| kind == 'L' && u64::from(o.start - block) == at);
        let op = op.map_or(String::new(), |n| format!("op{n}"));
        let _infallible = writeln!(out, "{op:>4} {kind}{at:03x}  {text}");
        let to = i.near_branch_target();
        let stubs = &store.stubs;
        let told = stubs.look.contains(&to) || stubs.stack.iter().flatten().any(|s| *s == to);
        if i.mnemonic() == Mnemonic::Call && told {
            let Told { back, size, early, vec, x87 } = store.told(i.next_ip());
            let here = i.next_ip() - base;
            let to = i.next_ip() - u64::from(back) - store.area.exec() - u64::from(block);
            let _infallible = write!(out, "     {kind}{here:03x}  {size} bytes, on at L{to:03x}");
            for (what, yes) in [
                ("early read", early == Early::Read),
                ("early nothing", early == Early::Nothing),
                ("vec", vec),
                ("x87", x87),
            ] {
                out.push_str(&if yes { format!(", {what}") } else { String::new() });
            }
            out.push('\n');
            d.set_ip(i.next_ip() + Told::LEN as u64);
            d.set_position(here as usize + Told::LEN).unwrap();
        }
    }
}

/// A case with what the emitter makes of it.
fn translated(c: &Case) -> String {
    let word = |w: &str| c.mode.split(' ').any(|m| m == w);
    let wide = word("64");
    let user = word("user");
    let mut k = key::SSE | key::AVX | key::X87;
    if word("no-fpu") {
        k = 0;
    }
    k |= if wide { key::BITS64 } else { 0 }
        | if user { key::USER } else { key::RING0 }
        | if word("ac") { key::AC } else { 0 };
    let offset = c
        .mode
        .split(' ')
        .find_map(|m| m.strip_prefix('@'))
        .map_or(0x100, |o| u64::from_str_radix(o, 16).unwrap_or_else(|e| panic!("{}: {o}: {e}", c.name)));
    let bytes: Vec<u8> = c
        .bytes
        .split(' ')
        .map(|b| u8::from_str_radix(b, 16).unwrap_or_else(|e| panic!("{}: {b}: {e}", c.name)))
        .collect();
    let mut cpu = if wide { testing::long(Vendor::Intel) } else { testing::protected(Vendor::Intel) };
    let mut store = Store::new(256 << 10, true, false).unwrap();
    let gpa = PAGE + offset;
    let straddles = offset as usize + bytes.len() > 4096;
    let s = Source { gpa, bytes: &bytes, key: k, straddles };
    if word("scattered") {
        (gpa..gpa + bytes.len() as u64).for_each(|a| store.set_scattered(a));
    }
    store.dense = word("dense");
    if !word("cold") && !word("dense") {
        store.set_all_hot(gpa);
    }
    let mut insns = Vec::new();
    let len = emit::decode(&cpu, &mut store, &s, &mut insns) as usize;
    assert_eq!(len, bytes.len(), "{}: a block of the first bytes only", c.name);
    let second = straddles.then_some(Second { gpa: PAGE + 0x1000, version: 0, gen_site: NONE });
    let versions = Versions { first: 0, second };
    let n = emit::translate(&mut store, &mut cpu, &s, &insns, versions, word("count")).unwrap();

    let b = &store.blocks[n as usize];
    let code = store.code_of(n);
    let sites = store.area.sites() as u64;
    let code_len = (store.next_code() - code) as usize;
    let cold = store.area.half();
    let cold_code = store.area.exec() + cold as u64;
    let names = Names { stubs: store.stubs, code, len: code_len as u64, cold: cold_code, sites };
    let mut out = format!("{CASE}{}\n{}\n{}\n", c.name, c.mode, c.bytes);
    let mut plain = SpecializedFormatter::<Labels>::new();
    let mut text = String::new();
    for n in &insns {
        text.clear();
        plain.format(&n.i, &mut text);
        let _infallible = writeln!(out, "  {:03x}  {text}", n.i.ip());
    }
    let rest = store.area.code(cold, (store.next_cold() - cold_code) as usize);
    let mut named = SpecializedFormatter::<Labels>::try_with_options(Some(Box::new(names))).unwrap();
    let hot = store.area.code(b.code as usize, code_len);
    for (kind, base, host) in [('L', code, hot), ('C', cold_code, rest)] {
        disassemble(&store, b.code, (kind, base, &host), &mut named, &mut out);
    }
    let place = |at: u32| match (at as usize).checked_sub(cold) {
        Some(at) => format!("C{at:03x}"),
        None => format!("L{:03x}", at - b.code),
    };
    for (n, o) in store.ops.iter().enumerate() {
        let next = if o.gap == 0 { "-".to_owned() } else { place(o.next()) };
        let _infallible = write!(out, "  op{n}: guest {:03x}, next {next}", o.offset);
        for (what, v) in [("insns", i32::from(o.insns)), ("undo", i32::from(o.undo))] {
            if v != i32::from(what == "insns") {
                let _infallible = write!(out, ", {what} {v}");
            }
        }
        if o.derives() {
            out.push_str(", derives");
        }
        out.push('\n');
    }
    for (n, l) in store.links.iter().enumerate() {
        let _infallible = writeln!(
            out,
            "  link{n}: to {:x}, jump at {}, unlinked {}{}",
            i64::from(l.target),
            place(l.at),
            place(l.unlinked),
            if l.gen_site == NONE { String::new() } else { format!(", site{}", l.gen_site) }
        );
    }
    out
}

fn check(file: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file);
    let text = std::fs::read_to_string(&path).unwrap();
    let (head, cases) = parse(&text);
    assert!(!cases.is_empty(), "{file}");
    let mut new = head;
    new.push('\n');
    for c in &cases {
        new.push('\n');
        new.push_str(&translated(c));
    }
    if std::env::var_os(BLESS).is_some() {
        std::fs::write(&path, &new).unwrap();
        return;
    }
    let differs = text.lines().zip(new.lines()).enumerate().find(|(_, (a, b))| a != b);
    if let Some((n, (old, new))) = differs {
        panic!("{file}:{}: was `{old}`, is `{new}`; {BLESS}=1 writes it anew", n + 1);
    }
    assert_eq!(text.lines().count(), new.lines().count(), "{file}; {BLESS}=1 writes it anew");
}

macro_rules! files {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            check(concat!(stringify!($name), ".txt"));
        })*

        /// No file is left out.
        #[test]
        fn all_files_have_a_test() {
            let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
            let mut found: Vec<_> =
                std::fs::read_dir(dir).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
            found.sort();
            assert_eq!(found, [$(concat!(stringify!($name), ".txt")),*]);
        }
    };
}

files! { addressing dense flags groups jumps slow stack system units }
