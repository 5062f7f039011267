//! What the guest's driver says, line by line.

/// A line that it printed.
#[derive(Clone, PartialEq, Debug)]
pub enum Line {
    /// Userspace has begun.
    Up,
    /// The driver takes orders.
    Ready,
    /// A program has ended.
    Program(String, Outcome),
    /// Something else: a kernel message.
    Other,
}

/// How a program ended.
#[derive(Clone, PartialEq, Debug)]
pub enum Outcome {
    /// With a right result.
    Done {
        /// Time that its work took, in seconds.
        seconds: f64,
        /// Processor time that its kernel counted for it meanwhile.
        cpu: f64,
        /// How often it did it.
        iterations: u64,
        /// Its result, equal on all sides.
        check: String,
    },
    /// Its result is wrong, or it died.
    Failed(String),
    /// This processor cannot run it.
    Skipped(String),
}

/// Reads one line.
pub fn parse(line: &str) -> Line {
    match line.trim_end() {
        "bench: up" => return Line::Up,
        "bench: ready" => return Line::Ready,
        _ => {}
    }
    // A kernel message can stand before it on the same line.
    let Some(at) = line.find("bench ") else { return Line::Other };
    let mut words = line[at..].split_whitespace().skip(1);
    let (Some(name), Some(second)) = (words.next(), words.next()) else { return Line::Other };
    let rest: Vec<_> = words.collect();
    let outcome = match (second, rest.as_slice()) {
        ("failed", why) => Outcome::Failed(why.join(" ")),
        ("skipped", why) => Outcome::Skipped(why.join(" ")),
        (seconds, [cpu, iterations, check]) => {
            let (Some(seconds), Some(cpu), Ok(iterations @ 1..)) =
                (number(seconds), number(cpu), iterations.parse())
            else {
                return Line::Other;
            };
            Outcome::Done { seconds, cpu, iterations, check: (*check).to_owned() }
        }
        _ => return Line::Other,
    };
    Line::Program(name.to_owned(), outcome)
}

/// A number of seconds.
fn number(word: &str) -> Option<f64> {
    word.parse().ok().filter(|n: &f64| n.is_finite() && *n >= 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_driver_prints() {
        assert_eq!(parse("bench: up\r"), Line::Up);
        assert_eq!(parse("bench: ready"), Line::Ready);
        let done = Outcome::Done { seconds: 0.25, cpu: 0.2, iterations: 7, check: "00ff".into() };
        assert_eq!(parse("bench sqlite 0.250000000 0.200000 7 00ff\r"), Line::Program("sqlite".into(), done));
        assert_eq!(
            parse("bench x failed signal 11 (Segmentation fault)"),
            Line::Program("x".into(), Outcome::Failed("signal 11 (Segmentation fault)".into()))
        );
        assert_eq!(
            parse("[ 1.0] noise bench x skipped no SHA-NI"),
            Line::Program("x".into(), Outcome::Skipped("no SHA-NI".into()))
        );
    }

    #[test]
    fn leaves_what_is_not_whole() {
        for l in [
            "",
            "bench",
            "bench x",
            "bench x 1.0 1.0 2",
            "bench x inf 1.0 2 3",
            "bench x 1.0 1.0 0 3",
            "hello",
        ] {
            assert_eq!(parse(l), Line::Other, "{l}");
        }
    }
}
