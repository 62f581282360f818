//! Which files are imported, and under which keys.

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use bytes::Bytes;
use meridian_types::key::KEY_BYTES_MAX;
use walkdir::{DirEntry, WalkDir};

use super::manifest::whole_of;
use crate::cli::Failure;

/// Room that the name of a part takes behind its whole: `#` and up to ten digits.
const PART_SUFFIX_BYTES: usize = 11;

/// A file to import.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFile {
    /// Its key.
    pub key: Bytes,
    /// Where it is.
    pub path: PathBuf,
    /// Its size when it was listed.
    pub size: u64,
}

/// What was found below a directory.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// Files, in the order of their keys.
    pub files: Vec<SourceFile>,
    /// Bytes of all of them.
    pub bytes: u64,
    /// What was passed over, and why.
    pub skipped: Vec<String>,
}

impl Listing {
    /// Lists the regular files below `root` (or `root` itself, if it is one). Passes over `.git`, `.meridian`,
    /// build directories (`target*`), symbolic links and special files.
    ///
    /// # Errors
    /// When `root` can't be read, or two files would take the same key.
    pub fn of(root: &Path) -> anyhow::Result<Listing> {
        let metadata = std::fs::metadata(root).with_context(|| format!("cannot read {}", root.display()))?;
        let base = if metadata.is_file() { root.parent().unwrap_or(Path::new("")) } else { root };
        let mut listing = Listing::default();
        let walk = WalkDir::new(root).sort_by_file_name().into_iter();
        for entry in walk.filter_entry(|entry| entry.depth() == 0 || !is_passed_over(entry)) {
            match entry {
                Ok(entry) => listing.take(&entry, base),
                // One unreadable directory must not hide the rest, nor go unmentioned.
                Err(error) => listing.skipped.push(error.to_string()),
            }
        }
        listing.files.sort_by(|a, b| a.key.cmp(&b.key));
        listing.check_keys()?;
        Ok(listing)
    }

    fn take(&mut self, entry: &DirEntry, base: &Path) {
        let kind = entry.file_type();
        if kind.is_dir() {
            return;
        }
        let path = entry.path();
        let key = path.strip_prefix(base).unwrap_or(path).as_os_str().as_bytes().to_vec();
        let size = entry.metadata().map(|metadata| metadata.len());
        match size {
            _ if !kind.is_file() => self.skipped.push(format!("{}: no regular file", path.display())),
            _ if key.len() + PART_SUFFIX_BYTES > KEY_BYTES_MAX => {
                self.skipped.push(format!("{}: the path is too long for a key", path.display()));
            }
            Err(error) => self.skipped.push(format!("{}: {error}", path.display())),
            Ok(size) => {
                self.bytes += size;
                self.files.push(SourceFile { key: key.into(), path: path.to_owned(), size });
            }
        }
    }

    /// A real file named like a part of another one would overwrite that part, or be taken for it.
    fn check_keys(&self) -> anyhow::Result<()> {
        let keys: BTreeSet<&[u8]> = self.files.iter().map(|file| file.key.as_ref()).collect();
        for file in &self.files {
            if whole_of(&file.key).is_some_and(|whole| keys.contains(whole)) {
                bail!(Failure::invalid(format!(
                    "{} is named like a part of the file beside it: rename one of them",
                    file.path.display()
                )));
            }
        }
        Ok(())
    }
}

fn is_passed_over(entry: &DirEntry) -> bool {
    let name = entry.file_name().to_string_lossy();
    let directory = entry.file_type().is_dir();
    directory && (name == ".git" || name == ".meridian" || name.starts_with("target"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_has_the_real_files_and_says_what_it_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        for path in [".git/HEAD", "target-x/a", "src/lib.rs", "README", ".ci/run"] {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        }
        std::os::unix::fs::symlink("README", dir.path().join("link")).unwrap();
        let listing = Listing::of(dir.path()).unwrap();
        let keys: Vec<&[u8]> = listing.files.iter().map(|file| file.key.as_ref()).collect();
        assert_eq!(keys, [&b".ci/run"[..], b"README", b"src/lib.rs"]);
        assert_eq!(listing.bytes, 3);
        assert_eq!(listing.skipped.len(), 1, "{:?}", listing.skipped);
    }

    #[test]
    fn a_file_named_like_a_part_of_another_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a"), "x").unwrap();
        std::fs::write(dir.path().join("a#00000"), "x").unwrap();
        assert!(Listing::of(dir.path()).unwrap_err().to_string().contains("a#00000"));
        std::fs::remove_file(dir.path().join("a")).unwrap();
        assert!(Listing::of(dir.path()).is_ok());
    }
}
