//! How salvage is shown.

use meridian_client::Error;
use meridian_types::{Node, ReplayPolicy, ReplayReport, SalvageBundle, SalvageFate, SalvageId, SalvageKey, Topology};
use serde::Serialize;

use super::{bucket_label, bytes, count, moment};
use crate::output::{Show, Table};

/// Bytes of a key or value that a table shows.
const SHOWN_BYTES: usize = 40;

#[derive(Debug, Serialize)]
pub(super) struct List {
    bundles: Vec<Row>,
    pub(super) silent: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Row {
    bundle: String,
    bucket: String,
    shard: u16,
    region: String,
    node: String,
    epoch: u64,
    winner: String,
    entries: u64,
    keys: u64,
    bytes: u64,
    whole: bool,
    created_ms: u64,
    replayed_ms: u64,
    restored: u64,
}

impl List {
    pub(super) fn of(answers: Vec<(Node, Result<Vec<SalvageBundle>, Error>)>, topology: &Topology) -> List {
        let mut list = List { bundles: Vec::new(), silent: Vec::new() };
        for (node, answer) in answers {
            match answer {
                Ok(bundles) => list.bundles.extend(bundles.into_iter().map(|bundle| Row::of(&bundle, &node, topology))),
                Err(why) => list.silent.push(format!("node {}: {why}", node.name)),
            }
        }
        list
    }
}

impl Row {
    fn of(bundle: &SalvageBundle, node: &Node, topology: &Topology) -> Row {
        Row {
            bundle: bundle.id.to_string(),
            bucket: bucket_label(topology, bundle.id.bucket),
            shard: bundle.id.shard.0,
            region: topology.region_label(node.region),
            node: node.name.to_string(),
            epoch: bundle.id.epoch.0,
            winner: topology.region_label(bundle.winner),
            entries: bundle.entries,
            keys: bundle.keys,
            bytes: bundle.bytes,
            whole: bundle.whole,
            created_ms: bundle.created_ms,
            replayed_ms: bundle.replayed_ms,
            restored: bundle.restored,
        }
    }
}

impl Show for List {
    fn text(&self) -> String {
        if self.bundles.is_empty() {
            return "nothing was salvaged: no primary came back with writes that its successor lacks".to_owned();
        }
        let mut table = Table::new(&[
            "bundle",
            "bucket",
            "kept in",
            "lost to",
            ">writes",
            ">keys",
            ">size",
            "written",
            ">restored",
        ]);
        for row in &self.bundles {
            table.row([
                row.bundle.clone(),
                row.bucket.clone(),
                row.region.clone(),
                row.winner.clone(),
                if row.whole { count(row.entries) } else { format!("{}+", count(row.entries)) },
                count(row.keys),
                bytes(row.bytes),
                moment(row.created_ms),
                if row.replayed_ms == 0 { "-".to_owned() } else { count(row.restored) },
            ]);
        }
        format!(
            "{table}\n\nnext: `meridian salvage diff BUNDLE` compares one with what is there now; \
             `meridian salvage replay --bucket BUCKET --dry-run` says what would be written back of all"
        )
    }
}

#[derive(Debug, Serialize)]
pub(super) struct Keys {
    keys: Vec<KeyRow>,
    not_shown: u64,
}

#[derive(Debug, Serialize)]
struct KeyRow {
    key: String,
    value: Option<String>,
    value_bytes: u64,
    expires_at_ms: Option<u64>,
    fate: Option<SalvageFate>,
}

impl Keys {
    pub(super) fn of(keys: Vec<SalvageKey>, not_shown: u64) -> Keys {
        let row = |key: SalvageKey| KeyRow {
            key: String::from_utf8_lossy(&key.key).into_owned(),
            value_bytes: key.value.as_ref().map_or(0, |value| value.len() as u64),
            value: key.value.map(|value| String::from_utf8_lossy(&value).into_owned()),
            expires_at_ms: key.expires_at_ms,
            fate: key.fate,
        };
        Keys { keys: keys.into_iter().map(row).collect(), not_shown }
    }
}

fn shortened(text: &str) -> String {
    let clean: String = text.chars().map(|c| if c.is_control() { '·' } else { c }).take(SHOWN_BYTES).collect();
    if text.chars().count() > SHOWN_BYTES { format!("{clean}…") } else { clean }
}

impl Show for Keys {
    fn text(&self) -> String {
        let mut table = Table::new(&["key", "was", ">size", "at the primary now"]);
        for row in &self.keys {
            table.row([
                shortened(&row.key),
                row.value.as_deref().map_or("(removed)".to_owned(), shortened),
                bytes(row.value_bytes),
                row.fate.map_or("-".to_owned(), |fate| fate.to_string()),
            ]);
        }
        let more = if self.not_shown > 0 {
            format!("\n… and {} more: --limit", count(self.not_shown))
        } else {
            String::new()
        };
        format!("{table}{more}")
    }
}

/// A key as it is exported: nothing of it is lost in a text.
#[derive(Debug, Serialize)]
pub(super) struct Exported {
    key: String,
    value: Option<String>,
    expires_at_ms: Option<u64>,
}

impl Exported {
    pub(super) fn of(key: &SalvageKey) -> Exported {
        Exported { key: base64(&key.key), value: key.value.as_deref().map(base64), expires_at_ms: key.expires_at_ms }
    }
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// RFC 4648, with padding.
fn base64(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |at: usize| u32::from(chunk.get(at).copied().unwrap_or_default());
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for place in 0..4 {
            let digit = ALPHABET[(bits >> (18 - 6 * place) & 63) as usize];
            text.push(if place <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

#[derive(Debug, Serialize)]
pub(super) struct Report {
    bundles: Vec<String>,
    policy: ReplayPolicy,
    dry_run: bool,
    #[serde(flatten)]
    report: ReplayReport,
}

impl Report {
    pub(super) fn of(
        bundles: impl Iterator<Item = SalvageId>,
        policy: ReplayPolicy,
        dry_run: bool,
        report: ReplayReport,
    ) -> Report {
        Report { bundles: bundles.map(|id| id.to_string()).collect(), policy, dry_run, report }
    }
}

impl Show for Report {
    fn text(&self) -> String {
        let ReplayReport { restored, changed, deleted, unknown, expired, failed } = self.report;
        let mut table = Table::new(&["keys", ">"]);
        let written = if self.dry_run { "would be written back" } else { "written back" };
        table.row([written.to_owned(), count(restored)]);
        for (what, keys) in [
            ("left: changed since", changed),
            ("left: deleted since", deleted),
            ("left: can't be told", unknown),
            ("left: expired", expired),
            ("failed", failed),
        ] {
            if keys > 0 {
                table.row([what.to_owned(), count(keys)]);
            }
        }
        table.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_what_everybody_reads() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        assert_eq!(base64(&[0xff, 0xfe]), "//4=");
    }

    #[test]
    fn a_binary_key_does_not_spoil_the_terminal() {
        assert_eq!(shortened("a\u{1b}[2J"), "a·[2J");
    }
}
