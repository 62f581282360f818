//! What stands in a file's key when the file itself is in parts.

use anyhow::Context;
use bytes::Bytes;
use meridian_types::key::VALUE_BYTES_MAX;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

/// Every manifest begins so. A small file that does, too, is stored as a manifest with one part.
const MAGIC: &[u8] = b"\0meridian-file-1\n";

/// Bytes of one part: the largest value there is.
pub(super) const PART_BYTES: usize = VALUE_BYTES_MAX;

/// Size and hash of a content: equal content, equal fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    /// Bytes.
    pub size: u64,
    /// xxh3, 128 bits: it finds accidents, not adversaries.
    pub xxh3: u128,
}

/// Takes the fingerprint of a content as it passes by.
#[derive(Default)]
pub(super) struct Fingerprinter {
    size: u64,
    hash: Xxh3,
}

impl Fingerprinter {
    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.size += bytes.len() as u64;
        self.hash.update(bytes);
    }

    pub(super) fn finish(&self) -> Fingerprint {
        Fingerprint { size: self.size, xxh3: self.hash.digest128() }
    }
}

impl Fingerprint {
    /// The fingerprint of these bytes.
    pub fn of(bytes: &[u8]) -> Fingerprint {
        let mut taker = Fingerprinter::default();
        taker.update(bytes);
        taker.finish()
    }
}

/// A file in parts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Bytes of the whole.
    pub size: u64,
    /// Its xxh3, 128 bits, in hex.
    pub xxh3: String,
    /// How many parts there are.
    pub parts: u32,
}

impl Manifest {
    /// The manifest of a content in so many parts.
    pub fn new(fingerprint: Fingerprint, parts: u32) -> Manifest {
        Manifest { size: fingerprint.size, xxh3: format!("{:032x}", fingerprint.xxh3), parts }
    }

    /// As a value.
    pub fn encode(&self) -> Bytes {
        let mut bytes = MAGIC.to_vec();
        // Two numbers and a text have no way to fail.
        bytes.extend(serde_json::to_vec(self).unwrap_or_default());
        bytes.into()
    }

    /// The manifest that a value is, or `None` when the value is a content.
    ///
    /// # Errors
    /// When it begins as a manifest and is none.
    pub fn decode(value: &[u8]) -> anyhow::Result<Option<Manifest>> {
        let Some(body) = value.strip_prefix(MAGIC) else { return Ok(None) };
        serde_json::from_slice(body).map(Some).context("the manifest is damaged")
    }

    /// What its parts must come to.
    ///
    /// # Errors
    /// When the hash is no hash.
    pub fn fingerprint(&self) -> anyhow::Result<Fingerprint> {
        let xxh3 = u128::from_str_radix(&self.xxh3, 16).context("the manifest's hash is damaged")?;
        Ok(Fingerprint { size: self.size, xxh3 })
    }
}

/// Whether a small content must not stand in its key as it is.
pub(super) fn looks_like_manifest(content: &[u8]) -> bool {
    content.starts_with(MAGIC)
}

/// The key of a part.
pub(super) fn part_key(key: &[u8], part: u32) -> Bytes {
    let mut bytes = key.to_vec();
    bytes.extend(format!("#{part:05}").into_bytes());
    bytes.into()
}

/// The key of the file that a key would be a part of, if it is shaped like one.
pub(super) fn whole_of(key: &[u8]) -> Option<&[u8]> {
    let at = key.iter().rposition(|byte| *byte == b'#')?;
    let digits = &key[at + 1..];
    (digits.len() >= 5 && digits.iter().all(u8::is_ascii_digit)).then(|| &key[..at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_comes_back_and_a_content_is_none() {
        let manifest = Manifest::new(Fingerprint::of(b"hello"), 3);
        let encoded = manifest.encode();
        assert_eq!(Manifest::decode(&encoded).unwrap(), Some(manifest.clone()));
        assert_eq!(manifest.fingerprint().unwrap(), Fingerprint::of(b"hello"));
        assert_eq!(Manifest::decode(b"hello").unwrap(), None);
        assert!(Manifest::decode(&encoded[..encoded.len() - 1]).is_err());
        assert!(looks_like_manifest(&encoded));
    }

    #[test]
    fn parts_are_named_after_the_whole_and_sort_in_order() {
        assert_eq!(part_key(b"a/b", 7), "a/b#00007");
        assert!(part_key(b"a", 99_999) > part_key(b"a", 9));
        assert_eq!(whole_of(b"a/b#00007"), Some(&b"a/b"[..]));
        assert_eq!(whole_of(b"a#7"), None);
        assert_eq!(whole_of(b"a"), None);
    }
}
