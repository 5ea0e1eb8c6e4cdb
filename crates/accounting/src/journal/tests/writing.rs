use std::sync::Arc;

use parking_lot::Mutex;

use sluice_domain::time::UnixMillis;

use super::fixture::*;
use crate::journal::{FolderDisk, Journal, JournalError, replay};

#[test]
fn what_was_appended_is_read_after_a_kill() {
    let disk = MemoryDisk::default();
    let (journal, first) = open(&disk, 1);
    assert_eq!(first.next_post_no, 1);
    let mut holder = Holder::default();
    holder.open(&journal, 1).unwrap();
    holder.open(&journal, 2).unwrap();
    let mut turn = journal.turn();
    turn.attempt(&attempt(2, 0));
    turn.attempt(&attempt(2, 1));
    turn.progress(&progress(2, 7));
    turn.progress(&progress(2, 19));
    journal.append(&mut turn, |_| {}).unwrap();
    holder.post(&journal, 1).unwrap();
    journal.note_ack(5, 0, &[lease(1, 100)]).unwrap();

    let read = replay(&disk.copy()).unwrap();
    assert_eq!(open_ids(&read), [2]);
    assert_eq!(read.holds[0].attempts, [attempt(2, 0), attempt(2, 1)]);
    assert_eq!(read.holds[0].progress, Some(progress(2, 19)));
    assert_eq!(read.next_post_no, 2);
    assert_eq!((read.seq, read.posted_no, read.sent), (5, 0, None));
    assert_eq!(read.leases, [lease(1, 100)]);
    assert_eq!(read.instance_id, Some(instance()));
    assert_eq!(read.torn_bytes, 0);

    let (journal, read) = open(&disk.copy(), 2);
    assert_eq!(open_ids(&read), [2]);
    assert_eq!(read.boots, [identity(1).boot_id, identity(2).boot_id]);
    assert_eq!(posts_after(&journal, 0), [(1, 1)]);
    let mut holder = Holder::default();
    holder.post(&journal, 2).unwrap();
    assert_eq!(holder.posted, [(2, 2)], "numbers go on");
}

#[test]
fn a_sent_transaction_lowers_balances_and_its_answer_sets_them() {
    let disk = MemoryDisk::default();
    let (journal, _) = open(&disk, 1);
    journal
        .note_ack(1, 0, &[lease(1, 100), lease(2, 50)])
        .unwrap();
    journal
        .note_sent(2, &[lease(1, 80), lease(2, 70), lease(3, 10)])
        .unwrap();
    let read = replay(&disk).unwrap();
    assert_eq!((read.seq, read.sent), (1, Some(2)));
    assert_eq!(read.leases, [lease(1, 80), lease(2, 50)]);
    journal
        .note_ack(2, 0, &[lease(2, 70), lease(1, 0)])
        .unwrap();
    let read = replay(&disk).unwrap();
    assert_eq!((read.seq, read.sent), (2, None));
    assert_eq!(read.leases, [lease(2, 70)], "nothing held is left out");
}

#[test]
fn more_leases_than_fit_into_a_line_survive_a_roll_and_a_start() {
    let disk = MemoryDisk::default();
    let (journal, _) = open(&disk, 1);
    let leases: Vec<_> = (1..=200).map(|n| lease(n, 5)).collect();
    journal.note_ack(1, 0, &leases).unwrap();
    assert_eq!(replay(&disk).unwrap().leases, leases);
    journal.maintain(UnixMillis(0)).unwrap();
    fill_segments(&journal, 2);
    assert_eq!(replay(&disk).unwrap().leases, leases);
    assert_eq!(open(&disk, 2).1.leases, leases);
}

#[test]
fn a_note_of_many_leases_says_the_same_wherever_a_segment_ends() {
    let leases = |tokens| (1..=200).map(|n| lease(n, tokens)).collect::<Vec<_>>();
    let mut rolls = 0;
    for filled in 50..200 {
        let disk = MemoryDisk::default();
        let (journal, _) = open(&disk, 1);
        journal.note_ack(1, 0, &leases(100)).unwrap();
        let mut holder = Holder::default();
        for n in 0..filled {
            journal.maintain(UnixMillis(0)).unwrap();
            holder.open(&journal, n + 1_000).unwrap();
            holder.post(&journal, n + 1_000).unwrap();
        }
        journal.maintain(UnixMillis(0)).unwrap();
        let active = || journal.writer.lock().active.number();
        let before = active();
        journal.note_sent(2, &leases(60)).unwrap();
        assert_eq!(replay(&disk).unwrap().leases, leases(60), "{filled}");
        journal.note_ack(2, 0, &leases(80)).unwrap();
        let read = replay(&disk).unwrap();
        assert_eq!((read.seq, read.sent), (2, None));
        assert_eq!(read.leases, leases(80), "{filled}");
        rolls += active() - before;
    }
    assert!(rolls > 0);
}

