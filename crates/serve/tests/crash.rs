//! The device under kills and power losses at any call, against a model of what a guest may rely on.
//!
//! A *history* is a guest that writes, zeroes, flushes and reads while its disk is hydrated, drained, compacted and
//! switched, on a machine that dies again and again in the middle of some call. After each death the disk is taken up
//! again, and every sector is compared (spec block-serving C.9, I1 to I5 and I7 to I9).

mod support;

use std::cell::RefCell;
use std::sync::Arc;

use nbd::{Device, DeviceError, Zeroing};
use random::SplitMix;
use serve::folder::{Folder, read_small, replace};
use serve::overlay::{DiskKey, Identity, Overlay, OverlayOptions};
use serve::{
    Base, CachedBase, HydrateMap, LayeredDevice, MAP_NAME, MapIdentity, MemoryCache, Metrics, MoveError, Step,
    Switched, Target,
};
use support::base::{MemoryBase, SECTOR, sector_of, value_of};
use support::machine::{Death, Forgets, Machine, SimulatedDisk};

const SECTORS: u64 = 150;
const SIZE: u64 = SECTORS * SECTOR;
/// Histories of each run; `E3_SERVE_HISTORIES` says otherwise.
const HISTORIES: u64 = 6000;
const SEGMENT: u32 = 8 << 10;
const GRAIN: u64 = 8 << 10;
const SECRET: [u8; 32] = [0xC5; 32];
const SESSION: [u8; 16] = [1; 16];
const DISK: [u8; 16] = [2; 16];

type Outcome<T = ()> = Result<T, String>;

/// What the guest did, and may rely on.
struct Model {
    /// Values at the last flush, or found after a power loss.
    flushed: Vec<u64>,
    /// What was acknowledged since, in order.
    since: Vec<Change>,
    /// Begun and not acknowledged when the process died.
    begun: Option<Change>,
    next_value: u64,
}

#[derive(Clone)]
struct Change {
    first: u64,
    values: Vec<u64>,
}

impl Model {
    fn now(&self) -> Vec<u64> {
        self.after(self.since.len())
    }

    fn after(&self, changes: usize) -> Vec<u64> {
        let mut values = self.flushed.clone();
        self.since[..changes].iter().for_each(|change| change.apply(&mut values));
        values
    }

    /// After a kill: all that was acknowledged; of what was begun each sector or not.
    fn check_after_kill(&self, seen: &[u64]) -> Outcome {
        let now = self.now();
        let mut begun = now.clone();
        self.begun.iter().for_each(|change| change.apply(&mut begun));
        differing(seen, |sector, value| value == now[sector] || value == begun[sector])
            .map_err(|sector| format!("after a kill sector {sector} is not as acknowledged"))
    }

    /// After a power loss: an instant between the last flush and the end, in the order of writing.
    fn check_prefix(&self, seen: &[u64]) -> Outcome {
        let mut wrong = Vec::new();
        for changes in (0..=self.since.len()).rev() {
            let (before, mut after) = (self.after(changes), self.after(changes));
            // One write may be several records.
            let next = self.since.get(changes).or(self.begun.as_ref().filter(|_| changes == self.since.len()));
            next.iter().for_each(|change| change.apply(&mut after));
            match differing(seen, |sector, value| value == before[sector] || value == after[sector]) {
                Ok(()) => return Ok(()),
                Err(sector) => wrong.push(sector),
            }
        }
        let first = wrong.iter().max().copied().unwrap_or_default();
        Err(format!("after a power loss the disk is as at no instant since the last flush; sector {first} at best"))
    }

    /// After a power loss on plain storage: each sector as flushed or as written later.
    fn check_sectors(&self, seen: &[u64]) -> Outcome {
        let instants: Vec<Vec<u64>> = (0..=self.since.len()).map(|changes| self.after(changes)).collect();
        let mut begun = self.now();
        self.begun.iter().for_each(|change| change.apply(&mut begun));
        differing(seen, |sector, value| value == begun[sector] || instants.iter().any(|at| at[sector] == value))
            .map_err(|sector| format!("after a power loss sector {sector} is older than the last flush, or nobody's"))
    }
}

impl Change {
    fn apply(&self, values: &mut [u64]) {
        values[self.first as usize..][..self.values.len()].copy_from_slice(&self.values);
    }
}

