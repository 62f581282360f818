//! Progress of what lasts: rate and ETA on a terminal, one line at the end everywhere.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use super::{bytes, note};

/// A bar on stderr. Cheap to clone; clones move the same bar.
#[derive(Clone, Debug)]
pub struct Progress {
    bar: ProgressBar,
    label: String,
    unit: Unit,
}

#[derive(Clone, Copy, Debug)]
enum Unit {
    Bytes,
    Steps(&'static str),
}

impl Progress {
    /// Progress over this many bytes.
    pub fn of_bytes(label: &str, total: u64) -> Progress {
        Progress::new(label, total, Unit::Bytes)
    }

    /// Progress over this many things, called `what` in the plural.
    pub fn of_steps(label: &str, total: u64, what: &'static str) -> Progress {
        Progress::new(label, total, Unit::Steps(what))
    }

    fn new(label: &str, total: u64, unit: Unit) -> Progress {
        // A draw target of stderr hides itself where stderr is no terminal.
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(8));
        let template = match unit {
            Unit::Bytes => "  {prefix:<34} {bar:28} {percent:>3} % {bytes:>11} {bytes_per_sec:>13} {left:>10}",
            Unit::Steps(_) => "  {prefix:<34} {bar:28} {percent:>3} % {human_pos:>11} {per_sec:>13} {left:>10}",
        };
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let left = |state: &ProgressState, text: &mut dyn std::fmt::Write| {
            let _ = write!(text, "ETA {}s", state.eta().as_secs());
        };
        bar.set_style(style.progress_chars("━╸ ").with_key("left", left));
        bar.set_prefix(label.to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        Progress { bar, label: label.to_owned(), unit }
    }

    /// This much more is done.
    pub fn advance(&self, by: u64) {
        self.bar.inc(by);
    }

    /// Takes the bar away and leaves one line: how much, how long, how fast.
    pub fn finish(&self) {
        let (done, elapsed) = (self.bar.position(), self.bar.elapsed());
        self.bar.finish_and_clear();
        let rate = done as f64 / elapsed.as_secs_f64().max(1e-3);
        let (amount, rate) = match self.unit {
            Unit::Bytes => (bytes(done), format!("{}/s", bytes(rate as u64))),
            Unit::Steps(what) => (format!("{} {what}", super::count(done)), format!("{rate:.0}/s")),
        };
        note(&format!("  {:<34} {amount} in {:.1} s ({rate})", self.label, elapsed.as_secs_f64()));
    }

    /// Takes the bar away without a word: something else will be said.
    pub fn abandon(&self) {
        self.bar.finish_and_clear();
    }
}
