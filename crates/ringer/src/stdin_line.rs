//! Standard input of a command, on its way through a serial line in canonical mode.
//!
//! The guest's line discipline (Linux n_tty) hands a reader whatever came before a ^D, and tells it of the end if nothing
//! did. ^V takes the meaning off the byte behind it. So each piece is its bytes, those that could mean something quoted,
//! and a ^D; an empty piece is the end.

/// VLNEXT: the next byte is only itself.
const LITERAL: u8 = 0x16;
/// VEOF: push what there is; with nothing before it, the end of input.
const PUSH: u8 = 4;
/// Bytes to a piece, before quoting: the line discipline holds 4,095 of a line that has not ended.
pub const PIECE: usize = 2048;

/// One piece of input, at most [`PIECE`] bytes, ready to send. An empty one is the end of input.
#[must_use]
pub fn encode(piece: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(piece.len() * 2 + 1);
    for &b in piece {
        if b < 0x20 || b == 0x7f {
            out.push(LITERAL);
        }
        out.push(b);
    }
    out.push(PUSH);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_control_bytes_only() {
        assert_eq!(encode(b"hi\n"), b"hi\x16\n\x04");
        assert_eq!(encode(&[4, 0, 0xff, 0x7f, 0x80]), [0x16, 4, 0x16, 0, 0xff, 0x16, 0x7f, 0x80, 4]);
        assert_eq!(encode(b""), b"\x04");
    }

    /// What Linux would hand its reader: the inverse, by the rules above.
    #[test]
    fn the_line_discipline_gives_it_back() {
        let all: Vec<u8> = (0..=255).cycle().take(PIECE).collect();
        let (mut got, mut literal) = (Vec::new(), false);
        for b in encode(&all) {
            let quoted = std::mem::replace(&mut literal, false);
            match b {
                LITERAL if !quoted => literal = true,
                PUSH if !quoted => {}
                _ => got.push(b),
            }
        }
        assert_eq!(got, all);
    }
}
