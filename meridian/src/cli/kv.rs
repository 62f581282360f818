//! `meridian kv`: one key at a time, and a few.

use std::time::Duration;

use clap::Subcommand;
use meridian_client::{Bucket, Client, Condition, Meta, ReadCall, Session, WriteCall};
use meridian_types::{BucketName, Version};
use serde::Serialize;

use super::connect::Connection;
use super::exit::Failure;
use super::words::{Level, ReadFlags, WriteFlags, parse_duration, parse_pair, parse_version, printable, value_of};
use crate::output::{Format, Show, Table, count, duration, note, raw, show};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Read a key; the value goes to stdout, how fresh it is to stderr.
    Get {
        /// The bucket.
        bucket: BucketName,
        /// The key.
        key: String,
        #[command(flatten)]
        flags: ReadFlags,
    },
    /// Set a key.
    Put {
        /// The bucket.
        bucket: BucketName,
        /// The key.
        key: String,
        /// The value; `-` reads stdin, `@FILE` a file.
        value: String,
        /// Remove it again after this long.
        #[arg(long, value_parser = parse_duration)]
        ttl: Option<Duration>,
        /// Only if the key is absent.
        #[arg(long)]
        if_absent: bool,
        #[command(flatten)]
        flags: WriteFlags,
    },
    /// Remove a key.
    Delete {
        /// The bucket.
        bucket: BucketName,
        /// The key.
        key: String,
        #[command(flatten)]
        flags: WriteFlags,
    },
    /// Add to the end of a value.
    Append {
        /// The bucket.
        bucket: BucketName,
        /// The key.
        key: String,
        /// What to add; `-` reads stdin, `@FILE` a file.
        value: String,
        #[command(flatten)]
        flags: WriteFlags,
    },
    /// Add to a counter.
    Incr {
        /// The bucket.
        bucket: BucketName,
        /// The key.
        key: String,
        /// How much; may be negative.
        #[arg(default_value_t = 1, allow_negative_numbers = true)]
        by: i64,
        #[command(flatten)]
        flags: WriteFlags,
    },
    /// Set a key if it is still as expected.
    Cas {
        /// The bucket.
        bucket: BucketName,
        /// The key.
        key: String,
        /// The value; `-` reads stdin, `@FILE` a file.
        value: String,
        /// The version it must have, as `kv get` prints it, or `absent`.
        #[arg(long, value_parser = parse_expected)]
        expect: Expected,
        #[command(flatten)]
        flags: WriteFlags,
    },
    /// List the keys under a prefix.
    Scan {
        /// The bucket.
        bucket: BucketName,
        /// The prefix [default: every key].
        #[arg(default_value = "")]
        prefix: String,
        /// Stop after so many.
        #[arg(long, default_value_t = 1000)]
        limit: usize,
        /// Without values.
        #[arg(long)]
        keys_only: bool,
        #[command(flatten)]
        flags: ReadFlags,
    },
    /// Read several keys.
    Mget {
        /// The bucket.
        bucket: BucketName,
        /// The keys.
        #[arg(required = true)]
        keys: Vec<String>,
        #[command(flatten)]
        flags: ReadFlags,
    },
    /// Set several keys of one shard, all or none.
    Mput {
        /// The bucket.
        bucket: BucketName,
        /// key=value, repeatedly.
        #[arg(required = true, value_parser = parse_pair)]
        items: Vec<(String, String)>,
        #[command(flatten)]
        flags: WriteFlags,
    },
}

/// What a compare-and-set expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Expected(Option<Version>);

fn parse_expected(text: &str) -> Result<Expected, String> {
    match text {
        "absent" => Ok(Expected(None)),
        version => parse_version(version).map(|version| Expected(Some(version))),
    }
}

