//! How a command ended that did not fail as a whole.

/// The exit code of a command whose results are out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// 0, 3 (partly done) or 4 (with warnings), or the code that all failed parts share.
    pub exit: u8,
}

impl Outcome {
    /// Done, nothing to say.
    pub const DONE: Self = Self { exit: 0 };
}
