//! Tiny guests in KVM. On a host whose `/dev/kvm` is of no use each test says so and passes.

use ringer_arch::cpu::{CpuModel, CpuidDynamic, FeatureSet};
use ringer_arch::regs::{cr0, cr4, efer, gpr, rflags};
use ringer_arch::seg::{Attr, Segment, sreg};
use ringer_arch::{MpState, VcpuState, msr};
use ringer_engine::{
    CODE_LIMIT, CpuIo, DebugRequest, DebugStop, Engine, EngineError, Exit, Needs, Pending, Probe, StopToken,
    Vcpu, Vm, VmParams, WatchKind, Watchpoint,
};
use ringer_engine_kvm::KvmEngine;
use ringer_memory::GuestMemory;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const CODE: u64 = 0x8000;
const DATA: u64 = 0x2_0000;
/// Writing to this port stops the processor.
const STOP_PORT: u16 = 0xf4;

/// What a guest did to the machine.
#[derive(Default)]
struct Seen {
    out: Vec<(u16, Vec<u8>)>,
    msrs: Vec<(u32, u64)>,
    stored: Vec<(u64, Vec<u8>)>,
}

struct Io {
    stop: StopToken,
    tsc_khz: u32,
    seen: Mutex<Seen>,
    pending: Mutex<Pending>,
    vector: u8,
}

impl CpuIo for Io {
    fn pio_read(&self, port: u16, data: &mut [u8]) {
        data.fill(port as u8);
    }
    fn pio_write(&self, port: u16, data: &[u8]) {
        if port == STOP_PORT {
            self.stop.raise(StopToken::STOP);
        }
        self.seen.lock().unwrap().out.push((port, data.to_vec()));
    }
    fn mmio_read(&self, gpa: u64, data: &mut [u8]) {
        data.fill((gpa >> 4) as u8);
    }
    fn mmio_write(&self, gpa: u64, data: &[u8]) {
        self.seen.lock().unwrap().stored.push((gpa, data.to_vec()));
    }
    fn pending(&self) -> Pending {
        let mut p = self.pending.lock().unwrap();
        let now = *p;
        *p = Pending { intr: p.intr, ..Pending::default() };
        now
    }
    fn acknowledge(&self) -> Option<u8> {
        let mut p = self.pending.lock().unwrap();
        std::mem::take(&mut p.intr).then_some(self.vector)
    }
    fn cr8(&self) -> u64 {
        0
    }
    fn set_cr8(&self, _value: u64) {}
    fn msr_read(&self, n: u32) -> Option<u64> {
        match n {
            msr::APIC_BASE => Some(0xfee0_0900),
            0x802 => Some(0x1234_5678),
            _ => None,
        }
    }
    fn msr_write(&self, n: u32, value: u64) -> Option<()> {
        self.seen.lock().unwrap().msrs.push((n, value));
        (n != 0x80f).then_some(())
    }
    fn cpuid(&self) -> CpuidDynamic {
        CpuidDynamic { tsc_khz: self.tsc_khz, ..CpuidDynamic::default() }
    }
    fn hypercall(&self, _nr: u64, _args: [u64; 4]) -> u64 {
        0
    }
    fn tsc(&self) -> u64 {
        0
    }
    fn reset_apic(&self) {}
}

fn host(leaf: u32, subleaf: u32) -> [u32; 4] {
    let r = std::arch::x86_64::__cpuid_count(leaf, subleaf);
    [r.eax, r.ebx, r.ecx, r.edx]
}

struct Guest {
    memory: GuestMemory,
    model: Arc<CpuModel>,
    io: Arc<Io>,
    stop: StopToken,
    vm: Box<dyn Vm>,
    vcpu: Box<dyn Vcpu>,
}

/// What KVM needs here; `None`, and said why, if it is not to be had.
fn needs() -> Option<Needs> {
    match KvmEngine.needs() {
        Ok(n) => Some(n),
        Err(e) => {
            println!("skipped: {e}");
            None
        }
    }
}

/// Whether both rings run on the processor.
fn runs_natively() -> bool {
    matches!(KvmEngine.probe(), Probe::Works { .. })
}

