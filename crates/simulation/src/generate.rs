//! From a seed to a story.
//!
//! Stories have a theme, so that what belongs together meets: a story in which everything may happen is one in which the
//! rare thing never happens twice.

use random::SplitMix;

use crate::story::{Act, AfterMove, Crash, HostFault, Revert, Run, Setup, StoreFault, Story, TrackingMode};

/// Calls to host and store that a run makes, more or less: crashes and acts of others are put among so many.
const CALLS_OF_A_RUN: u64 = 420;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Theme {
    /// Guests write, and the agent backs up.
    Calm,
    /// The agent dies.
    Deaths,
    /// Disks, checkpoints and storage change.
    Changes,
    /// The host fails.
    HostFails,
    /// The store fails.
    StoreFails,
    /// Others act while the agent works.
    Crowd,
    /// Days pass; points and what they held are deleted.
    Retention,
    /// All of it.
    Everything,
}

impl Story {
    /// The story of a seed.
    pub fn of_seed(seed: u64) -> Self {
        let mut random = Dice(SplitMix::new(seed ^ 0x5EED_0F57_0000_0000));
        let theme = random.one_of(&[
            Theme::Calm,
            Theme::Deaths,
            Theme::Deaths,
            Theme::Changes,
            Theme::Changes,
            Theme::HostFails,
            Theme::HostFails,
            Theme::StoreFails,
            Theme::Crowd,
            Theme::Crowd,
            Theme::Retention,
            Theme::Everything,
        ]);
        let setup = random.setup(theme);
        let acts = random.acts(theme, &setup);
        Self { seed, setup, acts }
    }
}