fn differing(seen: &[u64], is_right: impl Fn(usize, u64) -> bool) -> Result<(), usize> {
    match seen.iter().enumerate().find(|(sector, value)| !is_right(*sector, **value)) {
        Some((sector, _)) => Err(sector),
        None => Ok(()),
    }
}

/// A guest with its disk.
struct History {
    machine: Machine,
    random: RefCell<SplitMix>,
    model: RefCell<Model>,
    base: Arc<MemoryBase>,
    options: OverlayOptions,
    is_local: RefCell<bool>,
    reached: RefCell<Reached>,
}

/// How often something happened.
#[derive(Default, Debug)]
struct Reached {
    hydrated: u64,
    drained: u64,
    compacted: u64,
    switched: u64,
    deaths_layered: u64,
    deaths_local: u64,
}

/// The process died, or something is wrong.
enum Stop {
    Dead,
    Wrong(String),
}

impl From<String> for Stop {
    fn from(problem: String) -> Self {
        Self::Wrong(problem)
    }
}

impl History {
    fn new(seed: u64, forgets: Forgets) -> Self {
        let mut random = SplitMix::new(seed);
        let base = Arc::new(MemoryBase::new(SIZE, SEGMENT));
        let flushed = (0..SECTORS).map(|sector| base.value(sector)).collect();
        let options = OverlayOptions {
            segment_bytes: 16 << random.below(3) << 10,
            compact_from_bytes: 48 << 10,
            limit_bytes: None,
            reserve_bytes: 0,
        };
        Self {
            machine: Machine::new(seed, forgets),
            random: RefCell::new(random),
            model: RefCell::new(Model { flushed, since: Vec::new(), begun: None, next_value: 1 }),
            base,
            options,
            is_local: RefCell::new(false),
            reached: RefCell::default(),
        }
    }

    fn below(&self, limit: u64) -> u64 {
        self.random.borrow_mut().below(limit)
    }

    fn device(&self, overlay: Option<Overlay>) -> LayeredDevice {
        let metrics = Arc::new(Metrics::default());
        let base: Arc<dyn Base> = self.base.clone();
        let base = CachedBase::new(base, MemoryCache::new(16 << 10), metrics.clone());
        LayeredDevice::new(Arc::new(base), overlay.map(Arc::new), metrics)
    }

    fn identity(&self) -> Identity {
        Identity { session: SESSION, disk: DISK, size_bytes: SIZE, sector_bytes: 512, base: self.base.identity() }
    }

    fn map_identity(&self) -> MapIdentity {
        MapIdentity { session: SESSION, grain_bytes: GRAIN, size_bytes: SIZE, base: self.base.identity() }
    }

    fn key() -> DiskKey {
        DiskKey::derive(&SECRET, &SESSION, &DISK)
    }

    /// Before anything can die: a session that has begun to serve.
    fn create(&self) -> LayeredDevice {
        let folder = self.machine.folder();
        let overlay = Overlay::create(folder.clone(), self.identity(), Self::key(), self.options).unwrap();
        self.device(Some(overlay))
    }

    /// As a session does it: what the state says, then what is there.
    fn take_up(&self) -> Outcome<LayeredDevice> {
        let folder = self.machine.folder();
        let told = |what: &str, error: &dyn std::fmt::Display| format!("{what}: {error}");
        let session = self.machine.folder_named("session/");
        session.sync().map_err(|error| told("make the state durable", &error))?;
        let state = read_small(&*session, "state", 100).map_err(|error| told("read the state", &error))?;
        if state.is_some() {
            *self.is_local.borrow_mut() = true;
            let device = self.device(None);
            device.set_local(Arc::new(self.open_target(&*folder)?));
            return Ok(device);
        }
        if *self.is_local.borrow() {
            return Err("a disk that was local is not any more".into());
        }
        let overlay = Overlay::recover(folder.clone(), self.identity(), Self::key(), self.options);
        let device = self.device(Some(overlay.map_err(|error| told("take up the overlay", &error))?));
        if folder.open(MAP_NAME).is_ok() {
            let map = HydrateMap::open(&*folder, &self.map_identity()).map_err(|error| told("open the map", &error))?;
            device.set_target(Target { disk: Arc::new(self.open_target(&*folder)?), map });
        }
        Ok(device)
    }

