//! Plays a script on a connection.

use std::fmt::Write as _;
use std::future::{Future, pending};
use std::pin::pin;
use std::time::Duration;

use sluice_domain::usage::TokenUsage;
use tokio::time::sleep;

use super::answer::{Answer, Framing, Part};
use super::anthropic;
use super::call::Call;
use super::connection::{After, Connection, PeerLeft};
use super::script::{BeforeHead, Fault, FaultKind, Hold, Script, Share};
use super::served::{Served, ServedEnd};
use super::stream::{comment, error_events, garbage};

/// The play of one script.
pub(super) struct Play<'a> {
    connection: &'a mut Connection,
    number: usize,
    script: &'a Script,
    framing: Framing,
    streams: bool,
    is_anthropic: bool,
}

/// Events that are written at once.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    events: usize,
    words: usize,
    reported: Option<TokenUsage>,
}

impl Batch {
    fn push(&mut self, part: &Part) {
        self.bytes.extend_from_slice(&part.bytes);
        self.events += usize::from(part.is_event);
        self.words += part.words;
        self.reported = part.reported.or(self.reported);
    }
}

impl<'a> Play<'a> {
    pub(super) fn new(
        connection: &'a mut Connection,
        number: usize,
        script: &'a Script,
        answer: &Answer,
    ) -> Self {
        Self {
            connection,
            number,
            script,
            framing: answer.framing,
            streams: answer.streams,
            is_anthropic: answer.is_anthropic,
        }
    }

    /// Answers the call and returns what becomes of the connection.
    pub(super) async fn run(mut self, call: &Call, answer: Answer) -> Result<After, PeerLeft> {
        self.pause(self.script.head_delay, false).await?;
        if let Some(gate) = &self.script.head_gate {
            self.wait(gate.passed(), false).await?;
        }
        if let Some(before_head) = self.script.before_head {
            return self.strike_before_head(before_head).await;
        }
        let head = self.head(&answer);
        let status = answer.status;
        let note_head = move |served: &mut Served, now| {
            served.status = Some(status);
            served.head_at = Some(now);
        };
        let after = if call.closes() || answer.ends_connection() {
            After::Close
        } else {
            After::KeepOpen
        };
        if call.method == "HEAD" {
            self.connection
                .write(&head, self.number, |served, now| {
                    note_head(served, now);
                    served.end_as(ServedEnd::Complete, now);
                })
                .await?;
            return Ok(after);
        }
        if self.is_one_write(&answer) {
            return self.play_at_once(head, answer, note_head, after).await;
        }
        self.connection.write(&head, self.number, note_head).await?;
        self.play_events(answer, after).await
    }

    async fn strike_before_head(&mut self, how: BeforeHead) -> Result<After, PeerLeft> {
        if let BeforeHead::Stall(at_most) = how {
            self.pause(at_most, false).await?;
        }
        self.connection
            .shared
            .end(self.number, ServedEnd::BrokenOff);
        Ok(if matches!(how, BeforeHead::Reset) {
            After::Reset
        } else {
            After::Close
        })
    }

    /// Returns whether nothing happens between the head and the end: real servers write such an
    /// answer at once.
    fn is_one_write(&self, answer: &Answer) -> bool {
        !self.streams
            && answer.parts.len() == 1
            && matches!(answer.framing, Framing::Length(_))
            && self.script.first_event_delay.is_zero()
            && self.script.holds.is_empty()
            && self.strike_point(answer).is_none()
    }

    async fn play_at_once(
        self,
        mut head: Vec<u8>,
        answer: Answer,
        note_head: impl FnOnce(&mut Served, Duration),
        after: After,
    ) -> Result<After, PeerLeft> {
        let mut batch = Batch::default();
        for part in &answer.parts {
            batch.push(part);
        }
        head.append(&mut batch.bytes);
        let note = |served: &mut Served, now| {
            note_head(served, now);
            note_batch(served, &batch);
            served.end_as(ServedEnd::Complete, now);
        };
        self.connection.write(&head, self.number, note).await?;
        Ok(after)
    }

