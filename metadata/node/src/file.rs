//! The stored state: one small file, replaced as a whole (keeps DUR-3 for metadata).
//!
//! ```text
//!   "MRDNMSTA" | version u32 | lsn u64 | mark length u32 | mark | state length u64 | state | crc32c u32
//! ```
//! Integers are little-endian; the checksum covers all before it. Replacing writes `state.tmp`, syncs it,
//! renames it over `state` and syncs the directory, so a crash leaves the old state or the new one; what was
//! committed since is replayed from the log. A file that fails a check is never used and never touched.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use meridian_consensus::Mark;
use meridian_failpoint::failpoint;
use meridian_metadata_core::ClusterState;
use meridian_metadata_core::snapshot::SNAPSHOT_BYTES_MAX;
use meridian_types::Lsn;

use crate::error::OpenError;

const MAGIC: &[u8; 8] = b"MRDNMSTA";
const VERSION: u32 = 1;

/// The most bytes a mark may have: a log id and the membership of a group.
const MARK_BYTES_MAX: usize = 1 << 20;

/// What surrounds mark and state.
const FRAME_BYTES: usize = 8 + 4 + 8 + 4 + 8 + 4;

/// The file that holds the state of one node's metadata.
#[derive(Debug)]
pub(crate) struct StateFile {
    dir: PathBuf,
}

impl StateFile {
    /// Opens the directory, creating it if it is missing.
    pub(crate) fn open(dir: &Path) -> Result<StateFile, OpenError> {
        let failed = |source| OpenError::Io { action: "creating", path: dir.to_owned(), source };
        fs::create_dir_all(dir).map_err(failed)?;
        // Without it a power loss could take the directory, and with it all that was synced inside.
        dir.parent().map_or(Ok(()), sync_dir).map_err(failed)?;
        Ok(StateFile { dir: dir.to_owned() })
    }

    fn path(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// What is stored, or `None` on a fresh directory.
    pub(crate) fn load(&self) -> Result<Option<(Mark, ClusterState)>, OpenError> {
        let path = self.path();
        let failed = |source| OpenError::Io { action: "reading", path: path.clone(), source };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let bytes_max = (SNAPSHOT_BYTES_MAX + MARK_BYTES_MAX + FRAME_BYTES) as u64;
        let mut bytes = Vec::new();
        file.take(bytes_max + 1).read_to_end(&mut bytes).map_err(failed)?;
        decode(&bytes).map(Some).map_err(|damage| damage.at(path))
    }

    /// Replaces what is stored; durable once this returns.
    pub(crate) fn store(&self, mark: &Mark, state: &[u8]) -> io::Result<()> {
        let tmp = self.dir.join("state.tmp");
        let mut file = File::create(&tmp)?;
        file.write_all(&encode(mark, state))?;
        failpoint("metadata.file.written");
        file.sync_all()?;
        failpoint("metadata.file.synced");
        fs::rename(&tmp, self.path())?;
        failpoint("metadata.file.renamed");
        sync_dir(&self.dir)?;
        failpoint("metadata.file.after");
        Ok(())
    }
}

pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    // A relative path's parent may be empty, which means the working directory.
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    File::open(dir)?.sync_all()
}