impl Guest {
    fn new() -> Option<Guest> {
        let needs = needs()?;
        let memory = GuestMemory::new(4 << 20).unwrap();
        let model = CpuModel::named("host", &host, &needs.features.unwrap()).unwrap();
        let (model, stop) = (Arc::new(model), StopToken::new());
        let params = VmParams {
            memory: memory.clone(),
            cpu: model.clone(),
            vcpus: 1,
            code_limit: CODE_LIMIT,
            started: Instant::now(),
        };
        let io = Arc::new(Io {
            stop: stop.clone(),
            tsc_khz: needs.tsc_khz.unwrap_or(1_000_000) as u32,
            seen: Mutex::default(),
            pending: Mutex::default(),
            vector: 0x40,
        });
        let vm = KvmEngine.create_vm(params).unwrap();
        let vcpu = vm.create_vcpu(0, io.clone(), stop.clone()).unwrap();
        // Accessed and dirty already, so that nothing of the tables is written.
        for (at, entry) in [(0x1000, 0x2067u64), (0x2000, 0x3067), (0x3000, 0xe7), (0x3008, 0x20_00e7)] {
            memory.store(at, entry).unwrap();
        }
        for (at, entry) in [(0x3010u64, 0x4067u64), (0x4000, 0xfee0_007b)] {
            memory.store(at, entry).unwrap();
        }
        Some(Guest { memory, model, io, stop, vm, vcpu })
    }

    /// 64-bit mode, ring 0, at [`CODE`] with `code`.
    fn start(&mut self, code: &[u8]) -> VcpuState {
        self.memory.write(CODE, code).unwrap();
        let s = long_mode(&self.model);
        self.vcpu.set_state(&s).unwrap();
        s
    }

    fn run(&mut self) -> Exit {
        let exit = self.vcpu.run();
        assert!(exit != Exit::Failed, "{:?}", self.vcpu.failure());
        exit
    }
}

fn long_mode(model: &CpuModel) -> VcpuState {
    let mut s = VcpuState::reset(model.signature(), true);
    s.cr0 = cr0::PE | cr0::PG | cr0::ET | cr0::NE;
    s.cr3 = 0x1000;
    s.cr4 = cr4::PAE;
    s.efer = efer::LME | efer::LMA;
    s.seg = [Segment { selector: 16, base: 0, limit: u32::MAX, attr: Attr(0xc093) }; 6];
    s.seg[sreg::CS] = Segment { selector: 8, base: 0, limit: u32::MAX, attr: Attr(0xa09b) };
    s.ldtr = Segment { attr: Attr(Attr::UNUSABLE), ..Segment::default() };
    s.rip = CODE;
    s.gpr[gpr::RSP] = 0x7000;
    s
}

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
    /// A canonical address.
    fn address(&mut self) -> u64 {
        ((self.next() << 16) as i64 >> 16) as u64
    }
}

