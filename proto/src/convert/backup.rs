//! What leaves a shard for a backup.

use bytes::Bytes;
use meridian_types::{
    BackupAsk, BackupCut, BackupPiece, BackupRow, BackupSince, BackupSpan, BucketId, BucketName, Epoch, Hlc, Lsn,
    Positions, Refusal, SetHash, ShardId,
};
use std::collections::HashMap;

use super::cluster::{unreadable, wide};
use super::{region, shard};
use crate::v1;
use crate::v1::backup_piece::Piece;

/// What is asked of a shard, on the wire.
pub fn backup_ask_to_proto(bucket: &BucketName, shard: ShardId, ask: BackupAsk) -> v1::BackUpRequest {
    let since = |it: BackupSince| v1::BackupSince {
        bucket: it.bucket.0,
        region: u32::from(it.region.0),
        epoch: it.epoch.0,
        applied: it.applied.0,
        evidence: evidence_to_proto(it.evidence),
        positions: positions_to_proto(it.positions),
        hash: hash_to_proto(it.hash),
        keys: it.keys,
        bytes: it.bytes,
    };
    let BackupAsk { context, since: earlier } = ask;
    v1::BackUpRequest { bucket: bucket.to_string(), shard: u32::from(shard.0), context, since: earlier.map(since) }
}

/// Reads it back, but for the bucket's name.
///
/// # Errors
/// When it is none.
pub fn backup_ask_from_proto(request: v1::BackUpRequest) -> Result<(ShardId, BackupAsk), Refusal> {
    let since = |it: v1::BackupSince| {
        Ok::<_, Refusal>(BackupSince {
            bucket: BucketId(it.bucket),
            region: region(it.region)?,
            epoch: Epoch(it.epoch),
            applied: Lsn(it.applied),
            evidence: evidence_from_proto(&it.evidence)?,
            positions: positions_from_proto(it.positions)?,
            hash: SetHash(wide(&it.hash, "a digest")?),
            keys: it.keys,
            bytes: it.bytes,
        })
    };
    let ask = BackupAsk { context: request.context, since: request.since.map(since).transpose()? };
    Ok((shard(request.shard)?, ask))
}

