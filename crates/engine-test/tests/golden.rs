//! Single instructions with their state before and after (tests/golden), on each engine. `RINGER_BLESS=1` writes the files anew, from the
//! interpreter.

use iced_x86::Mnemonic as M;
use ringer_engine_test::engines::engine;
use ringer_engine_test::r#gen::Pool;
use ringer_engine_test::golden::{self, Case};
use ringer_engine_test::helper::Helper;
use ringer_engine_test::side::Side;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn pool() -> Pool {
    Pool::new(Arc::new(ringer_engine_soft::host_model().unwrap()), 0)
}

/// Which file a mnemonic belongs to.
fn file(m: M, codes: &[iced_x86::Code]) -> &'static str {
    let name = format!("{m:?}");
    let vector = codes.iter().any(|c| format!("{c:?}").contains("mm"));
    match (name.starts_with('V') && vector, vector, name.starts_with('F')) {
        (true, ..) => "avx",
        (_, true, _) => "sse",
        (_, _, true) => "x87",
        _ => "integer",
    }
}

fn bless(pool: &Pool) {
    let e = engine("interpreter").unwrap();
    let mut side = Side::new(e.as_ref(), &pool.model, &pool.image).unwrap();
    let helper = Helper::new().unwrap();
    let mut files: BTreeMap<&str, String> = BTreeMap::new();
    for (m, bits, codes) in golden::forms_of(pool) {
        let text = files.entry(file(m, &codes)).or_default();
        for mut c in golden::cases(pool, m, bits, &codes) {
            if let Ok(out) = golden::run(&mut side, &helper, pool, &c) {
                c.output = out;
                *text += &golden::text(&c);
            }
        }
    }
    std::fs::create_dir_all(folder()).unwrap();
    let vendor = format!("# {:?}\n", pool.model.vendor());
    for (name, text) in files {
        std::fs::write(folder().join(format!("{name}.txt")), format!("{vendor}{text}")).unwrap();
    }
}

/// What differs between processors of different makers, or is absent from some.
fn comparable(pool: &Pool, vendor_same: bool, c: &Case) -> bool {
    use ringer_difftest::{forms, interp};
    let i = interp::decode_at(&c.bytes, 0, interp::decoder_options(&pool.model), c.bits);
    let rounded = format!("{:?}", i.mnemonic());
    let approximate = ["Rcp", "Vrcp", "Rsqrt", "Vrsqrt", "F2xm1", "Fsin", "Fcos", "Fptan", "Fpatan", "Fyl2x"];
    forms::reach(i.code(), &pool.model, c.bits) == forms::Reach::Both
        && (vendor_same || !approximate.iter().any(|a| rounded.starts_with(a)))
}

fn check(name: &str) {
    let pool = pool();
    let e = engine(name).unwrap();
    let mut side = Side::new(e.as_ref(), &pool.model, &pool.image).unwrap();
    let helper = Helper::new().unwrap();
    let (mut ran, mut wrong) = (0, Vec::new());
    for f in std::fs::read_dir(folder()).unwrap() {
        let text = std::fs::read_to_string(f.unwrap().path()).unwrap();
        let same = text.starts_with(&format!("# {:?}", pool.model.vendor()));
        for c in golden::parse(&text).unwrap() {
            if !comparable(&pool, same, &c) {
                continue;
            }
            ran += 1;
            let out = golden::run(&mut side, &helper, &pool, &c).map_err(|e| e.to_string());
            // Undefined flags are the host's: those of another maker's processor are other ones.
            let right = if same {
                out.as_ref() == Ok(&c.output)
            } else {
                let common = |o: &[String]| golden::common(&pool, &c, o).unwrap();
                out.as_ref().is_ok_and(|o| common(o) == common(&c.output))
            };
            if !right {
                wrong.push(format!("{}\n  got {out:?}", golden::text(&c)));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {ran} differ under {name}:\n{}",
        wrong.len(),
        wrong[..wrong.len().min(5)].join("\n")
    );
    assert!(ran > 500, "only {ran} cases are for this host's model");
}

#[test]
fn every_mnemonic_on_every_engine() {
    if std::env::var_os("RINGER_BLESS").is_some() {
        bless(&pool());
    }
    check("interpreter");
    check("translator");
}

#[test]
fn another_makers_processor_may_leave_what_is_undefined() {
    let pool = pool();
    let common = |text: &str, output: &[&str]| {
        let case = &golden::parse(text).unwrap()[0];
        let output: Vec<_> = output.iter().map(|&l| l.to_owned()).collect();
        golden::common(&pool, case, &output).unwrap()
    };
    // SHR r13, 1 leaves AF undefined, and nothing else.
    let shift = "== shr r13,1\ncode 64 49d1ed\nin r13=1001 rflags=6\n";
    let zen = common(shift, &["out r13=800 rip=11000105 rflags=17"]);
    assert_eq!(zen, ["out r13=800 rip=11000105 rflags=7"]);
    assert_eq!(common(shift, &["out r13=800 rip=11000105 rflags=7"]), zen);
    assert_eq!(common(shift, &["out r13=800 rip=11000105"]), ["out r13=800 rip=11000105 rflags=6"]);
    // By more than one, OF too.
    let more = "== shr r13,3\ncode 64 49c1ed03\nin r13=1001 rflags=2\n";
    assert_eq!(common(more, &["out rflags=812"]), ["out rflags=2"]);
    let save = "== fxsave [rbx+10h]\ncode 64 0fae4310\nin rbx=601040 rflags=2\n";
    let now = |mask| format!("now 601051={}{mask}cdef", "ab".repeat(27));
    let saved = now("________");
    assert_eq!(common(save, &["out rip=11000106", &now("ffff0200")])[1], saved);
    assert_eq!(common(save, &["out rip=11000106", &now("ffff0000")])[1], saved);
}

#[test]
fn cases_can_be_read_and_written() {
    let text = "== add eax,[rbx+10h]\ncode 64 034310\nin rbx=601040 rflags=2\nmem 601040=0102\nout rax=c\n";
    let cases = golden::parse(text).unwrap();
    assert_eq!(cases.len(), 1);
    assert_eq!(golden::text(&cases[0]), text);
    assert!(golden::parse("code 64 90").is_err());
}
