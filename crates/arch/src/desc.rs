//! Layouts of system descriptors, gates and task-state segments (Intel SDM vol. 3A §3.5, §5.8.3, §6.11, §6.14.1,
//! §7.2). Code and data descriptors: [`Segment::from_descriptor`](crate::Segment::from_descriptor).

use crate::seg::{Attr, Segment};

/// Types of system descriptors (Intel SDM vol. 3A table 3-2); the 32-bit ones are the 64-bit ones in long mode.
#[allow(missing_docs)]
pub mod system {
    pub const TSS16: u8 = 1;
    pub const LDT: u8 = 2;
    pub const TSS16_BUSY: u8 = 3;
    pub const CALL16: u8 = 4;
    pub const TASK_GATE: u8 = 5;
    pub const INT16: u8 = 6;
    pub const TRAP16: u8 = 7;
    pub const TSS32: u8 = 9;
    pub const TSS32_BUSY: u8 = 11;
    pub const CALL32: u8 = 12;
    pub const INT32: u8 = 14;
    pub const TRAP32: u8 = 15;
}

impl Segment {
    /// What a 16-byte system descriptor of long mode says: LDT or TSS with a 64-bit base.
    #[must_use]
    pub fn from_system_descriptor(selector: u16, low: u64, high: u64) -> Segment {
        let mut s = Segment::from_descriptor(selector, low);
        s.base |= high << 32;
        s
    }

    /// The 8-byte descriptor that says this; base bits 63:32 stay out, the limit is rounded down to what can be told.
    #[must_use]
    pub fn to_descriptor(&self) -> u64 {
        let attr = u64::from(self.attr.0 & 0xf0ff);
        let limit = u64::from(if self.attr.granular() { self.limit >> 12 } else { self.limit });
        (limit & 0xffff)
            | (self.base & 0xff_ffff) << 16
            | attr << 40
            | (limit >> 16 & 0xf) << 48
            | (self.base >> 24 & 0xff) << 56
    }
}

/// What a gate is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum GateKind {
    Call,
    /// Clears RFLAGS.IF.
    Interrupt,
    Trap,
    /// Its selector is a TSS's; it has no offset.
    Task,
}

/// A gate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gate {
    /// What it is for.
    pub kind: GateKind,
    /// Size in bytes of what it pushes and of its offset: 2, 4 or 8; 0 for task gates.
    pub size: u8,
    /// Target selector.
    pub selector: u16,
    /// Target offset.
    pub offset: u64,
    /// Descriptor privilege level.
    pub dpl: u8,
    /// Present.
    pub present: bool,
    /// Call gates: how many parameters (of `size` bytes) are copied, 0 to 31; 0 in long mode.
    pub params: u8,
    /// Interrupt and trap gates of long mode: the stack from the TSS's table, 1 to 7; 0 for none.
    pub ist: u8,
}

impl Gate {
    /// The gate of a descriptor; `high` is the second half in long mode. `None`: it is none that the mode has.
    #[must_use]
    pub fn decode(low: u64, high: Option<u64>) -> Option<Gate> {
        let attr = Attr((low >> 40) as u32 & 0xf0ff);
        if attr.is_code_or_data() {
            return None;
        }
        let (kind, size) = match attr.typ() {
            system::CALL16 => (GateKind::Call, 2),
            system::INT16 => (GateKind::Interrupt, 2),
            system::TRAP16 => (GateKind::Trap, 2),
            system::TASK_GATE => (GateKind::Task, 0),
            system::CALL32 => (GateKind::Call, 4),
            system::INT32 => (GateKind::Interrupt, 4),
            system::TRAP32 => (GateKind::Trap, 4),
            _ => return None,
        };
        let size = match (high, size) {
            (Some(_), 4) => 8,
            (Some(_), _) => return None,
            (None, s) => s,
        };
        let offset = match size {
            0 => 0,
            2 => low & 0xffff,
            _ => (low & 0xffff) | (low >> 32 & 0xffff_0000) | high.unwrap_or(0) << 32,
        };
        let call = kind == GateKind::Call;
        Some(Gate {
            kind,
            size,
            selector: (low >> 16) as u16,
            offset,
            dpl: attr.dpl(),
            present: attr.present(),
            params: if call && size < 8 { (low >> 32 & 0x1f) as u8 } else { 0 },
            ist: if !call && size == 8 { (low >> 32 & 7) as u8 } else { 0 },
        })
    }

    /// Both halves of the descriptor; the second one counts in long mode alone.
    #[must_use]
    pub fn encode(&self) -> (u64, u64) {
        let narrow = match self.kind {
            GateKind::Call => system::CALL16,
            GateKind::Interrupt => system::INT16,
            GateKind::Trap => system::TRAP16,
            GateKind::Task => system::TASK_GATE,
        };
        let typ = u64::from(if self.size >= 4 { narrow | 8 } else { narrow });
        let low = (self.offset & 0xffff)
            | u64::from(self.selector) << 16
            | u64::from(self.params & 0x1f | self.ist & 7) << 32
            | (typ | u64::from(self.dpl & 3) << 5 | u64::from(self.present) << 7) << 40
            | (self.offset >> 16 & 0xffff) << 48;
        (low, self.offset >> 32)
    }
}

