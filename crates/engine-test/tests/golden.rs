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
            if out.as_ref() != Ok(&c.output) {
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
fn cases_can_be_read_and_written() {
    let text = "== add eax,[rbx+10h]\ncode 64 034310\nin rbx=601040 rflags=2\nmem 601040=0102\nout rax=c\n";
    let cases = golden::parse(text).unwrap();
    assert_eq!(cases.len(), 1);
    assert_eq!(golden::text(&cases[0]), text);
    assert!(golden::parse("code 64 90").is_err());
}