pub(super) async fn run(command: Command, connection: &Connection, format: Format) -> anyhow::Result<()> {
    let client = connection.connect().await?;
    match command {
        Command::Get { bucket, key, flags } => get(&client, &bucket, &key, &flags, format).await,
        Command::Mget { bucket, keys, flags } => mget(&client, &bucket, &keys, &flags, format).await,
        Command::Scan { bucket, prefix, limit, keys_only, flags } => {
            scan(&client, &bucket, &prefix, limit, keys_only, &flags, format).await
        }
        write => self::write(&client, write, format).await,
    }
}

async fn write(client: &Client, command: Command, format: Format) -> anyhow::Result<()> {
    let session = flags_of(&command).session.load()?;
    let done = match &command {
        Command::Put { bucket, key, value, ttl, if_absent, flags } => {
            let (bucket, value) = (open(client, bucket)?, value_of(value)?);
            if *if_absent {
                let call = bucket.put_if_absent(key, value);
                let call = if let Some(ttl) = ttl { call.ttl(*ttl) } else { call };
                conditional(set(call, flags, &session).await?)?
            } else {
                let call = bucket.put(key, value);
                let call = if let Some(ttl) = ttl { call.ttl(*ttl) } else { call };
                let written = set(call, flags, &session).await?;
                Done::new("written", &written.meta).version(written.version)
            }
        }
        Command::Delete { bucket, key, flags } => {
            let deleted = set(open(client, bucket)?.delete(key), flags, &session).await?;
            Done::new(if deleted.existed { "deleted" } else { "nothing to delete" }, &deleted.meta)
                .version(deleted.version)
        }
        Command::Append { bucket, key, value, flags } => {
            let appended = set(open(client, bucket)?.append(key, value_of(value)?), flags, &session).await?;
            Done::new("appended", &appended.meta).version(appended.version).length(appended.bytes)
        }
        Command::Incr { bucket, key, by, flags } => {
            let counted = set(open(client, bucket)?.increment(key, *by), flags, &session).await?;
            Done::new("counted", &counted.meta).version(counted.version).count(counted.value)
        }
        Command::Cas { bucket, key, value, expect, flags } => {
            let call = open(client, bucket)?.compare_and_set(key, expect.0, value_of(value)?);
            conditional(set(call, flags, &session).await?)?
        }
        Command::Mput { bucket, items, flags } => {
            let items = items.iter().map(|(key, value)| (key.as_str(), value.as_str()));
            let written = set(open(client, bucket)?.multi_put(items), flags, &session).await?;
            Done::new("written", &written.meta).version(written.version)
        }
        Command::Get { .. } | Command::Mget { .. } | Command::Scan { .. } => return Ok(()),
    };
    flags_of(&command).session.store(&session)?;
    show(format, &done)
}

async fn get(client: &Client, bucket: &BucketName, key: &str, flags: &ReadFlags, format: Format) -> anyhow::Result<()> {
    let session = flags.session.load()?;
    let call = read(open(client, bucket)?.get(key), client, bucket, flags, &session).await?;
    let got = call.await?;
    flags.session.store(&session)?;
    match (format, got.value()) {
        (Format::Table, Some(value)) => {
            let mut bytes = value.to_vec();
            // Text gets its newline; other content must come out as it is.
            if std::str::from_utf8(value).is_ok() && !value.ends_with(b"\n") {
                bytes.push(b'\n');
            }
            raw(&bytes)?;
            let version = got.version().map(|version| format!(", version {version}")).unwrap_or_default();
            note(&format!("{}{version}", freshness(&got.meta)));
            Ok(())
        }
        (Format::Json, _) => show(format, &Answer::of(key, &got.found, &got.meta)),
        (Format::Table, None) => {
            Err(Failure::failed(format!("`{key}` is absent from `{bucket}` ({})", freshness(&got.meta))).into())
        }
    }
}

async fn mget(
    client: &Client,
    bucket: &BucketName,
    keys: &[String],
    flags: &ReadFlags,
    format: Format,
) -> anyhow::Result<()> {
    let session = flags.session.load()?;
    let call = read(open(client, bucket)?.multi_get(keys.iter()), client, bucket, flags, &session).await?;
    let got = call.await?;
    flags.session.store(&session)?;
    let answers = keys.iter().zip(&got.found).map(|(key, found)| Answer::of(key, found, &got.meta)).collect();
    note(&freshness(&got.meta));
    show(format, &Answers { answers })
}

