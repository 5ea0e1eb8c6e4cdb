use sluice_domain::time::UnixMillis;

use super::fixture::*;
use crate::journal::line::{Found, Lines, SEGMENT_HEADER, SegmentHeader};
use crate::journal::{JournalError, Replay, replay};

/// A journal of one segment with a few lines, and where each line begins.
fn written(synced_after: Option<u128>) -> (MemoryDisk, Vec<usize>) {
    let disk = MemoryDisk::default();
    let (journal, _) = open(&disk, 1);
    let mut holder = Holder::default();
    for n in 1..=4 {
        holder.open(&journal, n).unwrap();
        if n % 2 == 0 {
            holder.post(&journal, n).unwrap();
        }
        if synced_after == Some(n) {
            journal.sync().unwrap();
        }
    }
    journal.note_ack(3, 1, &[lease(1, 10)]).unwrap();
    let mut starts = Vec::new();
    disk.change(1, |bytes| {
        let header = SegmentHeader::decode(bytes, 1).unwrap().unwrap();
        for found in Lines::new(bytes, header.salt()) {
            if let Found::Line(line) = found {
                starts.push(usize::try_from(line.offset).unwrap());
            }
        }
    });
    (disk, starts)
}

/// What is open and posted after each line of [`written`].
fn prefix(lines: usize) -> (Vec<u128>, i64) {
    match lines {
        0..=2 => (vec![], 1),
        3 => (vec![1], 1),
        4 => (vec![1, 2], 1),
        5 => (vec![1], 2),
        6 => (vec![1, 3], 2),
        7 => (vec![1, 3, 4], 2),
        _ => (vec![1, 3], 3),
    }
}

fn facts(read: &Replay) -> (Vec<u128>, i64) {
    (open_ids(read), read.next_post_no)
}

/// Lines are of the checkpoint, the start, four opens with two posts, and a note.
const LINES: usize = 9;
/// The checkpoint and the start are synced by the opening.
const SYNCED_BY_OPENING: usize = 2;

#[test]
fn a_cut_at_any_byte_leaves_a_prefix() {
    let (disk, starts) = written(None);
    assert_eq!(starts.len(), LINES);
    let end = starts[8] + 200;
    for cut in SEGMENT_HEADER..end {
        let cut_disk = disk.copy();
        cut_disk.change(1, |bytes| bytes[cut..].fill(0));
        // Zeros after the last byte of a line that is not zero do not cut it.
        let whole = |index: &usize| {
            let after = starts.get(index + 1).copied().unwrap_or(end);
            let mut line = Vec::new();
            disk.change(1, |bytes| {
                line = bytes[starts[*index]..after].to_vec();
            });
            let used = line.iter().rposition(|b| *b != 0).unwrap() + 1;
            starts[*index] + used <= cut
        };
        let lines = (0..LINES).take_while(whole).count();
        let read = replay(&cut_disk).unwrap_or_else(|e| panic!("{cut}: {e}"));
        assert_eq!(facts(&read), prefix(lines), "cut at {cut}");
        assert_eq!(read.seq, if lines == LINES { 3 } else { 0 });
        let (journal, reopened) = open(&cut_disk, 2);
        assert_eq!(facts(&reopened), facts(&read), "cut at {cut}");
        let posts = posts_after(&journal, 0);
        assert_eq!(posts, [(1, 2), (2, 4)][..posts.len()]);
        assert_eq!(posts.len() + 1, usize::try_from(read.next_post_no).unwrap());
        drop(journal);
        let (_, again) = open(&cut_disk, 3);
        assert_eq!(facts(&again), facts(&read), "a torn tail is torn once");
        assert_eq!(again.torn_bytes, 0);
    }
}

#[test]
fn a_truncated_file_leaves_a_prefix_too() {
    let (disk, starts) = written(None);
    for (lines, start) in starts.iter().enumerate().skip(SYNCED_BY_OPENING) {
        for cut in [*start, *start + 11] {
            let cut_disk = disk.copy();
            cut_disk.change(1, |bytes| bytes.truncate(cut));
            assert_eq!(facts(&replay(&cut_disk).unwrap()), prefix(lines));
        }
    }
}

