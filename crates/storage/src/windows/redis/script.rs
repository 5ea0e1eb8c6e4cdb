//! The scripts that run inside Redis: one call each, all or nothing.

use redis::{Cmd, cmd};

const COMMON: &str = include_str!("common.lua");

/// A script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Script {
    Decide,
    Correct,
    Tell,
    Watch,
}

impl Script {
    pub(super) const ALL: [Self; 4] = [Self::Decide, Self::Correct, Self::Tell, Self::Watch];

    /// Returns its text.
    pub(super) fn text(self) -> String {
        let own = match self {
            Self::Decide => include_str!("decide.lua"),
            Self::Correct => include_str!("correct.lua"),
            Self::Tell => include_str!("tell.lua"),
            Self::Watch => include_str!("watch.lua"),
        };
        format!("{COMMON}\n{own}")
    }
}

/// The hashes by which a server knows the scripts.
#[derive(Debug, Clone, Default)]
pub(super) struct ScriptHashes([String; 4]);

impl ScriptHashes {
    pub(super) fn set(&mut self, script: Script, hash: String) {
        if let Some(place) = self.0.get_mut(script as usize) {
            *place = hash;
        }
    }

    fn of(&self, script: Script) -> &str {
        self.0.get(script as usize).map_or("", String::as_str)
    }
}

/// A call of a script: the part behind its name.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) script: Script,
    pub(super) keys: Vec<String>,
    pub(super) arguments: Vec<Argument>,
}

#[derive(Debug, Clone)]
pub(super) enum Argument {
    Number(u64),
    Text(String),
    Word(&'static str),
}

impl Call {
    pub(super) fn new(script: Script, keys: Vec<String>) -> Self {
        Self {
            script,
            keys,
            arguments: Vec::with_capacity(32),
        }
    }

    pub(super) fn number(&mut self, number: u64) -> &mut Self {
        self.arguments.push(Argument::Number(number));
        self
    }

    pub(super) fn flag(&mut self, is_set: bool) -> &mut Self {
        self.word(if is_set { "1" } else { "0" })
    }

    pub(super) fn word(&mut self, word: &'static str) -> &mut Self {
        self.arguments.push(Argument::Word(word));
        self
    }

    pub(super) fn text(&mut self, text: impl Into<String>) -> &mut Self {
        self.arguments.push(Argument::Text(text.into()));
        self
    }

    /// Returns the command for a server that has the script.
    pub(super) fn by_hash(&self, hashes: &ScriptHashes) -> Cmd {
        let mut command = cmd("EVALSHA");
        command.arg(hashes.of(self.script));
        self.complete(command)
    }

    /// Returns the command for a server that has lost it: it learns the script from that.
    pub(super) fn by_text(&self) -> Cmd {
        let mut command = cmd("EVAL");
        command.arg(self.script.text());
        self.complete(command)
    }

    fn complete(&self, mut command: Cmd) -> Cmd {
        command.arg(self.keys.len());
        for key in &self.keys {
            command.arg(key);
        }
        for argument in &self.arguments {
            match argument {
                Argument::Number(number) => command.arg(number),
                Argument::Text(text) => command.arg(text),
                Argument::Word(word) => command.arg(word),
            };
        }
        command
    }
}

#[cfg(test)]
mod tests;