    fn open_target(&self, folder: &dyn Folder) -> Outcome<SimulatedDisk> {
        let file = folder.open("target").map_err(|error| format!("open the target: {error}"))?;
        Ok(SimulatedDisk { file, size_bytes: SIZE })
    }

    /// Begins hydration. A target without a map is one that was not finished, and is made again.
    fn add_target(&self, device: &LayeredDevice) -> Result<(), std::io::Error> {
        let folder = self.machine.folder();
        if folder.open("target").is_ok() {
            folder.remove("target")?;
        }
        let file = folder.create("target")?;
        file.write_all_at(&[0; SIZE as usize], 0)?;
        file.sync_data()?;
        folder.sync()?;
        let map = HydrateMap::create(&*folder, &self.map_identity())?;
        device.set_target(Target { disk: Arc::new(SimulatedDisk { file, size_bytes: SIZE }), map });
        Ok(())
    }

    /// `Ok(false)` is an error that a living process must not give.
    fn settle<T, E: std::fmt::Display>(&self, result: Result<T, E>, what: &str) -> Result<T, Stop> {
        match result {
            Ok(value) => Ok(value),
            Err(_) if self.machine.is_dead() => Err(Stop::Dead),
            Err(error) => Err(Stop::Wrong(format!("{what}: {error}"))),
        }
    }

    fn guest(&self, device: &LayeredDevice) -> Result<(), Stop> {
        match self.below(10) {
            0..5 => {
                let first = self.below(SECTORS);
                let longest = if self.below(8) == 0 { 80 } else { 12 };
                let count = 1 + self.below((SECTORS - first).min(longest));
                let value = self.new_value();
                let change = Change { first, values: (0..count).map(|nth| value + nth).collect() };
                let bytes: Vec<u8> = change.values.iter().flat_map(|value| sector_of(*value)).collect();
                self.change(change, "write", || device.write_at(&bytes, first * SECTOR))
            }
            5 => {
                let first = self.below(SECTORS);
                let count = 1 + self.below(SECTORS - first);
                let change = Change { first, values: vec![0; count as usize] };
                let range = first * SECTOR..(first + count) * SECTOR;
                self.change(change, "zero", || device.zero(range, Zeroing::MayDeallocate))
            }
            6..8 => {
                self.settle(device.flush(), "flush")?;
                let mut model = self.model.borrow_mut();
                model.flushed = model.now();
                model.since.clear();
                Ok(())
            }
            _ => {
                let first = self.below(SECTORS);
                let count = 1 + self.below(SECTORS - first);
                let seen = self.settle(read(device, first, count), "read")?;
                let now = self.model.borrow().now();
                match seen == now[first as usize..][..count as usize] {
                    true => Ok(()),
                    false => Err(Stop::Wrong("a read gave something else than was written last".into())),
                }
            }
        }
    }

    fn new_value(&self) -> u64 {
        let mut model = self.model.borrow_mut();
        model.next_value += 1000;
        model.next_value
    }

    fn change(
        &self,
        change: Change,
        what: &str,
        perform: impl FnOnce() -> Result<(), DeviceError>,
    ) -> Result<(), Stop> {
        self.model.borrow_mut().begun = Some(change.clone());
        self.settle(perform(), what)?;
        let mut model = self.model.borrow_mut();
        model.begun = None;
        model.since.push(change);
        Ok(())
    }