pub(crate) fn encode(mark: &Mark, state: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(FRAME_BYTES + mark.bytes.len() + state.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&mark.lsn.0.to_le_bytes());
    // A mark is a few hundred bytes; `decode` would refuse one that did not fit.
    bytes.extend_from_slice(&u32::try_from(mark.bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend_from_slice(&mark.bytes);
    bytes.extend_from_slice(&(state.len() as u64).to_le_bytes());
    bytes.extend_from_slice(state);
    let checksum = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes
}

/// What is wrong with a stored state.
#[derive(Debug)]
pub(crate) enum Damage {
    Frame(&'static str),
    Version(u32),
    State(meridian_metadata_core::SnapshotError),
}

impl Damage {
    fn at(self, file: PathBuf) -> OpenError {
        match self {
            Damage::Frame(reason) => OpenError::Damaged { file, reason: reason.to_owned(), source: None },
            Damage::Version(found) => OpenError::UnknownFormat { file, found, known: VERSION },
            Damage::State(source) => OpenError::Damaged { file, reason: source.to_string(), source: Some(source) },
        }
    }
}

pub(crate) fn decode(bytes: &[u8]) -> Result<(Mark, ClusterState), Damage> {
    const SHORT: Damage = Damage::Frame("it ends too early");
    let (magic, rest) = bytes.split_first_chunk::<8>().ok_or(SHORT)?;
    if magic != MAGIC {
        return Err(Damage::Frame("it does not begin as a metadata state does"));
    }
    let (version, _) = rest.split_first_chunk::<4>().ok_or(SHORT)?;
    let (content, checksum) = bytes.split_last_chunk::<4>().ok_or(SHORT)?;
    if crc32c::crc32c(content) != u32::from_le_bytes(*checksum) {
        return Err(Damage::Frame("its checksum does not match: bytes were changed or lost"));
    }
    match u32::from_le_bytes(*version) {
        VERSION => {}
        other => return Err(Damage::Version(other)),
    }
    // The checksum is right from here on: what still does not fit was written wrongly.
    let rest = content.get(12..).ok_or(SHORT)?;
    let (lsn, rest) = rest.split_first_chunk::<8>().ok_or(SHORT)?;
    let (length, rest) = rest.split_first_chunk::<4>().ok_or(SHORT)?;
    let length = u32::from_le_bytes(*length) as usize;
    if length > MARK_BYTES_MAX {
        return Err(Damage::Frame("its mark is too large"));
    }
    let (mark, rest) = rest.split_at_checked(length).ok_or(SHORT)?;
    let (length, state) = rest.split_first_chunk::<8>().ok_or(SHORT)?;
    if u64::from_le_bytes(*length) != state.len() as u64 {
        return Err(Damage::Frame("its length is wrong"));
    }
    let mark = Mark { lsn: Lsn(u64::from_le_bytes(*lsn)), bytes: Bytes::copy_from_slice(mark) };
    let state = ClusterState::decode(state).map_err(Damage::State)?;
    if state.index() > mark.lsn.0 {
        return Err(Damage::Frame("its state is newer than its mark"));
    }
    Ok((mark, state))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stored() -> (Mark, Vec<u8>) {
        let mark = Mark { lsn: Lsn(9), bytes: Bytes::from_static(b"mark") };
        (mark, ClusterState::default().encode())
    }

    #[test]
    fn a_stored_state_is_found_again_and_replaced_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let file = StateFile::open(&dir.path().join("metadata")).unwrap();
        assert!(file.load().unwrap().is_none());
        let (mark, state) = stored();
        file.store(&mark, &state).unwrap();
        let later = Mark { lsn: Lsn(10), bytes: Bytes::new() };
        file.store(&later, &state).unwrap();
        assert_eq!(file.load().unwrap(), Some((later, ClusterState::default())));
    }

    #[test]
    fn a_crash_before_the_rename_leaves_the_old_state() {
        let dir = tempfile::tempdir().unwrap();
        let file = StateFile::open(dir.path()).unwrap();
        let (mark, state) = stored();
        file.store(&mark, &state).unwrap();
        fs::write(dir.path().join("state.tmp"), b"half").unwrap();
        assert_eq!(file.load().unwrap().map(|(mark, _)| mark), Some(mark));
    }

    /// DUR-3: every single changed byte and every cut is found.
    #[test]
    fn any_damage_is_found_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = StateFile::open(dir.path()).unwrap();
        let (mark, state) = stored();
        file.store(&mark, &state).unwrap();
        let good = fs::read(file.path()).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            fs::write(file.path(), &bad).unwrap();
            let error = file.load().unwrap_err();
            assert!(error.to_string().contains("is damaged"), "byte {at}: {error}");
            assert!(error.to_string().contains("state"), "{error}");
            fs::write(file.path(), &good[..at]).unwrap();
            assert!(matches!(file.load(), Err(OpenError::Damaged { .. })), "cut at {at}");
        }
    }

    #[test]
    fn a_newer_format_is_named_not_called_damage() {
        let (mark, state) = stored();
        let mut bytes = encode(&mark, &state);
        bytes[8] = 2;
        let content = bytes.len() - 4;
        let checksum = crc32c::crc32c(&bytes[..content]);
        bytes[content..].copy_from_slice(&checksum.to_le_bytes());
        assert!(matches!(decode(&bytes), Err(Damage::Version(2))));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_state_or_a_clear_error(tail in prop::collection::vec(any::<u8>(), 0..200), framed in any::<bool>()) {
            let mut bytes = if framed { MAGIC.to_vec() } else { Vec::new() };
            bytes.extend(tail);
            if framed {
                let checksum = crc32c::crc32c(&bytes);
                bytes.extend_from_slice(&checksum.to_le_bytes());
            }
            prop_assert!(decode(&bytes).is_err());
        }
    }
}
