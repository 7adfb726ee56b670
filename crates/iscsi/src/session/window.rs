//! Numbers of commands: which is taken next, and how far ahead the initiator may be (spec B.3).

use std::collections::BTreeSet;

use crate::wire::is_after;

/// The command window of a session.
#[derive(Debug)]
pub(crate) struct Window {
    /// The number that is taken next.
    expected: u32,
    /// The last that may be sent. Never moves back.
    max: u32,
    /// Commands in progress and still allowed, together.
    limit: u32,
    /// Numbers beyond `expected` that count as taken; all lie in the window.
    ahead: BTreeSet<u32>,
}

impl Window {
    pub(crate) fn new(first: u32, limit: u32) -> Self {
        Self { expected: first, max: first.wrapping_add(limit - 1), limit, ahead: BTreeSet::new() }
    }

    pub(crate) fn expected(&self) -> u32 {
        self.expected
    }

    pub(crate) fn max(&self) -> u32 {
        self.max
    }

    /// Whether a command with this number is to be carried out. On one connection numbers come in order; what is not
    /// next was sent in error, or twice.
    pub(crate) fn take(&mut self, number: u32) -> bool {
        let is_next = number == self.expected && !is_after(number, self.max);
        if is_next {
            self.advance();
        }
        is_next
    }

    /// Counts a number as taken though its command never came. False when it came already, or is not in the window.
    pub(crate) fn skip(&mut self, number: u32) -> bool {
        if is_after(self.expected, number) || is_after(number, self.max) || !self.ahead.insert(number) {
            return false;
        }
        while self.ahead.remove(&self.expected) {
            self.expected = self.expected.wrapping_add(1);
        }
        true
    }

    fn advance(&mut self) {
        self.expected = self.expected.wrapping_add(1);
        while self.ahead.remove(&self.expected) {
            self.expected = self.expected.wrapping_add(1);
        }
    }

    /// Opens it as far as commands in progress allow.
    pub(crate) fn open(&mut self, in_progress: u32) {
        let max = self.expected.wrapping_add(self.limit.saturating_sub(in_progress)).wrapping_sub(1);
        if is_after(max, self.max) {
            self.max = max;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    #[test]
    fn only_the_next_number_is_taken() {
        for first in [0, 100, u32::MAX - 1] {
            let mut window = Window::new(first, 4);
            let at = |steps: u32| first.wrapping_add(steps);
            for (what, number, taken) in [
                ("too far", at(4), false),
                ("ahead", at(1), false),
                ("before", at(u32::MAX), false),
                ("next", at(0), true),
                ("twice", at(0), false),
                ("next", at(1), true),
                ("next", at(2), true),
                ("next", at(3), true),
                ("the window is shut", at(4), false),
            ] {
                assert_eq!(window.take(number), taken, "{what}: {number:#x} after {first:#x}");
            }
            window.open(3);
            assert!(window.take(at(4)) && !window.take(at(5)), "one of four has ended");
        }
    }

    #[test]
    fn a_skipped_number_is_passed_over() {
        let mut window = Window::new(10, 8);
        assert!(window.skip(11) && !window.skip(11) && !window.skip(9) && !window.skip(18));
        assert!(window.take(10));
        assert_eq!(window.expected(), 12);
        assert!(window.skip(12));
        assert_eq!(window.expected(), 13);
    }

    /// However commands come and go, never more are in progress than the limit, and the window never shrinks.
    #[test]
    fn commands_in_progress_are_bounded() {
        let mut random = Random(3);
        let mut window = Window::new(u32::MAX - 500, 16);
        let mut in_progress = 0_u32;
        let mut most = 0;
        for _ in 0..10_000 {
            let before = window.max();
            if random.below(3) > 0 {
                in_progress += u32::from(window.take(window.expected()));
            } else if in_progress > 0 {
                in_progress -= 1;
                window.open(in_progress);
            }
            most = most.max(in_progress);
            assert!(!is_after(before, window.max()));
        }
        assert_eq!(most, 16);
    }
}
