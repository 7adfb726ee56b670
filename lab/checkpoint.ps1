# Recovery checkpoints, reference points and merges: one round of a backup, as the product makes it (spec hyperv 0.4),
# with everything seen on the way kept.

$script:CheckpointOfVm = 'Msvm_SnapshotOfVirtualSystem'
$script:Settings = 'Msvm_VirtualSystemSettingData'
$script:Media = 'Msvm_StorageAllocationSettingData'
$script:HardDisk = 'Microsoft:Hyper-V:Virtual Hard Disk'

function Get-RecoveryCheckpoint {
    param([string]$VmId)
    Get-Associated (Get-V2Vm $VmId).__PATH $script:CheckpointOfVm $script:Settings |
        Where-Object { $_.VirtualSystemType -eq 'Microsoft:Hyper-V:Snapshot:Recovery' }
}

# Paths of the hard disks in a configuration: of the running VM, of a checkpoint, of a planned VM.
function Get-DiskSetting {
    param([string]$SettingsPath)
    Get-Associated $SettingsPath 'Msvm_VirtualSystemSettingDataComponent' $script:Media |
        Where-Object { $_.ResourceSubType -eq $script:HardDisk } | Sort-Object InstanceID
}

# The files that the VM writes at present, as an array also of one: the comma keeps PowerShell from unwrapping it.
function Get-ActiveDisk {
    param([string]$VmId)
    , @(Get-DiskSetting (Get-V2Settings (Get-V2Vm $VmId).__PATH).__PATH | ForEach-Object { [string]$_.HostResource[0] })
}

# The new checkpoint's settings, or none; and the answer in any case. Copy backup: no logs are truncated in the guest. It is
# named as ours at once, so that the next start knows it again should this one be killed.
function New-RecoveryCheckpoint {
    param([string]$VmId, [int]$Level = 2, [int]$LimitSeconds = 300)
    $before = @(Get-RecoveryCheckpoint $VmId | ForEach-Object { $_.__PATH })
    $wanted = @{ ConsistencyLevel = [byte]$Level; GuestBackupType = [byte]2; IgnoreNonSnapshottableDisks = $true }
    $new = @()
    try {
        $answer = Invoke-V2 (Get-V2Service 'Msvm_VirtualSystemSnapshotService') 'CreateSnapshot' @{
            AffectedSystem = [string](Get-V2Vm $VmId).__PATH
            SnapshotSettings = New-SettingText 'Msvm_VirtualSystemSnapshotSettingData' $wanted
            SnapshotType = [uint16]32768
        } $LimitSeconds
    } finally {
        # Also when Ctrl+C came in between: what is not on the list is not removed.
        $new = @(Get-RecoveryCheckpoint $VmId | Where-Object { $before -notcontains $_.__PATH })
        foreach ($one in $new) { $script:Lab.Checkpoints += [string]$one.__PATH }
    }
    if ($new.Count -gt 0) {
        $name = @{ ElementName = $script:Lab.Prefix + '-checkpoint' }
        $management = Get-V2Service 'Msvm_VirtualSystemManagementService'
        $answer.renaming = Invoke-V2 $management 'ModifySystemSettings' @{ SystemSettings = Get-SettingText $new[0] $name }
    }
    $answer.recovery_checkpoints_before = $before.Count
    $answer.recovery_checkpoints_new = $new.Count
    [pscustomobject]@{ Answer = $answer; Settings = $new | Select-Object -First 1 }
}

function Remove-RecoveryCheckpoint {
    param([string]$Path)
    $answer = Invoke-V2 (Get-V2Service 'Msvm_VirtualSystemSnapshotService') 'DestroySnapshot' @{ AffectedSnapshot = $Path }
    if ($answer.succeeded) { $script:Lab.Checkpoints = @($script:Lab.Checkpoints | Where-Object { $_ -ne $Path }) }
    $answer
}

