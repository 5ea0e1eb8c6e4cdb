//! Finds the structure of JSON 64 bytes at a time: strings, brackets, and nothing else.
//!
//! A string-heavy body is read some ten times faster than by a parser that looks at each byte.
//! Along the way the scan checks what only a full pass can: UTF-8, control characters inside
//! strings, backslashes outside of them.

#[cfg(any(test, not(target_arch = "x86_64")))]
mod portable;
#[cfg(target_arch = "x86_64")]
mod sse2;

#[cfg(not(target_arch = "x86_64"))]
use portable as lanes;
#[cfg(target_arch = "x86_64")]
use sse2 as lanes;

/// Bytes that are looked at together; one bit of a mask each.
const BLOCK: usize = 64;

/// Containers inside each other, the outermost included.
pub(crate) const MAX_DEPTH: u32 = 128;

/// What one block holds, before it is known which of it stands in strings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Marks {
    /// `"`.
    quotes: u64,
    /// `\`.
    backslashes: u64,
    /// Whether there is any byte below 0x20.
    has_controls: bool,
    /// Whether there is any byte above 0x7f.
    has_non_ascii: bool,
}

/// Text is not JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed {
    /// Offset of the byte that shows it.
    pub(crate) at: usize,
    /// What is wrong there.
    pub(crate) reason: &'static str,
}

impl Malformed {
    pub(crate) const fn new(at: usize, reason: &'static str) -> Self {
        Self { at, reason }
    }
}

/// Moves through text once, block by block, and knows for the current block which quotes open or
/// close strings and which brackets stand outside of strings.
#[derive(Debug)]
pub(crate) struct Scanner<'a> {
    text: &'a [u8],
    /// End of the current block; a multiple of [`BLOCK`], 0 before the first one.
    end: usize,
    /// Quotes that open or close a string.
    quotes: u64,
    /// Brackets outside of strings.
    brackets: u64,
    /// Bit 0: the first byte of the next block is escaped.
    carried_escape: u64,
    /// All ones when the next block begins inside a string.
    carried_string: u64,
    /// Where the current run of blocks that are not plain ASCII began.
    unchecked_from: Option<usize>,
}

impl<'a> Scanner<'a> {
    pub(crate) const fn new(text: &'a [u8]) -> Self {
        Self {
            text,
            end: 0,
            quotes: 0,
            brackets: 0,
            carried_escape: 0,
            carried_string: 0,
            unchecked_from: None,
        }
    }

    /// Returns the position of the quote that closes the string opened at `open`.
    pub(crate) fn string_end(&mut self, open: usize) -> Result<usize, Malformed> {
        self.seek(open)?;
        let mut quotes = self.quotes & above(open % BLOCK);
        while quotes == 0 {
            if !self.advance()? {
                return Err(Malformed::new(open, "a string is not closed"));
            }
            quotes = self.quotes;
        }
        Ok(self.end - BLOCK + index(quotes))
    }

    /// Returns the position of the bracket that closes the container opened at `open`.
    ///
    /// `depth` containers are open around it already.
    pub(crate) fn container_end(&mut self, open: usize, depth: u32) -> Result<usize, Malformed> {
        self.seek(open)?;
        let mut brackets = self.brackets & from(open % BLOCK);
        // One bit per open container: 1 for an object. The innermost one is bit 0.
        let mut kinds: u128 = 0;
        let mut open_count: u32 = 0;
        loop {
            while brackets != 0 {
                let at = self.end - BLOCK + index(brackets);
                brackets &= brackets - 1;
                let byte = self.text.get(at).copied().unwrap_or_default();
                let is_object = u128::from(byte & 0x20 != 0);
                // `[` and `{` are 0b…1011, `]` and `}` are 0b…1101.
                if byte & 0b10 != 0 {
                    if depth + open_count >= MAX_DEPTH {
                        return Err(Malformed::new(at, "it is nested too deeply"));
                    }
                    kinds = kinds << 1 | is_object;
                    open_count += 1;
                } else {
                    if kinds & 1 != is_object {
                        return Err(Malformed::new(
                            at,
                            "a bracket closes another kind of bracket",
                        ));
                    }
                    kinds >>= 1;
                    open_count -= 1;
                    if open_count == 0 {
                        return Ok(at);
                    }
                }
            }
            if !self.advance()? {
                return Err(Malformed::new(open, "a bracket is not closed"));
            }
            brackets = self.brackets;
        }
    }

