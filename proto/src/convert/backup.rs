//! What leaves a shard for a backup.

use meridian_types::{BackupCut, BackupPiece, BackupRow, Epoch, Hlc, Lsn, Positions, Refusal, SetHash};

use super::cluster::{unreadable, wide};
use super::{region, shard};
use crate::v1;
use crate::v1::backup_piece::Piece;

/// A piece, on the wire.
pub fn backup_piece_to_proto(piece: BackupPiece) -> v1::BackupPiece {
    let row = |it: BackupRow| v1::BackupRow { key: it.key, record: it.record };
    let piece = match piece {
        BackupPiece::Cut(cut) => Piece::Cut(cut_to_proto(cut)),
        BackupPiece::Rows(rows) => Piece::Rows(v1::BackupRows { rows: rows.into_iter().map(row).collect() }),
        BackupPiece::End { rows } => Piece::End(v1::BackupEnd { rows }),
    };
    v1::BackupPiece { piece: Some(piece) }
}

/// Reads it back.
///
/// # Errors
/// When it is none, or of a later version.
pub fn backup_piece_from_proto(piece: v1::BackupPiece) -> Result<BackupPiece, Refusal> {
    let row = |it: v1::BackupRow| BackupRow { key: it.key, record: it.record };
    Ok(match piece.piece.ok_or_else(|| unreadable("a piece of a backup"))? {
        Piece::Cut(cut) => BackupPiece::Cut(cut_from_proto(cut)?),
        Piece::Rows(rows) => BackupPiece::Rows(rows.rows.into_iter().map(row).collect()),
        Piece::End(end) => BackupPiece::End { rows: end.rows },
    })
}

fn cut_to_proto(cut: BackupCut) -> v1::BackupCut {
    v1::BackupCut {
        shard: u32::from(cut.shard.0),
        region: u32::from(cut.region.0),
        epoch: cut.epoch.0,
        positions: cut.positions.0.into_iter().map(|(region, lsn)| (u32::from(region.0), lsn.0)).collect(),
        hlc: cut.hlc.0,
        hash: cut.hash.0.to_be_bytes().to_vec().into(),
        keys: cut.keys,
        bytes: cut.bytes,
        staleness_ms: cut.staleness_ms,
    }
}

fn cut_from_proto(cut: v1::BackupCut) -> Result<BackupCut, Refusal> {
    let positions = cut.positions.into_iter().map(|(of, lsn)| Ok((region(of)?, Lsn(lsn))));
    Ok(BackupCut {
        shard: shard(cut.shard)?,
        region: region(cut.region)?,
        epoch: Epoch(cut.epoch),
        positions: Positions(positions.collect::<Result<_, Refusal>>()?),
        hlc: Hlc(cut.hlc),
        hash: SetHash(wide(&cut.hash, "a digest")?),
        keys: cut.keys,
        bytes: cut.bytes,
        staleness_ms: cut.staleness_ms,
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use meridian_types::{RegionId, ShardId};

    use super::*;

    #[test]
    fn what_leaves_a_shard_comes_back_as_it_went() {
        let cut = BackupCut {
            shard: ShardId(1),
            region: RegionId(2),
            epoch: Epoch(3),
            positions: Positions([(RegionId(1), Lsn(4)), (RegionId(2), Lsn(5))].into()),
            hlc: Hlc(6),
            hash: SetHash(7),
            keys: 8,
            bytes: 9,
            staleness_ms: Some(0),
        };
        let row = BackupRow { key: Bytes::from_static(b"k"), record: Bytes::from_static(b"r") };
        let unknown = BackupCut { staleness_ms: None, ..cut.clone() };
        let pieces = [
            BackupPiece::Cut(cut),
            BackupPiece::Cut(unknown),
            BackupPiece::Rows(vec![row]),
            BackupPiece::End { rows: 1 },
        ];
        for piece in pieces {
            assert_eq!(backup_piece_from_proto(backup_piece_to_proto(piece.clone())), Ok(piece));
        }
        assert!(backup_piece_from_proto(v1::BackupPiece { piece: None }).is_err());
        let short = v1::BackupCut { hash: Bytes::from_static(b"1"), ..v1::BackupCut::default() };
        assert!(backup_piece_from_proto(v1::BackupPiece { piece: Some(Piece::Cut(short)) }).is_err());
    }
}
