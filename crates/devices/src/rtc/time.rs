//! Dates, and how the RTC's registers write them.

/// How time registers are coded (register B).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Format {
    pub binary: bool,
    pub hours24: bool,
}

const PM: u8 = 0x80;

impl Format {
    fn encode(self, v: u8) -> u8 {
        if self.binary { v } else { (v / 10 % 10) << 4 | (v % 10) }
    }

    fn decode(self, v: u8) -> Option<u8> {
        if self.binary {
            return Some(v);
        }
        (v & 15 < 10 && v >> 4 < 10).then(|| (v >> 4) * 10 + (v & 15))
    }

    fn encode_hour(self, hour: u8) -> u8 {
        if self.hours24 {
            return self.encode(hour);
        }
        let twelve = (hour + 11) % 12 + 1;
        self.encode(twelve) | if hour >= 12 { PM } else { 0 }
    }

    fn decode_hour(self, v: u8) -> Option<u8> {
        if self.hours24 {
            return self.decode(v).filter(|h| *h < 24);
        }
        let h = self.decode(v & !PM).filter(|h| (1..=12).contains(h))?;
        Some(h % 12 + if v & PM != 0 { 12 } else { 0 })
    }

    /// Whether the alarm registers match the time of day of `unix`. 0xC0 and above match all.
    pub(super) fn alarm_matches(self, cmos: &[u8; 128], unix: i64) -> bool {
        let t = unix.rem_euclid(86_400);
        let (h, m, s) = (small(t / 3600), small(t / 60 % 60), small(t % 60));
        let is = |reg: usize, coded: u8| cmos[reg] >= 0xc0 || cmos[reg] == coded;
        is(1, self.encode(s)) && is(3, self.encode(m)) && is(5, self.encode_hour(h))
    }
}

/// A date and time of day.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Civil {
    pub year: u16,
    pub month: u8,
    pub day: u8,
    pub hour: u8,
    pub minute: u8,
    pub second: u8,
    /// 1 is Sunday.
    pub weekday: u8,
}

/// A number that is known to fit.
fn small(v: i64) -> u8 {
    u8::try_from(v).unwrap_or(u8::MAX)
}

/// Days before each month of a year that starts in March.
fn days_before(month_from_march: i64) -> i64 {
    (153 * month_from_march + 2) / 5
}

impl Civil {
    /// From seconds since 1970, of the years 0 to 9999 (beyond, the nearest). The calendar repeats every 400 years of
    /// 146,097 days; years are counted from March, so that the leap day is the last.
    pub(super) fn from_unix(unix: i64) -> Civil {
        let unix = unix.clamp(-62_167_219_200, 253_402_300_799);
        let days = unix.div_euclid(86_400);
        let t = unix.rem_euclid(86_400);
        let since = days + 719_468;
        let era = since.div_euclid(146_097);
        let doe = since.rem_euclid(146_097);
        let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
        let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
        let mp = (5 * doy + 2) / 153;
        let month = if mp < 10 { mp + 3 } else { mp - 9 };
        let year = era * 400 + yoe + i64::from(month <= 2);
        // All in range after the clamp.
        Civil {
            year: u16::try_from(year).unwrap_or(u16::MAX),
            month: small(month),
            day: small(doy - days_before(mp) + 1),
            hour: small(t / 3600),
            minute: small(t / 60 % 60),
            second: small(t % 60),
            // 1970 began on a Thursday.
            weekday: small((days + 4).rem_euclid(7) + 1),
        }
    }

    pub(super) fn to_unix(self) -> i64 {
        let month = i64::from(self.month);
        let year = i64::from(self.year) - i64::from(month <= 2);
        let mp = if month > 2 { month - 3 } else { month + 9 };
        let yoe = year.rem_euclid(400);
        let doe = 365 * yoe + yoe / 4 - yoe / 100 + days_before(mp) + i64::from(self.day) - 1;
        let days = year.div_euclid(400) * 146_097 + doe - 719_468;
        let time = i64::from(self.hour) * 3600 + i64::from(self.minute) * 60 + i64::from(self.second);
        days * 86_400 + time
    }

    /// What the clock's registers say; `None` for what is no time.
    pub(super) fn from_regs(cmos: &[u8; 128], f: Format) -> Option<Civil> {
        let within = |reg: usize, low: u8, high: u8| f.decode(cmos[reg]).filter(|v| (low..=high).contains(v));
        // Guests that know nothing of the century byte leave it as it reads; 0 means that nobody set it.
        let century = f.decode(cmos[0x32]).filter(|c| *c != 0 && *c < 100).unwrap_or(20);
        Some(Civil {
            year: u16::from(century) * 100 + u16::from(within(9, 0, 99)?),
            month: within(8, 1, 12)?,
            day: within(7, 1, 31)?,
            hour: f.decode_hour(cmos[4])?,
            minute: within(2, 0, 59)?,
            second: within(0, 0, 59)?,
            weekday: 1,
        })
    }

    /// One of the clock's registers.
    pub(super) fn reg(self, reg: u8, f: Format) -> u8 {
        match reg {
            0 => f.encode(self.second),
            2 => f.encode(self.minute),
            4 => f.encode_hour(self.hour),
            6 => f.encode(self.weekday),
            7 => f.encode(self.day),
            8 => f.encode(self.month),
            9 => f.encode((self.year % 100) as u8),
            _ => f.encode(small(i64::from(self.year / 100))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_there_and_back() {
        let t = Civil::from_unix(951_827_696);
        let leap = Civil { year: 2000, month: 2, day: 29, hour: 12, minute: 34, second: 56, weekday: 3 };
        assert_eq!(t, leap);
        assert_eq!(Civil::from_unix(0).weekday, 5);
        let mut unix = -62_167_219_200i64;
        while unix < 253_402_300_799 {
            assert_eq!(Civil::from_unix(unix).to_unix(), unix);
            unix += 86_400 * 13 + 4_321;
        }
        assert_eq!(Civil::from_unix(i64::MAX).year, 9999);
        assert_eq!(Civil::from_unix(i64::MIN).year, 0);
    }

    #[test]
    fn hours_in_all_codes() {
        for (binary, hours24) in [(false, false), (false, true), (true, false), (true, true)] {
            let f = Format { binary, hours24 };
            for h in 0..24 {
                assert_eq!(f.decode_hour(f.encode_hour(h)), Some(h));
            }
        }
        let f = Format { binary: false, hours24: false };
        assert_eq!((f.encode_hour(0), f.encode_hour(12), f.encode_hour(23)), (0x12, 0x92, 0x91));
        assert_eq!(f.decode_hour(0x13), None);
        assert_eq!(f.decode(0x1a), None);
    }
}
