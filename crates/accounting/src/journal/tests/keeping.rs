use std::time::Duration;

use sluice_domain::time::UnixMillis;

use super::fixture::*;
use crate::journal::{Journal, JournalError, Options, replay};

fn opened(disk: &MemoryDisk, options: Options) -> Journal {
    let disk = std::sync::Arc::new(disk.clone());
    Journal::open(disk, options, identity(1)).unwrap().0
}

#[test]
fn a_full_disk_stops_opens_and_every_open_hold_still_posts() {
    for spare in 0..3 {
        let disk = MemoryDisk::default();
        let (journal, _) = open(&disk, 1);
        for _ in 0..spare {
            journal.maintain(UnixMillis(0)).unwrap();
        }
        disk.faults(|faults| faults.is_full = true);
        let mut holder = Holder::default();
        let mut n = 0;
        let full = loop {
            n += 1;
            if let Err(error) = holder.open(&journal, n) {
                break error;
            }
            let mut turn = journal.turn();
            turn.attempt(&attempt(n, 0));
            turn.progress(&progress(n, 1));
            journal.append(&mut turn, |_| {}).unwrap();
        };
        assert!(matches!(full, JournalError::Full), "{full:?}");
        let found = journal.maintain(UnixMillis(0)).unwrap();
        assert!(found.disk_is_full);
        assert!(n > 40);
        // Progress is dropped without a word.
        let mut turn = journal.turn();
        for _ in 0..10_000 {
            turn.progress(&progress(1, 2));
        }
        journal.append(&mut turn, |_| {}).unwrap();
        for id in 1..n {
            let slot = holder.slots.remove(&id).unwrap();
            let mut turn = journal.turn();
            let mut long = record(id);
            let again = long.end.attempts[0].clone();
            // Five attempts are what a slot has room for.
            long.end.attempts.extend(std::iter::repeat_n(again, 3));
            turn.post(long, slot);
            let posted = &mut holder.posted;
            journal
                .append(&mut turn, |post| posted.push(number_of(&post)))
                .unwrap();
            let seq = i64::try_from(id).unwrap();
            if id.is_multiple_of(10) {
                journal.note_sent(seq, &[]).unwrap();
                journal.note_ack(seq, seq, &[lease(1, 5)]).unwrap();
            }
        }
        assert_eq!(posts_after(&journal, 0), holder.posted);
        assert_eq!(kept_posts(&disk), holder.posted, "without opening it");
        assert!(open_ids(&replay(&disk).unwrap()).is_empty());

        disk.faults(|faults| faults.is_full = false);
        journal.maintain(UnixMillis(0)).unwrap();
        holder.open(&journal, n).unwrap();
    }
}

#[test]
fn holds_of_an_earlier_start_post_on_a_full_disk() {
    let disk = MemoryDisk::default();
    let (journal, _) = open(&disk, 1);
    let mut holder = Holder::default();
    for n in 1..=300 {
        journal.maintain(UnixMillis(0)).unwrap();
        holder.open(&journal, n).unwrap();
    }
    let (journal, read) = open(&disk.copy(), 2);
    assert_eq!(read.holds.len(), 300);
    let mut turn = journal.turn();
    let mut n = 1_000;
    while let Ok(slot) = journal.reserve(&open_request(n)) {
        drop(turn.open(&open_request(n), slot));
        n += 1;
    }
    journal.append(&mut turn, |_| {}).unwrap();
    let mut later = Holder::default();
    for n in 1..=300 {
        later.post(&journal, n).unwrap();
    }
    assert!(journal.slot_of(request(1)).is_none(), "once");
}

#[test]
fn records_lose_earlier_attempts_before_they_lose_their_space() {
    let disk = MemoryDisk::default();
    let (journal, _) = open(&disk, 1);
    let mut holder = Holder::default();
    let mut n = 0;
    while holder.open(&journal, n + 1).is_ok() {
        n += 1;
    }
    let mut long = record(1);
    let mut again = long.end.attempts[0].clone();
    again.upstream_model = "m".repeat(200).into();
    long.end.attempts = std::iter::repeat_n(again, 12).collect();
    let owed = long.end.owed;
    let mut turn = journal.turn();
    turn.post(long, holder.slots.remove(&1).unwrap());
    journal.append(&mut turn, |_| {}).unwrap();
    let read = journal.posts_after(0).unwrap();
    assert_eq!(read[0].record.end.owed, owed);
    assert_eq!(read[0].record.end.attempts.len(), 1);
    for id in 2..=n {
        holder.post(&journal, id).unwrap();
    }
}

