//! One worker: generates batches, runs them in the interpreter while its child runs the batch before, compares.

use crate::compare;
use crate::generate::{self, Case, Source};
use crate::interp::{Interp, Ran};
use crate::layout::{BATCH, CODE, CODE_LEN, DATA_LEN, LANDING, PAGE, SLOT, USER_CODE, WAY_OUT};
use crate::native::{Died, EXIT_POINTER, Native};
use crate::record::{Output, XSAVE_LEN};
use crate::rng::Rng;
use crate::values;
use crate::{Mismatch, Plan, Tally};

/// Vector states made anew for each batch.
const POOL: usize = 256;

/// A batch on its way.
struct Batch {
    number: u64,
    cases: Vec<Case>,
    expected: Vec<Output>,
    window: Vec<u8>,
}

/// A worker's processors and buffers.
pub struct Worker<'a> {
    plan: &'a Plan,
    native: Native,
    interp: Interp,
    pool: Vec<[u8; XSAVE_LEN]>,
    mxcsr_mask: u32,
    slots: Vec<u8>,
}

impl<'a> Worker<'a> {
    /// Starts a child and a processor.
    ///
    /// # Errors
    /// What they need is not there.
    pub fn new(plan: &'a Plan) -> anyhow::Result<Worker<'a>> {
        let native = Native::spawn()?;
        let interp = Interp::new(&plan.model, native.selectors())?;
        Ok(Worker {
            plan,
            native,
            interp,
            pool: vec![[0; XSAVE_LEN]; POOL],
            mxcsr_mask: Interp::mxcsr_mask(&plan.model),
            slots: vec![0; CODE_LEN as usize],
        })
    }

    /// Runs the batches whose numbers `next` gives out, until it gives none.
    ///
    /// # Errors
    /// The child cannot be started again.
    pub fn run(&mut self, mut next: impl FnMut() -> Option<u64>, tally: &mut Tally) -> anyhow::Result<()> {
        let mut flying: Option<(Batch, usize)> = None;
        let mut which = 0;
        loop {
            let made = match next() {
                Some(n) => Some((self.prepare(n, which, tally)?, which)),
                None => None,
            };
            if let Some((batch, w)) = flying.take() {
                self.finish(&batch, w, tally)?;
            }
            let Some((batch, w)) = made else { return Ok(()) };
            self.native.start(w)?;
            flying = Some((batch, w));
            which ^= 1;
        }
    }

    /// Generates a batch and runs it in the interpreter.
    fn prepare(&mut self, number: u64, which: usize, tally: &mut Tally) -> anyhow::Result<Batch> {
        let mut r = Rng::new(self.plan.seed, number);
        for x in &mut self.pool {
            values::vector_state(&mut r, x, self.mxcsr_mask);
        }
        let mut window = vec![0; DATA_LEN as usize];
        values::memory(&mut r, &mut window);
        self.native.before(which).copy_from_slice(&window);
        self.interp.set_data(&window);
        self.interp.select_code(which)?;
        let mode = &self.plan.modes[usize::from(number % 4 == 3 && self.plan.modes.len() > 1)];
        let source = Source {
            forms: &mode.forms,
            absent: &mode.absent,
            reach: &mode.reach,
            bits: mode.bits,
            options: self.plan.options,
            pool: &self.pool,
            raw: self.plan.raw,
        };
        self.slots.fill(0xcc);
        let mut cases = Vec::with_capacity(BATCH);
        for i in 0..BATCH {
            let case = generate::case(
                &mut r,
                &source,
                which,
                i,
                &mut self.native.input(which)[i],
                &mut tally.avoided,
            );
            slot(&case, which, mode.bits, &mut self.slots[i * SLOT as usize..][..SLOT as usize]);
            cases.push(case);
        }
        let out = WAY_OUT as usize;
        self.slots[out..out + 3].copy_from_slice(&[0xff, 0x24, 0x25]);
        self.slots[out + 3..out + 7].copy_from_slice(&EXIT_POINTER.to_le_bytes());
        self.native.code(which).copy_from_slice(&self.slots);
        for (at, page) in self.slots.chunks(PAGE as usize).enumerate() {
            self.interp.set_code(which, at as u64 * PAGE, page);
        }
        debug_assert_eq!(self.slots.len() as u64, LANDING + PAGE);
        let mut expected = vec![Output::default(); BATCH];
        for (i, case) in cases.iter().enumerate() {
            self.expect(which, i, number, case, &mut expected[i], tally);
        }
        self.interp.data(0, &mut window);
        Ok(Batch { number, cases, expected, window })
    }

    /// Runs one case in the interpreter.
    fn expect(
        &mut self,
        which: usize,
        i: usize,
        number: u64,
        case: &Case,
        o: &mut Output,
        tally: &mut Tally,
    ) {
        let input = &mut self.native.input(which)[i];
        for p in input.patch.iter().filter(|p| p.len != 0) {
            self.interp.patch(u64::from(p.off), &p.data[..p.len as usize]);
        }
        log(&self.interp, input, &mut o.log);
        let before = o.log;
        let code = &self.slots[i * SLOT as usize..][..SLOT as usize];
        let ran = self.interp.run(input, code, case, o);
        if case.absent {
            tally.absent += 1;
            if (o.signal, o.vector) != (1, 6) {
                let what = vec![format!(
                    "not in the model, but the interpreter did not raise #UD: vector {}",
                    o.vector
                )];
                tally.mismatch(Mismatch::new(number, i, case, what, compare::describe(input)));
            }
        } else if ran == Ran::Compare {
            input.run = 1;
            log(&self.interp, input, &mut o.log);
            return;
        } else {
            tally.skipped += 1;
        }
        // The child does not run it: its effects must not last.
        let mut at = 0;
        for s in &input.log {
            self.interp.patch(u64::from(s.off), &before[at..at + s.len as usize]);
            at += s.len as usize;
        }
    }

    /// Waits for a batch's native run, and compares.
    fn finish(&mut self, batch: &Batch, which: usize, tally: &mut Tally) -> anyhow::Result<()> {
        if let Err(died) = self.native.wait() {
            return self.replace_child(batch, which, died, tally);
        }
        for (i, case) in batch.cases.iter().enumerate() {
            if self.native.input_ref(which, i).run == 1 {
                tally.count(case, &self.native.output(which)[i]);
            }
        }
        let mut found = self.difference(batch, which);
        // An interrupt between an instruction and the saving of its state shows in what is not kept over it (null selectors,
        // x87 pointers). What is wrong is so the second time, too.
        for _ in 0..3 {
            let Some(i) = found else { break };
            self.native.start(which)?;
            if let Err(died) = self.native.wait() {
                return self.replace_child(batch, which, died, tally);
            }
            found = self.difference(batch, which);
            if found == Some(i) {
                break;
            }
            tally.disturbed += 1;
        }
        if let Some(i) = found {
            // Memory may differ from here on: the rest of the batch would tell of that again and again.
            let (case, e) = (&batch.cases[i], &batch.expected[i]);
            let (input, n) = (self.native.input_ref(which, i), &self.native.output(which)[i]);
            let what = compare::differences(case, input, e, n);
            tally.mismatch(Mismatch::new(batch.number, i, case, what, compare::describe(input)));
            return Ok(());
        }
        let after = self.native.after(which);
        if let Some(off) = (0..DATA_LEN as usize).find(|o| after[*o] != batch.window[*o]) {
            tally.stray.push((batch.number, off as u64));
        }
        Ok(())
    }

    /// The first case of a batch that differs.
    fn difference(&self, batch: &Batch, which: usize) -> Option<usize> {
        batch.cases.iter().enumerate().position(|(i, case)| {
            let input = self.native.input_ref(which, i);
            input.run == 1 && !compare::same(case, input, &batch.expected[i], &self.native.output(which)[i])
        })
    }

    /// Notes that the child is gone, and starts another.
    fn replace_child(
        &mut self,
        batch: &Batch,
        which: usize,
        died: Died,
        tally: &mut Tally,
    ) -> anyhow::Result<()> {
        let case = &batch.cases[died.case];
        let how = if died.signal == 0 { "hung" } else { "died" };
        let what = vec![format!("the child {how} (signal {}) at this case", died.signal)];
        let shown = compare::describe(self.native.input_ref(which, died.case));
        tally.mismatch(Mismatch::new(batch.number, died.case, case, what, shown));
        // The next batch has been prepared for the old child's memory.
        let mut fresh = Native::spawn()?;
        fresh.copy_prepared(&mut self.native, which ^ 1);
        self.native = fresh;
        Ok(())
    }
}

/// Fills a slot: the instruction, the jump out, INT3.
fn slot(case: &Case, which: usize, bits: u32, to: &mut [u8]) {
    let len = case.bytes.len;
    to[..len].copy_from_slice(&case.bytes.b[..len]);
    let mut len = len;
    if let Some((condition, at)) = case.branch {
        to[len] = 0x70 | condition;
        to[len + 1] = at - (len as u8 + 2);
        len += 2;
    }
    if bits == 32 && !case.insn.is_invalid() {
        let out = (CODE[which] + WAY_OUT) as u32;
        to[len] = 0xea;
        to[len + 1..len + 5].copy_from_slice(&out.to_le_bytes());
        to[len + 5..len + 7].copy_from_slice(&USER_CODE.to_le_bytes());
    } else if !case.insn.is_invalid() {
        to[len..len + 3].copy_from_slice(&[0xff, 0x24, 0x25]);
        to[len + 3..len + 7].copy_from_slice(&EXIT_POINTER.to_le_bytes());
    }
}

fn log(interp: &Interp, input: &crate::record::Input, to: &mut [u8]) {
    let mut at = 0;
    for s in &input.log {
        let len = (s.len as usize).min(to.len() - at);
        interp.data(u64::from(s.off), &mut to[at..at + len]);
        at += len;
    }
}
