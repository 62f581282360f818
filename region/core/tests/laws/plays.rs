//! Golden scripts, in the manner of etcd's raft: `testdata/*.txt` reads like a play, and this performs it.
//!
//! A line is a command; the lines behind `> ` are what it must answer. A play is performed with
//! `REWRITE=1` to write its answers anew; read the difference before you believe it.
//!
//! ```text
//! at 100                          every region's wall clock, in milliseconds
//! us write put k v ttl=50 as=7/1  a write to the bucket with a primary
//! us merge incr k 5               a write to the active-active bucket
//! us get plain k                  a read; also `scan plain PREFIX after=K limit=N`
//! us ships sync to eu max=2       one frame from where eu stands; `from=N` pretends it stands elsewhere
//! us seals plain 3                the end of the epoch in force, as its last entry
//! eu takes-over plain 3           the same after a failover: as it stands in eu
//! us begins repair of plain after eu / us ends repair of plain after eu
//! us fences plain 3 / us expires / us drops plain / us restarts / us digest plain
//! us astray plain                 whether it must be repaired
//! us epoch 3                      the epoch its leader believes in
//! ```

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use meridian_region_core::read;
use meridian_region_core::repair::survey::Claim;
use meridian_region_core::{Answered, Astray, FrameResult, WriteResult};
use meridian_types::entry::{Body, Kind};
use meridian_types::{
    BucketId, Epoch, Hlc, Lane, Lsn, Outcome, Refusal, RegionId, RepairStep, RequestId, Version, Write,
};

use crate::repair::{propose, undisturbed};
use crate::world::{MERGED, PLAIN, Replica, SHARD, id, key, value};

struct Stage {
    replicas: BTreeMap<&'static str, Replica>,
}

/// A line's words, and its `name=value` ones.
struct Line<'a> {
    words: Vec<&'a str>,
    named: BTreeMap<&'a str, &'a str>,
}

impl<'a> Line<'a> {
    fn of(line: &'a str) -> Line<'a> {
        let named = line.split_whitespace().filter_map(|word| word.split_once('=')).collect();
        Line { words: line.split_whitespace().filter(|word| !word.contains('=')).collect(), named }
    }

    fn word(&self, at: usize) -> &'a str {
        self.words.get(at).unwrap_or_else(|| panic!("a word is missing: {:?}", self.words))
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.named.get(name).map(|number| number.parse().unwrap())
    }

    fn id(&self) -> RequestId {
        self.named.get("as").map_or_else(RequestId::default, |text| {
            let (client, sequence) = text.split_once('/').unwrap();
            id(client.parse().unwrap(), sequence.parse().unwrap())
        })
    }

    /// `put K V`, `delete K`, `append K V`, `incr K N`, `cas K VERSION|none V`, `put-if-absent K V`, `multi-put K V K V`.
    fn write(&self) -> Write {
        let (k, ttl_ms) = (|at| key(self.word(at)), self.number("ttl"));
        let v = |at: usize| value(self.words.get(at).unwrap_or(&""));
        match self.word(2) {
            "put" => Write::Put { key: k(3), value: v(4), ttl_ms },
            "delete" => Write::Delete { key: k(3) },
            "append" => Write::Append { key: k(3), suffix: v(4) },
            "incr" => Write::Increment { key: k(3), by: self.word(4).parse().unwrap() },
            "cas" => Write::CompareAndSet { key: k(3), expected: version(self.word(4)), value: v(5), ttl_ms },
            "put-if-absent" => Write::PutIfAbsent { key: k(3), value: v(4), ttl_ms },
            "multi-put" => {
                let pairs = self.words[3..].chunks(2);
                Write::MultiPut { items: pairs.map(|pair| (key(pair[0]), value(pair[1]))).collect() }
            }
            other => panic!("no such write: {other}"),
        }
    }
}

fn version(text: &str) -> Option<Version> {
    let (hlc, region) = text.split_once('@')?;
    let (millis, counter) = hlc.split_once('.').unwrap();
    let hlc = Hlc(Hlc::from_millis(millis.parse().unwrap()).0 + counter.parse::<u64>().unwrap());
    Some(Version { hlc, region: RegionId(region.parse().unwrap()) })
}

