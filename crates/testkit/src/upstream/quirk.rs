//! Habits of real servers.

/// A habit of real servers that differs from OpenAI's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quirk {
    /// Lines end in CR LF.
    CrLf,
    /// Lines end in a bare CR.
    Cr,
    /// No space after the colon of a field.
    NoSpace,
    /// A comment `: keep-alive` right after the head.
    CommentFirst,
    /// A comment `: keep-alive` before the first event and then after every so many.
    CommentEvery(usize),
    /// An `id:` line in each event.
    IdLines,
    /// An event that is a `retry:` line only, before all others.
    RetryLine,
    /// An `event:` line in each event.
    EventLines,
    /// An event with empty data after the first event.
    EmptyData,
    /// An event `event: ping` without data after the first event.
    Ping,
    /// The data of each event in two `data:` lines, which is allowed.
    TwoDataLines,
    /// A UTF-8 byte order mark before everything.
    Bom,
    /// `[DONE]` is followed by one line end, not by an empty line.
    DoneWithoutBlankLine,
    /// Every delta repeats the role.
    RoleRepeated,
    /// No delta has the role.
    RoleMissing,
    /// Usage so far on every chunk, whether it was asked for or not.
    UsageEveryChunk,
    /// No usage, not even when it was asked for, also not in plain answers.
    NoUsage,
    /// A usage chunk although it was not asked for.
    UsageUnasked,
    /// Usage that is zero in all classes.
    ZeroUsage,
    /// Usage in the chunk that has the finish reason, not in one of its own.
    UsageWithFinish,
    /// No `[DONE]`; the stream ends cleanly all the same.
    NoDone,
    /// No finish reason.
    NoFinishReason,
    /// A chunk with prompt filter results and `"choices":[]` before all others, as Azure sends it.
    PromptFilterFirst,
    /// An `obfuscation` member in each chunk.
    Obfuscation,
    /// So many empty lines before a plain answer, which is chunked then, as DeepSeek sends while it
    /// queues.
    BlankLines(usize),
    /// A plain answer is chunked instead of having a length.
    Chunked,
    /// The answer has neither length nor chunks; it ends when the connection does.
    UntilClose,
    /// The content length of a plain answer is wrong by so many bytes, then the connection closes.
    ContentLengthOff(i64),
    /// Embeddings are numbers although base64 was asked for.
    FloatEmbeddings,
    /// `stream_options` are refused with 400, as older servers do.
    RefusesStreamOptions,
}

/// The form of an error inside a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorShape {
    /// `{"error":{"message",…}}`, as OpenAI sends it.
    Object,
    /// The same after a line `event: error`.
    ObjectWithEventLine,
    /// `{"error":"text"}`.
    Text,
    /// `{"object":"error","message",…}`, as vLLM sends it.
    Flat,
    /// The same, and `[DONE]` after it.
    FlatThenDone,
}
