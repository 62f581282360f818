//! A failover is rehearsed by the command line against real processes, on a copy that is gone afterwards: when it is over,
//! when the operator gives it up, and when the node is killed in the middle of it (SIGKILL) and starts again.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use chaos::real::{Planet, REGIONS};
use futures::future::join_all;
use meridian_client::Client;
use meridian_types::{BucketName, DRILL_SAMPLE_MAX, DrillProgress, DrillReport, DrillStep, Node};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

const PATIENCE: Duration = Duration::from_secs(60);

/// The region that rehearses, and how its commands name it.
const TARGET: usize = 1;

fn cli(dir: &Path, node: &Node, line: &str) -> Command {
    let pki = dir.join("pki");
    let mut command = Command::new(env!("CARGO_BIN_EXE_meridian"));
    command
        .args(line.split_whitespace())
        .args(["--endpoint", &format!("https://{}", node.rpc_address)])
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

async fn run(dir: &Path, node: &Node, line: &str) -> anyhow::Result<(Option<i32>, Output)> {
    let output = cli(dir, node, line).output().await?;
    Ok((output.status.code(), output))
}

async fn until(what: &str, holds: impl AsyncFn() -> bool) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        anyhow::ensure!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

async fn node(client: &Client) -> anyhow::Result<Node> {
    let topology = client.admin().topology().await?;
    let region = topology.region_named(REGIONS[TARGET]).context("the region is known")?.id;
    topology.nodes.values().find(|node| node.region == region).cloned().context("it has a node")
}

/// A long drill that has come to writing.
async fn under_way(client: &Client, node: &Node) -> anyhow::Result<JoinHandle<anyhow::Result<DrillReport>>> {
    let (tell, mut told) = mpsc::channel(64);
    let (client, node) = (client.clone(), node.clone());
    let drill = tokio::spawn(async move {
        let progress = |it: DrillProgress| {
            // What is too much is missed.
            let _ = tell.try_send(it.step);
        };
        Ok(client.admin().drill_failover(&node, &[BucketName::new("sync")?], DRILL_SAMPLE_MAX, progress).await?)
    });
    while told.recv().await.context("it tells how far it is")? < DrillStep::Write {}
    Ok(drill)
}

fn is_under_way(copy: &Path) -> bool {
    std::fs::read_dir(copy).is_ok_and(|mut drills| drills.next().is_some())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_is_rehearsed_and_nothing_is_left_of_it_however_it_ends() -> anyhow::Result<()> {
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
    let target = node(&client).await?;
    let copy: PathBuf = dir.path().join(target.name.as_str()).join("drills");

    let line = format!("drill failover --to {} --all-from {} --sample 50", REGIONS[TARGET], REGIONS[0]);
    let (code, output) = run(dir.path(), &target, &format!("{line} -o json")).await?;
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let view: serde_json::Value = serde_json::from_str(&told).with_context(|| {
        format!("{code:?}: {told}{}{}", String::from_utf8_lossy(&output.stderr), planet.log_tail(TARGET))
    })?;
    assert_eq!((code, &view["verdict"]), (Some(0), &serde_json::json!("good")), "{told}");
    assert_eq!(view["buckets"].as_array().map(Vec::len), Some(2), "{told}");
    assert!(view["real"]["first_write_ms"].as_u64().is_some_and(|ms| ms >= 5000), "{told}");
    assert!(!copy.exists(), "the copy is removed");

    // What makes no sense is refused: the primary's own region, and a region that there is not.
    let own = format!("drill failover --to {} --bucket sync", REGIONS[0]);
    assert_eq!(run(dir.path(), &target, &own).await?.0, Some(5));
    assert_eq!(run(dir.path(), &target, "drill failover --to nowhere --bucket sync").await?.0, Some(5));

    // The operator gives it up.
    let long = format!("drill failover --to {} --bucket sync --sample 10000", REGIONS[TARGET]);
    let mut given_up = cli(dir.path(), &target, &long).stderr(Stdio::null()).stdout(Stdio::null()).spawn()?;
    until("it has begun", async || is_under_way(&copy)).await?;
    let (busy, _) = run(dir.path(), &target, &line).await?;
    assert_eq!(busy, Some(2), "one at a time");
    let process = given_up.id().and_then(|id| Pid::from_raw(id.cast_signed())).context("it runs")?;
    kill_process(process, Signal::INT)?;
    assert_eq!(given_up.wait().await?.code(), Some(7));
    until("the copy is removed", async || !copy.exists()).await?;

    // The node is told to stop in the middle of it: it does not wait for the drill.
    let cut_off = under_way(&client, &target).await?;
    planet.signal(TARGET, Signal::TERM)?;
    assert!(cut_off.await?.is_err());
    let deadline = Instant::now() + PATIENCE;
    let ended = loop {
        if let Some(status) = planet.ended(TARGET)? {
            break status;
        }
        anyhow::ensure!(Instant::now() < deadline, "it does not stop; {}", planet.log_tail(TARGET));
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(ended.success(), "{ended}; {}", planet.log_tail(TARGET));
    planet.start(TARGET)?;
    planet.ready(PATIENCE).await?;
    assert!(!copy.exists(), "the start removes what was left");

    // The node is killed in the middle of it.
    let cut_off = under_way(&client, &target).await?;
    planet.kill(TARGET)?;
    assert!(cut_off.await?.is_err());
    assert!(is_under_way(&copy), "what was cut off is left");
    planet.start(TARGET)?;
    planet.ready(PATIENCE).await?;
    assert!(!copy.exists(), "the start removes it");
    let (code, output) = run(dir.path(), &target, &line).await?;
    let told = String::from_utf8_lossy(&output.stdout);
    eprintln!("{told}");
    assert_eq!(code, Some(0), "{told}{}", String::from_utf8_lossy(&output.stderr));
    assert!(told.contains(&format!("GOOD: {} can take over", REGIONS[TARGET])), "{told}");
    Ok(())
}