/// Opens and posts so many requests, and syncs.
fn run(journal: &Journal, holder: &mut Holder, ids: std::ops::Range<u128>, now: i64) {
    for n in ids {
        journal.maintain(UnixMillis(now)).unwrap();
        holder.open(journal, n).unwrap();
        holder.post(journal, n).unwrap();
    }
    journal.sync().unwrap();
}

#[test]
fn segments_are_kept_for_their_time_after_the_last_ack() {
    let disk = MemoryDisk::default();
    let options = Options {
        keep: Duration::from_secs(10),
        ..small()
    };
    let journal = opened(&disk, options);
    let mut holder = Holder::default();
    run(&journal, &mut holder, 1..500, 0);
    let before = disk.numbers();
    assert!(before.len() >= 4);
    assert_eq!(journal.maintain(UnixMillis(100_000)).unwrap().removed, 0);
    assert_eq!(disk.numbers(), before, "nothing was acked");
    journal.note_ack(1, 499, &[]).unwrap();
    assert_eq!(journal.maintain(UnixMillis(50_000)).unwrap().removed, 0);
    // What is removed because of a note must not come back with a power cut that takes the note.
    journal.sync().unwrap();
    assert_eq!(journal.maintain(UnixMillis(100_000)).unwrap().removed, 0);
    assert_eq!(journal.maintain(UnixMillis(109_999)).unwrap().removed, 0);
    assert!(journal.maintain(UnixMillis(110_000)).unwrap().removed >= 2);
    let Err(JournalError::PostsGone { from: 1, oldest }) = journal.posts_after(0) else {
        panic!("the first posts are gone");
    };
    assert!(oldest > 1);
    let kept = &holder.posted[usize::try_from(oldest).unwrap() - 1..];
    assert_eq!(posts_after(&journal, oldest - 1), kept);
    assert_eq!(kept_posts(&disk), kept);
    assert_eq!(open(&disk, 2).1.next_post_no, 500);
    assert_eq!(kept_posts(&disk), kept, "once, after a start");
}

#[test]
fn segments_go_early_when_they_are_too_many_or_the_disk_is_full() {
    for is_full in [false, true] {
        let disk = MemoryDisk::default();
        let max_bytes = if is_full { u64::MAX } else { 256 << 10 };
        let journal = opened(
            &disk,
            Options {
                max_bytes,
                ..small()
            },
        );
        let mut holder = Holder::default();
        let mut n = 1;
        for round in 1..=5 {
            run(&journal, &mut holder, n..n + 100, 0);
            n += 100;
            let posted = i64::try_from(n - 1).unwrap();
            journal.note_ack(round, posted, &[]).unwrap();
            journal.sync().unwrap();
        }
        assert_eq!(disk.numbers().contains(&1), is_full);
        disk.faults(|faults| faults.is_full = is_full);
        while is_full && holder.open(&journal, n).is_ok() {
            n += 1;
        }
        let done = journal.maintain(UnixMillis(0)).unwrap();
        assert!(!is_full || done.removed >= 1, "{done:?}");
        assert!(is_full || done.bytes <= 256 << 10);
        replay(&disk).unwrap();
    }
}

