//! Watching an operation until it ends, and how it ended.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use meridian_client::Client;
use meridian_types::{BucketId, Change, ChangeOutcome, Operation, Plan, PlanId, PlanOutcome, Step, Topology};

use super::change;
use super::view::{View, mustered};
use crate::cli::exit::Failure;
use crate::cli::stop;
use crate::output::{Format, Live, millis, note, show};

/// How often there is a look.
const LOOK_EVERY: Duration = Duration::from_millis(150);

/// How often lag is asked for: of every region.
const LAG_EVERY: Duration = Duration::from_secs(1);

/// For how long nobody may answer: an election and then some.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// How long to wait, after the end, for what the old primary's shards still have to say. It has no part in the pause.
const PROOF_PATIENCE: Duration = Duration::from_secs(5);

/// The most buckets shown at a time.
const LINES_MAX: usize = 12;

/// Watches an operation to its end, then shows it.
///
/// # Errors
/// When it ended with old primaries restored, or with a difference; or nobody tells any more.
pub(in crate::cli) async fn follow(client: &Client, id: PlanId, format: Format) -> anyhow::Result<()> {
    let ended = watch(client, id).await?;
    show(format, &View::of(&ended, &client.known_topology()))?;
    judge(&ended)
}

/// Watches a change of a bucket to its end, then shows it.
///
/// # Errors
/// When it came to nothing; or nobody tells any more, or the operator stops watching.
pub(in crate::cli) async fn follow_change(client: &Client, id: PlanId, format: Format) -> anyhow::Result<()> {
    let ended = tokio::select! {
        ended = change_to_its_end(client, id) => ended?,
        signal = stop::signalled() => {
            signal?;
            return Err(left(id).into());
        }
    };
    show(format, &change::View::of(&ended, &client.known_topology()))?;
    match ended.end.as_ref().map(|end| &end.outcome) {
        Some(ChangeOutcome::Done) | None => Ok(()),
        Some(how @ (ChangeOutcome::Aborted { .. } | ChangeOutcome::GivenUp { .. })) => {
            Err(Failure::restored(format!("{id} was {how}: see above why; nothing is lost")).into())
        }
    }
}

