//! Who may do what with the files, and the stream that keeps it (spec block-serving D.6).

use crate::bytes::Put as _;
use crate::index;

/// Distance of the second copy of all descriptors in `$SDS`.
pub(crate) const COPY_AT: u64 = 0x4_0000;
/// Id of the descriptor for reading system files.
pub(crate) const READ: u32 = 0x100;
/// Id of the one for writing them.
pub(crate) const WRITE: u32 = 0x101;
/// Id of that of the files.
pub(crate) const FILE: u32 = 0x102;

const MAY_READ: u32 = 0x12_0089;
const MAY_READ_AND_WRITE: u32 = 0x12_019F;
const MAY_ALL: u32 = 0x1F_01FF;
const MAY_READ_AND_RUN: u32 = 0x12_00A9;
const GENERIC_ALL: u32 = 0x1000_0000;
const GENERIC_READ_AND_RUN: u32 = 0xA000_0000;
/// To files and folders below, not here.
const INHERITED_ONLY: u8 = 0x0B;

/// S-1-5-32-544.
pub(crate) fn administrators() -> Vec<u8> {
    sid(&[32, 544])
}

fn system() -> Vec<u8> {
    sid(&[18])
}

/// S-1-5-83-0: every virtual machine of the host.
fn virtual_machines() -> Vec<u8> {
    sid(&[83, 0])
}

/// S-1-5-…
fn sid(parts: &[u32]) -> Vec<u8> {
    let mut out = vec![1, parts.len() as u8, 0, 0, 0, 0, 0, 5];
    for part in parts {
        out.u32(*part);
    }
    out
}

fn allow(who: &[u8], what: u32, flags: u8) -> Vec<u8> {
    let mut out = Vec::new();
    out.u8(0).u8(flags).u16((8 + who.len()) as u16).u32(what).bytes(who);
    out
}

/// Self-relative: header, DACL, owner, group.
fn descriptor(entries: &[Vec<u8>], owner: &[u8], group: &[u8]) -> Vec<u8> {
    const PRESENT_AND_SELF_RELATIVE: u16 = 0x8004;
    const ACL_AT: usize = 20;
    let entries_len: usize = entries.iter().map(Vec::len).sum();
    let owner_at = ACL_AT + 8 + entries_len;
    let mut out = Vec::new();
    out.u8(1).u8(0).u16(PRESENT_AND_SELF_RELATIVE).u32(owner_at as u32).u32((owner_at + owner.len()) as u32).u32(0);
    out.u32(ACL_AT as u32).u8(2).u8(0).u16((8 + entries_len) as u16).u16(entries.len() as u16).u16(0);
    out.bytes(&entries.concat()).bytes(owner).bytes(group);
    out
}

fn for_system_files(what: u32) -> Vec<u8> {
    let (system, administrators) = (system(), administrators());
    descriptor(&[allow(&system, what, 0), allow(&administrators, what, 0)], &system, &administrators)
}

/// Of the system's files that are only read.
pub(crate) fn read_only() -> Vec<u8> {
    for_system_files(MAY_READ)
}

/// Of the system's files that are written.
pub(crate) fn writable() -> Vec<u8> {
    for_system_files(MAY_READ_AND_WRITE)
}

/// Of the files: ordinary users of the host must not read guests' disks.
fn file() -> Vec<u8> {
    let (system, administrators) = (system(), administrators());
    let entries = [
        allow(&system, MAY_ALL, 0),
        allow(&administrators, MAY_ALL, 0),
        allow(&virtual_machines(), MAY_READ_AND_RUN, 0),
    ];
    descriptor(&entries, &system, &system)
}

/// Of the root folder, as strict, and the same for what comes to be in it.
pub(crate) fn root() -> Vec<u8> {
    let mut entries = Vec::new();
    for (who, here, below) in [
        (administrators(), MAY_ALL, GENERIC_ALL),
        (system(), MAY_ALL, GENERIC_ALL),
        (virtual_machines(), MAY_READ_AND_RUN, GENERIC_READ_AND_RUN),
    ] {
        entries.extend([allow(&who, here, 0), allow(&who, below, INHERITED_ONLY)]);
    }
    descriptor(&entries, &system(), &system())
}

fn hash(descriptor: &[u8]) -> u32 {
    descriptor.chunks(4).fold(0, |hash: u32, word| {
        let mut bytes = [0; 4];
        bytes[..word.len()].copy_from_slice(word);
        u32::from_le_bytes(bytes).wrapping_add(hash.rotate_left(3))
    })
}

/// What `$Secure` holds.
pub(crate) struct Secure {
    /// `$SDS` up to the second copy; at [`COPY_AT`] it comes again.
    pub(crate) stream: Vec<u8>,
    /// Entries of `$SII`, by id.
    pub(crate) by_id: Vec<Vec<u8>>,
    /// Entries of `$SDH`, by hash.
    pub(crate) by_hash: Vec<Vec<u8>>,
}

impl Secure {
    pub(crate) fn new() -> Self {
        let (mut stream, mut by_id, mut by_hash) = (Vec::new(), Vec::new(), Vec::new());
        for (id, descriptor) in [(READ, read_only()), (WRITE, writable()), (FILE, file())] {
            stream.resize(stream.len().next_multiple_of(16), 0);
            let hash = hash(&descriptor);
            let mut head = Vec::new();
            head.u32(hash).u32(id).u64(stream.len() as u64).u32(20 + descriptor.len() as u32);
            stream.bytes(&head).bytes(&descriptor);
            by_id.push(index::view_entry(&id.to_le_bytes(), &head, 0x14, 0x28));
            let key = [hash.to_le_bytes(), id.to_le_bytes()].concat();
            let mut entry = index::view_entry(&key, &head, 0x18, 0x30);
            // Windows leaves "II" behind the data.
            let end = entry.len() - 4;
            entry[end..].copy_from_slice(b"I\0I\0");
            by_hash.push(((hash, id), entry));
        }
        by_hash.sort();
        Self { stream, by_id, by_hash: by_hash.into_iter().map(|(_, entry)| entry).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lengths and hashes of spec block-serving D.6, of which the first two are Windows 10's.
    #[test]
    fn descriptors_have_the_published_hashes() {
        for (descriptor, len, expected) in
            [(read_only(), 100, 0x32FE_C6CB), (writable(), 100, 0x3414_C8F7), (file(), 120, 0x63DB_DD3F)]
        {
            assert_eq!((descriptor.len(), hash(&descriptor)), (len, expected));
        }
        assert_eq!(root().len(), 188);
    }
}
