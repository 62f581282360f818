//! A bucket with names instead of numbers, for people and for programs.

use std::collections::BTreeMap;

use meridian_types::{Bucket, BucketLag, Phase, Policy, RepairStatus, Standing, Topology};
use serde::Serialize;

use crate::cli::moment::moment;
use crate::output::{bytes, count, millis, share};

/// A bucket with names instead of numbers.
#[derive(Debug, Default, Serialize)]
pub(in crate::cli) struct View {
    pub(in crate::cli) name: String,
    pub(in crate::cli) policy: String,
    pub(in crate::cli) phase: String,
    /// Unless it is steady: the operation that has it, and where its primary goes.
    pub(in crate::cli) operation: Option<String>,
    pub(in crate::cli) next_primary: Option<String>,
    pub(in crate::cli) epoch: u64,
    pub(in crate::cli) primary: Option<String>,
    pub(in crate::cli) regions: Vec<String>,
    pub(in crate::cli) labels: BTreeMap<String, String>,
    /// For sync buckets: how their copies stand.
    pub(in crate::cli) standing: Option<StandingView>,
    /// While some region may not have followed it into the lane of its policy.
    pub(in crate::cli) turning: Option<TurningView>,
    /// A region that is being filled and does not count yet.
    pub(in crate::cli) joining: Option<JoiningView>,
    /// While it goes from one writing region to all of them, or back: how far each region is.
    pub(in crate::cli) crossing: Option<String>,
    pub(in crate::cli) auto: AutoView,
    /// For buckets that may lack copies: what enough other regions do not have yet, as the primary knows it.
    pub(in crate::cli) exposure: Option<ExposureView>,
}

/// What a loss of the primary's region could cost now.
#[derive(Clone, Debug, Default, Serialize)]
pub(in crate::cli) struct ExposureView {
    operations: u64,
    bytes: u64,
    /// How long until nothing is exposed, at the rate just seen.
    eta_ms: Option<u64>,
}

/// How copies stand.
#[derive(Debug, Default, Serialize)]
pub(in crate::cli) struct StandingView {
    /// SYNC, DEGRADED, RECOVERING.
    state: String,
    /// Since when, in milliseconds since 1970.
    since_ms: u64,
    /// Since when acknowledged writes may lack copies.
    exposed_since_ms: Option<u64>,
    /// Why it degraded.
    reason: Option<String>,
    /// How many shards have come as far as the state asks, of how many, and what share that is.
    shards_ready: usize,
    shards: u16,
    percent_ready: u64,
}

/// A lane that has turned.
#[derive(Debug, Default, Serialize)]
pub(in crate::cli) struct TurningView {
    /// The lane of its policy, and the first epoch in it.
    lane: String,
    epoch: u64,
    /// In how many shards every region has everything of the epochs before, of how many.
    shards_followed: usize,
    shards: u16,
}

impl TurningView {
    fn of(bucket: &Bucket, shards: u16) -> Option<TurningView> {
        let turn = bucket.turns.kept.last()?;
        let (lane, shards_followed) = (bucket.policy.lane().to_string(), bucket.turns.followed.len());
        Some(TurningView { lane, epoch: turn.epoch.0, shards_followed, shards })
    }

    fn long(&self) -> String {
        format!(
            "since epoch {} in the {} lane; in {} of shards every region has what came before",
            self.epoch,
            self.lane,
            share(self.shards_followed as u64, u64::from(self.shards))
        )
    }
}

/// A region that is joining.
#[derive(Debug, Default, Serialize)]
pub(in crate::cli) struct JoiningView {
    region: String,
    /// Since when, in milliseconds since 1970, and the first epoch that is shipped to it.
    since_ms: u64,
    epoch: u64,
    /// In how many shards it is known to have everything, of how many.
    shards_filled: usize,
    shards: u16,
    /// Rows that are compared with those of another region now, and how many are; 0 while none are.
    rows_total: u64,
    rows_compared: u64,
    /// How long what is being filled now takes.
    eta_ms: Option<u64>,
}

impl JoiningView {
    fn of(bucket: &Bucket, topology: &Topology) -> Option<JoiningView> {
        let joining = bucket.joins.now.as_ref()?;
        let shards_filled = if joining.under == bucket.epoch { joining.filled.len() } else { 0 };
        Some(JoiningView {
            region: topology.region_label(joining.region),
            since_ms: joining.at.millis(),
            epoch: bucket.joins.since(joining.region).0,
            shards_filled,
            shards: topology.shards,
            ..JoiningView::default()
        })
    }

