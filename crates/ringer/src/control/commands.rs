//! `ringer ps`, `pause`, `resume`, `engine`, `info`, `stop` and `kill`.

use super::client::{Connection, Reached};
use super::folder;
use super::name::VmName;
use super::protocol::{Answer, Info, Request, State};
use anyhow::{Context, bail};
use ringer_vmm::show_size;
use serde::Serialize;
use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Between the two looks that `info` takes to tell at what rate instructions are executed.
const LOOK: Duration = Duration::from_millis(250);
/// A guest that is still booting does not hear of the power button: it is pressed again.
const PRESS_AGAIN: Duration = Duration::from_secs(5);
/// How long a killed machine may take to end before its process is.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// Connects to the machine called `name`, which must be there.
fn connect(name: &VmName) -> anyhow::Result<Connection> {
    let reached = match folder::folder(false)? {
        Some(folder) => Connection::reach(&folder, name)?,
        None => Reached::Nobody,
    };
    match reached {
        Reached::Machine(c) => Ok(c),
        Reached::Nobody => bail!("no machine called {name} is running: ringer ps lists those that are"),
        Reached::Dead => bail!("the machine called {name} has died: what it left was removed"),
    }
}

/// `ringer ps`.
pub fn ps(json: bool) -> anyhow::Result<ExitCode> {
    let mut rows = Vec::new();
    if let Some(folder) = folder::folder(false)? {
        for name in folder::names(&folder)? {
            match Connection::reach(&folder, &name) {
                Ok(Reached::Machine(mut c)) => match c.info(&Request::Info) {
                    Ok(info) => rows.push(info),
                    Err(e) => eprintln!("ringer: {e:#}{}", of_process(c.pid())),
                },
                Ok(Reached::Nobody) => {}
                Ok(Reached::Dead) => eprintln!("ringer: {name} has died: what it left was removed"),
                Err(e) => eprintln!("ringer: {name}: {e:#}"),
            }
        }
    }
    if json {
        return print_json(&rows);
    }
    let head = ["NAME", "PID", "STATE", "ENGINE", "VCPUS", "MEMORY", "UPTIME"].map(str::to_owned);
    let cells = rows.iter().map(|i| {
        let pid = i.pid.to_string();
        let vcpus = i.vcpus.to_string();
        let uptime = show_time(i.uptime_ms);
        [i.name.clone(), pid, state(i).to_owned(), i.engine.clone(), vcpus, show_size(i.memory), uptime]
    });
    let table: Vec<[String; 7]> = std::iter::once(head).chain(cells).collect();
    let mut out = std::io::stdout().lock();
    for row in &table {
        let mut line = String::new();
        for (n, cell) in row.iter().enumerate() {
            let width = table.iter().map(|r| r[n].len()).max().unwrap_or(0);
            line += &format!("{cell:<width$}  ");
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn of_process(pid: Option<u32>) -> String {
    pid.map_or(String::new(), |p| format!(": its process is {p}"))
}

fn state(i: &Info) -> &'static str {
    match i.state {
        State::Running => "running",
        State::Paused => "paused",
    }
}

fn print_json(what: &impl Serialize) -> anyhow::Result<ExitCode> {
    let text = serde_json::to_string_pretty(what)?;
    writeln!(std::io::stdout().lock(), "{text}")?;
    Ok(ExitCode::SUCCESS)
}

/// Asks for something that shows in nothing but the machine's state.
pub fn simple(name: &VmName, request: &Request) -> anyhow::Result<ExitCode> {
    connect(name)?.info(request)?;
    Ok(ExitCode::SUCCESS)
}

pub fn pause(name: &VmName) -> anyhow::Result<ExitCode> {
    simple(name, &Request::Pause)
}

pub fn resume(name: &VmName) -> anyhow::Result<ExitCode> {
    simple(name, &Request::Resume)
}

pub fn engine(name: &VmName, engine: &str) -> anyhow::Result<ExitCode> {
    simple(name, &Request::Engine { engine: engine.to_owned() })
}

/// What `info` prints.
#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    info: Info,
    /// Millions of instructions a second, at the moment, if they are counted.
    mips: Option<f64>,
}

/// Instead of a number of instructions.
fn uncounted() -> String {
    "not counted (run with --stats)".to_owned()
}

/// `ringer info`.
pub fn info(name: &VmName, json: bool) -> anyhow::Result<ExitCode> {
    let mut c = connect(name)?;
    let first = c.info(&Request::Info)?;
    let mut mips = first.instructions.map(|_| 0.0);
    let mut last = first.clone();
    if first.state == State::Running {
        std::thread::sleep(LOOK);
        last = c.info(&Request::Info)?;
        let ms = last.run_ms.saturating_sub(first.run_ms).max(1);
        mips = last
            .instructions
            .zip(first.instructions)
            .map(|(b, a)| b.saturating_sub(a) as f64 / ms as f64 / 1e3);
    }
    if json {
        return print_json(&Report { info: last, mips });
    }
    let mut out = std::io::stdout().lock();
    let lines = [
        ("name", last.name.clone()),
        ("pid", last.pid.to_string()),
        ("state", state(&last).to_owned()),
        ("engine", last.engine.clone()),
        ("MIPS", mips.map_or_else(uncounted, |m| format!("{m:.1}"))),
        ("instructions", last.instructions.map_or_else(uncounted, |n| n.to_string())),
        ("vcpus", last.vcpus.to_string()),
        ("memory", format!("{}, {} resident", show_size(last.memory), show_size(last.resident))),
        ("uptime", format!("{}, {} of it running", show_time(last.uptime_ms), show_time(last.run_ms))),
    ];
    for (key, value) in lines {
        writeln!(out, "{key:<13} {value}")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// `ringer stop`.
pub fn stop(name: &VmName, limit: Duration) -> anyhow::Result<ExitCode> {
    let mut c = connect(name)?;
    let before = c.info(&Request::Info)?;
    if before.state == State::Paused {
        // A guest that stands still does not see the button.
        c.info(&Request::Resume)?;
    }
    let began = Instant::now();
    while let Some(left) = limit.checked_sub(began.elapsed()) {
        let pressed = c.info(&Request::PowerButton);
        // One that powers off may have no answer any more.
        if c.wait_end(left.min(PRESS_AGAIN)) {
            return Ok(ExitCode::SUCCESS);
        }
        pressed?;
    }
    end(&mut c)?;
    eprintln!("ringer: {name} did not power off within {} s: it was ended", limit.as_secs());
    Ok(ExitCode::SUCCESS)
}

/// `ringer kill`.
pub fn kill(name: &VmName) -> anyhow::Result<ExitCode> {
    end(&mut connect(name)?)?;
    Ok(ExitCode::SUCCESS)
}

/// Ends a machine: its process ends it in order, or is killed if it does not.
fn end(c: &mut Connection) -> anyhow::Result<()> {
    c.set_patience(KILL_PATIENCE)?;
    let asked = c.ask(&Request::Kill);
    if matches!(asked, Ok(Answer::Done)) && c.wait_end(KILL_PATIENCE) {
        return Ok(());
    }
    if c.wait_end(Duration::from_millis(1)) {
        return Ok(());
    }
    c.kill_process().context("it does not end, and cannot be killed")?;
    if !c.wait_end(KILL_PATIENCE) {
        bail!("its process was killed and has not ended yet");
    }
    Ok(())
}

/// A time as people write it.
fn show_time(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0..60 => format!("{s}.{} s", ms % 1000 / 100),
        60..3600 => format!("{} min {} s", s / 60, s % 60),
        3600..86_400 => format!("{} h {} min", s / 3600, s / 60 % 60),
        _ => format!("{} d {} h", s / 86_400, s / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(show_time(1_250), "1.2 s");
        assert_eq!(show_time(61_000), "1 min 1 s");
        assert_eq!(show_time(7_260_000), "2 h 1 min");
        assert_eq!(show_time(90_000_000), "1 d 1 h");
    }
}
