//! What goes over a stream, and its bytes.
//!
//! ```text
//! 0        4         5      6
//! | length | version | kind | body …      length: bytes after itself, little-endian
//! ```
//!
//! Version 2 knows one kind more, [`ToTarget::Exposed`], and version 3 that one with keys ([`Lack::oldest_key`]). Each is sent only
//! where both ends of the connection speak it, and everything that an older version can say is sent in that.
//!
//! Bodies are postcard, but for frames: round (u32) and the frame as it is. [`length_allowed`] is checked
//! before anything is allocated (RES-1), and every decoder turns any bytes into a message or an error.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use meridian_types::frame::{FRAME_HEADER_BYTES, FRAME_RAW_BYTES_MAX};
use meridian_types::{BucketId, ClusterId, Exposure, Lack, Lane, Lsn, NodeId, RegionId, ShardId};
use serde::{Deserialize, Serialize};

/// The version of these messages.
pub const MESSAGE_VERSION: u8 = 1;

/// The version of those that came later.
const EXPOSED_VERSION: u8 = 2;
const KEYED_VERSION: u8 = 3;

/// The most buckets that one message speaks of: what fits [`CONTROL_BYTES_MAX`], whatever the figures are.
pub const EXPOSED_MAX: usize = 64;

/// Bytes of length, version and kind.
pub const PREFIX_BYTES: usize = 6;

/// The longest message that is no frame: reasons are cut to fit. Those of before version 3 have at most half of it.
pub const CONTROL_BYTES_MAX: usize = 8192;

/// The longest frame message: lz4 adds at most 1 byte in 255 and 16 more to what it can't compress.
pub const FRAME_MESSAGE_BYTES_MAX: usize =
    2 + 4 + FRAME_HEADER_BYTES + 8 + FRAME_RAW_BYTES_MAX + FRAME_RAW_BYTES_MAX / 255 + 16;

/// The longest reason that travels, in bytes.
const REASON_BYTES_MAX: usize = 1024;

/// The first message of a connection, from the side that dialled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The cluster it belongs to.
    pub cluster: ClusterId,
    /// The region it speaks for; must be its certificate's.
    pub region: RegionId,
    /// Who it is.
    pub node: NodeId,
    /// Whom it means to reach.
    pub expected: NodeId,
}

/// The answer to [`Hello`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Welcome {
    /// Open streams.
    Accepted {
        /// The region that answers.
        region: RegionId,
        /// The node that answers.
        node: NodeId,
    },
    /// The connection is closed next.
    Refused {
        /// Why, for a person.
        reason: String,
    },
}

/// From a shipper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToTarget {
    /// The first message of a stream: which lane it is.
    Open {
        /// The region whose log it carries.
        source: RegionId,
        /// The shard.
        shard: ShardId,
        /// The lane.
        lane: Lane,
    },
    /// A frame built after [`ToSource::Position`] of that round.
    Frame {
        /// The round.
        round: u32,
        /// `types::frame`.
        frame: Bytes,
    },
    /// What the target lacks of buckets whose primary is the source (SWI-2). Of version 2 where no key is named, else of version 3.
    Exposed(Vec<Lack>),
}

/// From a receiver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToSource {
    /// Ship from here on. The first answer, and again whenever the order was lost: frames of older rounds are
    /// dropped by the receiver, so that no late one is mistaken for a new one.
    Position {
        /// Rising by one.
        round: u32,
        /// Durably applied up to here.
        lsn: Lsn,
    },
    /// Durably applied up to here.
    Ack {
        /// The watermark.
        lsn: Lsn,
    },
    /// To be echoed by the first frame or heartbeat that completes the lane after this arrived (CON-3).
    Probe {
        /// The receiver's monotonic milliseconds.
        ms: u64,
    },
    /// The last message of a stream.
    Stop(Stop),
}

