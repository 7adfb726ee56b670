# virtdisk.dll as the script sees it: open read-only, ask, query changes, attach without a drive letter, read, write.
#
# Written apart from the product's own use of this library (crates/hyperv/src/windows), on purpose: two readers of one
# specification find each other's mistakes. Layouts and values: spec hyperv 4.7 and 5.6, Microsoft's virtdisk.h.

Add-Type -TypeDefinition @'
using System;
using System.Collections.Generic;
using System.ComponentModel;
using System.Runtime.InteropServices;
using Microsoft.Win32.SafeHandles;

namespace E3Lab
{
    public sealed class ByteRange
    {
        public ulong Offset;
        public ulong Length;
        public ByteRange(ulong offset, ulong length) { Offset = offset; Length = length; }
    }

    /// What QueryChangesVirtualDisk said, all pages together.
    public sealed class Changes
    {
        public uint Status;
        public int Pages;
        public ulong Processed;
        public List<ByteRange> Ranges = new List<ByteRange>();
        public string Code { get { return "0x" + Status.ToString("X8"); } }

        /// The parts of what was written that no range covers: what a backup would lose.
        public List<ByteRange> Missed(IEnumerable<ByteRange> written)
        {
            List<ByteRange> sorted = new List<ByteRange>(Ranges);
            sorted.Sort(delegate(ByteRange a, ByteRange b) { return a.Offset.CompareTo(b.Offset); });
            List<ByteRange> missed = new List<ByteRange>();
            foreach (ByteRange write in written)
            {
                ulong at = write.Offset, end = write.Offset + write.Length;
                foreach (ByteRange range in sorted)
                {
                    if (range.Offset >= end) break;
                    if (range.Offset + range.Length <= at) continue;
                    if (range.Offset > at) missed.Add(new ByteRange(at, range.Offset - at));
                    at = range.Offset + range.Length;
                }
                if (at < end) missed.Add(new ByteRange(at, end - at));
            }
            return missed;
        }

        /// Whether both tell the same bytes, however cut into ranges.
        public bool SameBytes(Changes other) { return Missed(other.Ranges).Count == 0 && other.Missed(Ranges).Count == 0; }

        public ulong ChangedBytes
        {
            get { ulong sum = 0; foreach (ByteRange range in Ranges) sum += range.Length; return sum; }
        }
        public ulong Smallest
        {
            get
            {
                ulong least = 0;
                foreach (ByteRange range in Ranges) if (least == 0 || range.Length < least) least = range.Length;
                return least;
            }
        }

        /// The largest number that divides all offsets and lengths; 0 for no ranges.
        public ulong Alignment
        {
            get
            {
                ulong common = 0;
                foreach (ByteRange range in Ranges)
                    foreach (ulong number in new ulong[] { range.Offset, range.Length })
                    {
                        ulong a = number;
                        while (a != 0) { ulong rest = common % a; common = a; a = rest; }
                    }
                return common;
            }
        }
    }

    /// What a disk file says of itself. Fields that could not be had hold the error code in Problem.
    public sealed class DiskInfo
    {
        public ulong VirtualSize, PhysicalSize;
        public uint BlockSize, SectorSize, PhysicalSectorSize, ProviderSubtype;
        public string VirtualDiskId = "";
        public bool TrackingEnabled, NewerChanges;
        public string MostRecentId = "";
        public string Problem = "";
    }

    public sealed class VirtDiskException : Exception
    {
        public uint Status;
        public VirtDiskException(string call, string path, uint status)
            : base(call + " of " + path + ": 0x" + status.ToString("X8") + " (" + new Win32Exception((int)status).Message + ")")
        { Status = status; }
    }

    public sealed class VirtDisk : IDisposable
    {
        const uint InsufficientBuffer = 122, IoPending = 997;
        readonly string path;
        SafeFileHandle handle;
        bool attached;

        [StructLayout(LayoutKind.Sequential)]
        public struct StorageType { public uint DeviceId; public Guid VendorId; }

        // Version 2; SnapshotId belongs to version 3 and makes the struct as long as the system's.
        [StructLayout(LayoutKind.Sequential)]
        public struct OpenParameters
        { public uint Version; public int GetInfoOnly; public int ReadOnly; public Guid ResiliencyGuid; public Guid SnapshotId; }

        [StructLayout(LayoutKind.Sequential)]
        public struct AttachParameters { public uint Version; public uint Pad; public ulong First; public ulong Second; }

