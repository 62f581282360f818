//! What the forwarder reads of an IPv4 packet: where it goes, and which flow it belongs to.

use std::net::Ipv4Addr;

/// The least an IPv4 header has.
const HEADER_BYTES_MIN: usize = 20;

/// Protocols whose first four bytes are two ports.
const TCP: u8 = 6;
const UDP: u8 = 17;

/// Where a packet goes; `None` when it is no IPv4 packet.
pub(super) fn destination(packet: &[u8]) -> Option<Ipv4Addr> {
    header_bytes(packet)?;
    Some(Ipv4Addr::new(packet[16], packet[17], packet[18], packet[19]))
}

/// The same number for all packets of a flow: a hash (FNV-1a) of addresses, protocol and ports.
pub(super) fn flow(packet: &[u8]) -> u64 {
    let Some(header) = header_bytes(packet) else { return 0 };
    let protocol = packet[9];
    let ports = match protocol {
        TCP | UDP => packet.get(header..header + 4).unwrap_or_default(),
        _ => &[],
    };
    packet[12..20]
        .iter()
        .chain(std::iter::once(&protocol))
        .chain(ports)
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Flips one bit behind the IP header, whichever `chosen` falls on.
pub(super) fn flip(packet: &mut [u8], chosen: u32) {
    let Some(header) = header_bytes(packet) else { return };
    let Some(bits) = packet.len().checked_sub(header).map(|bytes| bytes * 8).filter(|bits| *bits > 0) else { return };
    let bit = usize::try_from(chosen).unwrap_or_default() % bits;
    packet[header + bit / 8] ^= 1 << (bit % 8);
}

fn header_bytes(packet: &[u8]) -> Option<usize> {
    let first = *packet.first()?;
    let header = usize::from(first & 0x0f) * 4;
    (first >> 4 == 4 && header >= HEADER_BYTES_MIN && packet.len() >= header).then_some(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn udp(from_port: u8) -> Vec<u8> {
        let mut packet = vec![0; 28];
        packet[0] = 0x45;
        packet[9] = UDP;
        packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        packet[21] = from_port;
        packet
    }

    #[test]
    fn a_packet_goes_to_its_destination_and_others_go_nowhere() {
        assert_eq!(destination(&udp(1)), Some(Ipv4Addr::new(10, 0, 0, 2)));
        assert_eq!(destination(&[0x60; 40]), None);
        assert_eq!(destination(&[0x45; 10]), None);
        assert_eq!(destination(&[]), None);
    }

    #[test]
    fn flows_differ_by_their_ports() {
        assert_eq!(flow(&udp(1)), flow(&udp(1)));
        assert_ne!(flow(&udp(1)), flow(&udp(2)));
    }

    #[test]
    fn a_flipped_bit_is_one_bit_behind_the_header() {
        for chosen in [0, 7, 63, 64, u32::MAX] {
            let (sent, mut arrived) = (udp(1), udp(1));
            flip(&mut arrived, chosen);
            assert_eq!(sent[..20], arrived[..20]);
            let bits: u32 = sent.iter().zip(&arrived).map(|(a, b)| (a ^ b).count_ones()).sum();
            assert_eq!(bits, 1);
        }
    }
}