#[test]
fn a_hole_in_what_was_synced_is_corruption() {
    let (disk, starts) = written(Some(3));
    // Six lines were synced, and the seventh proves it.
    for byte in SEGMENT_HEADER..starts[6] {
        let broken = disk.copy();
        broken.change(1, |bytes| bytes[byte] ^= 0x10);
        let line = starts.iter().rposition(|start| *start <= byte).unwrap();
        match replay(&broken) {
            Err(JournalError::Corrupt { segment, offset }) => {
                assert_eq!((segment, offset), (1, starts[line] as u64), "byte {byte}");
            }
            other => panic!("byte {byte}: {other:?}"),
        }
        assert!(matches!(
            crate::journal::Journal::open(std::sync::Arc::new(broken), small(), identity(2)),
            Err(JournalError::Corrupt { .. })
        ));
    }
}

#[test]
fn lines_after_a_hole_in_the_tail_do_not_count() {
    let (disk, starts) = written(Some(1));
    // A hold behind the hole may rest on room that a lost post made free.
    for (line, expected) in [(3, (vec![1], 1)), (4, (vec![1, 2], 1)), (5, (vec![1], 2))] {
        let broken = disk.copy();
        broken.change(1, |bytes| bytes[starts[line] + 50] ^= 1);
        let read = replay(&broken).unwrap();
        assert_eq!(facts(&read), expected);
        assert_eq!(read.seq, 0, "the note stands behind the hole");
        assert!(read.torn_bytes > 0);
        let (journal, opened) = open(&broken, 2);
        assert_eq!(facts(&opened), expected);
        let numbers: Vec<i64> = posts_after(&journal, 0).iter().map(|p| p.0).collect();
        assert_eq!(numbers, (1..expected.1).collect::<Vec<i64>>());
        journal.sync().unwrap();
        drop(journal);
        assert_eq!(facts(&open(&broken, 3).1), expected, "read again");
    }
}

#[test]
fn a_segment_that_is_gone_is_noticed() {
    let disk = MemoryDisk::default();
    let (journal, _) = open(&disk, 1);
    let mut holder = Holder::default();
    for n in 1..=600 {
        journal.maintain(UnixMillis(0)).unwrap();
        holder.open(&journal, n).unwrap();
        holder.post(&journal, n).unwrap();
        journal.sync().unwrap();
    }
    let numbers = disk.numbers();
    assert!(numbers.len() >= 4);
    let broken = disk.copy();
    crate::journal::Disk::remove(&broken, numbers[1]).unwrap();
    let read = replay(&broken);
    assert!(
        matches!(read, Err(JournalError::Corrupt { .. })),
        "{read:?}"
    );
    // The oldest one may have been removed rightly; but its posts are asked for.
    let broken = disk.copy();
    crate::journal::Disk::remove(&broken, numbers[0]).unwrap();
    let read = open(&broken, 2).0.posts_after(0);
    assert!(matches!(read, Err(JournalError::PostsGone { from: 1, .. })));
}

#[test]
fn an_opening_that_was_stopped_half_way_is_as_if_it_had_not_been() {
    let (disk, _) = written(None);
    let before = facts(&replay(&disk).unwrap());
    let (journal, _) = open(&disk, 2);
    drop(journal);
    for kept in [0, 1, 17, 63, 64, 100, SEGMENT_HEADER] {
        let stopped = written(None).0;
        let mut header = Vec::new();
        disk.change(2, |bytes| header = bytes.clone());
        crate::journal::Disk::create(&stopped, 2, header.len() as u64).unwrap();
        stopped.change(2, |bytes| {
            bytes.copy_from_slice(&header);
            bytes[kept..SEGMENT_HEADER].fill(0);
        });
        assert_eq!(facts(&replay(&stopped).unwrap()), before, "{kept}");
        assert_eq!(facts(&open(&stopped, 3).1), before, "{kept}");
    }
}

#[test]
fn the_journal_of_another_instance_is_refused() {
    let (disk, _) = written(None);
    let mut other = identity(2);
    other.instance_id = sluice_domain::id::InstanceId::from_uuid(uuid::Uuid::from_u128(9));
    assert!(matches!(
        crate::journal::Journal::open(std::sync::Arc::new(disk), small(), other),
        Err(JournalError::Foreign { segment: 1, .. })
    ));
}

#[test]
fn an_empty_folder_is_an_empty_journal() {
    let read = replay(&MemoryDisk::default()).unwrap();
    assert_eq!(read.instance_id, None);
    assert_eq!(facts(&read), (vec![], 1));
}