    fn long(&self) -> String {
        let rows = match self.rows_total {
            0 => String::new(),
            total => format!("; {} of {} rows compared", count(self.rows_compared), count(total)),
        };
        let eta = self.eta_ms.map_or(String::new(), |eta| format!(", ETA {}", millis(eta)));
        format!(
            "{} since {}, with epoch {}; in {} of shards it has everything{rows}{eta}; it counts for nothing until it has in all",
            self.region,
            moment(self.since_ms),
            self.epoch,
            share(self.shards_filled as u64, u64::from(self.shards))
        )
    }
}

/// What a bucket may do by itself.
#[derive(Debug, Default, Serialize)]
pub(in crate::cli) struct AutoView {
    mode: String,
    min_interval_ms: u64,
    max_per_day: u32,
    successors: Vec<String>,
    detect_after_ms: u64,
}

impl View {
    pub(in crate::cli) fn of(bucket: &Bucket, topology: &Topology) -> View {
        let (operation, to) = match bucket.phase {
            Phase::Steady => (None, None),
            Phase::CatchingUp { plan, to, .. }
            | Phase::Draining { plan, to }
            | Phase::Fencing { plan, to }
            | Phase::Pulling { plan, to } => (Some(plan.to_string()), Some(topology.region_label(to))),
        };
        let labels =
            |regions: &[meridian_types::RegionId]| regions.iter().map(|id| topology.region_label(*id)).collect();
        View {
            name: bucket.name.to_string(),
            policy: bucket.policy.to_string(),
            phase: bucket.phase.to_string(),
            operation,
            next_primary: to,
            epoch: bucket.epoch.0,
            primary: bucket.primary.map(|region| topology.region_label(region)),
            regions: labels(&bucket.regions),
            labels: bucket.labels.clone(),
            standing: matches!(bucket.policy, Policy::Sync { .. })
                .then(|| StandingView::of(&bucket.standing, topology.shards)),
            turning: TurningView::of(bucket, topology.shards),
            joining: JoiningView::of(bucket, topology),
            crossing: bucket.crossing.as_ref().map(|it| super::cross::progress(bucket, it, topology)),
            exposure: None,
            auto: AutoView {
                mode: bucket.auto.mode.to_string(),
                min_interval_ms: bucket.auto.interval_ms_min,
                max_per_day: bucket.auto.per_day_max,
                successors: labels(&bucket.auto.successors),
                detect_after_ms: bucket.auto.detect_ms,
            },
        }
    }

    /// Adds what the primary's region says of the other regions' lag: of those that count, the last one.
    pub(in crate::cli) fn expose(&mut self, bucket: &Bucket, lags: &[BucketLag]) {
        let counts = bucket.policy.max_lag().is_some() || !bucket.standing.is_sync();
        let needed = bucket.policy.required_regions(bucket.regions.len()).max(2) - 1;
        let of = |lag: &BucketLag| {
            (lag.unshipped_operations + lag.unapplied_operations, lag.unshipped_bytes + lag.unapplied_bytes)
        };
        let mut behind: Vec<_> = lags.iter().filter(|lag| lag.bucket == bucket.id).map(of).collect();
        behind.sort_unstable();
        let last = behind.get(needed - 1).filter(|_| counts);
        self.exposure =
            last.map(|(operations, bytes)| ExposureView { operations: *operations, bytes: *bytes, eta_ms: None });
    }

    /// Whether acknowledged writes may lack copies, so that somebody will want to know for how long yet.
    pub(in crate::cli) fn lacks_copies(&self) -> bool {
        self.standing.as_ref().is_some_and(|standing| standing.exposed_since_ms.is_some())
    }

    /// Says how long it will take, given what was exposed `ms` before.
    pub(in crate::cli) fn since(&mut self, before: Option<&ExposureView>, ms: u64) {
        if let (Some(now), Some(before)) = (&mut self.exposure, before) {
            let gone = before.bytes.saturating_sub(now.bytes);
            now.eta_ms = now.bytes.saturating_mul(ms).checked_div(gone);
        }
    }

    /// Adds how far the region that joins says it is filled.
    pub(super) fn fill(&mut self, repairs: impl Iterator<Item = RepairStatus>) {
        let Some(joining) = &mut self.joining else { return };
        for repair in repairs.filter(|repair| !repair.done) {
            joining.rows_total += repair.rows_total;
            joining.rows_compared += repair.rows_compared;
            joining.eta_ms = joining.eta_ms.max(Some(repair.eta_ms).filter(|eta| *eta > 0));
        }
    }

