//! A failover is rehearsed by the command line against real processes, on a copy that is gone afterwards: when it is over,
//! when the operator gives it up, and when the node is killed in the middle of it (SIGKILL) and starts again.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::Context;
use chaos::real::{Planet, REGIONS};
use futures::future::join_all;
use meridian_client::Client;
use meridian_types::{BucketName, DRILL_SAMPLE_MAX, DrillProgress, DrillReport, DrillStep, Node, RefusalKind};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

const PATIENCE: Duration = Duration::from_secs(60);

/// The region that rehearses: eu-west.
const TARGET: usize = 1;

const LINE: &str = "drill failover --to eu-west --all-from us-east --sample 50";

type Drill = JoinHandle<anyhow::Result<DrillReport>>;

/// Three regions, two buckets whose primary is in the first, and who rehearses.
struct Rig {
    dir: tempfile::TempDir,
    planet: Planet,
    client: Client,
    nodes: Vec<Node>,
}

impl Rig {
    async fn start() -> anyhow::Result<Rig> {
        let dir = tempfile::Builder::new().prefix("meridian-drill").tempdir()?;
        let mut planet = Planet::create(Path::new(env!("CARGO_BIN_EXE_meridian")), dir.path())?;
        for node in 0..REGIONS.len() {
            planet.start(node)?;
        }
        planet.ready(PATIENCE).await?;
        planet.create_buckets().await?;
        let client = planet.client(TARGET).await?;
        for name in ["async", "sync"] {
            let bucket = client.bucket(name)?;
            let names: Vec<String> = (0..200).map(|nth| format!("key-{nth}")).collect();
            let puts = names.iter().map(|name| bucket.put(name.as_str(), "value").deadline(PATIENCE).into_future());
            join_all(puts).await.into_iter().collect::<Result<Vec<_>, _>>()?;
        }
        let topology = client.admin().topology().await?;
        let of = |name: &&str| {
            let region = topology.region_named(name)?.id;
            topology.nodes.values().find(|node| node.region == region).cloned()
        };
        let nodes = REGIONS.iter().map(|name| of(name).context("every region has a node"));
        let nodes = nodes.collect::<anyhow::Result<_>>()?;
        Ok(Rig { dir, planet, client, nodes })
    }

    fn target(&self) -> &Node {
        &self.nodes[TARGET]
    }

    /// Where drills are while they last.
    fn copy(&self) -> PathBuf {
        self.dir.path().join(self.target().name.as_str()).join("drills")
    }

    fn is_under_way(&self) -> bool {
        std::fs::read_dir(self.copy()).is_ok_and(|mut drills| drills.next().is_some())
    }

