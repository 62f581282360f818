//! Banks: all accounts of a bank are in one shard. Its one teller moves money between them with a multi-put of all
//! of them; everybody reads them together. Who sees a multi-put half sees money appear or vanish.

use meridian_types::{Key, Read, Value, Write};
use rand::Rng;

use super::client::{Client, value};
use super::keys::ACCOUNTS;
use crate::target::Target;

/// What all accounts of a bank hold together.
pub(crate) const TOTAL: u64 = 1_000;

/// One operation of the client at `place`: it is the teller of the bank of that number, if there is one.
pub(super) async fn step<T: Target>(client: &mut Client<T>, place: u32) {
    let banks = client.keys.len() / ACCOUNTS;
    let own = usize::try_from(place).ok().filter(|bank| *bank < banks);
    match own {
        Some(bank) if !client.chance(client.options.reads_percent) => transfer(client, bank).await,
        _ => {
            let bank = client.rng.random_range(0..banks.max(1));
            let keys = accounts(client, bank);
            let (level, stale) = client.any_level();
            client.read(Read::MultiGet { keys }, level, stale).await;
        }
    }
}

async fn transfer<T: Target>(client: &mut Client<T>, bank: usize) {
    let stamp = client.unique();
    let mut left = TOTAL;
    let keys = accounts(client, bank);
    let last = keys.len().saturating_sub(1);
    let mut items: Vec<(Key, Value)> = Vec::with_capacity(keys.len());
    for (at, key) in keys.into_iter().enumerate() {
        let balance = if at == last { left } else { client.rng.random_range(0..=left) };
        left -= balance;
        items.push((key, value(format!("{balance} by {stamp}"))));
    }
    client.write(Write::MultiPut { items }).await;
}

fn accounts<T>(client: &Client<T>, bank: usize) -> Vec<Key> {
    client.keys.iter().skip(bank * ACCOUNTS).take(ACCOUNTS).cloned().collect()
}
