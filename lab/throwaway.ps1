# VMs, disks and writes of our own, and their removal. Nothing here touches what does not bear the lab's name.

$script:LabName = '^e3-lab-[0-9a-f]{32}-'

# lab/guest/writing-guest.s, assembled: a boot sector that writes one sector every 0.2 s at places known beforehand.
$script:WritingGuest = 'ea057c0000fa31c08ed88ec08ed0bc007cfbfc8816787c66ff06747c66a1' +
    '747cbf0080b9800066f3ab666906747c050400006625ffff0f0066050008' +
    '000066a36c7cbe647c8a16787cb80043cd13668b1e6c046683c304fbf466' +
    'a16c046629d878f5ebb31000010000800000000000000000000000000000' +
    '00000000'

function New-LabVm {
    param([string]$Purpose, [int]$Generation = 2, [uint64]$DiskBytes = 1gb, [switch]$Guest)
    $folder = Join-Path $script:Lab.Folder $Purpose
    $null = New-Item -ItemType Directory -Path $folder
    $disk = Join-Path $folder 'disk.vhdx'
    $null = New-VHD -Path $disk -Dynamic -SizeBytes $DiskBytes
    if ($Guest) {
        $Generation = 1
        $sector = New-Object byte[] 512
        for ($i = 0; $i -lt $script:WritingGuest.Length / 2; $i++) {
            $sector[$i] = [Convert]::ToByte($script:WritingGuest.Substring(2 * $i, 2), 16)
        }
        $sector[510] = 0x55
        $sector[511] = 0xAA
        Use-AttachedDisk $disk $false { param($attached) $attached.Write(0, $sector) }
    }
    $name = $script:Lab.Prefix + '-' + $Purpose
    $vm = New-VM -Name $name -Generation $Generation -MemoryStartupBytes 256mb -VHDPath $disk -Path $folder
    $script:Lab.Vms += $vm.VMId.ToString()
    $quiet = @{ VM = $vm; AutomaticStartAction = 'Nothing'; AutomaticStopAction = 'TurnOff'; CheckpointType = 'Standard' }
    # Client Windows checkpoints every start by itself, which would be a user checkpoint to every question here.
    if ((Get-Command Set-VM).Parameters.ContainsKey('AutomaticCheckpointsEnabled')) { $quiet.AutomaticCheckpointsEnabled = $false }
    Set-VM @quiet
    [pscustomobject]@{ Name = $name; Id = $vm.VMId.ToString().ToUpperInvariant(); Folder = $folder; Disk = $disk }
}

# Starts a VM that writes by itself, and waits for its first writes.
function Start-LabVm {
    param($Vm, [int]$Seconds = 10)
    Start-VM -VM (Get-VM -Id $Vm.Id)
    Start-Sleep -Seconds $Seconds
}

function Stop-LabVm {
    param($Vm)
    Stop-VM -VM (Get-VM -Id $Vm.Id) -TurnOff -Force
}

# Writes of random bytes into a disk that no VM is running on, through the disk's own handle.
function Write-LabDisk {
    param([string]$Path, $Writes)
    $random = New-Object Random
    Use-AttachedDisk $Path $false {
        param($attached)
        foreach ($write in $Writes) {
            $bytes = New-Object byte[] ([int]$write.Length)
            $random.NextBytes($bytes)
            $attached.Write($write.Offset, $bytes)
        }
    }
}

function New-Write {
    param([uint64]$Offset, [uint64]$Length)
    New-Object E3Lab.ByteRange -ArgumentList $Offset, $Length
}

# Where the writing guest's write number $Number goes.
function Get-GuestWrite {
    param([int]$Number)
    New-Write ([uint64](2048 + (($Number * 1029) -band 0xFFFFF)) * 512) 512
}

# How many writes of the writing guest a frozen disk holds.
function Get-GuestProgress {
    param([string]$Path)
    Use-AttachedDisk $Path $true {
        param($attached)
        $number = 0
        do {
            $next = $number + 1
            $content = $attached.Read((Get-GuestWrite $next).Offset, 512)
            $holds = [BitConverter]::ToInt32($content, 0) -eq $next -and [BitConverter]::ToInt32($content, 508) -eq $next
            if ($holds) { $number = $next }
        } while ($holds)
        $number
    }
}

function Get-GuestWritesBetween {
    param([int]$After, [int]$UpTo)
    for ($number = $After + 1; $number -le $UpTo; $number++) { Get-GuestWrite $number }
}

# Merge events of the host that name the VM (spec 3.8): 19070 started, 19080 finished, 19090 interrupted, 19100 failed.
function Get-MergeEvents {
    param([string]$Name, [datetime]$After)
    $filter = @{ LogName = 'Microsoft-Windows-Hyper-V-VMMS-Admin'; Id = 19070, 19080, 19090, 19100; StartTime = $After }
    $counts = [ordered]@{}
    Get-WinEvent -FilterHashtable $filter -ErrorAction SilentlyContinue |
        Where-Object { $_.Message -and $_.Message.Contains($Name) } |
        Group-Object Id | ForEach-Object { $counts[[string]$_.Name] = $_.Count }
    $counts
}

