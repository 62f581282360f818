//! Clocks of nodes: the wall clock, wrong on demand, and the monotonic clock, another one after a restart.
//!
//! The wall clock is libfaketime's (package `libfaketime`), preloaded into the node; it reads its offset from a file,
//! so that it can be changed live. The monotonic clock is a time namespace's.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::shell::run;

/// Where Debian and its relatives put the library, and Fedora and its.
const LIBRARIES: [&str; 4] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib64/faketime/libfaketimeMT.so.1",
    "/usr/lib/faketime/libfaketimeMT.so.1",
];

/// Wall clocks of nodes.
#[derive(Debug)]
pub struct WallClocks {
    library: PathBuf,
    dir: PathBuf,
}

impl WallClocks {
    /// Finds the library, `given` or where it usually is; keeps offsets in `dir`.
    ///
    /// # Errors
    /// The sentence that says what is missing.
    pub fn find(given: Option<&Path>, dir: &Path) -> anyhow::Result<WallClocks> {
        let known = given.into_iter().chain(LIBRARIES.iter().map(Path::new));
        let library = known.into_iter().find(|path| path.exists()).context("libfaketime is not installed")?;
        Ok(WallClocks { library: library.to_owned(), dir: dir.to_owned() })
    }

    /// What a node needs to have such a clock.
    ///
    /// # Errors
    /// When its offset can't be written.
    pub fn environment(&self, node: usize) -> anyhow::Result<Vec<(String, String)>> {
        if !self.file(node).exists() {
            self.set(node, 0)?;
        }
        let word = |name: &str, value: &dyn std::fmt::Display| (name.to_owned(), value.to_string());
        Ok(vec![
            word("LD_PRELOAD", &self.library.display()),
            word("FAKETIME_TIMESTAMP_FILE", &self.file(node).display()),
            // How long it may take to notice a change, in seconds.
            word("FAKETIME_CACHE_DURATION", &1),
            word("FAKETIME_DONT_FAKE_MONOTONIC", &1),
            word("DONT_FAKE_MONOTONIC", &1),
        ])
    }

    /// Makes a node's wall clock wrong by so much; 0 makes it right.
    ///
    /// # Errors
    /// When the offset can't be written.
    pub fn set(&self, node: usize, by_ms: i64) -> anyhow::Result<()> {
        let (sign, ms) = (if by_ms < 0 { '-' } else { '+' }, by_ms.unsigned_abs());
        let text = format!("{sign}{}.{:03}\n", ms / 1000, ms % 1000);
        // Whole or not at all: a node may read it at any moment.
        let fresh = self.dir.join("clock.new");
        fs::write(&fresh, text)?;
        fs::rename(&fresh, self.file(node)).context("setting a wall clock")
    }

    fn file(&self, node: usize) -> PathBuf {
        self.dir.join(format!("clock-{node}"))
    }
}

/// Why monotonic clocks can't be moved here; `None` when they can.
pub fn jumping_missing() -> Option<String> {
    let tried = run("unshare", &["-T", "--monotonic", "1000", "true"]);
    tried.err().map(|error| format!("there are no time namespaces: {error:#}"))
}

/// What a node is started through to have a monotonic clock that reads so much more.
pub fn jumped(by_s: u32) -> Vec<String> {
    let by = by_s.to_string();
    ["unshare", "-T", "--monotonic", &by, "--boottime", &by, "--"].map(str::to_owned).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let missing = LIBRARIES.iter().all(|path| !Path::new(path).exists());
        let found = WallClocks::find(Some(Path::new("/nowhere/lib.so")), dir.path());
        assert_eq!(found.is_err(), missing);
    }

    #[test]
    fn offsets_are_written_as_the_library_reads_them() {
        let dir = tempfile::tempdir().unwrap();
        let clocks = WallClocks { library: PathBuf::from("/lib.so"), dir: dir.path().to_owned() };
        for (by_ms, text) in [(0, "+0.000\n"), (-50, "-0.050\n"), (3_600_000, "+3600.000\n"), (-10_001, "-10.001\n")] {
            clocks.set(1, by_ms).unwrap();
            assert_eq!(fs::read_to_string(clocks.file(1)).unwrap(), text);
        }
    }
}
