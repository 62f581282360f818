//! Doors for the fuzzer of `chaos`: the decoder of the stored state. Not part of the crate's interface.

use bytes::Bytes;
use meridian_consensus::Mark;
use meridian_metadata_core::ClusterState;
use meridian_types::Lsn;

use crate::file;

/// The stored state: whether the bytes were accepted; what was comes back as the same.
pub fn state_file(bytes: &[u8]) -> bool {
    let Ok((mark, state)) = file::decode(bytes) else { return false };
    let again = file::decode(&file::encode(&mark, &state.encode()));
    assert!(again.is_ok_and(|again| again == (mark, state)), "a stored state must come back");
    true
}

/// A stored state with the given content.
pub fn stored(lsn: u64, state: &ClusterState) -> Vec<u8> {
    file::encode(&Mark { lsn: Lsn(lsn), bytes: Bytes::from_static(b"mark") }, &state.encode())
}
