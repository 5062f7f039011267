//! Long arrays of bytes as hexadecimal text in saved states: `#[serde(with = "ringer_arch::hex")]`.

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serializer};

/// Two digits a byte.
///
/// # Errors
/// The serializer's.
pub fn serialize<S: Serializer>(bytes: impl AsRef<[u8]>, s: S) -> Result<S::Ok, S::Error> {
    let digit = |n: u8| char::from_digit(u32::from(n), 16).unwrap_or('0');
    let text: String = bytes.as_ref().iter().flat_map(|b| [digit(b >> 4), digit(b & 15)]).collect();
    s.serialize_str(&text)
}

/// Exactly as many bytes as the array has.
///
/// # Errors
/// The deserializer's; text that is not that many bytes.
pub fn deserialize<'a, D: Deserializer<'a>, T: From<[u8; N]>, const N: usize>(d: D) -> Result<T, D::Error> {
    let text = String::deserialize(d)?;
    let digits: Option<Vec<u8>> = text.chars().map(|c| c.to_digit(16).map(|n| n as u8)).collect();
    let mut bytes = [0; N];
    match digits {
        Some(digits) if digits.len() == 2 * N => {
            for (b, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
                *b = pair[0] << 4 | pair[1];
            }
            Ok(T::from(bytes))
        }
        _ => Err(D::Error::custom(format!("{N} bytes in hexadecimal were expected"))),
    }
}
