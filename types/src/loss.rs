//! The words of a forced change of primary (design 7; docs/adr/2026-11-27-failover.md): what is left of a lost primary, what it
//! may cost, and the consent to that.
//!
//! A consent is text that a person can read before agreeing to it, and that can't be changed by accident:
//!
//! ```text
//! accept-loss/1;to=eu-west;orders@7=120/34567+;carts@3=0/0;sum=1a2b3c4d
//!               successor  bucket@epoch=operations/bytes   checksum
//! ```
//! A `+` behind the figures says: and whatever nobody who is left can know of. Of active-active buckets that lose a region, the first word
//! names that one: `lost=ap-south`.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::id::{BucketId, BucketName, RegionId, RegionName, ShardId};
use crate::key::KeyStart;
use crate::operation::Selection;
use crate::plan::Seal;
use crate::position::{Epoch, Lsn};

/// What a primary last said a region lacks of one bucket in one shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Exposure {
    /// The end of the primary's log when it said so: whoever has the log up to here lacks nothing that was known of then.
    pub head: Lsn,
    /// Writes that the region lacked; at least as many as it really did.
    pub operations: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How old the oldest of them was, in milliseconds.
    pub oldest_ms: u64,
}

/// What a primary says is lacking of one bucket in one shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lack {
    /// The bucket.
    pub bucket: BucketId,
    /// The figures.
    pub exposure: Exposure,
    /// The key of the oldest write that is lacking, where it is known: for whoever has to decide, nothing is decided by it.
    pub oldest_key: Option<KeyStart>,
}

/// Of the oldest writes of two parts, in milliseconds and by key, the older. Its key is not known where it isn't, whatever that of the
/// other one is.
pub fn older(one: (u64, Option<KeyStart>), other: (u64, Option<KeyStart>)) -> (u64, Option<KeyStart>) {
    match one.0.cmp(&other.0) {
        Ordering::Greater => one,
        Ordering::Less => other,
        Ordering::Equal => (one.0, one.1.or(other.1)),
    }
}

/// What a shard has of a lost primary, in a region that is left and has fenced the bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remains {
    /// The epoch in force: a shard in an earlier one has less, whatever its position.
    pub epoch: Epoch,
    /// The position of the primary's log up to which it has the bucket, and what it holds there.
    pub seal: Seal,
    /// What the primary last said it lacks; `None` when it has said nothing since the node started.
    pub exposure: Option<Exposure>,
    /// Whether it holds all it has been given. Else some of it waits for the end of an earlier epoch, or the bucket is being
    /// repaired here: neither a copy to count on, nor a successor.
    pub whole: bool,
}

impl Remains {
    /// Whoever ranks higher has more of the bucket's history; equal ranks have the same (ORD-1) where an epoch that the lost primary
    /// ordered has begun. Before that, what they have of the log of the primary before it may differ.
    pub fn rank(&self) -> (Epoch, Lsn) {
        (self.epoch, self.seal.lsn)
    }
}

/// How much is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
pub struct Loss {
    /// Acknowledged writes, at most as many as that.
    pub operations: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Whether there may be more that nobody who is left can know of.
    pub unbounded: bool,
}

impl Loss {
    /// Whether nothing is lost, for sure.
    pub fn is_none(self) -> bool {
        self == Loss::default()
    }

    /// Whether who agrees to `self` agrees to `other`.
    pub fn covers(self, other: Loss) -> bool {
        self.operations >= other.operations && self.bytes >= other.bytes && (self.unbounded || !other.unbounded)
    }

    /// Both together.
    #[must_use]
    pub fn and(self, other: Loss) -> Loss {
        Loss {
            operations: self.operations.saturating_add(other.operations),
            bytes: self.bytes.saturating_add(other.bytes),
            unbounded: self.unbounded || other.unbounded,
        }
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let more = if self.unbounded { ", and what nobody who is left can know of" } else { "" };
        write!(f, "{} operations with {} bytes{more}", self.operations, self.bytes)
    }
}

/// How the reason begins for which a failover was given up that would have cost more than somebody agreed to.
pub const MORE_THAN_AGREED: &str = "more would be lost than was agreed to";