    /// One thing that happens: mostly the guest, sometimes what goes on behind its back.
    fn happens(&self, device: &LayeredDevice) -> Result<(), Stop> {
        let wrong: RefCell<Option<Stop>> = RefCell::new(None);
        let is_held = RefCell::new(false);
        let pause = |step: Step| {
            if step == Step::Held {
                *is_held.borrow_mut() = true;
            }
            if !*is_held.borrow()
                && self.below(3) == 0
                && let Err(stop) = self.guest(device)
            {
                *wrong.borrow_mut() = Some(stop);
                return Err(MoveError::Stopped);
            }
            Ok(())
        };
        let is_local = *self.is_local.borrow();
        let has_target = device.hydrated().is_some();
        let result = match self.below(20) {
            0 if !is_local && !has_target => {
                return self.settle(self.add_target(device), "add a target");
            }
            1..3 if !is_local && has_target => device.hydrate(&pause).map(|hydrated| {
                self.reached.borrow_mut().hydrated += u64::from(hydrated.is_complete());
            }),
            3..6 if !is_local && has_target => device.drain(self.below(SECTORS), &pause).map(|next| {
                self.reached.borrow_mut().drained += u64::from(next.is_some());
            }),
            6 if !is_local && device.hydrated().is_some_and(|hydrated| hydrated.is_complete()) => {
                let session = self.machine.folder_named("session/");
                let commit = || replace(&*session, "state", b"LOCAL").map_err(|error| error.to_string());
                device.switch(&commit, &pause).map(|switched| {
                    if switched == Switched::Local {
                        *self.is_local.borrow_mut() = true;
                        self.reached.borrow_mut().switched += 1;
                    }
                })
            }
            7 if !is_local => {
                let overlay = device.overlay().expect("a disk that is not local has one");
                let has_compacted = self.settle(overlay.compact(), "compact")?;
                self.reached.borrow_mut().compacted += u64::from(has_compacted);
                return Ok(());
            }
            8 if !is_local => {
                let overlay = device.overlay().expect("a disk that is not local has one");
                return self.settle(overlay.mark(), "mark");
            }
            _ => return self.guest(device),
        };
        match (wrong.into_inner(), result) {
            (Some(stop), _) => Err(stop),
            (None, result) => self.settle(result, "move"),
        }
    }

    /// Lives until death, or for so many events; then dies, is taken up and compared.
    fn live(&self, device: LayeredDevice, events: u64, death: Death) -> Outcome<LayeredDevice> {
        for _ in 0..events {
            match self.happens(&device) {
                Ok(()) => {}
                Err(Stop::Dead) => break,
                Err(Stop::Wrong(problem)) => return Err(problem),
            }
        }
        drop(device);
        if self.machine.is_dead() {
            let mut reached = self.reached.borrow_mut();
            let deaths = if *self.is_local.borrow() { &mut reached.deaths_local } else { &mut reached.deaths_layered };
            *deaths += 1;
        }
        let device = self.take_up_after(death)?;
        if let Some(problem) = self.machine.problem() {
            return Err(problem);
        }
        Ok(device)
    }

    fn take_up_after(&self, death: Death) -> Outcome<LayeredDevice> {
        self.machine.restart(death);
        // Recovery may die as well.
        let mut death = death;
        if self.below(4) == 0 {
            self.machine.die_in(1 + self.below(8));
            if let Err(problem) = self.take_up()
                && !self.machine.is_dead()
            {
                return Err(problem);
            }
            let second = if self.below(2) == 0 { Death::Kill } else { Death::PowerLoss };
            self.machine.restart(second);
            if second == Death::PowerLoss {
                death = second;
            }
        }
        let device = self.take_up()?;
        let seen = read(&device, 0, SECTORS).map_err(|error| format!("read after {death:?}: {error}"))?;
        let mut model = self.model.borrow_mut();
        let is_local = *self.is_local.borrow();
        match death {
            Death::Kill => model.check_after_kill(&seen)?,
            Death::PowerLoss if is_local => model.check_sectors(&seen)?,
            Death::PowerLoss => model.check_prefix(&seen)?,
        }
        // Taking up an overlay makes durable what it finds; plain storage that was only killed is as dirty as before.
        if is_local && death == Death::Kill {
            let found = Change { first: 0, values: seen };
            model.since.push(found);
        } else {
            (model.flushed, model.since) = (seen, Vec::new());
        }
        model.begun = None;
        Ok(device)
    }

    fn play(&self) -> Outcome {
        let mut device = self.create();
        for _ in 0..1 + self.below(6) {
            let death = if self.below(2) == 0 { Death::Kill } else { Death::PowerLoss };
            if self.below(8) > 0 {
                self.machine.die_in(1 + self.below(150));
            }
            let events = 10 + self.below(60);
            device = self.live(device, events, death)?;
        }
        if *self.is_local.borrow() {
            let files = self.machine.files();
            let (_, target) = files.iter().find(|(name, _)| name == "target").ok_or("no target")?;
            let values: Outcome<Vec<u64>> = target.chunks_exact(SECTOR as usize).map(value_of).collect();
            let now = self.model.borrow().now();
            return if values? == now { Ok(()) } else { Err("the target is not what the guest reads".into()) };
        }
        Ok(())
    }
}

