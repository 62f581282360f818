//! The state machine that consensus drives: applies committed commands to this node's copy.
//!
//! The state lives in memory and is small. `persist` writes it as one file ([`crate::file`]); after a crash
//! consensus replays the log from the stored mark (DUR-1).

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use meridian_consensus::{Committed, Mark, PIECE_BYTES_MAX, Persist, SnapshotSource, StateError, StateMachine};
use meridian_failpoint::failpoint;
use meridian_metadata_core::snapshot::SNAPSHOT_BYTES_MAX;
use meridian_metadata_core::{ClusterState, Command, Event, reply};
use meridian_types::Lsn;

use crate::copy::LocalCopy;
use crate::file::StateFile;

/// The metadata group's state machine.
#[derive(Debug)]
pub(crate) struct Machine {
    copy: Arc<LocalCopy>,
    mark: Option<Mark>,
    stored: Arc<Stored>,
}

/// The file, and up to where it reaches.
#[derive(Debug)]
struct Stored {
    file: StateFile,
    reaches: Mutex<Lsn>,
}

impl Stored {
    /// Writes a state unless the file has a later one; returns up to where the file reaches then.
    fn store(&self, mark: &Mark, state: &[u8]) -> Result<Lsn, StateError> {
        let mut reaches = self.reaches.lock().unwrap_or_else(PoisonError::into_inner);
        if mark.lsn > *reaches {
            self.file
                .store(mark, state)
                .map_err(|error| StateError::with_source("the metadata state can't be written to disk", error))?;
            *reaches = mark.lsn;
            tracing::debug!(lsn = mark.lsn.0, bytes = state.len(), "metadata state stored");
        }
        Ok(*reaches)
    }
}

impl Machine {
    /// A machine over a copy that was loaded from `file` together with `mark`.
    pub(crate) fn new(copy: Arc<LocalCopy>, file: StateFile, mark: Option<Mark>) -> Machine {
        let reaches = Mutex::new(mark.as_ref().map_or(Lsn(0), |mark| mark.lsn));
        Machine { copy, mark, stored: Arc::new(Stored { file, reaches }) }
    }
}

impl StateMachine for Machine {
    fn mark(&self) -> Result<Option<Mark>, StateError> {
        Ok(self.mark.clone())
    }

    fn apply(&mut self, batch: &[Committed], mark: &Mark) -> Result<Vec<Bytes>, StateError> {
        // Decoded before anything is changed: an unreadable command must not leave half a batch behind.
        let commands = batch.iter().map(decode).collect::<Result<Vec<_>, _>>()?;
        failpoint("metadata.apply.before");
        let results = if commands.is_empty() {
            Vec::new()
        } else {
            self.copy.change(|state| commands.iter().map(|(lsn, command)| apply(state, *lsn, command)).collect())
        };
        self.mark = Some(mark.clone());
        failpoint("metadata.apply.after");
        Ok(results)
    }

    fn persist(&mut self) -> Result<Persist, StateError> {
        let Some(mark) = self.mark.clone() else { return Ok(Box::new(|| Ok(Lsn(0)))) };
        let (state, stored) = (self.copy.read(ClusterState::encode), Arc::clone(&self.stored));
        Ok(Box::new(move || stored.store(&mark, &state)))
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotSource>, StateError> {
        let mark = self.mark.clone().ok_or_else(|| StateError::new("the metadata state is empty: nothing to send"))?;
        Ok(Box::new(Snapshot { mark, rest: self.copy.read(ClusterState::encode).into() }))
    }

    fn restore(
        &mut self,
        pieces: &mut dyn Iterator<Item = Result<Bytes, StateError>>,
        mark: &Mark,
    ) -> Result<(), StateError> {
        let mut bytes = Vec::new();
        for piece in pieces {
            let piece = piece?;
            if bytes.len() + piece.len() > SNAPSHOT_BYTES_MAX {
                return Err(StateError::new("a metadata snapshot from a peer is larger than any state can be"));
            }
            bytes.extend_from_slice(&piece);
        }
        let state = ClusterState::decode(&bytes)
            .map_err(|error| StateError::with_source("a metadata snapshot from a peer is damaged", error))?;
        // Stored first: the log below it may be gone once this returns.
        self.stored.store(mark, &bytes)?;
        failpoint("metadata.restore.stored");
        tracing::info!(index = state.index(), "metadata restored from a peer's snapshot");
        self.copy.change(|current| *current = state);
        self.mark = Some(mark.clone());
        Ok(())
    }
}

fn decode(entry: &Committed) -> Result<(Lsn, Command), StateError> {
    let command = Command::decode(&entry.payload).map_err(|error| {
        StateError::with_source(format!("the metadata command at {} can't be applied", entry.lsn), error)
    })?;
    Ok((entry.lsn, command))
}

fn apply(state: &mut ClusterState, lsn: Lsn, command: &Command) -> Bytes {
    let answer = state.apply(lsn.0, command);
    let (verb, subject, who) = (command.action.verb(), command.action.subject(), command.who.as_str());
    match &answer {
        // What came of it is told by the events.
        Ok(_) => tracing::debug!(index = lsn.0, verb, subject, who, "metadata command applied"),
        Err(refusal) => tracing::info!(index = lsn.0, verb, subject, who, %refusal, "metadata command refused"),
    }
    for Event { verb, subject, who, detail, .. } in events_of(state, lsn) {
        tracing::info!(index = lsn.0, verb, subject, who, detail, "metadata changed");
    }
    reply::encode(lsn.0, &answer).into()
}

/// The events of one index, oldest first: of the command itself, and of the steps that operations took by it.
fn events_of(state: &ClusterState, lsn: Lsn) -> Vec<&Event> {
    let mut events: Vec<_> = state.events().rev().take_while(|event| event.index == lsn.0).collect();
    events.reverse();
    events
}

/// The state as it was, in pieces.
#[derive(Debug)]
struct Snapshot {
    mark: Mark,
    rest: Bytes,
}

impl SnapshotSource for Snapshot {
    fn mark(&self) -> Mark {
        self.mark.clone()
    }

