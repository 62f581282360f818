//! Whether a node works in the data directory it had, or has lost it (docs/adr/2026-11-28-lost-disks.md).
//!
//! ```text
//!                         nobody knows the node     it has registered before
//!   an empty directory    a new node: marked        refused
//!   a marked one, or one with a log or a state:     this node's own
//! ```
//! A node that goes on with an empty directory under its old name breaks what rests on its disk: its vote counts twice in one
//! term of the metadata group, its region orders writes at positions it has used before (ORD-1, ONE-1), and what others have
//! confirmed of it counts as copies that are gone (DUR-2). So it does not start.
//!
//! The mark is made before the node takes part in anything, so that one that died before it wrote anything else isn't refused.
//!
//! ```text
//!   "MRDNMARK" | version u32 LE | crc32c u32 LE of all before
//! ```
//! Deliberately not here: bringing the data back, and old copies of a directory that are not empty.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use meridian_consensus::Consensus;

use crate::error::OpenError;
use crate::file::sync_dir;
use crate::join::Elsewhere;
use crate::options::Options;

const MAGIC: &[u8; 8] = b"MRDNMARK";
const VERSION: u32 = 1;
const NAME: &str = "mark";

/// Refuses an empty directory of a node that the cluster knows from before; marks every other one. Durable once this returns.
///
/// # Errors
/// [`OpenError::LostDisk`] says what to do; others when the mark can't be read or written.
pub(crate) fn claim(
    options: &Options,
    has_state: bool,
    consensus: &Consensus,
    elsewhere: Elsewhere,
) -> Result<(), OpenError> {
    let dir = &options.dir;
    if is_marked(dir)? {
        return Ok(());
    }
    let is_lost = !has_state && consensus.is_blank() && elsewhere.registered;
    // The metadata plane that a recovery began has no vote of a node it has yet to take in, and a witness has nothing else.
    let replaces_a_witness = options.this.replication_address.is_empty() && elsewhere.generation > 0;
    if is_lost && !replaces_a_witness {
        return Err(OpenError::LostDisk {
            node: options.this.name.clone(),
            region: options.this.region.clone(),
            dir: dir.parent().unwrap_or(dir).to_owned(),
        });
    }
    mark(dir).map_err(|source| OpenError::Io { action: "marking", path: dir.clone(), source })
}

fn bytes() -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    let checksum = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes
}

/// Whether a node has worked in this directory before.
///
/// # Errors
/// When the mark can't be read, or is no mark.
pub(crate) fn is_marked(dir: &Path) -> Result<bool, OpenError> {
    let file = dir.join(NAME);
    match fs::read(&file) {
        Ok(found) if found == bytes() => Ok(true),
        Ok(found) => Err(unknown(file, &found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(OpenError::Io { action: "reading", path: file, source }),
    }
}

fn unknown(file: PathBuf, found: &[u8]) -> OpenError {
    let version = found.strip_prefix(MAGIC).and_then(|rest| rest.first_chunk()).map(|it| u32::from_le_bytes(*it));
    match version {
        Some(found) if found != VERSION => OpenError::UnknownFormat { file, found, known: VERSION },
        _ => OpenError::Damaged { file, reason: "it is no mark of a data directory".to_owned(), source: None },
    }
}

fn mark(dir: &Path) -> io::Result<()> {
    let tmp = dir.join("mark.tmp");
    let mut file = File::create(&tmp)?;
    file.write_all(&bytes())?;
    file.sync_all()?;
    fs::rename(&tmp, dir.join(NAME))?;
    sync_dir(dir)
}

#[cfg(test)]
mod tests {
    use meridian_consensus::Options as ConsensusOptions;
    use meridian_proto::dial::Dial;
    use meridian_types::{NodeId, NodeName, RegionName};
    use tonic::transport::Channel;

    use super::*;
    use crate::options::Member;

    struct Nowhere;

    impl Dial for Nowhere {
        fn channel(&self, _: NodeId) -> Option<Channel> {
            None
        }
    }

    const KNOWN: Elsewhere =
        Elsewhere { answered: true, formed: true, registered: true, removed: false, generation: 0 };
    const UNKNOWN: Elsewhere = Elsewhere { registered: false, ..KNOWN };

    struct Node {
        dir: tempfile::TempDir,
        options: Options,
        consensus: Consensus,
    }

    impl Node {
        async fn new() -> Node {
            let dir = tempfile::tempdir().unwrap();
            let this = Member {
                name: NodeName::new("eu-west-1").unwrap(),
                region: RegionName::new("eu-west").unwrap(),
                zone: "a".to_owned(),
                rpc_address: "127.0.0.1:1".to_owned(),
                replication_address: "127.0.0.1:1".to_owned(),
                voter: true,
            };
            let options = Options::new(this.clone(), vec![this.clone()], dir.path().join("metadata"));
            fs::create_dir_all(&options.dir).unwrap();
            let log = ConsensusOptions::new(this.id(), dir.path().join("log"));
            let consensus = Consensus::open(log, std::sync::Arc::new(Nowhere)).await.unwrap();
            Node { dir, options, consensus }
        }

        fn claim(&self, has_state: bool, elsewhere: Elsewhere) -> Result<(), OpenError> {
            claim(&self.options, has_state, &self.consensus, elsewhere)
        }
    }

    /// DUR-2, ORD-1: a node that forgot what it had confirmed takes part in nothing.
    #[tokio::test]
    async fn a_node_that_the_cluster_knows_does_not_start_with_an_empty_directory() {
        let node = Node::new().await;
        for _ in 0..2 {
            let refused = node.claim(false, KNOWN).unwrap_err();
            let said = refused.to_string();
            assert!(matches!(refused, OpenError::LostDisk { .. }), "{said}");
            assert!(said.contains("eu-west-1") && said.contains("meridian failover estimate"), "{said}");
            assert!(said.contains(&node.dir.path().display().to_string()), "{said}");
        }
    }

    /// docs/runbooks/lost-metadata-majority.md: the voters that are gone are replaced, if they held nothing but a vote.
    #[tokio::test]
    async fn a_witness_is_replaced_after_a_recovery_and_not_before() {
        let mut node = Node::new().await;
        node.options.this.replication_address.clear();
        assert!(matches!(node.claim(false, KNOWN), Err(OpenError::LostDisk { .. })));
        node.claim(false, Elsewhere { generation: 1, ..KNOWN }).unwrap();
    }

    #[tokio::test]
    async fn a_new_node_is_marked_and_starts_again_however_little_it_wrote() {
        let node = Node::new().await;
        node.claim(false, UNKNOWN).unwrap();
        node.claim(false, KNOWN).unwrap();
    }

    #[tokio::test]
    async fn a_directory_from_before_there_were_marks_is_marked() {
        let node = Node::new().await;
        node.claim(true, KNOWN).unwrap();
        node.claim(false, KNOWN).unwrap();
    }

    #[tokio::test]
    async fn a_mark_that_is_damaged_or_newer_is_named() {
        let node = Node::new().await;
        node.claim(false, UNKNOWN).unwrap();
        let file = node.options.dir.join(NAME);
        let mut newer = bytes();
        newer[8] = 2;
        fs::write(&file, newer).unwrap();
        assert!(matches!(node.claim(false, KNOWN), Err(OpenError::UnknownFormat { found: 2, .. })));
        fs::write(&file, b"").unwrap();
        assert!(matches!(node.claim(false, KNOWN), Err(OpenError::Damaged { .. })));
    }
}
