//! Leaders that die, one after another: of three nodes of the primary's region the one that leads most shards is killed under load, the
//! others elect, it starts again and leads again. How long callers waited, and that nothing is missing or counted twice (DUR-1, ONE-1, CON-1).

use std::io::Write;
use std::time::Duration;

use anyhow::{Context, ensure};
use meridian_client::NodeStatus;
use tokio::time::{Instant, sleep};

use super::figures::Durations;
use super::stage::Stage;
use super::switchovers::judge;
use crate::real::REGIONS;

/// Quiet before each: callers are back at their usual pace.
const QUIET: Duration = Duration::from_secs(1);

/// How long after the kill nobody starts the node: longer than an election takes, so that it is seen whole.
const DEAD: Duration = Duration::from_secs(4);

/// How long the node may take to lead again before the run breaks down.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long callers may wait for the next acknowledgement.
const TARGET: Duration = Duration::from_millis(1_500);

/// Nodes of the region whose leaders are killed, and of the others.
pub(super) const NODES: [usize; REGIONS.len()] = [3, 1, 1];

/// Kills so often; whether every promise was kept.
pub(super) async fn play(stage: &mut Stage, rounds: usize, out: &mut impl Write) -> anyhow::Result<bool> {
    let (mut waits, mut led, mut within) = (Durations::default(), 0, 0);
    for round in 1..=rounds {
        let shards = lead_evenly(stage).await.with_context(|| format!("round {round}"))?;
        sleep(QUIET).await;
        let killed = Instant::now();
        let victim = (0..shards.len()).max_by_key(|node| shards[*node]).context("the region has no nodes")?;
        stage.planet.kill(victim)?;
        sleep(DEAD).await;
        let wait = stage.callers.pauses(killed, killed + DEAD).into_iter().max().unwrap_or_default();
        stage.start(victim)?;
        stage.planet.ready(PATIENCE).await?;
        waits.add(wait);
        led += shards[victim];
        within += usize::from(wait <= TARGET);
        if round % 10 == 0 || round == rounds {
            let failed = stage.callers.failed().len();
            writeln!(out, "{round:4} leaders killed; longest wait of a caller {waits}; {failed} requests failed")?;
            out.flush()?;
        }
    }
    writeln!(out, "shards led by those who were killed: {led}")?;
    writeln!(out, "longest wait of a caller: {waits}; {within} of {rounds} within {} ms", TARGET.as_millis())?;
    let wrong = judge(stage, out).await?;
    for sentence in &wrong {
        writeln!(out, "WRONG: {sentence}")?;
    }
    Ok(wrong.is_empty())
}

/// Waits until every node of the region leads as many shards as the others, but for one; how many each leads.
async fn lead_evenly(stage: &Stage) -> anyhow::Result<Vec<u32>> {
    let until = Instant::now() + PATIENCE;
    loop {
        let led = led(stage).await;
        let (least, most) = (led.iter().min().copied().unwrap_or_default(), led.iter().max().copied());
        if led.len() == NODES[0] && most.is_some_and(|most| least > 0 && most - least <= 1) {
            return Ok(led);
        }
        ensure!(Instant::now() < until, "the nodes of {} lead {led:?} shards", REGIONS[0]);
        sleep(Duration::from_millis(100)).await;
    }
}

/// How many shards each node of the region leads, by number; nothing while one does not answer.
async fn led(stage: &Stage) -> Vec<u32> {
    let Ok(statuses) = stage.admin().node_statuses().await else { return Vec::new() };
    let of = |name: &str| {
        let status = statuses.iter().find(|(node, _)| node.name.as_str() == name);
        status.and_then(|(_, answer)| answer.as_ref().ok()).map(|it: &NodeStatus| it.shards_led)
    };
    let nodes = stage.planet.nodes_of(REGIONS[0]);
    nodes.into_iter().map(|node| of(stage.planet.name(node))).collect::<Option<_>>().unwrap_or_default()
}
