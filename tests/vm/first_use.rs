//! The first use, as an ordinary user with an empty home: the download, interrupted and done by two at once.

use crate::support::{Guard, Started, guest, output, ringer, skip};
use rustix::fs::{Gid, Uid, chown};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const NOBODY: u32 = 65534;

/// A user with a home folder.
struct User {
    home: tempfile::TempDir,
    program: PathBuf,
    is_nobody: bool,
}

impl User {
    /// Somebody without rights: nobody if we are root, else who we are.
    fn new() -> Option<User> {
        let home = tempfile::tempdir().unwrap();
        // Wherever the target folder is, nobody need be able to get there.
        let program = home.path().join("ringer");
        std::fs::copy(ringer().get_program(), &program).unwrap();
        let is_nobody = rustix::process::geteuid().is_root();
        if is_nobody {
            chown(home.path(), Some(Uid::from_raw(NOBODY)), Some(Gid::from_raw(NOBODY))).unwrap();
            std::fs::set_permissions(home.path(), PermissionsExt::from_mode(0o700)).unwrap();
        }
        let user = User { home, program, is_nobody };
        let works = user.command("true").stderr(Stdio::null()).status().is_ok_and(|s| s.success());
        if !works {
            skip("setpriv cannot make us an ordinary user here");
        }
        works.then_some(user)
    }

    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut c;
        if self.is_nobody {
            c = Command::new("setpriv");
            let id = NOBODY.to_string();
            c.args(["--reuid", &id, "--regid", &id, "--clear-groups", "--no-new-privs"]).arg(program);
        } else {
            c = Command::new(program);
        }
        c.env("HOME", self.home.path()).env_remove("XDG_CACHE_HOME").current_dir(self.home.path());
        c.stdin(Stdio::null());
        c
    }

    fn ringer(&self, args: &[&str]) -> Command {
        let mut c = self.command(&self.program);
        c.args(args);
        c
    }

    fn cache(&self) -> PathBuf {
        self.home.path().join(".cache/ringer")
    }

    /// Names under `guests`.
    fn guests(&self) -> Vec<String> {
        names(&self.cache().join("guests"))
    }

    /// Starts it and kills it, mercilessly, once `now`.
    #[track_caller]
    fn killed(&self, args: &[&str], now: impl Fn() -> bool) {
        let mut command = self.ringer(args);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = Guard(command.spawn().unwrap());
        let began = Instant::now();
        while !now() {
            assert!(child.0.try_wait().unwrap().is_none(), "it ended before it could be killed");
            assert!(began.elapsed() < crate::support::LIMIT);
            std::thread::sleep(Duration::from_millis(1));
        }
        child.0.kill().unwrap();
        child.status();
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
}

fn is_deb(name: &str) -> bool {
    name.ends_with(".deb")
}

#[test]
fn download_killed_resumed_and_shared() {
    // Says whether there is a network at all.
    if guest("cloud").is_none() {
        return;
    }
    let Some(user) = User::new() else { return };
    let archives = user.cache().join("apt/cache/archives");
    user.killed(&["fetch"], || {
        names(&archives.join("partial")).iter().any(|n| is_deb(n))
            || names(&archives).iter().any(|n| is_deb(n))
    });
    assert!(user.guests().is_empty(), "{:?}", user.guests());

    user.killed(&["run", "--", "id"], || user.guests().iter().any(|g| g.starts_with(".new-")));
    assert!(user.guests().iter().all(|g| g.starts_with(".new-")), "{:?}", user.guests());

    let both = [(); 2].map(|()| Started::new(user.ringer(&["run", "--", "id", "-u"])));
    for ran in both.map(Started::end) {
        assert_eq!(ran.ended(0).text(), "0\n");
    }
    let guests = user.guests();
    assert!(guests.len() == 1 && guests[0].starts_with("cloud-"), "{guests:?}");
    // From now on nothing is fetched and nothing is said.
    let again = output(user.ringer(&["run", "--", "true"])).ended(0);
    assert_eq!(again.error(), "");
    // Nothing but the cache folder has come to the user's home.
    let mut there = names(user.home.path());
    there.sort();
    assert_eq!(there, [".cache", "ringer"]);
}
