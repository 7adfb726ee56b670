//! Which step of a run may follow which (spec control-api 3.2): pure, a table.

use control_api::words::RunStatus;

/// Who wants a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// The agent that holds the claim.
    Agent {
        /// A person has asked for the end, and the agent says that its host is clean.
        is_cancel_done: bool,
    },
    /// The server: silence, attempts used up, keys that cannot be had.
    Server,
    /// A person who gives the host up.
    Force,
    /// A person who asks for the end.
    Person,
    /// A claim.
    Claim,
}

/// Whether a run may go from `from` to `to`.
pub fn may(from: RunStatus, to: RunStatus, by: By) -> bool {
    use RunStatus::{Cancelled, Failed, PartialSuccess, Queued, Running, Starting, Success, Warning};
    match (from, to, by) {
        (Queued | Running | Starting, Starting, By::Claim) => true,
        (Queued, Cancelled, By::Person | By::Force) => true,
        (Starting | Running, Running, By::Agent { .. }) => true,
        // A word of an agent that begins: it changes nothing.
        (Starting, Starting, By::Agent { .. }) => true,
        (Starting | Running, Success | Warning | PartialSuccess | Failed, By::Agent { .. }) => true,
        (Starting | Running, Cancelled, By::Agent { is_cancel_done }) => is_cancel_done,
        (Queued | Starting | Running, Failed, By::Server) => true,
        (Starting | Running, Cancelled, By::Force) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every step of the contract's table is allowed, and every other combination is refused.
    #[test]
    fn only_the_steps_of_the_table_are_allowed() {
        use RunStatus::{Cancelled, Failed, PartialSuccess, Queued, Running, Starting, Success, Warning};
        let done = By::Agent { is_cancel_done: true };
        let works = By::Agent { is_cancel_done: false };
        let mut allowed = vec![
            (Queued, Starting, By::Claim),
            (Starting, Starting, By::Claim),
            (Running, Starting, By::Claim),
            (Queued, Cancelled, By::Person),
            (Queued, Cancelled, By::Force),
            (Queued, Failed, By::Server),
        ];
        for from in [Starting, Running] {
            allowed.extend([(from, Failed, By::Server), (from, Cancelled, By::Force), (from, Cancelled, done)]);
            for agent in [done, works] {
                allowed.push((from, Running, agent));
                allowed.extend([Success, Warning, PartialSuccess, Failed].map(|to| (from, to, agent)));
            }
        }
        allowed.extend([done, works].map(|agent| (Starting, Starting, agent)));
        for from in RunStatus::ALL {
            for to in RunStatus::ALL {
                for by in [done, works, By::Server, By::Force, By::Person, By::Claim] {
                    let expected = allowed.contains(&(*from, *to, by));
                    assert_eq!(may(*from, *to, by), expected, "{from} to {to} by {by:?}");
                }
            }
        }
    }
}