    async fn play_events(&mut self, answer: Answer, after: After) -> Result<After, PeerLeft> {
        let strike_point = self.strike_point(&answer);
        let mut batch = Batch::default();
        let mut position = 0;
        for part in answer.parts {
            if part.is_event {
                if let Some((at, fault)) = strike_point
                    && at == position
                {
                    if !matches!(fault.kind, FaultKind::Garbage) {
                        self.flush(&mut batch).await?;
                        return self.strike(fault, Some(part), after).await;
                    }
                    batch.push(&garbage(self.script));
                }
                self.hold(position, &mut batch).await?;
                position += 1;
            }
            batch.push(&part);
            if batch.events == self.script.coalesce
                || (batch.events == 0 && self.script.coalesce == 1)
            {
                self.flush(&mut batch).await?;
            }
        }
        self.flush(&mut batch).await?;
        match strike_point {
            Some((_, fault)) if matches!(fault.kind, FaultKind::Garbage) => {
                self.finish(ServedEnd::BrokenOff).await?;
                Ok(after)
            }
            Some((_, fault)) => self.strike(fault, None, after).await,
            None => {
                self.finish(ServedEnd::Complete).await?;
                Ok(after)
            }
        }
    }

    /// Waits as the script says before the event at a position.
    async fn hold(&mut self, position: usize, batch: &mut Batch) -> Result<(), PeerLeft> {
        let delay = if position == 0 {
            self.script.first_event_delay
        } else if position.is_multiple_of(self.script.coalesce) {
            self.script.pace
        } else {
            Duration::ZERO
        };
        if !delay.is_zero() {
            self.flush(batch).await?;
            self.pause(delay, true).await?;
        }
        for (at, hold) in &self.script.holds {
            if *at == position {
                self.flush(batch).await?;
                match hold {
                    Hold::For(pause) => self.pause(*pause, true).await?,
                    Hold::Until(gate) => self.wait(gate.passed(), true).await?,
                }
            }
        }
        Ok(())
    }

    /// Returns the fault that strikes inside of the answer, with its position.
    fn strike_point(&self, answer: &Answer) -> Option<(usize, &'a Fault)> {
        let fault = self.script.fault.as_ref()?;
        if self.streams {
            let events = answer.parts.iter().filter(|part| part.is_event).count();
            Some((fault.at.min(events), fault))
        } else {
            // An error is the body of a plain answer, and so is garbage.
            let is_body = matches!(fault.kind, FaultKind::Error(_) | FaultKind::Garbage);
            (!is_body).then_some((0, fault))
        }
    }

    async fn strike(
        &mut self,
        fault: &Fault,
        part: Option<Part>,
        after: After,
    ) -> Result<After, PeerLeft> {
        if let Some(part) = part {
            let length = part.bytes.len();
            let written = match fault.share {
                Share::Bytes(bytes) => bytes.min(length),
                Share::Half => length / 2,
                Share::Nothing if !self.streams && fault.at > 0 => length / 2,
                Share::Nothing => 0,
            };
            self.write_body(&part.bytes[..written], |_, _| {}).await?;
        }
        if let Some(gate) = &fault.gate {
            self.wait(gate.passed(), true).await?;
        }
        match &fault.kind {
            FaultKind::Cut | FaultKind::Garbage => {}
            FaultKind::Reset => {
                self.connection
                    .shared
                    .end(self.number, ServedEnd::BrokenOff);
                return Ok(After::Reset);
            }
            FaultKind::Stall(at_most) => self.pause(*at_most, true).await?,
            FaultKind::End => {
                self.finish(ServedEnd::BrokenOff).await?;
                let is_cut = matches!(self.framing, Framing::Length(_));
                return Ok(if is_cut { After::Close } else { after });
            }
            FaultKind::Error(shape) => {
                let mut batch = Batch::default();
                if self.is_anthropic {
                    batch.push(&anthropic::error_event(self.script));
                } else {
                    for part in &error_events(self.script, *shape, fault.at) {
                        batch.push(part);
                    }
                }
                self.flush(&mut batch).await?;
                self.finish(ServedEnd::BrokenOff).await?;
                return Ok(after);
            }
        }
        self.connection
            .shared
            .end(self.number, ServedEnd::BrokenOff);
        Ok(After::Close)
    }

