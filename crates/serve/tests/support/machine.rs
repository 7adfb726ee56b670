//! A machine whose files are lost as a power loss loses them, and whose processes die in the middle of a write.
//!
//! Written by the calls' contracts, not by what the code under test does with them. What a call made is seen by later
//! processes. Only a sync makes it durable; without one, a power loss keeps of every write any pieces of 512 bytes, and
//! of names the old or the new.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use nbd::{Device, DeviceError, Extent, ExtentKind, Zeroing};
use random::SplitMix;
use serve::folder::{Folder, StoredFile};

const PIECE: usize = 512;

/// What ends a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    Kill,
    PowerLoss,
}

/// Syncs that a broken machine, or a broken program, does not do: they return at once.
#[derive(Clone, Copy, Debug, Default)]
pub struct Forgets {
    pub segment_syncs: bool,
    pub folder_syncs: bool,
    pub map_syncs: bool,
    pub target_syncs: bool,
    /// The first sync after each boot.
    pub first_sync: bool,
}

#[derive(Clone)]
pub struct Machine(Arc<Mutex<State>>);

struct State {
    random: SplitMix,
    boots: u64,
    /// Calls that change something, until the process dies in the one that makes it zero.
    calls_left: Option<u64>,
    calls: u64,
    is_dead: bool,
    forgets: Forgets,
    syncs_since_boot: u64,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    inodes: Vec<Inode>,
    nonces: HashSet<(Vec<u8>, u64)>,
    problem: Option<String>,
}

#[derive(Clone, Default)]
struct Inode {
    bytes: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<(usize, Vec<u8>)>,
    /// Of segments: what was ever written, none of it twice.
    written: BTreeSet<(usize, usize)>,
}

impl Machine {
    pub fn new(seed: u64, forgets: Forgets) -> Self {
        Self(Arc::new(Mutex::new(State {
            random: SplitMix::new(!seed),
            boots: 0,
            calls_left: None,
            calls: 0,
            is_dead: false,
            forgets,
            syncs_since_boot: 0,
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            inodes: Vec::new(),
            nonces: HashSet::new(),
            problem: None,
        })))
    }

    /// The process dies in the call that many calls from now.
    pub fn die_in(&self, calls: u64) {
        self.lock().calls_left = Some(calls.max(1));
    }

    pub fn is_dead(&self) -> bool {
        self.lock().is_dead
    }

    /// Calls so far that change something.
    pub fn calls(&self) -> u64 {
        self.lock().calls
    }

    /// What the machine saw that must never be: a nonce used twice, bytes of a segment overwritten.
    pub fn problem(&self) -> Option<String> {
        self.lock().problem.clone()
    }

    /// Every file's bytes, by name.
    pub fn files(&self) -> Vec<(String, Vec<u8>)> {
        let state = self.lock();
        state.names.iter().map(|(name, inode)| (name.clone(), state.inodes[*inode].bytes.clone())).collect()
    }

    /// Changes bytes behind everybody's back.
    pub fn damage(&self, name: &str, at: usize) {
        let mut state = self.lock();
        let inode = state.names[name];
        state.inodes[inode].bytes[at] ^= 1;
    }

    /// The folder that disks are in.
    pub fn folder(&self) -> Arc<dyn Folder> {
        self.folder_named("")
    }

    /// One of several folders, each of which is made durable by itself.
    pub fn folder_named(&self, prefix: &'static str) -> Arc<dyn Folder> {
        Arc::new(SimulatedFolder { machine: self.clone(), boot: self.lock().boots, prefix })
    }