struct Dice(SplitMix);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0.below(limit)
    }

    /// True once in `n` times.
    fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn byte(&mut self) -> u8 {
        self.below(256) as u8
    }

    fn one_of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len() as u64) as usize]
    }

    fn setup(&mut self, theme: Theme) -> Setup {
        let vms = if theme == Theme::Crowd || self.once_in(4) { 2 } else { 1 };
        let vms = (0..vms)
            .map(|_| {
                let disks = 1 + u64::from(self.once_in(3));
                (0..disks).map(|_| 2 + self.below(9) as u8).collect()
            })
            .collect();
        let odd = !matches!(theme, Theme::Calm) || self.once_in(2);
        let tracking = TrackingMode {
            granularity: if odd { self.one_of(&[9, 12, 15, 16, 16, 18, 20]) } else { 16 },
            superset: odd && self.once_in(6),
            short_ranges: odd && self.once_in(4),
            refuses_whole_disk: odd && self.once_in(6),
            reuses_ids: self.once_in(2),
            lies_after_apply: self.once_in(2),
            after_move: self.one_of(&[AfterMove::Kept, AfterMove::Lost, AfterMove::KeptButWrong]),
            keeps_markers: self.once_in(3),
        };
        let synchronous = self.once_in(6);
        Setup { vms, tracking, synchronous, null_references: self.once_in(4), long_segments: self.once_in(8) }
    }

    fn acts(&mut self, theme: Theme, setup: &Setup) -> Vec<Act> {
        let mut acts = Vec::new();
        for vm in 0..setup.vms.len() as u8 {
            for _ in 0..2 + self.below(3) {
                acts.push(self.write_to(vm));
            }
            if !self.once_in(5) {
                acts.push(Act::BackUp { vm, run: Run::default() });
            }
        }
        for _ in 0..3 + self.below(4) {
            let vm = self.byte();
            for _ in 0..1 + self.below(2) {
                acts.push(self.write_to(vm));
            }
            for _ in 0..self.below(3) {
                let act = self.between(theme, vm);
                // There is seldom one to go back to.
                if matches!(act, Act::ApplyCheckpoint { .. }) && !self.once_in(3) {
                    acts.push(Act::MakeCheckpoint { vm });
                    acts.push(self.write_to(vm));
                    if self.once_in(2) {
                        acts.push(Act::BackUp { vm, run: Run::default() });
                    }
                }
                acts.push(act);
            }
            if self.once_in(3) {
                acts.push(self.write_to(vm));
            }
            let run = self.run(theme);
            let died = run.crash.is_some();
            acts.push(Act::BackUp { vm, run });
            if died && self.once_in(3) {
                acts.push(Act::Settle { vm });
            }
            if matches!(theme, Theme::HostFails) && !self.once_in(3) {
                acts.push(Act::Mend);
            }
        }
        if matches!(theme, Theme::Retention) && self.once_in(2) {
            self.everything_goes(&mut acts);
        }
        acts
    }

    /// All points go, maintenance marks what they consisted of, the same disks are stored again, and what was marked
    /// is thrown away: chance alone hardly ever plays this.
    fn everything_goes(&mut self, acts: &mut Vec<Act>) {
        let days_later = |dice: &mut Self| Act::Wait { seconds: 3600 * (25 + dice.below(20) as u32) };
        acts.extend((0..8).map(|which| Act::DeletePoint { which }));
        acts.extend([days_later(self), Act::Maintain]);
        let run = self.run(Theme::Calm);
        acts.extend([Act::BackUp { vm: self.byte(), run }, days_later(self), Act::Maintain]);
    }

    fn write_to(&mut self, vm: u8) -> Act {
        let (disk, at) = (self.byte(), self.below(1 << 16) as u16);
        let units = match self.below(4) {
            0 => 1,
            1 => 1 + self.below(16) as u16,
            2 => 1 + self.below(80) as u16,
            _ => 1 + self.below(200) as u16,
        };
        if self.once_in(8) {
            return Act::Zero { vm, disk, at, units };
        }
        let odd = if self.once_in(3) { self.below(4096) as u16 } else { 0 };
        Act::Write { vm, disk, at, units, odd, data: self.0.next_u64() as u32 }
    }

    fn between(&mut self, theme: Theme, vm: u8) -> Act {
        match theme {
            Theme::Calm => self.quiet(vm),
            Theme::Deaths | Theme::StoreFails | Theme::Crowd => match self.below(4) {
                0 => self.change(vm),
                1 => self.retention(),
                _ => self.quiet(vm),
            },
            Theme::Changes => self.change(vm),
            Theme::HostFails => match self.below(4) {
                0 => self.quiet(vm),
                _ => Act::Break { vm, fault: self.host_fault() },
            },
            Theme::Retention => self.retention(),
            Theme::Everything => match self.below(4) {
                0 => self.quiet(vm),
                1 => self.change(vm),
                2 => self.retention(),
                _ => Act::Break { vm, fault: self.host_fault() },
            },
        }
    }

    fn quiet(&mut self, vm: u8) -> Act {
        match self.below(7) {
            0 => Act::Wait { seconds: self.below(4000) as u32 },
            1 => Act::StopVm { vm },
            2 | 3 => Act::StartVm { vm },
            4 => Act::PowerCut { vm },
            5 => Act::RestartAgent,
            _ => Act::RenameVm { vm },
        }
    }

    fn change(&mut self, vm: u8) -> Act {
        let (disk, which) = (self.byte(), self.byte());
        match self.below(24) {
            0 | 1 => Act::MakeCheckpoint { vm },
            2 => Act::DeleteCheckpoint { vm, which },
            3 | 4 => Act::ApplyCheckpoint { vm, which },
            5..=7 => Act::CopyDisk { vm, disk },
            8..=11 => {
                let how = self.one_of(&[
                    Revert::WithTracking,
                    Revert::WithTracking,
                    Revert::TrackingRemoved,
                    Revert::OtherFile,
                ]);
                Act::RevertDisk { which, how }
            }
            12 => Act::LoseTracking { vm, disk },
            13 | 14 => Act::MoveDiskFiles { vm, disk },
            15 => Act::ResizeDisk { vm, disk, units: 2 + self.below(14) as u8 },
            16 => Act::AddDisk { vm, units: 2 + self.below(6) as u8 },
            17 => Act::RemoveDisk { vm, disk },
            18 => Act::AttachDisk { vm, which },
            19 => Act::ForeignCheckpoint { vm },
            20 => Act::ForeignReferencePoint { vm },
            21 => Act::DeleteForeignCheckpoint { vm },
            22 => Act::MoveVm { vm },
            _ => Act::PowerCut { vm },
        }
    }

    fn retention(&mut self) -> Act {
        match self.below(8) {
            0..=2 => Act::DeletePoint { which: self.byte() },
            3 | 4 => Act::Maintain,
            5 => Act::Wait { seconds: 3600 * (20 + self.below(20) as u32) },
            6 => Act::Wait { seconds: 60 * self.below(600) as u32 },
            _ => Act::SetClock { seconds: self.below(480) as i16 - 240 },
        }
    }

    fn host_fault(&mut self) -> HostFault {
        let disk = self.byte();
        match self.below(25) {
            0..=3 => HostFault::Unreadable {
                disk,
                at: self.below(1 << 16) as u16,
                units: 1 + self.below(40) as u16,
                times: self.one_of(&[0, 0, 1, 2, 3, 4, 5]),
            },
            4 => HostFault::DeviceLost { disk, after_reads: self.below(12) as u8 },
            5 => HostFault::CheckpointRefused,
            6 => HostFault::CheckpointFails,
            7 => HostFault::GuestRefuses,
            8 => HostFault::ConvertFails,
            9 => HostFault::ConvertUnreachable,
            10 => HostFault::ConvertFailsAfterPoint { checkpoint_stays: self.once_in(2) },
            11 | 12 => HostFault::ReferencePointIds { missing: 1 + self.below(3) as u8 },
            13 => HostFault::NoLogonRight,
            14 => HostFault::NoRights,
            15..=17 => HostFault::MergeBlocked,
            18 => HostFault::ChangesFail { disk, which: self.byte() },
            19..=21 => HostFault::ChangesOmit { disk, unit: self.below(4) as u8 },
            22 => HostFault::ServiceRestarts { after_calls: self.byte(), phase: self.byte() },
            23 => HostFault::LeavesFile,
            _ => HostFault::DestroyUnreachable,
        }
    }

    fn run(&mut self, theme: Theme) -> Run {
        let mut run = Run { full: self.once_in(25), ..Run::default() };
        let among = |dice: &mut Self| dice.below(CALLS_OF_A_RUN) as u16;
        let everything = theme == Theme::Everything;
        if theme == Theme::Deaths && !self.once_in(3) || everything && self.once_in(3) || self.once_in(20) {
            run.crash = Some(Crash { at: among(self), after: self.once_in(2) });
        }
        if (theme == Theme::StoreFails && !self.once_in(3)) || (everything && self.once_in(4)) {
            for _ in 0..1 + self.below(2) {
                let fault = self.one_of(&[
                    StoreFault::FailBefore,
                    StoreFault::FailAfter,
                    StoreFault::AccessDenied,
                    StoreFault::NoSpace,
                    StoreFault::Cut,
                    StoreFault::FlipBit,
                ]);
                run.store.push((self.below(CALLS_OF_A_RUN / 3) as u16, fault));
            }
        }
        if self.once_in(20) {
            run.cancel = Some(among(self));
        }
        let crowd = theme == Theme::Crowd || everything && self.once_in(3);
        let guests_write = self.once_in(3);
        for _ in 0..if crowd { 1 + self.below(4) } else { u64::from(guests_write) } {
            let at = among(self);
            let vm = self.byte();
            let act = match self.below(if crowd { 12 } else { 1 }) {
                0..=4 => self.write_to(vm),
                5 => Act::BackUp { vm, run: Run::default() },
                6 => Act::MakeCheckpoint { vm },
                7 => Act::DeleteCheckpoint { vm, which: self.byte() },
                8 => Act::DeletePoint { which: self.byte() },
                9 => Act::Maintain,
                10 => Act::RestartHostService { down_ms: 500 + self.below(2000) as u16 },
                _ => self.quiet(vm),
            };
            if !matches!(act, Act::RestartAgent) {
                run.meanwhile.push((at, act));
            }
        }
        run
    }
}
