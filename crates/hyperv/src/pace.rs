//! How often a host is asked again while one waits for it.

use std::time::Duration;

/// The pause before the next look, after waiting for so long: an eighth of it. What is quick is seen at once, and what
/// takes minutes does not cost the host's WMI provider a question a second.
pub fn next_look(waited: Duration, shortest: Duration, longest: Duration) -> Duration {
    (waited / 8).clamp(shortest, longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_minutes_are_some_dozens_of_looks() {
        let (shortest, longest) = (Duration::from_secs(1), Duration::from_secs(15));
        let (mut waited, mut looks) = (Duration::ZERO, 0);
        while waited < Duration::from_secs(600) {
            let pause = next_look(waited, shortest, longest);
            assert!(pause >= shortest && pause <= longest.min(waited / 8 + shortest), "{pause:?} after {waited:?}");
            waited += pause;
            looks += 1;
        }
        assert!((40..80).contains(&looks), "{looks}");
    }
}
