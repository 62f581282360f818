//! Identities: numbers that the metadata plane hands out, and the names people give.
//!
//! Numbers are never reused: a [`RegionId`] is also the CRDT actor of its region, and an actor
//! that came back with another history would diverge every counter it touched.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// A region's replica number: dense, from 1, in the order regions joined. The CRDT actor of its region.
    RegionId(u16)
}
number! {
    /// A node: one `meridian server` process with one data directory. Derived from its name ([`NodeId::of`]).
    NodeId(u64)
}

impl NodeId {
    /// The id of the node of that name: its xxh3 hash, so that a certificate, a configuration file and the
    /// cluster agree on it without asking each other. Never 0, which means "nobody" on the wire.
    pub fn of(name: &NodeName) -> NodeId {
        NodeId(xxhash_rust::xxh3::xxh3_64(name.as_str().as_bytes()).max(1))
    }
}

number! {
    /// A shard: `0..shards`, the same in every region.
    ShardId(u16)
}
number! {
    /// A bucket: from 1, rising, never reused, so that "greater than the last one I know" means "not yet known".
    BucketId(u32)
}

/// A Raft group on a node: the metadata group, or one shard's group of this region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GroupId(pub u32);

impl GroupId {
    /// The metadata plane's group, unless it was ever recovered.
    pub const METADATA: GroupId = GroupId(0);

    /// The metadata plane's group in that generation: 0 at first, one more with each recovery. Members of different
    /// generations are not members of one group, so that they can't be counted together. Generations beyond
    /// [`GroupId::GENERATION_MAX`] share its number.
    pub fn metadata(generation: u32) -> GroupId {
        match generation {
            0 => GroupId::METADATA,
            later => GroupId(u32::MAX - (later.min(GroupId::GENERATION_MAX) - 1)),
        }
    }

    /// The last generation that has a number of its own. Recoveries are counted on one hand.
    pub const GENERATION_MAX: u32 = 1 << 16;

    /// The generation of a metadata group; `None` for a shard's.
    pub fn generation(self) -> Option<u32> {
        match self {
            GroupId::METADATA => Some(0),
            later => (u32::MAX - later.0).checked_add(1).filter(|generation| *generation <= GroupId::GENERATION_MAX),
        }
    }

    /// The group that serves `shard` in this region.
    pub fn of_shard(shard: ShardId) -> GroupId {
        GroupId(u32::from(shard.0) + 1)
    }

    /// The shard this group serves, or `None` for the metadata group.
    pub fn shard(self) -> Option<ShardId> {
        self.0.checked_sub(1).and_then(|shard| u16::try_from(shard).ok()).map(ShardId)
    }
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.shard(), self.generation()) {
            (Some(shard), _) => write!(f, "shard-{shard}"),
            (None, None | Some(0)) => f.write_str("metadata"),
            (None, Some(generation)) => write!(f, "metadata-{generation}"),
        }
    }
}

macro_rules! wide {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u128);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:032x})"), self.0)
            }
        }
    };
}

wide! {
    /// A client of the SDK: random, chosen when it connects; the scope of its request sequence (ONE-1).
    ClientId
}
wide! {
    /// A cluster: random, chosen at its first start, so that two clusters never mistake each other's nodes.
    ClusterId
}

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing was given.
    #[error("a {kind} name must not be empty")]
    Empty {
        /// What was being named.
        kind: &'static str,
    },
    /// Longer than [`NAME_BYTES_MAX`].
    #[error("the {kind} name `{name}` has {length} bytes; at most {NAME_BYTES_MAX} are allowed")]
    TooLong {
        /// What was being named.
        kind: &'static str,
        /// The name, shortened.
        name: String,
        /// Its length in bytes.
        length: usize,
    },
    /// A character outside the alphabet, or a dash, dot or underscore at an end.
    #[error(
        "the {kind} name `{name}` is not valid: use lower-case letters, digits, `-`, `.` and `_`, starting and ending with a letter or digit"
    )]
    Alphabet {
        /// What was being named.
        kind: &'static str,
        /// The name as given.
        name: String,
    },
}

/// The longest name, in bytes: S3's limit for buckets, so a bucket can be served over S3 under its own name.
pub const NAME_BYTES_MAX: usize = 63;

fn check_name(kind: &'static str, name: &str) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty { kind });
    }
    if name.len() > NAME_BYTES_MAX {
        let shown = name.chars().take(NAME_BYTES_MAX).collect::<String>() + "…";
        return Err(NameError::TooLong { kind, name: shown, length: name.len() });
    }
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let inner = name.chars().all(|c| alphanumeric(c) || matches!(c, '-' | '.' | '_'));
    if !inner || !name.starts_with(alphanumeric) || !name.ends_with(alphanumeric) {
        return Err(NameError::Alphabet { kind, name: name.to_owned() });
    }
    Ok(())
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(std::sync::Arc<str>);

        impl $name {
            #[doc = concat!("Checks and takes a ", $kind, " name: 1 to 63 of `a-z 0-9 - . _`, a letter or digit at both ends.")]
            ///
            /// # Errors
            /// [`NameError`] says which rule the name breaks.
            pub fn new(name: &str) -> Result<Self, NameError> {
                check_name($kind, name)?;
                Ok(Self(name.into()))
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(name: &str) -> Result<Self, NameError> {
                Self::new(name)
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(name: String) -> Result<Self, NameError> {
                Self::new(&name)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0.as_ref().to_owned()
            }
        }
    };
}

name!(
    /// A region's name, such as `eu-west`. A region's certificate names it, and a peer may speak for no other (SEC-1).
    RegionName,
    "region"
);
name!(
    /// A node's name, unique in its cluster, such as `us-east-1`.
    NodeName,
    "node"
);
name!(
    /// A bucket's name, unique in its cluster.
    BucketName,
    "bucket"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_to_the_alphabet_and_say_what_is_wrong() {
        assert!(BucketName::new("orders").is_ok());
        assert!(BucketName::new("a.b-c_9").is_ok());
        for bad in ["Orders", "-a", "a-", "ä", "a b", "a/b"] {
            assert!(matches!(BucketName::new(bad), Err(NameError::Alphabet { .. })), "{bad}");
        }
        assert!(matches!(BucketName::new(""), Err(NameError::Empty { .. })));
        assert!(matches!(BucketName::new(&"a".repeat(64)), Err(NameError::TooLong { length: 64, .. })));
    }

    #[test]
    fn a_group_knows_its_shard() {
        assert_eq!(GroupId::METADATA.shard(), None);
        assert_eq!(GroupId::of_shard(ShardId(7)).shard(), Some(ShardId(7)));
        assert_eq!(GroupId::of_shard(ShardId(7)).to_string(), "shard-7");
    }

    #[test]
    fn each_generation_of_the_metadata_plane_is_a_group_of_its_own() {
        assert_eq!(GroupId::metadata(0), GroupId::METADATA);
        for generation in [0, 1, 2, GroupId::GENERATION_MAX] {
            let group = GroupId::metadata(generation);
            assert_eq!((group.generation(), group.shard()), (Some(generation), None), "{group}");
        }
        assert_eq!(GroupId::of_shard(ShardId(u16::MAX)).generation(), None);
        assert_eq!(GroupId::metadata(1).to_string(), "metadata-1");
    }
}
