//! What a bucket, its labels and a node may look like. Refusals name the fields in conflict and the remedy.

use std::collections::BTreeSet;

use meridian_types::policy::LAG_BYTES_MIN;
use meridian_types::{
    AutoFailover, Breach, Bucket, BucketSpec, Labels, LagBound, MaxLag, Policy, PolicyError, Refusal, RefusalKind,
    RegionId, RegionName,
};

use crate::command::{Form, NodeSpec};
use crate::state::{ClusterState, LEASE_TTL_MS_MAX, LEASE_TTL_MS_MIN, MEMBERS_MAX, REGIONS_MAX, SHARDS_MAX};

/// The most labels one bucket may carry: with the lengths below, 10,000 buckets stay under 64 MiB.
pub const LABELS_MAX: usize = 32;

/// The longest key of a label, in bytes.
pub const LABEL_KEY_BYTES_MAX: usize = 63;

/// The longest value of a label, in bytes.
pub const LABEL_VALUE_BYTES_MAX: usize = 127;

/// The longest address: a DNS name of 253 bytes, a colon and a port.
pub const ADDRESS_BYTES_MAX: usize = 259;

/// The longest zone or version, in bytes.
pub const TEXT_BYTES_MAX: usize = 63;

/// Where a bucket goes, after everything about it was found valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Placement {
    /// Ascending.
    pub(crate) regions: Vec<RegionId>,
    pub(crate) primary: Option<RegionId>,
    pub(crate) auto: AutoFailover,
}

pub(crate) fn invalid(message: impl Into<String>) -> Refusal {
    Refusal::new(RefusalKind::Invalid, message)
}

fn contradiction(error: &PolicyError) -> Refusal {
    invalid(error.to_string())
}

impl ClusterState {
    /// Checks a bucket that is to be created, without creating it: what a dry run asks.
    ///
    /// # Errors
    /// [`RefusalKind::Retry`] before the cluster is formed, [`RefusalKind::Exists`] for a name that is taken,
    /// [`RefusalKind::NotFound`] for a region that does not exist, [`RefusalKind::Invalid`] for everything else.
    pub fn check_bucket(&self, spec: &BucketSpec) -> Result<(), Refusal> {
        self.place(spec).map(|_| ())
    }

    pub(crate) fn place(&self, spec: &BucketSpec) -> Result<Placement, Refusal> {
        self.require_formed()?;
        check_labels(&spec.labels)?;
        let named = self.named_regions(&spec.regions)?;
        let primary = self.primary(spec, &named)?;
        spec.policy.validate(named.len()).map_err(|e| contradiction(&e))?;
        self.check_ceiling(spec.policy)?;
        let auto = self.auto(&spec.auto, spec.policy, &named)?;
        if self.bucket_ids.contains_key(&spec.name) {
            return Err(Refusal::new(
                RefusalKind::Exists,
                format!("a bucket named `{}` exists already: choose another name or delete it first", spec.name),
            ));
        }
        if self.buckets.len() >= crate::state::BUCKETS_MAX {
            return Err(Refusal::new(
                RefusalKind::Unavailable,
                format!("the cluster has {} buckets, the most it can have: delete one first", self.buckets.len()),
            ));
        }
        let mut regions = named;
        regions.sort_unstable();
        Ok(Placement { regions, primary, auto })
    }

    pub(crate) fn require_formed(&self) -> Result<(), Refusal> {
        if self.formed.is_none() {
            return Err(Refusal::new(
                RefusalKind::Retry,
                "the cluster is not formed yet: try again once a majority of its members has started",
            ));
        }
        Ok(())
    }

    /// The ids of the regions as named, in that order; of all regions with data when none is named.
    fn named_regions(&self, names: &[RegionName]) -> Result<Vec<RegionId>, Refusal> {
        if names.is_empty() {
            return Ok(self.regions.keys().copied().filter(|region| self.holds_data(*region)).collect());
        }
        let mut ids = Vec::new();
        for name in names {
            let id = self.known_region("regions", name)?;
            if !self.holds_data(id) {
                return Err(invalid(format!(
                    "`regions` names `{name}`, which is a witness: it votes in the metadata plane and holds no data; leave it out"
                )));
            }
            if ids.contains(&id) {
                return Err(invalid(format!("`regions` names `{name}` twice: name each region once")));
            }
            ids.push(id);
        }
        Ok(ids)
    }

    pub(crate) fn known_region(&self, field: &str, name: &RegionName) -> Result<RegionId, Refusal> {
        self.region_id(name).ok_or_else(|| {
            let known: Vec<_> = self.regions.values().map(|region| region.name.as_str()).collect();
            Refusal::new(
                RefusalKind::NotFound,
                format!("`{field}` names `{name}`, which is no region of this cluster: use {}", known.join(", ")),
            )
        })
    }

