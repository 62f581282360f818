//! RES-1: the densest message either side accepts, empty items and nothing else, takes memory in proportion to what its
//! bounds allow, not to its length. One test alone in its binary: what it measures is the memory of the whole process.

use chaos::fuzz;
use meridian_proto::limits::MESSAGE_BYTES_MAX;
use peak_alloc::PeakAlloc;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// What a decoder may take for one message of the greatest length.
const MEMORY_MAX: usize = 64 << 20;

/// An empty item of the field with this number, over and over.
fn dense(field: u8, bytes: usize) -> Vec<u8> {
    [field << 3 | 2, 0].repeat(bytes / 2)
}

/// The same, wrapped into a field of an outer message.
fn wrapped(field: u8, inner: &[u8]) -> Vec<u8> {
    let mut bytes = vec![field << 3 | 2];
    let mut length = inner.len();
    while length >= 0x80 {
        bytes.push(u8::try_from(length & 0x7f).unwrap_or_default() | 0x80);
        length >>= 7;
    }
    bytes.push(u8::try_from(length).unwrap_or_default());
    bytes.extend_from_slice(inner);
    bytes
}

#[test]
fn a_message_of_nothing_but_empty_items_takes_bounded_memory() {
    let room = MESSAGE_BYTES_MAX - 64;
    let values = wrapped(1, &[vec![12 << 3 | 2], wrapped(0, &dense(1, room))[1..].to_vec()].concat());
    let page = wrapped(1, &[vec![13 << 3 | 2], wrapped(0, &dense(1, room))[1..].to_vec()].concat());
    let keys = wrapped(2, &[vec![11 << 3 | 2], wrapped(0, &dense(1, room))[1..].to_vec()].concat());
    let cases = [
        ("wire_requests", dense(2, room)),
        ("wire_requests", keys),
        ("wire_responses", dense(1, room)),
        ("wire_responses", values),
        ("wire_responses", page),
        ("session_token", [vec![1, 0xff, 0xff, 0xff, 0x01], vec![1; room]].concat()),
    ];
    for (name, bytes) in cases {
        let target = fuzz::all().into_iter().find(|target| target.name == name).expect("it is in the table");
        let before = MEMORY.current_usage();
        MEMORY.reset_peak_usage();
        fuzz::hold(&target, &bytes);
        let taken = MEMORY.peak_usage().saturating_sub(before);
        assert!(taken < MEMORY_MAX, "{name}: {} bytes took {taken}", bytes.len());
    }
}
