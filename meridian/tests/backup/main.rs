//! Buckets are backed up by the command line while they are written to, against real processes: what was acknowledged before is
//! in it, nothing that was never written is, and restored into new buckets it is the same. What was cut short by SIGKILL is no
//! backup, or goes on; one flipped byte is found (docs/adr/2026-11-28-backups.md).

mod chain;
mod moments;
mod s3;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use chaos::real::{Launch, Planet, REGIONS};
use futures::future::try_join_all;
use meridian_client::{Client, ReadLevel};
use serde_json::Value;
use tokio::process::Command;
use tokio::sync::{Mutex, MutexGuard};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(60);
const WRITERS: usize = 4;
/// Keys that each writer writes again and again.
const KEYS: u64 = 40;
/// Keys that stay as they are.
const STILL: usize = 200;
/// A key that is there when it is backed up, and is not when that is restored.
const ENDS_AFTER: Duration = Duration::from_secs(30);
/// Of a bucket that takes a while: so many keys of so many bytes.
const LARGE: (usize, usize) = (48, 256 << 10);
/// How often a command is killed until that is before its end.
const TRIES: usize = 5;

/// What was written so far, per key: the last number that was acknowledged, and the last that was sent.
#[derive(Clone, Default)]
struct Written(Arc<std::sync::Mutex<BTreeMap<String, (u64, u64)>>>);

impl Written {
    fn now(&self) -> BTreeMap<String, (u64, u64)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn change(&self, key: &str, change: impl FnOnce(&mut (u64, u64))) {
        change(self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(key.to_owned()).or_default());
    }
}

/// Writes rising numbers to keys of its own until it is told to stop.
async fn write(client: Client, writer: usize, written: Written, stop: CancellationToken) -> anyhow::Result<()> {
    let bucket = client.bucket("sync")?;
    for number in 1.. {
        if stop.is_cancelled() {
            break;
        }
        let key = format!("moving-{writer}-{}", number % KEYS);
        written.change(&key, |it| it.1 = number);
        bucket.put(key.as_str(), number.to_string()).deadline(PATIENCE).await?;
        written.change(&key, |it| it.0 = number);
    }
    Ok(())
}

/// Three processes under load are enough for a small machine: one planet at a time.
static ALONE: Mutex<()> = Mutex::const_new(());

struct Rig {
    dir: tempfile::TempDir,
    planet: Planet,
    client: Client,
    endpoint: String,
    // Behind those who are alone.
    _alone: MutexGuard<'static, ()>,
}

impl Rig {
    async fn start() -> anyhow::Result<Rig> {
        Rig::start_with(&Launch::default()).await
    }

    async fn start_with(launch: &Launch) -> anyhow::Result<Rig> {
        let alone = ALONE.lock().await;
        let dir = tempfile::Builder::new().prefix("meridian-backup").tempdir()?;
        let mut planet = Planet::create(Path::new(env!("CARGO_BIN_EXE_meridian")), dir.path())?;
        for node in 0..REGIONS.len() {
            planet.start_with(node, launch)?;
        }
        planet.ready(PATIENCE).await?;
        planet.create_buckets().await?;
        let client = planet.client(0).await?;
        let topology = client.admin().topology().await?;
        let address = topology.nodes.values().next().map(|node| node.rpc_address.clone());
        let endpoint = format!("https://{}", address.context("there are nodes")?);
        Ok(Rig { dir, planet, client, endpoint, _alone: alone })
    }