    fn next_piece(&mut self) -> Result<Option<Bytes>, StateError> {
        let length = self.rest.len().min(PIECE_BYTES_MAX);
        Ok((length > 0).then(|| self.rest.split_to(length)))
    }
}

#[cfg(test)]
mod tests {
    use meridian_metadata_core::command::{Form, NodeSpec};
    use meridian_metadata_core::{Action, Drift, OperationId};
    use meridian_types::{ClusterId, NodeName, RegionName};

    use super::*;

    fn machine(dir: &std::path::Path) -> Machine {
        let file = StateFile::open(dir).unwrap();
        let (mark, state) = file.load().unwrap().map_or((None, ClusterState::default()), |(m, s)| (Some(m), s));
        Machine::new(Arc::new(LocalCopy::new(state, Drift::ONE_PERCENT, 0)), file, mark)
    }

    fn form(lsn: u64) -> Committed {
        let member = NodeSpec {
            name: NodeName::new("a-1").unwrap(),
            region: RegionName::new("a").unwrap(),
            zone: "z".to_owned(),
            rpc_address: "h:1".to_owned(),
            replication_address: "h:2".to_owned(),
            version: String::new(),
        };
        let form = Form { cluster: ClusterId(7), shards: 4, lease_ttl_ms: 5000, members: vec![member] };
        let command = Command {
            operation: OperationId(u128::from(lsn)),
            who: "test".to_owned(),
            at_ms: 1,
            action: Action::FormCluster(form),
        };
        Committed { lsn: Lsn(lsn), payload: command.encode().unwrap().into() }
    }

    fn mark(lsn: u64) -> Mark {
        Mark { lsn: Lsn(lsn), bytes: Bytes::from(lsn.to_string()) }
    }

    #[test]
    fn what_was_persisted_survives_and_what_was_not_is_replayed() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = machine(dir.path());
        assert_eq!(first.mark().unwrap(), None);
        assert_eq!(first.apply(&[form(2)], &mark(3)).unwrap().len(), 1);
        assert_eq!(first.persist().unwrap()().unwrap(), Lsn(3));
        first.apply(&[form(5)], &mark(5)).unwrap();
        drop(first);

        let mut second = machine(dir.path());
        assert_eq!(second.mark().unwrap(), Some(mark(3)));
        assert_eq!(second.copy.topology().cluster, Some(ClusterId(7)));
        second.apply(&[form(5)], &mark(5)).unwrap();
        assert_eq!(second.copy.index(), 5);
    }

    #[test]
    fn the_log_tells_what_came_of_a_command_and_of_no_other() {
        let mut state = ClusterState::default();
        let told = |state: &ClusterState, lsn| {
            let events = events_of(state, Lsn(lsn));
            events.into_iter().map(|it| (it.verb.clone(), it.detail.is_empty())).collect::<Vec<_>>()
        };
        for lsn in [2, 5] {
            apply(&mut state, Lsn(lsn), &decode(&form(lsn)).unwrap().1);
        }
        assert_eq!(told(&state, 2), [("form-cluster".to_owned(), false)]);
        assert_eq!(told(&state, 5), [], "to form a cluster that exists changes nothing");
    }

    #[test]
    fn a_snapshot_makes_an_equal_state_that_is_durable_at_once() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut source = machine(from.path());
        source.apply(&[form(2)], &mark(2)).unwrap();
        let mut snapshot = source.snapshot().unwrap();
        source.apply(&[form(3)], &mark(3)).unwrap();
        let mut pieces = std::iter::from_fn(|| snapshot.next_piece().transpose()).collect::<Vec<_>>().into_iter();
        let mut target = machine(to.path());
        target.restore(&mut pieces, &snapshot.mark()).unwrap();
        assert_eq!(target.copy.index(), 2);
        drop(target);
        assert_eq!(machine(to.path()).mark().unwrap(), Some(mark(2)));
    }

    #[test]
    fn a_damaged_snapshot_or_command_is_an_error_and_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut machine = machine(dir.path());
        let mut bad = vec![Ok(Bytes::from_static(b"nonsense"))].into_iter();
        assert!(machine.restore(&mut bad, &mark(9)).is_err());
        let unreadable = Committed { lsn: Lsn(3), payload: Bytes::from_static(&[9, 9]) };
        assert!(machine.apply(&[form(2), unreadable], &mark(3)).is_err());
        assert_eq!((machine.copy.index(), machine.mark().unwrap()), (0, None));
    }
}
