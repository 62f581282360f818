//! Which generation of the metadata plane this node's copy belongs to.
//!
//! A recovery begins a new generation (docs/runbooks/lost-metadata-majority.md): a group of its own, with one voter. A node of
//! an earlier one is no member, so its vote and its words count for nothing there; as soon as it hears of the later one
//! it sets its own copy aside, for good, and is taken in with empty hands.
//!
//! ```text
//!   metadata/state                  generation 0
//!   metadata/generation-1/state     generation 1: the highest directory counts, also while it is empty
//! ```

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use meridian_consensus::Mark;
use meridian_metadata_core::ClusterState;
use meridian_types::GroupId;

use crate::error::OpenError;
use crate::file::{StateFile, sync_dir};

/// Where a node keeps its copies of the metadata.
#[derive(Debug)]
pub(crate) struct Home {
    dir: PathBuf,
    generation: u32,
}

impl Home {
    /// Looks which generation is the last.
    pub(crate) fn open(dir: &Path) -> Result<Home, OpenError> {
        let failed = |source| OpenError::Io { action: "reading", path: dir.to_owned(), source };
        fs::create_dir_all(dir).map_err(failed)?;
        let mut generation = 0;
        for entry in fs::read_dir(dir).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix("generation-")).map(str::parse::<u32>);
            generation = generation.max(number.and_then(Result::ok).unwrap_or(0));
        }
        Ok(Home { dir: dir.to_owned(), generation })
    }

    pub(crate) fn generation(&self) -> u32 {
        self.generation
    }

    /// The group of the generation.
    pub(crate) fn group(&self) -> GroupId {
        GroupId::metadata(self.generation)
    }

    /// The groups of earlier generations, whose log nobody needs any more.
    pub(crate) fn abandoned(&self) -> impl Iterator<Item = GroupId> {
        (0..self.generation).map(GroupId::metadata)
    }

    /// The file of the generation.
    pub(crate) fn file(&self) -> Result<StateFile, OpenError> {
        StateFile::open(&self.dir_of(self.generation))
    }

    fn dir_of(&self, generation: u32) -> PathBuf {
        match generation {
            0 => self.dir.clone(),
            later => self.dir.join(format!("generation-{later}")),
        }
    }

    /// Belongs to `generation` from here on, with empty hands. Durable once this returns.
    pub(crate) fn advance(&mut self, generation: u32) -> io::Result<()> {
        if generation > self.generation {
            fs::create_dir_all(self.dir_of(generation))?;
            sync_dir(&self.dir)?;
            self.generation = generation;
        }
        Ok(())
    }

    /// Begins the next generation with this state: all of it, or nothing.
    pub(crate) fn begin(&mut self, mark: &Mark, state: &ClusterState) -> io::Result<()> {
        let next = self.dir_of(self.generation + 1);
        let tmp = next.with_extension("tmp");
        if tmp.exists() {
            fs::remove_dir_all(&tmp)?;
        }
        fs::create_dir_all(&tmp)?;
        let file = StateFile::open(&tmp).map_err(io::Error::other)?;
        file.store(&Mark { lsn: mark.lsn, bytes: Bytes::clone(&mark.bytes) }, &state.encode())?;
        fs::rename(&tmp, &next)?;
        sync_dir(&self.dir)?;
        File::open(&next)?.sync_all()?;
        self.generation += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use meridian_types::Lsn;

    use super::*;

    #[test]
    fn the_last_generation_counts_and_a_half_made_one_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let mut home = Home::open(dir.path()).unwrap();
        assert_eq!((home.generation(), home.group()), (0, GroupId::METADATA));
        fs::create_dir(dir.path().join("generation-1.tmp")).unwrap();
        assert_eq!(Home::open(dir.path()).unwrap().generation(), 0);
        let mark = Mark { lsn: Lsn(9), bytes: Bytes::from_static(b"mark") };
        home.begin(&mark, &ClusterState::default()).unwrap();
        let again = Home::open(dir.path()).unwrap();
        assert_eq!((again.generation(), again.file().unwrap().load().unwrap().map(|(it, _)| it)), (1, Some(mark)));
        assert_eq!(again.abandoned().collect::<Vec<_>>(), [GroupId::METADATA]);
    }

    #[test]
    fn whoever_hears_of_a_later_generation_has_empty_hands_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut home = Home::open(dir.path()).unwrap();
        home.advance(3).unwrap();
        home.advance(2).unwrap();
        let again = Home::open(dir.path()).unwrap();
        assert_eq!(again.generation(), 3);
        assert!(again.file().unwrap().load().unwrap().is_none());
    }
}
