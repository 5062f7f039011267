//! The functional probe: a short guest loop in 64-bit mode, timed.

use ringer_arch::VcpuState;
use ringer_arch::cpu::CpuModel;
use ringer_arch::regs::{cr0, cr4, efer};
use ringer_arch::seg::{Attr, Segment, sreg};
use ringer_engine::{CpuIo, Engine, Exit, Pending, Probe, StopToken, VmParams};
use ringer_memory::GuestMemory;
use std::sync::Arc;
use std::time::Instant;

/// Iterations of the loop, six instructions each.
const ROUNDS: u32 = 400_000;

/// A machine with nothing in it but a port that stops the processor.
struct Bare(StopToken);

impl CpuIo for Bare {
    fn pio_read(&self, _port: u16, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn pio_write(&self, _port: u16, _data: &[u8]) {
        self.0.raise(StopToken::STOP);
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

/// Runs the loop on `engine` and says at what rate.
#[must_use]
pub fn probe(engine: &dyn Engine) -> Probe {
    match run(engine) {
        Ok(rate) => Probe::Works { rate },
        Err(why) => Probe::Missing(why),
    }
}

fn run(engine: &dyn Engine) -> Result<f64, String> {
    let text = |e: &dyn std::error::Error| e.to_string();
    let memory = GuestMemory::new(1 << 20).map_err(|e| text(&e))?;
    let put = |gpa: u64, v: u64| memory.store(gpa, v).map_err(|e| text(&e));
    put(0x1000, 0x2007)?;
    put(0x2000, 0x3007)?;
    put(0x3000, 0x87)?;
    // l: mov rax,[rsi]; add rax,rcx; mov [rsi],rax; xor rdx,rax; dec ecx; jnz l; out 0xf4,al; hlt
    let code = b"\x48\x8b\x06\x48\x01\xc8\x48\x89\x06\x48\x31\xc2\xff\xc9\x75\xf0\xe6\xf4\xf4";
    memory.write(0x8000, code).map_err(|e| text(&e))?;
    let cpu = Arc::new(crate::host_model().map_err(|e| text(&e))?);
    let stop = StopToken::new();
    let io = Arc::new(Bare(stop.clone()));
    let params = VmParams {
        memory,
        cpu: cpu.clone(),
        vcpus: 1,
        code_limit: ringer_engine::CODE_LIMIT,
        started: Instant::now(),
    };
    let vm = engine.create_vm(params).map_err(|e| text(&e))?;
    let mut vcpu = vm.create_vcpu(0, io, stop).map_err(|e| text(&e))?;
    vcpu.set_state(&long_mode(&cpu)).map_err(|e| text(&e))?;
    let t = Instant::now();
    match vcpu.run() {
        Exit::Stopped => Ok(f64::from(ROUNDS) * 6.0 / t.elapsed().as_secs_f64()),
        exit => Err(format!("its probe guest ended by {exit:?}")),
    }
}

/// 64-bit mode at 0x8000 with the page tables that `run` made.
fn long_mode(cpu: &CpuModel) -> VcpuState {
    let mut s = VcpuState::reset(cpu.signature(), true);
    s.cr0 = cr0::PE | cr0::PG | cr0::ET | cr0::NE;
    s.cr3 = 0x1000;
    s.cr4 = cr4::PAE;
    s.efer = efer::LME | efer::LMA;
    s.seg = [Segment { selector: 16, base: 0, limit: u32::MAX, attr: Attr(0xc093) }; 6];
    s.seg[sreg::CS] = Segment { selector: 8, base: 0, limit: u32::MAX, attr: Attr(0xa09b) };
    s.gpr[1] = u64::from(ROUNDS);
    s.gpr[6] = 0x9000;
    s.rip = 0x8000;
    s
}