function Get-ReferencePoint {
    param([string]$VmId)
    Find-V2 "SELECT * FROM Msvm_VirtualSystemReferencePoint WHERE VirtualSystemIdentifier = '$VmId'"
}

function Get-ReferencePointFacts {
    param($Point)
    [ordered]@{
        instance_id = [string]$Point.InstanceID
        type = $Point.ReferencePointType
        consistency_level = $Point.ConsistencyLevel
        disks = @($Point.VirtualDiskIdentifiers | Where-Object { $null -ne $_ })
        ids = @($Point.ResilientChangeTrackingIdentifiers | Where-Object { $null -ne $_ })
    }
}

# The new reference point, or none, and which of the three ways of spec 4.4 find it.
function Convert-Checkpoint {
    param([string]$VmId, [string]$Path, $SettingsText = '')
    $before = @(Get-ReferencePoint $VmId | ForEach-Object { $_.__PATH })
    $answer = Invoke-V2 (Get-V2Service 'Msvm_VirtualSystemSnapshotService') 'ConvertToReferencePoint' @{
        AffectedSnapshot = $Path
        ReferencePointSettings = $SettingsText
    }
    $new = @(Get-ReferencePoint $VmId | Where-Object { $before -notcontains $_.__PATH })
    foreach ($one in $new) { $script:Lab.ReferencePoints += [string]$one.__PATH }
    $byJob = @()
    if ($answer.job) {
        try {
            $byJob = @(Get-Associated ([string]$answer.outputs['Job']) 'Msvm_AffectedJobElement' 'Msvm_VirtualSystemReferencePoint')
        } catch {
            $answer.association_problem = $_.Exception.Message
        }
    }
    $answer.found_by_output = [string]$answer.outputs['ResultingReferencePoint'] -notin '', '(null)'
    $answer.found_by_association = $byJob.Count
    $answer.found_by_query = $new.Count
    if ($answer.succeeded) { $script:Lab.Checkpoints = @($script:Lab.Checkpoints | Where-Object { $_ -ne $Path }) }
    [pscustomobject]@{ Answer = $answer; Point = $new | Select-Object -First 1 }
}

function Remove-ReferencePoint {
    param([string]$Path)
    $service = Get-V2Service 'Msvm_VirtualSystemReferencePointService'
    $answer = Invoke-V2 $service 'DestroyReferencePoint' @{ AffectedReferencePoint = $Path }
    if ($answer.succeeded) { $script:Lab.ReferencePoints = @($script:Lab.ReferencePoints | Where-Object { $_ -ne $Path }) }
    $answer
}

# Waits until the VM writes to its former files again: the only proof of a merge (spec 3.8).
function Wait-Merge {
    param([string]$VmId, [string[]]$Former, [int]$LimitSeconds = 120)
    $clock = [Diagnostics.Stopwatch]::StartNew()
    $sawStatus = $false
    do {
        $now = Get-ActiveDisk $VmId
        $merged = ($now -join '|') -eq ($Former -join '|')
        $sawStatus = $sawStatus -or @((Get-V2Vm $VmId).OperationalStatus) -contains 32772
        if (-not $merged) { Start-Sleep -Milliseconds 250 }
    } until ($merged -or $clock.Elapsed.TotalSeconds -gt $LimitSeconds)
    [ordered]@{ merged = $merged; elapsed_ms = $clock.ElapsedMilliseconds; status_32772_seen = $sawStatus }
}

# The disk's file and every file beside it whose name begins with its own: companions are found, not presumed.
function Get-Companion {
    param([string]$Path)
    $leaf = [IO.Path]::GetFileName($Path)
    @(Get-ChildItem -LiteralPath ([IO.Path]::GetDirectoryName($Path)) -Force |
        Where-Object { $_.Name.StartsWith($leaf, [StringComparison]::OrdinalIgnoreCase) -and $_.Name -ne $leaf } |
        ForEach-Object { [ordered]@{ suffix = $_.Name.Substring($leaf.Length); bytes = $_.Length } })
}

