//! What a run of the default guest is for: a second, small initramfs that is put behind the cached one.

use super::cpio::CpioWriter;
use std::io;

/// What the guest runs, and on what.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Session {
    /// A shell on the console; the machine powers off when it ends.
    Console,
    /// A command whose standard input, output and error are the host's, byte for byte, as pipes.
    Pipes(Vec<Vec<u8>>),
    /// A command on a terminal of its own (the second serial line).
    Terminal(Vec<Vec<u8>>),
}

/// The host's terminal, as far as the guest should know.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TerminalInfo {
    /// `TERM`, if it is set.
    pub term: Option<Vec<u8>>,
    /// Rows and columns, if there is a terminal.
    pub size: Option<(u16, u16)>,
}

/// Builds that initramfs. Its bytes are cpio, not compressed, and can be appended to any initramfs whose length is
/// a multiple of 4. Arguments may hold any byte but NUL, which no argument can.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] for a command of no words, or a NUL byte in one.
pub fn session_initramfs(session: &Session, terminal: &TerminalInfo) -> io::Result<Vec<u8>> {
    let (mode, argv) = match session {
        Session::Console => ("console", None),
        Session::Pipes(argv) => ("pipes", Some(argv)),
        Session::Terminal(argv) => ("terminal", Some(argv)),
    };
    let mut settings = format!("RINGER_MODE={mode}\n").into_bytes();
    if let Some((rows, cols)) = terminal.size {
        settings.extend_from_slice(format!("RINGER_ROWS={rows}\nRINGER_COLS={cols}\n").as_bytes());
    } else if mode == "terminal" {
        settings.extend_from_slice(b"RINGER_ROWS=24\nRINGER_COLS=80\n");
    }
    if let Some(term) = &terminal.term {
        settings.extend_from_slice(b"export TERM=");
        settings.extend_from_slice(&quote(term)?);
        settings.push(b'\n');
    }
    let mut w = CpioWriter::new(Vec::new());
    w.file("ringer/settings", 0o644, &settings)?;
    if let Some(argv) = argv {
        w.file("ringer/command", 0o644, &command_script(argv)?)?;
    }
    w.finish()
}

/// A shell script that becomes the command.
fn command_script(argv: &[Vec<u8>]) -> io::Result<Vec<u8>> {
    if argv.is_empty() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut out = b"exec".to_vec();
    for a in argv {
        out.push(b' ');
        out.extend_from_slice(&quote(a)?);
    }
    out.push(b'\n');
    Ok(out)
}

/// `word` such that a shell reads exactly these bytes: single quotes keep all but themselves (POSIX XCU 2.2.2).
fn quote(word: &[u8]) -> io::Result<Vec<u8>> {
    if word.contains(&0) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut out = vec![b'\''];
    for &b in word {
        if b == b'\'' {
            out.extend_from_slice(b"'\\''");
        } else {
            out.push(b);
        }
    }
    out.push(b'\'');
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::process::Command;

    /// The host's shell reads back exactly the words that went in.
    #[test]
    fn quoting_is_exact() {
        let words: Vec<Vec<u8>> = vec![
            b"printf".to_vec(),
            b"%s\\n[%s][%s][%s][%s]".to_vec(),
            b"it's \"$HOME\" `id` \\ !* ~ # ;&|".to_vec(),
            b"new\nline\ttab ".to_vec(),
            b"".to_vec(),
            (1..=255).collect(),
            b"-n".to_vec(),
        ];
        let script = command_script(&words).unwrap();
        let out = Command::new("sh").arg("-c").arg(OsStr::from_bytes(&script)).output().unwrap();
        let direct = Command::new("/usr/bin/printf")
            .args(words[1..].iter().map(|w| OsStr::from_bytes(w)))
            .output()
            .unwrap();
        assert!(out.status.success());
        assert_eq!(out.stdout, direct.stdout);
        assert!(out.stdout.windows(255).any(|w| w.iter().copied().eq(1..=255)));
    }

    #[test]
    fn refuses_what_cannot_be_passed() {
        let none = TerminalInfo::default();
        assert!(session_initramfs(&Session::Pipes(vec![]), &none).is_err());
        assert!(session_initramfs(&Session::Pipes(vec![b"a\0b".to_vec()]), &none).is_err());
    }

    #[test]
    fn settings_tell_of_the_terminal() {
        let info = TerminalInfo { term: Some(b"x'term".to_vec()), size: Some((50, 132)) };
        let cpio = session_initramfs(&Session::Terminal(vec![b"sh".to_vec()]), &info).unwrap();
        let text = String::from_utf8_lossy(&cpio).into_owned();
        assert!(
            text.contains(
                "RINGER_MODE=terminal\nRINGER_ROWS=50\nRINGER_COLS=132\nexport TERM='x'\\''term'\n"
            )
        );
        assert!(text.contains("exec 'sh'\n"));
        assert_eq!(cpio.len() % 512, 0);
    }
}