#[test]
fn what_waits_for_the_database_is_bounded_and_every_open_hold_still_posts() {
    const MAX: u64 = 512 << 10;
    let disk = MemoryDisk::default();
    let options = Options {
        max_bytes: MAX,
        ..small()
    };
    let journal = opened(&disk, options);
    let mut holder = Holder::default();
    let mut n = 0;
    // The database takes nothing in; some holds stay open.
    let full = loop {
        n += 1;
        let done = journal.maintain(UnixMillis(0)).unwrap();
        assert!(done.bytes <= MAX, "{done:?}");
        if let Err(error) = holder.open(&journal, n) {
            break error;
        }
        if !n.is_multiple_of(10) {
            holder.post(&journal, n).unwrap();
        }
    };
    assert!(matches!(full, JournalError::Full), "{full:?}");
    assert!(n > 500, "{n}");
    journal.sync().unwrap();
    assert!(journal.maintain(UnixMillis(0)).unwrap().is_at_bound);
    let open: Vec<u128> = holder.slots.keys().copied().collect();
    for id in open {
        holder.post(&journal, id).unwrap();
    }
    // It is away for long: each answer that is lost costs a note.
    let mut seq = 0;
    for _ in 0..2_000 {
        seq += 1;
        journal.note_sent(seq, &[lease(1, 5)]).unwrap();
        journal.maintain(UnixMillis(0)).unwrap();
    }
    assert!(holder.open(&journal, n).is_err());
    let done = journal.maintain(UnixMillis(0)).unwrap();
    assert!(done.bytes <= MAX + 3 * options.segment_bytes, "{done:?}");
    assert_eq!(posts_after(&journal, 0), holder.posted);

    // It takes in the first half, then everything. Nothing is kept for longer than there is space.
    let last = i64::try_from(holder.posted.len()).unwrap();
    for posted in [last / 2, last] {
        journal.note_ack(seq, posted, &[]).unwrap();
        journal.sync().unwrap();
        let done = journal.maintain(UnixMillis(0)).unwrap();
        assert!(!done.is_at_bound && done.bytes <= MAX, "{done:?}");
        holder.open(&journal, n).unwrap();
        n += 1;
    }
    replay(&disk).unwrap();
}

#[test]
fn a_bound_below_four_segments_is_one_of_four() {
    let disk = MemoryDisk::default();
    let options = Options {
        max_bytes: 1,
        ..small()
    };
    let journal = opened(&disk, options);
    let mut holder = Holder::default();
    for round in 0..20 {
        let first = 1 + 100 * round;
        run(&journal, &mut holder, first..first + 100, 0);
        let posted = i64::try_from(first + 99).unwrap();
        journal.note_ack(posted, posted, &[]).unwrap();
        journal.sync().unwrap();
        let done = journal.maintain(UnixMillis(0)).unwrap();
        assert!(done.bytes <= 4 * options.segment_bytes, "{done:?}");
    }
}

#[test]
fn a_long_request_does_not_pin_what_came_after_it() {
    let disk = MemoryDisk::default();
    let max_bytes = 256 << 10;
    let journal = opened(
        &disk,
        Options {
            max_bytes,
            ..small()
        },
    );
    let mut holder = Holder::default();
    holder.open(&journal, 100_000).unwrap();
    let mut turn = journal.turn();
    turn.attempt(&attempt(100_000, 0));
    turn.progress(&progress(100_000, 5));
    journal.append(&mut turn, |_| {}).unwrap();
    let mut first = 1;
    for round in 0..20 {
        run(&journal, &mut holder, first..first + 60, round);
        first += 60;
        let posted = i64::try_from(first - 1).unwrap();
        journal.note_ack(round, posted, &[]).unwrap();
        journal.sync().unwrap();
        let done = journal.maintain(UnixMillis(round)).unwrap();
        assert!(done.bytes <= 512 << 10, "{done:?}");
        let read = replay(&disk).unwrap();
        assert_eq!(open_ids(&read), [100_000], "{round}");
        assert_eq!(read.holds[0].attempts, [attempt(100_000, 0)]);
        assert_eq!(read.holds[0].progress, Some(progress(100_000, 5)));
    }
    assert!(!disk.numbers().contains(&1), "the first segment is gone");
    holder.post(&journal, 100_000).unwrap();
    assert_eq!(open_ids(&replay(&disk).unwrap()), [] as [u128; 0]);
}

#[test]
fn a_database_that_goes_back_gets_its_posts_again() {
    let disk = MemoryDisk::default();
    let (journal, _) = open(&disk, 1);
    let mut holder = Holder::default();
    run(&journal, &mut holder, 1..500, 0);
    journal.note_ack(1, 499, &[]).unwrap();
    journal.maintain(UnixMillis(0)).unwrap();
    drop(journal);
    let (journal, read) = open(&disk, 2);
    assert_eq!(read.posted_no, 499);
    for posted in [0, 1, 250, 498, 499] {
        let at = usize::try_from(posted).unwrap();
        assert_eq!(posts_after(&journal, posted), holder.posted[at..]);
    }
}

