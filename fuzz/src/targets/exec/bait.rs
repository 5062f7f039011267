//! [`Bait`]: memory of the process whose addresses the guest knows, to see that it neither reads nor writes it.

use super::{Plan, Shape};
use ringer_arch::VcpuState;

/// Quadwords on each side of the one that addresses aim at.
const ROOM: usize = 8192;
/// What they all hold: not what random code comes upon by itself.
const SECRET: u64 = 0x5ec2_e75e_c2e7_9b1d;

/// See the module.
pub(super) struct Bait(Vec<u64>);

impl Bait {
    pub fn new() -> Bait {
        Bait(vec![SECRET; 2 * ROOM])
    }

    /// Puts addresses of it into a few of the guest's registers. To the guest they are addresses like any others: what page tables make of
    /// them is guest RAM, or nothing.
    pub fn lay(&self, s: &mut VcpuState, plan: &Plan) {
        let mut rng = plan.rng.clone();
        if plan.shape != Shape::Long || !rng.one_in(2) {
            return;
        }
        let middle = std::ptr::from_ref(&self.0[ROOM]) as u64;
        for _ in 0..1 + rng.below(4) {
            let n = rng.index(16);
            if n != 4 {
                s.gpr[n] = middle + rng.below(0x100);
            }
        }
    }

    /// The guest has not got at it.
    pub fn check(&self, s: &VcpuState) {
        assert!(self.0.iter().all(|q| *q == SECRET), "the guest has written to the process's memory");
        assert!(!s.gpr.contains(&SECRET), "the guest has read the process's memory\n{s:x?}");
        let vectors = s.xsave.chunks_exact(8).any(|q| q == SECRET.to_le_bytes());
        assert!(!vectors, "the guest has read the process's memory\n{s:x?}");
    }
}