async fn change_to_its_end(client: &Client, id: PlanId) -> anyhow::Result<Change> {
    let (mut heard, mut said) = (Instant::now(), String::new());
    loop {
        match client.admin().on_record(Some(id)).await {
            Ok(known) => {
                heard = Instant::now();
                let change = known.into_iter().find_map(|it| match it {
                    Operation::Change(change) => Some(change),
                    Operation::Moves(_) => None,
                });
                let change = change.ok_or_else(|| Failure::failed(format!("{id} changes no bucket")))?;
                let stage = change.stage().map_or_else(String::new, |it| format!("  {}: {it}", change.name));
                if !stage.is_empty() && stage != said {
                    note(&stage);
                    said = stage;
                }
                if change.end.is_some() {
                    return Ok(Change::clone(&change));
                }
            }
            Err(error) if heard.elapsed() > SILENCE_MAX => return Err(silent(id, &error.message).into()),
            Err(_) => {}
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn left(id: PlanId) -> Failure {
    Failure::failed(format!(
        "no longer watching; {id} goes on by itself: `meridian operation watch {id}` shows it, `meridian operation abort {id}` gives it up"
    ))
}

fn silent(id: PlanId, why: &str) -> Failure {
    Failure::failed(format!(
        "nobody tells of {id} any more ({why}); it goes on by itself: try `meridian operation watch {id}` again"
    ))
}

/// Watches an operation to its end.
///
/// # Errors
/// When nobody tells any more, or the operator stops watching.
pub(in crate::cli) async fn watch(client: &Client, id: PlanId) -> anyhow::Result<Plan> {
    Ok(tokio::select! {
        ended = to_its_end(client, id) => ended?,
        signal = stop::signalled() => {
            signal?;
            return Err(left(id).into());
        }
    })
}

/// How it ended, as the program ends.
fn judge(plan: &Plan) -> anyhow::Result<()> {
    let differing = plan.moves.iter().filter(|it| proof(&it.step).is_some_and(|it| it.differing().next().is_some()));
    let differing: Vec<_> = differing.map(|it| it.name.as_str()).collect();
    if !differing.is_empty() {
        return Err(Failure::failed(format!(
            "{} has ended, but the regions DIFFER at the seal of {}: stop writing to it, keep both regions' data directories, and report it",
            plan.id,
            differing.join(", ")
        ))
        .into());
    }
    match plan.outcome() {
        PlanOutcome::UnderWay | PlanOutcome::Done => {
            if !is_proven(plan) {
                note(&format!(
                    "not every shard of the old primary has spoken yet: see `meridian operation show {}`",
                    plan.id
                ));
            }
            Ok(())
        }
        PlanOutcome::PartlyRestored => Err(Failure::restored(format!(
            "{} moved some buckets; the others are where they were, nothing is lost",
            plan.id
        ))
        .into()),
        PlanOutcome::Restored => {
            Err(Failure::restored(format!("{} was given up: every bucket is where it was, nothing is lost", plan.id))
                .into())
        }
    }
}

fn proof(step: &Step) -> Option<&meridian_types::Proof> {
    match step {
        Step::Draining { proof, .. } | Step::Promoted { proof, .. } => Some(proof),
        Step::Unneeded
        | Step::CatchingUp { .. }
        | Step::Restored { .. }
        | Step::Fencing { .. }
        | Step::Pulling { .. }
        | Step::FailedOver { .. } => None,
    }
}

/// Whether every shard that has arrived is known to be equal.
fn is_proven(plan: &Plan) -> bool {
    plan.moves.iter().all(|it| proof(&it.step).is_none_or(|proof| proof.equal() == usize::from(plan.shards)))
}

async fn to_its_end(client: &Client, id: PlanId) -> anyhow::Result<Plan> {
    let live = Live::new();
    let mut progress = Progress::default();
    let mut heard = Instant::now();
    let mut ended: Option<Instant> = None;
    loop {
        match client.admin().operation(id).await {
            Ok(plan) => {
                heard = Instant::now();
                progress.see(&plan, &live);
                if plan.ended_ms.is_some() {
                    let since = *ended.get_or_insert(heard);
                    if is_proven(&plan) || since.elapsed() > PROOF_PATIENCE {
                        return Ok(plan);
                    }
                }
                progress.refresh_lag(client, &plan, &live).await;
                live.show(progress.lines(&plan, &client.known_topology()));
            }
            Err(error) if heard.elapsed() > SILENCE_MAX => return Err(silent(id, &error.message).into()),
            Err(_) => {}
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// What was seen so far.
#[derive(Default)]
struct Progress {
    /// By bucket: its step, and since when it has been seen there.
    steps: BTreeMap<BucketId, (String, Option<Instant>)>,
    lags: BTreeMap<BucketId, u64>,
    lag_asked: Option<Instant>,
}

impl Progress {
    fn see(&mut self, plan: &Plan, live: &Live) {
        for it in &plan.moves {
            let step = it.step.to_string();
            if self.steps.get(&it.bucket).is_some_and(|(known, _)| *known == step) {
                continue;
            }
            // On a terminal the lines say it, and the table in the end.
            if !live.is_seen() {
                let paused =
                    it.step.pause_ms().map_or(String::new(), |pause| format!(", writes paused {}", millis(pause)));
                note(&format!("  {}: {step}{paused}", it.name));
            }
            self.steps.insert(it.bucket, (step, Some(Instant::now())));
        }
    }

    async fn refresh_lag(&mut self, client: &Client, plan: &Plan, live: &Live) {
        let catching_up = plan.moves.iter().any(|it| matches!(it.step, Step::CatchingUp { .. }));
        if !live.is_seen() || !catching_up || self.lag_asked.is_some_and(|at| at.elapsed() < LAG_EVERY) {
            return;
        }
        self.lag_asked = Some(Instant::now());
        // A figure for the eye: without it the line is only shorter.
        let Ok(regions) = client.admin().lag(None).await else { return };
        let rows = regions.into_iter().filter_map(|region| region.answer.ok()).flat_map(|lag| lag.buckets);
        self.lags = rows.filter(|row| Some(row.target) == plan.to()).map(|row| (row.bucket, row.lag_ms)).collect();
    }

    fn lines(&self, plan: &Plan, topology: &Topology) -> String {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        plan.moves.iter().for_each(|it| *counts.entry(it.step.to_string()).or_default() += 1);
        let counts: Vec<String> = counts.iter().map(|(step, count)| format!("{count} {step}")).collect();
        let mut lines = vec![format!("{}: {}", plan.id, counts.join(", "))];
        let moving: Vec<_> = plan.moves.iter().filter(|it| !it.step.is_final()).collect();
        lines.extend(
            moving
                .iter()
                .take(LINES_MAX)
                .map(|it| format!("  {:<24} {}", it.name, self.line(it, plan.shards, topology))),
        );
        if let Some(more) = moving.len().checked_sub(LINES_MAX).filter(|more| *more > 0) {
            lines.push(format!("  and {more} more"));
        }
        lines.join("\n")
    }

    fn line(&self, it: &meridian_types::Move, shards: u16, topology: &Topology) -> String {
        let since = self.steps.get(&it.bucket).and_then(|(_, since)| *since).map(|since| since.elapsed());
        match &it.step {
            Step::CatchingUp { caught_up } => {
                let lag = self.lags.get(&it.bucket).map_or(String::new(), |lag| format!(", {} behind", millis(*lag)));
                format!("catching-up  {}/{shards} shards close{lag}", caught_up.len())
            }
            Step::Draining { proof, .. } => format!(
                "draining     sealed {}/{shards}, ready {}/{shards}, writes paused {:.1} s",
                proof.sealed.len(),
                proof.ready.len(),
                since.unwrap_or_default().as_secs_f64()
            ),
            Step::Fencing { muster, .. } => format!(
                "fencing      {}, {:.1} s",
                mustered(muster, shards, topology),
                since.unwrap_or_default().as_secs_f64()
            ),
            Step::Pulling { to, muster, .. } => format!(
                "pulling      {} fetches what it lacks; {}, {:.1} s",
                topology.region_label(*to),
                mustered(muster, shards, topology),
                since.unwrap_or_default().as_secs_f64()
            ),
            Step::Unneeded | Step::Promoted { .. } | Step::Restored { .. } | Step::FailedOver { .. } => {
                it.step.to_string()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{plan, promoted, restored};
    use super::*;
    use crate::cli::exit::{Code, code};

    #[test]
    fn the_exit_code_tells_how_it_ended() {
        assert!(judge(&plan(vec![promoted(16)])).is_ok());
        let given_up = judge(&plan(vec![restored("too long")])).unwrap_err();
        assert_eq!(code(&given_up), Code::AbortedAndRestored);
        let partly = judge(&plan(vec![promoted(16), restored("too long")])).unwrap_err();
        assert_eq!(code(&partly), Code::AbortedAndRestored);
        let mut differs = promoted(16);
        if let Step::Promoted { proof, .. } = &mut differs {
            proof.ready.values_mut().for_each(|seal| seal.keys += 1);
        }
        assert_eq!(code(&judge(&plan(vec![differs])).unwrap_err()), Code::Failed);
        assert!(is_proven(&plan(vec![promoted(16)])) && !is_proven(&plan(vec![promoted(3)])));
    }

    #[test]
    fn the_lines_tell_what_each_bucket_waits_for() {
        let caught_up = (0..11).map(meridian_types::ShardId).collect();
        let plan = plan(vec![Step::CatchingUp { caught_up }, promoted(16)]);
        let progress = Progress { lags: BTreeMap::from([(BucketId(1), 40)]), ..Progress::default() };
        let lines = progress.lines(&plan, &Topology::default());
        assert!(lines.starts_with("op-12: 1 catching-up, 1 promoted\n"), "{lines}");
        assert!(lines.contains("catching-up  11/16 shards close, 40.0 ms behind"), "{lines}");
    }
}