        [StructLayout(LayoutKind.Sequential)]
        public struct QueryRange { public ulong Offset; public ulong Length; public ulong Reserved; }

        // FILETIME is two 32-bit halves, so nothing here is aligned to 8.
        [StructLayout(LayoutKind.Sequential, Pack = 4)]
        public struct FileInformation
        {
            public uint Attributes;
            public long Created, Accessed, Written;
            public uint VolumeSerial, SizeHigh, SizeLow, Links, IndexHigh, IndexLow;
        }

        [DllImport("virtdisk.dll", CharSet = CharSet.Unicode)]
        static extern uint OpenVirtualDisk(ref StorageType type, string path, uint access, uint flags,
            ref OpenParameters parameters, out SafeFileHandle handle);
        [DllImport("virtdisk.dll")]
        static extern uint GetVirtualDiskInformation(SafeFileHandle handle, ref uint size, IntPtr info, out uint used);
        [DllImport("virtdisk.dll", CharSet = CharSet.Unicode)]
        static extern uint QueryChangesVirtualDisk(SafeFileHandle handle, string id, ulong offset, ulong length, uint flags,
            [Out] QueryRange[] ranges, ref uint count, out ulong processed);
        [DllImport("virtdisk.dll")]
        static extern uint AttachVirtualDisk(SafeFileHandle handle, IntPtr security, uint flags, uint providerFlags,
            ref AttachParameters parameters, IntPtr overlapped);
        [DllImport("virtdisk.dll")]
        static extern uint DetachVirtualDisk(SafeFileHandle handle, uint flags, uint providerFlags);
        [DllImport("kernel32.dll", SetLastError = true)]
        static extern bool ReadFile(SafeFileHandle handle, IntPtr buffer, uint length, IntPtr done, IntPtr overlapped);
        [DllImport("kernel32.dll", SetLastError = true)]
        static extern bool WriteFile(SafeFileHandle handle, IntPtr buffer, uint length, IntPtr done, IntPtr overlapped);
        [DllImport("kernel32.dll", SetLastError = true)]
        static extern bool GetOverlappedResult(SafeFileHandle handle, IntPtr overlapped, out uint done, bool wait);
        [DllImport("kernel32.dll", SetLastError = true)]
        static extern IntPtr CreateEvent(IntPtr security, bool manual, bool initial, IntPtr name);
        [DllImport("kernel32.dll")]
        static extern bool CloseHandle(IntPtr handle);
        [DllImport("kernel32.dll", SetLastError = true)]
        static extern IntPtr VirtualAlloc(IntPtr address, UIntPtr size, uint type, uint protection);
        [DllImport("kernel32.dll")]
        static extern bool VirtualFree(IntPtr address, UIntPtr size, uint type);
        [DllImport("kernel32.dll", SetLastError = true)]
        static extern bool GetFileInformationByHandle(SafeFileHandle handle, out FileInformation information);

        public VirtDisk(string path, bool readOnly)
        {
            this.path = path;
            StorageType any = new StorageType();
            OpenParameters parameters = new OpenParameters();
            parameters.Version = 2;
            parameters.ReadOnly = readOnly ? 1 : 0;
            uint status = OpenVirtualDisk(ref any, path, 0, 0, ref parameters, out handle);
            if (status != 0) throw new VirtDiskException("OpenVirtualDisk", path, status);
        }

        // GET_VIRTUAL_DISK_INFO: the version, then at offset 8 a union whose largest member has 64-bit fields.
        byte[] Information(uint version, out uint status)
        {
            uint size = 1024, used;
            for (;;)
            {
                IntPtr buffer = Marshal.AllocHGlobal((int)size);
                try
                {
                    Marshal.Copy(new byte[size], 0, buffer, (int)size);
                    Marshal.WriteInt32(buffer, (int)version);
                    uint given = size;
                    status = GetVirtualDiskInformation(handle, ref size, buffer, out used);
                    if (status == InsufficientBuffer && size > given && size <= 1 << 20) continue;
                    byte[] bytes = new byte[given];
                    Marshal.Copy(buffer, bytes, 0, bytes.Length);
                    return bytes;
                }
                finally { Marshal.FreeHGlobal(buffer); }
            }
        }

