//! Sessions: read your writes, and never see the past twice, in whatever region you are (CON-2).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use meridian_types::SessionToken;

use crate::error::Error;

/// What you have seen. Give it to reads and writes with `.session(&session)`: none will be answered from behind it,
/// each adds what it saw. Clones are the same session.
///
/// ```no_run
/// # async fn example(client: meridian_client::Client) -> Result<(), meridian_client::Error> {
/// use meridian_client::Session;
///
/// let carts = client.bucket("carts")?;
/// let session = client.session();
/// carts.put("alice", "book").session(&session).await?;
///
/// // In another process, in another region:
/// let session = Session::from_token(&session.token())?;
/// let got = carts.get("alice").session(&session).await?; // sees the book
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Session {
    seen: Arc<Mutex<SessionToken>>,
}

impl Session {
    /// A session that has seen nothing yet.
    pub fn new() -> Session {
        Session::default()
    }

    /// The session of a token, as [`Session::token`] gave it, in this or another process or region.
    ///
    /// # Errors
    /// Invalid when the bytes are no token.
    pub fn from_token(token: &[u8]) -> Result<Session, Error> {
        let seen = SessionToken::decode(token)?;
        Ok(Session { seen: Arc::new(Mutex::new(seen)) })
    }

    /// The session as bytes, to store or pass on.
    pub fn token(&self) -> Vec<u8> {
        self.lock().encode()
    }

    /// Adds what another session has seen.
    pub fn merge(&self, other: &Session) {
        let other = other.seen();
        self.observe(&other);
    }

    pub(crate) fn seen(&self) -> SessionToken {
        self.lock().clone()
    }

    pub(crate) fn observe(&self, seen: &SessionToken) {
        self.lock().merge(seen);
    }

    /// Merging can't stop half-way, so a poisoned lock still guards a whole token.
    fn lock(&self) -> MutexGuard<'_, SessionToken> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The token of an optional session.
pub(crate) fn seen(session: Option<&Session>) -> SessionToken {
    session.map(Session::seen).unwrap_or_default()
}

impl TryFrom<&[u8]> for Session {
    type Error = Error;
    fn try_from(token: &[u8]) -> Result<Session, Error> {
        Session::from_token(token)
    }
}

impl From<SessionToken> for Session {
    fn from(seen: SessionToken) -> Session {
        Session { seen: Arc::new(Mutex::new(seen)) }
    }
}
