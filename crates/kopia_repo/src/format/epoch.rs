//! Epochs: which index blobs make up the current index (kopia-format 4.7, 4.8).

use std::collections::BTreeMap;

use jiff::Timestamp;

/// What a listing says of one blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListedBlob<'a> {
    /// The name.
    pub id: &'a str,
    /// Its length in bytes.
    pub len_bytes: u64,
    /// When the storage says that it was written.
    pub timestamp: Timestamp,
}

/// One listing of the prefixes `xe`, `xw`, `xs` and `xr`, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommittedState {
    /// The epoch that new index blobs belong to: the greatest marker, 0 without any.
    pub write_epoch: u64,
    /// Tombstones up to this time, in Unix seconds, are treated as nonexistent. The greatest `xw` blob.
    pub watermark_seconds: Option<i64>,
    /// The range compactions in use, ascending, each beginning where the one before ended, the first at epoch 0.
    pub range_chain: Vec<RangeCheckpoint>,
    /// The complete compaction of single epochs, settled or not.
    pub single_epoch: BTreeMap<u64, CompletedSet>,
}

/// Blobs that were written together and are all there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompletedSet {
    /// Their names, in the order of the listing.
    pub blobs: Vec<String>,
    /// The newest of their times.
    pub newest: Timestamp,
}

/// A compaction of the epochs `min` to `max`, both included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeCheckpoint {
    /// The first epoch.
    pub min: u64,
    /// The last epoch.
    pub max: u64,
    /// The blobs that hold their entries.
    pub set: CompletedSet,
}

/// The body of an epoch marker. Readers ignore it.
pub const MARKER_BODY: &[u8] = b"epoch-marker";

/// The body of a deletion watermark. Readers ignore it.
pub const WATERMARK_BODY: &[u8] = b"deletion-watermark";

/// The name of a blob of the epoch manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IndexBlobName<'a> {
    /// `xe<epoch>`: the epoch has begun.
    Marker {
        /// The epoch.
        epoch: u64,
    },
    /// `xw<seconds>`: tombstones up to then are forgotten.
    Watermark {
        /// The time in Unix seconds.
        unix_seconds: i64,
    },
    /// `xn<epoch>_…`: entries as a writer flushed them.
    Uncompacted {
        /// The epoch.
        epoch: u64,
        /// The flush that the blob belongs to.
        set: Option<SetMember<'a>>,
    },
    /// `xs<epoch>_…`: all entries of an epoch.
    SingleEpoch {
        /// The epoch.
        epoch: u64,
        /// The compaction that the blob belongs to; without one the blob is complete by itself.
        set: Option<SetMember<'a>>,
    },
    /// `xr<min>_<max>_…`: all entries of several epochs.
    Range {
        /// The first epoch.
        min: u64,
        /// The last epoch.
        max: u64,
        /// The compaction that the blob belongs to; without one the blob is complete by itself.
        set: Option<SetMember<'a>>,
    },
}

/// The end of a blob name, `-<set>-c<count>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SetMember<'a> {
    /// What the names of all members share: a session ID or compaction set ID.
    pub set_id: &'a str,
    /// How many members there are.
    pub count: u32,
}

impl<'a> IndexBlobName<'a> {
    /// Understands a name. `None` for blobs that are not the epoch manager's or of other forms, which are ignored.
    pub fn parse(blob_id: &'a str) -> Option<Self> {
        let kind = blob_id.get(..2)?;
        let rest = &blob_id[2..];
        let set = SetMember::parse(blob_id);
        match kind {
            "xe" => Some(Self::Marker { epoch: number(rest)? }),
            "xw" => {
                Some(Self::Watermark { unix_seconds: i64::try_from(number(rest)?).expect("numbers stay below 2^63") })
            }
            // Kopia lists these by `xn<epoch>_`, so nothing but the canonical form exists for it.
            "xn" => {
                let epoch = decimal(rest.split_once('_')?.0)?;
                blob_id.starts_with(&uncompacted_prefix(epoch)).then_some(Self::Uncompacted { epoch, set })
            }
            "xs" => Some(Self::SingleEpoch { epoch: number(rest.split_once('_')?.0)?, set }),
            "xr" => {
                let (min, rest) = rest.split_once('_')?;
                let (max, _) = rest.split_once('_')?;
                Some(Self::Range { min: number(min)?, max: number(max)?, set })
            }
            _ => None,
        }
    }
}

