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
            Done::new(if deleted.existed { "deleted" } else { "nothing to delete" }, &deleted.meta).version(deleted.version)
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
