//! The control protocol: a request a line, an answer a line, both JSON (docs/control.md).

use serde::{Deserialize, Serialize};
use std::io::{self, BufRead, Read, Write};

/// The longest line, its end included.
pub const MOST: u64 = 64 << 10;

/// What can be asked of a machine.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// What it is now.
    Info,
    /// Stand still.
    Pause,
    /// Go on.
    Resume,
    /// Another engine.
    Engine {
        /// Its name.
        engine: String,
    },
    /// Press the power button.
    PowerButton,
    /// End at once.
    Kill,
}

/// Whether a machine runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    Running,
    Paused,
}

/// A machine as it is at the moment.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Info {
    pub name: String,
    pub pid: u32,
    pub state: State,
    pub engine: String,
    pub vcpus: u32,
    /// Bytes of guest RAM, and how many of them the host holds.
    pub memory: u64,
    pub resident: u64,
    /// Milliseconds since it was started, and those that it ran.
    pub uptime_ms: u64,
    pub run_ms: u64,
    /// Guest instructions of all processors so far, if all are counted.
    pub instructions: Option<u64>,
}

/// The answer to a request.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// It is done; what the machine is now.
    Ok(Info),
    /// It is done, and the machine has come to its end by it.
    Done,
    /// It is not, and nothing has changed: a sentence.
    Error(String),
}

/// Reads a line; `None` at the end of the stream.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] for a line longer than [`MOST`], one that does not end, or one that is not a `T`; the host's.
pub fn receive<T: for<'a> Deserialize<'a>>(from: &mut impl BufRead) -> io::Result<Option<T>> {
    let mut line = Vec::new();
    from.take(MOST).read_until(b'\n', &mut line)?;
    let bad = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    match line.pop() {
        None => Ok(None),
        Some(b'\n') => serde_json::from_slice(&line).map(Some).map_err(|e| bad(e.to_string())),
        Some(_) => Err(bad(format!("a line of at most {MOST} bytes was expected"))),
    }
}

/// Writes a line.
///
/// # Errors
/// The host's.
pub fn send(to: &mut impl Write, what: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    to.write_all(&line)?;
    to.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(line: &[u8]) -> io::Result<Option<Request>> {
        receive(&mut &*line)
    }

    #[test]
    fn lines_that_stand_in_the_manual() {
        assert_eq!(ask(b"{\"do\":\"info\"}\n").unwrap(), Some(Request::Info));
        assert_eq!(ask(b"{\"do\":\"power-button\"}\n").unwrap(), Some(Request::PowerButton));
        let engine = Request::Engine { engine: "translator".into() };
        assert_eq!(ask(b"{\"do\":\"engine\",\"engine\":\"translator\"}\n").unwrap(), Some(engine));
        assert_eq!(ask(b"").unwrap(), None);
    }

    #[test]
    fn other_lines_are_refused() {
        let long = [vec![b' '; MOST as usize], b"\n".to_vec()].concat();
        let deep = [vec![b'['; 10_000], b"\n".to_vec()].concat();
        for bad in [
            &b"{\"do\":\"info\"}"[..],
            b"\n",
            b"{}\n",
            b"{\"do\":\"fly\"}\n",
            b"{\"do\":\"engine\"}\n",
            b"{\"do\":\"engine\",\"engine\":7}\n",
            b"{\"do\":\"engine\",\"engine\":\"a\",\"more\":1}\n",
            b"{\"do\":\"info\"} {\"do\":\"info\"}\n",
            b"\xff\xfe\n",
            &long,
            &deep,
        ] {
            let e = ask(bad).unwrap_err();
            assert_eq!(e.kind(), io::ErrorKind::InvalidData, "{e}");
        }
    }

    #[test]
    fn answers_there_and_back() {
        let info = Info {
            name: "web".into(),
            pid: 7,
            state: State::Paused,
            engine: "interpreter".into(),
            vcpus: 2,
            memory: 512 << 20,
            resident: 99,
            uptime_ms: 5,
            run_ms: 4,
            instructions: Some(u64::MAX),
        };
        for a in [Answer::Ok(info), Answer::Done, Answer::Error("no\nsuch thing".into())] {
            let mut line = Vec::new();
            send(&mut line, &a).unwrap();
            assert_eq!(line.iter().filter(|b| **b == b'\n').count(), 1);
            assert_eq!(receive::<Answer>(&mut &*line).unwrap(), Some(a));
        }
    }
}
