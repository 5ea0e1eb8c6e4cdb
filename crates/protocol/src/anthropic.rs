//! The Anthropic API: what differs from the OpenAI API in streams, answers, usage and prompts.
//!
//! Modules in reading order: [`stream`] (events on their way through), [`answer`] (answers in one
//! piece), [`error`] (errors in words of ours), [`prompt`] (counting). Below them: `event` reads one
//! event, `usage` the numbers of a provider.

mod usage;

mod event;

pub mod stream;

pub mod answer;

pub mod error;

pub mod prompt;
