//! Writing a bucket's files back to a directory, each checked and put in place whole.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, bail};
use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};

use super::Store;
use super::fetch::fetch;
use super::manifest::{Fingerprint, Fingerprinter, Manifest, whole_of};

/// Files written at a time.
const IN_FLIGHT_MAX: usize = 16;

/// What was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exported {
    /// Files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Keys that can't be files here, and why.
    pub skipped: Vec<String>,
}

/// Writes every file of the store below `dir`; calls `done` with the size of each. Existing files are replaced.
///
/// # Errors
/// When a file can't be read whole, or can't be written, or reads back from the disk differently.
pub async fn export<S: Store>(store: &S, dir: &Path, done: impl Fn(u64)) -> anyhow::Result<Exported> {
    let mut exported = Exported::default();
    let mut parts = Parts { store, last: None };
    let mut after = Bytes::new();
    loop {
        let page = store.keys(after).await?;
        let Some(last) = page.last() else { return Ok(exported) };
        after = last.clone();
        let mut files = Vec::new();
        for key in page {
            if parts.contain(&key).await? {
                continue;
            }
            match safe_path(dir, &key) {
                Some(path) => files.push((key, path)),
                None => {
                    exported.skipped.push(format!("{}: not a path below the directory", String::from_utf8_lossy(&key)))
                }
            }
        }
        let sizes = stream::iter(files)
            .map(|(key, path)| async move {
                write(store, &key, &path).await.with_context(|| format!("exporting {}", path.display()))
            })
            .buffer_unordered(IN_FLIGHT_MAX)
            .inspect_ok(|size| done(*size));
        let sizes: Vec<u64> = sizes.try_collect().await?;
        exported.files += sizes.len() as u64;
        exported.bytes += sizes.iter().sum::<u64>();
    }
}

/// Tells parts from files. Parts of one file follow each other in byte order, so the last manifest is enough to remember.
struct Parts<'a, S> {
    store: &'a S,
    last: Option<(Bytes, Option<Manifest>)>,
}

impl<S: Store> Parts<'_, S> {
    async fn contain(&mut self, key: &Bytes) -> anyhow::Result<bool> {
        let Some(whole) = whole_of(key) else { return Ok(false) };
        if self.last.as_ref().is_none_or(|(known, _)| known != whole) {
            let whole = Bytes::copy_from_slice(whole);
            let manifest = match self.store.get(whole.clone()).await? {
                Some(value) => Manifest::decode(&value)?,
                None => None,
            };
            self.last = Some((whole, manifest));
        }
        Ok(self.last.as_ref().is_some_and(|(_, manifest)| manifest.is_some()))
    }
}

/// Fetches into a file beside the final one, reads that back from the disk, and only then renames it.
async fn write<S: Store>(store: &S, key: &Bytes, path: &Path) -> anyhow::Result<u64> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let mut name = path.as_os_str().to_owned();
    name.push(".meridian-new");
    let fresh = PathBuf::from(name);
    let mut file = File::create(&fresh)?;
    let fetched = fetch(store, key, |bytes| Ok(file.write_all(bytes)?)).await?;
    let Some(fetched) = fetched else {
        std::fs::remove_file(&fresh)?;
        bail!("the key was deleted while the bucket was being exported: export again");
    };
    let written = fingerprint_of(&fresh)?;
    if written != fetched {
        bail!("the disk gives back {written:?}, {fetched:?} was written: check the disk");
    }
    std::fs::rename(&fresh, path)?;
    Ok(fetched.size)
}

fn fingerprint_of(path: &Path) -> anyhow::Result<Fingerprint> {
    let mut file = File::open(path)?;
    let mut taker = Fingerprinter::default();
    let mut buffer = vec![0; 64 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(taker.finish()),
            length => taker.update(&buffer[..length]),
        }
    }
}

/// Where a key's file goes; `None` for keys that would leave the directory. Keys come from whoever wrote the bucket.
fn safe_path(dir: &Path, key: &[u8]) -> Option<PathBuf> {
    let relative = Path::new(OsStr::from_bytes(key));
    let stays = relative.components().all(|component| matches!(component, Component::Normal(_)));
    (stays && !key.contains(&0) && !key.ends_with(b"/")).then(|| dir.join(relative))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_key_leaves_the_directory() {
        let dir = Path::new("/out");
        assert_eq!(safe_path(dir, b"a/b"), Some(PathBuf::from("/out/a/b")));
        for bad in [&b"/etc/passwd"[..], b"../x", b"a/../../x", b"a\0b", b"a/", b"."] {
            assert_eq!(safe_path(dir, bad), None, "{bad:?}");
        }
    }
}