/// A state of 64-bit mode with everything in it that may be anything.
fn random_state(r: &mut Rng, model: &CpuModel) -> VcpuState {
    let mut s = long_mode(model);
    s.gpr = std::array::from_fn(|_| r.next());
    s.rip = r.address();
    s.rflags =
        r.next() & rflags::ALL & !(rflags::VM | rflags::VIF | rflags::VIP | rflags::IOPL) | rflags::FIXED;
    s.seg[sreg::FS].base = r.address();
    s.seg[sreg::GS].base = r.address();
    for n in 0..6 {
        s.seg[n].selector = r.next() as u16 & !3;
    }
    if r.next() & 1 != 0 {
        s.cpl = 3;
        for n in [sreg::CS, sreg::SS] {
            s.seg[n].attr = Attr(s.seg[n].attr.0 | 0x60);
            s.seg[n].selector |= 3;
        }
    }
    s.gdtr.base = r.address();
    s.gdtr.limit = r.next() as u16;
    s.idtr.base = r.address();
    s.idtr.limit = r.next() as u16;
    s.tr = Segment { selector: 0x48, base: r.address(), limit: 0x67, attr: Attr(0x8b) };
    s.cr2 = r.next();
    s.cr0 |= r.next() & (cr0::MP | cr0::TS | cr0::WP | cr0::AM | cr0::CD);
    s.cr4 |= r.next() & model.cr4_mask() & (cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::TSD | cr4::DE | cr4::PGE);
    s.efer |= r.next() & model.efer_mask() & (efer::SCE | efer::NXE);
    for n in 0..4 {
        s.dr[n] = r.address();
    }
    s.dr[6] |= r.next() & 0xe00f;
    s.dr[7] |= r.next() & 0xff;
    // Registers of x87 have 80 bits in 16 bytes; those of SSE 128.
    for i in 0..8 {
        s.xsave[32 + 16 * i..][..8].copy_from_slice(&r.next().to_le_bytes());
        s.xsave[32 + 16 * i + 8..][..2].copy_from_slice(&(r.next() as u16).to_le_bytes());
    }
    for i in 0..32 {
        s.xsave[160 + 8 * i..][..8].copy_from_slice(&r.next().to_le_bytes());
    }
    s.mp_state = if r.next() & 1 != 0 { MpState::Running } else { MpState::Halted };
    s.interrupt_shadow = r.next() & 3 == 0;
    s.nmi_blocked = r.next() & 1 != 0;
    s.nmi_pending = r.next() & 1 != 0;
    s.unhalt = r.next() & 1 != 0;
    for n in [msr::LSTAR, msr::CSTAR, msr::KERNEL_GS_BASE, msr::SYSENTER_ESP, msr::SYSENTER_EIP] {
        s.msrs.insert(n, r.address());
    }
    s.msrs.insert(msr::STAR, r.next());
    s.msrs.insert(msr::SFMASK, r.next() & 0xffff_ffff);
    s.msrs.insert(msr::SYSENTER_CS, r.next() & 0xffff_ffff);
    s.msrs.insert(msr::TSC_ADJUST, r.next());
    s.msrs.insert(msr::PAT, 0x0006_0104_0005_0607);
    s
}

#[test]
fn a_state_that_is_loaded_is_what_is_saved() {
    let Some(mut g) = Guest::new() else { return };
    let mut r = Rng(1);
    let fresh = g.vcpu.state();
    let reset = VcpuState::reset(g.model.signature(), true);
    assert_eq!(
        (&fresh.seg, fresh.rip, &fresh.dr, &fresh.xsave),
        (&reset.seg, reset.rip, &reset.dr, &reset.xsave)
    );
    for turn in 0..300 {
        let mut s = random_state(&mut r, &g.model);
        g.vcpu.set_state(&s).unwrap();
        let got = g.vcpu.state();
        // The time goes on; it is TSC_ADJUST that counts.
        s.tsc = got.tsc;
        assert_eq!(got, s, "turn {turn}");
    }
}

#[test]
fn a_kick_gets_the_processor_out_of_a_loop() {
    let Some(mut g) = Guest::new() else { return };
    // l: inc rcx; jmp l
    g.start(b"\x48\xff\xc1\xeb\xfb");
    let (mut last, mut ran) = (0, 0);
    let mut worst = Duration::ZERO;
    for _ in 0..50 {
        let stop = g.stop.clone();
        let raised = Arc::new(Mutex::new(None));
        let when = raised.clone();
        let other = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(2));
            *when.lock().unwrap() = Some(Instant::now());
            stop.raise(StopToken::STOP);
        });
        assert_eq!(g.run(), Exit::Stopped);
        worst = worst.max(raised.lock().unwrap().expect("it stops for the kick only").elapsed());
        other.join().unwrap();
        let s = g.vcpu.state();
        let rcx = s.gpr[gpr::RCX];
        assert!(rcx >= last && (s.rip == CODE || s.rip == CODE + 3), "{last:#x} {rcx:#x} {:#x}", s.rip);
        // On a busy host a kick may come before the processor does.
        ran += u32::from(rcx > last);
        last = rcx;
    }
    assert!(ran >= 10, "{ran}");
    println!("the longest way from the request to the end of the run: {worst:?}");
    assert!(worst < Duration::from_secs(5));
}

#[test]
fn a_request_that_came_before_counts() {
    let Some(mut g) = Guest::new() else { return };
    let s = g.start(b"\xeb\xfe");
    g.stop.raise(StopToken::STOP);
    assert_eq!(g.run(), Exit::Stopped);
    assert_eq!(g.vcpu.state().rip, s.rip);
}