/// How the reason begins for which a failover was given up that nobody agreed could cost anything.
pub const NOT_PROVEN: &str = "what is left does not prove that nothing is lost";

/// What is asked for when a primary is lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailoverSpec {
    /// Of which buckets.
    pub buckets: Selection,
    /// The next primary; `None` for the region that has most.
    pub to: Option<RegionName>,
    /// What may be lost; `None` when nothing may.
    pub consent: Option<Consent>,
    /// Whether nobody asked: the cluster found out by itself.
    pub automatic: bool,
    /// Why, for whoever reads the history.
    pub reason: String,
}

/// An agreement to lose what an estimate named, and no more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Consent {
    /// The next primary that the estimate was for; `None` for the region that has most.
    pub to: Option<RegionName>,
    /// Of active-active buckets, the region that is lost: there is no next primary. Checked before anything is put on record, so not
    /// part of these bytes.
    #[serde(skip)]
    pub lost: Option<RegionName>,
    /// Each bucket, in the epoch it had, with the most that may be lost of it.
    pub buckets: BTreeMap<BucketName, (Epoch, Loss)>,
}

/// The most buckets one consent names.
pub const CONSENT_BUCKETS_MAX: usize = 10_000;

/// Why text is no consent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConsentError {
    /// Something else.
    #[error("this is no consent: use what `meridian failover estimate` prints, whole and in quotes")]
    NotAConsent,
    /// Written by a newer release.
    #[error("this consent was made by a newer release: use that release to run the failover")]
    Newer,
    /// It was changed, or some of it is missing.
    #[error(
        "this consent was changed or cut short: copy it again from `meridian failover estimate`, whole and in quotes"
    )]
    Checksum,
}

const PREFIX: &str = "accept-loss/";
const VERSION: &str = "1";

impl fmt::Display for Consent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = self.body();
        write!(f, "{body};sum={:08x}", crc32c::crc32c(body.as_bytes()))
    }
}

impl Consent {
    fn body(&self) -> String {
        let whom = match (&self.lost, &self.to) {
            (Some(lost), _) => format!("lost={lost}"),
            (None, Some(to)) => format!("to={to}"),
            (None, None) => "to=any".to_owned(),
        };
        let mut body = format!("{PREFIX}{VERSION};{whom}");
        for (name, (epoch, loss)) in &self.buckets {
            let more = if loss.unbounded { "+" } else { "" };
            body += &format!(";{name}@{epoch}={}/{}{more}", loss.operations, loss.bytes);
        }
        body
    }

    /// All that is agreed to.
    pub fn total(&self) -> Loss {
        self.buckets.values().fold(Loss::default(), |sum, (_, loss)| sum.and(*loss))
    }
}

impl FromStr for Consent {
    type Err = ConsentError;

    fn from_str(text: &str) -> Result<Consent, ConsentError> {
        let text = text.trim();
        let rest = text.strip_prefix(PREFIX).ok_or(ConsentError::NotAConsent)?;
        let (version, _) = rest.split_once(';').ok_or(ConsentError::NotAConsent)?;
        if version != VERSION {
            return Err(ConsentError::Newer);
        }
        let (body, sum) = text.rsplit_once(";sum=").ok_or(ConsentError::Checksum)?;
        if u32::from_str_radix(sum, 16) != Ok(crc32c::crc32c(body.as_bytes())) {
            return Err(ConsentError::Checksum);
        }
        let mut parts = body.split(';').skip(1);
        let named = |name: &str| RegionName::new(name).map(Some).map_err(|_| ConsentError::NotAConsent);
        let (to, lost) = match parts.next().and_then(|part| part.split_once('=')) {
            Some(("to", "any")) => (None, None),
            Some(("to", name)) => (named(name)?, None),
            Some(("lost", name)) => (None, named(name)?),
            Some(_) | None => return Err(ConsentError::NotAConsent),
        };
        let buckets: BTreeMap<_, _> =
            parts.map(parse_bucket).collect::<Option<_>>().ok_or(ConsentError::NotAConsent)?;
        if buckets.len() > CONSENT_BUCKETS_MAX {
            return Err(ConsentError::NotAConsent);
        }
        Ok(Consent { to, lost, buckets })
    }
}

