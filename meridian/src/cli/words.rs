//! Words people type: consistency levels, durations, versions, labels.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use meridian_client::Session;
use meridian_types::{Hlc, KeyStart, RegionId, StalePolicy, Version, WriteAck};

use super::exit::Failure;

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    Strong,
    Session,
    Bounded(Duration),
    Eventual,
}

/// Flags of every read.
#[derive(Clone, Debug, Args)]
pub(super) struct ReadFlags {
    /// How fresh: strong, session, bounded:500ms, eventual [default: strong; session in active-active buckets].
    #[arg(long, value_name = "LEVEL", value_parser = parse_level)]
    pub(super) read: Option<Level>,
    /// When the nearest replica is too stale: wait, redirect, fail.
    #[arg(long, value_name = "WHAT", value_parser = parse_stale, default_value = "wait")]
    pub(super) when_stale: StalePolicy,
    #[command(flatten)]
    pub(super) session: SessionFlag,
    #[command(flatten)]
    pub(super) patience: Patience,
}

/// Flags of every write.
#[derive(Clone, Debug, Args)]
pub(super) struct WriteFlags {
    /// How durable: policy, local, majority, all, or a number of regions; never less than the bucket's policy.
    #[arg(long, value_name = "ACK", value_parser = parse_ack, default_value = "policy")]
    pub(super) ack: WriteAck,
    #[command(flatten)]
    pub(super) session: SessionFlag,
    #[command(flatten)]
    pub(super) patience: Patience,
}

/// How long to wait.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct Patience {
    /// Give up after this long.
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "10s")]
    pub(super) deadline: Duration,
}

/// A session kept in a file between commands.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct SessionFlag {
    /// Keep what this session has seen in a file: no later command with it goes behind that, in whatever region.
    #[arg(long = "session", value_name = "FILE")]
    file: Option<PathBuf>,
}

impl SessionFlag {
    /// The session so far; a new one where there is no file yet.
    pub(super) fn load(&self) -> anyhow::Result<Session> {
        let Some(file) = &self.file else { return Ok(Session::new()) };
        match std::fs::read(file) {
            Ok(token) => Ok(Session::from_token(&token)?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Session::new()),
            Err(error) => Err(error).with_context(|| format!("cannot read the session {}", file.display())),
        }
    }

    /// Whether there is anything to keep.
    pub(super) fn is_used(&self) -> bool {
        self.file.is_some()
    }

    /// Keeps what has been seen.
    pub(super) fn store(&self, session: &Session) -> anyhow::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        std::fs::write(file, session.token()).with_context(|| format!("cannot write the session {}", file.display()))
    }
}

pub(super) fn parse_level(text: &str) -> Result<Level, String> {
    match text {
        "strong" => Ok(Level::Strong),
        "session" => Ok(Level::Session),
        "eventual" => Ok(Level::Eventual),
        other => match other.strip_prefix("bounded:") {
            Some(bound) => parse_duration(bound).map(Level::Bounded),
            None => Err("use strong, session, bounded:500ms or eventual".to_owned()),
        },
    }
}

pub(super) fn parse_stale(text: &str) -> Result<StalePolicy, String> {
    match text {
        "wait" => Ok(StalePolicy::Wait),
        "redirect" => Ok(StalePolicy::Redirect),
        "fail" => Ok(StalePolicy::Fail),
        _ => Err("use wait, redirect or fail".to_owned()),
    }
}

pub(super) fn parse_ack(text: &str) -> Result<WriteAck, String> {
    match text {
        "policy" => Ok(WriteAck::Policy),
        "local" => Ok(WriteAck::Local),
        "majority" => Ok(WriteAck::Majority),
        "all" => Ok(WriteAck::All),
        number => match number.parse() {
            Ok(regions @ 1..) => Ok(WriteAck::Regions(regions)),
            _ => Err("use policy, local, majority, all, or a number of regions".to_owned()),
        },
    }
}

/// `250us`, `80ms`, `1.5s`, `10m`, `1h`.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let bad = || "write a time such as 250us, 80ms, 1.5s, 10m or 1h".to_owned();
    let unit = [("us", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)]
        .into_iter()
        .find_map(|(suffix, unit)| Some((text.strip_suffix(suffix)?.parse::<f64>().ok()?, unit)));
    let (number, unit) = unit.ok_or_else(bad)?;
    Duration::try_from_secs_f64(number * unit).map_err(|_| bad())
}

/// A version as it is printed: `<milliseconds>.<counter>@<region number>`.
pub(super) fn parse_version(text: &str) -> Result<Version, String> {
    let bad = || "write a version as `kv get` prints it, such as 1763630000000.0@1".to_owned();
    let (hlc, region) = text.split_once('@').ok_or_else(bad)?;
    let (millis, counter) = hlc.split_once('.').ok_or_else(bad)?;
    let millis: u64 = millis.parse().map_err(|_| bad())?;
    let counter: u16 = counter.parse().map_err(|_| bad())?;
    // 48 bits of milliseconds: more is no time that was ever printed.
    let hlc = (millis < 1 << 48).then(|| Hlc(Hlc::from_millis(millis).0 | u64::from(counter))).ok_or_else(bad)?;
    Ok(Version { hlc, region: RegionId(region.parse().map_err(|_| bad())?) })
}

