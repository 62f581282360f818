//! The messages of clients and answering nodes whose repeated fields are bounded while they are decoded (RES-1).
//!
//! An empty item takes two bytes on the wire and a hundred in memory, so the bound on a message's size alone would
//! let one message of 8 MiB take half a gigabyte. These are written by hand to count before they make room;
//! on the wire they are exactly what `meridian.proto` says.

use bytes::{Buf, BufMut, Bytes};
use meridian_types::key::{MULTI_ITEMS_MAX, SCAN_ITEMS_MAX};
use prost::encoding::{DecodeContext, WireType, bool as bool_field, bytes as bytes_field, message, skip_field};
use prost::{DecodeError, Message};

use crate::limits::IN_FLIGHT_MAX;
use crate::v1::{Item, MaybeFound, PageItem, Request, Response};

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

/// A batch with more answers than requests may be in flight is none of ours: it doesn't decode.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ResponseBatch {
    /// The answers; at most [`IN_FLIGHT_MAX`].
    pub responses: Vec<Response>,
}

/// More values than may be asked for at once are no answer: they don't decode.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Values {
    /// In the order asked; at most [`MULTI_ITEMS_MAX`].
    pub values: Vec<MaybeFound>,
}

/// More items than a page may hold are none: they don't decode.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Page {
    /// Keys with values; at most [`SCAN_ITEMS_MAX`].
    pub items: Vec<PageItem>,
    /// Whether there is more behind the last key.
    pub more: bool,
}

fn beyond(what: &str, most: usize) -> DecodeError {
    // prost means this constructor for implementations of `Message`, which these are.
    #[allow(deprecated)]
    DecodeError::new(format!("{what} may have at most {most} items"))
}

impl Message for ResponseBatch {
    fn encode_raw(&self, buffer: &mut impl BufMut) {
        message::encode_repeated(1, &self.responses, buffer);
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire: WireType,
        buffer: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        match tag {
            1 if self.responses.len() >= IN_FLIGHT_MAX => Err(beyond("a batch of answers", IN_FLIGHT_MAX)),
            1 => message::merge_repeated(wire, &mut self.responses, buffer, context),
            _ => skip_field(wire, tag, buffer, context),
        }
    }

    fn encoded_len(&self) -> usize {
        message::encoded_len_repeated(1, &self.responses)
    }

    fn clear(&mut self) {
        self.responses.clear();
    }
}

impl Message for Values {
    fn encode_raw(&self, buffer: &mut impl BufMut) {
        message::encode_repeated(1, &self.values, buffer);
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire: WireType,
        buffer: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        match tag {
            1 if self.values.len() >= MULTI_ITEMS_MAX => Err(beyond("an answer to a multi-get", MULTI_ITEMS_MAX)),
            1 => message::merge_repeated(wire, &mut self.values, buffer, context),
            _ => skip_field(wire, tag, buffer, context),
        }
    }

    fn encoded_len(&self) -> usize {
        message::encoded_len_repeated(1, &self.values)
    }

    fn clear(&mut self) {
        self.values.clear();
    }
}

impl Message for Page {
    fn encode_raw(&self, buffer: &mut impl BufMut) {
        message::encode_repeated(1, &self.items, buffer);
        if self.more {
            bool_field::encode(2, &self.more, buffer);
        }
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire: WireType,
        buffer: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        match tag {
            1 if self.items.len() >= SCAN_ITEMS_MAX => Err(beyond("a page", SCAN_ITEMS_MAX)),
            1 => message::merge_repeated(wire, &mut self.items, buffer, context),
            2 => bool_field::merge(wire, &mut self.more, buffer, context),
            _ => skip_field(wire, tag, buffer, context),
        }
    }

    fn encoded_len(&self) -> usize {
        let more = if self.more { bool_field::encoded_len(2, &self.more) } else { 0 };
        more + message::encoded_len_repeated(1, &self.items)
    }

    fn clear(&mut self) {
        *self = Page::default();
    }
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
            2 if self.requests.len() >= IN_FLIGHT_MAX => Err(beyond("a batch of requests", IN_FLIGHT_MAX)),
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
    fn answers_beyond_the_bound_do_not_decode() {
        let batch = |count| ResponseBatch { responses: vec![Response::default(); count] }.encode_to_vec();
        assert!(ResponseBatch::decode(batch(IN_FLIGHT_MAX).as_slice()).is_ok());
        assert!(ResponseBatch::decode(batch(IN_FLIGHT_MAX + 1).as_slice()).is_err());
        let values = |count| Values { values: vec![MaybeFound::default(); count] }.encode_to_vec();
        assert!(Values::decode(values(MULTI_ITEMS_MAX).as_slice()).is_ok());
        assert!(Values::decode(values(MULTI_ITEMS_MAX + 1).as_slice()).is_err());
        let page = |count| Page { items: vec![PageItem::default(); count], more: true };
        let full = page(SCAN_ITEMS_MAX);
        assert_eq!(Page::decode(full.encode_to_vec().as_slice()), Ok(full));
        assert!(Page::decode(page(SCAN_ITEMS_MAX + 1).encode_to_vec().as_slice()).is_err());
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
