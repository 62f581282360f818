//! A few lines that change in place while something goes on; nothing where stderr is no terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Lines on stderr, redrawn as a whole.
#[derive(Debug)]
pub struct Live {
    bar: ProgressBar,
}

impl Live {
    /// Without any lines yet.
    pub fn new() -> Live {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
        bar.set_style(ProgressStyle::with_template("{spinner} {msg}").unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.enable_steady_tick(Duration::from_millis(200));
        Live { bar }
    }

    /// Whether somebody watches.
    pub fn is_seen(&self) -> bool {
        !self.bar.is_hidden()
    }

    /// Shows these lines instead of the last ones.
    pub fn show(&self, lines: String) {
        self.bar.set_message(lines);
    }
}

impl Default for Live {
    fn default() -> Live {
        Live::new()
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