# One backup of a throw-away VM with one disk: checkpoint, facts of the frozen file, changes since an id, conversion or
# removal, merge. What was seen goes into the report under $Label; what the next step needs is returned.
function Invoke-Round {
    param($Check, [string]$Label, $Vm, [string]$Since = '', [int]$Level = 2, [scriptblock]$WhileFrozen = $null,
        [string]$End = 'convert', $SettingsText = '')
    $seen = [ordered]@{}
    $Check.observations[$Label] = $seen
    $round = [pscustomobject]@{
        Seen = $seen; Frozen = ''; Info = $null; Changes = $null; Found = $null; Id = ''; Point = $null; Merge = $null; Ending = $null
    }
    $former = Get-ActiveDisk $Vm.Id
    $checkpoint = New-RecoveryCheckpoint $Vm.Id $Level
    $seen.create = $checkpoint.Answer
    if (-not $checkpoint.Settings) { throw "$($Label): no recovery checkpoint: $(Format-Answer $checkpoint.Answer)" }
    $path = [string]$checkpoint.Settings.__PATH
    $round.Frozen = [string]@(Get-DiskSetting $path)[0].HostResource[0]
    $round.Info = Get-DiskInfo $round.Frozen
    $seen.frozen = [ordered]@{
        file = [IO.Path]::GetFileName($round.Frozen)
        file_id = [E3Lab.VirtDisk]::FileId($round.Frozen)
        is_former_leaf = $round.Frozen -eq $former[0]
        virtual_disk_id = $round.Info.VirtualDiskId
        size_bytes = $round.Info.VirtualSize
        tracking = $round.Info.TrackingEnabled
        newer_changes = $round.Info.NewerChanges
        most_recent_id = $round.Info.MostRecentId
        companions = @(Get-Companion $round.Frozen)
        problem = $round.Info.Problem
    }
    if ($Since) {
        $round.Changes = Get-DiskChanges $round.Frozen $Since
        $seen.changes_since = $Since
        $seen.changes = Get-ChangesSummary $round.Changes
        $script:Lab.IdPairs += [pscustomobject]@{ Check = $Check.id; Base = $Since; MostRecent = $round.Info.MostRecentId }
    }
    if ($WhileFrozen) { $round.Found = & $WhileFrozen $round }
    if ($End -eq 'convert') {
        $conversion = Convert-Checkpoint $Vm.Id $path $SettingsText
        $round.Ending = $conversion.Answer
        $round.Point = $conversion.Point
        if ($conversion.Point) {
            $facts = Get-ReferencePointFacts $conversion.Point
            $seen.reference_point = $facts
            if ($facts.ids.Count -gt 0) { $round.Id = [string]$facts.ids[0] }
            $seen.id_is_most_recent_of_frozen = $round.Id -ceq $round.Info.MostRecentId
        }
    } else {
        $round.Ending = Remove-RecoveryCheckpoint $path
    }
    $seen.end = $round.Ending
    $round.Merge = Wait-Merge $Vm.Id $former
    $seen.merge = $round.Merge
    $round
}

# What a round's answer means for writes that we know of: 'refused', 'covered', 'missed'.
function Get-Coverage {
    param($Round, $Written)
    if (-not $Round.Changes) {
        $Round.Seen.coverage = 'not asked: the round before gave no id'
        return 'refused'
    }
    if ($Round.Changes.Status -ne 0) {
        $Round.Seen.coverage = "refused with $($Round.Changes.Code)"
        return 'refused'
    }
    $known = [E3Lab.ByteRange[]]@($Written | Where-Object { $_ })
    $missed = $Round.Changes.Missed($known)
    $Round.Seen.writes_known = $known.Count
    $Round.Seen.writes_missed = @($missed | Select-Object -First 16 | ForEach-Object { '{0}+{1}' -f $_.Offset, $_.Length })
    if ($missed.Count -gt 0) { return 'missed' }
    'covered'
}