impl<'a> SetMember<'a> {
    fn parse(blob_id: &'a str) -> Option<Self> {
        let mut parts = blob_id.split('-').skip(1);
        let set_id = parts.next().filter(|part| part.starts_with('s'))?;
        let count = decimal(parts.next()?.strip_prefix('c')?)?;
        Some(Self { set_id, count: u32::try_from(count).ok()? })
    }
}

/// The number before the first `_`, leading characters that are no digits dropped, as Kopia reads it.
fn number(text: &str) -> Option<u64> {
    let text = text.split('_').next().unwrap_or_default();
    decimal(text.trim_start_matches(|letter: char| !letter.is_ascii_digit()))
}

/// A number of nothing but digits, below 2^63.
fn decimal(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|number| i64::try_from(*number).is_ok())
}

/// The name of the marker that begins an epoch.
pub fn marker_name(epoch: u64) -> String {
    format!("xe{epoch}")
}

/// The name of the blob that hides tombstones up to a time in Unix seconds.
pub fn watermark_name(unix_seconds: i64) -> String {
    format!("xw{unix_seconds}")
}

/// What the names of index blobs begin with that are written in `epoch`.
pub fn uncompacted_prefix(epoch: u64) -> String {
    format!("xn{epoch}_")
}

/// What the names of compactions of one epoch begin with.
pub fn single_epoch_prefix(epoch: u64) -> String {
    format!("xs{epoch}_")
}

/// What the names of compactions of the epochs `min` to `max` begin with.
///
/// # Panics
/// Unless `min < max`: readers skip a range of one epoch, whose entries would be lost (kopia-format 4.8).
pub fn range_prefix(min: u64, max: u64) -> String {
    assert!(min < max, "a range compaction has at least two epochs");
    format!("xr{min}_{max}_")
}

/// The part after the hash in the names of `count` blobs written together, to be set off with a dash.
pub fn set_suffix(set_id: &str, count: usize) -> String {
    format!("{set_id}-c{count}")
}