    /// Its phase, and unless it is steady which operation takes it where.
    pub(super) fn moving(&self) -> String {
        match (&self.operation, &self.next_primary) {
            (Some(operation), Some(to)) => format!("{} to {to} ({operation})", self.phase),
            _ => self.phase.clone(),
        }
    }

    /// How its copies stand, in a word or two.
    pub(super) fn copies(&self) -> String {
        let standing = self.standing.as_ref().map_or_else(|| "-".to_owned(), StandingView::short);
        match &self.exposure {
            Some(exposure) if self.standing.is_some() => format!("{standing}, {}", exposure.short()),
            Some(exposure) => exposure.short(),
            None if self.crossing.is_some() => format!("{standing}, writes are held"),
            None if self.joining.is_some() => format!("{standing}, a region joins"),
            None if self.turning.is_some() => format!("{standing}, lanes turning"),
            None => standing,
        }
    }

    /// For a bucket whose acknowledged writes may lack copies: since when and why, how much, how far it is back, and for how long yet.
    pub(in crate::cli) fn lacking(&self) -> Option<String> {
        let standing = self.standing.as_ref().filter(|_| self.lacks_copies())?;
        let exposed = self.exposure.as_ref().map_or_else(
            || "how much is exposed is not known: its primary's region does not say".to_owned(),
            |exposure| format!("exposed: {}", exposure.long()),
        );
        Some(format!("{}: {}; {exposed}", self.name, standing.long()))
    }

