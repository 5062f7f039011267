//! The compressions that kernels come in, told by their first bytes.

use std::io::{self, Read};

/// The most bytes that a kernel may unpack to.
pub(crate) const MAX_UNPACKED: u64 = 512 << 20;
/// The most memory that a decoder may take for its dictionary, in KiB.
const DECODER_KIB: u32 = 512 << 10;
/// Bytes that a block of the lz4 legacy frame holds at most (LZ4 frame format, "Legacy frame").
const LZ4_LEGACY_BLOCK: usize = 8 << 20;
const LZ4_LEGACY_MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];

/// How a kernel's payload is packed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Compression {
    /// RFC 1952.
    Gzip,
    /// bzip2.
    Bzip2,
    /// The .lzma ("alone") format.
    Lzma,
    /// The .xz format, with its filters.
    Xz,
    /// The lz4 legacy frame.
    Lz4,
    /// RFC 8878.
    Zstd,
}

impl Compression {
    /// What the first bytes say.
    #[must_use]
    pub fn detect(bytes: &[u8]) -> Option<Compression> {
        const MAGICS: [(&[u8], Compression); 6] = [
            (&[0x1f, 0x8b, 0x08], Compression::Gzip),
            (b"BZh", Compression::Bzip2),
            // Properties byte of lc=3 lp=0 pb=2 and a dictionary size whose low 16 bits are zero.
            (&[0x5d, 0, 0], Compression::Lzma),
            (&[0xfd, b'7', b'z', b'X', b'Z', 0], Compression::Xz),
            (&LZ4_LEGACY_MAGIC, Compression::Lz4),
            (&[0x28, 0xb5, 0x2f, 0xfd], Compression::Zstd),
        ];
        MAGICS.iter().find(|(magic, _)| bytes.starts_with(magic)).map(|&(_, c)| c)
    }

    /// The name of the format.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Compression::Gzip => "gzip",
            Compression::Bzip2 => "bzip2",
            Compression::Lzma => "lzma",
            Compression::Xz => "xz",
            Compression::Lz4 => "lz4",
            Compression::Zstd => "zstd",
        }
    }

    /// Unpacks at most `limit` bytes; `expected` is the size to make room for. Bytes after the end of the packed
    /// stream are ignored.
    ///
    /// # Errors
    /// The stream is damaged or cut off, or holds more than `limit` bytes.
    pub fn unpack(self, bytes: &[u8], expected: u64, limit: u64) -> io::Result<Vec<u8>> {
        let mut out = Vec::with_capacity(expected.min(limit).min(MAX_UNPACKED) as usize);
        let stop = limit.saturating_add(1);
        match self {
            Compression::Gzip => {
                flate2::bufread::GzDecoder::new(bytes).take(stop).read_to_end(&mut out)?;
            }
            Compression::Bzip2 => {
                bzip2::bufread::BzDecoder::new(bytes).take(stop).read_to_end(&mut out)?;
            }
            Compression::Lzma => {
                lzma_rust2::LzmaReader::new_mem_limit(bytes, DECODER_KIB, None)?
                    .take(stop)
                    .read_to_end(&mut out)?;
            }
            Compression::Xz => {
                lzma_rust2::XzReader::new_mem_limit(bytes, false, DECODER_KIB)
                    .take(stop)
                    .read_to_end(&mut out)?;
            }
            Compression::Zstd => {
                ruzstd::decoding::StreamingDecoder::new(bytes)
                    .map_err(io::Error::other)?
                    .take(stop)
                    .read_to_end(&mut out)?;
            }
            Compression::Lz4 => unpack_lz4_legacy(bytes, limit, &mut out)?,
        }
        if out.len() as u64 > limit {
            return Err(io::Error::other(format!("it unpacks to more than the {limit} bytes allowed")));
        }
        Ok(out)
    }
}

/// The legacy frame: the magic, then blocks of a 32-bit packed size and that many bytes, to the end of the input.
/// A second magic may stand where a size would (concatenated frames).
fn unpack_lz4_legacy(bytes: &[u8], limit: u64, out: &mut Vec<u8>) -> io::Result<()> {
    let cut = || io::Error::new(io::ErrorKind::UnexpectedEof, "a block is cut off");
    let mut block = vec![0; LZ4_LEGACY_BLOCK];
    let mut rest = bytes.get(4..).ok_or_else(cut)?;
    while let Some((size, after)) = rest.split_first_chunk::<4>() {
        rest = after;
        if *size == LZ4_LEGACY_MAGIC {
            continue;
        }
        let size = u32::from_le_bytes(*size) as usize;
        let packed = rest.get(..size).ok_or_else(cut)?;
        rest = &rest[size..];
        let n = lz4_flex::block::decompress_into(packed, &mut block).map_err(io::Error::other)?;
        out.extend_from_slice(&block[..n]);
        if out.len() as u64 > limit {
            return Ok(());
        }
    }
    Ok(())
}