    /// The command line, asking a node.
    fn cli(&self, node: usize, line: &str) -> Command {
        let pki = self.dir.path().join("pki");
        let mut command = Command::new(env!("CARGO_BIN_EXE_meridian"));
        command
            .args(line.split_whitespace())
            .args(["--endpoint", &format!("https://{}", self.nodes[node].rpc_address)])
            .arg("--ca")
            .arg(pki.join("ca.pem"))
            .arg("--cert")
            .arg(pki.join("chaos.pem"))
            .arg("--key")
            .arg(pki.join("chaos-key.pem"))
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Runs a line to its end: its exit code, and what it said.
    async fn run(&self, node: usize, line: &str) -> anyhow::Result<(Option<i32>, String, String)> {
        let output = self.cli(node, line).output().await?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok((output.status.code(), text(&output.stdout), text(&output.stderr)))
    }

    /// A long drill that has come to writing. Whoever comes right after another one waits: that is over once its copy is gone, not before.
    async fn under_way(&self) -> anyhow::Result<Drill> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (tell, mut told) = mpsc::channel(64);
            let drill = self.rehearse(tell);
            while let Some(step) = told.recv().await {
                if step >= DrillStep::Write {
                    return Ok(drill);
                }
            }
            let why = drill.await?.err().context("it tells how far it is")?;
            let refused = why.downcast_ref::<meridian_client::Error>();
            let is_early = refused.is_some_and(|refused| refused.kind == RefusalKind::Retry);
            anyhow::ensure!(is_early && Instant::now() < deadline, "{why:#}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A drill that tells of its steps.
    fn rehearse(&self, tell: mpsc::Sender<DrillStep>) -> Drill {
        let (client, node) = (self.client.clone(), self.target().clone());
        tokio::spawn(async move {
            let progress = |it: DrillProgress| {
                // What is too much is missed.
                let _ = tell.try_send(it.step);
            };
            Ok(client.admin().drill_failover(&node, &[BucketName::new("sync")?], DRILL_SAMPLE_MAX, progress).await?)
        })
    }

    async fn come_back(&mut self) -> anyhow::Result<()> {
        self.planet.start(TARGET)?;
        self.planet.ready(PATIENCE).await?;
        assert!(!self.copy().exists(), "the start removes what was left");
        Ok(())
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !holds()? {
        anyhow::ensure!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_is_rehearsed_and_nothing_is_left_of_it_however_it_ends() -> anyhow::Result<()> {
    let mut rig = Rig::start().await?;
    is_good(&rig).await?;
    is_refused(&rig).await?;
    is_given_up(&rig).await?;
    its_node_stops(&mut rig).await?;
    its_node_is_killed(&mut rig).await?;
    let (code, told, why) = rig.run(TARGET, LINE).await?;
    eprintln!("{told}");
    assert_eq!(code, Some(0), "{told}{why}");
    assert!(told.contains("GOOD: eu-west can take over"), "{told}");
    Ok(())
}

async fn is_good(rig: &Rig) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let (code, told, view) = loop {
        let (code, told, why) = rig.run(TARGET, &format!("{LINE} -o json")).await?;
        let view: serde_json::Value = serde_json::from_str(&told)
            .with_context(|| format!("{code:?}: {told}{why}{}", rig.planet.log_tail(TARGET)))?;
        // The buckets are new: another region may have heard of them a moment before this one.
        if !told.contains("it would first have to fetch") || Instant::now() > deadline {
            break (code, told, view);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_eq!((code, &view["verdict"]), (Some(0), &serde_json::json!("good")), "{told}");
    assert_eq!(view["buckets"].as_array().map(Vec::len), Some(2), "{told}");
    assert!(view["real"]["first_write_ms"].as_u64().is_some_and(|ms| ms >= 5000), "{told}");
    assert!(!rig.copy().exists(), "the copy is removed");
    Ok(())
}

/// What makes no sense: the primary's own region, and a region that there is not.
async fn is_refused(rig: &Rig) -> anyhow::Result<()> {
    for line in ["drill failover --to us-east --bucket sync", "drill failover --to nowhere --bucket sync"] {
        assert_eq!(rig.run(TARGET, line).await?.0, Some(5), "{line}");
    }
    Ok(())
}

/// The operator has enough of it.
async fn is_given_up(rig: &Rig) -> anyhow::Result<()> {
    let long = "drill failover --to eu-west --bucket sync --sample 10000";
    let mut drill = rig.cli(TARGET, long).stderr(Stdio::null()).stdout(Stdio::null()).spawn()?;
    until("it has begun", || Ok(rig.is_under_way())).await?;
    assert_eq!(rig.run(TARGET, LINE).await?.0, Some(2), "one at a time");
    let process = drill.id().and_then(|id| Pid::from_raw(id.cast_signed())).context("it runs")?;
    kill_process(process, Signal::INT)?;
    assert_eq!(drill.wait().await?.code(), Some(7));
    until("the copy is removed", || Ok(!rig.copy().exists())).await
}

/// The node does not wait for the drill.
async fn its_node_stops(rig: &mut Rig) -> anyhow::Result<()> {
    let cut_off = rig.under_way().await?;
    rig.planet.signal(TARGET, Signal::TERM)?;
    assert!(cut_off.await?.is_err());
    let mut status = None;
    until("it stops", || {
        status = rig.planet.ended(TARGET)?;
        Ok(status.is_some())
    })
    .await?;
    assert!(status.is_some_and(|status| status.success()), "{status:?}; {}", rig.planet.log_tail(TARGET));
    rig.come_back().await
}

async fn its_node_is_killed(rig: &mut Rig) -> anyhow::Result<()> {
    let cut_off = rig.under_way().await?;
    rig.planet.kill(TARGET)?;
    assert!(cut_off.await?.is_err());
    assert!(rig.is_under_way(), "what was cut off is left");
    let (code, _, why) = rig.run(0, LINE).await?;
    assert_eq!(code, Some(2), "a region that does not answer rehearses nothing: {why}");
    rig.come_back().await
}
