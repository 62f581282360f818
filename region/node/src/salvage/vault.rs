//! Where bundles are kept: files that are there whole and durable, or not at all.
//!
//! ```text
//! | "MSV1" | crc32c of the rest (u32 LE) | body … |
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use meridian_failpoint::failpoint;

const MAGIC: [u8; 4] = *b"MSV1";

/// Keeps bundles. Blocks on a disk: never called on a runtime's worker.
pub trait Vault: Send + Sync + 'static {
    /// Keeps bytes under a name, durably and all at once; takes the place of what was there.
    ///
    /// # Errors
    /// When the disk fails or is full.
    fn put(&self, name: &str, bytes: &[u8]) -> io::Result<()>;

    /// What is kept under a name.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`], or when the disk fails.
    fn read(&self, name: &str) -> io::Result<Vec<u8>>;

    /// Every name, ascending.
    ///
    /// # Errors
    /// When the disk fails.
    fn names(&self) -> io::Result<Vec<String>>;

    /// Forgets a name, durably; one that is not there is forgotten already.
    ///
    /// # Errors
    /// When the disk fails.
    fn remove(&self, name: &str) -> io::Result<()>;
}

/// A directory of files.
#[derive(Debug)]
pub struct Files {
    dir: PathBuf,
}

impl Files {
    /// Files in `dir`, which is created with the first of them.
    pub fn new(dir: PathBuf) -> Files {
        Files { dir }
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }
}

impl Vault for Files {
    fn put(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        if !self.dir.exists() {
            fs::create_dir_all(&self.dir)?;
            if let Some(parent) = self.dir.parent() {
                File::open(parent)?.sync_all()?;
            }
        }
        failpoint("vault.put.before");
        let unfinished = self.dir.join(format!("{name}.tmp"));
        let mut file = File::create(&unfinished)?;
        file.write_all(bytes)?;
        failpoint("vault.put.written");
        file.sync_all()?;
        failpoint("vault.put.synced");
        fs::rename(&unfinished, self.dir.join(name))?;
        failpoint("vault.put.renamed");
        self.sync_dir()?;
        failpoint("vault.put.after");
        Ok(())
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        fs::read(self.dir.join(name))
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(&self.dir) {
            Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if Path::new(&name).extension().is_none_or(|extension| extension != "tmp") {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.dir.join(name)) {
            Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(()),
            done => {
                done?;
                self.sync_dir()
            }
        }
    }
}

/// Bundles in memory: for a simulated world, which outlives its nodes.
#[derive(Debug, Default)]
pub struct Memory(Mutex<BTreeMap<String, Vec<u8>>>);

impl Memory {
    fn kept(&self) -> MutexGuard<'_, BTreeMap<String, Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Vault for Memory {
    fn put(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.kept().insert(name.to_owned(), bytes.to_vec());
        Ok(())
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        self.kept().get(name).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.kept().keys().cloned().collect())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.kept().remove(name);
        Ok(())
    }
}

/// Puts magic and checksum in front.
pub(crate) fn seal(body: &[u8]) -> Vec<u8> {
    [&MAGIC[..], &crc32c::crc32c(body).to_le_bytes(), body].concat()
}

/// Takes them off again; `None` when they don't fit (DUR-3).
pub(crate) fn unseal(bytes: &[u8]) -> Option<&[u8]> {
    let (head, body) = bytes.split_first_chunk::<8>()?;
    let [a, b, c, d, sum @ ..] = head;
    ([*a, *b, *c, *d] == MAGIC && crc32c::crc32c(body).to_le_bytes() == *sum).then_some(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_there_again_and_what_was_cut_short_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let vault = Files::new(dir.path().join("salvage"));
        assert_eq!(vault.names().unwrap(), Vec::<String>::new());
        vault.put("b.head", b"1").unwrap();
        vault.put("a.head", b"0").unwrap();
        vault.put("a.head", b"2").unwrap();
        fs::write(dir.path().join("salvage/c.head.tmp"), b"half").unwrap();
        assert_eq!(vault.names().unwrap(), ["a.head", "b.head"]);
        assert_eq!(vault.read("a.head").unwrap(), b"2");
        vault.remove("a.head").unwrap();
        vault.remove("a.head").unwrap();
        assert_eq!(vault.read("a.head").unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_damaged_byte_breaks_the_seal() {
        let sealed = seal(b"body");
        assert_eq!(unseal(&sealed), Some(&b"body"[..]));
        for at in 0..sealed.len() {
            let mut damaged = sealed.clone();
            damaged[at] ^= 1;
            assert_eq!(unseal(&damaged), None, "{at}");
        }
        assert_eq!(unseal(&sealed[..7]), None);
    }
}
