//! Where backups are kept: a directory, or a bucket of an object store that speaks S3.
//!
//! Both take an object whole or not at all, and a directory only once it is on the disk: so a manifest stands for parts that
//! are there.

use std::fmt;
use std::io::ErrorKind;
use std::path::{Path as FilePath, PathBuf};

use anyhow::{Context, bail};
use bytes::Bytes;
use meridian_types::ShardId;
use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

use super::BackupId;
use super::manifest::{self, Kind, Manifest};
use super::part::PART_BYTES_MAX;

const MANIFEST: &str = "manifest";

/// The largest manifest that is read: some 100,000 parts.
const MANIFEST_BYTES_MAX: u64 = 64 << 20;

/// A place for backups.
#[derive(Debug)]
pub struct Place {
    store: Box<dyn ObjectStore>,
    root: Path,
    text: String,
    /// Where that is, if it is a directory.
    dir: Option<PathBuf>,
}

/// What there is of a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It is there.
    Whole(Box<Manifest>),
    /// It has no manifest: it is still being made, or was cut short, and is none.
    Unfinished,
    /// Its manifest can't be used; why.
    Damaged(manifest::Damage),
}

impl Place {
    /// Finds a place by what an operator typed: a path, `file:///PATH`, or `s3://BUCKET/PREFIX`, whose credentials, region and
    /// endpoint are those of the environment (`AWS_…`). A directory is created if `create` says so.
    ///
    /// # Errors
    /// When there is no such directory, or the URL is none.
    pub fn open(text: &str, create: bool) -> anyhow::Result<Place> {
        if let Some(rest) = text.strip_prefix("s3://") {
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            let store = AmazonS3Builder::from_env().with_bucket_name(bucket).build().context("the object store")?;
            return Ok(Place::of(Box::new(store), Path::parse(prefix)?, text));
        }
        if !text.starts_with("file://") && text.contains("://") {
            bail!("backups are kept below a path, file:///PATH or s3://BUCKET/PREFIX, not at {text}");
        }
        let dir = FilePath::new(text.strip_prefix("file://").unwrap_or(text));
        if create {
            std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        }
        let store = LocalFileSystem::new_with_prefix(dir).with_context(|| format!("there is no directory {text}"))?;
        let place = Place::of(Box::new(store.with_fsync(true)), Path::default(), text);
        Ok(Place { dir: Some(dir.to_owned()), ..place })
    }

    /// A place in any store.
    pub fn of(store: Box<dyn ObjectStore>, root: Path, text: &str) -> Place {
        Place { store, root, text: text.to_owned(), dir: None }
    }

    /// The ids of what is there, whole or not.
    ///
    /// # Errors
    /// When it can't be listed.
    pub async fn ids(&self) -> anyhow::Result<Vec<BackupId>> {
        let listed = self.store.list_with_delimiter(Some(&self.root)).await;
        let listed = listed.with_context(|| format!("{self} can't be listed"))?;
        // What has another name is nothing of ours.
        let named = listed.common_prefixes.iter().filter_map(|path| path.filename()?.parse().ok());
        let mut ids: Vec<BackupId> = named.collect();
        ids.sort();
        Ok(ids)
    }

    /// What there is of a backup.
    ///
    /// # Errors
    /// When it can't be read.
    pub async fn state(&self, id: &BackupId) -> anyhow::Result<State> {
        let bytes = self.read(&self.path(id, MANIFEST), MANIFEST_BYTES_MAX).await;
        let bytes = bytes.with_context(|| format!("the manifest of {id} can't be read"))?;
        Ok(match bytes.as_deref().map(Manifest::decode) {
            None => State::Unfinished,
            Some(Err(damage)) => State::Damaged(damage),
            Some(Ok(manifest)) if manifest.id != *id => State::Damaged(manifest::Damage::Another(manifest.id)),
            Some(Ok(manifest)) => State::Whole(Box::new(manifest)),
        })
    }

