//! A story that fails, made shorter while it goes on failing.

use crate::laws::Law;
use crate::story::{Act, Run, Story};
use crate::{Violation, play};

/// The shortest story found that breaks the same law, with how it breaks it. At most `tries` stories are played.
pub fn shrink(story: &Story, violation: &Violation, tries: usize) -> (Story, Violation) {
    let mut shrinker = Shrinker { best: story.clone(), violation: violation.clone(), left: tries };
    loop {
        let before = shrinker.best.clone();
        shrinker.drop_acts();
        shrinker.simplify_acts();
        shrinker.simplify_setup();
        if shrinker.best == before || shrinker.left == 0 {
            return (shrinker.best, shrinker.violation);
        }
    }
}

struct Shrinker {
    best: Story,
    violation: Violation,
    left: usize,
}

impl Shrinker {
    fn law(&self) -> Law {
        self.violation.law
    }

    /// Takes the story if it still breaks the law.
    fn try_out(&mut self, story: Story) -> bool {
        if self.left == 0 || story == self.best {
            return false;
        }
        self.left -= 1;
        match play(&story).violation {
            Some(violation) if violation.law == self.law() => {
                (self.best, self.violation) = (story, violation);
                true
            }
            _ => false,
        }
    }

    /// Halves first, then ever smaller runs of acts, single ones at last.
    fn drop_acts(&mut self) {
        let mut len = self.best.acts.len().div_ceil(2);
        while len > 0 {
            let mut at = 0;
            while at < self.best.acts.len() {
                let mut story = self.best.clone();
                story.acts.drain(at..(at + len).min(story.acts.len()));
                if !self.try_out(story) {
                    at += len;
                }
            }
            len /= 2;
        }
    }

    fn simplify_acts(&mut self) {
        for number in 0..self.best.acts.len() {
            loop {
                let simpler = simpler_acts(&self.best.acts[number]);
                let taken = simpler.into_iter().any(|act| {
                    let mut story = self.best.clone();
                    story.acts[number] = act;
                    self.try_out(story)
                });
                if !taken {
                    break;
                }
            }
        }
    }

    fn simplify_setup(&mut self) {
        let mut story = self.best.clone();
        if story.setup.vms.len() > 1 {
            story.setup.vms.pop();
            self.try_out(story);
        }
        let mut story = self.best.clone();
        story.setup.vms.iter_mut().for_each(|disks| disks.truncate(1));
        self.try_out(story);
        for change in [
            |story: &mut Story| story.setup.synchronous = false,
            |story: &mut Story| story.setup.null_references = false,
            |story: &mut Story| story.setup.long_segments = false,
            |story: &mut Story| story.setup.tracking.superset = false,
            |story: &mut Story| story.setup.tracking.short_ranges = false,
            |story: &mut Story| story.setup.tracking.refuses_whole_disk = false,
            |story: &mut Story| story.setup.tracking.granularity = 16,
        ] {
            let mut story = self.best.clone();
            change(&mut story);
            self.try_out(story);
        }
    }
}

/// Acts of the same kind with less in them, the simplest first.
fn simpler_acts(act: &Act) -> Vec<Act> {
    match act {
        Act::BackUp { vm, run } => {
            let mut runs = vec![Run::default()];
            for number in 0..run.meanwhile.len() {
                let mut less = run.clone();
                less.meanwhile.remove(number);
                runs.push(less);
            }
            for number in 0..run.store.len() {
                let mut less = run.clone();
                less.store.remove(number);
                runs.push(less);
            }
            runs.push(Run { crash: None, ..run.clone() });
            runs.push(Run { cancel: None, ..run.clone() });
            runs.push(Run { full: false, ..run.clone() });
            runs.into_iter().filter(|less| less != run).map(|run| Act::BackUp { vm: *vm, run }).collect()
        }
        Act::Write { vm, disk, at, units, odd, data } => {
            let write = |at, units, odd| Act::Write { vm: *vm, disk: *disk, at, units, odd, data: *data };
            let all = [write(at / 2, *units, *odd), write(*at, units / 2, *odd), write(*at, *units, 0)];
            all.into_iter().filter(|less| less != act).collect()
        }
        Act::Zero { vm, disk, at, units } if *units > 1 => {
            vec![Act::Zero { vm: *vm, disk: *disk, at: *at, units: units / 2 }]
        }
        Act::Wait { seconds } if *seconds > 1 => vec![Act::Wait { seconds: seconds / 2 }],
        _ => Vec::new(),
    }
}
