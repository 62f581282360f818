//! Every failpoint of the product, with what brings a node there. The product's own text is held to this list.

/// What brings a node to a failpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reached {
    /// Clients write in every bucket, keys expire, primaries move.
    UnderLoad,
    /// A primary was lost for good, and this node takes over: others have some of what it lacks.
    AsSuccessor,
    /// The node was a primary that was lost, with a tail that nobody else had, and is back.
    AsLostPrimary,
    /// The node was away for so long that the metadata group's log no longer reaches back to it.
    AfterLongAbsence,
}

use Reached::{AfterLongAbsence, AsLostPrimary, AsSuccessor, UnderLoad};

/// Name and what it takes. The order is that of a write's way through the product.
pub(crate) const ALL: &[(&str, Reached)] = &[
    ("entry.propose.before", UnderLoad),
    ("entry.propose.after", UnderLoad),
    ("raft.vote.before", UnderLoad),
    ("raft.vote.after", UnderLoad),
    ("raft.append.before", UnderLoad),
    ("raft.append.after", UnderLoad),
    ("log.write.before", UnderLoad),
    ("log.sync.before", UnderLoad),
    ("log.sync.after", UnderLoad),
    ("log.notify.before", UnderLoad),
    ("log.notify.after", UnderLoad),
    ("log.mark.after", UnderLoad),
    ("raft.apply.before", UnderLoad),
    ("state.commit.before", UnderLoad),
    ("state.commit.after", UnderLoad),
    ("state.flush.before", UnderLoad),
    ("state.flush.after", UnderLoad),
    ("shard.publish.after", UnderLoad),
    ("raft.apply.after", UnderLoad),
    ("raft.answers.before", UnderLoad),
    ("raft.answers.after", UnderLoad),
    ("write.applied", UnderLoad),
    ("write.copied", UnderLoad),
    ("write.acknowledge.before", UnderLoad),
    ("write.answer-early.before", UnderLoad),
    ("ship.read.after", UnderLoad),
    ("ship.frame.before", UnderLoad),
    ("ship.frame.after", UnderLoad),
    ("ship.acknowledged.before", UnderLoad),
    ("intake.frame.before", UnderLoad),
    ("frame.propose.before", UnderLoad),
    ("frame.applied", UnderLoad),
    ("intake.applied", UnderLoad),
    ("intake.answer.before", UnderLoad),
    ("intake.answer.after", UnderLoad),
    ("intake.complete.before", UnderLoad),
    ("snapshot.build.before", UnderLoad),
    ("state.persist.before", UnderLoad),
    ("state.write-back.flushed", UnderLoad),
    ("state.persist.written", UnderLoad),
    ("state.persist.after", UnderLoad),
    ("snapshot.build.after", UnderLoad),
    ("retention.raise.before", UnderLoad),
    ("raft.purge.before", UnderLoad),
    ("raft.purge.after", UnderLoad),
    ("log.rotate.before", UnderLoad),
    ("log.seal.before", UnderLoad),
    ("log.seal.after", UnderLoad),
    ("log.marks.before", UnderLoad),
    ("log.marks.after", UnderLoad),
    ("log.retire.before", UnderLoad),
    ("segment.fill.after", UnderLoad),
    ("segment.header.after", UnderLoad),
    ("segment.rename.before", UnderLoad),
    ("segment.rename.after", UnderLoad),
    ("segment.directory.after", UnderLoad),
    ("spare.recycle.before", UnderLoad),
    ("spare.recycle.renamed", UnderLoad),
    ("spare.recycle.after", UnderLoad),
    ("spare.remove.before", UnderLoad),
    ("spare.remove.after", UnderLoad),
    ("upkeep.propose.before", UnderLoad),
    ("upkeep.applied", UnderLoad),
    ("metadata.propose.after", UnderLoad),
    ("metadata.apply.before", UnderLoad),
    ("metadata.apply.after", UnderLoad),
    ("metadata.file.written", UnderLoad),
    ("metadata.file.synced", UnderLoad),
    ("metadata.file.renamed", UnderLoad),
    ("metadata.file.after", UnderLoad),
    ("lease.elected.before", UnderLoad),
    ("lease.grant.before", UnderLoad),
    ("lease.granted.before", UnderLoad),
    ("lease.granted.after", UnderLoad),
    ("leadership.handed-over", UnderLoad),
    ("seal.propose.before", UnderLoad),
    ("seal.applied", UnderLoad),
    ("word.tell.before", UnderLoad),
    ("word.told", UnderLoad),
    ("words.carry.before", UnderLoad),
    ("words.carry.after", UnderLoad),
    ("fence.propose.before", AsSuccessor),
    ("fence.applied", AsSuccessor),
    ("pull.find.before", AsSuccessor),
    ("pull.ask.before", AsSuccessor),
    ("repair.propose.before", AsLostPrimary),
    ("repair.propose.after", AsLostPrimary),
    ("repair.ask.before", AsLostPrimary),
    ("repair.ask.after", AsLostPrimary),
    ("salvage.write.before", AsLostPrimary),
    ("vault.put.before", AsLostPrimary),
    ("vault.put.written", AsLostPrimary),
    ("vault.put.synced", AsLostPrimary),
    ("vault.put.renamed", AsLostPrimary),
    ("vault.put.after", AsLostPrimary),
    ("salvage.write.after", AsLostPrimary),
    ("repair.close.before", AsLostPrimary),
    ("repair.close.after", AsLostPrimary),
    ("snapshot.create.after", AfterLongAbsence),
    ("snapshot.piece.before", AfterLongAbsence),
    ("snapshot.finish.before", AfterLongAbsence),
    ("snapshot.install.before", AfterLongAbsence),
    ("metadata.restore.stored", AfterLongAbsence),
    ("snapshot.install.after", AfterLongAbsence),
];