    fn place(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn cli(&self, line: &str) -> Command {
        let pki = self.dir.path().join("pki");
        let mut command = Command::new(env!("CARGO_BIN_EXE_meridian"));
        command
            .args(line.split_whitespace())
            .args(["--endpoint", &self.endpoint])
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

    /// Runs a line that must end with this code; what it said.
    async fn run(&self, code: i32, line: &str) -> anyhow::Result<String> {
        let output = self.cli(line).output().await?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (told, why) = (text(&output.stdout), text(&output.stderr));
        ensure!(output.status.code() == Some(code), "{line}: {:?}, not {code}\n{told}{why}", output.status.code());
        Ok(told + &why)
    }

    async fn json(&self, line: &str) -> anyhow::Result<Value> {
        let output = self.cli(&format!("{line} -o json")).output().await?;
        serde_json::from_slice(&output.stdout).with_context(|| format!("{line}: {output:?}"))
    }

    async fn contents(&self, bucket: &str) -> anyhow::Result<BTreeMap<String, String>> {
        let (mut all, mut scan) = (BTreeMap::new(), self.client.bucket(bucket)?.scan(""));
        while let Some(page) = scan.next_page().await? {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            all.extend(page.items.into_iter().map(|item| (text(&item.key), text(&item.found.value))));
        }
        Ok(all)
    }
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await? {
        ensure!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_is_taken_under_load_and_comes_back_as_it_was() -> anyhow::Result<()> {
    let rig = Rig::start().await?;
    let place = rig.place("backups").display().to_string();
    let counted = fill(&rig).await?;
    let [before, after] = back_up_under_load(&rig, &place).await?;
    rig.run(0, &format!("backup verify --from {place}")).await?;
    let [sync, everywhere] = ids(&rig, &place).await?;

    rig.run(5, &format!("backup restore --from {place} --to-bucket again --create")).await?;
    rig.run(0, &format!("backup restore --from {place} --id {sync} --to-bucket again --create --dry-run")).await?;
    ensure!(rig.client.admin().topology().await?.bucket_named("again").is_none(), "a dry run creates nothing");
    what_is_cut_short_is_none_or_goes_on(&rig).await?;
    until("its time has come", async || Ok(rig.client.bucket("sync")?.get("ends").await?.into_value().is_none()))
        .await?;
    let told = rig.run(0, &format!("backup restore --from {place} --id {sync} --to-bucket again --create")).await?;
    ensure!(told.contains("1 had expired"), "{told}");
    compare(rig.contents("again").await?, &before, &after)?;
    let restored = rig.client.admin().topology().await?;
    let restored = restored.bucket_named("again").context("it was created")?;
    ensure!(restored.labels.is_empty() && restored.policy.has_primary(), "as the other, and done: {restored:?}");

    rig.run(5, &format!("backup restore --from {place} --id {sync} --to-bucket again")).await?;
    rig.run(0, &format!("backup restore --from {place} --id {sync} --to-bucket again --overwrite")).await?;
    rig.run(0, &format!("backup restore --from {place} --id {everywhere} --to-bucket counted --create")).await?;
    let counters = rig.client.bucket("counted")?.reading(ReadLevel::Eventual);
    for (key, value) in counted {
        let found = counters.get(key).await?.into_value();
        ensure!(found.as_deref() == Some(value.as_bytes()), "{key}: {found:?}, not {value}");
    }
    counters.increment("visits", 1).await?;
    rig.run(5, &format!("backup restore --from {place} --id {everywhere} --to-bucket counted --overwrite")).await?;

    a_flipped_byte_is_found(&rig, &place, &sync).await?;
    an_object_store_is_a_place_as_well(&rig).await
}

/// What stays as it is, what is gone before the backup, and what will be gone when it is restored; counters of two regions.
async fn fill(rig: &Rig) -> anyhow::Result<[(&'static str, &'static str); 3]> {
    let bucket = rig.client.bucket("sync")?;
    let names: Vec<String> = (0..STILL).map(|nth| format!("still-{nth}")).collect();
    try_join_all(names.iter().map(|name| bucket.put(name.as_str(), "7").deadline(PATIENCE).into_future())).await?;
    bucket.put("deleted", "7").deadline(PATIENCE).await?;
    bucket.delete("deleted").deadline(PATIENCE).await?;
    bucket.put("ends-later", "7").ttl(Duration::from_secs(3600)).deadline(PATIENCE).await?;

    let everywhere = rig.client.bucket("active-active")?.reading(ReadLevel::Eventual);
    everywhere.increment("visits", 5).deadline(PATIENCE).await?;
    everywhere.increment("nothing", 3).deadline(PATIENCE).await?;
    everywhere.increment("nothing", -3).deadline(PATIENCE).await?;
    everywhere.put("name", "value").deadline(PATIENCE).await?;
    let elsewhere = rig.planet.client(1).await?;
    elsewhere.bucket("active-active")?.increment("visits", -2).deadline(PATIENCE).await?;
    until("the count of the other region has arrived", async || {
        Ok(everywhere.get("visits").await?.into_value().as_deref() == Some(b"3"))
    })
    .await?;
    Ok([("visits", "3"), ("nothing", "0"), ("name", "value")])
}

/// What was acknowledged before it was begun, and sent before it was over.
async fn back_up_under_load(rig: &Rig, place: &str) -> anyhow::Result<[BTreeMap<String, u64>; 2]> {
    let (written, stop) = (Written::default(), CancellationToken::new());
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| tokio::spawn(write(rig.client.clone(), writer, written.clone(), stop.clone())))
        .collect();
    let all = WRITERS * KEYS as usize;
    until("every key was written", async || Ok(written.now().values().filter(|(acked, _)| *acked > 0).count() == all))
        .await?;
    rig.client.bucket("sync")?.put("ends", "7").ttl(ENDS_AFTER).await?;
    let before = written.now().into_iter().map(|(key, (acked, _))| (key, acked)).collect();
    rig.run(0, &format!("backup create sync active-active --to {place}")).await?;
    let after = written.now().into_iter().map(|(key, (_, sent))| (key, sent)).collect();
    until("writing goes on", async || {
        Ok(written.now().into_iter().any(|(key, (acked, _))| after_of(&after, &key) < acked))
    })
    .await?;
    stop.cancel();
    for writer in writers {
        writer.await??;
    }
    Ok([before, after])
}

fn after_of(after: &BTreeMap<String, u64>, key: &str) -> u64 {
    after.get(key).copied().unwrap_or_default()
}

/// The backups of both buckets, in this order.
async fn ids(rig: &Rig, place: &str) -> anyhow::Result<[String; 2]> {
    let list = rig.json(&format!("backup list --from {place}")).await?;
    let rows = list["backups"].as_array().context("a list")?;
    let of = |bucket: &str| {
        let row = rows.iter().find(|row| row["bucket"] == bucket)?;
        (row["staleness_ms"] == 0 || bucket != "sync").then(|| row["id"].as_str().map(str::to_owned))?
    };
    ensure!(rows.len() == 2, "{list}");
    Ok([of("sync").context("one of sync, of its primary")?, of("active-active").context("one of active-active")?])
}

/// Nothing that was acknowledged is missing or older, nothing is there that was never sent.
fn compare(
    mut found: BTreeMap<String, String>,
    before: &BTreeMap<String, u64>,
    after: &BTreeMap<String, u64>,
) -> anyhow::Result<()> {
    for (key, acked) in before {
        let number: u64 = found.remove(key).with_context(|| format!("{key} is missing"))?.parse()?;
        ensure!(number >= *acked, "{key}: {number} is older than {acked}, which was acknowledged before");
        ensure!(number <= after_of(after, key), "{key}: {number} was not yet written");
    }
    for key in (0..STILL).map(|nth| format!("still-{nth}")).chain(["ends-later".to_owned()]) {
        ensure!(found.remove(&key).as_deref() == Some("7"), "{key} is missing");
    }
    ensure!(found.is_empty(), "nobody wrote {found:?}");
    Ok(())
}

async fn a_flipped_byte_is_found(rig: &Rig, place: &str, id: &str) -> anyhow::Result<()> {
    let part = "s00003-p00000.part";
    let path = Path::new(place).join(id).join(part);
    let mut bytes = std::fs::read(&path)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes)?;
    let told = rig.run(1, &format!("backup verify --from {place}")).await?;
    ensure!(told.contains(&format!("{id}, shard 3, {part}: its checksum does not match")), "{told}");
    rig.run(1, &format!("backup restore --from {place} --id {id} --to-bucket damaged --create")).await?;
    Ok(())
}

async fn an_object_store_is_a_place_as_well(rig: &Rig) -> anyhow::Result<()> {
    let endpoint = format!("http://{}", s3::serve().await?);
    for line in [
        "backup create sync --to s3://backups/of/prod",
        "backup verify --from s3://backups/of/prod",
        "backup restore --from s3://backups/of/prod --to-bucket remote --create",
    ] {
        let mut command = rig.cli(line);
        command.envs([("AWS_ENDPOINT", endpoint.as_str()), ("AWS_ALLOW_HTTP", "true"), ("AWS_REGION", "us-east-1")]);
        command.envs([("AWS_ACCESS_KEY_ID", "id"), ("AWS_SECRET_ACCESS_KEY", "secret")]);
        let output = command.output().await?;
        ensure!(output.status.success(), "{line}: {output:?}");
    }
    ensure!(rig.contents("remote").await? == rig.contents("sync").await?, "as the one it is of");
    Ok(())
}

/// A large bucket: its backup is killed, and its restore.
async fn what_is_cut_short_is_none_or_goes_on(rig: &Rig) -> anyhow::Result<()> {
    let bucket = rig.client.bucket("async")?;
    let value = vec![7; LARGE.1];
    for nth in 0..LARGE.0 {
        bucket.put(format!("large-{nth}"), value.clone()).deadline(PATIENCE).await?;
    }
    let place = a_backup_that_is_cut_short_is_none(rig).await?;
    rig.run(0, &format!("backup create async --to {place}")).await?;
    a_restore_that_is_cut_short_goes_on(rig, &place).await
}

/// Where it was to be.
async fn a_backup_that_is_cut_short_is_none(rig: &Rig) -> anyhow::Result<String> {
    for nth in 0..TRIES {
        let place = rig.place(&format!("large-{nth}")).display().to_string();
        let mut create = rig.cli(&format!("backup create async --to {place} --parallel 1")).spawn()?;
        until("a part is kept", async || Ok(parts_at(&place) > 0)).await?;
        create.kill().await?;
        let list = rig.json(&format!("backup list --from {place}")).await?;
        let verify = format!("backup verify --from {place}");
        if list["backups"] == serde_json::json!([]) {
            ensure!(list["unfinished"].as_array().map(Vec::len) == Some(1), "{list}");
            rig.run(5, &verify).await?;
            return Ok(place);
        }
        // It was quicker than the kill: then it is whole.
        rig.run(0, &verify).await?;
    }
    anyhow::bail!("it was never cut short")
}

async fn a_restore_that_is_cut_short_goes_on(rig: &Rig, place: &str) -> anyhow::Result<()> {
    for nth in 0..TRIES {
        let bucket = format!("large-{nth}");
        let line = format!("backup restore --from {place} --to-bucket {bucket} --create");
        let mut restore = rig.cli(&format!("{line} --parallel 1")).spawn()?;
        until("it has begun to write", async || Ok(keys_of(rig, &bucket).await > 0)).await?;
        restore.kill().await?;
        // Else it was quicker than the kill.
        if keys_of(rig, &bucket).await < LARGE.0 {
            let told = rig.run(0, &line).await?;
            ensure!(told.contains("it goes on"), "{told}");
            return until("all of it is there", async || Ok(keys_of(rig, &bucket).await == LARGE.0)).await;
        }
    }
    anyhow::bail!("it was never cut short")
}

fn parts_at(place: &str) -> usize {
    let dirs = std::fs::read_dir(place).into_iter().flatten().flatten();
    dirs.filter_map(|dir| std::fs::read_dir(dir.path()).ok()).map(Iterator::count).sum()
}

async fn keys_of(rig: &Rig, bucket: &str) -> usize {
    let Ok(mut scan) = rig.client.bucket(bucket).map(|bucket| bucket.scan("").keys_only()) else { return 0 };
    let mut keys = 0;
    while let Ok(Some(page)) = scan.next_page().await {
        keys += page.items.len();
    }
    keys
}
