//! What the host says about a virtual disk file and its parents (`GetVirtualHardDiskSettingData`, spec 2.3).

use vhdx::{DiskKind, Guid};

use crate::host::IMAGE_SERVICE;
use crate::names::same_path;
use crate::seam::{CimValue, ObjectPath};
use crate::{Error, Host, cim_xml};

/// Container format of a disk file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DiskFormat {
    /// `.vhd`, without change tracking.
    Vhd,
    /// `.vhdx` and `.avhdx`.
    Vhdx,
    /// `.vhds`: a shared set; not backed up.
    VhdSet,
}

/// One disk file, as `vmms` sees it, even while a VM has it open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DiskFacts {
    pub format: DiskFormat,
    pub kind: DiskKind,
    pub parent: Option<String>,
    pub size_bytes: u64,
    pub logical_sector_bytes: u32,
    pub physical_sector_bytes: u32,
    pub virtual_disk_id: Guid,
    pub pmem: bool,
}

/// More parents than this is damage, not a chain.
const MAX_CHAIN: usize = 1024;

impl Host {
    pub(crate) fn image_service(&self, attempt: &str) -> Result<ObjectPath, Error> {
        self.service(attempt, IMAGE_SERVICE)
    }

    /// The facts of a file, and the paths of its chain, leaf first.
    pub(crate) fn disk_chain(
        &self,
        attempt: &str,
        service: &ObjectPath,
        path: &str,
    ) -> Result<(DiskFacts, Vec<String>), Error> {
        let leaf = self.disk_facts(attempt, service, path)?;
        let mut chain = vec![path.to_owned()];
        let mut parent = leaf.parent.clone();
        while let Some(path) = parent {
            if chain.len() >= MAX_CHAIN || chain.iter().any(|known| same_path(known, &path)) {
                return Err(unexpected(attempt, format!("the chain of {} runs in a circle at {path}", chain[0])));
            }
            parent = self.disk_facts(attempt, service, &path)?.parent;
            chain.push(path);
        }
        Ok((leaf, chain))
    }

    pub(crate) fn disk_facts(&self, attempt: &str, service: &ObjectPath, path: &str) -> Result<DiskFacts, Error> {
        const METHOD: &str = "GetVirtualHardDiskSettingData";
        let output = self.read_method(attempt, service, METHOD, &[("Path", CimValue::String(path.to_owned()))])?;
        let attempt_on_file = || format!("{attempt}: look at {path}");
        if output.return_value != 0 {
            return Err(Error::Refused { attempt: attempt_on_file(), method: METHOD, code: output.return_value });
        }
        // A null text with a return value of 0 is how a path that no longer exists can look (spec 11, row 4).
        let Some(text) = output.get("SettingData").as_str().filter(|text| !text.is_empty()) else {
            return Err(Error::Missing { attempt: attempt.to_owned(), what: path.to_owned() });
        };
        let data = cim_xml::parse(text).map_err(|source| Error::CimXml { attempt: attempt_on_file(), source })?;
        let unusable = |name: &str| unexpected(&attempt_on_file(), format!("{name} is {:?}", data.get(name)));
        let sector = |name: &str| {
            let bytes = data.get(name).as_u64().and_then(|bytes| u32::try_from(bytes).ok());
            bytes.filter(|bytes| matches!(bytes, 512 | 4096)).ok_or_else(|| unusable(name))
        };
        let kind = match data.get("Type").as_u64() {
            Some(2) => DiskKind::Fixed,
            Some(3) => DiskKind::Dynamic,
            Some(4) => DiskKind::Differencing,
            _ => return Err(unusable("Type")),
        };
        let parent = data.get("ParentPath").as_str().filter(|path| !path.is_empty()).map(str::to_owned);
        if kind == DiskKind::Differencing && parent.is_none() {
            return Err(unexpected(&attempt_on_file(), "a differencing disk without a ParentPath".into()));
        }
        Ok(DiskFacts {
            format: match data.get("Format").as_u64() {
                Some(2) => DiskFormat::Vhd,
                Some(3) => DiskFormat::Vhdx,
                Some(4) => DiskFormat::VhdSet,
                _ => return Err(unusable("Format")),
            },
            kind,
            parent: parent.filter(|_| kind == DiskKind::Differencing),
            size_bytes: data.get("MaxInternalSize").as_u64().ok_or_else(|| unusable("MaxInternalSize"))?,
            logical_sector_bytes: sector("LogicalSectorSize")?,
            physical_sector_bytes: sector("PhysicalSectorSize")?,
            virtual_disk_id: data
                .get("VirtualDiskId")
                .as_str()
                .and_then(|text| text.parse().ok())
                .ok_or_else(|| unusable("VirtualDiskId"))?,
            pmem: data.get("IsPmemCompatible").as_bool() == Some(true),
        })
    }
}

pub(crate) fn unexpected(attempt: &str, problem: String) -> Error {
    Error::Unexpected { attempt: attempt.to_owned(), problem }
}