/// Why a receiver takes no more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stop {
    /// Digests at equal positions differ.
    Diverged {
        /// What differs.
        detail: String,
    },
    /// The entries are of an older epoch.
    Fenced,
    /// The source's clock is too far ahead.
    ClockSkew {
        /// By how much, in milliseconds.
        ahead_ms: u64,
    },
    /// Another node leads the shard.
    NotLeader {
        /// Which, if known.
        leader: Option<NodeId>,
    },
    /// The shipper broke the protocol.
    Refused {
        /// How.
        reason: String,
    },
}

/// Why bytes are no message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Longer than any message of its kind, or too short to have a kind.
    #[error("the message claims {0} bytes")]
    Length(usize),
    /// Written by a newer version.
    #[error("the message has version {0}; this node speaks version {MESSAGE_VERSION}")]
    UnknownVersion(u8),
    /// Not a kind that may come here.
    #[error("a message of kind {0} was not expected here")]
    UnexpectedKind(u8),
    /// The body is none of its kind.
    #[error("the message's body is malformed")]
    Malformed,
}

const HELLO: u8 = 1;
const WELCOME: u8 = 2;
const OPEN: u8 = 3;
const FRAME: u8 = 4;
const TO_SOURCE: u8 = 5;
const EXPOSED: u8 = 6;
const KEYED: u8 = 7;

/// Reads a length prefix and says whether a message of that length may come from a shipper (`frames`) or not.
///
/// # Errors
/// [`MessageError::Length`].
pub fn length_allowed(length: u32, frames: bool) -> Result<usize, MessageError> {
    let length = length as usize;
    let most = if frames { FRAME_MESSAGE_BYTES_MAX } else { CONTROL_BYTES_MAX };
    if (2..=most).contains(&length) { Ok(length) } else { Err(MessageError::Length(length)) }
}

fn control<T: Serialize>(kind: u8, body: &T) -> Bytes {
    versioned(MESSAGE_VERSION, kind, body)
}

fn versioned<T: Serialize>(version: u8, kind: u8, body: &T) -> Bytes {
    // Serialising plain values into a growing vector has no way to fail.
    let body = postcard::to_allocvec(body).unwrap_or_default();
    let mut bytes = BytesMut::with_capacity(PREFIX_BYTES + body.len());
    bytes.put_u32_le(u32::try_from(2 + body.len()).unwrap_or(u32::MAX));
    bytes.put_u8(version);
    bytes.put_u8(kind);
    bytes.extend_from_slice(&body);
    bytes.freeze()
}

fn exposed(lacks: &[Lack]) -> Bytes {
    if lacks.iter().any(|lack| lack.oldest_key.is_some()) {
        return versioned(KEYED_VERSION, KEYED, &lacks);
    }
    let said: Vec<(BucketId, Exposure)> = lacks.iter().map(|lack| (lack.bucket, lack.exposure)).collect();
    versioned(EXPOSED_VERSION, EXPOSED, &said)
}

/// Splits what follows a length prefix into kind and body.
fn open(mut message: Bytes) -> Result<(u8, Bytes), MessageError> {
    if message.len() < 2 {
        return Err(MessageError::Length(message.len()));
    }
    let (version, kind) = (message.get_u8(), message.get_u8());
    let expected = match kind {
        EXPOSED => EXPOSED_VERSION,
        KEYED => KEYED_VERSION,
        _ => MESSAGE_VERSION,
    };
    if version != expected {
        return Err(MessageError::UnknownVersion(version));
    }
    Ok((kind, message))
}

fn body_of<'a, T: Deserialize<'a>>(expected: u8, kind: u8, body: &'a [u8]) -> Result<T, MessageError> {
    if kind != expected {
        return Err(MessageError::UnexpectedKind(kind));
    }
    match postcard::take_from_bytes(body) {
        Ok((value, [])) => Ok(value),
        _ => Err(MessageError::Malformed),
    }
}