impl CommittedState {
    /// Understands a listing; blobs of other kinds may be among it and are ignored.
    pub fn from_listing<'a>(blobs: impl IntoIterator<Item = ListedBlob<'a>>) -> Self {
        let mut write_epoch = 0;
        let mut watermark_seconds = None;
        let mut single_epoch: BTreeMap<u64, Sets<'a>> = BTreeMap::new();
        let mut ranges: BTreeMap<(u64, u64), Sets<'a>> = BTreeMap::new();
        for blob in blobs {
            match IndexBlobName::parse(blob.id) {
                Some(IndexBlobName::Marker { epoch }) => write_epoch = write_epoch.max(epoch),
                Some(IndexBlobName::Watermark { unix_seconds }) => {
                    watermark_seconds = watermark_seconds.max(Some(unix_seconds));
                }
                Some(IndexBlobName::SingleEpoch { epoch, set }) => {
                    single_epoch.entry(epoch).or_default().add(blob, set)
                }
                Some(IndexBlobName::Range { min, max, set }) if min <= max => {
                    ranges.entry((min, max)).or_default().add(blob, set);
                }
                Some(IndexBlobName::Range { .. } | IndexBlobName::Uncompacted { .. }) | None => {}
            }
        }
        let complete_ranges = ranges
            .into_iter()
            .filter_map(|((min, max), sets)| Some(RangeCheckpoint { min, max, set: sets.complete? }))
            .collect();
        Self {
            write_epoch,
            watermark_seconds,
            range_chain: longest_chain(complete_ranges),
            single_epoch: single_epoch.into_iter().filter_map(|(epoch, sets)| Some((epoch, sets.complete?))).collect(),
        }
    }

    /// Whether nobody writes to the epoch any more, so that a compaction of it holds everything.
    pub fn is_settled(&self, epoch: u64) -> bool {
        epoch.checked_add(2).is_some_and(|epoch| epoch <= self.write_epoch)
    }

    /// The epochs whose `xn` blobs belong to the current index, ascending. There may be very many if the marker is
    /// strange; take no more than a sensible number of prefixes, or list all of `xn` at once.
    pub fn uncompacted_epochs(&self) -> impl Iterator<Item = u64> + '_ {
        let last = self.write_epoch.saturating_add(1);
        (self.first_epoch_after_ranges()..=last).filter(|epoch| self.compacted(*epoch).is_none())
    }

    /// The names of the blobs that make up the current index (kopia-format 4.8). `uncompacted` are the names of `xn`
    /// blobs, of the [`uncompacted_epochs`](Self::uncompacted_epochs) at least; others are ignored.
    pub fn active_index_blobs<'a>(&self, uncompacted: impl IntoIterator<Item = &'a str>) -> Vec<String> {
        let mut active: Vec<String> = Vec::new();
        for range in self.used_ranges() {
            active.extend_from_slice(&range.set.blobs);
        }
        let epochs = self.first_epoch_after_ranges()..=self.write_epoch.saturating_add(1);
        // By epoch, as far as blobs exist: the number of a marker is no reason to count up to it.
        let mut by_epoch: BTreeMap<u64, Vec<String>> = BTreeMap::new();
        for (epoch, set) in &self.single_epoch {
            if epochs.contains(epoch) && self.is_settled(*epoch) {
                by_epoch.insert(*epoch, set.blobs.clone());
            }
        }
        for blob in uncompacted {
            if let Some(IndexBlobName::Uncompacted { epoch, .. }) = IndexBlobName::parse(blob)
                && epochs.contains(&epoch)
                && self.compacted(epoch).is_none()
            {
                by_epoch.entry(epoch).or_default().push(blob.to_owned());
            }
        }
        active.extend(by_epoch.into_values().flatten());
        active
    }

    /// The compaction that stands for the `xn` blobs of `epoch`.
    fn compacted(&self, epoch: u64) -> Option<&CompletedSet> {
        if self.is_settled(epoch) { self.single_epoch.get(&epoch) } else { None }
    }

    /// The members of the chain that are read. Kopia's comparison passes over one that only reaches epoch 0.
    fn used_ranges(&self) -> impl Iterator<Item = &RangeCheckpoint> {
        self.range_chain
            .iter()
            .scan(0, |start, range| {
                let used = range.max > *start;
                if used {
                    *start = range.max.saturating_add(1);
                }
                Some(used.then_some(range))
            })
            .flatten()
    }

    fn first_epoch_after_ranges(&self) -> u64 {
        self.used_ranges().last().map_or(0, |range| range.max.saturating_add(1))
    }
}

/// Blobs of one epoch or range, by the set they belong to.
#[derive(Default)]
struct Sets<'a> {
    pending: BTreeMap<&'a str, CompletedSet>,
    /// The first set that became complete in the order of the listing.
    complete: Option<CompletedSet>,
}

impl<'a> Sets<'a> {
    fn add(&mut self, blob: ListedBlob<'a>, member: Option<SetMember<'a>>) {
        if self.complete.is_some() {
            return;
        }
        let alone = || CompletedSet { blobs: Vec::new(), newest: blob.timestamp };
        let Some(member) = member else {
            let mut set = alone();
            set.blobs.push(blob.id.to_owned());
            self.complete = Some(set);
            return;
        };
        let set = self.pending.entry(member.set_id).or_insert_with(alone);
        set.blobs.push(blob.id.to_owned());
        set.newest = set.newest.max(blob.timestamp);
        if set.blobs.len() as u64 == u64::from(member.count) {
            self.complete = self.pending.remove(member.set_id);
        }
    }
}

