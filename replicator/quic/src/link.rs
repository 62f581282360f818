//! The link to one node: its connections, and the window its lanes share. Links share nothing with each
//! other, so a dead node costs only its own lanes anything (ISO-1), and at most its windows (RES-1).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::future::join_all;
use meridian_replicator_core::Budget;
use meridian_types::{Lane, NodeId, ShardId};
use tokio::sync::Notify;

use crate::connector::{Connector, Dialling};

/// The window of the lanes of one kind on one link.
pub(crate) struct Window {
    budget: Mutex<Budget>,
    freed: Notify,
}

impl Window {
    fn new(bytes: usize) -> Window {
        Window { budget: Mutex::new(Budget::new(bytes)), freed: Notify::new() }
    }

    fn budget(&self) -> MutexGuard<'_, Budget> {
        // Plain counters: a panic elsewhere can't leave them half-changed.
        self.budget.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What this lane may have in flight.
    pub(crate) fn of(&self, shard: ShardId) -> usize {
        self.budget().window(shard.0.into())
    }

    /// Notes what this lane has in flight, and wakes those that wait for room.
    pub(crate) fn note(&self, shard: ShardId, bytes: usize) {
        if self.budget().set(shard.0.into(), bytes) {
            self.freed.notify_waiters();
        }
    }

    /// When some lane has freed something.
    pub(crate) async fn freed(&self) {
        self.freed.notified().await;
    }
}

/// Connections and windows to one node.
pub(crate) struct Link {
    sync: (Connector, Window),
    asynchronous: (Vec<Connector>, Window),
}

impl Link {
    fn new(dialling: &Arc<Dialling>, node: NodeId, window_bytes: usize, async_connections: usize) -> Link {
        let connector = || Connector::new(Arc::clone(dialling), node);
        Link {
            sync: (connector(), Window::new(window_bytes)),
            asynchronous: ((0..async_connections.max(1)).map(|_| connector()).collect(), Window::new(window_bytes)),
        }
    }

    async fn hang_up(&self) {
        join_all(self.asynchronous.0.iter().chain([&self.sync.0]).map(Connector::hang_up)).await;
    }

    /// The connection of that lane.
    pub(crate) fn connector(&self, shard: ShardId, lane: Lane) -> &Connector {
        match lane {
            Lane::Sync => &self.sync.0,
            Lane::Async => &self.asynchronous.0[usize::from(shard.0) % self.asynchronous.0.len()],
        }
    }

    /// The window of the lanes of that kind.
    pub(crate) fn window(&self, lane: Lane) -> &Window {
        match lane {
            Lane::Sync => &self.sync.1,
            Lane::Async => &self.asynchronous.1,
        }
    }
}

/// The links of a node, made when first needed.
pub(crate) struct Links {
    dialling: Arc<Dialling>,
    window_bytes: usize,
    async_connections: usize,
    links: Mutex<BTreeMap<NodeId, Arc<Link>>>,
}

impl Links {
    pub(crate) fn new(dialling: Arc<Dialling>, window_bytes: usize, async_connections: usize) -> Links {
        Links { dialling, window_bytes, async_connections, links: Mutex::new(BTreeMap::new()) }
    }

    /// Closes every connection; lanes open others.
    pub(crate) async fn hang_up(&self) {
        let links: Vec<_> = self.links.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        join_all(links.iter().map(|link| link.hang_up())).await;
    }

    pub(crate) fn to(&self, node: NodeId) -> Arc<Link> {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        let link = links
            .entry(node)
            .or_insert_with(|| Arc::new(Link::new(&self.dialling, node, self.window_bytes, self.async_connections)));
        Arc::clone(link)
    }
}