    /// A ceiling that blocks is divided among shards, so that it holds whoever leads them: each must have room for one write.
    pub(crate) fn check_ceiling(&self, policy: Policy) -> Result<(), Refusal> {
        let Some(MaxLag { bound, on_breach: Breach::Block }) = policy.max_lag() else { return Ok(()) };
        let shards = self.formed.as_ref().map_or(0, |formed| u64::from(formed.shards));
        let least = LagBound { ms: None, operations: Some(shards), bytes: Some(LAG_BYTES_MIN.saturating_mul(shards)) };
        let short = |is: Option<u64>, least: Option<u64>| is.is_some_and(|is| Some(is) < least);
        if short(bound.operations, least.operations) || short(bound.bytes, least.bytes) {
            let least = LagBound {
                operations: bound.operations.and(least.operations),
                bytes: bound.bytes.and(least.bytes),
                ..least
            };
            return Err(invalid(format!(
                "`max-lag = {bound}` is too small for `on-breach = block`: each of {shards} shards has its part of it and needs room for a write; use at least {least}, or another `on-breach`"
            )));
        }
        Ok(())
    }

    /// What a bucket may do by itself, after everything about it was found valid.
    pub(crate) fn auto(
        &self,
        asked: &AutoFailover<RegionName>,
        policy: Policy,
        regions: &[RegionId],
    ) -> Result<AutoFailover, Refusal> {
        let successors = asked.successors.iter().map(|name| self.known_region("successors", name));
        let successors = successors.collect::<Result<Vec<_>, _>>()?;
        let holders: Vec<_> = regions.iter().filter_map(|id| self.regions.get(id)).map(|it| it.name.clone()).collect();
        asked.validate(policy, &holders).map_err(|e| contradiction(&e))?;
        let AutoFailover { mode, interval_ms_min, per_day_max, .. } = *asked;
        Ok(AutoFailover { mode, interval_ms_min, per_day_max, successors, detect_ms: 0 })
    }

    /// What a bucket may do by itself instead of what it may now.
    pub(crate) fn auto_instead(
        &self,
        asked: &AutoFailover<RegionName>,
        bucket: &Bucket,
    ) -> Result<AutoFailover, Refusal> {
        let auto = self.auto(asked, bucket.policy, &bucket.regions)?;
        Ok(AutoFailover { detect_ms: bucket.auto.detect_ms, ..auto })
    }

    fn primary(&self, spec: &BucketSpec, named: &[RegionId]) -> Result<Option<RegionId>, Refusal> {
        match &spec.primary {
            Some(primary) if !spec.policy.has_primary() => {
                Err(contradiction(&PolicyError::PrimaryWithActiveActive { primary: primary.to_string() }))
            }
            None if !spec.policy.has_primary() => Ok(None),
            None => Ok(named.first().copied()),
            Some(primary) => {
                let id = self.known_region("primary", primary)?;
                if named.contains(&id) {
                    return Ok(Some(id));
                }
                let regions = spec.regions.iter().map(RegionName::as_str).collect::<Vec<_>>().join(", ");
                Err(contradiction(&PolicyError::PrimaryOutsideRegions { primary: primary.to_string(), regions }))
            }
        }
    }
}

/// Checks a bucket's labels.
pub(crate) fn check_labels(labels: &Labels) -> Result<(), Refusal> {
    if labels.len() > LABELS_MAX {
        return Err(invalid(format!(
            "`labels` would have {} entries; at most {LABELS_MAX} are allowed: remove some",
            labels.len()
        )));
    }
    for (key, value) in labels {
        check_label_key(key)?;
        if value.len() > LABEL_VALUE_BYTES_MAX || value.chars().any(char::is_control) {
            return Err(invalid(format!(
                "the value of label `{key}` is not valid: use at most {LABEL_VALUE_BYTES_MAX} bytes without control characters"
            )));
        }
    }
    Ok(())
}

fn check_label_key(key: &str) -> Result<(), Refusal> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    if (1..=LABEL_KEY_BYTES_MAX).contains(&key.len()) && key.chars().all(allowed) {
        return Ok(());
    }
    let shown: String = key.chars().filter(|c| !c.is_control()).take(LABEL_KEY_BYTES_MAX).collect();
    Err(invalid(format!(
        "the label key `{shown}` is not valid: use 1 to {LABEL_KEY_BYTES_MAX} of `A-Z a-z 0-9 - _ . /`"
    )))
}

