//! What holds for a process that has not counted anything yet; hence a binary with one test.

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use sluice_domain::route::Endpoint;
    use sluice_protocol::stream::{StreamInspector, StreamOptions};
    use sluice_protocol::tokens;

    #[test]
    fn the_tokenizer_is_loaded_only_when_text_is_counted_or_too_much_to_keep() {
        let options = StreamOptions {
            strip_usage: true,
            max_event_bytes: 1 << 20,
            choices: 1,
        };
        let mut inspector = StreamInspector::new(Endpoint::ChatCompletions, options);
        let text = "Hello world. ".repeat(800);
        let event = Bytes::from(format!(
            "data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{text}\"}}}}]}}\n\n"
        ));
        let mut pushed = 0;
        while pushed + text.len() <= 1024 * 1024 {
            inspector.push(event.clone()).unwrap();
            pushed += text.len();
        }
        assert!(!tokens::is_loaded());
        inspector.push(event).unwrap();
        pushed += text.len();
        assert!(tokens::is_loaded());
        let expected = tokens::count_text(&text.repeat(pushed / text.len()));
        assert_eq!(inspector.take_output().count(), expected);
    }
}
