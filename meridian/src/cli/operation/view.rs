//! An operation with names instead of numbers, for people and for programs.

use std::collections::BTreeMap;

use meridian_types::{Goal, Loss, Move, Muster, Plan, PlanOutcome, Proof, Seal, ShardId, Step, Topology, Verdict};
use serde::Serialize;

use crate::cli::moment::moment;
use crate::output::{Show, Table, bytes, count, millis};

/// An operation.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct View {
    pub(super) operation: String,
    pub(super) kind: &'static str,
    pub(super) outcome: PlanOutcome,
    pub(super) to: String,
    pub(super) who: String,
    pub(super) reason: String,
    pub(super) asked_at_ms: u64,
    pub(super) ended_at_ms: Option<u64>,
    #[serde(flatten)]
    bounds: Option<Bounds>,
    /// Of a failover: whether the cluster found out by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    automatic: Option<bool>,
    pub(super) buckets: Vec<Row>,
    /// The commands that move back what has moved.
    pub(super) undo: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Bounds {
    lag_ms_max: u64,
    pause_ms_max: u64,
}

/// A bucket of it.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub(super) bucket: String,
    pub(super) from: String,
    pub(super) to: String,
    pub(super) step: String,
    /// The one in force now.
    epoch: u64,
    pub(super) pause_ms: Option<u64>,
    why: Option<String>,
    pub(super) proof: Option<ProofView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    verdict: Option<VerdictView>,
}

/// What a failover rests on, and what it cost.
#[derive(Debug, Serialize)]
struct VerdictView {
    /// The regions that were heard.
    heard: Vec<String>,
    /// Whether they prove that nothing is lost.
    proven: bool,
    lost: LossView,
    shards: u16,
    keys: u64,
    /// How far the lost primary's log counts.
    cut: BTreeMap<u16, SealView>,
}

/// How much is lost.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct LossView {
    operations: u64,
    bytes: u64,
    /// Whether there may be more that nobody who is left can know of.
    unbounded: bool,
}

impl LossView {
    /// Whether something is lost.
    pub(in crate::cli) fn is_some(&self) -> bool {
        self.operations > 0
    }

    /// Whether it is more than that.
    pub(in crate::cli) fn exceeds(&self, other: &LossView) -> bool {
        self.operations > other.operations || self.bytes > other.bytes
    }

    pub(in crate::cli) fn is_unbounded(&self) -> bool {
        self.unbounded
    }

    pub(in crate::cli) fn of(loss: Loss) -> LossView {
        LossView { operations: loss.operations, bytes: loss.bytes, unbounded: loss.unbounded }
    }
}

/// `nothing`, `at most 12 operations, 3.4 KiB`, `12 operations, 3.4 KiB known of`. Without a proof a figure is a bound: what was known of,
/// or the bucket's ceiling.
pub(in crate::cli) fn loss_text(loss: &LossView, proven: bool) -> String {
    let known = match loss.operations {
        0 => "nothing".to_owned(),
        1 => format!("1 operation, {}", bytes(loss.bytes)),
        many => format!("{} operations, {}", count(many), bytes(loss.bytes)),
    };
    match (proven, loss.unbounded, loss.operations) {
        (true, ..) => known,
        (false, true, 0) => "nothing known of".to_owned(),
        (false, true, _) => format!("{known} known of"),
        (false, false, 0) => known,
        (false, false, _) => format!("at most {known}"),
    }
}

/// What both regions held at the old primary's seal.
#[derive(Debug, Serialize)]
pub(super) struct ProofView {
    /// In how many shards both are known and equal.
    pub(super) equal: usize,
    pub(super) of: u16,
    keys: u64,
    differing: Vec<u16>,
    shards: BTreeMap<u16, ShardView>,
}

#[derive(Debug, Serialize)]
struct ShardView {
    sealed: Option<SealView>,
    ready: Option<SealView>,
    equal: bool,
}

#[derive(Debug, Serialize)]
struct SealView {
    lsn: u64,
    digest: String,
    keys: u64,
}

impl View {
    pub(in crate::cli) fn of(plan: &Plan, topology: &Topology) -> View {
        let (kind, bounds, automatic) = match plan.goal {
            Goal::Switchover { lag_ms_max, pause_ms_max, .. } => {
                ("switchover", Some(Bounds { lag_ms_max, pause_ms_max }), None)
            }
            Goal::Failover { automatic, .. } => ("failover", None, Some(automatic)),
        };
        View {
            operation: plan.id.to_string(),
            kind,
            outcome: plan.outcome(),
            to: destination(plan, topology),
            who: plan.who.clone(),
            reason: plan.reason.clone(),
            asked_at_ms: plan.created_ms,
            ended_at_ms: plan.ended_ms,
            bounds,
            automatic,
            buckets: plan.moves.iter().map(|it| Row::of(it, plan, topology)).collect(),
            undo: undo(plan, topology),
        }
    }

