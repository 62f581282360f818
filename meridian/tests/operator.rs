//! What an operator types, against real processes: the built binary, its output and its exit codes (design 9).
//!
//! A play in five acts: primaries move and move back, a bucket goes on with too few copies and gets them back, a region is lost with
//! writes that nobody else has, it comes back and what it kept is written back, and all of it is on record. And a second play: changes
//! of buckets are operations, too.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use chaos::real::{Planet, REGIONS};
use futures::future::try_join_all;
use serde_json::Value;
use tokio::process::Command;

const PATIENCE: Duration = Duration::from_secs(60);

/// Who is asked: a node of eu-west.
const DESK: usize = 1;

/// Keys that only the lost region has.
const LOST: usize = 20;

// Exit codes: a contract with scripts.
const DONE: i32 = 0;
const FAILED: i32 = 1;
const NOT_READY: i32 = 2;
const CONSENT: i32 = 3;
const INVALID: i32 = 5;

struct Rig {
    planet: Planet,
    // Behind those who live in it.
    _dir: tempfile::TempDir,
}

/// What a line came to.
struct Said {
    line: String,
    code: Option<i32>,
    out: String,
    err: String,
}

impl Said {
    fn expect(self, code: i32, words: &[&str]) -> anyhow::Result<Said> {
        let Said { line, out, err, .. } = &self;
        ensure!(self.code == Some(code), "`{line}` ended with {:?}, not {code}\n{out}\n{err}", self.code);
        let all = format!("{out}\n{err}");
        for word in words {
            ensure!(all.contains(word), "`{word}` is missing in what `{line}` said:\n{out}\n{err}");
        }
        Ok(self)
    }

    /// The command that it printed behind these words, as somebody would copy it.
    fn command_after(&self, words: &str) -> anyhow::Result<String> {
        let found = self.out.lines().find_map(|line| line.strip_prefix(words)?.trim().strip_prefix("meridian "));
        let found = found.with_context(|| format!("`{}` printed no `{words}`:\n{}", self.line, self.out))?;
        // What a shell takes away.
        Ok(found.replace('\'', ""))
    }
}

impl Rig {
    async fn start() -> anyhow::Result<Rig> {
        let dir = tempfile::Builder::new().prefix("meridian-operator").tempdir()?;
        let mut planet = Planet::create(Path::new(env!("CARGO_BIN_EXE_meridian")), dir.path())?;
        for node in 0..REGIONS.len() {
            planet.start(node)?;
        }
        planet.ready(PATIENCE).await?;
        Ok(Rig { planet, _dir: dir })
    }

