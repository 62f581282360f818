//! Whether primaries could move, as people and programs read it.

use meridian_client::{Check, Verdict};
use serde::Serialize;

use crate::output::{Show, Table};

/// The findings of a check.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    ready: bool,
    findings: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    ok: bool,
    /// Whether it is about the time after the move.
    afterwards: bool,
    what: &'static str,
    of: String,
    found: String,
    remedy: Option<String>,
}

impl Report {
    pub(super) fn of(check: &Check) -> Report {
        let row = |finding: &meridian_client::Finding| {
            let (ok, found, remedy) = match &finding.verdict {
                Verdict::Ok { found } => (true, found.clone(), None),
                Verdict::Fail { found, remedy } => (false, found.clone(), Some(remedy.clone())),
            };
            Row {
                ok,
                afterwards: finding.is_about_afterwards(),
                what: finding.what,
                of: finding.of.clone(),
                found,
                remedy,
            }
        };
        Report { ready: check.is_ready(), findings: check.findings.iter().map(row).collect() }
    }

    /// How many are in the way.
    pub(super) fn failures(&self) -> usize {
        self.findings.iter().filter(|row| !row.ok).count()
    }

    /// How many are in the way of the move itself.
    pub(super) fn obstacles(&self) -> usize {
        self.findings.iter().filter(|row| !row.ok && !row.afterwards).count()
    }

    /// What is to be done before the old primary's region is switched off, a line each.
    pub(super) fn afterwards(&self) -> Vec<String> {
        let later = self.findings.iter().filter(|row| !row.ok && row.afterwards);
        later.map(|row| format!("{}: {}; {}", row.of, row.found, row.remedy.as_deref().unwrap_or_default())).collect()
    }

    /// What is in the way, as far as one look can be told from another.
    pub(super) fn in_the_way(&self) -> Vec<(&'static str, String)> {
        self.findings.iter().filter(|row| !row.ok).map(|row| (row.what, row.of.clone())).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.findings.len()
    }
}

impl Show for Report {
    fn text(&self) -> String {
        let mut table = Table::new(&["", "what", "of", "found", "do"]);
        for row in &self.findings {
            table.row([
                if row.ok { "ok" } else { "FAIL" }.to_owned(),
                row.what.to_owned(),
                row.of.clone(),
                row.found.clone(),
                row.remedy.clone().unwrap_or_default(),
            ]);
        }
        let verdict = match self.failures() {
            0 => "ready: nothing is in the way".to_owned(),
            failures => format!("NOT ready: {failures} of {} findings in the way", self.len()),
        };
        format!("{table}\n\n{verdict}")
    }
}

#[cfg(test)]
mod tests {
    use meridian_client::Finding;

    use super::*;

    #[test]
    fn a_check_names_what_is_in_the_way_and_the_remedy() {
        let ok = Finding { what: "disk", of: "eu-west-1".into(), verdict: Verdict::Ok { found: "60 % free".into() } };
        let verdict = Verdict::Fail { found: "3000 ms, 12 operations behind".into(), remedy: "write less".into() };
        let lag = Finding { what: "lag", of: "orders".into(), verdict };
        let verdict = Verdict::Fail { found: "2 of the 3 regions".into(), remedy: "ask for fewer".into() };
        let acks = Finding { what: "acks", of: "orders without us-east".into(), verdict };
        let later = Report::of(&Check { findings: vec![ok.clone(), acks] });
        assert_eq!((later.failures(), later.obstacles()), (1, 0), "the move does not need it");
        assert_eq!(later.afterwards(), ["orders without us-east: 2 of the 3 regions; ask for fewer"]);
        let report = Report::of(&Check { findings: vec![ok, lag] });
        assert_eq!((report.failures(), report.obstacles()), (1, 1));
        assert_eq!(report.in_the_way(), [("lag", "orders".to_owned())]);
        let text = report.text();
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        assert_eq!(lines[2], " ok     disk   eu-west-1   60 % free");
        assert_eq!(lines[3], " FAIL   lag    orders      3000 ms, 12 operations behind   write less");
        assert_eq!(lines[5], "NOT ready: 1 of 2 findings in the way");
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(
            (json["ready"].as_bool(), json["findings"][1]["remedy"].as_str()),
            (Some(false), Some("write less"))
        );
    }
}
