//! `meridian events`: who changed what, when, and what came of it, as every node remembers it.
//!
//! The ring is bounded: what has fallen out is said, never left out silently.

use std::time::{Duration, Instant};

use clap::Args as ClapArgs;
use meridian_client::{Client, Event, EventPage, EventQuery, Hlc};
use meridian_types::EVENTS_MAX;
use serde::Serialize;

use super::connect::Connection;
use super::exit::Failure;
use super::moment::{Moment, moment, now_ms, parse_moment};
use super::stop;
use super::words::parse_duration;
use crate::output::{Format, Show, Table, note, show, text};

/// How often a watch looks.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// For how long nobody may answer a watch: an election and then some.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// What a look without `--since` shows: a screenful.
const SHOWN: usize = 40;

/// How wide the last column of the table may be, in characters.
const DETAIL_WIDTH: usize = 80;

/// What a caller's name begins with; the same for all, so people don't need it.
const SCHEME: &str = "meridian://";

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// From when on: 10m ago, a time in UTC such as 2026-11-20T02:00Z, or the metadata index of an event.
    #[arg(long, value_name = "WHEN", value_parser = parse_since)]
    since: Option<Since>,
    /// The last so many [default: 40; with --since all that are remembered].
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=EVENTS_MAX as i64))]
    limit: Option<u32>,
    /// Go on with what happens, until interrupted.
    #[arg(short, long)]
    watch: bool,
}

/// From when on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Since {
    Index(u64),
    Ago(Duration),
    At(u64),
}

fn parse_since(written: &str) -> Result<Since, String> {
    // Nothing has happened yet from then on.
    let past = !written.starts_with('+');
    if let Ok(index) = written.parse()
        && past
    {
        return Ok(Since::Index(index));
    }
    if let Ok(ago) = parse_duration(written)
        && past
    {
        return Ok(Since::Ago(ago));
    }
    match parse_moment(written) {
        Ok(Moment::At(ms)) => Ok(Since::At(ms)),
        Ok(Moment::In(_)) | Err(_) => Err(
            "write how long ago, such as 10m, a time in UTC such as 2026-11-20T02:00Z, or the metadata index of an event"
                .to_owned(),
        ),
    }
}

impl Args {
    fn query(&self, now_ms: u64) -> EventQuery {
        // Before the first timestamp of a millisecond: an event of that very millisecond counts.
        let from = |ms: u64| Hlc(Hlc::from_millis(ms).0.saturating_sub(1));
        let whole = EventQuery::default();
        let asked = match self.since {
            None => EventQuery { limit: SHOWN, ..whole },
            Some(Since::Index(index_min)) => EventQuery { index_min, ..whole },
            Some(Since::At(ms)) => EventQuery { after: from(ms), ..whole },
            Some(Since::Ago(ago)) => {
                let ago = u64::try_from(ago.as_millis()).unwrap_or(u64::MAX);
                EventQuery { after: from(now_ms.saturating_sub(ago)), ..whole }
            }
        };
        let limit = self.limit.and_then(|limit| usize::try_from(limit).ok());
        EventQuery { limit: limit.unwrap_or(asked.limit), ..asked }
    }
}

pub(super) async fn run(args: Args, connection: &Connection, format: Format) -> anyhow::Result<()> {
    let client = connection.connect().await?;
    let query = args.query(now_ms());
    let page = client.admin().events(&query).await?;
    // What is asked for by index or time may have fallen out; without, the last ones are all that is meant.
    if args.since.is_some() && lacks_some(&page, &query) {
        note(&format!(
            "what happened before {} is no longer remembered (the last {EVENTS_MAX} events are): see the nodes' logs",
            moment(page.remembered_from.millis())
        ));
    }
    if !args.watch {
        return show(format, &Report::of(&page));
    }
    tokio::select! {
        ended = watch(&client, query, page, format) => ended,
        signal = stop::signalled() => signal.map(|_| ()),
    }
}

