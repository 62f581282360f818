//! Moments as people write and read them, in UTC.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::words::parse_duration;

const DAY_S: u64 = 86_400;

/// A moment of the command line: `2026-11-20T02:00Z`, with seconds or without, or `+10m` from now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    /// At a time, in milliseconds since 1970.
    At(u64),
    /// So long from now.
    In(Duration),
}

impl Moment {
    /// As milliseconds since 1970, given the time now.
    pub(super) fn resolve(self, now_ms: u64) -> u64 {
        match self {
            Moment::At(ms) => ms,
            Moment::In(wait) => now_ms.saturating_add(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)),
        }
    }
}

/// This machine's wall clock, in milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Reads a moment.
pub(super) fn parse_moment(text: &str) -> Result<Moment, String> {
    if let Some(wait) = text.strip_prefix('+') {
        return parse_duration(wait).map(Moment::In);
    }
    let bad = || "write a time in UTC such as 2026-11-20T02:00Z or 2026-11-20T02:00:30Z, or +10m from now".to_owned();
    let (date, time) = text.strip_suffix('Z').and_then(|text| text.split_once('T')).ok_or_else(bad)?;
    let date = numbers(date, '-').filter(|it| it.len() == 3).ok_or_else(bad)?;
    let time = numbers(time, ':').filter(|it| matches!(it.len(), 2 | 3)).ok_or_else(bad)?;
    let (year, month, day) = (date[0], date[1], date[2]);
    let (hour, minute, second) = (time[0], time[1], time.get(2).copied().unwrap_or_default());
    let exists = (1970..=9999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=month_days(year, month)).contains(&day)
        && hour < 24
        && minute < 60
        && second < 60;
    let seconds = days_before(year, month, day) * DAY_S + hour * 3600 + minute * 60 + second;
    if exists { Ok(Moment::At(seconds * 1000)) } else { Err(bad()) }
}

/// Reads a time that is over, as milliseconds since 1970: written as a moment, or as that number itself.
pub(super) fn parse_past(text: &str) -> Result<u64, String> {
    if let Ok(ms) = text.parse::<u64>() {
        return Ok(ms);
    }
    match parse_moment(text) {
        Ok(Moment::At(ms)) => Ok(ms),
        Ok(Moment::In(_)) | Err(_) => {
            Err("write a time in UTC such as 2026-11-20T02:00:30Z, or in milliseconds since 1970".to_owned())
        }
    }
}

fn numbers(text: &str, separator: char) -> Option<Vec<u64>> {
    let number = |part: &str| if (1..=4).contains(&part.len()) { part.parse().ok() } else { None };
    text.split(separator).map(number).collect()
}

/// `2026-11-20 02:00:30Z`.
pub(super) fn moment(ms: u64) -> String {
    let (mut days, second) = (ms / 1000 / DAY_S, ms / 1000 % DAY_S);
    let mut year = 1970;
    while days >= year_days(year) {
        days -= year_days(year);
        year += 1;
    }
    let mut month = 1;
    while days >= month_days(year, month) {
        days -= month_days(year, month);
        month += 1;
    }
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!("{year}-{month:02}-{:02} {hour:02}:{minute:02}:{:02}Z", days + 1, second % 60)
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn year_days(year: u64) -> u64 {
    if is_leap(year) { 366 } else { 365 }
}

fn month_days(year: u64, month: u64) -> u64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970 to a day.
fn days_before(year: u64, month: u64, day: u64) -> u64 {
    let years: u64 = (1970..year).map(year_days).sum();
    let months: u64 = (1..month).map(|month| month_days(year, month)).sum();
    years + months + day.saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_read_as_it_is_written() {
        // `date -u -d 2026-11-20T02:00:30Z +%s`
        assert_eq!(parse_moment("2026-11-20T02:00:30Z"), Ok(Moment::At(1_795_140_030_000)));
        assert_eq!(moment(1_795_140_030_000), "2026-11-20 02:00:30Z");
        assert_eq!(parse_moment("2028-02-29T23:59Z"), Ok(Moment::At(1_835_481_540_000)));
        assert_eq!(moment(1_835_481_540_000), "2028-02-29 23:59:00Z");
        assert_eq!(parse_moment("+10m").map(|it| it.resolve(1000)), Ok(601_000));
        for bad in
            ["", "2026-11-20", "2026-02-29T00:00Z", "2026-11-20T24:00Z", "2026-11-20T02:00", "+soon", "99999-1-1T0:0Z"]
        {
            assert!(parse_moment(bad).is_err(), "{bad}");
        }
    }
}