/// Format of a task-state segment outside long mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Tss {
    Bits16,
    Bits32,
}

impl Tss {
    /// The format of a system-descriptor type, and whether it is busy; `None` if it is no TSS.
    #[must_use]
    pub fn of_type(typ: u8) -> Option<(Tss, bool)> {
        match typ {
            system::TSS16 => Some((Tss::Bits16, false)),
            system::TSS16_BUSY => Some((Tss::Bits16, true)),
            system::TSS32 => Some((Tss::Bits32, false)),
            system::TSS32_BUSY => Some((Tss::Bits32, true)),
            _ => None,
        }
    }
    /// Bytes that a task switch reads; the limit must be at least one less.
    #[must_use]
    pub fn size(self) -> usize {
        match self {
            Tss::Bits16 => 44,
            Tss::Bits32 => 104,
        }
    }
    /// Offsets of the stack pointer and the SS selector for a switch to `ring`, 0 to 2.
    #[must_use]
    pub fn stack(self, ring: u8) -> (u16, u16) {
        let ring = u16::from(ring.min(2));
        match self {
            Tss::Bits16 => (2 + 4 * ring, 4 + 4 * ring),
            Tss::Bits32 => (4 + 8 * ring, 8 + 8 * ring),
        }
    }
    /// Offset, in the format's words, of the first register: (IP, first general register, ES, LDT).
    fn offsets(self) -> (usize, usize, usize, usize) {
        match self {
            Tss::Bits16 => (14, 18, 34, 42),
            Tss::Bits32 => (32, 40, 72, 96),
        }
    }
}

/// Offset of the previous task's selector in a TSS.
pub const TSS_LINK: u16 = 0;
/// Offset of the I/O permission bitmap's offset in a 32-bit or 64-bit TSS.
pub const TSS_IO_MAP: u16 = 102;
/// Offset of RSP for `ring`, 0 to 2, in a 64-bit TSS.
#[must_use]
pub fn tss64_rsp(ring: u8) -> u16 {
    4 + 8 * u16::from(ring.min(2))
}
/// Offset of interrupt stack `ist`, 1 to 7, in a 64-bit TSS.
#[must_use]
pub fn tss64_ist(ist: u8) -> u16 {
    28 + 8 * u16::from(ist.clamp(1, 7))
}

/// What a task switch loads from a TSS, and saves to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TaskState {
    /// Static: selector of the task to return to.
    pub link: u16,
    /// Static: CR3; 0 in a 16-bit TSS.
    pub cr3: u32,
    /// EIP.
    pub ip: u32,
    /// EFLAGS.
    pub flags: u32,
    /// EAX ECX EDX EBX ESP EBP ESI EDI.
    pub gpr: [u32; 8],
    /// ES CS SS DS FS GS; FS and GS are null from a 16-bit TSS.
    pub seg: [u16; 6],
    /// Static: LDT selector.
    pub ldt: u16,
    /// Static: #DB when the task is switched to.
    pub trap: bool,
}

impl TaskState {
    /// What a TSS holds. Of a 16-bit one only the first 44 bytes count.
    #[must_use]
    pub fn read(format: Tss, b: &[u8; 104]) -> TaskState {
        let w16 = |at: usize| u16::from_le_bytes([b[at], b[at + 1]]);
        let w32 = |at: usize| u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
        let (ip, gpr, es, ldt) = format.offsets();
        let mut t = TaskState { link: w16(0), ldt: w16(ldt), ..TaskState::default() };
        match format {
            Tss::Bits16 => {
                t.ip = w16(ip).into();
                t.flags = w16(ip + 2).into();
                t.gpr = std::array::from_fn(|i| w16(gpr + 2 * i).into());
                t.seg = std::array::from_fn(|i| if i < 4 { w16(es + 2 * i) } else { 0 });
            }
            Tss::Bits32 => {
                t.cr3 = w32(28);
                t.ip = w32(ip);
                t.flags = w32(ip + 4);
                t.gpr = std::array::from_fn(|i| w32(gpr + 4 * i));
                t.seg = std::array::from_fn(|i| w16(es + 4 * i));
                t.trap = b[100] & 1 != 0;
            }
        }
        t
    }

