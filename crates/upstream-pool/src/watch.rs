//! One timer for all deadlines of an answer.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::time::{Instant, Sleep, sleep_until};

/// A timer that is moved only when it would fire too late, or has fired too early.
///
/// Deadlines move on with every chunk; moving a timer each time costs more than the rest of the
/// work on a small chunk. So it stays where it is, and when it fires the deadline of that moment
/// decides.
#[derive(Debug)]
pub(crate) struct Watch {
    /// `None` until somebody had to wait.
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Watch {
    pub(crate) const fn new() -> Self {
        Self { sleep: None }
    }

    /// Returns ready once `due` has passed. `due` may differ from call to call.
    pub(crate) fn poll_passed(&mut self, cx: &mut Context<'_>, due: Instant) -> Poll<()> {
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(due)));
        if sleep.deadline() > due {
            sleep.as_mut().reset(due);
        }
        loop {
            ready!(sleep.as_mut().poll(cx));
            if Instant::now() >= due {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(due);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_deadline_that_moves_back_or_forward_is_kept() {
        let start = Instant::now();
        let ms = |n| start + Duration::from_millis(n);
        let mut watch = Watch::new();
        let mut polls = 0;
        poll_fn(|cx| {
            polls += 1;
            // Armed for 100 ms; when that fires the deadline has moved to 300 ms.
            watch.poll_passed(cx, ms(if polls == 1 { 100 } else { 300 }))
        })
        .await;
        assert_eq!(start.elapsed().as_millis(), 300);

        poll_fn(|cx| {
            let long = watch.poll_passed(cx, ms(10_000));
            assert!(long.is_pending());
            watch.poll_passed(cx, ms(400))
        })
        .await;
        assert_eq!(start.elapsed().as_millis(), 400);
    }
}
