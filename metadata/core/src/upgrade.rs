//! Upgrades: which formats of commands may be put on record (UPG-1).
//!
//! While nodes of two releases serve one cluster, whatever is committed has to be readable to both. So a command of a newer format than the
//! cluster has is refused by whoever leads, before it is on record; and the cluster gets a newer format only when an operator asks for it
//! and every node that is registered said that its release knows that.
//!
//! A cluster has the format of the release that formed it; one that was formed before there were such records, [`FORMAT_UNSAID`].
//!
//! Deliberately not here: how nodes of two releases speak to each other; protocols are agreed upon per connection.

use meridian_types::release::{FORMAT_NEWEST, FORMAT_UNSAID, format_of};
use meridian_types::{Node, Refusal, RefusalKind};

use crate::apply::Done;
use crate::command::{Action, Form};
use crate::reply::Reply;
use crate::spec::invalid;
use crate::state::{ClusterState, Fault, rule};

impl ClusterState {
    /// The newest format of commands that may be put on record.
    pub fn format(&self) -> u8 {
        self.finalized.unwrap_or(FORMAT_UNSAID)
    }

    /// Whether a command may be put on record now: every node can read it (UPG-1).
    ///
    /// # Errors
    /// [`RefusalKind::Conflict`] when a node may be there that can't, with what to do.
    pub fn admits(&self, action: &Action) -> Result<(), Refusal> {
        let (needed, format) = (action.format(), self.format());
        match action {
            // There is nobody yet who could not read it.
            Action::FormClusterAt { .. } if self.formed.is_none() => Ok(()),
            Action::Finalize { format } => self.check_format(*format),
            _ if needed <= format => Ok(()),
            _ => Err(conflict(format!(
                "this needs format {needed} of the metadata, and the cluster keeps to {format}, so that nodes can still go back to an \
                 older release: `meridian upgrade check` says what is left to do, `meridian upgrade finalize` ends the upgrade"
            ))),
        }
    }

    pub(crate) fn form_at(&mut self, form: &Form, format: u8) -> Result<Done, Refusal> {
        check_known(format)?;
        let is_new = self.formed.is_none();
        let done = self.form(form)?;
        if is_new {
            self.finalized = Some(format);
        }
        Ok(done)
    }

    pub(crate) fn finalize(&mut self, format: u8) -> Result<Done, Refusal> {
        self.check_format(format)?;
        let before = self.format();
        if format <= before {
            return Ok(Done::new(Reply::Reported, None));
        }
        self.finalized = Some(format);
        Ok(Done::new(Reply::Reported, Some(format!("instead of {before}"))))
    }

    /// Whether every node reads that format.
    fn check_format(&self, format: u8) -> Result<(), Refusal> {
        self.require_formed()?;
        check_known(format)?;
        let knows = |node: &&Node| format_of(&node.version).is_some_and(|known| known >= format);
        let behind: Vec<&Node> = self.nodes().filter(|node| !knows(node)).collect();
        let Some(first) = behind.first().filter(|_| format > self.format()) else { return Ok(()) };
        let why = match (format_of(&first.version), behind.len()) {
            (Some(_), 1) => format!("`{}` runs {}: start it with the new release", first.name, first.version),
            (None, 1) => format!("`{}` never said what it runs: start it, or remove it", first.name),
            (_, all) => format!("{all} nodes, `{}` first, run an older release, or never said what", first.name),
        };
        Err(conflict(format!("the upgrade can't be finalized: {why}")))
    }

    pub(crate) fn validate_format(&self) -> Result<(), Fault> {
        let known = self.finalized.is_none_or(|format| (1..=FORMAT_NEWEST).contains(&format));
        rule(known && (self.finalized.is_none() || self.formed.is_some()), "its format is none that this release knows")
    }
}

fn check_known(format: u8) -> Result<(), Refusal> {
    if (1..=FORMAT_NEWEST).contains(&format) {
        return Ok(());
    }
    Err(invalid(format!(
        "there is no format {format} of the metadata that this release knows: it knows 1 to {FORMAT_NEWEST}"
    )))
}

fn conflict(message: String) -> Refusal {
    Refusal::new(RefusalKind::Conflict, message)
}

#[cfg(test)]
mod tests;
