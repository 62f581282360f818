//! What makes a storage error or a panic the end of this node: it never limps (style 5).

use meridian_types::GroupId;
use tokio::sync::watch;

use crate::error::FatalError;

/// The first fatal error, seen by everybody who waits for it. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Poison {
    first: watch::Sender<Option<FatalError>>,
}

impl Poison {
    pub(crate) fn new() -> Poison {
        Poison { first: watch::Sender::new(None) }
    }

    /// Reports an error; only the first counts.
    pub(crate) fn report(&self, group: Option<GroupId>, message: impl Into<String>) {
        let error = FatalError { group, message: message.into() };
        self.first.send_if_modified(|first| {
            let is_first = first.is_none();
            if is_first {
                tracing::error!(group = group.map(tracing::field::display), "{error}");
                *first = Some(error);
            }
            is_first
        });
    }

    pub(crate) fn error(&self) -> Option<FatalError> {
        self.first.borrow().clone()
    }

    pub(crate) async fn reported(&self) -> FatalError {
        let mut first = self.first.subscribe();
        match first.wait_for(Option::is_some).await.map(|error| error.clone()) {
            Ok(Some(error)) => error,
            // The sender lives in `self`.
            _ => std::future::pending().await,
        }
    }
}

/// An error and all its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// What a panic said.
pub(crate) fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic".to_owned())
}