/// A reason short enough to travel.
pub fn short(reason: &str) -> String {
    let mut end = reason.len().min(REASON_BYTES_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    reason[..end].to_owned()
}

impl Hello {
    /// With its length prefix.
    pub fn encode(&self) -> Bytes {
        control(HELLO, self)
    }

    /// Reads what follows the length prefix.
    ///
    /// # Errors
    /// [`MessageError`].
    pub fn decode(message: Bytes) -> Result<Hello, MessageError> {
        let (kind, body) = open(message)?;
        body_of(HELLO, kind, &body)
    }
}

impl Welcome {
    /// With its length prefix.
    pub fn encode(&self) -> Bytes {
        control(WELCOME, self)
    }

    /// Reads what follows the length prefix.
    ///
    /// # Errors
    /// [`MessageError`].
    pub fn decode(message: Bytes) -> Result<Welcome, MessageError> {
        let (kind, body) = open(message)?;
        body_of(WELCOME, kind, &body)
    }
}

impl ToSource {
    /// With its length prefix.
    pub fn encode(&self) -> Bytes {
        control(TO_SOURCE, self)
    }

    /// Reads what follows the length prefix.
    ///
    /// # Errors
    /// [`MessageError`].
    pub fn decode(message: Bytes) -> Result<ToSource, MessageError> {
        let (kind, body) = open(message)?;
        body_of(TO_SOURCE, kind, &body)
    }
}

impl ToTarget {
    /// With its length prefix: what precedes the frame, and the frame, which is not copied.
    pub fn encode(self) -> (Bytes, Bytes) {
        match self {
            ToTarget::Open { source, shard, lane } => (control(OPEN, &(source, shard, lane)), Bytes::new()),
            ToTarget::Exposed(lacks) => (exposed(&lacks), Bytes::new()),
            ToTarget::Frame { round, frame } => {
                let mut prefix = BytesMut::with_capacity(PREFIX_BYTES + 4);
                prefix.put_u32_le(u32::try_from(2 + 4 + frame.len()).unwrap_or(u32::MAX));
                prefix.put_u8(MESSAGE_VERSION);
                prefix.put_u8(FRAME);
                prefix.put_u32_le(round);
                (prefix.freeze(), frame)
            }
        }
    }

    /// Reads what follows the length prefix. A frame's own checks come later.
    ///
    /// # Errors
    /// [`MessageError`].
    pub fn decode(message: Bytes) -> Result<ToTarget, MessageError> {
        let (kind, mut body) = open(message)?;
        if kind == KEYED {
            return body_of(KEYED, kind, &body).map(ToTarget::Exposed);
        }
        if kind == EXPOSED {
            let said: Vec<(BucketId, Exposure)> = body_of(EXPOSED, kind, &body)?;
            let lack = |(bucket, exposure)| Lack { bucket, exposure, oldest_key: None };
            return Ok(ToTarget::Exposed(said.into_iter().map(lack).collect()));
        }
        if kind != FRAME {
            let (source, shard, lane) = body_of(OPEN, kind, &body)?;
            return Ok(ToTarget::Open { source, shard, lane });
        }
        if body.len() < 4 {
            return Err(MessageError::Malformed);
        }
        let round = body.get_u32_le();
        Ok(ToTarget::Frame { round, frame: body })
    }
}

#[cfg(test)]
mod tests {
    use meridian_types::KeyStart;
    use proptest::prelude::*;

    use super::*;

    fn body(message: &Bytes) -> Bytes {
        let length = u32::from_le_bytes(message[..4].try_into().unwrap());
        assert_eq!(length as usize, message.len() - 4);
        message.slice(4..)
    }

    #[test]
    fn every_message_comes_back_as_it_went() {
        let hello = Hello { cluster: ClusterId(7), region: RegionId(2), node: NodeId(5), expected: NodeId(6) };
        assert_eq!(Hello::decode(body(&hello.encode())), Ok(hello));
        for welcome in [
            Welcome::Accepted { region: RegionId(1), node: NodeId(9) },
            Welcome::Refused { reason: "because".to_owned() },
        ] {
            assert_eq!(Welcome::decode(body(&welcome.encode())), Ok(welcome));
        }
        for message in [
            ToSource::Position { round: 3, lsn: Lsn(u64::MAX) },
            ToSource::Ack { lsn: Lsn(1) },
            ToSource::Probe { ms: 12 },
            ToSource::Stop(Stop::ClockSkew { ahead_ms: 900 }),
            ToSource::Stop(Stop::NotLeader { leader: Some(NodeId(3)) }),
        ] {
            assert_eq!(ToSource::decode(body(&message.encode())), Ok(message));
        }
        let open = ToTarget::Open { source: RegionId(1), shard: ShardId(3), lane: Lane::Sync };
        assert_eq!(ToTarget::decode(body(&open.clone().encode().0)), Ok(open));
        let most = Exposure { head: Lsn(u64::MAX), operations: u64::MAX, bytes: u64::MAX, oldest_ms: u64::MAX };
        for (key, bytes_max) in [(None, CONTROL_BYTES_MAX / 2), (KeyStart::of(&[255; 2000]), CONTROL_BYTES_MAX)] {
            let lack = Lack { bucket: BucketId(u32::MAX), exposure: most, oldest_key: key };
            let exposed = ToTarget::Exposed(vec![lack; EXPOSED_MAX]);
            let (bytes, _) = exposed.clone().encode();
            assert!(bytes.len() <= bytes_max, "{} bytes", bytes.len());
            assert_eq!(ToTarget::decode(body(&bytes)), Ok(exposed));
        }
        let frame = ToTarget::Frame { round: 8, frame: Bytes::from_static(b"bytes") };
        let (prefix, rest) = frame.clone().encode();
        let mut whole = BytesMut::from(&prefix[..]);
        whole.extend_from_slice(&rest);
        assert_eq!(ToTarget::decode(body(&whole.freeze())), Ok(frame));
    }

    #[test]
    fn what_is_lacking_is_said_in_the_oldest_version_that_can_say_it() {
        let exposure = Exposure { head: Lsn(12), operations: 3, bytes: 30, oldest_ms: 90 };
        let lack = |oldest_key| Lack { bucket: BucketId(1), exposure, oldest_key };
        let plain: &[u8] = &[8, 0, 0, 0, 2, 6, 1, 1, 12, 3, 30, 90];
        let keyed: &[u8] = &[12, 0, 0, 0, 3, 7, 1, 1, 12, 3, 30, 90, 1, 1, b'k', 0];
        for (bytes, key) in [(plain, None), (keyed, KeyStart::of(b"k"))] {
            let said = ToTarget::Exposed(vec![lack(key)]);
            assert_eq!(said.clone().encode().0, bytes, "a format that was once spoken stays");
            assert_eq!(ToTarget::decode(Bytes::from_static(&bytes[4..])), Ok(said));
        }
        let mut early = keyed[4..].to_vec();
        early[0] = EXPOSED_VERSION;
        assert_eq!(ToTarget::decode(early.into()), Err(MessageError::UnknownVersion(EXPOSED_VERSION)));
    }

    #[test]
    fn a_length_beyond_the_bound_is_refused_before_anything_is_read() {
        assert!(length_allowed(u32::MAX, true).is_err());
        assert!(length_allowed(u32::try_from(CONTROL_BYTES_MAX).unwrap() + 1, false).is_err());
        assert!(length_allowed(1, false).is_err());
        assert_eq!(length_allowed(40, false), Ok(40));
    }

    #[test]
    fn a_long_reason_is_cut_to_travel() {
        let reason = short(&"ä".repeat(5000));
        assert!(reason.len() <= REASON_BYTES_MAX);
        assert!(Welcome::Refused { reason }.encode().len() <= CONTROL_BYTES_MAX);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_a_clear_error(bytes in prop::collection::vec(any::<u8>(), 0..100), kind in 0u8..8) {
            let mut with_kind = vec![MESSAGE_VERSION, kind];
            with_kind.extend_from_slice(&bytes);
            let later = [EXPOSED_VERSION, KEYED_VERSION].map(|version| {
                let mut later = with_kind.clone();
                later[0] = version;
                Bytes::from(later)
            });
            for bytes in [Bytes::from(bytes), Bytes::from(with_kind)].into_iter().chain(later) {
                let _ = Hello::decode(bytes.clone());
                let _ = Welcome::decode(bytes.clone());
                let _ = ToSource::decode(bytes.clone());
                let _ = ToTarget::decode(bytes);
            }
        }
    }
}