/// Checks a change of labels before the bucket is known.
pub(crate) fn check_label_change(set: &Labels, remove: &BTreeSet<String>) -> Result<(), Refusal> {
    check_labels(set)?;
    if let Some(both) = remove.iter().find(|key| set.contains_key(*key)) {
        return Err(invalid(format!("label `{both}` is in `set` and in `remove`: name it in one of them")));
    }
    if remove.len() > LABELS_MAX {
        return Err(invalid(format!("`remove` names more than {LABELS_MAX} labels, the most a bucket can have")));
    }
    Ok(())
}

/// Checks a node's description of itself.
pub(crate) fn check_node(node: &NodeSpec) -> Result<(), Refusal> {
    check_text("zone", &node.zone)?;
    check_text("version", &node.version)?;
    check_address("rpc_address", &node.rpc_address)?;
    // A witness has none: that is what makes it one.
    if node.replication_address.is_empty() {
        return Ok(());
    }
    check_address("replication_address", &node.replication_address)
}

pub(crate) fn check_text(field: &str, text: &str) -> Result<(), Refusal> {
    if text.len() > TEXT_BYTES_MAX || text.chars().any(char::is_control) {
        return Err(invalid(format!(
            "`{field}` is not valid: use at most {TEXT_BYTES_MAX} bytes without control characters"
        )));
    }
    Ok(())
}

pub(crate) fn check_address(field: &str, address: &str) -> Result<(), Refusal> {
    let port =
        address.rsplit_once(':').filter(|(host, _)| !host.is_empty()).and_then(|(_, port)| port.parse::<u16>().ok());
    let printable = !address.chars().any(|c| c.is_control() || c.is_whitespace());
    if address.len() <= ADDRESS_BYTES_MAX && printable && port.is_some_and(|port| port > 0) {
        return Ok(());
    }
    let shown: String = address.chars().filter(|c| !c.is_control()).take(ADDRESS_BYTES_MAX).collect();
    Err(invalid(format!("`{field} = {shown}` is not an address: use host:port with at most {ADDRESS_BYTES_MAX} bytes")))
}

/// Checks what a cluster is to be formed of.
pub(crate) fn check_form(form: &Form) -> Result<(), Refusal> {
    if !(1..=SHARDS_MAX).contains(&form.shards) {
        return Err(invalid(format!("`shards = {}` is not valid: use 1 to {SHARDS_MAX}", form.shards)));
    }
    if !(LEASE_TTL_MS_MIN..=LEASE_TTL_MS_MAX).contains(&form.lease_ttl_ms) {
        return Err(invalid(format!(
            "`lease_ttl_ms = {}` is not valid: use {LEASE_TTL_MS_MIN} to {LEASE_TTL_MS_MAX}",
            form.lease_ttl_ms
        )));
    }
    if form.members.is_empty() || form.members.len() > MEMBERS_MAX {
        return Err(invalid(format!("`members` has {} nodes: use 1 to {MEMBERS_MAX}", form.members.len())));
    }
    let names: BTreeSet<_> = form.members.iter().map(|member| &member.name).collect();
    if names.len() < form.members.len() {
        return Err(invalid("`members` names a node twice: name each node once"));
    }
    let ids: BTreeSet<_> = form.members.iter().map(|member| meridian_types::NodeId::of(&member.name)).collect();
    if ids.len() < form.members.len() {
        return Err(invalid("two names in `members` have the same id: rename one of these nodes"));
    }
    let regions: BTreeSet<_> = form.members.iter().map(|member| &member.region).collect();
    if regions.len() > REGIONS_MAX {
        return Err(invalid(format!("`members` spans {} regions; at most {REGIONS_MAX} are allowed", regions.len())));
    }
    check_witnesses(form)?;
    form.members.iter().try_for_each(check_node)
}

/// A region holds data with all its members or is a witness with all of them, and some region holds data.
fn check_witnesses(form: &Form) -> Result<(), Refusal> {
    let of_kind = |witness: bool| {
        let members = form.members.iter().filter(move |member| member.replication_address.is_empty() == witness);
        members.map(|member| &member.region).collect::<BTreeSet<_>>()
    };
    let (witnesses, holding) = (of_kind(true), of_kind(false));
    if let Some(both) = witnesses.intersection(&holding).next() {
        return Err(invalid(format!(
            "`members` has witnesses and nodes with data in region `{both}`: give the witness a region of its own"
        )));
    }
    if holding.is_empty() {
        return Err(invalid("`members` has witnesses only: some region must hold data"));
    }
    Ok(())
}
