//! The literal bytes of a volume: boot sector, records, directories, tables (spec block-serving D.4 to D.7).

use crate::bytes::{Put as _, put_at};
use crate::index::{self, BLOCK_BYTES, Entry, collation};
use crate::layout::{
    BOOT_BYTES, DEFINITIONS_BYTES, FIRST_FILE, Layout, Run, SECTOR_BYTES, mirror_bytes, record_bitmap_bytes,
};
use crate::parameters::{FileContent, ParameterError, Parameters};
use crate::record::{RECORD_BYTES, Record, Stream, flag, kind, reference};
use crate::security::{self, Secure};
use crate::upcase::{TABLE_BYTES, UpCase, crc64};

/// Sector of the disk at which the partition begins.
pub(crate) const PARTITION_SECTOR: u64 = 2048;

/// Namespace of system files: a name for Windows and for DOS.
const WIN32_AND_DOS: u8 = 3;
/// Namespace of user files, on a volume without short names.
const POSIX: u8 = 0;
const HIDDEN_SYSTEM: u32 = 0x06;
const DIRECTORY: u32 = 0x1000_0000;
const VIEW_INDEX: u32 = 0x2000_0000;
/// Archive, not content indexed.
const USER_FILE: u32 = 0x2020;
const READ_ONLY: u32 = 1;
/// The volume makes no short names.
const NO_SHORT_NAMES: u16 = 0x0080;
const I30: &str = "$I30";

const SYSTEM_NAMES: [&str; 12] = [
    ".", "$AttrDef", "$BadClus", "$Bitmap", "$Boot", "$Extend", "$LogFile", "$MFT", "$MFTMirr", "$Secure", "$UpCase",
    "$Volume",
];

/// Name, type, flags, smallest and largest size: what Windows 10 writes into `$AttrDef`.
const DEFINITIONS: [(&str, u32, u32, i64, i64); 15] = [
    ("$STANDARD_INFORMATION", 0x10, 0x40, 0x30, 0x48),
    ("$ATTRIBUTE_LIST", 0x20, 0x80, 0, -1),
    ("$FILE_NAME", 0x30, 0x42, 0x44, 0x242),
    ("$OBJECT_ID", 0x40, 0x40, 0, 0x100),
    ("$SECURITY_DESCRIPTOR", 0x50, 0x80, 0, -1),
    ("$VOLUME_NAME", 0x60, 0x40, 2, 0x100),
    ("$VOLUME_INFORMATION", 0x70, 0x40, 0xC, 0xC),
    ("$DATA", 0x80, 0, 0, -1),
    ("$INDEX_ROOT", 0x90, 0x40, 0, -1),
    ("$INDEX_ALLOCATION", 0xA0, 0x80, 0, -1),
    ("$BITMAP", 0xB0, 0x80, 0, -1),
    ("$REPARSE_POINT", 0xC0, 0x80, 0, 0x4000),
    ("$EA_INFORMATION", 0xD0, 0x40, 8, 8),
    ("$EA", 0xE0, 0, 0, 0x1_0000),
    ("$LOGGED_UTILITY_STREAM", 0x100, 0x80, 0, 0x1_0000),
];

/// Bytes at an offset from the beginning of the partition.
pub(crate) type Literal = (u64, Vec<u8>);

/// A volume's places and its literal bytes.
pub(crate) struct Metadata {
    pub(crate) layout: Layout,
    pub(crate) literals: Vec<Literal>,
}

/// The entries of one directory.
#[derive(Default)]
struct Directory(Vec<(Vec<u16>, Entry)>);

impl Directory {
    fn in_order(mut self) -> Vec<Entry> {
        self.0.sort_by(|a, b| a.0.cmp(&b.0));
        self.0.into_iter().map(|(_, entry)| entry).collect()
    }
}

/// What a name says of its file.
struct Named {
    parent: u64,
    allocated: u64,
    size: u64,
    attributes: u32,
    namespace: u8,
}

