//! How much memory a process holds beside the RAM of its guest.

use std::fs;

/// The most that was seen.
#[derive(Debug)]
pub struct Peak {
    pid: u32,
    ram: u64,
    most: Option<u64>,
}

impl Peak {
    /// Watches a process whose guest has `ram` bytes.
    pub fn new(pid: u32, ram: u64) -> Peak {
        Peak { pid, ram, most: None }
    }

    /// Looks. Reading the maps holds the process up a little, so this is for when nothing is measured.
    pub fn sample(&mut self) {
        if let Ok(maps) = fs::read_to_string(format!("/proc/{}/smaps", self.pid)) {
            self.most = self.most.max(Some(beside_ram(&maps, self.ram)));
        }
    }

    /// The most, in bytes.
    pub fn most(&self) -> Option<u64> {
        self.most
    }
}

/// Resident bytes of all mappings but the guest's RAM: those of Ringer's memfd, and one as long as the RAM (QEMU's). A
/// page that is mapped twice counts once (Pss, proc(5)).
fn beside_ram(smaps: &str, ram: u64) -> u64 {
    let (mut sum, mut is_ram) = (0, false);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let (Some(first), Some(second)) = (words.next(), words.next()) else { continue };
        match first {
            "Size:" => is_ram |= second.parse::<u64>().is_ok_and(|kib| kib << 10 == ram),
            "Pss:" if !is_ram => sum += second.parse::<u64>().unwrap_or(0) << 10,
            f if !f.ends_with(':') => is_ram = line.contains("/memfd:ringer-guest-ram"),
            _ => {}
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::beside_ram;

    #[test]
    fn guest_ram_does_not_count() {
        let maps = "\
55d0-55e0 r-xp 00000000 08:01 123 /usr/bin/x
Size:                100 kB
Rss:                  80 kB
Pss:                  40 kB
7f00-7f10 rw-s 00000000 00:01 12 /memfd:ringer-guest-ram (deleted)
Size:                640 kB
Pss:                 600 kB
7f20-7f30 rw-p 00000000 00:00 0
Size:               1024 kB
Pss:                1000 kB
7f40-7f50 rw-p 00000000 00:00 0 [heap]
Size:                 12 kB
Pss:                  12 kB
";
        assert_eq!(beside_ram(maps, 1024 << 10), 52 << 10);
        assert_eq!(beside_ram("", 1), 0);
    }
}