# Removes a VM whose name is the lab's, with its checkpoints. $VmId comes from our own list, and the name is checked
# again: an id alone must not be able to remove somebody's VM.
function Remove-LabVm {
    param([string]$VmId)
    $vm = Get-VM -Id $VmId -ErrorAction SilentlyContinue
    if (-not $vm -or $vm.Name -notmatch $script:LabName) { return }
    if ($vm.State -ne 'Off') { Stop-VM -VM $vm -TurnOff -Force -ErrorAction SilentlyContinue }
    $upper = $vm.VMId.ToString().ToUpperInvariant()
    foreach ($point in @(Get-ReferencePoint $upper)) { $null = Remove-ReferencePoint $point.__PATH }
    foreach ($checkpoint in @(Get-RecoveryCheckpoint $upper)) { $null = Remove-RecoveryCheckpoint $checkpoint.__PATH }
    Get-VMSnapshot -VM $vm | Where-Object { $_.SnapshotType -eq 'Standard' } | Remove-VMSnapshot -Confirm:$false
    # A merge in progress refuses the removal for a moment.
    for ($try = 1; $try -le 15; $try++) {
        try {
            Remove-VM -VM (Get-VM -Id $VmId) -Force
            return
        } catch {
            if ($try -eq 15) { throw }
            Start-Sleep -Seconds 2
        }
    }
}

# Everything this run made. Prints nothing to the pipeline: after Ctrl+C that would end the clean-up half way.
function Remove-EverythingOfLab {
    # Planned VMs are invisible, so nobody would want to keep them.
    foreach ($path in @($script:Lab.Planned)) { Clear-One "planned VM $path" { $null = Remove-PlannedVm $path } }
    if ($script:Lab.Keep) { return }
    foreach ($path in @($script:Lab.Checkpoints)) { Clear-One "checkpoint $path" { $null = Remove-RecoveryCheckpoint $path } }
    foreach ($path in @($script:Lab.ReferencePoints)) { Clear-One "reference point $path" { $null = Remove-ReferencePoint $path } }
    foreach ($id in @($script:Lab.Vms)) { Clear-One "VM $id" { Remove-LabVm $id } }
    Clear-One "folder $($script:Lab.Folder)" { Remove-LabFolder $script:Lab.Folder }
}

# One thing that cannot be removed must not keep the others.
function Clear-One {
    param([string]$What, [scriptblock]$Action)
    try {
        & $Action
    } catch {
        $script:Lab.Left += "$($What): $($_.Exception.Message)"
    }
}

function Remove-LabFolder {
    param([string]$Path)
    for ($try = 1; Test-Path -LiteralPath $Path; $try++) {
        try {
            Remove-Item -LiteralPath $Path -Recurse -Force
        } catch {
            # The host holds the files of a VM for a moment after its removal.
            if ($try -eq 10) { throw }
            Start-Sleep -Seconds 1
        }
    }
}

# VMs and folders of former runs that were cut off, by the lab's own name; removed after a yes.
function Remove-Leftovers {
    param([string]$Folder)
    $vms = @(Get-VM | Where-Object { $_.Name -match $script:LabName })
    $checkpoints = @(Find-V2 "SELECT * FROM Msvm_VirtualSystemSettingData WHERE VirtualSystemType = 'Microsoft:Hyper-V:Snapshot:Recovery'" |
        Where-Object { $_.ElementName -match $script:LabName })
    $planned = @(Get-PlannedVm | Where-Object { $_.ElementName -match $script:LabName })
    $folders = @(Get-ChildItem -LiteralPath $Folder -Directory | Where-Object { ($_.Name + '-') -match $script:LabName })
    if ($vms.Count + $folders.Count + $checkpoints.Count + $planned.Count -eq 0) { return }
    Write-Host 'A former run left behind:'
    $vms | ForEach-Object { Write-Host "  VM      $($_.Name)" }
    $checkpoints | ForEach-Object { Write-Host "  recovery checkpoint of VM $($_.VirtualSystemIdentifier)" }
    $planned | ForEach-Object { Write-Host "  planned VM $($_.ElementName)" }
    $folders | ForEach-Object { Write-Host "  folder  $($_.FullName)" }
    if ((Read-Host 'Remove these? [y/N]') -ne 'y') { return }
    foreach ($one in $checkpoints) { $null = Remove-RecoveryCheckpoint $one.__PATH }
    foreach ($one in $planned) { $null = Remove-PlannedVm $one.__PATH }
    foreach ($vm in $vms) { Remove-LabVm $vm.VMId.ToString() }
    foreach ($one in $folders) { Remove-LabFolder $one.FullName }
}
