//! What the journal says about the instance's standing with the database.

use std::collections::{BTreeMap, HashSet};

use sluice_domain::quota::{Amounts, CounterKey, Lease};

use crate::journal::line::{Batch, Kind, LineAbout, line_len};
use crate::journal::payload::{
    Checkpoint, LEASES_PER_LINE, MAX_LEASES_PAYLOAD, Note, put_checkpoint, put_note,
};

/// The last transaction that is known, the posts that were taken in, and the leases.
#[derive(Debug, Clone, Default)]
pub(super) struct Balances {
    pub(super) seq: i64,
    pub(super) sent: Option<i64>,
    pub(super) posted_no: i64,
    pub(super) leases: BTreeMap<CounterKey, Amounts>,
    /// Parts of a checkpoint that is not complete yet.
    parts: Vec<Lease>,
    next_part: u64,
}

impl Balances {
    /// A transaction goes out: what it gives away is gone.
    pub(super) fn apply_sent(&mut self, note: &Note) {
        self.sent = Some(note.seq);
        for lease in &note.leases {
            let held = self.leases.get(&lease.key).copied().unwrap_or_default();
            self.set(lease.key, held.min(lease.held));
        }
    }

    /// A transaction was answered: what it gained is there.
    pub(super) fn apply_ack(&mut self, note: &Note) {
        self.seq = note.seq;
        self.sent = None;
        self.posted_no = note.posted_no;
        for lease in &note.leases {
            self.set(lease.key, lease.held);
        }
    }

    /// The database has lost posts. The answer that is still awaited is not forgotten.
    fn apply_went_back(&mut self, note: &Note) {
        self.posted_no = self.posted_no.min(note.posted_no);
    }

    /// Takes in a line that says what was sent or answered, or that the database went back.
    pub(super) fn apply(&mut self, kind: Kind, note: &Note) {
        match kind {
            Kind::Sent => self.apply_sent(note),
            Kind::WentBack => self.apply_went_back(note),
            _ => self.apply_ack(note),
        }
    }

    /// Returns the lines that note an answer. When there are several, what they lower comes first, as
    /// if it were to go out: where the journal ends between two of them, it has no posts taken in
    /// whose charges are still leased.
    pub(super) fn answer(&self, note: Note) -> Vec<(Kind, Note)> {
        if note.leases.len() <= LEASES_PER_LINE {
            return vec![(Kind::Ack, note)];
        }
        let held = |lease: &Lease| self.leases.get(&lease.key).copied().unwrap_or_default();
        let (mut lowered, mut raised) = (Vec::new(), Vec::new());
        for lease in &note.leases {
            let before = held(lease);
            if !before.fits(lease.held) {
                lowered.push(*lease);
            }
            if !lease.held.fits(before) {
                raised.push(*lease);
            }
        }
        let with = |leases| Note { leases, ..note };
        let lowers = line_by_line(with(lowered)).into_iter();
        let raises = line_by_line(with(raised)).into_iter();
        lowers
            .map(|note| (Kind::Sent, note))
            .chain(raises.map(|note| (Kind::Ack, note)))
            .collect()
    }

    /// One line of a checkpoint; leases count when all lines of it are there.
    pub(super) fn apply_checkpoint(&mut self, checkpoint: Checkpoint) {
        if checkpoint.part == 0 {
            self.parts.clear();
            self.next_part = 0;
        }
        if checkpoint.part != self.next_part {
            return;
        }
        self.next_part += 1;
        self.parts.extend(checkpoint.leases);
        if self.next_part == checkpoint.parts {
            self.seq = checkpoint.seq;
            self.sent = checkpoint.sent;
            self.posted_no = checkpoint.posted_no;
            self.leases = std::mem::take(&mut self.parts)
                .into_iter()
                .map(|lease| (lease.key, lease.held))
                .collect();
        }
    }

    fn set(&mut self, key: CounterKey, held: Amounts) {
        if held.is_zero() {
            self.leases.remove(&key);
        } else {
            self.leases.insert(key, held);
        }
    }

    /// Returns what makes these leases all that there are: the others with nothing held, then these.
    pub(super) fn replaced_by(&self, leases: &[Lease]) -> Vec<Lease> {
        let found: HashSet<CounterKey> = leases.iter().map(|lease| lease.key).collect();
        let gone = self.leases.keys().filter(|key| !found.contains(key));
        gone.map(|key| Lease {
            key: *key,
            held: Amounts::ZERO,
        })
        .chain(leases.iter().copied())
        .collect()
    }

    pub(super) fn to_leases(&self) -> Vec<Lease> {
        self.leases
            .iter()
            .map(|(key, held)| Lease {
                key: *key,
                held: *held,
            })
            .collect()
    }

    fn checkpoint_lines(&self) -> usize {
        self.leases.len().div_ceil(LEASES_PER_LINE).max(1)
    }

    /// Returns how many bytes a checkpoint takes at most.
    pub(super) fn checkpoint_len(&self) -> usize {
        self.checkpoint_lines() * line_len(MAX_LEASES_PAYLOAD)
    }

    /// Adds the first lines of a segment.
    pub(super) fn push_checkpoint(&self, batch: &mut Batch, next_post_no: i64, oldest: u64) {
        let leases = self.to_leases();
        let mut chunks = leases.chunks(LEASES_PER_LINE);
        let parts = self.checkpoint_lines() as u64;
        for part in 0..parts {
            let checkpoint = Checkpoint {
                part,
                parts,
                seq: self.seq,
                sent: self.sent,
                posted_no: self.posted_no,
                next_post_no,
                oldest,
                leases: chunks.next().unwrap_or_default().to_vec(),
            };
            batch.push(LineAbout::none(Kind::Checkpoint), |out| {
                put_checkpoint(out, &checkpoint);
            });
        }
    }
}

/// Returns notes of at most a line each, at least one.
pub(super) fn line_by_line(note: Note) -> Vec<Note> {
    if note.leases.len() <= LEASES_PER_LINE {
        return vec![note];
    }
    let parts = note.leases.chunks(LEASES_PER_LINE);
    parts
        .map(|leases| Note {
            leases: leases.to_vec(),
            ..note
        })
        .collect()
}

/// Adds the line of a [`Note`] with no more leases than it takes.
pub(super) fn push_note(batch: &mut Batch, kind: Kind, note: &Note) {
    batch.push(LineAbout::none(kind), |out| {
        put_note(out, note.seq, note.posted_no, &note.leases);
    });
}
