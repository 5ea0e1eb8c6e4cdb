//! What stands around the text of a chunk: most chunks of a stream differ in their text alone.

use std::borrow::Cow;

use memchr::memmem;

use super::ChunkReader;

/// How many frames are learned one after the other without one that was of use: some servers write
/// a time or random padding into each chunk.
const ATTEMPTS: u8 = 4;

/// A larger frame is not kept, in bytes.
const MAX_FRAME_BYTES: usize = 2 * 1024;

/// A text for trying a frame out. The parser treats all texts alike that are not empty.
const PROBE: &str = "probe";

/// The frame of the chunks of one stream.
#[derive(Debug, Default)]
pub(super) struct Frames {
    known: Option<Frame>,
    /// How many were learned since one was of use.
    attempts: u8,
}

/// A chunk without its text.
#[derive(Debug)]
struct Frame {
    /// What comes before and after the quoted text, without a gap.
    bytes: Box<[u8]>,
    /// How much of it comes before.
    before: usize,
    choice: usize,
}

impl Frames {
    /// Returns the choice and the text of a chunk that has the known frame.
    #[inline]
    pub(super) fn find<'a>(&mut self, data: &'a [u8]) -> Option<(usize, Cow<'a, str>)> {
        let frame = self.known.as_ref()?;
        let text = frame.text_of(data)?;
        self.attempts = 0;
        Some((frame.choice, text))
    }

    /// Takes the frame of a chunk whose only text this is, if it stands there as one string; returns
    /// whether it does.
    pub(super) fn learn(&mut self, data: &[u8], choice: usize, text: &str) -> bool {
        if self.attempts >= ATTEMPTS || text.is_empty() || data.len() > MAX_FRAME_BYTES {
            return false;
        }
        self.attempts += 1;
        self.known = Frame::around(data, choice, text);
        self.known.is_some()
    }

    pub(super) fn forget(&mut self) {
        self.known = None;
    }
}

impl Frame {
    /// Cuts the text out. Whether that string is the text, and all of it, shows when another one
    /// stands in its place.
    fn around(data: &[u8], choice: usize, text: &str) -> Option<Self> {
        let quoted = ["\"", text, "\""].concat();
        let start = memmem::rfind(data, quoted.as_bytes())?;
        let (before, rest) = data.split_at_checked(start)?;
        let after = rest.get(quoted.len()..)?;
        let probe = [before, b"\"", PROBE.as_bytes(), b"\"", after].concat();
        let mut reader = ChunkReader::default();
        let is_text = reader.parse(&probe)?.is_only_text()
            && reader.text == PROBE
            && reader.choices == [(choice, PROBE.len())];
        is_text.then(|| Self {
            bytes: [before, after].concat().into(),
            before: start,
            choice,
        })
    }