    /// A part; `None` when it is missing.
    ///
    /// # Errors
    /// When it can't be read, or is longer than any part.
    pub async fn part(&self, id: &BackupId, part: (Kind, ShardId, u32)) -> anyhow::Result<Option<Bytes>> {
        self.read(&self.path(id, &part_name(part)), PART_BYTES_MAX).await
    }

    /// Keeps a part, in place of what an earlier attempt left under its name.
    ///
    /// # Errors
    /// When it can't be written.
    pub async fn keep_part(&self, id: &BackupId, part: (Kind, ShardId, u32), bytes: Bytes) -> anyhow::Result<()> {
        self.write(&self.path(id, &part_name(part)), bytes).await
    }

    /// Removes what there is of a backup. The manifest goes first: cut short, what is left is none.
    ///
    /// # Errors
    /// When it can't be listed or removed.
    pub async fn remove(&self, id: &BackupId) -> anyhow::Result<()> {
        let dir = self.root.clone().join(id.to_string());
        let listed =
            self.store.list_with_delimiter(Some(&dir)).await.with_context(|| format!("{dir} can't be listed"))?;
        let manifest = self.path(id, MANIFEST);
        let mut paths: Vec<Path> = listed.objects.into_iter().map(|object| object.location).collect();
        paths.sort_by_key(|path| *path != manifest);
        for path in paths {
            self.delete(&path).await?;
        }
        // A directory stays behind what was in it, and with it what a write that was cut short had begun.
        let Some(dir) = &self.dir else { return Ok(()) };
        let dir = dir.join(id.to_string());
        match std::fs::remove_dir_all(&dir) {
            Err(why) if why.kind() != ErrorKind::NotFound => {
                Err(why).with_context(|| format!("{} can't be removed", dir.display()))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Takes a backup's manifest away, by which it is one; what was kept stays.
    ///
    /// # Errors
    /// When it can't be removed.
    pub async fn unfinish(&self, id: &BackupId) -> anyhow::Result<()> {
        self.delete(&self.path(id, MANIFEST)).await
    }

    /// Every backup that is there, of all that is.
    ///
    /// # Errors
    /// When one can't be read.
    pub async fn manifests(&self) -> anyhow::Result<Vec<Manifest>> {
        let mut all = Vec::new();
        for id in self.ids().await? {
            if let State::Whole(manifest) = self.state(&id).await? {
                all.push(*manifest);
            }
        }
        Ok(all)
    }

    /// Makes what was kept a backup.
    ///
    /// # Errors
    /// When it can't be written.
    pub async fn finish(&self, manifest: &Manifest) -> anyhow::Result<()> {
        self.write(&self.path(&manifest.id, MANIFEST), manifest.encode()).await
    }

    async fn write(&self, path: &Path, bytes: Bytes) -> anyhow::Result<()> {
        self.store.put(path, bytes.into()).await.with_context(|| format!("{path} can't be written to {self}"))?;
        Ok(())
    }

    async fn delete(&self, path: &Path) -> anyhow::Result<()> {
        self.store.delete(path).await.with_context(|| format!("{path} can't be removed from {self}"))
    }

    async fn read(&self, path: &Path, bytes_max: u64) -> anyhow::Result<Option<Bytes>> {
        let found = match self.store.get(path).await {
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            found => found?,
        };
        if found.meta.size > bytes_max {
            bail!("{path} has {} bytes, more than any such file", found.meta.size);
        }
        Ok(Some(found.bytes().await?))
    }

    fn path(&self, id: &BackupId, name: &str) -> Path {
        self.root.clone().join(id.to_string()).join(name)
    }
}

/// What a part is called.
pub fn part_name((kind, shard, number): (Kind, ShardId, u32)) -> String {
    let letter = match kind {
        Kind::Rows => 'p',
        Kind::Log => 'l',
        Kind::Context => 'c',
    };
    format!("s{:05}-{letter}{number:05}.part", shard.0)
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}
