//! What openraft is told of this node: its types, its log, its state machines. Nothing outside this folder,
//! `transport` and `group` names openraft.

pub(crate) mod machine;
pub(crate) mod mark;
pub(crate) mod seat;
pub(crate) mod snapshot;
pub(crate) mod storage;
#[cfg(test)]
mod tests;
pub(crate) mod types;