    /// `orders`, or `12 buckets`.
    pub(super) fn whose(&self) -> String {
        match self.buckets.as_slice() {
            [one] => one.bucket.clone(),
            many => format!("{} buckets", many.len()),
        }
    }

    /// The longest pause of any bucket.
    pub(super) fn pause_ms_max(&self) -> Option<u64> {
        self.buckets.iter().filter_map(|row| row.pause_ms).max()
    }

    /// `us-east`, or `2 regions`.
    pub(super) fn from(&self) -> String {
        let regions: std::collections::BTreeSet<&str> = self.buckets.iter().map(|row| row.from.as_str()).collect();
        match regions.len() {
            1 => regions.into_iter().collect(),
            many => format!("{many} regions"),
        }
    }
}

impl Row {
    fn of(it: &Move, plan: &Plan, topology: &Topology) -> Row {
        let (epoch, proof, why) = match &it.step {
            Step::Fencing { epoch, .. } | Step::Pulling { epoch, .. } | Step::FailedOver { epoch, .. } => {
                (*epoch, None, None)
            }
            Step::Unneeded | Step::CatchingUp { .. } => (it.epoch_before, None, None),
            Step::Draining { epoch, proof, .. } | Step::Promoted { epoch, proof, .. } => (*epoch, Some(proof), None),
            Step::Restored { epoch, why, .. } => (*epoch, None, Some(why.clone())),
        };
        Row {
            bucket: it.name.to_string(),
            from: topology.region_label(it.from),
            to: plan.successor(it).map_or_else(|| "-".to_owned(), |to| topology.region_label(to)),
            step: it.step.to_string(),
            epoch: epoch.0,
            pause_ms: it.step.pause_ms(),
            why,
            proof: proof.map(|proof| ProofView::of(proof, plan.shards)),
            verdict: match &it.step {
                Step::FailedOver { verdict, .. } => Some(VerdictView::of(verdict, topology)),
                _ => None,
            },
        }
    }

    fn note(&self) -> String {
        match (&self.why, &self.proof) {
            (Some(why), _) => why.clone(),
            (None, Some(proof)) if !proof.differing.is_empty() => {
                let shards: Vec<String> = proof.differing.iter().map(ToString::to_string).collect();
                format!("the regions DIFFER in shard {}", shards.join(", "))
            }
            (None, _) if self.step == "unneeded" => "the primary was there already".to_owned(),
            (None, _) => String::new(),
        }
    }
}

impl VerdictView {
    fn of(verdict: &Verdict, topology: &Topology) -> VerdictView {
        VerdictView {
            heard: verdict.heard.iter().map(|region| topology.region_label(*region)).collect(),
            proven: verdict.proven,
            lost: LossView::of(verdict.lost),
            shards: u16::try_from(verdict.cut.len()).unwrap_or(u16::MAX),
            keys: verdict.cut.values().map(|seal| seal.keys).sum(),
            cut: verdict.cut.iter().map(|(shard, seal)| (shard.0, SealView::of(seal))).collect(),
        }
    }

    fn note(&self) -> String {
        let heard = self.heard.join(", ");
        if self.proven { format!("proven by {heard}") } else { format!("by what {heard} had") }
    }
}

impl SealView {
    fn of(seal: &Seal) -> SealView {
        SealView { lsn: seal.lsn.0, digest: seal.hash.to_string(), keys: seal.keys }
    }
}

impl ProofView {
    fn of(proof: &Proof, of: u16) -> ProofView {
        let shard = |shard: ShardId| {
            let (sealed, ready) = (proof.sealed.get(&shard), proof.ready.get(&shard));
            let equal = sealed.is_some() && sealed == ready;
            (shard.0, ShardView { sealed: sealed.map(SealView::of), ready: ready.map(SealView::of), equal })
        };
        ProofView {
            equal: proof.equal(),
            of,
            keys: proof.ready.values().map(|seal| seal.keys).sum(),
            differing: proof.differing().map(|shard| shard.0).collect(),
            shards: proof.sealed.keys().chain(proof.ready.keys()).map(|known| shard(*known)).collect(),
        }
    }
}

/// `eu-west`, `2 regions`, or `-` while it is not known.
fn destination(plan: &Plan, topology: &Topology) -> String {
    let known = plan.moves.iter().filter_map(|it| plan.successor(it));
    let regions: std::collections::BTreeSet<_> = known.chain(plan.to()).collect();
    match regions.len() {
        0 => "-".to_owned(),
        1 => regions.iter().map(|region| topology.region_label(*region)).collect(),
        many => format!("{many} regions"),
    }
}

