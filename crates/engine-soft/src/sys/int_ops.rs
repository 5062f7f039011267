//! INT n, INT3, INT1, INTO, BOUND.

use super::v86;
use crate::cpu::{Cpu, Fault, Mode, R};
use crate::hostops::fl;
use crate::mmu::Acc;
use crate::operand::sext;
use iced_x86::{Instruction, Mnemonic as M};
use ringer_arch::Exception;
use ringer_arch::exception::vector;

impl Cpu {
    /// Notes a software interrupt by an instruction of `len` bytes, which [`raise_pending`](super::interrupt::raise_pending)
    /// delivers, with the gate's DPL checked.
    #[cold]
    pub fn raise_soft(&mut self, vector: u8, len: u8) -> Fault {
        self.exc = Some(Exception::plain(vector));
        self.soft_int = Some(len);
        Fault
    }
}

pub(super) fn execute(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    let len = i.len() as u8;
    match i.mnemonic() {
        M::Int => int_n(cpu, i.immediate8(), len),
        M::Int3 => Err(cpu.raise_soft(vector::BP, len)),
        M::Into if cpu.fl & fl::OF != 0 => Err(cpu.raise_soft(vector::OF, len)),
        M::Into => Ok(()),
        M::Int1 => {
            // Delivered as the processor's own trap: no DPL check, and DR6 stays (Intel SDM vol. 2A "INT n").
            cpu.rip = cpu.next_rip;
            Err(cpu.raise(Exception::plain(vector::DB)))
        }
        _ => bound(cpu, i),
    }
}

fn int_n(cpu: &mut Cpu, n: u8, len: u8) -> R<()> {
    if cpu.mode == Mode::V86 {
        // Intel SDM vol. 3B §21.3: VME may send it to the virtual-8086 program itself; else IOPL decides.
        if v86::redirected(cpu, n)? {
            return v86::software_interrupt(cpu, n);
        }
        if cpu.iopl() < 3 {
            return Err(cpu.gp(0));
        }
    }
    Err(cpu.raise_soft(n, len))
}

fn bound(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    let size = i.op0_register().size() as u32;
    let lin = cpu.mem_lin(i, u64::from(size) * 2, Acc::Read)?;
    let lower = cpu.load_n(lin, size)?;
    let at = cpu.lin_add(lin, u64::from(size));
    let upper = cpu.load_n(at, size)?;
    let [v, lower, upper] = [cpu.reg(i.op0_register()), lower, upper].map(|x| sext(x, size) as i64);
    if v < lower || v > upper {
        return Err(cpu.raise(Exception::plain(vector::BR)));
    }
    Ok(())
}
