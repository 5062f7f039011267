//! [`Fail`]: why a check did not pass.

use crate::EngineError;
use ringer_memory::MemoryError;

/// Why a check did not pass.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fail {
    /// It cannot be run here.
    Skip(String),
    /// The engine does something else than it should.
    Wrong(String),
}

/// `Err`, with this text.
pub(super) fn fail<T>(text: String) -> Result<T, Fail> {
    Err(Fail::Wrong(text))
}

/// A chain of errors as one line.
fn chain(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut next = e.source();
    while let Some(e) = next {
        text = format!("{text}: {e}");
        next = e.source();
    }
    text
}

impl From<EngineError> for Fail {
    fn from(e: EngineError) -> Fail {
        match e {
            EngineError::Unavailable { .. } => Fail::Skip(chain(&e)),
            _ => Fail::Wrong(chain(&e)),
        }
    }
}

impl From<MemoryError> for Fail {
    fn from(e: MemoryError) -> Fail {
        Fail::Wrong(chain(&e))
    }
}

impl From<iced_x86::IcedError> for Fail {
    fn from(e: iced_x86::IcedError) -> Fail {
        Fail::Wrong(format!("the check's code cannot be assembled: {e}"))
    }
}