struct Builder<'a> {
    parameters: &'a Parameters,
    layout: Layout,
    up_case: UpCase,
    records: Vec<Record>,
    root: Directory,
    extend: Directory,
    literals: Vec<Literal>,
}

impl Metadata {
    pub(crate) fn build(parameters: &Parameters) -> Result<Self, ParameterError> {
        parameters.check()?;
        let up_case = UpCase::new();
        let blocks = blocks_of_root(parameters, &up_case)?;
        let layout = Layout::plan(parameters, blocks)?;
        let builder = Builder {
            parameters,
            layout,
            up_case,
            records: Vec::new(),
            root: Directory::default(),
            extend: Directory::default(),
            literals: Vec::new(),
        };
        builder.build()
    }
}

/// How many blocks the root folder takes; that depends on the lengths of its names alone.
fn blocks_of_root(parameters: &Parameters, up_case: &UpCase) -> Result<u64, ParameterError> {
    let nothing = Named { parent: 0, allocated: 0, size: 0, attributes: 0, namespace: 0 };
    let mut directory = Directory::default();
    let names = SYSTEM_NAMES.into_iter().chain(parameters.files.iter().map(|file| &*file.name));
    for name in names {
        let key = file_name(name, &nothing, 0);
        directory.0.push((up_case.collation_key(name), Entry { reference: 0, key }));
    }
    let mut known: Vec<&[u16]> = directory.0.iter().map(|(key, _)| &**key).collect();
    known.sort_unstable();
    if let Some(same) = known.windows(2).find(|pair| pair[0] == pair[1]) {
        let name = String::from_utf16_lossy(same[0]);
        let file = parameters.files.iter().rev().find(|file| up_case.collation_key(&file.name) == same[0]);
        return Err(ParameterError::SameName { name: file.map_or(name, |file| file.name.clone()) });
    }
    Ok(index::tree(directory.in_order(), 1, root_room()).blocks.len() as u64)
}

/// Bytes of entries that the root folder's record holds beside its other attributes, the bitmap of up to 256 blocks
/// included.
fn root_room() -> usize {
    const INDEX_ROOT_HEADERS: usize = 0x20 + 32;
    const INDEX_ALLOCATION: usize = 0x58;
    const BLOCK_BITMAP: usize = 0x40;
    let mut record = Record::new(5, 5, 0);
    record.resident(kind::STANDARD_INFORMATION, "", &[0; 48]).name(&[0; 68]);
    record.resident(kind::SECURITY_DESCRIPTOR, "", &security::root());
    RECORD_BYTES - 8 - record.used_bytes() - INDEX_ROOT_HEADERS - INDEX_ALLOCATION - BLOCK_BITMAP
}

/// A `$FILE_NAME`.
fn file_name(name: &str, named: &Named, time: u64) -> Vec<u8> {
    let mut out = Vec::new();
    out.u64(named.parent).u64(time).u64(time).u64(time).u64(time).u64(named.allocated).u64(named.size);
    out.u32(named.attributes).u32(0).u8(name.encode_utf16().count() as u8).u8(named.namespace).text(name);
    out
}

