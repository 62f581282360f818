//! What may be passed as a key or a value.

use bytes::Bytes;
use meridian_types::{Key, Value};

/// Anything that is, or can be copied into, bytes. Pass [`Bytes`], `Vec<u8>` or `String` to avoid the copy.
pub trait IntoBytes {
    /// The bytes.
    fn into_bytes(self) -> Bytes;
}

macro_rules! owned {
    ($($type:ty),*) => {$(
        impl IntoBytes for $type {
            fn into_bytes(self) -> Bytes {
                self.into()
            }
        }
    )*};
}

macro_rules! borrowed {
    ($($type:ty),*) => {$(
        impl IntoBytes for $type {
            fn into_bytes(self) -> Bytes {
                Bytes::copy_from_slice(self.as_ref())
            }
        }
    )*};
}

owned!(Bytes, Vec<u8>, String, Box<[u8]>, Key, Value);
borrowed!(&str, &String, &[u8], &Vec<u8>);

impl<const N: usize> IntoBytes for &[u8; N] {
    fn into_bytes(self) -> Bytes {
        Bytes::copy_from_slice(self)
    }
}

impl IntoBytes for &Bytes {
    fn into_bytes(self) -> Bytes {
        self.clone()
    }
}

impl IntoBytes for &Key {
    fn into_bytes(self) -> Bytes {
        self.as_bytes().clone()
    }
}
