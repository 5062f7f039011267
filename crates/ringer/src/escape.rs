//! The keys that Ringer keeps for itself on a terminal: what follows Ctrl-A.

/// Ctrl-A.
const PREFIX: u8 = 1;

/// What the user asked Ringer for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Leave: the machine is ended.
    Leave,
    /// List the keys.
    Help,
}

/// What Ctrl-A h prints.
pub const HELP: &str = "\
\r\nringer: Ctrl-A x  end the machine and leave\
\r\nringer: Ctrl-A h  this list\
\r\nringer: Ctrl-A Ctrl-A  send Ctrl-A to the guest\r\n";

/// Splits the user's keys between Ringer and the guest.
#[derive(Debug, Default)]
pub struct Escape {
    prefixed: bool,
}

impl Escape {
    /// Appends what is the guest's of `input` to `guest`; returns what was asked of Ringer, in order.
    pub fn feed(&mut self, input: &[u8], guest: &mut Vec<u8>) -> Vec<Action> {
        let mut actions = Vec::new();
        for &b in input {
            if !std::mem::replace(&mut self.prefixed, false) {
                if b == PREFIX {
                    self.prefixed = true;
                } else {
                    guest.push(b);
                }
                continue;
            }
            match b {
                b'x' | b'X' => actions.push(Action::Leave),
                b'h' | b'H' | b'?' => actions.push(Action::Help),
                PREFIX | b'a' => guest.push(PREFIX),
                // No key of ours: the guest gets both.
                _ => guest.extend([PREFIX, b]),
            }
        }
        actions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(parts: &[&[u8]]) -> (Vec<u8>, Vec<Action>) {
        let (mut e, mut guest, mut actions) = (Escape::default(), Vec::new(), Vec::new());
        for p in parts {
            actions.extend(e.feed(p, &mut guest));
        }
        (guest, actions)
    }

    #[test]
    fn keys() {
        assert_eq!(feed(&[b"ls\r"]), (b"ls\r".to_vec(), vec![]));
        assert_eq!(feed(&[b"a\x01xb"]), (b"ab".to_vec(), vec![Action::Leave]));
        assert_eq!(feed(&[b"\x01", b"x"]), (vec![], vec![Action::Leave]));
        assert_eq!(feed(&[b"\x01\x01x\x01?"]), (b"\x01x".to_vec(), vec![Action::Help]));
        assert_eq!(feed(&[b"\x01q"]), (b"\x01q".to_vec(), vec![]));
    }
}
