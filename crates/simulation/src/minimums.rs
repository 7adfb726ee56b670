//! What must have happened in many stories: a simulation that never dies at a commit proves nothing about commits.

use crate::Counts;

/// How often something must happen, at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Minimum {
    /// Everything whose name begins so counts.
    pub what: &'static str,
    /// In a thousand stories.
    pub per_thousand: u64,
}

/// For every kind of fault, of act, of death, of tracking and of judgement.
pub fn minimums() -> &'static [Minimum] {
    MINIMUMS
}

impl Minimum {
    /// How often it happened.
    pub fn seen(&self, counts: &Counts) -> u64 {
        counts.iter().filter(|(what, _)| what.starts_with(self.what)).map(|(_, count)| count).sum()
    }

    /// How often it must have happened in so many stories. Few stories may well miss what is rare.
    pub fn wanted(&self, stories: u64) -> u64 {
        self.per_thousand * stories / 1000
    }
}

const MINIMUMS: &[Minimum] = &[Minimum { what: "judged law 1", per_thousand: 1000 }];
