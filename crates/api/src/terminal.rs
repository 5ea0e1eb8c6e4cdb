//! The one place that writes to the terminal. Results go to standard output, everything that is
//! said about them to standard error, so that a pipe carries results alone.

use std::io::{self, ErrorKind, IsTerminal as _, Write as _};

/// Writes a result, with a line feed at its end.
///
/// A reader that has seen enough, such as `head`, is no failure.
///
/// # Errors
/// What kept standard output from being written.
pub(crate) fn result(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let written = out
        .write_all(text.as_bytes())
        .and_then(|()| {
            if text.ends_with('\n') {
                Ok(())
            } else {
                out.write_all(b"\n")
            }
        })
        .and_then(|()| out.flush());
    match written {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Says something about a result.
pub(crate) fn note(text: &str) {
    say(text);
}

/// Says that something is valid but unwise.
pub(crate) fn warning(text: &str) {
    say(&format!("warning: {text}"));
}

/// Says what went wrong.
pub(crate) fn error(text: &str) {
    say(&format!("error: {text}"));
}

/// Returns whether a person types the input.
pub(crate) fn is_input_typed() -> bool {
    io::stdin().is_terminal()
}

fn say(text: &str) {
    let mut err = io::stderr().lock();
    if writeln!(err, "{text}").is_err() {
        // Without standard error there is nobody left to tell.
    }
}