#[test]
fn a_stop_inside_an_access_leaves_the_instruction_done() {
    let Some(mut g) = Guest::new() else { return };
    // out 0xf4,al; in al,0x33; mov [0x400000+0x10],ecx (no RAM); mov edx,[0x400050]; out 0xf4,al
    let code = b"\xe6\xf4\xe4\x33\xbb\x00\x00\x40\x00\x89\x4b\x10\x8b\x53\x50\xe6\xf4";
    let mut s = g.start(code);
    s.gpr[gpr::RCX] = 0x1122_3344;
    g.vcpu.set_state(&s).unwrap();
    assert_eq!(g.run(), Exit::Stopped);
    assert_eq!(g.vcpu.state().rip, CODE + 2, "behind OUT");
    assert_eq!(g.run(), Exit::Stopped);
    let s = g.vcpu.state();
    assert_eq!((s.rip, s.gpr[gpr::RAX] & 0xff), (CODE + code.len() as u64, 0x33));
    assert_eq!(s.gpr[gpr::RDX], 0x0505_0505);
    let seen = g.io.seen.lock().unwrap();
    assert_eq!(seen.stored, [(0xfee0_0010, vec![0x44, 0x33, 0x22, 0x11])]);
}

#[test]
fn string_output_comes_in_its_pieces() {
    let Some(mut g) = Guest::new() else { return };
    let mut s = g.start(b"\xf3\x66\x6f\xe6\xf4");
    g.memory.write(DATA, &[1, 2, 3, 4, 5, 6]).unwrap();
    (s.gpr[gpr::RCX], s.gpr[gpr::RDX], s.gpr[gpr::RSI]) = (3, 0x80, DATA);
    g.vcpu.set_state(&s).unwrap();
    assert_eq!(g.run(), Exit::Stopped);
    let seen = g.io.seen.lock().unwrap();
    let words: Vec<_> = seen.out.iter().filter(|(p, _)| *p == 0x80).map(|(_, d)| d.clone()).collect();
    assert_eq!(words, [[1, 2], [3, 4], [5, 6]]);
    assert_eq!(g.vcpu.state().gpr[gpr::RSI], DATA + 6);
}

#[test]
fn msrs_of_the_machine_come_out() {
    let Some(mut g) = Guest::new() else { return };
    // mov ecx,0x802; rdmsr; mov ebx,eax; mov ecx,0x80b; xor eax,eax; xor edx,edx; wrmsr; mov ecx,0x277; rdmsr; out 0xf4,al
    g.start(
        b"\xb9\x02\x08\x00\x00\x0f\x32\x89\xc3\xb9\x0b\x08\x00\x00\x31\xc0\x31\xd2\x0f\x30\xb9\x77\x02\x00\x00\x0f\x32\xe6\xf4",
    );
    assert_eq!(g.run(), Exit::Stopped);
    let s = g.vcpu.state();
    assert_eq!(s.gpr[gpr::RBX], 0x1234_5678);
    assert_eq!(g.io.seen.lock().unwrap().msrs, [(0x80b, 0)]);
    assert_eq!(s.gpr[gpr::RDX] << 32 | s.gpr[gpr::RAX], g.model.msr_reset(msr::PAT).unwrap());
    // One that the machine refuses is #GP, which without an IDT ends in a triple fault.
    let mut s = g.start(b"\xb9\x0f\x08\x00\x00\x0f\x30\xe6\xf4");
    s.idtr.limit = 0;
    g.vcpu.set_state(&s).unwrap();
    assert_eq!(g.run(), Exit::TripleFault);
}

/// Whether the page at `gpa` is in the log.
fn logged(log: &[Vec<u64>], gpa: u64) -> bool {
    let page = (gpa / 4096) as usize;
    log[0][page / 64] >> (page % 64) & 1 != 0
}