async fn scan(
    client: &Client,
    bucket: &BucketName,
    prefix: &str,
    limit: usize,
    keys_only: bool,
    flags: &ReadFlags,
    format: Format,
) -> anyhow::Result<()> {
    let session = flags.session.load()?;
    let level = level(client, bucket, flags).await?;
    let mut scan = open(client, bucket)?.scan(prefix).session(&session).when_stale(flags.when_stale);
    scan = scan.deadline(flags.patience.deadline).page_size(u32::try_from(limit).unwrap_or(u32::MAX));
    if keys_only {
        scan = scan.keys_only();
    }
    scan = match level {
        Level::Strong => scan.strong(),
        Level::Session => scan,
        Level::Bounded(bound) => scan.bounded(bound),
        Level::Eventual => scan.eventual(),
    };
    let mut answers = Vec::new();
    while answers.len() < limit
        && let Some(page) = scan.next_page().await?
    {
        let room = limit - answers.len();
        answers.extend(
            page.items
                .iter()
                .take(room)
                .map(|item| Answer::of(&printable(&item.key), &Some(item.found.clone()), &page.meta)),
        );
    }
    flags.session.store(&session)?;
    show(format, &Answers { answers })
}

fn open(client: &Client, bucket: &BucketName) -> anyhow::Result<Bucket> {
    Ok(client.bucket(bucket.as_str())?)
}

/// The level that was asked for, or the strongest that the bucket has.
async fn level(client: &Client, bucket: &BucketName, flags: &ReadFlags) -> anyhow::Result<Level> {
    if let Some(level) = flags.read {
        return Ok(level);
    }
    let topology = client.admin().topology().await?;
    let has_primary = topology.bucket_named(bucket.as_str()).is_none_or(|bucket| bucket.policy.has_primary());
    Ok(if has_primary { Level::Strong } else { Level::Session })
}

async fn read<T>(
    call: ReadCall<T>,
    client: &Client,
    bucket: &BucketName,
    flags: &ReadFlags,
    session: &Session,
) -> anyhow::Result<ReadCall<T>> {
    let call = at_level(call.session(session), level(client, bucket, flags).await?);
    Ok(call.when_stale(flags.when_stale).deadline(flags.patience.deadline))
}

/// The call at this level; `session` is what a call with a session has anyway.
pub(super) fn at_level<T>(call: ReadCall<T>, level: Level) -> ReadCall<T> {
    match level {
        Level::Strong => call.strong(),
        Level::Session => call,
        Level::Bounded(bound) => call.bounded(bound),
        Level::Eventual => call.eventual(),
    }
}

fn set<T, L>(call: WriteCall<T, L>, flags: &WriteFlags, session: &Session) -> WriteCall<T, L> {
    let call = call.ack(flags.ack).deadline(flags.patience.deadline);
    if flags.session.is_used() { call.session(session) } else { call }
}

fn flags_of(command: &Command) -> WriteFlags {
    match command {
        Command::Put { flags, .. }
        | Command::Delete { flags, .. }
        | Command::Append { flags, .. }
        | Command::Incr { flags, .. }
        | Command::Cas { flags, .. }
        | Command::Mput { flags, .. } => flags.clone(),
        Command::Get { flags, .. } | Command::Scan { flags, .. } | Command::Mget { flags, .. } => {
            WriteFlags { ack: Default::default(), session: flags.session.clone(), patience: flags.patience }
        }
    }
}

fn conditional(answer: meridian_client::Conditional) -> anyhow::Result<Done> {
    match answer.condition {
        Condition::Held { version } => Ok(Done::new("written", &answer.meta).version(version)),
        Condition::Failed { current: Some(version) } => Err(Failure::failed(format!(
            "the condition did not hold: the key has version {version}; nothing was changed"
        ))
        .into()),
        Condition::Failed { current: None } => {
            Err(Failure::failed("the condition did not hold: the key is absent; nothing was changed").into())
        }
    }
}