/// Some of every kind: of an entry's way, of votes, of the log and its segments, of state and snapshots, of what is shipped, taken in and
/// acknowledged, of seals, leases and the metadata plane, of a primary that is lost and comes back.
pub(crate) const SOME: &[&str] = &[
    "entry.propose.after",
    "raft.vote.after",
    "raft.append.after",
    "log.sync.before",
    "log.notify.before",
    "state.commit.before",
    "raft.apply.after",
    "write.copied",
    "write.acknowledge.before",
    "write.answer-early.before",
    "ship.frame.after",
    "ship.acknowledged.before",
    "frame.applied",
    "intake.answer.before",
    "snapshot.build.before",
    "state.persist.written",
    "raft.purge.before",
    "log.seal.after",
    "segment.rename.before",
    "spare.recycle.renamed",
    "metadata.file.synced",
    "lease.grant.before",
    "seal.propose.before",
    "seal.applied",
    "word.tell.before",
    "pull.ask.before",
    "vault.put.synced",
    "repair.propose.after",
    "snapshot.install.before",
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::{ALL, SOME};

    const ROOMS: [&str; 4] = ["consensus/src", "metadata/node/src", "region/node/src", "replicator/quic/src"];

    fn names(dir: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                names(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let after = text.split("failpoint(\"").skip(1);
                found.extend(after.filter_map(|rest| rest.split_once('"')).map(|(name, _)| name.to_owned()));
            }
        }
    }

    #[test]
    fn the_list_names_every_failpoint_of_the_product_once_and_nothing_else() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let mut found = Vec::new();
        ROOMS.iter().for_each(|room| names(&root.join(room), &mut found));
        let known: BTreeSet<&str> = ALL.iter().map(|(name, _)| *name).collect();
        assert_eq!(known.len(), ALL.len(), "a name is listed twice");
        assert_eq!(found.len(), found.iter().collect::<BTreeSet<_>>().len(), "a name is used twice in the product");
        assert_eq!(found.iter().map(String::as_str).collect::<BTreeSet<_>>(), known);
        assert!(known.len() >= 45);
        assert!(SOME.iter().all(|name| known.contains(name)), "the ordinary run names one that is none");
        assert!(SOME.len() >= 20);
    }
}