fn bucket(word: &str) -> BucketId {
    match word {
        "plain" => PLAIN,
        "merged" => MERGED,
        other => panic!("no such bucket: {other}"),
    }
}

impl Stage {
    fn new() -> Stage {
        let names = [("us", 1), ("eu", 2), ("ap", 3)];
        Stage { replicas: names.into_iter().map(|(name, region)| (name, Replica::new(region))).collect() }
    }

    fn perform(&mut self, text: &str) -> String {
        let line = Line::of(text);
        if line.word(0) == "at" {
            let wall_ms = line.word(1).parse().unwrap();
            self.replicas.values_mut().for_each(|replica| replica.wall_ms = wall_ms);
            return String::new();
        }
        if line.word(1) == "ships" {
            return self.ship(&line);
        }
        if line.words.contains(&"repair") {
            return self.repair(&line);
        }
        let replica = self.replicas.get_mut(line.word(0)).unwrap();
        match line.word(1) {
            "write" => told(&replica.write(line.id(), line.write())),
            "merge" => replica.merge(line.id(), &line.write()).map_or_else(|refusal| no(&refusal), |done| told(&done)),
            "get" => match replica.get(bucket(line.word(2)), &key(line.word(3))) {
                None => "nothing".to_owned(),
                Some(located) => item(None, &located),
            },
            "scan" => scan(replica, &line),
            "fences" => {
                replica.fence(bucket(line.word(2)), line.word(3).parse().unwrap());
                String::new()
            }
            "seals" => {
                let done = replica.seal(bucket(line.word(2)), line.word(3).parse().unwrap());
                done.refused.map_or_else(String::new, |refusal| no(&refusal))
            }
            "takes-over" => {
                let done = replica.take_over(bucket(line.word(2)), line.word(3).parse().unwrap());
                done.refused.map_or_else(String::new, |refusal| no(&refusal))
            }
            "astray" => match replica.shard.astray(bucket(line.word(2))) {
                Some(Astray { from, epoch, cut }) => {
                    format!(
                        "to be repaired from {from}, which began epoch {epoch}; of the own log, {cut} is the last that counts"
                    )
                }
                None => "no".to_owned(),
            },
            "epoch" => {
                replica.epoch = Epoch(line.word(2).parse().unwrap());
                String::new()
            }
            "expires" => format!("{} expired", replica.expire()),
            "drops" => {
                let done = replica.control(Kind::DropBucket, bucket(line.word(2)), Epoch(0), &Body::DropBucket);
                format!("{} removed, more: {}", done.removed, done.more)
            }
            "restarts" => {
                replica.restart();
                String::new()
            }
            "digest" => digest(replica, bucket(line.word(2))),
            other => panic!("no such command: {other}"),
        }
    }

    fn repair(&mut self, line: &Line<'_>) -> String {
        let (of, mut source) = (bucket(line.word(4)), self.replicas[line.word(6)].clone());
        let target = self.replicas.get_mut(line.word(0)).unwrap();
        if line.word(1) == "begins" {
            propose(target, of, RepairStep::Begin { source: source.region });
            return String::new();
        }
        let moved = undisturbed(target, &mut source, (of, Claim::Primary));
        format!("{moved} rows moved")
    }