    /// Saves what a task switch saves: EIP, EFLAGS, general and segment registers. The static fields stay as they are.
    pub fn save(&self, format: Tss, b: &mut [u8; 104]) {
        let (ip, gpr, es, _) = format.offsets();
        let mut put =
            |at: usize, v: u32, len: usize| b[at..at + len].copy_from_slice(&v.to_le_bytes()[..len]);
        let (size, segs) = match format {
            Tss::Bits16 => (2, 4),
            Tss::Bits32 => (4, 6),
        };
        put(ip, self.ip, size);
        put(ip + size, self.flags, size);
        for (i, v) in self.gpr.iter().enumerate() {
            put(gpr + size * i, *v, size);
        }
        for (i, v) in self.seg.iter().enumerate().take(segs) {
            put(es + size * i, u32::from(*v), 2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_go_there_and_back() {
        for d in [0x00cf_9b00_0000_ffff, 0x00af_9b00_0000_ffff, 0x1240_9756_789a_bcde, 0x0000_8b12_3456_0067]
        {
            assert_eq!(Segment::from_descriptor(8, d).to_descriptor(), d);
        }
        let s = Segment::from_system_descriptor(0x40, 0x5600_8b12_3456_0067, 0xffff_8000);
        assert_eq!((s.base, s.limit, s.attr.typ()), (0xffff_8000_5612_3456, 0x67, system::TSS32_BUSY));
    }

    #[test]
    fn gates() {
        // A call gate to 0008:12345678 with 3 parameters, DPL 3.
        let g = Gate::decode(0x1234_ec03_0008_5678, None).unwrap();
        let want = Gate {
            kind: GateKind::Call,
            size: 4,
            selector: 8,
            offset: 0x1234_5678,
            dpl: 3,
            present: true,
            params: 3,
            ist: 0,
        };
        assert_eq!(g, want);
        assert_eq!(g.encode().0, 0x1234_ec03_0008_5678);
        // A 16-bit one has no high offset.
        assert_eq!(Gate::decode(0x1234_e403_0008_5678, None).unwrap().offset, 0x5678);
        let g = Gate::decode(0x8123_8e05_0010_4567, Some(0xffff_ffff)).unwrap();
        assert_eq!((g.kind, g.size, g.ist, g.params), (GateKind::Interrupt, 8, 5, 0));
        assert_eq!(g.offset, 0xffff_ffff_8123_4567);
        assert_eq!(g.encode(), (0x8123_8e05_0010_4567, 0xffff_ffff));
        let t = Gate::decode(0x0000_8500_0028_0000, None).unwrap();
        assert_eq!((t.kind, t.selector, t.present), (GateKind::Task, 0x28, true));
        for (low, high) in [
            // Code, a TSS, and in long mode task and 16-bit gates.
            (0x00cf_9b00_0000_ffff, None),
            (0x0000_8900_0000_0067, None),
            (0x0000_8500_0028_0000, Some(0)),
            (0x0000_8600_0008_1234, Some(0)),
        ] {
            assert_eq!(Gate::decode(low, high), None, "{low:#x}");
        }
        for typ in [4u64, 6, 7, 12, 14, 15] {
            let d = 0x0000_8000_0008_1234 | typ << 40;
            assert_eq!(Gate::decode(d, None).unwrap().encode().0, d);
        }
    }

    #[test]
    fn task_states() {
        let mut b = [0u8; 104];
        for (i, x) in (0u8..).zip(&mut b) {
            *x = i;
        }
        let t = TaskState::read(Tss::Bits32, &b);
        assert_eq!((t.link, t.cr3, t.ip, t.flags), (0x0100, 0x1f1e_1d1c, 0x2322_2120, 0x2726_2524));
        assert_eq!((t.gpr[0], t.gpr[7]), (0x2b2a_2928, 0x4746_4544));
        assert_eq!((t.seg[0], t.seg[1], t.seg[5], t.ldt), (0x4948, 0x4d4c, 0x5d5c, 0x6160));
        assert!(!t.trap);
        let mut copy = b;
        t.save(Tss::Bits32, &mut copy);
        assert_eq!(copy, b);
        let t16 = TaskState::read(Tss::Bits16, &b);
        assert_eq!((t16.link, t16.cr3, t16.ip, t16.flags), (0x0100, 0, 0x0f0e, 0x1110));
        assert_eq!((t16.gpr[0], t16.gpr[7]), (0x1312, 0x2120));
        assert_eq!((t16.seg, t16.ldt), ([0x2322, 0x2524, 0x2726, 0x2928, 0, 0], 0x2b2a));
        t16.save(Tss::Bits16, &mut copy);
        assert_eq!(copy, b);
        // Saving changes the dynamic fields alone.
        let mut zero = [0u8; 104];
        t.save(Tss::Bits32, &mut zero);
        let r = TaskState::read(Tss::Bits32, &zero);
        assert_eq!(r, TaskState { link: 0, cr3: 0, ldt: 0, ..t });
    }

    #[test]
    fn tss_offsets() {
        assert_eq!(Tss::of_type(11), Some((Tss::Bits32, true)));
        assert_eq!(Tss::of_type(2), None);
        assert_eq!((Tss::Bits16.stack(0), Tss::Bits16.stack(2)), ((2, 4), (10, 12)));
        assert_eq!((Tss::Bits32.stack(0), Tss::Bits32.stack(2)), ((4, 8), (20, 24)));
        assert_eq!((tss64_rsp(0), tss64_rsp(2), tss64_ist(1), tss64_ist(7)), (4, 20, 36, 84));
        assert_eq!((Tss::Bits16.size(), Tss::Bits32.size()), (44, 104));
    }
}
