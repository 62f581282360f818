//! Session tokens: what a client has seen, so that no later read or write goes behind it (CON-2).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::{BucketId, RegionId, ShardId};
use crate::position::{Lsn, Positions};
use crate::refusal::{Refusal, RefusalKind};

/// The most (bucket, shard, region) positions one token may hold: 16 shards x 8 regions x 64 buckets.
pub const SESSION_POSITIONS_MAX: usize = 8192;

/// The most bytes of a token behind its format: a count, then per position four numbers at their longest.
const TOKEN_BYTES_MAX: usize = 5 + SESSION_POSITIONS_MAX * (5 + 3 + 3 + 10);

/// The highest position seen per (bucket, shard) and origin region. Valid in every region: a replica
/// may answer once its own positions cover the token's.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SessionToken(BTreeMap<(BucketId, ShardId), Positions>);

/// The first byte of an encoded token.
const TOKEN_FORMAT: u8 = 1;

impl SessionToken {
    /// Whether nothing has been seen yet.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What has been seen of one (bucket, shard).
    pub fn seen(&self, bucket: BucketId, shard: ShardId) -> Option<&Positions> {
        self.0.get(&(bucket, shard))
    }

    /// Notes that a position was seen.
    pub fn observe(&mut self, bucket: BucketId, shard: ShardId, region: RegionId, lsn: Lsn) {
        self.0.entry((bucket, shard)).or_default().raise(region, lsn);
    }

    /// Notes everything that another token has seen.
    pub fn merge(&mut self, other: &SessionToken) {
        for ((bucket, shard), positions) in &other.0 {
            for (region, lsn) in &positions.0 {
                self.observe(*bucket, *shard, *region, *lsn);
            }
        }
    }

    /// The token as bytes a client may store or hand to another process.
    pub fn encode(&self) -> Vec<u8> {
        let flat: Vec<(BucketId, ShardId, RegionId, Lsn)> = self
            .0
            .iter()
            .flat_map(|((bucket, shard), positions)| {
                positions.0.iter().map(|(region, lsn)| (*bucket, *shard, *region, *lsn))
            })
            .collect();
        let mut bytes = vec![TOKEN_FORMAT];
        // Serialising plain integers into a growing vector has no way to fail.
        bytes.extend(postcard::to_allocvec(&flat).unwrap_or_default());
        bytes
    }

    /// Reads a token back; empty bytes are the empty token.
    ///
    /// # Errors
    /// [`RefusalKind::Invalid`] when the bytes are no token, or one larger than [`SESSION_POSITIONS_MAX`].
    pub fn decode(bytes: &[u8]) -> Result<SessionToken, Refusal> {
        let invalid =
            |why: &str| Refusal::new(RefusalKind::Invalid, format!("the session token {why}: start a new session"));
        let Some((format, body)) = bytes.split_first() else {
            return Ok(SessionToken::default());
        };
        if *format != TOKEN_FORMAT {
            return Err(invalid("has an unknown format"));
        }
        // Before room is made for what it claims to hold (RES-1).
        if body.len() > TOKEN_BYTES_MAX {
            return Err(invalid("is too large"));
        }
        let flat: Vec<(BucketId, ShardId, RegionId, Lsn)> =
            postcard::from_bytes(body).map_err(|_| invalid("is damaged"))?;
        if flat.len() > SESSION_POSITIONS_MAX {
            return Err(invalid("is too large"));
        }
        let mut token = SessionToken::default();
        for (bucket, shard, region, lsn) in flat {
            token.observe(bucket, shard, region, lsn);
        }
        Ok(token)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_token_survives_the_journey(seen in prop::collection::vec((0u32..4, 0u16..4, 1u16..4, any::<u64>()), 0..30)) {
            let mut token = SessionToken::default();
            for (bucket, shard, region, lsn) in seen {
                token.observe(BucketId(bucket), ShardId(shard), RegionId(region), Lsn(lsn));
            }
            prop_assert_eq!(SessionToken::decode(&token.encode()), Ok(token));
        }

        #[test]
        fn any_bytes_are_a_token_or_a_clear_error(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = SessionToken::decode(&bytes);
        }
    }
}