/// Whether some of what was asked for has fallen out of the ring. What `--limit` leaves out is not meant.
fn lacks_some(page: &EventPage, query: &EventQuery) -> bool {
    page.may_lack(query.after)
        && page.events.first().is_some_and(|it| it.at == page.remembered_from && it.index > query.index_min)
}

/// Tells every event, and goes on.
async fn watch(client: &Client, query: EventQuery, first: EventPage, format: Format) -> anyhow::Result<()> {
    let (mut page, mut cursor, mut heard) = (first, query.after, Instant::now());
    loop {
        for event in &page.events {
            text(&line(event, format)?)?;
        }
        // Never back: another node may answer, and have heard less.
        cursor = page.events.last().map_or(cursor, |last| last.at.max(cursor));
        page = loop {
            tokio::time::sleep(LOOK_EVERY).await;
            match client.admin().events(&EventQuery { after: cursor, ..EventQuery::default() }).await {
                Ok(page) => break page,
                Err(error) if heard.elapsed() > SILENCE_MAX => {
                    let why = format!("nobody tells of events any more ({}): see `meridian status`", error.message);
                    return Err(Failure::failed(why).into());
                }
                Err(_) => {}
            }
        };
        heard = Instant::now();
        if page.may_lack(cursor) {
            note("more happened at once than is remembered: some events are missing here; see the nodes' logs");
        }
    }
}

/// An event as a line of a watch: JSON for programs, columns that stay where they are for people.
fn line(event: &Event, format: Format) -> anyhow::Result<String> {
    let row = Row::of(event);
    Ok(match format {
        Format::Json => serde_json::to_string(&row)?,
        Format::Table => format!(
            " {}  {:>6}  {:<14}  {:<28}  {:<20}  {}",
            moment(row.at_ms),
            row.index,
            row.verb,
            person(&row.who),
            row.subject,
            row.detail
        )
        .trim_end()
        .to_owned(),
    })
}

/// Who asked, as people read it: `client/operator`, `node/us-east/us-east-1`.
fn person(who: &str) -> &str {
    who.strip_prefix(SCHEME).unwrap_or(who)
}

#[derive(Debug, Serialize)]
struct Report {
    /// The metadata index up to which the node that answered knows.
    metadata_index: u64,
    /// When the oldest event that is remembered at all happened; null until older ones have been forgotten.
    remembered_from_ms: Option<u64>,
    events: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    index: u64,
    at_ms: u64,
    /// The timestamp itself; no two events share it.
    at: String,
    who: String,
    verb: String,
    subject: String,
    detail: String,
}

impl Row {
    fn of(event: &Event) -> Row {
        Row {
            index: event.index,
            at_ms: event.at.millis(),
            at: event.at.to_string(),
            who: event.who.clone(),
            verb: event.verb.clone(),
            subject: event.subject.clone(),
            detail: event.detail.clone(),
        }
    }
}

impl Report {
    fn of(page: &EventPage) -> Report {
        Report {
            metadata_index: page.index,
            remembered_from_ms: (page.remembered_from > Hlc(0)).then(|| page.remembered_from.millis()),
            events: page.events.iter().map(Row::of).collect(),
        }
    }
}

impl Show for Report {
    fn text(&self) -> String {
        if self.events.is_empty() {
            return format!("no events since then, up to metadata index {}", self.metadata_index);
        }
        let mut table = Table::new(&["when", ">index", "what", "by", "to what", "what changed"]);
        for row in &self.events {
            table.row([
                moment(row.at_ms),
                row.index.to_string(),
                row.verb.clone(),
                person(&row.who).to_owned(),
                row.subject.clone(),
                wrapped(&row.detail),
            ]);
        }
        table.to_string()
    }
}