#[test]
fn what_a_database_that_went_back_has_lost_is_kept_until_it_has_it_again() {
    let disk = MemoryDisk::default();
    let options = Options {
        keep: Duration::ZERO,
        max_bytes: 1,
        ..small()
    };
    let journal = opened(&disk, options);
    let mut holder = Holder::default();
    run(&journal, &mut holder, 1..150, 0);
    journal.note_ack(1, 40, &[lease(1, 5)]).unwrap();
    journal.note_sent(2, &[lease(1, 4)]).unwrap();
    journal.note_ack(2, 149, &[]).unwrap();
    journal.note_sent(3, &[]).unwrap();
    journal.sync().unwrap();
    journal.note_went_back(7).unwrap();
    assert_eq!(journal.maintain(UnixMillis(1)).unwrap().removed, 0);
    assert_eq!(posts_after(&journal, 7), holder.posted[7..]);
    let read = replay(&disk).unwrap();
    assert_eq!((read.posted_no, read.seq, read.sent), (7, 2, Some(3)));
    assert_eq!(read.leases, [lease(1, 4)]);
    // It is never taken for further than it was.
    journal.note_went_back(149).unwrap();
    assert_eq!(replay(&disk).unwrap().posted_no, 7);
    journal.note_ack(3, 149, &[]).unwrap();
    journal.sync().unwrap();
    assert!(journal.maintain(UnixMillis(1)).unwrap().removed > 0);
    assert!(
        journal.posts_after(7).is_err(),
        "nothing is kept for longer"
    );
}

/// Wherever the journal ends, the transaction whose answer is awaited is known: without it the next
/// start would take its own transaction for that of another process.
#[test]
fn that_a_database_went_back_is_noted_as_a_whole_or_not_at_all() {
    let mut seen = [0, 0];
    for kept in 0.. {
        let disk = MemoryDisk::default();
        let journal = opened(&disk, small());
        let mut holder = Holder::default();
        run(&journal, &mut holder, 1..10, 0);
        journal.note_sent(1, &[]).unwrap();
        journal.note_ack(1, 8, &[lease(1, 5)]).unwrap();
        journal.note_sent(2, &[lease(1, 4)]).unwrap();
        journal.sync().unwrap();
        journal.note_went_back(3).unwrap();
        let mut left = kept;
        let disk = disk.after_power_cut(|length| {
            let kept = left.min(length);
            left -= kept;
            kept
        });
        let read = replay(&disk).unwrap();
        assert_eq!((read.seq, read.sent), (1, Some(2)), "{kept}");
        assert_eq!(read.leases, [lease(1, 4)], "{kept}");
        assert!(matches!(read.posted_no, 3 | 8), "{kept}");
        seen[usize::from(read.posted_no == 3)] += 1;
        if left > 0 {
            break;
        }
    }
    assert!(seen[0] > 20 && seen[1] > 0, "{seen:?}");
}

#[test]
fn that_a_database_went_back_is_known_where_a_segment_ends_with_it() {
    let disk = MemoryDisk::default();
    let journal = opened(&disk, small());
    run(&journal, &mut Holder::default(), 1..150, 0);
    journal.note_ack(1, 20, &[lease(1, 5)]).unwrap();
    journal.note_sent(2, &[lease(1, 4)]).unwrap();
    let active = || journal.writer.lock().active.number();
    let mut rolls = 0;
    for note in 0..10_000 {
        let before = active();
        journal.note_went_back(7).unwrap();
        if active() == before && note > 0 {
            continue;
        }
        let read = replay(&disk).unwrap();
        let seen = (read.posted_no, read.seq, read.sent);
        assert_eq!(seen, (7, 1, Some(2)), "{note}");
        assert_eq!(read.leases, [lease(1, 4)], "{note}");
        rolls += active() - before;
        journal.maintain(UnixMillis(0)).unwrap();
        if rolls == 2 {
            return;
        }
    }
    panic!("no segment ended");
}
