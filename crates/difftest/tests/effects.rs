//! What a case may do to memory is in its log: only there is it compared, and undone if the case turns out to be none for the
//! child.

use ringer_difftest::forms::{self, Reach};
use ringer_difftest::generate::{Source, case};
use ringer_difftest::interp::{Interp, decoder_options};
use ringer_difftest::layout::{BATCH, DATA_LEN, SLOT};
use ringer_difftest::record::{Input, Output, XSAVE_LEN};
use ringer_difftest::rng::Rng;
use ringer_difftest::values;
use std::collections::BTreeMap;

/// ES CS SS DS FS GS, as Linux has them.
const SELECTORS: [u16; 6] = [0, 0x33, 0x2b, 0, 0, 0];
const BATCHES: u64 = 24;

#[test]
fn nothing_is_written_beside_the_log() {
    let model = ringer_engine_soft::host_model().map(std::sync::Arc::new).unwrap();
    let mut interp = Interp::new(&model, SELECTORS).unwrap();
    interp.select_code(0).unwrap();
    for number in 0..BATCHES {
        let bits = if number % 4 == 3 { 32 } else { 64 };
        let mut r = Rng::new(0xb17, number);
        let mut vectors = vec![[0; XSAVE_LEN]; 16];
        for v in &mut vectors {
            values::vector_state(&mut r, v, Interp::mxcsr_mask(&model));
        }
        let reached = |(code, reach)| (reach == Reach::Both).then_some(code);
        let forms: Vec<_> = forms::all(&model, bits).into_iter().filter_map(reached).collect();
        let reach: Vec<_> = iced_x86::Code::values().map(|c| forms::reach(c, &model, bits)).collect();
        let source = Source {
            forms: &forms,
            absent: &[],
            reach: &reach,
            options: decoder_options(&model),
            bits,
            pool: &vectors,
            raw: 20,
        };
        let mut before = vec![0; DATA_LEN as usize];
        values::memory(&mut r, &mut before);
        interp.set_data(&before);
        let mut after = before.clone();
        for i in 0..BATCH {
            let (mut input, mut output) = (Input::default(), Output::default());
            let case = case(&mut r, &source, 0, i, &mut input, &mut BTreeMap::new());
            let mut slot = [0xcc; SLOT as usize];
            slot[..case.bytes.len].copy_from_slice(&case.bytes.b[..case.bytes.len]);
            if let Some((condition, at)) = case.branch {
                slot[case.bytes.len] = 0x70 | condition;
                slot[case.bytes.len + 1] = at - (case.bytes.len as u8 + 2);
            }
            interp.set_code(0, i as u64 * SLOT, &slot);
            for p in input.patch.iter().filter(|p| p.len != 0) {
                interp.patch(u64::from(p.off), &p.data[..p.len as usize]);
            }
            interp.data(0, &mut before);
            let _how = interp.run(&input, &slot, &case, &mut output);
            interp.data(0, &mut after);
            let logged = |at: usize| {
                input.log.iter().any(|s| (s.off as usize..(s.off + s.len) as usize).contains(&at))
            };
            let stray = (0..before.len()).find(|at| before[*at] != after[*at] && !logged(*at));
            let bytes = &case.bytes.b[..case.bytes.len];
            assert_eq!(stray, None, "{bytes:02x?} ({:?}) in {:x?}", case.insn.code(), input.gpr);
        }
    }
}