        byte[] Ask(uint version, string what, DiskInfo info)
        {
            uint status;
            byte[] bytes = Information(version, out status);
            if (status == 0) return bytes;
            info.Problem += what + " 0x" + status.ToString("X8") + " ";
            return null;
        }

        public DiskInfo Describe()
        {
            DiskInfo info = new DiskInfo();
            uint status;
            byte[] bytes = Information(1, out status);
            if (status != 0) throw new VirtDiskException("GetVirtualDiskInformation(size)", path, status);
            info.VirtualSize = BitConverter.ToUInt64(bytes, 8);
            info.PhysicalSize = BitConverter.ToUInt64(bytes, 16);
            info.BlockSize = BitConverter.ToUInt32(bytes, 24);
            info.SectorSize = BitConverter.ToUInt32(bytes, 28);
            bytes = Ask(7, "subtype", info);
            if (bytes != null) info.ProviderSubtype = BitConverter.ToUInt32(bytes, 8);
            bytes = Ask(10, "physical sector", info);
            if (bytes != null) info.PhysicalSectorSize = BitConverter.ToUInt32(bytes, 8);
            bytes = Ask(14, "disk id", info);
            if (bytes != null)
            {
                byte[] id = new byte[16];
                Array.Copy(bytes, 8, id, 0, 16);
                info.VirtualDiskId = new Guid(id).ToString();
            }
            bytes = Ask(15, "tracking state", info);
            if (bytes == null) return info;
            info.TrackingEnabled = BitConverter.ToInt32(bytes, 8) != 0;
            info.NewerChanges = BitConverter.ToInt32(bytes, 12) != 0;
            string text = System.Text.Encoding.Unicode.GetString(bytes, 16, (bytes.Length - 16) & ~1);
            int end = text.IndexOf('\0');
            info.MostRecentId = end < 0 ? text : text.Substring(0, end);
            return info;
        }

        /// All changes in [offset, offset + length) since id, at most perPage ranges a call.
        public Changes Query(string id, ulong offset, ulong length, int perPage)
        {
            Changes changes = new Changes();
            QueryRange[] page = new QueryRange[perPage];
            while (length > 0)
            {
                uint count = (uint)perPage;
                ulong processed;
                changes.Status = QueryChangesVirtualDisk(handle, id, offset, length, 0, page, ref count, out processed);
                if (changes.Status != 0) return changes;
                changes.Pages++;
                for (uint i = 0; i < count && i < page.Length; i++) changes.Ranges.Add(new ByteRange(page[i].Offset, page[i].Length));
                // No progress would be asked for ever.
                if (processed == 0 || processed > length) { changes.Status = 0xFFFFFFFF; return changes; }
                changes.Processed += processed;
                offset += processed;
                length -= processed;
            }
            return changes;
        }

        /// Gives no drive letter and no disk of the host: bytes go through this handle alone.
        public void Attach(bool readOnly)
        {
            const uint ReadOnly = 1, NoDriveLetter = 2, NoLocalHost = 8;
            AttachParameters parameters = new AttachParameters();
            parameters.Version = 1;
            uint status = AttachVirtualDisk(handle, IntPtr.Zero, (readOnly ? ReadOnly : 0) | NoDriveLetter | NoLocalHost, 0, ref parameters, IntPtr.Zero);
            if (status != 0) throw new VirtDiskException("AttachVirtualDisk", path, status);
            attached = true;
        }

        public byte[] Read(ulong offset, int length)
        {
            byte[] bytes = new byte[length];
            Transfer(offset, bytes, false);
            return bytes;
        }

        /// Of the whole virtual disk.
        public string Sha256()
        {
            const int Step = 1 << 20;
            ulong size = Describe().VirtualSize;
            using (System.Security.Cryptography.SHA256 hash = System.Security.Cryptography.SHA256.Create())
            {
                for (ulong at = 0; at < size; at += Step)
                {
                    byte[] bytes = Read(at, (int)Math.Min((ulong)Step, size - at));
                    hash.TransformBlock(bytes, 0, bytes.Length, null, 0);
                }
                hash.TransformFinalBlock(new byte[0], 0, 0);
                return BitConverter.ToString(hash.Hash).Replace("-", "").ToLowerInvariant();
            }
        }

        public void Write(ulong offset, byte[] bytes) { Transfer(offset, bytes, true); }

