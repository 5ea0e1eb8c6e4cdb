use sluice_domain::time::UnixMillis;

use super::fixture::*;
use crate::journal::{JournalError, replay};

#[test]
fn what_a_failed_sync_may_have_lost_is_written_again() {
    let disk = MemoryDisk::default();
    let (journal, _) = open(&disk, 1);
    let mut holder = Holder::default();
    holder.open(&journal, 1).unwrap();
    holder.post(&journal, 1).unwrap();
    journal.sync().unwrap();
    holder.open(&journal, 2).unwrap();
    holder.open(&journal, 3).unwrap();
    let mut turn = journal.turn();
    turn.attempt(&attempt(2, 0));
    turn.progress(&progress(2, 4));
    journal.append(&mut turn, |_| {}).unwrap();
    holder.post(&journal, 3).unwrap();
    journal.note_ack(9, 1, &[lease(1, 3)]).unwrap();

    disk.faults(|faults| faults.fail_sync = true);
    assert!(journal.sync().unwrap_err().is_failure());
    assert!(journal.sync().unwrap_err().is_failure(), "the file is over");
    assert!(journal.reserve(&open_request(4)).unwrap_err().is_failure());
    assert!(holder_fails(&journal));

    journal.recover_from_failure().unwrap();
    for disk in [disk.copy(), disk.after_power_cut(|_| 0)] {
        let read = replay(&disk).unwrap();
        assert_eq!(open_ids(&read), [2]);
        assert_eq!(read.holds[0].attempts, [attempt(2, 0)]);
        assert_eq!(read.holds[0].progress, Some(progress(2, 4)));
        assert_eq!((read.seq, read.posted_no), (9, 1));
        assert_eq!(posts_after(&open(&disk, 2).0, 0), [(1, 1), (2, 3)]);
    }
    holder.post(&journal, 2).unwrap();
    holder.open(&journal, 5).unwrap();
    journal.sync().unwrap();
    assert_eq!(holder.posted, [(1, 1), (2, 3), (3, 2)]);
    assert_eq!(posts_after(&journal, 0), holder.posted);
    assert_eq!(
        open_ids(&replay(&disk.after_power_cut(|_| 0)).unwrap()),
        [5]
    );
}

fn holder_fails(journal: &crate::journal::Journal) -> bool {
    let mut turn = journal.turn();
    turn.progress(&progress(2, 9));
    let failed = journal.append(&mut turn, |_| {}).unwrap_err().is_failure();
    failed && turn.len() == 1
}

#[test]
fn a_torn_append_counts_as_nothing_and_can_be_repeated() {
    let probe = MemoryDisk::default();
    let length = {
        let (journal, _) = open(&probe, 1);
        turn_of_three(&journal).batch.len()
    };
    for kept in 0..=length {
        let disk = MemoryDisk::default();
        let (journal, _) = open(&disk, 1);
        let mut holder = Holder::default();
        holder.open(&journal, 7).unwrap();
        holder.post(&journal, 7).unwrap();
        journal.sync().unwrap();
        holder.open(&journal, 1).unwrap();
        let mut turn = turn_of_three(&journal);
        let mut told = Vec::new();
        disk.faults(|faults| faults.tear_write = Some(kept));
        let failed = journal.append(&mut turn, |post| told.push(number_of(&post)));
        assert!(failed.unwrap_err().is_failure());
        assert_eq!(told, [], "nothing is told before it is written");

        // Killed here: a line that reached the disk may count, no other does.
        let killed = replay(&disk.copy()).unwrap();
        assert!(open_ids(&killed).starts_with(&[1]), "{kept}");
        assert!(killed.next_post_no <= 3);

        journal.recover_from_failure().unwrap();
        assert_eq!(open_ids(&replay(&disk).unwrap()), [1], "{kept}");
        // Others come first and take the numbers.
        holder.post(&journal, 1).unwrap();
        journal
            .append(&mut turn, |post| told.push(number_of(&post)))
            .unwrap();
        assert_eq!(told, [(3, 10)]);
        assert_eq!(posts_after(&journal, 0), [(1, 7), (2, 1), (3, 10)]);
        let disk = disk.copy();
        let (journal, read) = open(&disk, 2);
        assert_eq!(open_ids(&read), [11], "{kept}");
        assert_eq!(posts_after(&journal, 0), [(1, 7), (2, 1), (3, 10)]);

        // A start that passes the file over does not know where its lines ended.
        journal.note_ack(1, 3, &[]).unwrap();
        drop(journal);
        drop(open(&disk, 3));
        let (journal, _) = open(&disk, 4);
        assert_eq!(
            posts_after(&journal, 0),
            [(1, 7), (2, 1), (3, 10)],
            "{kept}"
        );
    }
}

/// Opens 10 and 11 and posts 10.
fn turn_of_three(journal: &crate::journal::Journal) -> crate::journal::Turn {
    let mut turn = journal.turn();
    let slot = journal.reserve(&open_request(10)).unwrap();
    let slot = turn.open(&open_request(10), slot);
    let other = journal.reserve(&open_request(11)).unwrap();
    drop(turn.open(&open_request(11), other));
    turn.post(record(10), slot);
    turn
}

#[test]
fn a_failure_in_the_middle_of_a_roll_loses_nothing() {
    for kept in [0, 1, 100, 5_000, 40_000] {
        let disk = MemoryDisk::default();
        let (journal, _) = open(&disk, 1);
        journal.maintain(UnixMillis(0)).unwrap();
        let mut holder = Holder::default();
        holder.open(&journal, 1).unwrap();
        holder.post(&journal, 1).unwrap();
        journal.sync().unwrap();
        holder.open(&journal, 2).unwrap();
        let mut turn = journal.turn();
        let mut opened = 0;
        while let Ok(slot) = journal.reserve(&open_request(100 + opened)) {
            drop(turn.open(&open_request(100 + opened), slot));
            opened += 1;
        }
        disk.faults(|faults| faults.tear_write = Some(kept));
        assert!(journal.append(&mut turn, |_| {}).unwrap_err().is_failure());
        journal.recover_from_failure().unwrap();
        assert_eq!(open_ids(&replay(&disk).unwrap()), [2]);
        journal.append(&mut turn, |_| {}).unwrap();
        assert_eq!(
            open_ids(&replay(&disk).unwrap()).len(),
            1 + usize::try_from(opened).unwrap()
        );
        assert_eq!(posts_after(&journal, 0), [(1, 1)]);
    }
}

#[test]
fn a_failure_that_cannot_be_mended_says_so() {
    let disk = MemoryDisk::default();
    let (journal, _) = open(&disk, 1);
    disk.faults(|faults| {
        faults.fail_sync = true;
        faults.is_full = true;
    });
    let mut holder = Holder::default();
    holder.open(&journal, 1).unwrap();
    assert!(journal.sync().unwrap_err().is_failure());
    assert!(matches!(
        journal.recover_from_failure(),
        Err(JournalError::NotRewritten { .. })
    ));
    assert!(journal.reserve(&open_request(2)).unwrap_err().is_failure());
    assert_eq!(open_ids(&replay(&disk).unwrap()), [1], "a restart has it");
}

#[test]
fn recovery_without_a_failure_does_nothing() {
    let disk = MemoryDisk::default();
    let (journal, _) = open(&disk, 1);
    let before = disk.numbers();
    journal.recover_from_failure().unwrap();
    assert_eq!(disk.numbers(), before);
}
