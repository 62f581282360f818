//! What a [`Mark`] holds: the log id of the last applied entry and the members at that point.

use bytes::Bytes;
use meridian_types::Lsn;
use serde::{Deserialize, Serialize};

use super::types::{Members, RaftLogId, log_id};
use crate::error::StateError;
use crate::log::EntryId;
use crate::machine::Mark;

/// The first byte of every mark.
const FORMAT: u8 = 1;

/// A mark, read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Position {
    pub(crate) term: u64,
    pub(crate) index: u64,
    pub(crate) members: Members,
}

impl Position {
    pub(crate) fn log_id(&self) -> RaftLogId {
        log_id(EntryId { term: self.term, index: self.index })
    }

    pub(crate) fn encode(&self) -> Mark {
        let bytes = postcard::to_extend(self, vec![FORMAT]);
        // Serialising into a growing vector has no way to fail for these types.
        Mark { lsn: Lsn(self.index), bytes: bytes.map(Bytes::from).unwrap_or_default() }
    }

    pub(crate) fn decode(mark: &Mark) -> Result<Position, StateError> {
        match mark.bytes.split_first() {
            Some((&FORMAT, rest)) => {
                let position: Position = postcard::from_bytes(rest)
                    .map_err(|error| StateError::with_source("the mark stored with the state is damaged", error))?;
                if Lsn(position.index) == mark.lsn {
                    Ok(position)
                } else {
                    Err(StateError::new("the mark stored with the state contradicts its position"))
                }
            }
            Some((format, _)) => Err(StateError::new(format!(
                "the mark stored with the state has format {format}; this version reads format {FORMAT}"
            ))),
            None => Err(StateError::new("the mark stored with the state is empty")),
        }
    }
}