        void Transfer(ulong offset, byte[] bytes, bool write)
        {
            string call = (write ? "WriteFile at " : "ReadFile at ") + offset;
            IntPtr buffer = VirtualAlloc(IntPtr.Zero, new UIntPtr((uint)bytes.Length), 0x3000, 4);
            if (buffer == IntPtr.Zero) throw new OutOfMemoryException();
            IntPtr overlapped = Marshal.AllocHGlobal(32);
            IntPtr done = CreateEvent(IntPtr.Zero, true, false, IntPtr.Zero);
            try
            {
                // OVERLAPPED of a 64-bit process: two pointers, offset, high offset, event.
                Marshal.Copy(new byte[32], 0, overlapped, 32);
                Marshal.WriteInt64(overlapped, 16, (long)offset);
                Marshal.WriteIntPtr(overlapped, 24, done);
                if (write) Marshal.Copy(bytes, 0, buffer, bytes.Length);
                bool now = write ? WriteFile(handle, buffer, (uint)bytes.Length, IntPtr.Zero, overlapped)
                                 : ReadFile(handle, buffer, (uint)bytes.Length, IntPtr.Zero, overlapped);
                uint error = (uint)Marshal.GetLastWin32Error();
                if (!now && error != IoPending) throw new VirtDiskException(call, path, error);
                uint moved;
                if (!GetOverlappedResult(handle, overlapped, out moved, true))
                    throw new VirtDiskException(call, path, (uint)Marshal.GetLastWin32Error());
                if (moved != bytes.Length) throw new VirtDiskException(call + ", " + moved + " of " + bytes.Length + " bytes,", path, 0);
                if (!write) Marshal.Copy(buffer, bytes, 0, bytes.Length);
            }
            finally
            {
                CloseHandle(done);
                Marshal.FreeHGlobal(overlapped);
                VirtualFree(buffer, UIntPtr.Zero, 0x8000);
            }
        }

        /// Volume and file id: another id under the same name is another file.
        public static string FileId(string path)
        {
            using (System.IO.FileStream file = new System.IO.FileStream(path, System.IO.FileMode.Open, System.IO.FileAccess.Read,
                System.IO.FileShare.ReadWrite | System.IO.FileShare.Delete))
            {
                FileInformation information;
                if (!GetFileInformationByHandle(file.SafeFileHandle, out information)) throw new Win32Exception();
                return information.VolumeSerial.ToString("x8") + ":" + information.IndexHigh.ToString("x8") + information.IndexLow.ToString("x8");
            }
        }

        public void Dispose()
        {
            if (handle == null || handle.IsClosed) return;
            if (attached) DetachVirtualDisk(handle, 0, 0);
            handle.Dispose();
        }
    }
}
'@

# Runs $Action with the disk attached, and detaches it whatever happens: a handle left open blocks merges and VM starts.
function Use-AttachedDisk {
    param([string]$Path, [bool]$ReadOnly, [scriptblock]$Action)
    $disk = New-Object E3Lab.VirtDisk -ArgumentList $Path, $ReadOnly
    try {
        $disk.Attach($ReadOnly)
        & $Action $disk
    } finally {
        $disk.Dispose()
    }
}

# What virtdisk.dll says of a file that nobody writes.
function Get-DiskInfo {
    param([string]$Path)
    $disk = New-Object E3Lab.VirtDisk -ArgumentList $Path, $true
    try { $disk.Describe() } finally { $disk.Dispose() }
}

# Ranges changed since $Id, on a file that nobody writes. Never throws for a refusal: the code is the observation.
function Get-DiskChanges {
    param([string]$Path, [string]$Id, [int]$PerPage = 4096, [uint64]$Length = 0)
    $disk = New-Object E3Lab.VirtDisk -ArgumentList $Path, $true
    try {
        if ($Length -eq 0) { $Length = $disk.Describe().VirtualSize }
        $disk.Query($Id, 0, $Length, $PerPage)
    } finally {
        $disk.Dispose()
    }
}

# The shape of an answer, short enough for the report.
function Get-ChangesSummary {
    param($Changes)
    [ordered]@{
        status = $Changes.Code
        pages = $Changes.Pages
        processed_bytes = $Changes.Processed
        ranges = $Changes.Ranges.Count
        changed_bytes = $Changes.ChangedBytes
        smallest_bytes = $Changes.Smallest
        common_alignment_bytes = $Changes.Alignment
        first = @($Changes.Ranges | Select-Object -First 8 | ForEach-Object { '{0}+{1}' -f $_.Offset, $_.Length })
    }
}