    fn words(&self, line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).chain(self.planet.dial_only(DESK).options()).collect()
    }

    /// Types a line.
    async fn types(&self, line: &str) -> anyhow::Result<Said> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_meridian"));
        let output = command.args(self.words(line)).stdin(Stdio::null()).kill_on_drop(true).output().await?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        Ok(Said { line: line.to_owned(), code: output.status.code(), out, err })
    }

    /// Types a line again and again until it comes to that.
    async fn until(&self, line: &str, code: i32, words: &[&str]) -> anyhow::Result<Said> {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.types(line).await?.expect(code, words) {
                Ok(said) => return Ok(said),
                Err(why) => ensure!(Instant::now() < until, "not in time: {why}"),
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }

    /// Moves primaries; types the line again while the check before it, which is of one moment, finds something in the way.
    async fn moves(&self, line: &str, words: &[&str]) -> anyhow::Result<Said> {
        let (line, until) = (format!("{line} --max-pause 30s"), Instant::now() + PATIENCE);
        loop {
            let said = self.types(&line).await?;
            let is_refused = said.code == Some(NOT_READY) && said.err.contains("nothing was started");
            if !is_refused || Instant::now() > until {
                return said.expect(DONE, words);
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }

    /// Types a line that lists in JSON; what it lists.
    async fn lists(&self, line: &str, key: &str, words: &[&str]) -> anyhow::Result<Vec<Value>> {
        let said = self.types(line).await?.expect(DONE, words)?;
        let list: Value = serde_json::from_str(&said.out)?;
        list[key].as_array().cloned().with_context(|| format!("`{line}` has no {key}: {list}"))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_moves_loses_and_gets_back_what_the_runbooks_say() -> anyhow::Result<()> {
    let mut rig = Rig::start().await?;
    buckets(&rig).await?;
    if let Some(why) = lacks_disk(&rig).await? {
        eprintln!("skipped: no switchover is ready on this machine, whose disk is nearly full: {why}");
        return Ok(());
    }
    move_and_move_back(&rig).await?;
    mistakes(&rig).await?;
    degrade_and_return(&mut rig).await?;
    lose_a_region(&mut rig).await?;
    get_it_back(&mut rig).await?;
    on_record(&rig).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_a_bucket_is_an_operation_with_an_id_a_reason_stages_and_an_end() -> anyhow::Result<()> {
    let mut rig = Rig::start().await?;
    rig.types("bucket create events --primary us-east").await?.expect(DONE, &["created"])?;
    rig.until("bucket list", DONE, &["events"]).await?;
    rig.types("kv put events key value").await?.expect(DONE, &[])?;
    let set = "bucket set events --policy sync --acks majority --op-id c-1 --reason audit";
    rig.types(set).await?.expect(DONE, &["on record as op-"])?;
    let again = ["was started under this id before: watching it", "policy change of events, done", "settling", "audit"];
    rig.types(set).await?.expect(DONE, &again)?;
    let other = "bucket set events --policy async --op-id c-1";
    rig.types(other).await?.expect(INVALID, &["asks for something else", "use another word"])?;
    rig.types("bucket set events --policy active-active --reason everywhere")
        .await?
        .expect(DONE, &["active-active"])?;
    rig.until("operation list", DONE, &["policy change", "crossing", "everywhere", "done"]).await?;
    rig.types("bucket set events --policy async --primary us-east").await?.expect(DONE, &["async"])?;

    // With a region away it can't be done, and is given up.
    rig.planet.kill(2)?;
    rig.until("bucket set events --policy sync --acks all --op-id c-2 --yes", DONE, &["on record as op-"]).await?;
    let list = rig.types("operation list -o json").await?.expect(DONE, &[])?;
    let list: serde_json::Value = serde_json::from_str(&list.out)?;
    let last = list["operations"].as_array().and_then(|it| it.last()).context("operations")?;
    ensure!(last["outcome"] == "under way" && last["stage"] == "settling" && last["bucket"] == "events", "{list}");
    let id = last["operation"].as_str().context("an operation has a name")?;
    let abort = format!("operation abort {id} --reason enough");
    rig.types(&abort).await?.expect(DONE, &["aborted", "enough", "client/chaos"])?;
    rig.types(&abort).await?.expect(FAILED, &["has ended"])?;
    rig.types(&format!("operation show {id}")).await?.expect(DONE, &["aborted", "async", "sync (all)"])?;
    rig.until("bucket show events", DONE, &["async"]).await?;
    rig.types("events --since 1").await?.expect(DONE, &["aborted", id])?;

    // Heal, then demand progress.
    rig.planet.start(2)?;
    rig.planet.ready(PATIENCE).await?;
    rig.until("kv put events key later", DONE, &[]).await?;
    rig.types("bucket set events --policy sync --acks all --op-id c-3 --yes")
        .await?
        .expect(DONE, &["on record as op-"])?;
    rig.until("bucket show events", DONE, &["copies    SYNC"]).await?;
    Ok(())
}

async fn buckets(rig: &Rig) -> anyhow::Result<()> {
    rig.types("bucket create orders --primary us-east --label team=shop")
        .await?
        .expect(DONE, &["created", "us-east"])?;
    rig.types("bucket create pay --policy sync --acks majority --primary us-east")
        .await?
        .expect(DONE, &["majority"])?;
    // Another node may have heard of them a moment before.
    rig.until("bucket list", DONE, &["orders", "pay", "team=shop"]).await?;
    rig.types("bucket create orders").await?.expect(INVALID, &["exists already"])?;
    Ok(())
}

/// What the check before a switchover finds wrong with the disk of this machine, which no test can mend.
async fn lacks_disk(rig: &Rig) -> anyhow::Result<Option<String>> {
    let said = rig.types("switchover check --to eu-west --all-from us-east").await?;
    let line = said.out.lines().find(|line| line.contains("FAIL") && line.contains(" disk "));
    Ok(line.map(str::to_owned))
}

async fn move_and_move_back(rig: &Rig) -> anyhow::Result<()> {
    let lines = ["reverse link", "heard", "clients", "acks", "pay without us-east", "ready: nothing is in the way"];
    rig.until("switchover check --to eu-west --all-from us-east", DONE, &lines).await?;
    rig.until("switchover check --to eu-west --label team=shop --watch", DONE, &["ready"]).await?;
    let planned = rig.types("switchover plan --to eu-west --label team=shop").await?;
    let planned = planned.expect(DONE, &["orders", "nothing was changed"])?;
    ensure!(!planned.out.contains("pay"), "{}", planned.out);

    let run = "switchover run --to eu-west --label team=shop --op-id m-7 --reason rack-7";
    let moved = rig.moves(run, &["promoted", "16/16", "rack-7", "undo with"]).await?;
    rig.types(run).await?.expect(DONE, &["was started under this id before: watching it"])?;
    let looked = rig.types(&format!("{run} --dry-run")).await?.expect(DONE, &["nothing was changed", "promoted"])?;
    ensure!(!looked.err.contains("watching"), "{}", looked.err);
    rig.moves(&moved.command_after("undo with:")?, &["promoted", "us-east"]).await?;

    let moved = rig.moves("switchover run --to ap-south --all-from us-east", &["orders", "pay", "undo with"]).await?;
    rig.moves(&moved.command_after("undo with:")?, &["orders", "pay"]).await?;
    let operations = rig.lists("operation list -o json", "operations", &["rack-7"]).await?;
    ensure!(operations.len() == 4, "{operations:?}");
    let id = operations[0]["operation"].as_str().context("an operation has a name")?;
    rig.types(&format!("operation show {id}")).await?.expect(DONE, &["rack-7", "16/16"])?;
    Ok(())
}

async fn mistakes(rig: &Rig) -> anyhow::Result<()> {
    rig.types("switchover run --to mars --bucket orders").await?.expect(NOT_READY, &["no region of this cluster"])?;
    rig.types("switchover run --to eu-west").await?.expect(INVALID, &["--bucket"])?;
    rig.types("operation show op-999999").await?.expect(INVALID, &["meridian operation list"])?;
    rig.until("failover run --all-from us-east", NOT_READY, &["us-east answers"]).await?;
    let lost = "failover run --bucket orders --lost us-east";
    rig.types(&format!("{lost} --reason fire")).await?.expect(NOT_READY, &["has a primary"])?;
    let estimate = rig.types("failover estimate --bucket orders --lost us-east").await?;
    let estimate = estimate.expect(NOT_READY, &["ask without --lost"])?;
    ensure!(!estimate.out.contains("accept-loss"), "a consent that would be refused: {}", estimate.out);
    Ok(())
}

/// A replica region is away: a bucket that asks for it goes on without, on record, and a check says what else that would mean.
async fn degrade_and_return(rig: &mut Rig) -> anyhow::Result<()> {
    let create =
        "bucket create shop --policy sync --acks all --on-partition degrade --degrade-after 1s --primary us-east";
    rig.types(create).await?.expect(DONE, &["shop"])?;
    rig.until("bucket list", DONE, &["shop"]).await?;
    rig.types("kv put shop cart full").await?.expect(DONE, &[])?;
    let without = ["FAIL", "shop without us-east", "2 of the 3 regions", "NOT ready: 1 of"];
    rig.until("switchover check --to eu-west --bucket shop", NOT_READY, &without).await?;

    rig.planet.kill(2)?;
    rig.until("kv put shop cart fuller", DONE, &[]).await?;
    let lacking = ["acknowledged writes may lack copies", "shop: DEGRADED since", "exposed: ", "of shards back"];
    rig.until("status", DONE, &lacking).await?;
    rig.until("bucket show shop", DONE, &["DEGRADED since", "ap-south", "exposed"]).await?;
    rig.planet.start(2)?;
    rig.planet.ready(PATIENCE).await?;
    rig.until("bucket show shop", DONE, &["copies    SYNC"]).await?;
    let status = rig.types("status").await?.expect(DONE, &[])?;
    ensure!(!status.out.contains("may lack copies"), "{}", status.out);
    rig.types("bucket delete shop --yes").await?.expect(DONE, &[])?;
    Ok(())
}

/// The others are gone while writes are acknowledged on the strength of a lease, and there again once the region that took them is not.
async fn lose_a_region(rig: &mut Rig) -> anyhow::Result<()> {
    let client = rig.planet.dial_only(0).connect().await?;
    let bucket = client.bucket("orders")?;
    bucket.put("known", "everywhere").deadline(PATIENCE).await?;
    rig.planet.kill(1)?;
    rig.planet.kill(2)?;
    // At once: what is left of the lease must do for all of them.
    let put = |nth: usize| bucket.put(format!("lost-{nth}"), "only there").deadline(PATIENCE).into_future();
    try_join_all((0..LOST).map(put)).await?;
    rig.planet.kill(0)?;
    rig.planet.start(1)?;
    rig.planet.start(2)?;

    let estimate = "failover estimate --all-from us-east";
    let told = rig.until(estimate, DONE, &["silent: us-east", "proven by", "no bound", "accept-loss/1"]).await?;
    rig.types("failover run --all-from us-east")
        .await?
        .expect(CONSENT, &["it could cost acknowledged writes of orders"])?;
    rig.types("failover run --bucket orders --dry-run").await?.expect(CONSENT, &["nothing was started"])?;
    let run = format!("{} --op-id f-1 --reason us-east-is-dark", told.command_after("to do it:")?);
    rig.types(&run).await?.expect(DONE, &["failed-over", "salvage list"])?;
    rig.types(&run).await?.expect(DONE, &["was started under this id before", "failed-over"])?;
    Ok(())
}

async fn get_it_back(rig: &mut Rig) -> anyhow::Result<()> {
    rig.planet.start(0)?;
    let list = rig.until("salvage list", DONE, &["orders", "us-east"]).await?;
    let id =
        list.out.split_whitespace().find(|word| word.split('-').count() == 5 && word.starts_with(char::is_numeric));
    let id = id.with_context(|| format!("no bundle has a name:\n{}", list.out))?;
    rig.until(&format!("salvage diff {id}"), DONE, &["untouched"]).await?;
    // One bundle per shard, each written when the shard has been repaired.
    let until = Instant::now() + PATIENCE;
    loop {
        match written_back(rig).await {
            Ok(LOST) => break,
            last => ensure!(Instant::now() < until, "not in time, of {LOST}: {last:?}"),
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    rig.types("kv get orders lost-3").await?.expect(DONE, &["only there"])?;
    Ok(())
}

/// Writes back what bundles there are; how many of the lost keys are there then.
async fn written_back(rig: &Rig) -> anyhow::Result<usize> {
    rig.types("salvage replay --bucket orders --dry-run").await?.expect(DONE, &[])?;
    rig.types("salvage replay --bucket orders").await?.expect(DONE, &[])?;
    let scan = rig.types("kv scan orders lost- --keys-only").await?.expect(DONE, &[])?;
    let words: Vec<&str> = scan.out.split_whitespace().collect();
    Ok((0..LOST).filter(|nth| words.contains(&format!("lost-{nth}").as_str())).count())
}

async fn on_record(rig: &Rig) -> anyhow::Result<()> {
    let words = ["create-bucket", "degrade", "rack-7", "promote", "us-east-is-dark", "replay-salvage", "client/chaos"];
    let events = rig.types("events").await?.expect(DONE, &words[4..])?;
    eprintln!("{}", events.out);
    // Something may happen between the two.
    let until = Instant::now() + PATIENCE;
    loop {
        let all = rig.lists("events --since 1 -o json", "events", &words).await?;
        let last = rig.lists("events --limit 1 -o json", "events", &[]).await?;
        if last.len() == 1 && last.last() == all.last() {
            break;
        }
        ensure!(Instant::now() < until, "{last:?}");
    }

    // A reader that has enough is no error.
    let mut shell = Command::new("sh");
    shell.args(["-c", r#""$0" "$@" | head -n 1"#, env!("CARGO_BIN_EXE_meridian")]).args(rig.words("events --since 1"));
    let output = shell.env("RUST_BACKTRACE", "1").stdin(Stdio::null()).kill_on_drop(true).output().await?;
    ensure!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