/// The text in lines of about [`DETAIL_WIDTH`], so that one that is long does not push the table off the screen.
fn wrapped(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.is_empty() || line.chars().count() + word.chars().count() < DETAIL_WIDTH => {
                line.push_str(if line.is_empty() { "" } else { " " });
                line.push_str(word);
            }
            Some(_) | None => lines.push(word.to_owned()),
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(since: Option<&str>, limit: Option<u32>) -> Args {
        Args { since: since.map(|since| parse_since(since).unwrap()), limit, watch: false }
    }

    fn event(index: u64, at_ms: u64) -> Event {
        Event {
            index,
            at: Hlc::from_millis(at_ms),
            who: "meridian://client/alice".to_owned(),
            verb: "observe".to_owned(),
            subject: "pay".to_owned(),
            detail: "its primary would have been replaced".to_owned(),
        }
    }

    #[test]
    fn since_is_an_index_a_time_or_how_long_ago() {
        let all = EventQuery::default();
        assert_eq!(args(None, None).query(9).limit, SHOWN);
        assert_eq!(args(Some("17"), None).query(9), EventQuery { index_min: 17, ..all });
        let ago = args(Some("10s"), Some(5)).query(60_000);
        assert_eq!((ago.index_min, ago.limit), (0, 5));
        assert!(ago.after < Hlc::from_millis(50_000) && ago.after >= Hlc::from_millis(49_999));
        let at = args(Some("2026-11-20T02:00:30Z"), None).query(9);
        assert_eq!(at.after.millis(), 1_795_140_029_999);
        assert_eq!(args(Some("9h"), None).query(9).after, Hlc(0), "there is nothing before 1970");
        for bad in ["", "soon", "+10m", "-3"] {
            assert!(parse_since(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_event_reads_as_a_row_and_as_a_line() {
        let page = EventPage { events: vec![event(7, 1000), event(7, 2000)], remembered_from: Hlc(0), index: 8 };
        let table = Report::of(&page).text();
        assert!(table.contains(" 1970-01-01 00:00:01Z       7   observe   client/alice   pay "), "{table}");
        let told = line(&page.events[0], Format::Table).unwrap();
        assert!(told.starts_with(" 1970-01-01 00:00:01Z       7  observe"), "{told}");
        assert!(told.ends_with("  its primary would have been replaced"), "{told}");
        let json: serde_json::Value = serde_json::from_str(&line(&page.events[1], Format::Json).unwrap()).unwrap();
        assert_eq!((&json["at_ms"], &json["who"]), (&2000.into(), &"meridian://client/alice".into()));
    }

    #[test]
    fn what_is_long_is_told_in_lines_and_nothing_of_it_is_lost() {
        assert_eq!(wrapped("short"), "short");
        let long = "a word and another ".repeat(20);
        let lines = wrapped(&long);
        assert!(lines.lines().count() > 4 && lines.lines().all(|line| line.chars().count() <= DETAIL_WIDTH), "{lines}");
        assert_eq!(lines.replace('\n', " "), long);
        assert_eq!(wrapped(&"x".repeat(200)), "x".repeat(200), "one word is one line");
    }

    #[test]
    fn only_what_was_asked_for_can_be_missing() {
        let ring = |remembered_from: u64| {
            let events = (5..9).map(|index| event(index, index)).collect();
            EventPage { events, remembered_from: Hlc::from_millis(remembered_from), index: 9 }
        };
        let since = |index_min| EventQuery { index_min, ..EventQuery::default() };
        assert!(!lacks_some(&ring(0), &since(2)), "nothing has fallen out yet");
        assert!(lacks_some(&ring(5), &since(2)) && !lacks_some(&ring(5), &since(5)));
        assert!(!lacks_some(&ring(3), &since(2)), "the limit left out what is older");
        let at = |ms| EventQuery { after: Hlc::from_millis(ms), ..EventQuery::default() };
        assert!(lacks_some(&ring(5), &at(4)) && !lacks_some(&ring(5), &at(5)));
    }
}