/// The first lines of an answer never say that posts were taken in while the last ones would still
/// have to say that their charges are not leased any more.
#[test]
fn an_answer_that_is_cut_off_leaves_no_more_than_is_leased() {
    let before: Vec<_> = (1..=200).map(|n| lease(n, 100)).collect();
    // Some are used up, others were raised meanwhile.
    let now = |n| if n % 3 == 0 { 130 } else { 40 };
    let after: Vec<_> = (1..=200).map(|n| lease(n, now(n))).collect();
    let mut kept = 0;
    loop {
        let disk = MemoryDisk::default();
        let (journal, _) = open(&disk, 1);
        journal.note_ack(1, 0, &before).unwrap();
        journal.note_sent(2, &[]).unwrap();
        journal.sync().unwrap();
        journal.note_ack(2, 7, &after).unwrap();
        let mut left = kept;
        let disk = disk.after_power_cut(|length| {
            let kept = left.min(length);
            left -= kept;
            kept
        });
        let read = replay(&disk).unwrap();
        for lease in &read.leases {
            let n = lease.key.tenant_id.as_uuid().as_u128();
            let most = if read.posted_no == 7 { now(n) } else { 100 };
            assert!(lease.held.tokens <= most, "{kept}: {lease:?}");
        }
        if left > 0 {
            assert_eq!((read.leases, read.posted_no), (after, 7));
            return;
        }
        assert_eq!(
            read.sent.unwrap_or(read.seq),
            2,
            "it may have been taken in"
        );
        kept += 500;
    }
}

/// Opens and posts until so many segments were begun.
fn fill_segments(journal: &Journal, count: usize) {
    let mut holder = Holder::default();
    for n in 0..(count as u128 * 150) {
        journal.maintain(UnixMillis(0)).unwrap();
        holder.open(journal, n + 1_000).unwrap();
        holder.post(journal, n + 1_000).unwrap();
    }
}

#[test]
fn numbers_are_dense_and_told_in_order_when_threads_append_together() {
    let disk = MemoryDisk::default();
    let (journal, _) = open(&disk, 1);
    let journal = Arc::new(journal);
    let told = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for thread in 0..4_u128 {
            let (journal, told) = (&journal, &told);
            scope.spawn(move || {
                let mut turn = journal.turn();
                for n in 0..200 {
                    let id = thread * 1_000 + n + 1;
                    let open = open_request(id);
                    let slot = loop {
                        match journal.reserve(&open) {
                            Ok(slot) => break slot,
                            Err(JournalError::Full) => {
                                journal.maintain(UnixMillis(0)).unwrap();
                            }
                            Err(other) => panic!("{other}"),
                        }
                    };
                    let slot = turn.open(&open, slot);
                    turn.post(record(id), slot);
                    if n % 3 == 0 {
                        journal
                            .append(&mut turn, |post| told.lock().push(number_of(&post)))
                            .unwrap();
                        journal.sync().unwrap();
                    }
                }
                journal
                    .append(&mut turn, |post| told.lock().push(number_of(&post)))
                    .unwrap();
            });
        }
    });
    let told = told.into_inner();
    let numbers: Vec<i64> = told.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, (1..=800).collect::<Vec<i64>>());
    assert_eq!(posts_after(&journal, 0), told);
    assert_eq!(posts_after(&journal, 790), told[790..]);
    let (journal, read) = open(&disk, 2);
    assert_eq!(read.next_post_no, 801);
    assert_eq!(posts_after(&journal, 0), told);
}

#[test]
fn a_turn_larger_than_what_is_left_goes_on_in_the_next_segments() {
    let disk = MemoryDisk::default();
    let (journal, _) = open(&disk, 1);
    let mut turn = journal.turn();
    let mut n = 0;
    // More than two segments.
    while turn.len() < 900 {
        n += 1;
        let Ok(slot) = journal.reserve(&open_request(n)) else {
            journal.maintain(UnixMillis(0)).unwrap();
            continue;
        };
        let slot = turn.open(&open_request(n), slot);
        turn.post(record(n), slot);
    }
    let mut told = Vec::new();
    journal
        .append(&mut turn, |post| told.push(number_of(&post)))
        .unwrap();
    assert!(told.len() >= 300);
    assert_eq!(posts_after(&journal, 0), told);
    assert_eq!(open_ids(&replay(&disk).unwrap()), [] as [u128; 0]);
    let next = i64::try_from(told.len()).unwrap() + 1;
    assert_eq!(replay(&disk).unwrap().next_post_no, next);
}

#[test]
fn a_name_that_is_too_long_is_refused() {
    let disk = MemoryDisk::default();
    let (journal, _) = open(&disk, 1);
    let mut open = open_request(1);
    open.requested_model = "m".repeat(5_000).into();
    assert!(matches!(
        journal.reserve(&open),
        Err(JournalError::TooLong { .. })
    ));
}

#[test]
fn a_turn_that_is_dropped_gives_its_space_back() {
    let disk = MemoryDisk::default();
    let (journal, _) = open(&disk, 1);
    let before = journal.space.free();
    let slot = journal.reserve(&open_request(1)).unwrap();
    let mut turn = journal.turn();
    let slot = turn.open(&open_request(1), slot);
    turn.attempt(&attempt(1, 0));
    turn.post(record(1), slot);
    assert!(journal.space.free() < before);
    drop(turn);
    assert_eq!(journal.space.free(), before);
}

#[test]
fn a_journal_lives_in_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let disk = || Arc::new(FolderDisk::open(folder.path()).unwrap());
    let (journal, _) = Journal::open(disk(), small(), identity(1)).unwrap();
    let mut holder = Holder::default();
    for n in 1..=400 {
        journal.maintain(UnixMillis(0)).unwrap();
        holder.open(&journal, n).unwrap();
        if n % 2 == 0 {
            holder.post(&journal, n).unwrap();
        }
    }
    journal.sync().unwrap();
    assert_eq!(journal.synced_sequence(), journal.last_sequence());
    drop(journal);
    let (journal, read) = Journal::open(disk(), small(), identity(2)).unwrap();
    assert_eq!(read.holds.len(), 200);
    assert_eq!(posts_after(&journal, 0), holder.posted);
}
