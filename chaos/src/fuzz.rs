//! Bytes that no encoder ever wrote, for every decoder of what comes from a disk or a peer (DUR-3, RES-1, SEC-1).
//!
//! ```text
//! samples ──► corpus/<target>/… ──► mutate ──► hold(target, bytes): no panic, no lie, bounded memory
//!  (real encodings, kept as files)     │             ▲
//!                                      └── seal ─────┘   checksums made right, to get past them
//! ```
//!
//! A [`Target`] says whether it accepted the bytes and panics if the decoder broke its law: what was accepted, encoded
//! again, reads back as the same. `chaos/tests/decoders.rs` runs all of them with a fixed seed and the stable toolchain;
//! `chaos/fuzz` holds one libFuzzer target for each.

pub mod mutate;
pub mod storm;
pub mod targets;

mod messages;
mod operators;
mod shard;
mod words;

use std::path::{Path, PathBuf};

pub use storm::{Storm, storm};
pub use targets::all;

/// One decoder, and how to speak to it.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name: also its folder in the corpus, and the libFuzzer target.
    pub name: &'static str,
    /// Whether it accepts the bytes. Panics when it broke its law.
    pub accepts: fn(&[u8]) -> bool,
    /// Makes checksums right, so that mutations reach what is behind them.
    pub seal: Option<fn(&mut [u8])>,
    /// Real encodings to begin from. All of them are accepted.
    pub samples: fn() -> Vec<Vec<u8>>,
}

/// Gives the bytes to a decoder, as they are and with their checksums made right; says whether any was accepted.
///
/// # Panics
/// When the decoder panics or breaks its law: that is what is looked for.
pub fn hold(target: &Target, bytes: &[u8]) -> bool {
    let as_is = (target.accepts)(bytes);
    let Some(seal) = target.seal else { return as_is };
    let mut sealed = bytes.to_vec();
    seal(&mut sealed);
    (target.accepts)(&sealed) || as_is
}

/// [`hold`]s the target of that name.
///
/// # Panics
/// As [`hold`], and when there is no such target.
pub fn one(name: &str, bytes: &[u8]) {
    let target = all().into_iter().find(|target| target.name == name);
    hold(&target.unwrap_or_else(|| panic!("there is no target {name}")), bytes);
}

/// Where the corpora are kept in the tree.
pub fn corpus_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus")
}

/// What is kept for a target, in the order of the files' names.
///
/// # Errors
/// When its folder can't be read.
pub fn corpus(target: &str) -> std::io::Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(corpus_dir().join(target))?
        .map(|item| item.map(|item| item.path()))
        .collect::<Result<_, _>>()?;
    paths.sort();
    paths.into_iter().map(|path| std::fs::read(&path).map(|bytes| (path, bytes))).collect()
}

/// Writes the samples of every target into the corpus, beside what others found.
///
/// # Errors
/// When a file can't be written.
pub fn write_corpus(targets: &[Target]) -> std::io::Result<usize> {
    let mut written = 0;
    for target in targets {
        let dir = corpus_dir().join(target.name);
        std::fs::create_dir_all(&dir)?;
        for (number, sample) in (target.samples)().into_iter().enumerate() {
            std::fs::write(dir.join(format!("sample-{number}")), sample)?;
            written += 1;
        }
    }
    Ok(written)
}