#[test]
fn the_dirty_log_has_what_was_written() {
    let Some(mut g) = Guest::new() else { return };
    // mov [rsi],al; mov [rdi],al; out 0xf4,al
    let mut s = g.start(b"\x88\x06\x88\x07\xe6\xf4");
    (s.gpr[gpr::RSI], s.gpr[gpr::RDI]) = (DATA, 0x20_3000);
    let _before = g.memory.take_dirty();
    g.vm.log_writes(true).unwrap();
    for _ in 0..2 {
        g.vcpu.set_state(&s).unwrap();
        assert_eq!(g.run(), Exit::Stopped);
        let log = g.memory.take_dirty();
        assert!(logged(&log, DATA) && logged(&log, 0x20_3000));
        assert!(!logged(&log, 0x20_2000) && !logged(&log, 0x3f_f000), "pages that nobody wrote to");
    }
    // Without the log, any page may have been written.
    g.vm.log_writes(false).unwrap();
    g.vcpu.set_state(&s).unwrap();
    assert_eq!(g.run(), Exit::Stopped);
    assert!(logged(&g.memory.take_dirty(), 0x3f_f000));
}

#[test]
fn code_that_others_decoded_is_stale_after_a_run() {
    let Some(mut g) = Guest::new() else { return };
    let mut s = g.start(b"\x88\x06\xe6\xf4");
    s.gpr[gpr::RSI] = DATA;
    let (version, _) = g.memory.mark_code(DATA, 16);
    g.vcpu.set_state(&s).unwrap();
    assert_eq!(g.run(), Exit::Stopped);
    assert_ne!(g.memory.code_version(DATA), version);
}

#[test]
fn a_processor_of_more_features_is_refused() {
    let Some(needs) = needs() else { return };
    let offered = needs.features.unwrap();
    let lacks = FeatureSet::software(&host).difference(offered);
    let Some(one) = lacks.iter().find(|f| {
        CpuModel::named(&format!("host,+{}", f.name()), &host, &FeatureSet::software(&host))
            .is_ok_and(|m| m.has(*f))
    }) else {
        println!("skipped: this KVM offers all that the software engines do");
        return;
    };
    let model =
        CpuModel::named(&format!("host,+{}", one.name()), &host, &FeatureSet::software(&host)).unwrap();
    let params = VmParams {
        memory: GuestMemory::new(1 << 20).unwrap(),
        cpu: Arc::new(model),
        vcpus: 1,
        code_limit: CODE_LIMIT,
        started: Instant::now(),
    };
    let e = KvmEngine.create_vm(params).map(|_| ()).unwrap_err();
    assert!(matches!(e, EngineError::Unavailable { .. }) && e.to_string().contains(one.name()), "{e}");
}

#[test]
fn an_interrupt_that_waits_at_a_stop_is_not_lost() {
    let Some(mut g) = Guest::new() else { return };
    // 0x40: 64-bit interrupt gate to 0x9000: out 0x77,al; out 0xf4,al; hlt
    let idt = 0x1_0000u64;
    g.memory.store(idt + 0x400, 0x0000_8e00_0008_9000u64).unwrap();
    g.memory.write(0x9000, b"\xe6\x77\xe6\xf4\xf4").unwrap();
    g.memory.store(0x5000u64 + 8, 0x00af_9b00_0000_ffffu64).unwrap();
    g.memory.store(0x5000u64 + 16, 0x00cf_9300_0000_ffffu64).unwrap();
    let mut s = g.start(b"\xeb\xfe");
    (s.idtr.base, s.idtr.limit, s.gdtr.base, s.gdtr.limit) = (idt, 0xfff, 0x5000, 0x17);
    s.rflags |= rflags::IF;
    for turn in 0..30 {
        g.vcpu.set_state(&s).unwrap();
        let (io, stop) = (g.io.clone(), g.stop.clone());
        let other = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_micros(200));
            io.pending.lock().unwrap().intr = true;
            stop.raise(StopToken::ATTENTION);
            stop.raise(StopToken::STOP);
        });
        // The stop comes around the delivery: before, in the middle, or behind it.
        assert_eq!(g.run(), Exit::Stopped);
        other.join().unwrap();
        g.stop.take(StopToken::STOP);
        let handled = |g: &Guest| g.io.seen.lock().unwrap().out.iter().filter(|(p, _)| *p == 0x77).count();
        if handled(&g) == turn {
            assert_eq!(g.run(), Exit::Stopped);
        }
        assert_eq!(handled(&g), turn + 1, "turn {turn}");
    }
}

