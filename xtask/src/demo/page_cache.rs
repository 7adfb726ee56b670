//! A disk as the stream that a file system driver wants, with a page cache between, as a guest has one.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom, Write};

/// A disk that is read and written at offsets.
pub trait Device {
    /// Bytes of the disk.
    fn size_bytes(&self) -> u64;

    /// Fills `buf` from `offset_bytes`.
    fn read(&mut self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Stores all of `data`, in order; durable when it returns, or as durable as the device ever makes it.
    fn write(&mut self, writes: &[(u64, Vec<u8>)]) -> io::Result<()>;
}

const PAGE_BYTES: usize = 64 << 10;
/// A file system writes a table entry of four bytes at a time; the device wants few large writes.
const PAGES_HELD: usize = 1024;
/// Neighbouring dirty pages are written together up to this size.
const LARGEST_WRITE_BYTES: usize = 4 << 20;

/// One partition of a device, cached. Nothing reaches the device for sure before [`Write::flush`].
pub struct CachedPartition<'a> {
    device: &'a mut dyn Device,
    first_byte: u64,
    len_bytes: u64,
    position: u64,
    pages: BTreeMap<u64, Page>,
}

struct Page {
    bytes: Vec<u8>,
    dirty: bool,
}

impl<'a> CachedPartition<'a> {
    /// The partition of `len_bytes` that begins at `first_byte` of the device.
    pub fn new(device: &'a mut dyn Device, first_byte: u64, len_bytes: u64) -> CachedPartition<'a> {
        assert!(first_byte + len_bytes <= device.size_bytes(), "the partition lies inside the device");
        CachedPartition { device, first_byte, len_bytes, position: 0, pages: BTreeMap::new() }
    }

    fn page(&mut self, number: u64) -> io::Result<&mut Page> {
        if !self.pages.contains_key(&number) {
            if self.pages.len() >= PAGES_HELD {
                self.write_dirty()?;
                self.pages.clear();
            }
            let offset_bytes = number * PAGE_BYTES as u64;
            let len = (self.len_bytes - offset_bytes).min(PAGE_BYTES as u64) as usize;
            let mut bytes = vec![0; len];
            self.device.read(self.first_byte + offset_bytes, &mut bytes)?;
            self.pages.insert(number, Page { bytes, dirty: false });
        }
        Ok(self.pages.get_mut(&number).expect("the page was just made"))
    }

    fn write_dirty(&mut self) -> io::Result<()> {
        let mut writes: Vec<(u64, Vec<u8>)> = Vec::new();
        for (number, page) in self.pages.iter_mut().filter(|(_, page)| page.dirty) {
            let offset_bytes = self.first_byte + number * PAGE_BYTES as u64;
            match writes.last_mut() {
                Some((begin, data))
                    if *begin + data.len() as u64 == offset_bytes
                        && data.len() + page.bytes.len() <= LARGEST_WRITE_BYTES =>
                {
                    data.extend_from_slice(&page.bytes);
                }
                _ => writes.push((offset_bytes, page.bytes.clone())),
            }
            page.dirty = false;
        }
        if writes.is_empty() { Ok(()) } else { self.device.write(&writes) }
    }

    /// The page under the position, where in it the position lies, and how much of `wanted` it can serve.
    fn at_position(&mut self, wanted: usize) -> io::Result<Option<(&mut Page, usize, usize)>> {
        if self.position >= self.len_bytes || wanted == 0 {
            return Ok(None);
        }
        let within = (self.position % PAGE_BYTES as u64) as usize;
        let page = self.page(self.position / PAGE_BYTES as u64)?;
        let count = wanted.min(page.bytes.len() - within);
        Ok(Some((page, within, count)))
    }
}

impl Read for CachedPartition<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let Some((page, within, count)) = self.at_position(buf.len())? else { return Ok(0) };
        buf[..count].copy_from_slice(&page.bytes[within..within + count]);
        self.position += count as u64;
        Ok(count)
    }
}

impl Write for CachedPartition<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let Some((page, within, count)) = self.at_position(buf.len())? else { return Ok(0) };
        let target = &mut page.bytes[within..within + count];
        // A page rewritten with what it holds is not a change, and must not be backed up as one.
        if target != &buf[..count] {
            target.copy_from_slice(&buf[..count]);
            page.dirty = true;
        }
        self.position += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl CachedPartition<'_> {
    /// Writes everything that the device does not have yet. [`Write::flush`] does not: the file system driver calls
    /// it after every file, and a guest that synchronised that often would be a rare one.
    pub fn sync(&mut self) -> io::Result<()> {
        self.write_dirty()
    }
}

impl Seek for CachedPartition<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::End(offset) => self.len_bytes.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position = position.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "seek before the start"))?;
        Ok(self.position)
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A disk in memory.
    impl Device for Vec<u8> {
        fn size_bytes(&self) -> u64 {
            self.len() as u64
        }

        fn read(&mut self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
            let at = offset_bytes as usize;
            buf.copy_from_slice(&self[at..at + buf.len()]);
            Ok(())
        }

        fn write(&mut self, writes: &[(u64, Vec<u8>)]) -> io::Result<()> {
            for (offset_bytes, data) in writes {
                let at = *offset_bytes as usize;
                self[at..at + data.len()].copy_from_slice(data);
            }
            Ok(())
        }
    }

    #[test]
    fn a_cached_partition_behaves_like_the_bytes_below_it() {
        let len = (PAGES_HELD + 40) * PAGE_BYTES + 1000;
        let mut disk = vec![0u8; len];
        let mut model = io::Cursor::new(vec![0u8; len - 512]);
        let mut partition = CachedPartition::new(&mut disk, 512, len as u64 - 512);
        let mut random = crate::random::Random::new(7);
        for step in 0..5000 {
            let at = random.below(len as u64 - 512);
            let data = random.bytes(random.clone().below(3 * PAGE_BYTES as u64) as usize);
            let room = ((len as u64 - 512 - at) as usize).min(data.len());
            partition.seek(SeekFrom::Start(at)).unwrap();
            model.seek(SeekFrom::Start(at)).unwrap();
            if step % 3 == 0 {
                let (mut ours, mut expected) = (vec![0; room], vec![0; room]);
                partition.read_exact(&mut ours).unwrap();
                model.read_exact(&mut expected).unwrap();
                assert!(ours == expected, "step {step}: {room} bytes at {at}");
            } else {
                partition.write_all(&data[..room]).unwrap();
                model.write_all(&data[..room]).unwrap();
            }
        }
        partition.sync().unwrap();
        assert!(disk[512..] == model.into_inner()[..], "what the device holds after the last sync");
    }
}