impl Builder<'_> {
    fn build(mut self) -> Result<Metadata, ParameterError> {
        self.tables();
        self.system_records();
        self.extend_records();
        self.user_records()?;
        self.directories();
        self.records_image()?;
        self.boot_sectors();
        self.literals.sort_by_key(|(offset, _)| *offset);
        Ok(Metadata { layout: self.layout, literals: self.literals })
    }

    fn cluster_bytes(&self) -> u64 {
        self.layout.cluster_bytes
    }

    fn put(&mut self, run: Run, bytes: Vec<u8>) {
        if let Some(first) = run.first
            && !bytes.is_empty()
        {
            self.literals.push((first * self.cluster_bytes(), bytes));
        }
    }

    /// What an index calls the clusters of a block; where a block is less than a cluster, its sectors.
    fn clusters_per_block(&self) -> u64 {
        match self.cluster_bytes() {
            small if small <= BLOCK_BYTES as u64 => BLOCK_BYTES as u64 / small,
            _ => BLOCK_BYTES as u64 / SECTOR_BYTES,
        }
    }

    fn index_root(&self, kind: u32, collation: u32, entries: &[u8], has_blocks: bool) -> Vec<u8> {
        index::root(kind, collation, entries, self.clusters_per_block() as u8, has_blocks)
    }

    /// A new record with its `$STANDARD_INFORMATION`.
    fn record(&self, number: u32, sequence: u16, flags: u16, attributes: u32, security_id: Option<u32>) -> Record {
        let mut record = Record::new(number, sequence, flags);
        let mut value = Vec::new();
        let time = self.parameters.file_time;
        value.u64(time).u64(time).u64(time).u64(time).u32(attributes).u32(0).u32(0).u32(0);
        if let Some(id) = security_id {
            value.u32(0).u32(id).u64(0).u64(0);
        }
        record.resident(kind::STANDARD_INFORMATION, "", &value);
        record
    }

    fn system_record(&self, number: u32, security_id: Option<u32>) -> Record {
        self.record(number, number.max(1) as u16, flag::IN_USE, HIDDEN_SYSTEM, security_id)
    }

    /// Names a record, in its directory too.
    fn name(&mut self, record: &mut Record, name: &str, named: &Named) {
        let key = file_name(name, named, self.parameters.file_time);
        record.name(&key);
        let entry = (self.up_case.collation_key(name), Entry { reference: record.reference(), key });
        let directory = if named.parent == reference(5, 5) { &mut self.root } else { &mut self.extend };
        directory.0.push(entry);
    }

    fn system_name(&mut self, record: &mut Record, name: &str, allocated: u64, size: u64) {
        let named =
            Named { parent: reference(5, 5), allocated, size, attributes: HIDDEN_SYSTEM, namespace: WIN32_AND_DOS };
        self.name(record, name, &named);
    }

    /// A system file that is one run.
    fn system_file(&mut self, number: u32, name: &str, run: Run, size: u64, security_id: Option<u32>) {
        let mut record = self.system_record(number, security_id);
        let cluster_bytes = self.cluster_bytes();
        record.non_resident(kind::DATA, "", &Stream::of(&run, size, cluster_bytes));
        if number == 0 {
            // The name comes before the bitmap.
            self.system_name(&mut record, name, run.clusters * cluster_bytes, size);
            let bitmap = self.layout.record_bitmap;
            let bytes = record_bitmap_bytes(self.layout.records);
            record.non_resident(kind::BITMAP, "", &Stream::of(&bitmap, bytes, cluster_bytes));
        } else {
            if number == 10 {
                let mut info = Vec::new();
                info.u64(32).u64(crc64(&self.up_case.bytes())).pad_to(32);
                record.resident(kind::DATA, "$Info", &info);
            }
            self.system_name(&mut record, name, run.clusters * cluster_bytes, size);
            if number == 7 {
                record.resident(kind::SECURITY_DESCRIPTOR, "", &security::read_only());
            }
        }
        self.records.push(record);
    }

    fn tables(&mut self) {
        let mut definitions = Vec::new();
        for (name, kind, flags, smallest, largest) in DEFINITIONS {
            let begin = definitions.len();
            definitions.text(name).pad_to(begin + 128).u32(kind).u32(0).u32(0).u32(flags);
            definitions.u64(smallest as u64).u64(largest as u64);
        }
        definitions.pad_to(DEFINITIONS_BYTES as usize);
        let (up_case, layout) = (self.up_case.bytes(), self.layout.clone());
        self.put(layout.definitions, definitions);
        self.put(layout.up_case, up_case);
    }

    /// Records 0 to 23, but for the root folder and `$Extend`.
    fn system_records(&mut self) {
        let layout = self.layout.clone();
        let cluster_bytes = layout.cluster_bytes;
        let (read, write) = (Some(security::READ), Some(security::WRITE));
        let records_bytes = u64::from(layout.records) * RECORD_BYTES as u64;
        self.system_file(0, "$MFT", layout.records_run, records_bytes, read);
        self.system_file(1, "$MFTMirr", layout.mirror, mirror_bytes(cluster_bytes), read);
        self.system_file(2, "$LogFile", layout.log, layout.log.clusters * cluster_bytes, read);
        self.system_file(4, "$AttrDef", layout.definitions, DEFINITIONS_BYTES, read);
        self.system_file(6, "$Bitmap", layout.bitmap, layout.bitmap_bytes, read);
        self.system_file(7, "$Boot", layout.boot, BOOT_BYTES, None);
        self.system_file(10, "$UpCase", layout.up_case, TABLE_BYTES, read);

        let mut volume = self.system_record(3, write);
        self.system_name(&mut volume, "$Volume", 0, 0);
        let mut label = Vec::new();
        label.text(&self.parameters.label);
        let mut information = Vec::new();
        information.u64(0).u8(3).u8(1).u16(NO_SHORT_NAMES);
        volume.resident(kind::DATA, "", &[]).resident(kind::VOLUME_NAME, "", &label);
        volume.resident(kind::VOLUME_INFORMATION, "", &information);
        self.records.push(volume);

        let mut bad = self.system_record(8, read);
        let hole = [Run { first: None, clusters: layout.clusters }];
        let size_bytes = layout.clusters * cluster_bytes;
        bad.non_resident(kind::DATA, "$Bad", &Stream { runs: &hole, size_bytes, initialised_bytes: 0, cluster_bytes });
        bad.resident(kind::DATA, "", &[]);
        self.system_name(&mut bad, "$BadClus", 0, 0);
        self.records.push(bad);

        let secure = Secure::new();
        let flags = flag::IN_USE | flag::VIEW_INDEX;
        let mut record = self.record(9, 9, flags, VIEW_INDEX | HIDDEN_SYSTEM, write);
        let named = Named {
            parent: reference(5, 5),
            allocated: 0,
            size: 0,
            attributes: VIEW_INDEX | HIDDEN_SYSTEM,
            namespace: WIN32_AND_DOS,
        };
        self.name(&mut record, "$Secure", &named);
        let stream_bytes = security::COPY_AT + secure.stream.len() as u64;
        record.non_resident(kind::DATA, "$SDS", &Stream::of(&layout.security, stream_bytes, cluster_bytes));
        let by_hash = self.index_root(0, collation::SECURITY_HASH, &index::view(&secure.by_hash), false);
        let by_id = self.index_root(0, collation::U32, &index::view(&secure.by_id), false);
        record.resident(kind::INDEX_ROOT, "$SDH", &by_hash).resident(kind::INDEX_ROOT, "$SII", &by_id);
        self.records.push(record);
        let mut twice = secure.stream.clone();
        twice.pad_to(security::COPY_AT as usize).bytes(&secure.stream);
        self.put(layout.security, twice);

        for number in 12..16 {
            let mut record = self.system_record(number, None);
            record.resident(kind::DATA, "", &[]).resident(kind::SECURITY_DESCRIPTOR, "", &security::writable());
            self.records.push(record);
        }
        for number in 16..24 {
            let mut record = self.record(number, number as u16, 0, HIDDEN_SYSTEM, None);
            record.forget_number();
            self.records.push(record);
        }
    }

    /// `$Quota`, `$ObjId`, `$Reparse`.
    fn extend_records(&mut self) {
        let mut quota = Vec::new();
        quota.u32(2).u32(1).u64(0).u64(self.parameters.file_time).u64(u64::MAX).u64(u64::MAX).u64(0);
        let administrators = security::administrators();
        let of_administrators = [quota.clone(), administrators.clone()].concat();
        let by_id = index::view(&[
            index::view_entry(&1_u32.to_le_bytes(), &quota, 0x14, 0x48),
            index::view_entry(&0x100_u32.to_le_bytes(), &of_administrators, 0x14, 0x58),
        ]);
        // Windows leaves a length behind the four bytes of data.
        let mut by_owner = index::view_entry(&administrators, &0x100_u32.to_le_bytes(), 0x20, 0x28);
        put_at(&mut by_owner, 0x24, &32_u32.to_le_bytes());
        let by_owner = index::view(&[by_owner]);
        let nothing = index::view(&[]);
        for (number, name, indexes) in [
            (24, "$Quota", &[("$Q", collation::U32, &by_id), ("$O", collation::SID, &by_owner)][..]),
            (25, "$ObjId", &[("$O", collation::U32S, &nothing)]),
            (26, "$Reparse", &[("$R", collation::U32S, &nothing)]),
        ] {
            let flags = flag::IN_USE | flag::IN_EXTEND | flag::VIEW_INDEX;
            let attributes = VIEW_INDEX | HIDDEN_SYSTEM;
            let mut record = self.record(number, 1, flags, attributes, Some(security::WRITE));
            let named = Named { parent: reference(11, 11), allocated: 0, size: 0, attributes, namespace: POSIX };
            self.name(&mut record, name, &named);
            for (index_name, collation, entries) in indexes {
                record.resident(kind::INDEX_ROOT, index_name, &self.index_root(0, *collation, entries, false));
            }
            self.records.push(record);
        }
    }

    fn user_records(&mut self) -> Result<(), ParameterError> {
        let cluster_bytes = self.cluster_bytes();
        let parameters = self.parameters;
        for (nth, file) in parameters.files.iter().enumerate() {
            let attributes = USER_FILE | if file.is_read_only { READ_ONLY } else { 0 };
            let number = FIRST_FILE + nth as u32;
            let mut record = self.record(number, 1, flag::IN_USE, attributes, Some(security::FILE));
            let run = self.layout.files[nth];
            let (allocated, size) = match (&file.content, run) {
                (FileContent::External { size_bytes }, Some(run)) => (run.clusters * cluster_bytes, *size_bytes),
                (FileContent::Resident { bytes }, _) => (bytes.len().next_multiple_of(8) as u64, bytes.len() as u64),
                (FileContent::External { .. }, None) => unreachable!("the layout has a run for it"),
            };
            let named = Named { parent: reference(5, 5), allocated, size, attributes, namespace: POSIX };
            self.name(&mut record, &file.name, &named);
            match (&file.content, &run) {
                (FileContent::Resident { bytes }, _) => record.resident(kind::DATA, "", bytes),
                (_, Some(run)) => record.non_resident(kind::DATA, "", &Stream::of(run, size, cluster_bytes)),
                (_, None) => &mut record,
            };
            if record.used_bytes() > RECORD_BYTES {
                let problem = "name and content together do not fit into its record";
                return Err(ParameterError::File { name: file.name.clone(), problem });
            }
            self.records.push(record);
        }
        Ok(())
    }

    /// The root folder, and `$Extend`.
    fn directories(&mut self) {
        let cluster_bytes = self.cluster_bytes();
        let flags = flag::IN_USE | flag::DIRECTORY;
        let folder = |parent: u64| Named {
            parent,
            allocated: 0,
            size: 0,
            attributes: DIRECTORY | HIDDEN_SYSTEM,
            namespace: WIN32_AND_DOS,
        };
        let mut extend = self.record(11, 11, flags, HIDDEN_SYSTEM, Some(security::WRITE));
        self.name(&mut extend, "$Extend", &folder(reference(5, 5)));
        let entries = index::small(&std::mem::take(&mut self.extend).in_order());
        let root = self.index_root(kind::FILE_NAME, collation::FILE_NAME, &entries, false);
        extend.resident(kind::INDEX_ROOT, I30, &root);
        self.records.push(extend);

        let mut record = self.record(5, 5, flags, HIDDEN_SYSTEM, None);
        self.name(&mut record, ".", &folder(reference(5, 5)));
        record.resident(kind::SECURITY_DESCRIPTOR, "", &security::root());
        let tree = index::tree(std::mem::take(&mut self.root).in_order(), self.clusters_per_block(), root_room());
        let root = self.index_root(kind::FILE_NAME, collation::FILE_NAME, &tree.root, true);
        record.resident(kind::INDEX_ROOT, I30, &root);
        record.resident(kind::BITMAP, I30, &bits((0..tree.blocks.len()).map(|_| true)));
        let (index, blocks) = (self.layout.index, tree.blocks.concat());
        record.non_resident(kind::INDEX_ALLOCATION, I30, &Stream::of(&index, blocks.len() as u64, cluster_bytes));
        self.put(index, blocks);
        self.records.push(record);
    }

    /// All records, their mirror and their bitmap.
    fn records_image(&mut self) -> Result<(), ParameterError> {
        let layout = self.layout.clone();
        let mut records: Vec<Option<Record>> = (0..layout.records).map(|_| None).collect();
        for record in std::mem::take(&mut self.records) {
            let number = record.number as usize;
            records[number] = Some(record);
        }
        let in_use = records.iter().map(|one| one.as_ref().is_some_and(|one| one.flags & flag::IN_USE != 0));
        let mut bitmap = bits(in_use);
        bitmap.resize(record_bitmap_bytes(layout.records) as usize, 0);
        let mut image = Vec::with_capacity(records.len() * RECORD_BYTES);
        for (number, record) in records.into_iter().enumerate() {
            let record = record.unwrap_or_else(|| Record::unused(number as u32));
            let name = format!("record {number}");
            let problem = "it does not fit into its record";
            image.extend(record.encode().ok_or(ParameterError::File { name, problem })?);
        }
        let mirror = image[..mirror_bytes(layout.cluster_bytes) as usize].to_vec();
        self.put(layout.mirror, mirror);
        self.put(layout.records_run, image);
        self.put(layout.record_bitmap, bitmap);
        Ok(())
    }

    /// The first sector, and its copy in the last.
    fn boot_sectors(&mut self) {
        let layout = &self.layout;
        let cluster_bytes = layout.cluster_bytes;
        let first = |run: Run| run.first.unwrap_or_default();
        let mut boot = Vec::with_capacity(SECTOR_BYTES as usize);
        boot.bytes(&[0xEB, 0x52, 0x90]).bytes(b"NTFS    ").u16(SECTOR_BYTES as u16);
        boot.u8((cluster_bytes / SECTOR_BYTES) as u8).pad_to(0x15).u8(0xF8).pad_to(0x18);
        boot.u16(63).u16(255).u32(PARTITION_SECTOR as u32).pad_to(0x24).u32(0x0080_0080);
        boot.u64(layout.total_sectors).u64(first(layout.records_run)).u64(first(layout.mirror));
        // Less than a cluster is said as a power of two: 2^10, 2^12.
        boot.u8(0xF6).pad_to(0x44);
        boot.u8(if cluster_bytes <= BLOCK_BYTES as u64 { (BLOCK_BYTES as u64 / cluster_bytes) as u8 } else { 0xF4 });
        boot.pad_to(0x48).u64(self.parameters.serial).pad_to(0x1FE).u8(0x55).u8(0xAA);
        let last = layout.total_sectors * SECTOR_BYTES;
        self.literals.push((0, boot.clone()));
        self.literals.push((last, boot));
    }
}

/// A bit each, up to a multiple of 8 bytes.
fn bits(values: impl Iterator<Item = bool>) -> Vec<u8> {
    let mut out = Vec::new();
    for (nth, value) in values.enumerate() {
        if nth % 8 == 0 {
            out.push(0);
        }
        if value && let Some(last) = out.last_mut() {
            *last |= 1 << (nth % 8);
        }
    }
    out.align();
    out
}