fn read(device: &LayeredDevice, first: u64, count: u64) -> Result<Vec<u64>, DeviceError> {
    let mut bytes = vec![0; (count * SECTOR) as usize];
    device.read_at(&mut bytes, first * SECTOR)?;
    let values: Outcome<Vec<u64>> = bytes.chunks_exact(SECTOR as usize).map(value_of).collect();
    values.map_err(|problem| DeviceError::new(nbd::DeviceErrorKind::Io, problem))
}

/// Plays histories until one goes wrong.
fn first_problem(seeds: std::ops::Range<u64>, forgets: Forgets) -> Option<(u64, String)> {
    for seed in seeds {
        let history = History::new(seed, forgets);
        let played = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| history.play()));
        match played {
            Ok(Ok(())) => {}
            Ok(Err(problem)) => return Some((seed, problem)),
            Err(_) => return Some((seed, "a panic".into())),
        }
    }
    None
}

/// Seeds from the environment, or a sample.
fn histories(sample: u64) -> u64 {
    std::env::var("E3_SERVE_HISTORIES").ok().and_then(|text| text.parse().ok()).unwrap_or(sample)
}

#[test]
fn histories_of_kills_and_power_losses() {
    assert_eq!(first_problem(0..histories(HISTORIES), Forgets::default()), None);
}

/// What histories are about happens in them, often.
#[test]
fn histories_reach_everything() {
    let mut all = Reached::default();
    for seed in 0..500 {
        let history = History::new(seed, Forgets::default());
        history.play().unwrap();
        let reached = history.reached.into_inner();
        all.hydrated += reached.hydrated;
        all.drained += reached.drained;
        all.compacted += reached.compacted;
        all.switched += reached.switched;
        all.deaths_layered += reached.deaths_layered;
        all.deaths_local += reached.deaths_local;
    }
    println!("{all:?}");
    let Reached { hydrated, drained, compacted, switched, deaths_layered, deaths_local } = all;
    for count in [hydrated, drained, compacted, switched, deaths_layered, deaths_local] {
        assert!(count > 50, "{all:?}");
    }
}

/// `cargo test -p serve --release --test crash -- --ignored`
#[test]
#[ignore = "long: 40,000 histories"]
fn forty_thousand_histories() {
    assert_eq!(first_problem(100_000..140_000, Forgets::default()), None);
}

/// A machine that forgets one kind of sync stands for a program that does not ask for it.
#[test]
fn a_sync_that_is_not_done_is_found() {
    for (case, forgets) in [
        ("fdatasync of segments", Forgets { segment_syncs: true, ..Forgets::default() }),
        ("fsync of the folder", Forgets { folder_syncs: true, ..Forgets::default() }),
        ("fdatasync at recovery", Forgets { first_sync: true, ..Forgets::default() }),
        ("fsync of the map", Forgets { map_syncs: true, ..Forgets::default() }),
        ("fdatasync of the target", Forgets { target_syncs: true, ..Forgets::default() }),
    ] {
        let found = first_problem(0..3000, forgets);
        println!("{case}: {found:?}");
        assert!(found.is_some(), "{case}");
    }
}

/// One short life, ended in every one of its calls in turn, both ways.
#[test]
fn every_call_is_survived() {
    for seed in 0..4 {
        let calls = {
            let history = History::new(seed, Forgets::default());
            let device = history.create();
            let before = history.machine.calls();
            history.live(device, 40, Death::Kill).unwrap();
            history.machine.calls() - before
        };
        assert!(calls > 40, "seed {seed} does something: {calls}");
        for stop_at in 1..=calls {
            for death in [Death::Kill, Death::PowerLoss] {
                let history = History::new(seed, Forgets::default());
                let device = history.create();
                history.machine.die_in(stop_at);
                let lived = history.live(device, 40, death);
                assert_eq!(lived.map(drop), Ok(()), "seed {seed}, {death:?} at call {stop_at}");
            }
        }
    }
}
