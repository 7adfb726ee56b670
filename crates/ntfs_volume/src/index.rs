//! Directories and view indexes (spec block-serving D.5, D.7).

use crate::bytes::{Put as _, protect};

/// Bytes of a block of a large index.
pub(crate) const BLOCK_BYTES: usize = 4096;
/// Behind the headers and the update sequence of a block.
const BLOCK_ENTRIES_AT: usize = 0x40;
/// What a block has for entries.
const BLOCK_ROOM: usize = BLOCK_BYTES - BLOCK_ENTRIES_AT;
const SEQUENCE_NUMBER: u16 = 3;

const HAS_CHILD: u16 = 1;
const IS_END: u16 = 2;

/// How the keys of an index are ordered.
pub(crate) mod collation {
    pub(crate) const FILE_NAME: u32 = 1;
    pub(crate) const U32: u32 = 0x10;
    pub(crate) const SID: u32 = 0x11;
    pub(crate) const SECURITY_HASH: u32 = 0x12;
    pub(crate) const U32S: u32 = 0x13;
}

/// An entry of a directory.
#[derive(Clone)]
pub(crate) struct Entry {
    /// The file's record.
    pub(crate) reference: u64,
    /// Its `$FILE_NAME`.
    pub(crate) key: Vec<u8>,
}

/// An entry in a tree: the node before it, if it is not in a leaf.
struct Node {
    entry: Entry,
    child: Option<u64>,
}

impl Node {
    fn len(&self) -> usize {
        (16 + self.entry.key.len()).next_multiple_of(8) + if self.child.is_some() { 8 } else { 0 }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let key = &self.entry.key;
        let flags = if self.child.is_some() { HAS_CHILD } else { 0 };
        out.u64(self.entry.reference).u16(self.len() as u16).u16(key.len() as u16).u16(flags).u16(0).bytes(key).align();
        if let Some(child) = self.child {
            out.u64(child);
        }
    }
}

/// Bytes of an end entry.
fn end_len(child: Option<u64>) -> usize {
    if child.is_some() { 24 } else { 16 }
}

fn encode_end(child: Option<u64>, out: &mut Vec<u8>) {
    let flags = if child.is_some() { HAS_CHILD | IS_END } else { IS_END };
    out.u64(0).u16(end_len(child) as u16).u16(0).u16(flags).u16(0);
    if let Some(child) = child {
        out.u64(child);
    }
}

/// The entries of a small index, with their end.
pub(crate) fn small(entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::new();
    for entry in entries {
        Node { entry: entry.clone(), child: None }.encode(&mut out);
    }
    encode_end(None, &mut out);
    out
}

/// The entries of a view index, with their end.
pub(crate) fn view(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut out = entries.concat();
    encode_end(None, &mut out);
    out
}

/// An entry of a view index, of `len` bytes: the data lies at `data_at`.
pub(crate) fn view_entry(key: &[u8], data: &[u8], data_at: usize, len: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(len);
    out.u16(data_at as u16).u16(data.len() as u16).u32(0).u16(len as u16).u16(key.len() as u16).u16(0).u16(0);
    out.bytes(key).pad_to(data_at).bytes(data).pad_to(len);
    out
}

/// The value of an `$INDEX_ROOT`. `clusters_per_block` is what the volume calls so, also where a block is less.
pub(crate) fn root(kind: u32, collation: u32, entries: &[u8], clusters_per_block: u8, has_blocks: bool) -> Vec<u8> {
    let used = (16 + entries.len()) as u32;
    let mut out = Vec::new();
    out.u32(kind).u32(collation).u32(BLOCK_BYTES as u32).u8(clusters_per_block).pad_to(16);
    out.u32(16).u32(used).u32(used).u32(u32::from(has_blocks)).bytes(entries);
    out
}

/// A large directory.
pub(crate) struct Tree {
    /// What the record holds of it.
    pub(crate) root: Vec<u8>,
    /// The rest, in order.
    pub(crate) blocks: Vec<Vec<u8>>,
}

/// Builds a tree from the bottom. A node is filled until the next entry does not fit: that one moves up, with the node
/// as its child. The last entry of a level never moves up, its predecessor does: so no node is empty.
///
/// `entries` are in order; blocks are numbered in steps of `step`; the root has room for `root_room` bytes.
pub(crate) fn tree(entries: Vec<Entry>, step: u64, root_room: usize) -> Tree {
    let mut blocks: Vec<Vec<u8>> = Vec::new();
    let mut level: Vec<Node> = entries.into_iter().map(|entry| Node { entry, child: None }).collect();
    // The block behind the last entry of the level below.
    let mut last: Option<u64> = None;
    loop {
        let is_leaf = last.is_none();
        let mut close = |nodes: &[Node], child: Option<u64>| {
            let number = blocks.len() as u64 * step;
            blocks.push(block(number, nodes, child, is_leaf));
            number
        };
        let end = end_len(last);
        let (mut above, mut node, mut used) = (Vec::new(), Vec::<Node>::new(), end);
        let mut rest = level.into_iter().peekable();
        while let Some(item) = rest.next() {
            if used + item.len() <= BLOCK_ROOM {
                used += item.len();
                node.push(item);
                continue;
            }
            let (separator, next) = match (rest.peek().is_some(), node.pop()) {
                (true, popped) => {
                    node.extend(popped);
                    (item, None)
                }
                (false, Some(popped)) => (popped, Some(item)),
                // A node always has an entry before it is full: the longest key is a sixth of it.
                (false, None) => (item, None),
            };
            let number = close(&node, separator.child);
            above.push(Node { entry: separator.entry, child: Some(number) });
            node = next.into_iter().collect();
            used = end + node.iter().map(Node::len).sum::<usize>();
        }
        last = Some(close(&node, last));
        level = above;
        if end_len(last) + level.iter().map(Node::len).sum::<usize>() <= root_room {
            let mut root = Vec::new();
            level.iter().for_each(|node| node.encode(&mut root));
            encode_end(last, &mut root);
            return Tree { root, blocks };
        }
    }
}

fn block(number: u64, nodes: &[Node], child: Option<u64>, is_leaf: bool) -> Vec<u8> {
    let mut entries = Vec::new();
    nodes.iter().for_each(|node| node.encode(&mut entries));
    encode_end(child, &mut entries);
    let mut out = Vec::with_capacity(BLOCK_BYTES);
    out.bytes(b"INDX").u16(0x28).u16((BLOCK_BYTES / 512 + 1) as u16).u64(0).u64(number);
    out.u32(0x28).u32((0x28 + entries.len()) as u32).u32((BLOCK_BYTES - 0x18) as u32).u32(u32::from(!is_leaf));
    out.pad_to(BLOCK_ENTRIES_AT).bytes(&entries).pad_to(BLOCK_BYTES);
    protect(&mut out, SEQUENCE_NUMBER);
    out
}
