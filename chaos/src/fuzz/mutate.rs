//! What happens to bytes: bits flip, ends are lost, pieces are doubled or come from elsewhere, lengths lie.

/// A small generator (splitmix64, Steele et al. 2014): one seed, one sequence, on every machine.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence of a seed.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`; 0 when there is none.
    pub fn below(&mut self, end: usize) -> usize {
        let end = end as u64;
        usize::try_from(self.number().checked_rem(end).unwrap_or_default()).unwrap_or_default()
    }
}

/// The longest input: long enough for any structure, short enough to try many.
const BYTES_MAX: usize = 64 << 10;

/// Numbers at which arithmetic breaks.
const EXTREMES: [u64; 12] = [
    0,
    1,
    0x7f,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    0x1_0000_0000,
    0x7fff_ffff_ffff_ffff,
    0xffff_ffff_ffff_fffe,
    0xffff_ffff_ffff_ffff,
];

/// The same as postcard and protobuf write numbers: 4 GiB, the greatest u32 and u64, and one that never ends.
const VARINTS: [&[u8]; 4] = [
    &[0x80, 0x80, 0x80, 0x80, 0x10],
    &[0xff, 0xff, 0xff, 0xff, 0x0f],
    &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
    &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
];

/// One to four changes; `other` is what pieces may come from.
pub fn mutate(random: &mut Random, bytes: &[u8], other: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..=random.below(4) {
        change(random, &mut bytes, other);
    }
    bytes.truncate(BYTES_MAX);
    bytes
}

fn change(random: &mut Random, bytes: &mut Vec<u8>, other: &[u8]) {
    let at = random.below(bytes.len());
    let length = 1 + random.below(bytes.len().saturating_sub(at).min(64));
    let range = at..(at + length).min(bytes.len());
    match random.below(11) {
        0 | 1 => flip(random, bytes, at),
        2 => put(bytes, at, &[random.number().to_le_bytes()[0]]),
        3 | 4 => {
            let number = EXTREMES[random.below(EXTREMES.len())];
            let width = [1, 2, 4, 8][random.below(4)];
            let little = random.below(2) == 0;
            let field = if little {
                number.to_le_bytes()[..width].to_vec()
            } else {
                number.to_be_bytes()[8 - width..].to_vec()
            };
            put(bytes, at, &field);
        }
        5 => {
            let varint = VARINTS[random.below(VARINTS.len())];
            bytes.splice(at..(at + 1).min(bytes.len()), varint.iter().copied());
        }
        6 => bytes.truncate(at),
        7 => {
            let doubled = bytes[range].to_vec();
            bytes.splice(at..at, doubled);
        }
        8 => drop(bytes.drain(range)),
        9 => {
            let from = random.below(other.len());
            let piece = &other[from..(from + length).min(other.len())];
            bytes.splice(range, piece.iter().copied());
        }
        _ => {
            let tail = random.below(32);
            bytes.extend((0..tail).map(|_| random.number().to_le_bytes()[0]));
        }
    }
}

fn flip(random: &mut Random, bytes: &mut [u8], at: usize) {
    if let Some(byte) = bytes.get_mut(at) {
        *byte ^= 1 << random.below(8);
    }
}

fn put(bytes: &mut [u8], at: usize, field: &[u8]) {
    let end = (at + field.len()).min(bytes.len());
    bytes[at..end].copy_from_slice(&field[..end - at]);
}
