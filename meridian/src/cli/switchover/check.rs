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
            Row { ok, what: finding.what, of: finding.of.clone(), found, remedy }
        };
        Report { ready: check.is_ready(), findings: check.findings.iter().map(row).collect() }
    }

    /// How many are in the way.
    pub(super) fn failures(&self) -> usize {
        self.findings.iter().filter(|row| !row.ok).count()
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
        let report = Report::of(&Check { findings: vec![ok, lag] });
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
