//! Which keys a workload touches: known in advance, so that the last look misses none.

use meridian_types::{Bucket, Key};

use super::{Kind, Options};

/// Accounts of one bank: keys of one shard.
pub(crate) const ACCOUNTS: usize = 4;

/// The keys, the same in every run. Banks come one behind the other, [`ACCOUNTS`] keys each.
pub(super) fn of(kind: Kind, bucket: &Bucket, shards: u16, options: &Options) -> Vec<Key> {
    let count = options.keys.max(1);
    let plain = |prefix: &str| -> Vec<Key> { (0..count).filter_map(|at| key(&format!("{prefix}/{at}"))).collect() };
    match kind {
        Kind::Register => plain("reg"),
        Kind::Counter => plain("ctr"),
        Kind::Append => plain("lst"),
        Kind::Chain => plain("cas"),
        Kind::Session => plain("ses"),
        Kind::ActiveActive => {
            let mut keys: Vec<Key> = plain("aa");
            keys.extend(plain("pn"));
            keys
        }
        Kind::Bank => (0..count).flat_map(|at| accounts(bucket, shards, at)).collect(),
    }
}

/// The key of a text; workloads make no empty or long ones.
pub(super) fn key(text: &str) -> Option<Key> {
    Key::new(text.to_owned()).ok()
}

/// Keys of one bank: the first that are in the same shard.
fn accounts(bucket: &Bucket, shards: u16, bank: u32) -> Vec<Key> {
    let named = |account: u32| key(&format!("bank/{bank}/{account}"));
    let home = named(0).map(|key| key.shard(bucket.id, shards));
    (0..).filter_map(named).filter(|key| Some(key.shard(bucket.id, shards)) == home).take(ACCOUNTS).collect()
}
