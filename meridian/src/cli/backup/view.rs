//! How backups are shown.

use serde::Serialize;

use super::moment;
use crate::backup::BackupId;
use crate::backup::chain::Chain;
use crate::backup::manifest::{Damage, Manifest, Way};
use crate::backup::place::State;
use crate::backup::verify::Fault;
use crate::output::{Show, Table, bytes, count, millis};

/// A backup in a line.
#[derive(Debug, Serialize)]
struct Row {
    id: String,
    bucket: String,
    /// The backup it rests on; `None`: it is whole.
    base: Option<String>,
    /// Shards of which it keeps the log since, so that every moment since can be had.
    logged: u64,
    shards: u64,
    region: String,
    begun_ms: u64,
    took_ms: u64,
    staleness_ms: Option<u64>,
    keys: u64,
    bytes: u64,
    stored_bytes: u64,
    parts: u64,
}

impl Row {
    fn of(manifest: &Manifest) -> Row {
        Row {
            id: manifest.id.to_string(),
            bucket: manifest.bucket.name.to_string(),
            base: manifest.base.as_ref().map(|base| base.id.to_string()),
            logged: manifest.shards.iter().filter(|shard| shard.way == Way::Log).count() as u64,
            shards: manifest.shards.len() as u64,
            region: manifest.region.to_string(),
            begun_ms: manifest.begun_ms,
            took_ms: manifest.ended_ms.saturating_sub(manifest.begun_ms),
            staleness_ms: manifest.staleness_ms(),
            keys: manifest.keys(),
            bytes: manifest.bytes(),
            stored_bytes: manifest.length(),
            parts: manifest.parts().count() as u64,
        }
    }
}

/// What it rests on.
fn rests_on(base: Option<&String>) -> String {
    base.map_or_else(|| "nothing: whole".to_owned(), Clone::clone)
}

/// Which moments can be had of it.
fn moments(row: &Row) -> String {
    match row.logged {
        0 => "its own".to_owned(),
        logged if logged == row.shards => "all since".to_owned(),
        logged => format!("all since, in {logged} of {} shards", row.shards),
    }
}

/// How far it may have been behind what was acknowledged when it was begun.
fn behind(staleness_ms: Option<u64>) -> String {
    match staleness_ms {
        Some(0) => "nothing".to_owned(),
        Some(ms) => format!("at most {}", millis(ms)),
        None => "unknown".to_owned(),
    }
}

/// What was made.
#[derive(Debug, Serialize)]
pub(super) struct Created {
    backups: Vec<Row>,
}

impl Created {
    pub(super) fn of(manifests: Vec<Manifest>) -> Created {
        Created { backups: manifests.iter().map(Row::of).collect() }
    }
}

impl Show for Created {
    fn text(&self) -> String {
        if self.backups.is_empty() {
            return "there are no buckets: nothing was backed up".to_owned();
        }
        let mut table = Table::new(&[
            "backup",
            "rests on",
            "moments",
            "read from",
            "behind",
            ">keys",
            ">bytes",
            ">stored",
            ">parts",
            ">took",
        ]);
        for row in &self.backups {
            table.row([
                row.id.clone(),
                rests_on(row.base.as_ref()),
                moments(row),
                row.region.clone(),
                behind(row.staleness_ms),
                count(row.keys),
                bytes(row.bytes),
                bytes(row.stored_bytes),
                count(row.parts),
                millis(row.took_ms),
            ]);
        }
        table.to_string()
    }
}

/// What is at a place.
#[derive(Debug, Serialize)]
pub(super) struct List {
    backups: Vec<Row>,
    /// No backups: made now, or cut short.
    unfinished: Vec<String>,
    /// Their manifest can't be used.
    damaged: Vec<String>,
}

impl List {
    pub(super) fn of(states: Vec<(BackupId, State)>) -> List {
        let mut list = List { backups: Vec::new(), unfinished: Vec::new(), damaged: Vec::new() };
        for (id, state) in states {
            match state {
                State::Whole(manifest) => list.backups.push(Row::of(&manifest)),
                State::Unfinished => list.unfinished.push(id.to_string()),
                State::Damaged(why) => list.damaged.push(format!("{id}: {why}")),
            }
        }
        list
    }
}

impl Show for List {
    fn text(&self) -> String {
        let mut lines = Vec::new();
        if self.backups.is_empty() {
            lines.push("no backups here: `meridian backup create BUCKET --to PLACE` makes one".to_owned());
        } else {
            let mut table = Table::new(&[
                "backup",
                "bucket",
                "rests on",
                "taken",
                "moments",
                "read from",
                "behind",
                ">keys",
                ">bytes",
                ">stored",
            ]);
            for row in &self.backups {
                table.row([
                    row.id.clone(),
                    row.bucket.clone(),
                    rests_on(row.base.as_ref()),
                    moment(row.begun_ms),
                    moments(row),
                    row.region.clone(),
                    behind(row.staleness_ms),
                    count(row.keys),
                    bytes(row.bytes),
                    bytes(row.stored_bytes),
                ]);
            }
            lines.push(table.to_string());
        }
        let no_manifest =
            "no backup, for it has no manifest: it is being made now, or was cut short and can be removed";
        lines.extend(self.unfinished.iter().map(|id| format!("{id}: {no_manifest}")));
        lines.extend(self.damaged.iter().map(|it| format!("DAMAGED: {it}")));
        lines.join("\n")
    }
}