/// How far a failover of a bucket is.
pub(super) fn mustered(muster: &Muster, shards: u16, topology: &Topology) -> String {
    let heard = |(region, remains): (&meridian_types::RegionId, &BTreeMap<ShardId, _>)| {
        format!("{} {}/{shards}", topology.region_label(*region), remains.len())
    };
    let heard: Vec<String> = muster.remains.iter().map(heard).collect();
    let leases = if muster.quiet { "leases of the lost region are out" } else { "waiting for its leases to run out" };
    let heard = if heard.is_empty() { "nobody heard yet".to_owned() } else { format!("fenced {}", heard.join(", ")) };
    format!("{heard}; {leases}")
}

/// One command per region that buckets came from.
fn undo(plan: &Plan, topology: &Topology) -> Vec<String> {
    let mut back: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for it in plan.moves.iter().filter(|it| matches!(it.step, Step::Promoted { .. })) {
        back.entry(topology.region_label(it.from)).or_default().push(format!("--bucket {}", it.name));
    }
    back.into_iter()
        .map(|(region, buckets)| format!("meridian switchover run --to {region} {}", buckets.join(" ")))
        .collect()
}

impl View {
    /// A failover: what it cost, and how the lost region comes back.
    fn failover_text(&self) -> String {
        let columns = ["bucket", "from", "to", "step", ">epoch", ">fenced for", ">shards", ">keys", "lost", "note"];
        let mut table = Table::new(&columns);
        for row in &self.buckets {
            let verdict = row.verdict.as_ref();
            let dash = || "-".to_owned();
            table.row([
                row.bucket.clone(),
                row.from.clone(),
                row.to.clone(),
                row.step.clone(),
                row.epoch.to_string(),
                row.pause_ms.map_or_else(dash, millis),
                verdict.map_or_else(dash, |it| it.shards.to_string()),
                verdict.map_or_else(dash, |it| count(it.keys)),
                verdict.map_or_else(dash, |it| loss_text(&it.lost, it.proven)),
                verdict.map_or_else(|| row.note(), VerdictView::note),
            ]);
        }
        let asked = if self.automatic == Some(true) { "found out" } else { "asked" };
        format!("{}{table}{}", self.heading(asked), self.next_step())
    }

    fn next_step(&self) -> String {
        if !self.buckets.iter().any(|row| row.verdict.is_some()) {
            return String::new();
        }
        format!(
            "\n\nwhen {} is back, it fences itself and follows as a replica; what it had acknowledged and nobody else received is written \
             down there before: `meridian salvage list`",
            self.from()
        )
    }

    fn heading(&self, asked: &str) -> String {
        let reason = if self.reason.is_empty() { String::new() } else { format!(": {}", self.reason) };
        let ended = self.ended_at_ms.map_or(String::new(), |at| {
            let took = at.saturating_sub(self.asked_at_ms);
            format!("\n ended   {}, after {}", moment(at), millis(took))
        });
        let bounds = self
            .bounds
            .as_ref()
            .map_or(String::new(), |it| format!("\n bounds  lag {} ms, pause {} ms", it.lag_ms_max, it.pause_ms_max));
        format!(
            "{}: {} to {}, {}\n {asked:<7} {} by {}{reason}{ended}{bounds}\n\n",
            self.operation,
            self.kind,
            self.to,
            self.outcome,
            moment(self.asked_at_ms),
            self.who,
        )
    }
}

impl Show for View {
    fn text(&self) -> String {
        if self.kind == "failover" {
            return self.failover_text();
        }
        let mut table =
            Table::new(&["bucket", "from", "to", "step", ">epoch", ">pause", ">shards equal", ">keys", "note"]);
        for row in &self.buckets {
            table.row([
                row.bucket.clone(),
                row.from.clone(),
                row.to.clone(),
                row.step.clone(),
                row.epoch.to_string(),
                row.pause_ms.map_or("-".to_owned(), millis),
                row.proof.as_ref().map_or("-".to_owned(), |proof| format!("{}/{}", proof.equal, proof.of)),
                row.proof.as_ref().map_or("-".to_owned(), |proof| count(proof.keys)),
                row.note(),
            ]);
        }
        let undo: Vec<String> = self.undo.iter().map(|command| format!("\nundo with: {command}")).collect();
        format!("{}{table}{}{}", self.heading("asked"), if undo.is_empty() { "" } else { "\n" }, undo.concat(),)
    }
}