    /// Writes the end of the body and notes how the request ended.
    async fn finish(&mut self, end: ServedEnd) -> Result<(), PeerLeft> {
        let terminal: &[u8] = if self.framing == Framing::Chunked {
            b"0\r\n\r\n"
        } else {
            b""
        };
        self.connection
            .write(terminal, self.number, |served, now| served.end_as(end, now))
            .await
    }

    /// Writes a batch, in pieces where the script wants them, and empties it.
    async fn flush(&mut self, batch: &mut Batch) -> Result<(), PeerLeft> {
        let batch = std::mem::take(batch);
        if batch.bytes.is_empty() {
            return Ok(());
        }
        let size = self.script.split.unwrap_or(batch.bytes.len());
        let last = batch.bytes.len().div_ceil(size) - 1;
        for (index, piece) in batch.bytes.chunks(size).enumerate() {
            self.write_body(piece, |served, _| {
                if index == last {
                    note_batch(served, &batch);
                }
            })
            .await?;
        }
        Ok(())
    }

    async fn write_body(
        &mut self,
        bytes: &[u8],
        on_written: impl FnOnce(&mut Served, Duration),
    ) -> Result<(), PeerLeft> {
        if self.framing != Framing::Chunked || bytes.is_empty() {
            return self.connection.write(bytes, self.number, on_written).await;
        }
        let mut chunk = format!("{:x}\r\n", bytes.len()).into_bytes();
        chunk.extend_from_slice(bytes);
        chunk.extend_from_slice(b"\r\n");
        self.connection.write(&chunk, self.number, on_written).await
    }

    async fn pause(&mut self, pause: Duration, in_body: bool) -> Result<(), PeerLeft> {
        // A sleep of zero would still wait for the next tick of the timer.
        if pause.is_zero() {
            Ok(())
        } else {
            self.wait(sleep(pause), in_body).await
        }
    }

    /// Waits until the future is ready or the peer leaves; keeps the body alive meanwhile
    /// where the script wants it and there is a body.
    async fn wait(
        &mut self,
        until: impl Future<Output = ()>,
        in_body: bool,
    ) -> Result<(), PeerLeft> {
        let mut until = pin!(until);
        loop {
            let every = self.script.keep_alive.filter(|_| in_body);
            let tick = async {
                match every {
                    Some(every) => sleep(every).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                biased;
                () = &mut until => return Ok(()),
                left = self.connection.until_peer_left() => return Err(left),
                () = tick => {}
            }
            let filler = if self.streams && self.is_anthropic {
                anthropic::keep_alive(self.script)
            } else if self.streams {
                comment(self.script)
            } else {
                "\n".to_owned()
            };
            self.write_body(filler.as_bytes(), |_, _| {}).await?;
        }
    }

    fn head(&self, answer: &Answer) -> Vec<u8> {
        let status = answer.status;
        let mut head = format!(
            "HTTP/1.1 {status} {}\r\ncontent-type: {}\r\nx-request-id: req_fake_{}\r\nopenai-processing-ms: 1\r\n",
            reason(status),
            answer.content_type,
            self.number
        );
        let framing = match answer.framing {
            Framing::Length(length) => format!("content-length: {length}\r\n"),
            Framing::Chunked => "transfer-encoding: chunked\r\n".to_owned(),
            Framing::UntilClose => "connection: close\r\n".to_owned(),
        };
        head.push_str(&framing);
        for (name, value) in &self.script.headers {
            let _never_fails = write!(head, "{name}: {value}\r\n");
        }
        head.push_str("\r\n");
        head.into_bytes()
    }
}

fn note_batch(served: &mut Served, batch: &Batch) {
    served.events_written += batch.events;
    served.output_tokens += i64::try_from(batch.words).unwrap_or(i64::MAX);
    served.reported = batch.reported.or(served.reported);
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        529 => "Overloaded",
        _ => "Status",
    }
}
