//! An estimate with names instead of numbers, for people and for programs.

use std::collections::BTreeSet;

use meridian_types::{BucketEstimate, Estimate, RegionId, Topology};
use serde::Serialize;

use crate::cli::operation::{LossView, loss_text};
use crate::cli::words::key_start;
use crate::output::{Show, Table, millis};

/// What replacing primaries would cost.
#[derive(Debug, Serialize)]
pub(super) struct View {
    answered_by: String,
    heard: Vec<String>,
    /// Regions that hold one of the buckets, and did not answer.
    silent: Vec<String>,
    took_ms: u64,
    buckets: Vec<Row>,
    /// The text to agree with.
    consent: Option<String>,
    /// The command that does it.
    run: Option<String>,
}

#[derive(Debug, Serialize)]
struct Row {
    bucket: String,
    from: String,
    primary_answers: bool,
    to: Option<String>,
    epoch: u64,
    /// Whether the next primary has to fetch from other regions what it lacks.
    pulls: bool,
    proven: bool,
    needed: Option<usize>,
    heard: Vec<String>,
    /// The most that would be lost: what is agreed to.
    lost: LossView,
    /// What of that is known to be lost.
    known: LossView,
    /// The policy that bounds what can't be known; null where nothing does, or nothing can be lost beyond what is known.
    bounded_by: Option<String>,
    oldest_ms: u64,
    /// Of the oldest write that is known to be lost; null where that is not known.
    oldest_key: Option<String>,
    said_ms: Option<u64>,
    obstacle: String,
    /// Whether it is active-active, and goes on without a region: `to` is the one that has most of that, and all that are left go on.
    lost_region: bool,
}

impl View {
    /// `words` is how the buckets were selected.
    pub(super) fn of(estimate: &Estimate, topology: &Topology, words: &str) -> View {
        let consent = estimate.consent.as_ref().map(ToString::to_string);
        let possible = estimate.buckets.iter().any(|it| it.to.is_some());
        let agreed = consent.as_ref().map_or(String::new(), |text| format!(" --accept-loss '{text}'"));
        View {
            answered_by: topology.region_label(estimate.region),
            heard: estimate.heard.iter().map(|region| topology.region_label(*region)).collect(),
            silent: silent(estimate, topology).into_iter().map(|region| topology.region_label(region)).collect(),
            took_ms: estimate.took_ms,
            buckets: estimate.buckets.iter().map(|it| Row::of(it, topology)).collect(),
            run: possible.then(|| format!("meridian failover run {words}{agreed}")),
            consent,
        }
    }
}

fn silent(estimate: &Estimate, topology: &Topology) -> BTreeSet<RegionId> {
    let holds = |it: &BucketEstimate| topology.buckets.get(&it.bucket).map(|bucket| bucket.regions.clone());
    let mut silent = BTreeSet::new();
    for it in &estimate.buckets {
        silent.extend(holds(it).into_iter().flatten().filter(|region| *region != it.from));
        silent.extend((!it.primary_answers).then_some(it.from));
    }
    silent.retain(|region| !estimate.heard.contains(region));
    silent
}

impl Row {
    fn of(it: &BucketEstimate, topology: &Topology) -> Row {
        let label = |region: RegionId| topology.region_label(region);
        let (lost, known) = (LossView::of(it.lost), LossView::of(it.known));
        let bucket = topology.buckets.get(&it.bucket);
        let is_bound = it.to.is_some() && !it.proven && !it.lost.unbounded && lost.exceeds(&known);
        Row {
            bucket: it.name.to_string(),
            from: label(it.from),
            primary_answers: it.primary_answers,
            to: it.to.map(label),
            epoch: it.epoch.0,
            pulls: it.pulls,
            proven: it.proven,
            needed: it.needed,
            heard: it.heard.iter().map(|region| label(*region)).collect(),
            bounded_by: bucket.filter(|_| is_bound).map(|bucket| bucket.policy.to_string()),
            lost,
            known,
            oldest_ms: it.oldest_ms,
            oldest_key: it.oldest_key.as_ref().map(key_start),
            said_ms: it.said_ms,
            obstacle: it.obstacle.clone(),
            lost_region: bucket.is_some_and(|bucket| bucket.primary.is_none()),
        }
    }

    /// The bound on what can't be known.
    fn unknown(&self) -> String {
        match (&self.to, self.proven, self.lost.is_unbounded()) {
            (None, ..) => "-".to_owned(),
            (Some(_), true, _) => "nothing".to_owned(),
            (Some(_), false, true) => "no bound".to_owned(),
            (Some(_), false, false) if self.lost.exceeds(&self.known) => {
                format!("{} in all", loss_text(&self.lost, false))
            }
            (Some(_), false, false) => "nothing more".to_owned(),
        }
    }

    fn note(&self) -> String {
        if self.to.is_none() {
            return self.obstacle.clone();
        }
        let heard = self.heard.join(", ");
        let mut notes = Vec::new();
        if self.primary_answers {
            let without_loss =
                if self.lost_region { "meridian bucket set --remove-region" } else { "meridian switchover" };
            notes.push(format!("{} ANSWERS: use `{without_loss}`", self.from));
        }
        match (self.proven, self.needed) {
            (true, _) => notes.push(format!("proven by {heard}")),
            (false, Some(needed)) => notes.push(format!("proof takes {needed} regions, heard {heard}")),
            (false, None) => notes.push("writes are acknowledged before another region has them".to_owned()),
        }
        notes.extend(
            self.bounded_by.as_ref().map(|policy| format!("it accepts no more than that beyond the others: {policy}")),
        );
        if self.pulls {
            let who = if self.lost_region { "the others fetch" } else { "fetches" };
            notes.push(format!("{who} from another region first"));
        }
        notes.join("; ")
    }
}

impl Show for View {
    fn text(&self) -> String {
        let columns = [
            "bucket",
            "from",
            "to",
            ">epoch",
            "known to be lost",
            ">oldest",
            "oldest key",
            ">as of",
            "beyond that",
            "note",
        ];
        let mut table = Table::new(&columns);
        for row in &self.buckets {
            let is_known = row.to.is_some() && !row.proven && row.known.is_some();
            let known = match row.to {
                None => "-".to_owned(),
                Some(_) if row.proven => "nothing".to_owned(),
                Some(_) => loss_text(&row.known, true),
            };
            table.row([
                row.bucket.clone(),
                row.from.clone(),
                row.to.clone().unwrap_or_else(|| "-".to_owned()),
                row.epoch.to_string(),
                known,
                if is_known { millis(row.oldest_ms) } else { "-".to_owned() },
                row.oldest_key.clone().filter(|_| is_known).unwrap_or_else(|| "-".to_owned()),
                row.said_ms.map_or("never".to_owned(), |ms| format!("{} ago", millis(ms))),
                row.unknown(),
                row.note(),
            ]);
        }
        let heard = self.heard.join(", ");
        let silent =
            if self.silent.is_empty() { String::new() } else { format!("; silent: {}", self.silent.join(", ")) };
        let agree = self.consent.as_ref().map_or("", |_| {
            "\n\n`known to be lost` is what the lost primary had said is missing; `beyond that` is what it may have acknowledged afterwards. One agrees to both."
        });
        let run = self.run.as_ref().map_or(String::new(), |run| format!("\n\nto do it: {run}"));
        format!(
            "answered by {} in {}; heard: {heard}{silent}\n\n{table}{agree}{run}",
            self.answered_by,
            millis(self.took_ms)
        )
    }
}
