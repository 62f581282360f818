//! Lists: items in brackets, appended and read.

use meridian_types::Write;

use super::client::{Client, value};
use crate::target::Target;

/// One operation.
pub(super) async fn step<T: Target>(client: &mut Client<T>) {
    let key = client.any_key();
    if client.chance(client.options.reads_percent) {
        client.read_any(key).await;
        return;
    }
    let item = format!("[{}]", client.unique());
    client.write(Write::Append { key, suffix: value(item) }).await;
}