    /// The next process, on the same machine or after it lost power.
    pub fn restart(&self, death: Death) {
        let mut state = self.lock();
        let state = &mut *state;
        state.boots += 1;
        state.is_dead = false;
        state.calls_left = None;
        state.syncs_since_boot = 0;
        if death == Death::Kill {
            return;
        }
        let random = &mut state.random;
        // Often all or nothing is kept, which random pieces would rarely be.
        let style = random.below(4);
        let keeps = |random: &mut SplitMix| match style {
            0 => false,
            1 => true,
            _ => random.below(2) == 0,
        };
        for inode in &mut state.inodes {
            let mut bytes = inode.durable.clone();
            for (offset, data) in inode.unsynced.drain(..) {
                let mut at = 0;
                while at < data.len() {
                    let end = (at + PIECE - (offset + at) % PIECE).min(data.len());
                    if keeps(random) {
                        let to = offset + end;
                        if bytes.len() < to {
                            bytes.resize(to, 0);
                        }
                        bytes[offset + at..to].copy_from_slice(&data[at..end]);
                    }
                    at = end;
                }
            }
            inode.durable.clone_from(&bytes);
            inode.bytes = bytes;
        }
        let all: BTreeSet<String> = state.names.keys().chain(state.durable_names.keys()).cloned().collect();
        let mut names = BTreeMap::new();
        for name in all {
            let from = if keeps(random) { &state.names } else { &state.durable_names };
            if let Some(inode) = from.get(&name) {
                names.insert(name, *inode);
            }
        }
        state.durable_names.clone_from(&names);
        state.names = names;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn dead() -> io::Error {
    io::Error::other("the process is dead")
}

impl State {
    /// Counts a call that changes something. The error is death; `Ok(true)` is death after the call was done.
    fn call(&mut self, boot: u64) -> io::Result<bool> {
        if self.is_dead || self.boots != boot {
            return Err(dead());
        }
        self.calls += 1;
        let Some(left) = &mut self.calls_left else { return Ok(false) };
        *left -= 1;
        if *left > 0 {
            return Ok(false);
        }
        self.is_dead = true;
        if self.random.below(2) == 0 { Err(dead()) } else { Ok(true) }
    }

    fn end(is_death: bool) -> io::Result<()> {
        if is_death { Err(dead()) } else { Ok(()) }
    }
}

struct SimulatedFolder {
    machine: Machine,
    boot: u64,
    /// Of the names in it; a folder without one has the names without a slash.
    prefix: &'static str,
}

impl SimulatedFolder {
    fn full(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn has(&self, full: &str) -> bool {
        full.strip_prefix(self.prefix).is_some_and(|name| !name.contains('/'))
    }

    fn file(&self, name: &str, inode: usize) -> Arc<dyn StoredFile> {
        Arc::new(SimulatedFile { machine: self.machine.clone(), boot: self.boot, name: name.to_owned(), inode })
    }
}

impl Folder for SimulatedFolder {
    fn list(&self) -> io::Result<Vec<String>> {
        let state = self.machine.lock();
        let names = state.names.keys().filter(|name| self.has(name));
        Ok(names.map(|name| name[self.prefix.len()..].to_owned()).collect())
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn StoredFile>> {
        let mut state = self.machine.lock();
        if state.names.contains_key(&self.full(name)) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let is_death = state.call(self.boot)?;
        state.inodes.push(Inode::default());
        let inode = state.inodes.len() - 1;
        state.names.insert(self.full(name), inode);
        State::end(is_death)?;
        drop(state);
        Ok(self.file(name, inode))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn StoredFile>> {
        let inode = self.machine.lock().names.get(&self.full(name)).copied();
        inode.map(|inode| self.file(name, inode)).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.machine.lock();
        if !state.names.contains_key(&self.full(name)) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let is_death = state.call(self.boot)?;
        state.names.remove(&self.full(name));
        State::end(is_death)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.machine.lock();
        let is_death = state.call(self.boot)?;
        let inode = state.names.remove(&self.full(from)).ok_or(io::ErrorKind::NotFound)?;
        state.names.insert(self.full(to), inode);
        State::end(is_death)
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.machine.lock();
        let state = &mut *state;
        let is_death = state.call(self.boot)?;
        if !state.forgets.folder_syncs {
            state.durable_names.retain(|name, _| !self.has(name));
            let here = state.names.iter().filter(|(name, _)| self.has(name));
            state.durable_names.extend(here.map(|(name, inode)| (name.clone(), *inode)));
        }
        State::end(is_death)
    }

    fn free_bytes(&self) -> Option<u64> {
        None
    }

    fn display(&self) -> String {
        "the simulated folder".into()
    }
}

struct SimulatedFile {
    machine: Machine,
    boot: u64,
    name: String,
    inode: usize,
}

impl SimulatedFile {
    fn is_segment(&self) -> bool {
        self.name.starts_with("ov-")
    }
}

impl StoredFile for SimulatedFile {
    fn read_exact_at(&self, buf: &mut [u8], offset_bytes: u64) -> io::Result<()> {
        let state = self.machine.lock();
        let bytes = &state.inodes[self.inode].bytes;
        let range = offset_bytes as usize..offset_bytes as usize + buf.len();
        buf.copy_from_slice(bytes.get(range).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_all_at(&self, data: &[u8], offset_bytes: u64) -> io::Result<()> {
        let mut state = self.machine.lock();
        let state = &mut *state;
        let offset = offset_bytes as usize;
        if self.is_segment() && state.boots == self.boot {
            watch_nonces(state, self.inode, data, offset);
        }
        let mut len = data.len();
        let result = match state.call(self.boot) {
            Ok(false) => Ok(()),
            Ok(true) => Err(dead()),
            Err(error) if state.boots != self.boot || state.calls_left != Some(0) => return Err(error),
            // Killed inside the call.
            Err(error) => {
                len = state.random.below(data.len() as u64 + 1) as usize;
                if !self.is_segment() {
                    // Elsewhere we rely on what file systems do: a sector is written or not.
                    len = (offset + len) / PIECE * PIECE - offset.min((offset + len) / PIECE * PIECE);
                }
                state.calls_left = None;
                Err(error)
            }
        };
        let inode = &mut state.inodes[self.inode];
        if inode.bytes.len() < offset + len {
            inode.bytes.resize(offset + len, 0);
        }
        inode.bytes[offset..offset + len].copy_from_slice(&data[..len]);
        inode.unsynced.push((offset, data[..len].to_vec()));
        result
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.write_all_at(&vec![0; len_bytes as usize], 0)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.machine.lock();
        let is_death = state.call(self.boot)?;
        state.syncs_since_boot += 1;
        let forgets = state.forgets;
        let forgotten = (forgets.segment_syncs && self.is_segment())
            || (forgets.map_syncs && self.name == serve::MAP_NAME)
            || (forgets.target_syncs && self.name == "target")
            || (forgets.first_sync && self.is_segment() && self.boot > 0 && state.syncs_since_boot == 1);
        if !forgotten {
            let inode = &mut state.inodes[self.inode];
            inode.unsynced.clear();
            inode.durable = inode.bytes.clone();
        }
        State::end(is_death)
    }

    fn len_bytes(&self) -> io::Result<u64> {
        Ok(self.machine.lock().inodes[self.inode].bytes.len() as u64)
    }
}

/// A segment's key follows from its salt, a record's nonces from its sequence number: no pair may come twice.
fn watch_nonces(state: &mut State, inode: usize, data: &[u8], offset: usize) {
    let file = &mut state.inodes[inode];
    let overlaps = file.written.iter().any(|(start, end)| *start < offset + data.len() && offset < *end);
    file.written.insert((offset, offset + data.len()));
    if overlaps {
        state.problem = Some(format!("bytes {offset} of a segment were written twice"));
    }
    if data.starts_with(b"OVR1") {
        let salt = file.bytes[88..120].to_vec();
        let sequence = u64::from_le_bytes(data[8..16].try_into().expect("eight bytes"));
        if !state.nonces.insert((salt, sequence)) {
            state.problem = Some(format!("the nonces of record {sequence} were used twice"));
        }
    }
}

/// A raw disk in a file of the machine's.
pub struct SimulatedDisk {
    pub file: Arc<dyn StoredFile>,
    pub size_bytes: u64,
}

impl Device for SimulatedDisk {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, buf: &mut [u8], offset_bytes: u64) -> Result<(), DeviceError> {
        self.file.read_exact_at(buf, offset_bytes).map_err(|error| DeviceError::from_io("read", &error))
    }

    fn write_at(&self, data: &[u8], offset_bytes: u64) -> Result<(), DeviceError> {
        self.file.write_all_at(data, offset_bytes).map_err(|error| DeviceError::from_io("write", &error))
    }

    fn zero(&self, range: Range<u64>, _how: Zeroing) -> Result<(), DeviceError> {
        self.write_at(&vec![0; (range.end - range.start) as usize], range.start)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.file.sync_data().map_err(|error| DeviceError::from_io("flush", &error))
    }

    fn extents(&self, range: Range<u64>, _max: usize) -> Result<Vec<Extent>, DeviceError> {
        Ok(vec![Extent { len_bytes: range.end - range.start, kind: ExtentKind::Data }])
    }
}