    /// Everything about it, a line each.
    pub(super) fn described(&self) -> String {
        let mut lines = vec![
            ("bucket", self.name.clone()),
            ("policy", self.policy.clone()),
            ("primary", self.primary.clone().unwrap_or_else(|| "every region".to_owned())),
            ("regions", self.regions.join(", ")),
            ("epoch", format!("{}, {}", self.epoch, self.moving())),
        ];
        lines.extend(self.standing.as_ref().map(|standing| ("copies", standing.long())));
        lines.extend(self.joining.as_ref().map(|joining| ("joining", joining.long())));
        lines.extend(self.crossing.clone().map(|crossing| ("crossing", crossing)));
        lines.extend(self.turning.as_ref().map(|turning| ("lanes", turning.long())));
        lines.extend(self.exposure.as_ref().map(|exposure| ("exposed", exposure.long())));
        if self.primary.is_some() {
            lines.push(("failover", self.auto.long()));
        }
        if !self.labels.is_empty() {
            let labels: Vec<String> = self.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
            lines.push(("labels", labels.join(" ")));
        }
        let line = |(name, value): (&str, String)| format!(" {name:<10}{value}");
        lines.into_iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

impl ExposureView {
    fn short(&self) -> String {
        match self.operations {
            0 => "nothing exposed".to_owned(),
            operations => format!("{} operations, {} exposed", count(operations), bytes(self.bytes)),
        }
    }

    fn long(&self) -> String {
        if self.operations == 0 {
            return "nothing: enough regions have every write".to_owned();
        }
        let eta = self.eta_ms.map_or(String::new(), |eta| format!("; at the present rate gone in {}", millis(eta)));
        let (operations, bytes) = (count(self.operations), bytes(self.bytes));
        format!("{operations} operations, {bytes}: not yet in as many regions as it takes to survive{eta}")
    }
}

impl StandingView {
    fn of(standing: &Standing, shards: u16) -> StandingView {
        let reason = match standing {
            Standing::Degraded { reason, .. } => Some(reason.clone()),
            Standing::Sync { .. } | Standing::Recovering { .. } => None,
        };
        let shards_ready = standing.ready().map_or(usize::from(shards), std::collections::BTreeSet::len);
        StandingView {
            state: standing.to_string(),
            since_ms: standing.since().millis(),
            exposed_since_ms: standing.exposed_since().map(|at| at.millis()),
            reason,
            shards_ready,
            shards,
            percent_ready: (shards_ready as u64 * 100).checked_div(u64::from(shards)).unwrap_or_default(),
        }
    }

    fn short(&self) -> String {
        match self.exposed_since_ms {
            None => self.state.clone(),
            Some(_) => format!("{} ({} of shards back)", self.state, self.percent()),
        }
    }

    fn percent(&self) -> String {
        share(self.shards_ready as u64, u64::from(self.shards))
    }

    fn long(&self) -> String {
        let Some(exposed_since_ms) = self.exposed_since_ms else { return self.state.clone() };
        let reason = self.reason.as_ref().map_or(String::new(), |reason| format!(": {reason}"));
        format!(
            "{} since {}{reason}; writes since {} may lack copies; {} of shards back",
            self.state,
            moment(self.since_ms),
            moment(exposed_since_ms),
            self.percent()
        )
    }
}

impl AutoView {
    fn long(&self) -> String {
        let preferred = match self.successors.as_slice() {
            [] => String::new(),
            some => format!("; preferred: {}", some.join(", ")),
        };
        if self.mode == "manual" {
            return format!("manual{preferred}");
        }
        let (interval, count) = (minutes(self.min_interval_ms), self.max_per_day);
        format!("{}, at most every {interval} and {count} times a day{preferred}", self.mode)
    }
}

/// A time that people give in minutes.
fn minutes(ms: u64) -> String {
    if ms.is_multiple_of(60_000) { format!("{} min", ms / 60_000) } else { millis(ms) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_that_moves_says_where_to() {
        let mut bucket = View {
            phase: "draining".into(),
            operation: Some("op-12".into()),
            next_primary: Some("eu-west".into()),
            ..View::default()
        };
        assert_eq!(bucket.moving(), "draining to eu-west (op-12)");
        (bucket.operation, bucket.next_primary) = (None, None);
        assert_eq!(bucket.moving(), "draining");
    }

    #[test]
    fn a_list_of_buckets_is_a_table() {
        let bucket = View {
            name: "orders".into(),
            policy: "sync (majority)".into(),
            phase: "steady".into(),
            epoch: 1,
            primary: Some("us-east".into()),
            regions: vec!["us-east".into(), "eu-west".into()],
            labels: BTreeMap::from([("team".to_owned(), "shop".to_owned())]),
            standing: Some(StandingView { state: "SYNC".into(), ..StandingView::default() }),
            ..View::default()
        };
        let expected = [
            " bucket   policy            primary   regions            epoch   phase    copies   labels",
            " orders   sync (majority)   us-east   us-east, eu-west       1   steady   SYNC     team=shop",
        ];
        let text = super::super::table(&[bucket]);
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        assert_eq!((lines[0], lines[2]), (expected[0], expected[1]));
    }

    #[test]
    fn a_region_that_joins_says_how_far_it_is() {
        let mut bucket = View {
            primary: Some("us-east".into()),
            joining: Some(JoiningView {
                region: "ap-south".into(),
                epoch: 5,
                shards_filled: 4,
                shards: 16,
                ..JoiningView::default()
            }),
            ..View::default()
        };
        let repair = |rows_total, eta_ms, done| RepairStatus {
            rows_total,
            rows_compared: 10,
            eta_ms,
            done,
            ..RepairStatus::default()
        };
        bucket.fill([repair(40, 2000, false), repair(60, 3000, false), repair(7, 0, true)].into_iter());
        let text = bucket.described();
        assert!(
            text.contains("with epoch 5; in 25 % of shards") && text.contains("20 of 100 rows compared, ETA 3.00 s"),
            "{text}"
        );
    }

    #[test]
    fn a_degraded_bucket_says_what_that_means() {
        let standing = StandingView {
            state: "DEGRADED".into(),
            since_ms: 2000,
            exposed_since_ms: Some(1000),
            reason: Some("eu-west does not answer".into()),
            shards_ready: 3,
            shards: 16,
            percent_ready: 18,
        };
        let mut bucket = View {
            name: "orders".into(),
            primary: Some("us-east".into()),
            standing: Some(standing),
            ..View::default()
        };
        assert_eq!(bucket.copies(), "DEGRADED (19 % of shards back)");
        let text = bucket.described();
        assert!(text.contains("eu-west does not answer") && text.contains("may lack copies"), "{text}");

        let exposed = |operations, bytes| Some(ExposureView { operations, bytes, eta_ms: None });
        bucket.exposure = exposed(1234, 3 << 20);
        bucket.since(exposed(5000, 4 << 20).as_ref(), 1000);
        assert_eq!(bucket.copies(), "DEGRADED (19 % of shards back), 1,234 operations, 3.0 MiB exposed");
        let lacking = bucket.lacking().unwrap();
        assert!(
            lacking.starts_with("orders: DEGRADED since 1970-01-01 00:00:02Z: eu-west does not answer"),
            "{lacking}"
        );
        assert!(lacking.contains("1,234 operations, 3.0 MiB") && lacking.ends_with("gone in 3.00 s"), "{lacking}");
        assert_eq!(serde_json::to_value(&bucket).unwrap()["exposure"]["eta_ms"], 3000);
        bucket.since(exposed(1234, 3 << 20).as_ref(), 1000);
        assert!(!bucket.lacking().unwrap().contains("gone in"), "nothing goes away: no rate is known");
        bucket.standing = Some(StandingView { state: "SYNC".into(), ..StandingView::default() });
        assert_eq!(bucket.lacking(), None);
    }
}