    /// Checks what has not been visited yet.
    pub(crate) fn finish(&mut self) -> Result<(), Malformed> {
        while self.advance()? {}
        if self.carried_string != 0 {
            return Err(Malformed::new(self.text.len(), "a string is not closed"));
        }
        self.check_utf8(self.text.len())
    }

    /// Makes the block that contains `at` the current one; never moves back.
    #[inline]
    fn seek(&mut self, at: usize) -> Result<(), Malformed> {
        while self.end <= at {
            if !self.advance()? {
                break;
            }
        }
        Ok(())
    }

    /// Reads the next block; `false` at the end of the text.
    #[inline]
    fn advance(&mut self) -> Result<bool, Malformed> {
        let start = self.end;
        let Some(rest) = self.text.get(start..) else {
            return Ok(false);
        };
        if let Some(block) = rest.first_chunk::<BLOCK>() {
            self.read(start, block)?;
        } else {
            if rest.is_empty() {
                return Ok(false);
            }
            let mut padded = [b' '; BLOCK];
            if let Some(head) = padded.get_mut(..rest.len()) {
                head.copy_from_slice(rest);
            }
            self.read(start, &padded)?;
        }
        Ok(true)
    }

    #[inline]
    fn read(&mut self, start: usize, block: &[u8; BLOCK]) -> Result<(), Malformed> {
        let marks = lanes::marks(block);
        self.end = start + BLOCK;

        let escaped = self.escaped(marks.backslashes);
        self.quotes = marks.quotes & !escaped;
        // From an opening quote up to, not including, its closing one.
        let strings = if self.quotes == 0 {
            self.carried_string
        } else {
            prefix_xor(self.quotes) ^ self.carried_string
        };
        self.carried_string = if strings >> (BLOCK - 1) == 0 { 0 } else { !0 };
        self.brackets = if strings == !0 {
            0
        } else {
            lanes::brackets(block) & !strings
        };

        // Everything before the first such backslash was read rightly, so the first one is found.
        let stray = marks.backslashes & !strings;
        if stray != 0 {
            return Err(Malformed::new(
                start + index(stray),
                "a backslash outside of a string",
            ));
        }
        if marks.has_controls {
            let controls = lanes::controls(block) & strings;
            if controls != 0 {
                let reason = "a control character inside a string";
                return Err(Malformed::new(start + index(controls), reason));
            }
        }
        if marks.has_non_ascii {
            self.unchecked_from.get_or_insert(start);
        } else if self.unchecked_from.is_some() {
            self.check_utf8(start)?;
        }
        Ok(())
    }

    /// Checks the run of blocks that ends at `end`.
    ///
    /// Such a run stands between plain ASCII, hence no character reaches over its edges.
    fn check_utf8(&mut self, end: usize) -> Result<(), Malformed> {
        let Some(start) = self.unchecked_from.take() else {
            return Ok(());
        };
        let run = self.text.get(start..end).unwrap_or_default();
        match str::from_utf8(run) {
            Ok(_) => Ok(()),
            Err(error) => Err(Malformed::new(
                start + error.valid_up_to(),
                "it is not UTF-8",
            )),
        }
    }

    /// Returns which bytes stand behind an odd number of backslashes.
    #[inline]
    fn escaped(&mut self, backslashes: u64) -> u64 {
        const ODD: u64 = 0xaaaa_aaaa_aaaa_aaaa;
        let carried = self.carried_escape;
        if backslashes == 0 {
            self.carried_escape = 0;
            return carried;
        }
        // The subtraction borrows through each run of backslashes at once; the alternation of odd
        // and even bits then tells whether a run had an odd length.
        let starts = backslashes & !carried;
        let codes = ((starts << 1) | ODD).wrapping_sub(starts) ^ ODD;
        self.carried_escape = (codes & backslashes) >> (BLOCK - 1);
        codes ^ (backslashes | carried)
    }
}

/// Returns for each bit the parity of all bits up to and including it.
#[inline]
const fn prefix_xor(mut bits: u64) -> u64 {
    bits ^= bits << 1;
    bits ^= bits << 2;
    bits ^= bits << 4;
    bits ^= bits << 8;
    bits ^= bits << 16;
    bits ^= bits << 32;
    bits
}

/// Returns a mask of the bits from `bit` on.
#[inline]
const fn from(bit: usize) -> u64 {
    !0 << bit
}

/// Returns a mask of the bits beyond `bit`.
#[inline]
const fn above(bit: usize) -> u64 {
    (!0 << bit) << 1
}

/// Returns the index of the lowest bit.
#[inline]
const fn index(bits: u64) -> usize {
    bits.trailing_zeros() as usize
}

#[cfg(test)]
mod tests;
