//! [`code!`]: guest code in a check.

use super::fail::Fail;
use super::guest::Guest;
use iced_x86::BlockEncoderOptions;
use iced_x86::code_asm::{CodeAssembler, CodeLabel};

/// Puts what was assembled into RAM at `base` (also its address in its segment, if that has base 0), and says where `labels` are.
pub(super) fn place<const N: usize>(
    g: &Guest,
    base: u64,
    mut a: CodeAssembler,
    labels: &[CodeLabel; N],
) -> Result<[u64; N], Fail> {
    let r = a.assemble_options(base, BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)?;
    g.mem.write(base, &r.inner.code_buffer)?;
    let mut out = [0; N];
    for (to, l) in out.iter_mut().zip(labels) {
        *to = r.label_ip(l)?;
    }
    Ok(out)
}

/// Assembles code of so many bits and puts it at an address: `code!(g, 64, KCODE, [fault]; mov(rax, rbx); @fault hlt())?`.
/// `@label` names the instruction behind it; the value is the addresses of the listed labels. Instructions are methods of iced-x86's `CodeAssembler`.
macro_rules! code {
    ($g:expr, $bits:expr, $base:expr, [$($label:ident),*]; $($(@ $at:ident)? $($op:ident ( $($arg:expr),* )).+);+ $(;)?) => {
        (|| -> Result<_, $crate::conformance::fail::Fail> {
            #[allow(unused_mut)]
            let mut a = iced_x86::code_asm::CodeAssembler::new($bits)?;
            $(let mut $label = a.create_label();)*
            $(
                $(a.set_label(&mut $at)?;)?
                a.$($op($($arg),*)).+?;
            )+
            $crate::conformance::asm::place(&$g, $base, a, &[$($label),*])
        })()
    };
    ($g:expr, $bits:expr, $base:expr; $($rest:tt)+) => {
        code!($g, $bits, $base, []; $($rest)+).map(|[]: [u64; 0]| ())
    };
}
pub(super) use code;

/// The text of a value, cut if it is long.
pub(super) fn short<T: std::fmt::Debug + ?Sized>(v: &T) -> String {
    let text = format!("{v:x?}");
    match text.char_indices().nth(400) {
        Some((n, _)) => format!("{}...", &text[..n]),
        None => text,
    }
}

/// Fails the check unless the two are equal.
macro_rules! same {
    ($got:expr, $want:expr) => {{
        let (got, want) = (&$got, &$want);
        if got != want {
            return Err($crate::conformance::fail::Fail::Wrong(format!(
                "{}:{}: {} is {}, not {}",
                file!().rsplit('/').next().unwrap_or_default(),
                line!(),
                stringify!($got),
                $crate::conformance::asm::short(got),
                $crate::conformance::asm::short(want),
            )));
        }
    }};
}
pub(super) use same;

/// Fails the check unless the condition holds.
macro_rules! holds {
    ($cond:expr) => {
        if !$cond {
            return Err($crate::conformance::fail::Fail::Wrong(format!(
                "{}:{}: {} does not hold",
                file!().rsplit('/').next().unwrap_or_default(),
                line!(),
                stringify!($cond),
            )));
        }
    };
    ($cond:expr, $($arg:tt)+) => {
        if !$cond {
            return Err($crate::conformance::fail::Fail::Wrong(format!($($arg)+)));
        }
    };
}
pub(super) use holds;
