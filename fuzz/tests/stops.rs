//! Guests that do their worst to keep a processor busy: it must still stop when it is told to.

use ringer_arch::regs::{cr0, cr4, efer, rflags};
use ringer_arch::seg::{Attr, Segment, TableReg, sreg};
use ringer_arch::{MpState, VcpuState};
use ringer_engine::{CpuIo, Engine, Exit, Pending, StopToken, Vcpu, VmParams};
use ringer_engine_soft::InterpreterEngine;
use ringer_memory::GuestMemory;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

/// A processor that has not stopped after this long never will.
const PATIENCE: Duration = Duration::from_secs(60);
const CODE: u64 = 0x1000;
const IDT: u64 = 0x2000;
const HANDLER: u64 = 0x3000;
const GDT: u64 = 0x3800;
const PML4: u64 = 0x4000;
/// 512 GiB of addresses: the first 2 MiB are RAM from 0, the last GiB is MMIO, all between is the same 2 MiB of RAM.
const PDPT: u64 = 0x5000;
const FIRST: u64 = 0x6000;
const SAME: u64 = 0x7000;
const DEVICE: u64 = 0x8000;

/// Tells when the guest has got to work; has nothing else.
struct Io(Sender<()>);

impl CpuIo for Io {
    fn pio_read(&self, _port: u16, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn pio_write(&self, port: u16, _data: &[u8]) {
        if port == 0x80 {
            let _told_before = self.0.send(());
        }
    }
    fn mmio_read(&self, _gpa: u64, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn mmio_write(&self, _gpa: u64, _data: &[u8]) {}
    fn pending(&self) -> Pending {
        Pending::default()
    }
    fn acknowledge(&self) -> Option<u8> {
        None
    }
    fn cr8(&self) -> u64 {
        0
    }
    fn set_cr8(&self, _value: u64) {}
    fn msr_read(&self, _msr: u32) -> Option<u64> {
        None
    }
    fn msr_write(&self, _msr: u32, _value: u64) -> Option<()> {
        None
    }
    fn hypercall(&self, _nr: u64, _args: [u64; 4]) -> u64 {
        u64::MAX
    }
    fn tsc(&self) -> u64 {
        0
    }
    fn reset_apic(&self) {}
}

/// Code at [`CODE`] behind an OUT that tells that it runs, and all exceptions' and interrupts' handler.
fn fill(memory: &GuestMemory, code: &[u8], handler: &[u8]) {
    let put = |at: u64, v: u64| memory.store(at, v).unwrap();
    // out 0x80, al
    memory.write(CODE, &[0xe6, 0x80]).unwrap();
    memory.write(CODE + 2, code).unwrap();
    memory.write(HANDLER, handler).unwrap();
    put(GDT + 8, 0x00af_9b00_0000_ffff);
    for n in 0..256 {
        put(IDT + 16 * n, HANDLER & 0xffff | 8 << 16 | 0x8e << 40);
    }
    put(PML4, PDPT | 3);
    for n in 0..512 {
        put(PDPT + 8 * n, SAME | 3);
        put(FIRST + 8 * n, 0x20_0083);
        put(SAME + 8 * n, 0x20_0083);
        put(DEVICE + 8 * n, 0xc000_0083);
    }
    put(PDPT, FIRST | 3);
    put(PDPT + 8 * 511, DEVICE | 3);
    put(FIRST, 0x83);
}

fn state() -> VcpuState {
    let mut s = VcpuState::reset(0x600, true);
    s.cr0 = cr0::PE | cr0::PG | cr0::NE | cr0::ET;
    s.cr4 = cr4::PAE | cr4::OSFXSR;
    s.efer = efer::LME | efer::LMA;
    s.cr3 = PML4;
    s.seg = [Segment { selector: 0x10, base: 0, limit: u32::MAX, attr: Attr(0xc093) }; 6];
    s.seg[sreg::CS] = Segment { selector: 8, base: 0, limit: u32::MAX, attr: Attr(0xa09b) };
    s.gdtr = TableReg { base: GDT, limit: 15 };
    s.idtr = TableReg { base: IDT, limit: 0xfff };
    s.rip = CODE;
    s.rflags = rflags::FIXED;
    s.gpr[1] = u64::MAX;
    s.gpr[2] = 0x1234;
    // RAX, RBX: MMIO. RSP, RSI, RDI: far inside the RAM that repeats.
    (s.gpr[0], s.gpr[3]) = (511 << 30, 511 << 30);
    (s.gpr[4], s.gpr[6], s.gpr[7]) = (400 << 30, 200 << 30, 300 << 30);
    s
}

/// Starts the guest, waits until it is at work, and tells it to stop.
fn stops(name: &str, code: &[u8], handler: &[u8], change: impl FnOnce(&mut VcpuState)) {
    let memory = GuestMemory::new(4 << 20).unwrap();
    fill(&memory, code, handler);
    let model = Arc::new(ringer_engine_soft::host_model().unwrap());
    let params = VmParams {
        memory,
        cpu: model,
        vcpus: 1,
        code_limit: ringer_engine::CODE_LIMIT,
        started: std::time::Instant::now(),
    };
    let vm = InterpreterEngine.create_vm(params).unwrap();
    let stop = StopToken::new();
    let (at_work, started) = channel();
    let mut vcpu: Box<dyn Vcpu> = vm.create_vcpu(0, Arc::new(Io(at_work.clone())), stop.clone()).unwrap();
    let mut s = state();
    change(&mut s);
    if s.mp_state != MpState::Running {
        at_work.send(()).unwrap();
    }
    vcpu.set_state(&s).unwrap();
    let (done, ended) = channel();
    let thread = std::thread::spawn(move || done.send(vcpu.run()));
    started.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{name} does not start"));
    stop.raise(StopToken::STOP);
    match ended.recv_timeout(PATIENCE) {
        Ok(exit) => assert_eq!(exit, Exit::Stopped, "{name}"),
        Err(_) => panic!("{name} does not stop"),
    }
    thread.join().unwrap().unwrap();
}

const IRET: &[u8] = &[0x48, 0xcf];

#[test]
fn loops() {
    let guests: [(&str, &[u8]); 9] = [
        ("jmp $", &[0xeb, 0xfe]),
        ("a store into itself", &[0xc6, 0x05, 0xf9, 0xff, 0xff, 0xff, 0xc6, 0xeb, 0xf7]),
        ("loads from devices", &[0x8b, 0x18, 0xeb, 0xfc]),
        ("stores to devices", &[0x48, 0x89, 0x18, 0xeb, 0xfb]),
        ("atomic changes of devices", &[0xf0, 0x48, 0x0f, 0xc1, 0x18, 0xeb, 0xf9]),
        ("fxsave to devices", &[0x0f, 0xae, 0x00, 0xeb, 0xfb]),
        ("TLB flushes", &[0x0f, 0x20, 0xd9, 0x0f, 0x22, 0xd9, 0xeb, 0xf8]),
        ("port reads", &[0xec, 0xeb, 0xfd]),
        ("a split atomic change", &[0xf0, 0x48, 0xff, 0x87, 0xfc, 0x0f, 0, 0, 0xeb, 0xf6]),
    ];
    for (name, code) in guests {
        stops(name, code, IRET, |_| ());
    }
}

#[test]
fn repeated_instructions_without_end() {
    let guests: [(&str, &[u8]); 9] = [
        ("rep stosb", &[0xf3, 0xaa]),
        ("rep stosq", &[0xf3, 0x48, 0xab]),
        ("rep movsb", &[0xf3, 0xa4]),
        ("rep movsq down", &[0xfd, 0xf3, 0x48, 0xa5]),
        ("rep lodsd", &[0xf3, 0xad]),
        ("repe cmpsb", &[0xf3, 0xa6]),
        ("repne scasb", &[0xb0, 1, 0xf2, 0xae]),
        ("rep insb", &[0xf3, 0x6c]),
        ("rep outsd", &[0xf3, 0x6f]),
    ];
    for (name, code) in guests {
        stops(name, code, IRET, |_| ());
        stops(&format!("{name} on devices"), code, IRET, |s| {
            (s.gpr[6], s.gpr[7]) = (511 << 30, 511 << 30);
            // The count is all there is to end it; going down, start high.
            if code[0] == 0xfd {
                (s.gpr[6], s.gpr[7]) = ((512 << 30) - 8, (512 << 30) - 8);
            }
        });
    }
}

#[test]
fn events_without_end() {
    // Every fault's handler returns to what faulted; those with an error code drop it.
    let drop_code = &[0x48, 0x83, 0xc4, 0x08, 0x48, 0xcf];
    stops("#UD", &[0x0f, 0x0b], IRET, |_| ());
    stops("#UD in its own handler", &[0x0f, 0x0b], &[0x0f, 0x0b], |_| ());
    stops("#DE", &[0x31, 0xc9, 0xf7, 0xf1], IRET, |_| ());
    stops("#PF", &[0x48, 0x8b, 0x01], drop_code, |s| s.gpr[1] = 1 << 40);
    stops("#GP", &[0x48, 0x8b, 0x01], drop_code, |s| s.gpr[1] = 1 << 62);
    stops("INT", &[0xcd, 0x80, 0xeb, 0xfc], IRET, |_| ());
    stops("INT3", &[0xcc, 0xeb, 0xfd], IRET, |_| ());
    stops("single steps", &[0x90, 0xeb, 0xfd], IRET, |s| s.rflags |= rflags::TF);
    stops("a breakpoint at every turn", &[0x90, 0xeb, 0xfd], IRET, |s| {
        s.dr[0] = CODE + 2;
        s.dr[7] |= 3;
    });
    stops("events on a device's stack", &[0x0f, 0x0b], &[0x0f, 0x0b], |s| s.gpr[4] = (512 << 30) - 64);
}

#[test]
fn sleepers() {
    stops("HLT with interrupts off", &[0xfa, 0xf4], IRET, |_| ());
    stops("HLT with interrupts on", &[0xfb, 0xf4], IRET, |_| ());
    stops("no SIPI", &[], IRET, |s| s.mp_state = MpState::WaitForSipi);
}