/// Everything about one.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub(super) struct Shown {
    manifest: Manifest,
}

impl Shown {
    pub(super) fn of(manifest: Manifest) -> Shown {
        Shown { manifest }
    }
}

impl Show for Shown {
    fn text(&self) -> String {
        let it = &self.manifest;
        let row = Row::of(it);
        let regions: Vec<&str> = it.bucket.regions.iter().map(|region| region.as_str()).collect();
        let primary = it.bucket.primary.as_ref().map_or("every region", |primary| primary.as_str());
        let head = format!(
            "{} of bucket `{}` ({}, primary {primary}, in {}) of cluster {}\ntaken {} in {}, read from {}, behind {}; by meridian {}\nrests on {}; moments: {}\n{} keys ({}) in {} parts ({})\n",
            it.id,
            it.bucket.name,
            it.bucket.policy,
            regions.join(", "),
            it.cluster,
            moment(it.begun_ms),
            millis(row.took_ms),
            it.region,
            behind(row.staleness_ms),
            it.tool,
            rests_on(row.base.as_ref()),
            moments(&row),
            count(row.keys),
            bytes(row.bytes),
            count(row.parts),
            bytes(row.stored_bytes),
        );
        let mut table =
            Table::new(&[">shard", ">epoch", ">keys", ">bytes", "kept", ">rows", ">counters", ">parts", "digest"]);
        for shard in &it.shards {
            table.row([
                shard.shard.to_string(),
                shard.epoch.to_string(),
                count(shard.keys),
                bytes(shard.bytes),
                kept(shard.way).to_owned(),
                count(shard.rows),
                count(shard.counters),
                count(shard.parts.len() as u64),
                shard.digest.clone(),
            ]);
        }
        format!("{head}{table}")
    }
}

fn kept(way: Way) -> &'static str {
    match way {
        Way::Whole => "all",
        Way::Difference => "what differs",
        Way::Log => "what changed, and the log",
    }
}

/// What was found.
#[derive(Debug, Default, Serialize)]
pub(super) struct Verified {
    backups: Vec<Looked>,
}

#[derive(Debug, Serialize)]
struct Looked {
    id: String,
    keys: u64,
    parts: u64,
    stored_bytes: u64,
    good: bool,
    faults: Vec<Fault>,
    /// Why its manifest can't be used, or that of one it rests on.
    manifest_fault: Option<String>,
}

impl Verified {
    /// Of a backup and those it rests on, each of which may have been looked at already, below another one.
    pub(super) fn add(&mut self, chain: &Chain, faults: Vec<Fault>) {
        let broken = chain.broken().map(ToString::to_string);
        for manifest in chain.links() {
            let row = Row::of(manifest);
            let of_it = || faults.iter().filter(|fault| fault.backup == manifest.id);
            if self.backups.iter().any(|it| it.id == row.id) {
                continue;
            }
            self.backups.push(Looked {
                id: row.id,
                keys: row.keys,
                parts: row.parts,
                stored_bytes: row.stored_bytes,
                good: of_it().next().is_none() && broken.is_none(),
                faults: of_it().cloned().collect(),
                manifest_fault: broken.clone(),
            });
        }
    }

    pub(super) fn unreadable(&mut self, id: &BackupId, why: &Damage) {
        self.backups.push(Looked {
            id: id.to_string(),
            keys: 0,
            parts: 0,
            stored_bytes: 0,
            good: false,
            faults: Vec::new(),
            manifest_fault: Some(why.to_string()),
        });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.backups.is_empty()
    }

    pub(super) fn damaged(&self) -> usize {
        self.backups.iter().filter(|it| !it.good).count()
    }
}

impl Show for Verified {
    fn text(&self) -> String {
        let mut table = Table::new(&["backup", ">keys", ">parts", ">stored", "verdict"]);
        let mut faults = String::new();
        for it in &self.backups {
            table.row([
                it.id.clone(),
                count(it.keys),
                count(it.parts),
                bytes(it.stored_bytes),
                if it.good { "whole: every shard adds up to its digest" } else { "DAMAGED" }.to_owned(),
            ]);
            faults.extend(it.manifest_fault.iter().map(|why| format!("\n{}, manifest: {why}", it.id)));
            faults.extend(it.faults.iter().map(|fault| format!("\n{fault}")));
        }
        format!("{table}{faults}")
    }
}