/// `answered by eu-west under epoch 1, at most 12 ms stale`.
fn freshness(meta: &Meta) -> String {
    let stale = match meta.staleness {
        Some(bound) if bound.is_zero() => "not stale".to_owned(),
        Some(bound) => format!("at most {} stale", duration(bound)),
        None => "of unknown staleness".to_owned(),
    };
    format!("answered by {} under epoch {}, {stale}", meta.region, meta.epoch)
}

/// A write that was answered.
#[derive(Debug, Serialize)]
struct Done {
    what: &'static str,
    region: String,
    epoch: u64,
    durable_regions: u16,
    durable_nodes: u16,
    attempts: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    length: Option<u64>,
}

impl Done {
    fn new(what: &'static str, meta: &Meta) -> Done {
        let durable = meta.durability.unwrap_or_default();
        Done {
            what,
            region: meta.region.to_string(),
            epoch: meta.epoch.0,
            durable_regions: durable.regions,
            durable_nodes: durable.nodes,
            attempts: meta.attempts,
            version: None,
            count: None,
            length: None,
        }
    }

    fn version(self, version: Version) -> Done {
        Done { version: Some(version.to_string()), ..self }
    }

    fn count(self, count: i64) -> Done {
        Done { count: Some(count), ..self }
    }

    fn length(self, bytes: u64) -> Done {
        Done { length: Some(bytes), ..self }
    }
}

impl Show for Done {
    fn text(&self) -> String {
        let result = match (self.count, self.length) {
            (Some(count), _) => format!(": {count}"),
            (None, Some(length)) => format!(": {} bytes now", count(length)),
            (None, None) => String::new(),
        };
        let version = self.version.as_ref().map(|version| format!(", version {version}")).unwrap_or_default();
        format!(
            "{}{result} (answered by {} under epoch {}, on disk in {} of its regions, {} nodes{version})",
            self.what, self.region, self.epoch, self.durable_regions, self.durable_nodes
        )
    }
}

/// A key as it was read.
#[derive(Debug, Serialize)]
struct Answer {
    key: String,
    found: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at_ms: Option<u64>,
    region: String,
    epoch: u64,
    staleness_ms: Option<f64>,
}

impl Answer {
    fn of(key: &str, found: &Option<meridian_client::Found>, meta: &Meta) -> Answer {
        Answer {
            key: key.to_owned(),
            found: found.is_some(),
            value: found.as_ref().map(|found| printable(&found.value)),
            version: found.as_ref().map(|found| found.version.to_string()),
            expires_at_ms: found.as_ref().and_then(|found| found.expires_at_ms),
            region: meta.region.to_string(),
            epoch: meta.epoch.0,
            staleness_ms: meta.staleness.map(|bound| bound.as_secs_f64() * 1e3),
        }
    }
}

impl Show for Answer {
    fn text(&self) -> String {
        self.value.clone().unwrap_or_default()
    }
}

#[derive(Debug, Serialize)]
struct Answers {
    answers: Vec<Answer>,
}

/// Cells of a table stay on one line.
const CELL_CHARS_MAX: usize = 60;

impl Show for Answers {
    fn text(&self) -> String {
        let mut table = Table::new(&["key", "value", "version"]);
        for answer in &self.answers {
            let value = answer.value.clone().unwrap_or_else(|| "(absent)".to_owned());
            let mut line: String =
                value.chars().map(|c| if c.is_control() { ' ' } else { c }).take(CELL_CHARS_MAX).collect();
            if value.chars().count() > CELL_CHARS_MAX {
                line.push('…');
            }
            table.row([answer.key.clone(), line, answer.version.clone().unwrap_or_default()]);
        }
        if table.is_empty() { "no keys".to_owned() } else { table.to_string() }
    }
}
