//! What is kept when there is no room for more code.
//!
//! A program that goes round in more code than there is room for finds none of it when it comes back, if all is dropped each time
//! that the room is used up. If what was translated last is dropped instead, it finds all the rest. So that is done as long
//! as the rest is of use: as long as new code leads to old code. Where it is not, another program runs by now, and all goes. So it
//! does the first time: what is there then is the guest's start, most of which is over.

use super::{NONE, SOON, Store};
use std::mem;
use std::time::Instant;

/// Blocks from one mark to the next.
const EVERY: usize = 1024;
/// Of so many parts, all but one are kept.
const PARTS: usize = 4;
/// Of so many new blocks, one must have led to an old one.
const OF_USE: usize = 8;

/// What there was before a block was translated.
#[derive(Clone, Copy, Debug)]
struct Mark {
    used: [usize; 2],
    sites: u32,
    blocks: usize,
    ops: usize,
    links: usize,
    guest: usize,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Keep {
    marks: Vec<Mark>,
    /// Blocks that were kept the last time.
    old: usize,
    /// Links of other blocks that were found to lead to those.
    found: usize,
}

impl Store {
    /// A block is about to be translated.
    pub fn mark(&mut self) {
        if self.keep.marks.len() * EVERY <= self.blocks.len() {
            self.keep.marks.push(Mark {
                used: self.used,
                sites: self.sites_used,
                blocks: self.blocks.len(),
                ops: self.ops.len(),
                links: self.links.len(),
                guest: self.guest.len(),
            });
        }
    }

    /// Link `l` was found to lead to `block`, which was there.
    pub fn note_found(&mut self, l: u32, block: u32) {
        let from = self.links.get(l as usize).map_or(0, |l| l.block as usize);
        self.keep.found += usize::from(from >= self.keep.old && (block as usize) < self.keep.old);
    }

    /// Makes room for one block more and some: drops what was translated last, or everything. The processor's jump cache and its sites' log must be dropped with
    /// it.
    pub fn make_room(&mut self) {
        let now = Instant::now();
        self.dense = now.duration_since(self.filled) < SOON;
        self.filled = now;
        let most = self.blocks.len() / PARTS * (PARTS - 1);
        let mark = self.keep.marks.iter().rposition(|m| m.blocks <= most);
        match mark {
            Some(n) if self.is_of_use() => self.roll_back(n),
            _ => self.clear(),
        }
    }

    fn is_of_use(&self) -> bool {
        let new = self.blocks.len() - self.keep.old;
        let led_to = self.keep.old == 0 || self.keep.found * OF_USE >= new;
        // Of a program that is gone, or that writes code, much is dropped already.
        let alive = self.by_place.count() * 4 >= self.blocks.len() * 3;
        self.clearings > 0 && led_to && alive
    }

    fn roll_back(&mut self, mark: usize) {
        let m = self.keep.marks[mark];
        self.keep.marks.truncate(mark);
        (self.keep.old, self.keep.found) = (m.blocks, 0);
        for n in m.blocks..self.blocks.len() {
            self.drop_block(n as u32);
        }
        // Nothing leads to what was dropped any more; now to what leads from there to what stays.
        for b in &mut self.blocks[..m.blocks] {
            let mut l = mem::replace(&mut b.incoming, NONE);
            let mut last = NONE;
            while l != NONE {
                let next = mem::replace(&mut self.links[l as usize].next, NONE);
                if (l as usize) < m.links {
                    match self.links.get_mut(last as usize) {
                        Some(last) => last.next = l,
                        None => b.incoming = l,
                    }
                    last = l;
                }
                l = next;
            }
        }
        self.blocks.truncate(m.blocks);
        self.ops.truncate(m.ops);
        self.links.truncate(m.links);
        self.guest.truncate(m.guest);
        self.site_op.truncate(m.sites as usize);
        (self.used, self.sites_used) = (m.used, m.sites);
        let stays = |n: &u32| (*n as usize) < m.blocks;
        self.pages.retain(|_, p| {
            p.blocks.retain(stays);
            !p.blocks.is_empty()
        });
        self.page_places = self.pages.values().map(|p| p.blocks.len()).sum();
        self.seconds.retain(|n, _| stays(n));
        self.index.truncate(self.index.partition_point(stays));
        // They are named by ops.
        self.decoded = Vec::new();
        self.decoded_ops.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{LIMIT, add};
    use super::super::{Second, place};
    use super::*;

    /// Fills the store, with links from each block to the one before it, to one far before, and from that to this.
    fn fill(s: &mut Store) {
        let mut n = s.blocks.len() as u32;
        while s.has_room() {
            s.mark();
            let b = add(s, 0x1000 + u64::from(n) * 256, 150, 20);
            assert_eq!(b, n);
            s.link(n, n.saturating_sub(1), 1);
            if n > 100 {
                s.link(n, n / 3, 1);
                s.link(n / 3, n, 1);
            }
            n += 1;
            assert!(s.in_memory(false) <= LIMIT);
        }
    }

    /// What must hold of links and blocks, whatever was dropped.
    fn check(s: &Store) {
        let mut led = 0;
        for (n, b) in s.blocks.iter().enumerate() {
            let mut l = b.incoming;
            while l != NONE {
                assert_eq!(s.links[l as usize].to, n as u32);
                (l, led) = (s.links[l as usize].next, led + 1);
            }
            let found = s.by_place.get(place(b.gpa, b.key));
            assert_eq!(found, b.alive.then_some(n as u32));
            assert_eq!(s.op_at(s.code_of(n as u32) + 1), Some(b.first_op));
        }
        assert_eq!(led, s.links.iter().filter(|l| l.to != NONE).count());
        assert_eq!(s.page_places, s.blocks.len());
    }

    #[test]
    fn what_was_translated_last_goes_first_as_long_as_the_rest_is_of_use() {
        let mut s = Store::new(LIMIT, true, false).unwrap();
        fill(&mut s);
        s.make_room();
        assert!(s.blocks.is_empty() && s.clearings == 1 && s.dense, "the first time all goes");
        for round in 0..4 {
            fill(&mut s);
            check(&s);
            let full = s.blocks.len();
            // As if one in four new blocks had led to an old one.
            for n in (s.keep.old as u32..full as u32).step_by(4) {
                s.note_found(n, 0);
            }
            s.make_room();
            let kept = s.blocks.len();
            assert!((full / 2..full * 3 / 4 + 1).contains(&kept), "{round}: {kept} of {full}");
            assert_eq!((s.ops.len(), s.links.len(), s.guest.len()), (kept, kept, 20 * kept));
            check(&s);
            assert!(s.has_room());
        }
        fill(&mut s);
        s.make_room();
        assert!(s.blocks.is_empty() && s.clearings == 2, "nothing led to what was kept");
        fill(&mut s);
        for n in 0..s.blocks.len() as u32 / 2 {
            s.drop_block(n);
        }
        s.make_room();
        assert!(s.blocks.is_empty(), "half of it was dropped");
    }

    #[test]
    fn blocks_in_two_pages_go_too() {
        let mut s = Store::new(LIMIT, true, false).unwrap();
        fill(&mut s);
        s.make_room();
        fill(&mut s);
        let second = Second { gpa: 0x10_0000, version: 0, gen_site: NONE };
        let last = s.blocks.len() as u32 - 1;
        s.seconds.insert(last, second);
        s.seconds.insert(1, second);
        s.make_room();
        assert!(s.seconds.contains_key(&1) && !s.seconds.contains_key(&last));
    }
}
