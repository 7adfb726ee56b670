//! VHD files by hand.
#![allow(dead_code, missing_docs)]

pub const BLOCK: usize = 512 << 10;
const BITMAP: usize = 512;

pub struct Vhd<'a> {
    pub kind: u32,
    pub size: u64,
    pub id: u128,
    pub parent: Option<(u128, &'a str)>,
    /// Number, and content by sector; sectors that are `None` have a clear bit.
    pub blocks: Vec<(usize, Vec<Option<u8>>)>,
}

impl Vhd<'_> {
    fn footer(&self) -> [u8; 512] {
        let mut footer = [0; 512];
        footer[..8].copy_from_slice(b"conectix");
        footer[8..16].copy_from_slice(&[0, 0, 0, 2, 0, 1, 0, 0]);
        footer[16..24].copy_from_slice(&if self.kind == 2 { u64::MAX } else { 512 }.to_be_bytes());
        footer[28..32].copy_from_slice(b"win ");
        footer[40..48].copy_from_slice(&self.size.to_be_bytes());
        footer[48..56].copy_from_slice(&self.size.to_be_bytes());
        footer[60..64].copy_from_slice(&self.kind.to_be_bytes());
        footer[68..84].copy_from_slice(&self.id.to_be_bytes());
        set_checksum(&mut footer, 64);
        footer
    }

    pub fn bytes(&self, content: &[u8]) -> Vec<u8> {
        let mut file = Vec::new();
        if self.kind == 2 {
            file.extend_from_slice(content);
            file.extend_from_slice(&self.footer());
            return file;
        }
        let entries = (self.size as usize).div_ceil(BLOCK);
        file.extend_from_slice(&self.footer());
        let mut header = [0; 1024];
        header[..8].copy_from_slice(b"cxsparse");
        header[8..16].fill(0xff);
        header[16..24].copy_from_slice(&1536u64.to_be_bytes());
        header[24..28].copy_from_slice(&0x10000u32.to_be_bytes());
        header[28..32].copy_from_slice(&(entries as u32).to_be_bytes());
        header[32..36].copy_from_slice(&(BLOCK as u32).to_be_bytes());
        let path: Vec<u8> = self.parent.map_or("", |p| p.1).encode_utf16().flat_map(u16::to_le_bytes).collect();
        if let Some((id, _)) = self.parent {
            header[40..56].copy_from_slice(&id.to_be_bytes());
            header[576..580].copy_from_slice(b"W2ru");
            header[580..584].copy_from_slice(&512u32.to_be_bytes());
            header[584..588].copy_from_slice(&(path.len() as u32).to_be_bytes());
            header[592..600].copy_from_slice(&3072u64.to_be_bytes());
        }
        set_checksum(&mut header, 36);
        file.extend_from_slice(&header);
        let mut table = vec![0xff; 1536];
        let mut data = Vec::new();
        let data_at = 4096 + 3 * 512;
        for (number, sectors) in &self.blocks {
            let sector = ((data_at + data.len()) / 512) as u32;
            table[number * 4..number * 4 + 4].copy_from_slice(&sector.to_be_bytes());
            let mut bitmap = [0; BITMAP];
            for (index, value) in sectors.iter().enumerate() {
                bitmap[index / 8] |= if value.is_some() { 0x80 >> (index % 8) } else { 0 };
            }
            data.extend_from_slice(&bitmap);
            for index in 0..BLOCK / 512 {
                // Sectors that are not there hold something that must not be seen.
                data.extend_from_slice(&[sectors.get(index).copied().flatten().unwrap_or(0xee); 512]);
            }
        }
        file.extend_from_slice(&table);
        assert_eq!(file.len(), 3072);
        file.extend_from_slice(&path);
        file.resize(data_at, 0);
        file.append(&mut data);
        file.extend_from_slice(&self.footer());
        file
    }
}

fn set_checksum(bytes: &mut [u8], at: usize) {
    let sum = !bytes.iter().map(|&b| u32::from(b)).sum::<u32>();
    bytes[at..at + 4].copy_from_slice(&sum.to_be_bytes());
}