fn parse_bucket(part: &str) -> Option<(BucketName, (Epoch, Loss))> {
    let (place, figures) = part.split_once('=')?;
    let (name, epoch) = place.split_once('@')?;
    let (figures, unbounded) = figures.strip_suffix('+').map_or((figures, false), |figures| (figures, true));
    let (operations, bytes) = figures.split_once('/')?;
    let loss = Loss { operations: operations.parse().ok()?, bytes: bytes.parse().ok()?, unbounded };
    Some((BucketName::new(name).ok()?, (Epoch(epoch.parse().ok()?), loss)))
}

/// What has been heard of a lost primary's bucket since it was fenced.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Muster {
    /// What each region that is left has, shard by shard.
    pub remains: BTreeMap<RegionId, BTreeMap<ShardId, Remains>>,
    /// Whether no node of the lost region can still believe in a lease that it was granted before it was fenced.
    pub quiet: bool,
    /// What an operator agreed to lose; `None` when nothing may be lost.
    pub accepted: Option<Loss>,
}

/// What a failover came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The regions that were heard and had all their shards fenced.
    pub heard: Vec<RegionId>,
    /// Whether they prove that no acknowledged write is missing (DUR-2).
    pub proven: bool,
    /// What is missing as far as is known (SWI-2: no more than that is in the lost region's salvage, unless it is unbounded).
    pub lost: Loss,
    /// How far the lost primary's log counts, shard by shard, and what the successor held there.
    pub cut: BTreeMap<ShardId, Seal>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn consent() -> Consent {
        let name = |name: &str| BucketName::new(name).unwrap();
        let loss = |operations, bytes, unbounded| Loss { operations, bytes, unbounded };
        let buckets =
            [(name("orders"), (Epoch(7), loss(120, 34567, true))), (name("carts"), (Epoch(3), loss(0, 0, false)))];
        Consent { to: Some(RegionName::new("eu-west").unwrap()), lost: None, buckets: buckets.into() }
    }

    #[test]
    fn a_consent_says_what_it_agrees_to_and_comes_back_as_it_was() {
        let text = consent().to_string();
        assert!(text.starts_with("accept-loss/1;to=eu-west;carts@3=0/0;orders@7=120/34567+;sum="), "{text}");
        assert_eq!(text.parse(), Ok(consent()));
        let any = Consent { to: None, ..consent() };
        assert_eq!(any.to_string().parse(), Ok(any));
        let lost = Consent { to: None, lost: consent().to, ..consent() };
        assert!(lost.to_string().starts_with("accept-loss/1;lost=eu-west;carts@3=0/0;"), "{lost}");
        assert_eq!(lost.to_string().parse(), Ok(lost));
    }

    #[test]
    fn a_consent_that_was_changed_or_cut_is_none() {
        let text = consent().to_string();
        assert_eq!(text.replace("120", "999").parse::<Consent>(), Err(ConsentError::Checksum));
        assert_eq!(text[..text.len() - 3].parse::<Consent>(), Err(ConsentError::Checksum));
        assert_eq!("yes".parse::<Consent>(), Err(ConsentError::NotAConsent));
        assert_eq!(text.replace("loss/1", "loss/2").parse::<Consent>(), Err(ConsentError::Newer));
    }

    #[test]
    fn who_agrees_to_a_bound_does_not_agree_to_the_unknown() {
        let bound = Loss { operations: 5, bytes: 50, unbounded: false };
        assert!(bound.covers(Loss { operations: 5, bytes: 50, unbounded: false }));
        assert!(!bound.covers(Loss { operations: 6, bytes: 50, unbounded: false }));
        assert!(!bound.covers(Loss { unbounded: true, ..Loss::default() }));
        assert!(Loss { unbounded: true, ..bound }.covers(bound));
    }

    proptest! {
        #[test]
        fn any_text_is_a_consent_or_a_clear_error(text in ".{0,80}", tail in "[a-z0-9@=/+;]{0,60}") {
            let _ = text.parse::<Consent>();
            let body = format!("accept-loss/1;{tail}");
            let sealed = format!("{body};sum={:08x}", crc32c::crc32c(body.as_bytes()));
            if let Ok(consent) = sealed.parse::<Consent>() {
                prop_assert_eq!(consent.to_string().parse(), Ok(consent));
            }
        }
    }
}
