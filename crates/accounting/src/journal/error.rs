//! What can go wrong with the journal, and what to do then.

use std::io;
use std::sync::Arc;

use sluice_domain::id::InstanceId;

use crate::journal::disk::file_name;

/// The journal could not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum JournalError {
    /// There is no space for a further hold and its post; what is open still has its space.
    /// Admission resumes when space was prepared.
    #[error("the journal has no space for a further request; free space on its disk")]
    Full,
    /// The hold is larger than a line may be: a defect of the caller, which must limit names.
    #[error("a line of {bytes} bytes is longer than the {max} that the journal takes")]
    TooLong {
        /// How long it is.
        bytes: usize,
        /// How long it may be.
        max: usize,
    },
    /// A write or a sync failed, now or earlier; the file is not used any more. Nothing is admitted
    /// until the journal was rewritten.
    #[error("cannot {step} {} at {offset}; check the disk", file_name(*segment))]
    Failed {
        /// `write` or `sync`.
        step: &'static str,
        /// The segment.
        segment: u64,
        /// Where in it.
        offset: u64,
        /// The cause.
        #[source]
        source: Arc<io::Error>,
    },
    /// After a failure the journal could not be rewritten either. The process must end: a restart
    /// reads what is on the disk.
    #[error("the journal failed and could not be rewritten; the process must end")]
    NotRewritten {
        /// The cause.
        #[source]
        source: Box<JournalError>,
    },
    /// The folder cannot be listed.
    #[error("cannot list the segments of the journal; check its folder")]
    List {
        /// The cause.
        #[source]
        source: Arc<io::Error>,
    },
    /// A segment cannot be made.
    #[error("cannot create {}; check the disk and the rights of the folder", file_name(*segment))]
    Create {
        /// The segment.
        segment: u64,
        /// The cause.
        #[source]
        source: Arc<io::Error>,
    },
    /// A segment cannot be read.
    #[error("cannot read {} at {offset}; check the disk", file_name(*segment))]
    Read {
        /// The segment.
        segment: u64,
        /// Where in it.
        offset: u64,
        /// The cause.
        #[source]
        source: Arc<io::Error>,
    },
    /// A segment that is no longer needed cannot be removed.
    #[error("cannot remove {}; check the rights of the folder", file_name(*segment))]
    Remove {
        /// The segment.
        segment: u64,
        /// The cause.
        #[source]
        source: Arc<io::Error>,
    },
    /// A line that had reached the disk is not there any more, or is not what was written.
    #[error(
        "{} is corrupt at {offset}: a synced line is missing or changed; restore the folder from \
         a copy or set it aside and settle the instance",
        file_name(*segment)
    )]
    Corrupt {
        /// The segment.
        segment: u64,
        /// Where the first such line is missing.
        offset: u64,
    },
    /// A segment that later ones refer to is not there.
    #[error("{} is missing; restore it to the folder of the journal", file_name(*segment))]
    Missing {
        /// The segment.
        segment: u64,
    },
    /// Posts that are asked for were removed after they had been kept for as long as was set.
    #[error("posts from {from} are asked for, but the journal keeps only those from {oldest}")]
    PostsGone {
        /// The first that is asked for.
        from: i64,
        /// The first that there is.
        oldest: i64,
    },
    /// A segment was written by a newer version of the product.
    #[error("{} has format {found}; run the version of the product that wrote it", file_name(*segment))]
    Version {
        /// The segment.
        segment: u64,
        /// Its format.
        found: u32,
    },
    /// A segment belongs to another instance.
    #[error("{} belongs to {found}, not to {expected}; use the folder of this instance", file_name(*segment))]
    Foreign {
        /// The segment.
        segment: u64,
        /// Whose it is.
        found: InstanceId,
        /// Whose it should be.
        expected: InstanceId,
    },
}

impl JournalError {
    /// Returns whether [`recover_from_failure`](super::Journal::recover_from_failure) is to be
    /// called.
    pub fn is_failure(&self) -> bool {
        matches!(self, Self::Failed { .. })
    }

    pub(super) fn create(segment: u64, source: io::Error) -> Self {
        Self::Create {
            segment,
            source: Arc::new(source),
        }
    }

    pub(super) fn read(segment: u64, offset: u64, source: io::Error) -> Self {
        if source.kind() == io::ErrorKind::NotFound {
            return Self::Missing { segment };
        }
        Self::Read {
            segment,
            offset,
            source: Arc::new(source),
        }
    }

    pub(super) fn failed(step: &'static str, segment: u64, offset: u64, source: io::Error) -> Self {
        Self::Failed {
            step,
            segment,
            offset,
            source: Arc::new(source),
        }
    }
}
