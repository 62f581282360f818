//! The messages of a client whose repeated fields are bounded while they are decoded (RES-1).
//!
//! An empty item takes two bytes on the wire and a hundred in memory, so the bound on a message's size alone would
//! let one message of 8 MiB take half a gigabyte. These three are written by hand to count before they make room;
//! on the wire they are exactly what `meridian.proto` says.

use bytes::{Buf, BufMut, Bytes};
use meridian_types::key::MULTI_ITEMS_MAX;
use prost::encoding::{DecodeContext, WireType, bytes as bytes_field, message, skip_field};
use prost::{DecodeError, Message};

use crate::limits::IN_FLIGHT_MAX;
use crate::v1::{Item, Request};

/// A batch with more requests than may be in flight is no batch of ours: it doesn't decode.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RequestBatch {
    /// Who sends these: 16 bytes, or empty for none.
    pub client_id: Bytes,
    /// The requests; at most [`IN_FLIGHT_MAX`].
    pub requests: Vec<Request>,
}

/// Keys beyond the bound are counted as one and not kept, so that only this request is refused.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MultiGet {
    /// The keys; at most [`MULTI_ITEMS_MAX`], and one more when there were too many.
    pub keys: Vec<Bytes>,
}

/// Items beyond the bound are counted as one and not kept, so that only this request is refused.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MultiPut {
    /// The items; at most [`MULTI_ITEMS_MAX`], and one more when there were too many.
    pub items: Vec<Item>,
}

impl Message for RequestBatch {
    fn encode_raw(&self, buffer: &mut impl BufMut) {
        if !self.client_id.is_empty() {
            bytes_field::encode(1, &self.client_id, buffer);
        }
        message::encode_repeated(2, &self.requests, buffer);
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire: WireType,
        buffer: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        match tag {
            1 => bytes_field::merge(wire, &mut self.client_id, buffer, context),
            2 if self.requests.len() >= IN_FLIGHT_MAX => {
                // prost means this constructor for implementations of `Message`, which this is.
                #[allow(deprecated)]
                Err(DecodeError::new(format!("a batch may have at most {IN_FLIGHT_MAX} requests")))
            }
            2 => message::merge_repeated(wire, &mut self.requests, buffer, context),
            _ => skip_field(wire, tag, buffer, context),
        }
    }

    fn encoded_len(&self) -> usize {
        let client = if self.client_id.is_empty() { 0 } else { bytes_field::encoded_len(1, &self.client_id) };
        client + message::encoded_len_repeated(2, &self.requests)
    }

    fn clear(&mut self) {
        *self = RequestBatch::default();
    }
}

impl Message for MultiGet {
    fn encode_raw(&self, buffer: &mut impl BufMut) {
        bytes_field::encode_repeated(1, &self.keys, buffer);
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire: WireType,
        buffer: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        match tag {
            1 if self.keys.len() <= MULTI_ITEMS_MAX => {
                bytes_field::merge_repeated(wire, &mut self.keys, buffer, context)
            }
            _ => skip_field(wire, tag, buffer, context),
        }
    }

    fn encoded_len(&self) -> usize {
        bytes_field::encoded_len_repeated(1, &self.keys)
    }

    fn clear(&mut self) {
        self.keys.clear();
    }
}

impl Message for MultiPut {
    fn encode_raw(&self, buffer: &mut impl BufMut) {
        message::encode_repeated(1, &self.items, buffer);
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire: WireType,
        buffer: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        match tag {
            1 if self.items.len() <= MULTI_ITEMS_MAX => message::merge_repeated(wire, &mut self.items, buffer, context),
            _ => skip_field(wire, tag, buffer, context),
        }
    }

    fn encoded_len(&self) -> usize {
        message::encoded_len_repeated(1, &self.items)
    }

    fn clear(&mut self) {
        self.items.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_beyond_the_bound_does_not_decode() {
        let batch = |count| RequestBatch { client_id: Bytes::new(), requests: vec![Request::default(); count] };
        let fits = batch(IN_FLIGHT_MAX);
        assert_eq!(RequestBatch::decode(fits.encode_to_vec().as_slice()), Ok(fits));
        assert!(RequestBatch::decode(batch(IN_FLIGHT_MAX + 1).encode_to_vec().as_slice()).is_err());
    }

    #[test]
    fn keys_and_items_beyond_the_bound_are_not_kept() -> Result<(), DecodeError> {
        let many = MULTI_ITEMS_MAX * 3;
        let keys = MultiGet { keys: vec![Bytes::new(); many] };
        assert_eq!(MultiGet::decode(keys.encode_to_vec().as_slice())?.keys.len(), MULTI_ITEMS_MAX + 1);
        let items = MultiPut { items: vec![Item::default(); many] };
        assert_eq!(MultiPut::decode(items.encode_to_vec().as_slice())?.items.len(), MULTI_ITEMS_MAX + 1);
        Ok(())
    }
}