/// A piece, on the wire.
pub fn backup_piece_to_proto(piece: BackupPiece) -> v1::BackupPiece {
    let row = |it: BackupRow| v1::BackupRow { key: it.key, record: it.record };
    let rows = |rows: Vec<BackupRow>| v1::BackupRows { rows: rows.into_iter().map(row).collect() };
    let piece = match piece {
        BackupPiece::Cut(cut) => Piece::Cut(cut_to_proto(cut)),
        BackupPiece::Log(log) => Piece::Log(rows(log)),
        BackupPiece::Rows(some) => Piece::Rows(rows(some)),
        BackupPiece::Context(context) => Piece::Context(rows(context)),
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
    let rows = |it: v1::BackupRows| it.rows.into_iter().map(row).collect();
    Ok(match piece.piece.ok_or_else(|| unreadable("a piece of a backup"))? {
        Piece::Cut(cut) => BackupPiece::Cut(cut_from_proto(cut)?),
        Piece::Log(log) => BackupPiece::Log(rows(log)),
        Piece::Rows(some) => BackupPiece::Rows(rows(some)),
        Piece::Context(context) => BackupPiece::Context(rows(context)),
        Piece::End(end) => BackupPiece::End { rows: end.rows },
    })
}

fn cut_to_proto(cut: BackupCut) -> v1::BackupCut {
    v1::BackupCut {
        shard: u32::from(cut.shard.0),
        region: u32::from(cut.region.0),
        epoch: cut.epoch.0,
        positions: positions_to_proto(cut.positions),
        hlc: cut.hlc.0,
        hash: hash_to_proto(cut.hash),
        keys: cut.keys,
        bytes: cut.bytes,
        staleness_ms: cut.staleness_ms,
        bucket: cut.bucket.0,
        applied: cut.applied.0,
        stamp: cut.stamp.0,
        evidence: evidence_to_proto(cut.evidence),
        at_ms: cut.at_ms,
        since: cut.span == BackupSpan::Since,
        why: match cut.span {
            BackupSpan::Whole(why) => why,
            BackupSpan::Since => String::new(),
        },
    }
}

fn positions_to_proto(positions: Positions) -> HashMap<u32, u64> {
    positions.0.into_iter().map(|(region, lsn)| (u32::from(region.0), lsn.0)).collect()
}

fn positions_from_proto(positions: HashMap<u32, u64>) -> Result<Positions, Refusal> {
    let positions = positions.into_iter().map(|(of, lsn)| Ok((region(of)?, Lsn(lsn))));
    Ok(Positions(positions.collect::<Result<_, Refusal>>()?))
}

fn hash_to_proto(hash: SetHash) -> Bytes {
    hash.0.to_be_bytes().to_vec().into()
}

fn evidence_to_proto(evidence: Option<SetHash>) -> Bytes {
    evidence.map(hash_to_proto).unwrap_or_default()
}

fn evidence_from_proto(bytes: &[u8]) -> Result<Option<SetHash>, Refusal> {
    if bytes.is_empty() { Ok(None) } else { Ok(Some(SetHash(wide(bytes, "the hash of an entry")?))) }
}

fn cut_from_proto(cut: v1::BackupCut) -> Result<BackupCut, Refusal> {
    Ok(BackupCut {
        shard: shard(cut.shard)?,
        region: region(cut.region)?,
        epoch: Epoch(cut.epoch),
        positions: positions_from_proto(cut.positions)?,
        hlc: Hlc(cut.hlc),
        hash: SetHash(wide(&cut.hash, "a digest")?),
        keys: cut.keys,
        bytes: cut.bytes,
        staleness_ms: cut.staleness_ms,
        bucket: BucketId(cut.bucket),
        applied: Lsn(cut.applied),
        stamp: Hlc(cut.stamp),
        evidence: evidence_from_proto(&cut.evidence)?,
        at_ms: cut.at_ms,
        span: if cut.since { BackupSpan::Since } else { BackupSpan::Whole(cut.why) },
    })
}

#[cfg(test)]
mod tests {
    use meridian_types::RegionId;

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
            bucket: BucketId(4),
            applied: Lsn(10),
            stamp: Hlc(11),
            evidence: Some(SetHash(12)),
            at_ms: 13,
            span: BackupSpan::Since,
        };
        let row = BackupRow { key: Bytes::from_static(b"k"), record: Bytes::from_static(b"r") };
        let span = BackupSpan::Whole("its epoch changed".to_owned());
        let unknown = BackupCut { staleness_ms: None, evidence: None, span, ..cut.clone() };
        let pieces = [
            BackupPiece::Cut(cut),
            BackupPiece::Cut(unknown),
            BackupPiece::Log(vec![row.clone()]),
            BackupPiece::Rows(vec![row.clone()]),
            BackupPiece::Context(vec![row]),
            BackupPiece::End { rows: 1 },
        ];
        for piece in pieces {
            assert_eq!(backup_piece_from_proto(backup_piece_to_proto(piece.clone())), Ok(piece));
        }
        assert!(backup_piece_from_proto(v1::BackupPiece { piece: None }).is_err());
        let since = BackupSince {
            bucket: BucketId(1),
            region: RegionId(2),
            epoch: Epoch(3),
            applied: Lsn(4),
            evidence: Some(SetHash(5)),
            positions: Positions([(RegionId(1), Lsn(6))].into()),
            hash: SetHash(7),
            keys: 8,
            bytes: 9,
        };
        let bucket = BucketName::new("orders").unwrap();
        for since in [None, Some(BackupSince { evidence: None, ..since.clone() }), Some(since)] {
            let ask = BackupAsk { context: since.is_some(), since };
            let wire = backup_ask_to_proto(&bucket, ShardId(3), ask.clone());
            assert_eq!(wire.bucket, "orders");
            assert_eq!(backup_ask_from_proto(wire), Ok((ShardId(3), ask)));
        }
        let short = v1::BackupCut { hash: Bytes::from_static(b"1"), ..v1::BackupCut::default() };
        assert!(backup_piece_from_proto(v1::BackupPiece { piece: Some(Piece::Cut(short)) }).is_err());
    }
}
