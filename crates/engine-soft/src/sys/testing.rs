//! A processor over a small memory for unit tests.

use crate::cpu::Cpu;
use iced_x86::{Decoder, DecoderOptions};
use ringer_arch::cpu::{CpuModel, FeatureSet, Vendor};
use ringer_arch::desc::Gate;
use ringer_arch::exception::Exception;
use ringer_arch::regs::{cr0, cr4, efer};
use ringer_arch::seg::{Attr, Segment, TableReg, sreg};
use ringer_engine::{CpuIo, Pending, StopToken, VmParams};
use ringer_memory::GuestMemory;
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// A machine with nothing in it: logs port writes, answers port reads with a counter.
#[derive(Default)]
pub(crate) struct FakeIo {
    pub(crate) out: Mutex<Vec<(u16, Vec<u8>)>>,
    pub(crate) next_in: Mutex<u8>,
    pub(crate) cr8: Mutex<u64>,
    /// The vector of an interrupt that waits.
    pub(crate) intr: Mutex<Option<u8>>,
    /// Raised at each port access, if any.
    pub(crate) stop: Option<StopToken>,
}

impl FakeIo {
    fn touch(&self) {
        if let Some(s) = &self.stop {
            s.raise(StopToken::ATTENTION);
        }
    }
}

impl CpuIo for FakeIo {
    fn pio_read(&self, _port: u16, data: &mut [u8]) {
        for b in data {
            let mut n = self.next_in.lock().unwrap();
            *b = *n;
            *n = n.wrapping_add(1);
        }
        self.touch();
    }
    fn pio_write(&self, port: u16, data: &[u8]) {
        self.out.lock().unwrap().push((port, data.to_vec()));
        self.touch();
    }
    fn mmio_read(&self, _gpa: u64, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn mmio_write(&self, _gpa: u64, _data: &[u8]) {}
    fn pending(&self) -> Pending {
        Pending { intr: self.intr.lock().unwrap().is_some(), ..Pending::default() }
    }
    fn acknowledge(&self) -> Option<u8> {
        self.intr.lock().unwrap().take()
    }
    fn cr8(&self) -> u64 {
        *self.cr8.lock().unwrap()
    }
    fn set_cr8(&self, value: u64) {
        *self.cr8.lock().unwrap() = value;
    }
    fn msr_read(&self, msr: u32) -> Option<u64> {
        (msr == ringer_arch::msr::APIC_BASE).then_some(0xfee0_0900)
    }
    fn msr_write(&self, msr: u32, _value: u64) -> Option<()> {
        (msr == ringer_arch::msr::APIC_BASE).then_some(())
    }
    fn hypercall(&self, nr: u64, args: [u64; 4]) -> u64 {
        args.iter().fold(nr, |a, b| a.wrapping_add(*b))
    }
    fn tsc(&self) -> u64 {
        1000
    }
    fn reset_apic(&self) {}
}

fn host(vendor: Vendor) -> impl Fn(u32, u32) -> [u32; 4] {
    let (b, d, c) = match vendor {
        Vendor::Intel => (b"Genu", b"ineI", b"ntel"),
        Vendor::Amd => (b"Auth", b"enti", b"cAMD"),
    };
    let [b, d, c] = [b, d, c].map(|x| u32::from_le_bytes(*x));
    move |leaf, sub| match leaf {
        0 => [0x20, b, c, d],
        1 => [0x00b0_0f21, 0, u32::MAX, u32::MAX],
        7 if sub == 0 => [1, u32::MAX, u32::MAX, u32::MAX],
        0x8000_0000 => [0x8000_0021, b, c, d],
        0x8000_0008 => [0x3930, u32::MAX, 0, 0],
        _ => [u32::MAX; 4],
    }
}

/// Where the tables are.
pub(crate) const GDT: u64 = 0x1000;
pub(crate) const IDT: u64 = 0x2000;
pub(crate) const TSS: u64 = 0x3000;
const PAGES: u64 = 0x8000;
/// Code runs here.
pub(crate) const CODE: u64 = 0x1_0000;
/// Stacks of the rings end here, each a page below the next.
pub(crate) const STACK0: u64 = 0x2_0000;
pub(crate) const STACK3: u64 = 0x3_0000;

/// Selectors that [`protected`] and [`long`] set up.
pub(crate) const CS0: u16 = 0x08;
pub(crate) const DS0: u16 = 0x10;
pub(crate) const CS3: u16 = 0x1b;
pub(crate) const DS3: u16 = 0x23;
/// Task register. Two entries wide in long mode.
pub(crate) const TR: u16 = 0x28;
/// First entry that is free for tests.
pub(crate) const FREE: u16 = 0x38;

/// After reset, 2 MiB of RAM.
pub(crate) fn reset(vendor: Vendor) -> (Cpu, Arc<FakeIo>) {
    reset_with(vendor, FakeIo::default())
}

pub(crate) fn reset_with(vendor: Vendor, io: FakeIo) -> (Cpu, Arc<FakeIo>) {
    let h = host(vendor);
    let model = CpuModel::named("x86-64-v3,+la57", &h, &FeatureSet::software(&h)).unwrap();
    let memory = GuestMemory::new(2 << 20).unwrap();
    let params = VmParams {
        memory,
        cpu: Arc::new(model),
        vcpus: 1,
        code_limit: ringer_engine::CODE_LIMIT,
        started: Instant::now(),
    };
    let stop = io.stop.clone().unwrap_or_default();
    let io = Arc::new(io);
    (Cpu::new(&params, 0, io.clone(), stop).unwrap(), io)
}

/// Real mode with code at [`CODE`] and a stack that ends at [`STACK0`].
pub(crate) fn real() -> Cpu {
    let (mut cpu, _) = reset(Vendor::Intel);
    cpu.seg[sreg::CS] = Segment { attr: Attr(0x9b), ..Segment::real(0x1000) };
    cpu.seg[sreg::SS] = Segment::real(0x1000);
    cpu.rip = 0;
    cpu.regs[4] = 0xfffe;
    cpu.idtr = TableReg { base: 0, limit: 0x3ff };
    cpu.update_mode();
    cpu
}

/// Flat 32-bit protected mode in ring 0 without paging.
pub(crate) fn protected(vendor: Vendor) -> Cpu {
    let (mut cpu, _) = reset(vendor);
    flat(&mut cpu, 0x00cf_9b00_0000_ffff, 0x00cf_fb00_0000_ffff);
    put(&cpu, GDT + u64::from(TR), tss_descriptor(TSS, 0x67, 0xb));
    cpu.tr = Segment { selector: TR, base: TSS, limit: 0x67, attr: Attr(0x8b) };
    put(&cpu, TSS + 4, STACK0);
    put(&cpu, TSS + 8, u64::from(DS0));
    cpu
}

/// 64-bit mode in ring 0; 1 GiB is mapped one to one for all rings, and again at 0xffff_8000_0000_0000 for ring 0.
pub(crate) fn long(vendor: Vendor) -> Cpu {
    let (mut cpu, _) = reset(vendor);
    put(&cpu, PAGES, (PAGES + 0x1000) | 7);
    put(&cpu, PAGES + 8 * 256, (PAGES + 0x1000) | 3);
    put(&cpu, PAGES + 0x1000, 0x87);
    cpu.cr3 = PAGES;
    cpu.cr4 = cr4::PAE;
    cpu.efer = efer::LME | efer::LMA | efer::SCE;
    cpu.cr0 |= cr0::PG;
    flat(&mut cpu, 0x00af_9b00_0000_ffff, 0x00af_fb00_0000_ffff);
    put(&cpu, GDT + u64::from(TR), tss_descriptor(TSS, 0x67, 0xb));
    cpu.tr = Segment { selector: TR, base: TSS, limit: 0x67, attr: Attr(0x8b) };
    put(&cpu, TSS + 4, STACK0);
    cpu
}

fn flat(cpu: &mut Cpu, code0: u64, code3: u64) {
    put(cpu, GDT + 0x08, code0);
    put(cpu, GDT + 0x10, 0x00cf_9300_0000_ffff);
    put(cpu, GDT + 0x18, code3);
    put(cpu, GDT + 0x20, 0x00cf_f300_0000_ffff);
    cpu.gdtr = TableReg { base: GDT, limit: 0xff };
    cpu.idtr = TableReg { base: IDT, limit: 0xfff };
    cpu.cr0 = cpu.cr0 & cr0::PG | cr0::PE | cr0::ET | cr0::NE;
    cpu.seg = [Segment::from_descriptor(DS0, 0x00cf_9300_0000_ffff); 6];
    cpu.seg[sreg::CS] = Segment::from_descriptor(CS0, code0);
    cpu.regs[4] = STACK0 - 0x800;
    cpu.rip = CODE;
    cpu.update_mode();
}

/// Puts the processor in ring 3 with the selectors of that ring.
pub(crate) fn to_ring3(cpu: &mut Cpu) {
    for (n, s) in [CS3, DS3].into_iter().enumerate() {
        let d = get(cpu, GDT + u64::from(s & !7));
        let seg = Segment::from_descriptor(s, d);
        if n == 0 {
            cpu.seg[sreg::CS] = seg;
        } else {
            for i in [sreg::SS, sreg::DS, sreg::ES, sreg::FS, sreg::GS] {
                cpu.seg[i] = seg;
            }
        }
    }
    cpu.cpl = 3;
    cpu.regs[4] = STACK3;
    cpu.update_mode();
}

/// A TSS descriptor's first eight bytes.
pub(crate) fn tss_descriptor(base: u64, limit: u32, typ: u32) -> u64 {
    Segment { selector: 0, base, limit, attr: Attr(0x80 | typ) }.to_descriptor()
}

/// Writes an IDT gate of the current mode.
pub(crate) fn set_gate(cpu: &Cpu, vector: u8, gate: Gate) {
    let (low, high) = gate.encode();
    if cpu.long_active() {
        put(cpu, IDT + u64::from(vector) * 16, low);
        put(cpu, IDT + u64::from(vector) * 16 + 8, high);
    } else {
        put(cpu, IDT + u64::from(vector) * 8, low);
    }
}

/// An interrupt gate to `CS0:offset`, for programs of all rings.
pub(crate) fn gate_to(cpu: &Cpu, offset: u64) -> Gate {
    Gate {
        kind: ringer_arch::desc::GateKind::Interrupt,
        size: if cpu.long_active() { 8 } else { 4 },
        selector: CS0,
        offset,
        dpl: 3,
        present: true,
        params: 0,
        ist: 0,
    }
}

/// Stores a quadword in guest memory.
pub(crate) fn put(cpu: &Cpu, gpa: u64, v: u64) {
    cpu.mmu.memory().store(gpa, v).unwrap();
}

/// Loads a quadword from guest memory.
pub(crate) fn get(cpu: &Cpu, gpa: u64) -> u64 {
    cpu.mmu.memory().load(gpa).unwrap()
}

/// Loads a doubleword from guest memory.
pub(crate) fn get32(cpu: &Cpu, gpa: u64) -> u64 {
    u64::from(cpu.mmu.memory().load::<u32>(gpa).unwrap())
}

/// Loads a word from guest memory.
pub(crate) fn get16(cpu: &Cpu, gpa: u64) -> u64 {
    u64::from(cpu.mmu.memory().load::<u16>(gpa).unwrap())
}

/// Executes one system instruction at RIP.
pub(crate) fn exec(cpu: &mut Cpu, code: &[u8]) -> Result<(), Exception> {
    let mut d = Decoder::with_ip(cpu.bits(), code, 0, DecoderOptions::NONE);
    let i = d.decode();
    assert!(!i.is_invalid() && i.len() == code.len(), "{code:x?}");
    cpu.next_rip = cpu.rip + i.len() as u64;
    match super::execute(cpu, &i).unwrap_or_else(|| panic!("{i:?} is not a system instruction")) {
        Ok(()) => {
            cpu.rip = cpu.next_rip;
            Ok(())
        }
        Err(_) => Err(cpu.exc.take().unwrap()),
    }
}

/// Executes one instruction, and delivers the exception that it raises.
pub(crate) fn step(cpu: &mut Cpu, code: &[u8]) {
    if let Err(e) = exec(cpu, code) {
        cpu.exc = Some(e);
        super::interrupt::raise_pending(cpu);
    }
}
