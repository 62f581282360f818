//! An operation with names instead of numbers, for people and for programs.

use std::collections::BTreeMap;

use meridian_types::{Goal, Move, Plan, PlanOutcome, Proof, Seal, ShardId, Step, Topology};
use serde::Serialize;

use crate::cli::moment::moment;
use crate::output::{Show, Table, count, millis};

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
    lag_ms_max: u64,
    pause_ms_max: u64,
    pub(super) buckets: Vec<Row>,
    /// The commands that move back what has moved.
    pub(super) undo: Vec<String>,
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
        let Goal::Switchover { to, lag_ms_max, pause_ms_max } = plan.goal;
        View {
            operation: plan.id.to_string(),
            kind: "switchover",
            outcome: plan.outcome(),
            to: topology.region_label(to),
            who: plan.who.clone(),
            reason: plan.reason.clone(),
            asked_at_ms: plan.created_ms,
            ended_at_ms: plan.ended_ms,
            lag_ms_max,
            pause_ms_max,
            buckets: plan.moves.iter().map(|it| Row::of(it, plan, topology)).collect(),
            undo: undo(plan, topology),
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
            Step::Unneeded | Step::CatchingUp { .. } => (it.epoch_before, None, None),
            Step::Draining { epoch, proof, .. } | Step::Promoted { epoch, proof, .. } => (*epoch, Some(proof), None),
            Step::Restored { epoch, why, .. } => (*epoch, None, Some(why.clone())),
        };
        Row {
            bucket: it.name.to_string(),
            from: topology.region_label(it.from),
            to: topology.region_label(plan.to()),
            step: it.step.to_string(),
            epoch: epoch.0,
            pause_ms: it.step.pause_ms(),
            why,
            proof: proof.map(|proof| ProofView::of(proof, plan.shards)),
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

impl ProofView {
    fn of(proof: &Proof, of: u16) -> ProofView {
        let seal = |seal: &Seal| SealView { lsn: seal.lsn.0, digest: seal.hash.to_string(), keys: seal.keys };
        let shard = |shard: ShardId| {
            let (sealed, ready) = (proof.sealed.get(&shard), proof.ready.get(&shard));
            let equal = sealed.is_some() && sealed == ready;
            (shard.0, ShardView { sealed: sealed.map(seal), ready: ready.map(seal), equal })
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

impl Show for View {
    fn text(&self) -> String {
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
        let reason = if self.reason.is_empty() { String::new() } else { format!(": {}", self.reason) };
        let ended = self.ended_at_ms.map_or(String::new(), |at| {
            let took = at.saturating_sub(self.asked_at_ms);
            format!("\n ended   {}, after {}", moment(at), millis(took))
        });
        let undo: Vec<String> = self.undo.iter().map(|command| format!("\nundo with: {command}")).collect();
        format!(
            "{}: {} to {}, {}\n asked   {} by {}{reason}{ended}\n bounds  lag {} ms, pause {} ms\n\n{table}{}{}",
            self.operation,
            self.kind,
            self.to,
            self.outcome,
            moment(self.asked_at_ms),
            self.who,
            self.lag_ms_max,
            self.pause_ms_max,
            if undo.is_empty() { "" } else { "\n" },
            undo.concat(),
        )
    }
}