    fn ship(&mut self, line: &Line<'_>) -> String {
        let lane = if line.word(2) == "sync" { Lane::Sync } else { Lane::Async };
        let source = self.replicas[line.word(0)].clone();
        let target = self.replicas.get_mut(line.word(4)).unwrap();
        let previous = line.number("from").map_or_else(|| target.shard.watermark(source.region, lane), Lsn);
        let entries_max = line.number("max").map_or(usize::MAX, |max| max as usize);
        let Some(frame) = source.frame_after(previous, lane, entries_max) else { return "nothing to ship".to_owned() };
        let (result, applied) = target.receive(&frame);
        let mut answer = match result {
            FrameResult::Applied { watermark, diverged } => {
                format!("applied up to {watermark}, diverged: {}", diverged.len())
            }
            FrameResult::AlreadyApplied { watermark } => format!("already applied up to {watermark}"),
            FrameResult::Gap { watermark } => format!("gap: rewind to {watermark}"),
            FrameResult::Fenced { epoch, fence, .. } => format!("fenced: epoch {epoch} is below {fence}"),
            other => format!("{other:?}"),
        };
        for Answered { id: request, result, .. } in applied.answered {
            let result = WriteResult::decode(&result).unwrap();
            write!(answer, "\nanswers {}/{}: {}", request.client.0, request.sequence, told(&result)).unwrap();
        }
        answer
    }
}

fn told(result: &WriteResult) -> String {
    match &result.outcome {
        Ok(Outcome::Written { version }) => format!("written {version}"),
        Ok(Outcome::Deleted { version, existed }) => format!("deleted {version}, existed: {existed}"),
        Ok(Outcome::Count { version, value }) => format!("count {value} {version}"),
        Ok(Outcome::Length { version, length }) => format!("length {length} {version}"),
        Ok(Outcome::ConditionFailed { current }) => {
            format!("condition failed, current: {}", current.map_or("none".to_owned(), |version| version.to_string()))
        }
        Ok(other) => format!("{other:?}"),
        Err(refusal) => no(refusal),
    }
}

fn no(refusal: &Refusal) -> String {
    format!("{}: {}", refusal.kind, refusal.message)
}

fn item(name: Option<&str>, located: &read::Located) -> String {
    let name = name.map(|name| format!("{name} = ")).unwrap_or_default();
    let end = located.found.expires_at_ms.map(|at| format!(" until {at}")).unwrap_or_default();
    format!("{name}{} ({}{end})", String::from_utf8_lossy(&located.found.value), located.found.version)
}

fn scan(replica: &Replica, line: &Line<'_>) -> String {
    let prefix = line.words.get(3).copied().unwrap_or_default();
    let after = line.named.get("after").copied().unwrap_or_default();
    let limit = line.number("limit").unwrap_or(100) as u32;
    let of = bucket(line.word(2));
    let page = read::scan(&replica.state, SHARD, of, prefix.as_bytes(), after.as_bytes(), limit, true, replica.wall_ms)
        .unwrap();
    let mut lines: Vec<_> =
        page.items.iter().map(|(key, located)| item(Some(&String::from_utf8_lossy(key.as_bytes())), located)).collect();
    lines.push(format!("more: {}", page.more));
    lines.join("\n")
}

fn digest(replica: &Replica, bucket: BucketId) -> String {
    replica.check_digests();
    let Some(digest) = replica.shard.digest(bucket) else { return "nothing".to_owned() };
    let positions: Vec<_> = digest.positions.0.iter().map(|(region, lsn)| format!("{region}:{lsn}")).collect();
    format!("{} keys, {} bytes, positions {}, hash {}", digest.keys, digest.bytes, positions.join(" "), digest.hash)
}

/// The play with its answers as they are now.
fn performed(play: &str) -> String {
    let mut stage = Stage::new();
    let mut now = String::new();
    for line in play.lines().filter(|line| !line.starts_with("> ")) {
        writeln!(now, "{line}").unwrap();
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        stage.perform(line).lines().for_each(|answer| writeln!(now, "> {answer}").unwrap());
        stage.replicas.values().for_each(Replica::check_digests);
    }
    now
}

#[test]
#[allow(clippy::disallowed_methods, reason = "a test reads its script and may rewrite it")]
fn every_play_ends_as_it_is_written() {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let mut plays: Vec<_> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    plays.sort();
    assert!(!plays.is_empty());
    for path in plays {
        let written = std::fs::read_to_string(&path).unwrap();
        let now = performed(&written);
        if std::env::var_os("REWRITE").is_some() {
            std::fs::write(&path, now).unwrap();
        } else {
            assert_eq!(now, written, "{}: REWRITE=1 writes the answers anew", path.display());
        }
    }
}