/// `key=value`.
pub(super) fn parse_pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write key=value")?;
    Ok((key.to_owned(), value.to_owned()))
}

/// A number of bytes: `256`, `4k`, `1m`.
pub(super) fn parse_size(text: &str) -> Result<usize, String> {
    let (digits, unit) = match text.to_ascii_lowercase() {
        ref t if t.ends_with('k') => (&text[..text.len() - 1], 1 << 10),
        ref t if t.ends_with('m') => (&text[..text.len() - 1], 1 << 20),
        _ => (text, 1),
    };
    let bad = || "write a size such as 256, 4k or 1m".to_owned();
    digits.parse::<usize>().map_err(|_| bad())?.checked_mul(unit).ok_or_else(bad)
}

/// Bytes as text where they are text, else as `0x…`.
pub(super) fn printable(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(|c| c.is_control() && c != '\n' && c != '\t') => text.to_owned(),
        _ => "0x".to_owned() + &bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>(),
    }
}

/// How a key begins, on one line; with `…` where it goes on.
pub(super) fn key_start(start: &KeyStart) -> String {
    let bytes = start.as_bytes();
    // Text that was cut within a letter is text still.
    let whole = match std::str::from_utf8(bytes) {
        Err(why) if start.is_cut() && why.error_len().is_none() => &bytes[..why.valid_up_to()],
        _ => bytes,
    };
    let text = printable(whole).replace('\n', "\\n").replace('\t', "\\t");
    if start.is_cut() { text + "…" } else { text }
}

/// The content of `-` (stdin), `@FILE`, or the text itself.
pub(super) fn value_of(text: &str) -> anyhow::Result<Vec<u8>> {
    // One byte more than the largest value, so that the store can say what is wrong with it.
    let limit = meridian_types::key::VALUE_BYTES_MAX as u64 + 1;
    let read = |source: &mut dyn std::io::Read| -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut std::io::Read::take(source, limit), &mut bytes)?;
        Ok(bytes)
    };
    match (text, text.strip_prefix('@')) {
        ("-", _) => read(&mut std::io::stdin().lock()).context("cannot read stdin"),
        (_, Some(file)) => {
            let mut file_handle =
                std::fs::File::open(file).map_err(|error| Failure::failed(format!("cannot read {file}: {error}")))?;
            read(&mut file_handle).with_context(|| format!("cannot read {file}"))
        }
        _ => Ok(text.as_bytes().to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_acks_and_times_read_as_people_write_them() {
        assert_eq!(parse_level("bounded:1.5s"), Ok(Level::Bounded(Duration::from_millis(1500))));
        assert_eq!(parse_level("session"), Ok(Level::Session));
        assert!(parse_level("bounded").is_err() && parse_level("bounded:5").is_err());
        assert_eq!(parse_ack("2"), Ok(WriteAck::Regions(2)));
        assert!(parse_ack("0").is_err() && parse_ack("most").is_err());
        assert_eq!(parse_duration("250us"), Ok(Duration::from_micros(250)));
        assert_eq!(parse_duration("10m"), Ok(Duration::from_secs(600)));
        assert!(parse_duration("-1s").is_err() && parse_duration("ms").is_err());
        assert_eq!(parse_size("4k"), Ok(4096));
        assert!(parse_size("k").is_err() && parse_size("9999999999999999999m").is_err());
    }

    #[test]
    fn a_version_is_read_as_it_is_printed() {
        let version = Version { hlc: Hlc((1_763_630_000_000 << 16) | 7), region: RegionId(3) };
        assert_eq!(parse_version(&version.to_string()), Ok(version));
        for bad in ["", "1@1", "1.2", "x.0@1", "1.70000@1", "999999999999999999.0@1"] {
            assert!(parse_version(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn bytes_print_as_text_where_they_are_text() {
        assert_eq!(printable("é".as_bytes()), "é");
        assert_eq!(printable(&[0, 255]), "0x00ff");
        assert_eq!(printable(b"a\x1b[31m"), "0x611b5b33316d", "no terminal escapes from data");
    }

    #[test]
    fn the_start_of_a_key_is_one_line_and_says_whether_it_is_cut() {
        let shown = |key: &[u8]| KeyStart::of(key).map(|start| key_start(&start));
        assert_eq!(shown(b"order/17").as_deref(), Some("order/17"));
        assert_eq!(shown(b"a\nb\tc").as_deref(), Some("a\\nb\\tc"));
        assert_eq!(shown(&[0, 255]).as_deref(), Some("0x00ff"));
        assert_eq!(shown("xé".repeat(40).as_bytes()), Some("xé".repeat(21) + "x…"), "64 bytes end within a letter");
    }
}
