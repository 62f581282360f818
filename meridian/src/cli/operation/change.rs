//! A change of a bucket with names instead of numbers, for people and for programs.

use meridian_types::{Change, ChangeGoal, ChangeOutcome, Policy, RegionId, Topology};
use serde::Serialize;

use crate::cli::bucket::way_back_of;
use crate::cli::moment::moment;
use crate::output::{Show, Table, millis};

/// An operation that changes what a bucket is.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct View {
    pub(super) operation: String,
    pub(super) kind: &'static str,
    pub(super) bucket: String,
    /// `under way`, `done`, `aborted`, `given up`.
    pub(super) outcome: String,
    /// Where it is, while it is under way.
    pub(super) stage: Option<String>,
    pub(super) from: String,
    pub(super) to: String,
    pub(super) who: String,
    pub(super) reason: String,
    pub(super) asked_at_ms: u64,
    pub(super) ended_at_ms: Option<u64>,
    /// For how long writes may be held at a time.
    pause_ms_max: Option<u64>,
    stages: Vec<StageView>,
    epoch_before: u64,
    epoch: Option<u64>,
    aborted_by: Option<String>,
    why: Option<String>,
    /// The command that makes the bucket what it was.
    undo: Option<String>,
}

#[derive(Debug, Serialize)]
struct StageView {
    stage: String,
    at_ms: u64,
    epoch: u64,
    took_ms: Option<u64>,
}

impl View {
    pub(in crate::cli) fn of(change: &Change, topology: &Topology) -> View {
        let (from, to) = ends(change, topology);
        let (aborted_by, why) = match change.end.as_ref().map(|end| &end.outcome) {
            Some(ChangeOutcome::Aborted { who, why }) => (Some(who.clone()), Some(why.clone())),
            Some(ChangeOutcome::GivenUp { why }) => (None, Some(why.clone())),
            Some(ChangeOutcome::Done) | None => (None, None),
        };
        let undone = aborted_by.is_some() || why.is_some();
        View {
            operation: change.id.to_string(),
            kind: change.goal.kind(),
            bucket: change.name.to_string(),
            outcome: change.end.as_ref().map_or_else(|| "under way".to_owned(), |end| end.outcome.to_string()),
            stage: change.stage().map(|stage| stage.to_string()),
            from,
            to,
            who: change.who.clone(),
            reason: change.reason.clone(),
            asked_at_ms: change.created_ms,
            ended_at_ms: change.end.as_ref().map(|end| end.at_ms),
            pause_ms_max: pause_ms_max(change.goal),
            stages: stages(change),
            epoch_before: change.before.epoch.0,
            epoch: change.end.as_ref().map(|end| end.epoch.0),
            aborted_by,
            why,
            undo: (!undone).then(|| way_back_of(change, topology)),
        }
    }

    /// The longest time that writes were held.
    pub(super) fn held_ms_max(&self) -> Option<u64> {
        let meeting = meridian_types::Stage::Meeting.to_string();
        self.stages.iter().filter(|it| it.stage == meeting).filter_map(|it| it.took_ms).max()
    }

    /// How it stands, in two words.
    pub(super) fn standing(&self) -> String {
        self.stage.as_ref().map_or_else(|| self.outcome.clone(), |stage| format!("{}: {stage}", self.outcome))
    }
}

fn stages(change: &Change) -> Vec<StageView> {
    let ends = change.stages.iter().skip(1).map(|it| Some(it.at_ms)).chain([change.end.as_ref().map(|it| it.at_ms)]);
    let view = |(it, until): (&meridian_types::Staged, Option<u64>)| StageView {
        stage: it.stage.to_string(),
        at_ms: it.at_ms,
        epoch: it.epoch.0,
        took_ms: until.map(|until| until.saturating_sub(it.at_ms)),
    };
    change.stages.iter().zip(ends).map(view).collect()
}

fn pause_ms_max(goal: ChangeGoal) -> Option<u64> {
    match goal {
        ChangeGoal::Policy { .. } | ChangeGoal::Acks { .. } => None,
        ChangeGoal::Add { pause_ms_max, .. } | ChangeGoal::Remove { pause_ms_max, .. } => pause_ms_max,
        ChangeGoal::Cross { pause_ms_max, .. } | ChangeGoal::Lose { pause_ms_max, .. } => Some(pause_ms_max),
    }
}

/// From what to what.
fn ends(change: &Change, topology: &Topology) -> (String, String) {
    let names = |regions: &[RegionId]| {
        regions.iter().map(|region| topology.region_label(*region)).collect::<Vec<_>>().join(", ")
    };
    let before = &change.before.regions;
    let without = |gone: RegionId| before.iter().copied().filter(|it| *it != gone).collect::<Vec<_>>();
    match change.goal {
        ChangeGoal::Policy { policy } => (change.before.policy.to_string(), policy.to_string()),
        ChangeGoal::Acks { acks } => {
            let to = match change.before.policy {
                Policy::Sync { on_partition, .. } => Policy::Sync { acks, on_partition },
                Policy::Async { .. } | Policy::ActiveActive => Policy::sync(acks),
            };
            (change.before.policy.to_string(), to.to_string())
        }
        ChangeGoal::Cross { policy, primary, .. } => {
            let with = primary.map_or_else(String::new, |it| format!(" in {}", topology.region_label(it)));
            let from =
                change.before.primary.map_or_else(String::new, |it| format!(" in {}", topology.region_label(it)));
            (format!("{}{from}", change.before.policy), format!("{policy}{with}"))
        }
        ChangeGoal::Add { region, .. } => {
            let more: Vec<_> = without(region).into_iter().chain([region]).collect();
            (names(before), names(&more))
        }
        ChangeGoal::Remove { region, .. } | ChangeGoal::Lose { region, .. } => (names(before), names(&without(region))),
    }
}

impl Show for View {
    fn text(&self) -> String {
        let reason = if self.reason.is_empty() { String::new() } else { format!(": {}", self.reason) };
        let ended = self.ended_at_ms.map_or(String::new(), |at| {
            format!("\n ended   {}, after {}", moment(at), millis(at.saturating_sub(self.asked_at_ms)))
        });
        let by = self.aborted_by.as_ref().map_or(String::new(), |by| format!("\n aborted by {by}"));
        let why = self.why.as_ref().map_or(String::new(), |why| format!("\n because {why}"));
        let bounds =
            self.pause_ms_max.map_or(String::new(), |it| format!("\n bounds  writes held at most {}", millis(it)));
        let mut table = Table::new(&["stage", "since", ">epoch", ">took"]);
        for it in &self.stages {
            let took = it.took_ms.map_or_else(|| "-".to_owned(), millis);
            table.row([it.stage.clone(), moment(it.at_ms), it.epoch.to_string(), took]);
        }
        let stages = if self.stages.is_empty() { String::new() } else { format!("\n\n{table}") };
        let undo = self.undo.as_ref().map_or(String::new(), |undo| format!("\n\nthe way back: {undo}"));
        format!(
            "{}: {} of {}, {}\n asked   {} by {}{reason}{ended}{by}{why}{bounds}\n from    {} (epoch {})\n to      {}{}{stages}{undo}",
            self.operation,
            self.kind,
            self.bucket,
            self.standing(),
            moment(self.asked_at_ms),
            self.who,
            self.from,
            self.epoch_before,
            self.to,
            self.epoch.map_or(String::new(), |epoch| format!(" (epoch {epoch})")),
        )
    }
}