/// The chain from epoch 0 that reaches the latest epoch; among those the one with the fewest members.
///
/// `ranges` ascend by their first epoch.
fn longest_chain(ranges: Vec<RangeCheckpoint>) -> Vec<RangeCheckpoint> {
    /// The best chain that begins with a range of some first epoch.
    struct Best {
        reaches: u64,
        members: usize,
        first: usize,
    }
    let mut best_from: BTreeMap<u64, Best> = BTreeMap::new();
    // From the last to the first, so that what may follow a range is known already.
    for (first, range) in ranges.iter().enumerate().rev() {
        let rest = range.max.checked_add(1).and_then(|next| best_from.get(&next));
        let chain = Best {
            reaches: rest.map_or(range.max, |rest| rest.reaches),
            members: rest.map_or(0, |rest| rest.members) + 1,
            first,
        };
        let better =
            best_from.get(&range.min).is_none_or(|best| (best.reaches, chain.members) < (chain.reaches, best.members));
        if better {
            best_from.insert(range.min, chain);
        }
    }
    let mut chain = Vec::new();
    let mut next = Some(0);
    while let Some(best) = next.and_then(|epoch| best_from.get(&epoch)) {
        let range = ranges[best.first].clone();
        next = range.max.checked_add(1);
        chain.push(range);
    }
    chain
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `xs3:B/2` becomes blobs of the set B with the announced count 2, as the table of kopia-format 11.10 writes them.
    struct Listing(Vec<String>);

    impl Listing {
        fn new(write_epoch: u64, shorthand: &str) -> Self {
            let mut blobs: Vec<String> = (1..=write_epoch).map(marker_name).collect();
            for (number, text) in shorthand.split_whitespace().enumerate() {
                let (rest, count) = text.split_once('/').unwrap_or((text, "1"));
                let (name, set) = rest.split_once(':').unwrap_or((rest, "A"));
                blobs.push(format!("{name}_{number:032x}-s{set}-c{count}"));
            }
            Self(blobs)
        }

        fn state(&self) -> CommittedState {
            let blob = |id| ListedBlob { id, len_bytes: 1, timestamp: Timestamp::UNIX_EPOCH };
            CommittedState::from_listing(self.0.iter().map(|id| blob(id.as_str())))
        }

        /// The active blobs by what precedes their hash, in order.
        fn active(&self) -> Vec<String> {
            let uncompacted = self.0.iter().map(String::as_str).filter(|id| id.starts_with("xn"));
            let shorten = |id: String| id[..id.rfind('_').unwrap()].to_owned();
            self.state().active_index_blobs(uncompacted).into_iter().map(shorten).collect()
        }
    }

    #[test]
    fn active_sets_agree_with_kopia() {
        for (write_epoch, present, active) in [
            (6, "xr0_2 xs3:B/2 xs3:B/2 xs4:C/2 xn0 xn3 xn4 xn4/2 xn5 xn6 xn7 xn8", "xr0_2 xs3 xs3 xn4 xn4 xn5 xn6 xn7"),
            (8, "xr0_1 xr0_3 xr2_3 xr4_5:D/2 xs4 xs5 xs6 xn4 xn5 xn6 xn7 xn8", "xr0_3 xs4 xs5 xs6 xn7 xn8"),
            (5, "xr1_2 xs0 xs3 xs4 xn0 xn1 xn2 xn3 xn4 xn5", "xs0 xn1 xn2 xs3 xn4 xn5"),
            (12, "xr0_2 xr3_9 xr3_5 xr6_9 xr3_8 xs10 xn9 xn10 xn11 xn12 xn13", "xr0_2 xr3_9 xs10 xn11 xn12 xn13"),
            (0, "xr0_1 xs0 xn0 xn1 xn2", "xr0_1"),
            (4, "xr0_0 xs1:A xs1:B xs2 xn0 xn1 xn2 xn3", "xn0 xs1 xs2 xn3"),
        ] {
            let expected: Vec<&str> = active.split_whitespace().collect();
            assert_eq!(Listing::new(write_epoch, present).active(), expected, "write epoch {write_epoch}: {present}");
        }
    }

    #[test]
    fn the_epochs_to_list_are_those_without_compaction() {
        let listing = Listing::new(6, "xr0_2 xs3 xs5");
        assert_eq!(listing.state().uncompacted_epochs().collect::<Vec<_>>(), [4, 5, 6, 7]);
        assert!(listing.state().is_settled(4) && !listing.state().is_settled(5));
    }

    #[test]
    fn names_are_understood_as_kopia_understands_them() {
        use IndexBlobName::*;
        let set = Some(SetMember { set_id: "s00", count: 3 });
        for (name, parsed) in [
            ("xe12", Some(Marker { epoch: 12 })),
            ("xeold12", Some(Marker { epoch: 12 })),
            ("xe", None),
            ("xe1x", None),
            ("xe99999999999999999999", None),
            ("xe9223372036854775808", None),
            ("xw1700000000", Some(Watermark { unix_seconds: 1_700_000_000 })),
            ("xn3_ab-s00-c3", Some(Uncompacted { epoch: 3, set })),
            ("xn03_ab-s00-c3", None),
            ("xn3", None),
            ("xn_ab", None),
            ("xs3_ab-s00-c3", Some(SingleEpoch { epoch: 3, set })),
            ("xs3_ab", Some(SingleEpoch { epoch: 3, set: None })),
            ("xs3_ab-t00-c3", Some(SingleEpoch { epoch: 3, set: None })),
            ("xs3_ab-s00-3", Some(SingleEpoch { epoch: 3, set: None })),
            ("xs3_ab-s00-c3-more", Some(SingleEpoch { epoch: 3, set })),
            ("xr1_4_ab-s00-c3", Some(Range { min: 1, max: 4, set })),
            ("xr1_ab", None),
            ("x", None),
            ("é", None),
            ("aé", None),
            ("p00-s00", None),
        ] {
            assert_eq!(IndexBlobName::parse(name), parsed, "{name}");
        }
    }

    #[test]
    fn the_greatest_watermark_counts() {
        assert_eq!(Listing::new(1, "").state().watermark_seconds, None);
        let mut listing = Listing::new(1, "");
        listing.0.extend(["xw5", "xw10", "xw9"].map(str::to_owned));
        assert_eq!(listing.state().watermark_seconds, Some(10));
        assert_eq!(listing.state().write_epoch, 1);
    }

    #[test]
    fn a_set_has_the_newest_time_of_its_members() {
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        let blobs = [("xs0_a-s1-c2", 7), ("xs0_b-s1-c2", 3)].map(|(id, seconds)| ListedBlob {
            id,
            len_bytes: 1,
            timestamp: at(seconds),
        });
        let state = CommittedState::from_listing(blobs);
        assert_eq!(state.single_epoch[&0].newest, at(7));
        assert_eq!(state.single_epoch[&0].blobs, ["xs0_a-s1-c2", "xs0_b-s1-c2"]);
        assert!(CommittedState::from_listing([blobs[0]]).single_epoch.is_empty());
    }

    #[test]
    fn an_absurd_marker_costs_nothing() {
        let mut listing = Listing::new(0, "xn0 xs1 xr0_9223372036854775807");
        listing.0.push("xe9223372036854775807".to_owned());
        assert_eq!(listing.active(), ["xr0_9223372036854775807"]);
        listing.0.retain(|id| !id.starts_with("xr"));
        assert_eq!(listing.active(), ["xn0", "xs1"]);
        assert_eq!(listing.state().uncompacted_epochs().take(3).collect::<Vec<_>>(), [0, 2, 3]);
    }

    /// The chain against trying all of them.
    #[test]
    fn the_longest_chain_is_found() {
        fn all_chains(ranges: &[RangeCheckpoint], from: u64) -> Vec<Vec<(u64, u64)>> {
            let mut chains = vec![Vec::new()];
            for range in ranges.iter().filter(|range| range.min == from) {
                for mut rest in all_chains(ranges, range.max + 1) {
                    rest.insert(0, (range.min, range.max));
                    chains.push(rest);
                }
            }
            chains
        }
        let mut rng = super::super::test_vectors::Rng(7);
        for round in 0..2000 {
            let mut ranges: Vec<RangeCheckpoint> = (0..rng.below(9))
                .map(|_| {
                    let min = rng.below(8) as u64;
                    let set = CompletedSet { blobs: Vec::new(), newest: Timestamp::UNIX_EPOCH };
                    RangeCheckpoint { min, max: min + rng.below(4) as u64, set }
                })
                .collect();
            ranges.sort_by_key(|range| (range.min, range.max));
            ranges.dedup_by_key(|range| (range.min, range.max));
            let rank = |chain: &[(u64, u64)]| (chain.last().map(|range| range.1), std::cmp::Reverse(chain.len()));
            let best = all_chains(&ranges, 0).iter().map(|chain| rank(chain)).max().unwrap();
            let found: Vec<(u64, u64)> = longest_chain(ranges).iter().map(|range| (range.min, range.max)).collect();
            assert_eq!(rank(&found), best, "round {round}");
            assert!(found.first().is_none_or(|first| first.0 == 0));
            assert!(found.windows(2).all(|pair| pair[0].1 + 1 == pair[1].0));
        }
    }
}