    /// Returns the text of a chunk with this frame; `None` for another one.
    #[inline]
    fn text_of<'a>(&self, data: &'a [u8]) -> Option<Cow<'a, str>> {
        let (before, after) = self.bytes.split_at_checked(self.before)?;
        let quoted = data.strip_prefix(before)?.strip_suffix(after)?;
        let text = quoted.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
        if text.is_empty() {
            // Another member may speak where this one says nothing.
            return None;
        }
        if text
            .iter()
            .any(|byte| matches!(byte, b'"' | b'\\' | ..0x20))
        {
            return serde_json::from_slice(quoted).ok().map(Cow::Owned);
        }
        str::from_utf8(text).ok().map(Cow::Borrowed)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::*;
    use super::*;

    /// What a reader makes of a chunk.
    type Read = Option<(String, Vec<(usize, usize)>, bool, bool, bool, bool, bool)>;

    fn seen(reader: &ChunkReader, chunk: Option<Chunk<'_>>) -> Read {
        chunk.map(|chunk| {
            (
                reader.text.clone(),
                reader.choices.clone(),
                chunk.usage.is_some(),
                chunk.error.is_some(),
                chunk.is_flat_error,
                chunk.has_no_choice,
                chunk.is_finishing,
            )
        })
    }

    impl ChunkReader {
        /// Reads the next chunk of a stream, as a stream does that is not changed.
        fn read<'a>(&mut self, data: &'a [u8]) -> Option<Chunk<'a>> {
            if self.find(data) {
                return Some(Chunk::default());
            }
            let chunk = self.parse(data)?;
            self.learn(data, &chunk);
            Some(chunk)
        }
    }

    fn afresh(data: &[u8]) -> Read {
        let mut reader = ChunkReader::default();
        let chunk = reader.parse(data);
        seen(&reader, chunk)
    }

    fn openai(text: &str) -> Vec<u8> {
        format!(
            r#"{{"id":"c","object":"chat.completion.chunk","model":"m","choices":[{{"index":1,"delta":{{"content":"{text}"}},"finish_reason":null}}],"usage":null}}"#
        )
        .into_bytes()
    }

    #[test]
    fn chunks_that_differ_in_their_text_alone_are_not_parsed() {
        let mut reader = ChunkReader::default();
        assert!(reader.read(&openai("Hello")).is_some());
        for (text, says) in [
            (" world", " world"),
            (r"line\nbreak \u20ac", "line\nbreak €"),
            ("m", "m"),
        ] {
            let chunk = openai(text);
            let found = reader.frames.find(&chunk);
            assert_eq!(found, Some((1, Cow::Borrowed(says))), "{text}");
        }
    }

    #[test]
    fn what_is_no_text_in_that_place_is_parsed() {
        let mut reader = ChunkReader::default();
        assert!(reader.read(&openai("Hello")).is_some());
        for text in [
            "",
            r#"a","tool":"b"#,
            "a\nb",
            r"\ud83d",
            r"\",
            "\" , \"",
            "a\"b",
        ] {
            assert_eq!(reader.frames.find(&openai(text)), None, "{text}");
        }
        assert_eq!(reader.frames.find(b"\xff"), None);
        let mut broken = openai("?");
        let place = memmem::find(&broken, b"?").unwrap();
        broken[place] = 0xff;
        assert_eq!(reader.frames.find(&broken), None);
    }

    #[test]
    fn a_text_that_stands_elsewhere_or_in_pieces_is_no_frame() {
        for chunk in [
            // The text comes in two pieces, and as a whole somewhere else.
            r#"{"choices":[{"delta":{"reasoning":"a","content":"b"}}],"id":"ab"}"#,
            // The text has an escape; without it, it is the name of a model.
            r#"{"choices":[{"delta":{"content":"m\u0031"}}],"model":"m1"}"#,
            // The same with a text that is as long as the probe.
            r#"{"choices":[{"delta":{"content":"h\u0065llo"}}],"model":"hello"}"#,
            // Twice in the same chunk.
            r#"{"choices":[{"delta":{"reasoning_content":"a","reasoning":"a"}}]}"#,
        ] {
            let mut reader = ChunkReader::default();
            assert!(reader.read(chunk.as_bytes()).is_some(), "{chunk}");
            assert!(reader.frames.known.is_none(), "{chunk}");
        }
    }

    #[test]
    fn a_server_that_pads_its_chunks_is_soon_given_up() {
        let mut reader = ChunkReader::default();
        for number in 0..20 {
            let chunk = format!(
                r#"{{"choices":[{{"delta":{{"content":"text"}}}}],"obfuscation":"{number}"}}"#
            );
            assert!(reader.read(chunk.as_bytes()).is_some());
        }
        assert_eq!(reader.frames.attempts, ATTEMPTS);
    }

    fn text() -> impl Strategy<Value = String> {
        prop_oneof![
            6 => "[ a-zA-Zäß€.]{0,12}",
            1 => prop::sample::select(vec![
                r"\n", r#"\""#, r"\\", r"\u00e4", r"\ud83d\ude00", r"\ud83d", r"\", "\"", "\n",
                r#"","x":""#, "a", "m", "error", "stop", r#""},{""#,
            ])
            .prop_map(str::to_owned),
        ]
    }

    fn chunk() -> impl Strategy<Value = String> {
        let frames = vec![
            (
                r#"{"id":"a","choices":[{"index":0,"delta":{"content":""#,
                r#""},"finish_reason":null}]}"#,
            ),
            (
                r#"{"id":"m","choices":[{"index":3,"delta":{"content":""#,
                r#""}}],"usage":null}"#,
            ),
            (
                r#"{"choices":[{"delta":{"content":"a","refusal":""#,
                r#""}}]}"#,
            ),
            (
                r#"{"choices":[{"delta":{"reasoning_content":""#,
                r#"","reasoning":"a"}}]}"#,
            ),
            (
                r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":""#,
                r#""}}]}}]}"#,
            ),
            (r#"{"choices":[{"text":""#, r#"","finish_reason":null}]}"#),
            (
                r#"{"choices":[{"delta":{"content":"a"}}],"object":""#,
                r#""}"#,
            ),
            (
                r#"{"choices":[{"delta":{"content":"a"},"finish_reason":""#,
                r#""}]}"#,
            ),
            (
                r#"{"choices":[{"delta":{"content":"a"}}],"error":""#,
                r#""}"#,
            ),
            (
                r#"{"choices":[{"delta":{"content":"a","content":""#,
                r#""}},{"index":1}]}"#,
            ),
        ];
        (prop::sample::select(frames), text())
            .prop_map(|((before, after), text)| format!("{before}{text}{after}"))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn a_reader_that_has_read_others_reads_the_same(
            chunks in prop::collection::vec(chunk(), 1..12),
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
        ) {
            let mut reader = ChunkReader::default();
            let damaged = chunks.iter().zip(&damage).map(|(chunk, (at, byte))| {
                let mut bytes = chunk.clone().into_bytes();
                let at = at.index(bytes.len());
                bytes[at] = *byte;
                bytes
            });
            let damaged: Vec<Vec<u8>> = damaged.collect();
            let all = chunks.iter().map(String::as_bytes).chain(damaged.iter().map(Vec::as_slice));
            for data in all {
                let chunk = reader.read(data);
                prop_assert_eq!(seen(&reader, chunk), afresh(data));
            }
        }
    }
}
