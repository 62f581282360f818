//! Which faults met which steps of what is done to buckets: a promise that holds at every step is held to it only where something breaks at
//! that step. No part of what happened in a world, and so not in its hash.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use meridian_types::{Bucket, BucketId, BucketName, Phase, Standing, Topology, Way};

/// What a bucket is in between, and what broke meanwhile, with how often.
pub type Met = BTreeMap<(&'static str, &'static str), u64>;

/// Every step that a bucket can be seen at.
pub const STEPS: [&str; 12] = [
    "catching up",
    "draining",
    "fencing",
    "pulling",
    "a policy turns",
    "a region joins",
    "opening",
    "closing",
    "regrouping",
    "losing a region",
    "degraded",
    "recovering",
];

/// Counts them. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Meetings(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    /// The newest topology that any node knows.
    index: u64,
    steps: BTreeMap<BucketId, (BucketName, Vec<&'static str>)>,
    under_way: BTreeMap<&'static str, u32>,
    met: Met,
}

impl Meetings {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something breaks, for a while: it meets the steps at which buckets are now, and those they come to until it is mended.
    pub(crate) fn breaks(&self, what: &'static str) {
        let mut inner = self.inner();
        *inner.under_way.entry(what).or_default() += 1;
        let steps: Vec<_> = inner.steps.values().flat_map(|(_, steps)| steps.clone()).collect();
        inner.meet(steps, &[what]);
    }

    /// What broke is mended.
    pub(crate) fn is_mended(&self, what: &'static str) {
        let mut inner = self.inner();
        if let Some(times) = inner.under_way.get_mut(what) {
            *times -= 1;
            inner.under_way.retain(|_, times| *times > 0);
        }
    }

    /// Somebody wants something of a bucket: it meets what is under way in that bucket.
    pub(crate) fn is_asked(&self, what: &'static str, bucket: &BucketName) {
        let mut inner = self.inner();
        let steps: Vec<_> =
            inner.steps.values().filter(|(name, _)| name == bucket).flat_map(|(_, steps)| steps.clone()).collect();
        inner.meet(steps, &[what]);
    }

    /// A node knows this.
    pub(crate) fn is_known(&self, topology: &Topology) {
        let mut inner = self.inner();
        if topology.index <= inner.index {
            return;
        }
        inner.index = topology.index;
        let under_way: Vec<_> = inner.under_way.keys().copied().collect();
        let now: BTreeMap<_, _> =
            topology.buckets.iter().map(|(id, bucket)| (*id, (bucket.name.clone(), steps(bucket)))).collect();
        let before = std::mem::replace(&mut inner.steps, now.clone());
        for (id, (_, steps)) in now {
            let known = before.get(&id).map(|(_, steps)| steps.clone()).unwrap_or_default();
            let new = steps.into_iter().filter(|step| !known.contains(step)).collect();
            inner.meet(new, &under_way);
        }
    }

    pub(crate) fn met(&self) -> Met {
        self.inner().met.clone()
    }
}

impl Inner {
    fn meet(&mut self, steps: Vec<&'static str>, faults: &[&'static str]) {
        for step in steps {
            for fault in faults {
                *self.met.entry((step, fault)).or_default() += 1;
            }
        }
    }
}

/// What a bucket is in between.
fn steps(bucket: &Bucket) -> Vec<&'static str> {
    let phase = match bucket.phase {
        Phase::Steady => None,
        Phase::CatchingUp { .. } => Some("catching up"),
        Phase::Draining { .. } => Some("draining"),
        Phase::Fencing { .. } => Some("fencing"),
        Phase::Pulling { .. } => Some("pulling"),
    };
    let crossing = bucket.crossing.as_ref().map(|crossing| match crossing.way {
        Way::Opening => "opening",
        Way::Closing { .. } => "closing",
        Way::Regrouping { .. } => "regrouping",
        Way::Losing { .. } => "losing a region",
    });
    let standing = match bucket.standing {
        Standing::Sync { .. } => None,
        Standing::Degraded { .. } => Some("degraded"),
        Standing::Recovering { .. } => Some("recovering"),
    };
    let turning = bucket.is_turning().then_some("a policy turns");
    let joining = bucket.joins.joining().map(|_| "a region joins");
    [phase, crossing, standing, turning, joining].into_iter().flatten().collect()
}
