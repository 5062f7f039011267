//! Names of machines.

use std::fmt;
use std::str::FromStr;

/// A machine's name: 1 to [`VmName::MOST`] letters, digits, `.`, `_` and `-` (ASCII), the first a letter or digit. So it is a file
/// name of no other meaning.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct VmName(String);

impl VmName {
    /// The most characters.
    pub const MOST: usize = 64;
}

impl FromStr for VmName {
    type Err = String;

    fn from_str(s: &str) -> Result<VmName, String> {
        let first = s.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
        let all = s.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
        if first && all && s.len() <= VmName::MOST {
            return Ok(VmName(s.to_owned()));
        }
        let most = VmName::MOST;
        Err(format!(
            "a name has 1 to {most} letters, digits, '.', '_' and '-', and begins with a letter or digit"
        ))
    }
}

impl fmt::Display for VmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "7", "web-1", "a.b_c", &"x".repeat(64)] {
            assert_eq!(good.parse::<VmName>().unwrap().to_string(), good);
        }
        let long = "x".repeat(65);
        for bad in ["", ".", "..", "-x", "_x", "a/b", "a b", "a\nb", "ü", "a\0", &long] {
            assert!(bad.parse::<VmName>().unwrap_err().contains("1 to 64"), "{bad:?}");
        }
    }
}