#[test]
fn steps_and_breakpoints() {
    let Some(mut g) = Guest::new() else { return };
    // nop; inc rcx; nop; inc rcx; out 0xf4,al
    g.start(b"\x90\x48\xff\xc1\x90\x48\xff\xc1\xe6\xf4");
    g.vcpu.set_debug(&DebugRequest { step: true, ..DebugRequest::default() }).unwrap();
    for at in [1, 4, 5] {
        assert_eq!(g.run(), Exit::Debug(DebugStop::Step));
        let s = g.vcpu.state();
        assert_eq!((s.rip, s.rflags & rflags::TF), (CODE + at, 0), "TF is not the guest's");
    }
    g.vcpu.set_debug(&DebugRequest::default()).unwrap();
    assert_eq!(g.run(), Exit::Stopped);
    let s = g.start(b"\x90\x48\xff\xc1\x90\x48\xff\xc1\xe6\xf4");
    let request = DebugRequest { breakpoints: vec![CODE + 1, CODE + 5], ..DebugRequest::default() };
    g.vcpu.set_debug(&request).unwrap();
    for at in [1, 5] {
        assert_eq!(g.run(), Exit::Debug(DebugStop::Breakpoint));
        assert_eq!(g.vcpu.state().rip, CODE + at);
    }
    assert_eq!(g.run(), Exit::Stopped);
    let now = g.vcpu.state();
    assert_eq!((now.gpr[gpr::RCX], &now.dr), (2, &s.dr), "the guest sees nothing of it");
}

#[test]
fn watchpoints() {
    let Some(mut g) = Guest::new() else { return };
    if !runs_natively() {
        println!("skipped: a KVM that emulates ring 0 does not look for data breakpoints there");
        return;
    }
    let mut s = g.start(b"\x8a\x06\x88\x06\xe6\xf4");
    s.gpr[gpr::RSI] = DATA + 3;
    g.vcpu.set_state(&s).unwrap();
    let w = Watchpoint { at: DATA, len: 4, kind: WatchKind::Write };
    g.vcpu.set_debug(&DebugRequest { watchpoints: vec![w], ..DebugRequest::default() }).unwrap();
    assert_eq!(g.run(), Exit::Debug(DebugStop::Watchpoint(w)));
    assert_eq!(g.vcpu.state().rip, CODE + 4);
    assert_eq!(g.run(), Exit::Stopped);
}

#[test]
fn cpuid_is_the_models() {
    let Some(mut g) = Guest::new() else { return };
    let mut s = g.start(b"\x0f\xa2\xe6\xf4");
    let dynamic = CpuidDynamic {
        vcpus: 1,
        xcr0: 1,
        apic_enabled: true,
        tsc_khz: g.io.tsc_khz,
        ..CpuidDynamic::default()
    };
    let held: Vec<_> = g.model.leaves().iter().map(|l| (l.leaf, l.subleaf.unwrap_or(0))).collect();
    let more =
        [(0x4000_0000, 0), (0x4000_0001, 0), (0x4000_0010, 0), (0x7fff_ffff, 0), (0x8fff_ffff, 0), (7, 9)];
    // A KVM that does not run ring 0 on the processor shows the host's features in leaves 1 and 7, whatever it is told.
    let native = runs_natively();
    let mut wrong = Vec::new();
    for (leaf, subleaf) in held.into_iter().chain(more) {
        (s.gpr[gpr::RAX], s.gpr[gpr::RCX]) = (leaf.into(), subleaf.into());
        g.vcpu.set_state(&s).unwrap();
        assert_eq!(g.run(), Exit::Stopped);
        let now = g.vcpu.state().gpr;
        let got = [gpr::RAX, gpr::RBX, gpr::RCX, gpr::RDX].map(|n| now[n] as u32);
        let want = g.model.cpuid(leaf, subleaf, &dynamic);
        if got != want && (native || !matches!(leaf, 1 | 7)) {
            wrong.push(format!("{leaf:#x}.{subleaf}: {got:x?}, not {want:x?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
