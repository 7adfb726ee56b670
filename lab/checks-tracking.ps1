# Change tracking: when do old ids answer, and is the answer complete. Spec hyperv 4.

Add-Check 'L4' -Minutes 3 `
    -Question 'Smallest range, alignment, paging; is the size of the disk accepted as ByteLength; do the ranges hold all writes of a running VM' `
    -Assumes 'Every write is in a range; pages add up to the whole; ranges are arbitrary; refusals have the codes of 4.8' `
    -Decides 'crates/hyperv/src/changes.rs (paging, splitting on 87, codes)' `
    -Run {
    param($Check)
    $vm = New-LabVm 'L4' -Guest
    Start-LabVm $vm
    $first = Invoke-Round $Check 'first round, VM running' $vm -WhileFrozen { param($round) Get-GuestProgress $round.Frozen }
    Start-Sleep -Seconds 20
    $second = Invoke-Round $Check 'second round, VM running' $vm -Since $first.Id -WhileFrozen {
        param($round)
        $size = $round.Info.VirtualSize
        $whole = Get-DiskChanges $round.Frozen $first.Id
        $small = Get-DiskChanges $round.Frozen $first.Id -PerPage 2
        $short = Get-DiskChanges $round.Frozen $first.Id -Length ($size - 1)
        $history, $sequence = $first.Id -split ':(?=[^:]*$)'
        [pscustomobject]@{
            Progress = Get-GuestProgress $round.Frozen
            Codes = [ordered]@{
                whole_size = $whole.Code
                size_minus_one = $short.Code
                two_per_page = $small.Code
                two_per_page_pages = $small.Pages
                two_per_page_same_bytes = $small.SameBytes($whole)
                id_of_no_form = (Get-DiskChanges $round.Frozen 'no id').Code
                id_of_another_disk = (Get-DiskChanges $round.Frozen 'rctX:00000000:0000:0000:0000:000000000000:00000001').Code
                id_of_the_future = (Get-DiskChanges $round.Frozen ($history + ':7ffffff0')).Code
                id_of_this_instant = (Get-DiskChanges $round.Frozen $round.Info.MostRecentId).Code
                through_wmi = Get-ChangesThroughWmi $round.Frozen $first.Id $size
            }
        }
    }
    $untracked = Join-Path $vm.Folder 'untracked.vhdx'
    $null = New-VHD -Path $untracked -Dynamic -SizeBytes 64mb
    $second.Found.Codes.tracking_off = (Get-DiskChanges $untracked $first.Id).Code
    $Check.observations['questions to virtdisk'] = $second.Found.Codes
    $Check.observations['writes of the guest'] = [ordered]@{ at_first = $first.Found; at_second = $second.Found.Progress }
    Stop-LabVm $vm

    # One sector in the middle of 64 KiB, at a spacing that meets no likely granularity.
    $single = @(1..40 | ForEach-Object { New-Write ([uint64]$_ * 5 * 65536 + 8192) 4096 })
    Write-LabDisk $vm.Disk $single
    $third = Invoke-Round $Check 'third round, VM off, 40 single writes of 4 KiB' $vm -Since $second.Id
    $offline = Get-Coverage $third $single

    if ($first.Found -eq 0) {
        Set-Verdict $Check 'failed' 'the guest of ours wrote nothing: no answer about a running VM'
        return
    }
    $online = Get-Coverage $second (Get-GuestWritesBetween $first.Found $second.Found.Progress)
    if ($online -ne 'covered') {
        Set-Verdict $Check 'refuted' "writes of the running VM: $online"
    } elseif ($offline -eq 'missed') {
        Set-Verdict $Check 'refuted' 'writes to the disk of the stopped VM are missing in the ranges'
    } elseif ($second.Found.Codes.whole_size -ne '0x00000000' -or -not $second.Found.Codes.two_per_page_same_bytes) {
        Set-Verdict $Check 'differs' 'complete, but paging or the length of the query is not as assumed'
    } else {
        Set-Verdict $Check 'confirmed' ("complete; smallest range $($third.Changes.Smallest) bytes, all multiples of " +
            "$($third.Changes.Alignment); writes to the stopped VM's disk: $offline")
    }
}

# The same question through WMI, first page only (spec 4.8).
function Get-ChangesThroughWmi {
    param([string]$Path, [string]$Id, [uint64]$Length)
    $answer = Invoke-V2 (Get-V2Service 'Msvm_ImageManagementService') 'GetVirtualDiskChanges' @{
        Path = $Path; LimitId = $Id; TargetSnapshotId = ''; ByteOffset = [uint64]0; ByteLength = $Length
    }
    # Up to thousands of numbers; how many there are is enough.
    foreach ($name in 'ChangedByteOffsets', 'ChangedByteLengths' | Where-Object { $answer.outputs.Contains($_) }) {
        $answer.outputs[$name] = @($answer.outputs[$name]).Count
    }
    $answer
}

Add-Check 'L1' -Minutes 3 `
    -Question 'Do ids answer, completely, after storage migration' `
    -Assumes 'Nothing: another file means a full read' `
    -Decides 'crates/backup/src/decision.rs (FileReplaced, ChainChanged, OriginChanged), crates/hyperv/src/frozen.rs' `
    -Run {
    param($Check)
    $vm = New-LabVm 'L1' -Guest
    Start-LabVm $vm
    $before = Invoke-Round $Check 'before' $vm -WhileFrozen { param($round) Get-GuestProgress $round.Frozen }
    Move-VMStorage -VM (Get-VM -Id $vm.Id) -DestinationStoragePath (Join-Path $vm.Folder 'moved')
    Start-Sleep -Seconds 5
    $after = Invoke-Round $Check 'after storage migration while running' $vm -Since $before.Id `
        -WhileFrozen { param($round) Get-GuestProgress $round.Frozen }
    $running = Get-Coverage $after (Get-GuestWritesBetween $before.Found $after.Found)
    Stop-LabVm $vm
    Move-VMStorage -VM (Get-VM -Id $vm.Id) -DestinationStoragePath (Join-Path $vm.Folder 'moved again')
    $writes = @(1..10 | ForEach-Object { New-Write ([uint64]$_ * 3mb) 4096 })
    Write-LabDisk (Get-ActiveDisk $vm.Id)[0] $writes
    $last = Invoke-Round $Check 'after storage migration while off' $vm -Since $after.Id
    $off = Get-Coverage $last $writes
    $Check.observations['not asked here'] = 'shared-nothing and live migration: they need a second host'
    $text = "running: $running; off: $off; migration to another host not asked"
    if ('missed' -in $running, $off) {
        Set-Verdict $Check 'confirmed' "an old id answers and leaves writes out, so the guard must stay ($text)"
    } elseif ('covered' -in $running, $off) {
        Set-Verdict $Check 'differs' "ids survive; the guard could be relaxed where they do ($text)"
    } else {
        Set-Verdict $Check 'confirmed' "ids end with the file ($text)"
    }
}

Add-Check 'L2' -Minutes 2 `
    -Question 'Do ids answer, completely, after user checkpoints were made, deleted, applied' `
    -Assumes 'Nothing: any change of the user checkpoints means a full read' `
    -Decides 'crates/backup/src/decision.rs (UserCheckpoints, ChainChanged)' `
    -Run {
    param($Check)
    $vm = New-LabVm 'L2'
    Write-LabDisk $vm.Disk @(New-Write 1mb 1mb)
    $base = Invoke-Round $Check 'base' $vm

    $made = @(New-Write 10mb 65536)
    Checkpoint-VM -VM (Get-VM -Id $vm.Id) -SnapshotName 'one'
    Write-LabDisk (Get-ActiveDisk $vm.Id)[0] $made
    $under = Invoke-Round $Check 'with a user checkpoint made since' $vm -Since $base.Id
    $verdicts = [ordered]@{ made = Get-Coverage $under $made }

    Get-VMSnapshot -VM (Get-VM -Id $vm.Id) -Name 'one' | Remove-VMSnapshot -Confirm:$false
    $Check.observations['merge of the user checkpoint'] = Wait-Merge $vm.Id @($vm.Disk)
    $deleted = @(New-Write 20mb 65536)
    Write-LabDisk (Get-ActiveDisk $vm.Id)[0] $deleted
    $later = Invoke-Round $Check 'with the user checkpoint deleted again' $vm -Since $base.Id
    $verdicts.deleted = Get-Coverage $later ($made + $deleted)

    # What is undone by applying is a change as well: the disk jumps back, and a backup must bring the old bytes.
    Checkpoint-VM -VM (Get-VM -Id $vm.Id) -SnapshotName 'two'
    $undone = @(New-Write 30mb 65536)
    Write-LabDisk (Get-ActiveDisk $vm.Id)[0] $undone
    $ahead = Invoke-Round $Check 'before applying' $vm
    Get-VMSnapshot -VM (Get-VM -Id $vm.Id) -Name 'two' | Restore-VMSnapshot -Confirm:$false
    $back = Invoke-Round $Check 'after applying' $vm -Since $ahead.Id
    $verdicts.applied = Get-Coverage $back $undone
    $Check.observations['writes'] = $verdicts

    $text = "made: $($verdicts.made); deleted: $($verdicts.deleted); applied: $($verdicts.applied)"
    if ($verdicts.Values -contains 'missed') {
        Set-Verdict $Check 'confirmed' "the guard is needed ($text)"
    } elseif ($verdicts.made -eq 'covered' -and $verdicts.deleted -eq 'covered') {
        Set-Verdict $Check 'differs' "the guard could be relaxed for checkpoints made and deleted ($text)"
    } else {
        Set-Verdict $Check 'confirmed' "old ids are refused ($text)"
    }
}

Add-Check 'L3' -Minutes 3 `
    -Question 'Do ids answer after growing, shrinking and compacting; is the new area in the ranges' `
    -Assumes 'Nothing of another size: a resized disk is read in full. After compaction the answer is believed' `
    -Decides 'crates/backup/src/decision.rs (Resized), crates/hyperv/src/changes.rs' `
    -Run {
    param($Check)
    $vm = New-LabVm 'L3'
    Write-LabDisk $vm.Disk @(New-Write 1mb 8mb)
    $base = Invoke-Round $Check 'base' $vm

    Start-LabVm $vm -Seconds 3
    $old = [uint64](Get-VHD -Path $vm.Disk).Size
    try {
        Resize-VHD -Path $vm.Disk -SizeBytes ($old + 64mb)
        $Check.observations['growing while running'] = 'done'
        Stop-LabVm $vm
    } catch {
        $Check.observations['growing while running'] = $_.Exception.Message
        Stop-LabVm $vm
        Resize-VHD -Path $vm.Disk -SizeBytes ($old + 64mb)
    }
    $new = New-Write ($old + 16mb) 65536
    Write-LabDisk $vm.Disk @((New-Write 100mb 65536), $new)
    $grown = Invoke-Round $Check 'grown, then written' $vm -Since $base.Id
    $verdicts = [ordered]@{ grown = Get-Coverage $grown @((New-Write 100mb 65536), $new) }
    $areaMissed = if ($grown.Changes.Status -eq 0) { $grown.Changes.Missed([E3Lab.ByteRange[]]@(New-Write $old 64mb)).Count } else { -1 }
    $Check.observations['the whole new area is reported'] = $areaMissed -eq 0

    Write-LabDisk $vm.Disk @(New-Write 4mb 65536)
    Optimize-VHD -Path $vm.Disk -Mode Full
    $compact = Invoke-Round $Check 'compacted' $vm -Since $grown.Id
    $verdicts.compacted = Get-Coverage $compact @(New-Write 4mb 65536)

    try {
        Resize-VHD -Path $vm.Disk -SizeBytes $old
        $shrunk = Invoke-Round $Check 'shrunk' $vm -Since $compact.Id
        $verdicts.shrunk = Get-Coverage $shrunk @()
    } catch {
        # Windows shrinks only behind the last partition, and what it makes of none is its own affair.
        $verdicts.shrunk = "not possible: $($_.Exception.Message)"
    }
    $Check.observations['answers'] = $verdicts
    $text = "grown: $($verdicts.grown); compacted: $($verdicts.compacted); shrunk: $($verdicts.shrunk)"
    if ($verdicts.compacted -eq 'missed') {
        Set-Verdict $Check 'refuted' "after compaction an answer is believed that leaves writes out ($text)"
    } elseif ($verdicts.grown -eq 'covered') {
        Set-Verdict $Check 'differs' "a grown disk could be read incrementally ($text)"
    } else {
        Set-Verdict $Check 'confirmed' $text
    }
}

Add-Check 'L7' -Minutes 2 `
    -Question 'Do merges still end when several reference points exist' `
    -Assumes 'One reference point for each VM and repository is harmless' `
    -Decides 'crates/backup/src/run/end.rs (superseding), crates/hyperv/src/merge.rs' `
    -Run {
    param($Check)
    $vm = New-LabVm 'L7' -Guest
    $started = Get-Date
    Start-LabVm $vm
    $merged = @()
    foreach ($number in 1..4) {
        $round = Invoke-Round $Check "round $number, all reference points kept" $vm
        $merged += $round.Merge.merged
        Start-Sleep -Seconds 2
    }
    $Check.observations['reference points'] = @(Get-ReferencePoint $vm.Id).Count
    $Check.observations['merge events'] = Get-MergeEvents $vm.Name $started
    if ($merged -contains $false) {
        Set-Verdict $Check 'refuted' "merges ended: $($merged -join ', ')"
    } else {
        Set-Verdict $Check 'confirmed' "four merges ended with up to $(@(Get-ReferencePoint $vm.Id).Count) reference points"
    }
}

Add-Check 'L8' -Minutes 2 `
    -Question 'How long does an id answer without its reference point' `
    -Assumes 'Perhaps not at all, so a reference point is kept' `
    -Decides 'crates/backup/src/run/end.rs, crates/hyperv/src/reference_point.rs' `
    -Run {
    param($Check)
    $vm = New-LabVm 'L8' -Guest
    Start-LabVm $vm
    $kept = Invoke-Round $Check 'converted' $vm -WhileFrozen { param($round) Get-GuestProgress $round.Frozen }
    $Check.observations['removal of its reference point'] = Remove-ReferencePoint $kept.Point.__PATH
    $never = Invoke-Round $Check 'destroyed, never converted' $vm -Since $kept.Id -End 'destroy' `
        -WhileFrozen { param($round) Get-GuestProgress $round.Frozen }
    $verdicts = [ordered]@{ after_removal = Get-Coverage $never (Get-GuestWritesBetween $kept.Found $never.Found) }
    Stop-LabVm $vm
    Start-LabVm $vm
    # The guest begins again with number 1 after a start, so only the answers are judged from here on.
    $removed = Invoke-Round $Check 'after stop and start, id whose point was removed' $vm -Since $kept.Id -End 'destroy'
    $unconverted = Invoke-Round $Check 'after stop and start, id that never had a point' $vm -Since $never.Info.MostRecentId -End 'destroy'
    $verdicts.after_restart = $removed.Changes.Code
    $verdicts.never_converted = $unconverted.Changes.Code
    $Check.observations['answers'] = $verdicts
    $text = "removed: $($verdicts.after_removal), after a restart $($verdicts.after_restart); never converted: $($verdicts.never_converted)"
    if ($verdicts.after_removal -eq 'missed') {
        Set-Verdict $Check 'confirmed' "an id without its point answers incompletely ($text)"
    } elseif ('0x00000000' -in $verdicts.after_restart, $verdicts.never_converted) {
        Set-Verdict $Check 'differs' "ids answer without reference points ($text)"
    } else {
        Set-Verdict $Check 'confirmed' $text
    }
}

Add-Check 'L20' -Minutes 3 `
    -Question 'Storage set back together with .rct and .mrt: is an id given out again; is the newest id of a frozen file always above the base' `
    -Assumes 'It may be given out again; otherwise the newest id is above every base' `
    -Decides 'crates/hyperv/src/changes.rs (rct_id_is_reused), crates/backup/src/decision.rs (IdReused, FileReplaced, CompanionMissing)' `
    -Run {
    param($Check)
    $vm = New-LabVm 'L20'
    Write-LabDisk $vm.Disk @(New-Write 1mb 1mb)
    $before = Invoke-Round $Check 'before' $vm
    $aside = Join-Path $vm.Folder 'aside'
    $null = New-Item -ItemType Directory -Path $aside
    Copy-Item -Path ($vm.Disk + '*') -Destination $aside

    # Future one: writes, and an id of it that a backup would keep.
    $lost = @(New-Write 10mb 65536)
    Write-LabDisk $vm.Disk $lost
    $future = Invoke-Round $Check 'the future that is undone' $vm -Since $before.Id

    # Back, disk and companions, then another future.
    Copy-Item -Path (Join-Path $aside '*') -Destination $vm.Folder -Force
    $other = @(New-Write 20mb 65536)
    Write-LabDisk $vm.Disk $other
    $again = Invoke-Round $Check 'after setting back disk and companions' $vm -Since $future.Id
    $withCompanions = Get-Coverage $again ($lost + $other)

    # Back again, but the disk alone.
    Copy-Item -LiteralPath (Join-Path $aside 'disk.vhdx') -Destination $vm.Disk -Force
    Write-LabDisk $vm.Disk @(New-Write 40mb 65536)
    $alone = Invoke-Round $Check 'after setting back the disk alone' $vm -Since $again.Id
    $diskAlone = Get-Coverage $alone @((New-Write 40mb 65536), $other[0])

    $sameId = $again.Id -ceq $future.Id -or $again.Info.MostRecentId -ceq $future.Info.MostRecentId
    $pairs = @($script:Lab.IdPairs | Where-Object { $_.Check -ne 'L20' } | ForEach-Object { Test-IdIsAbove $_.Base $_.MostRecent })
    $guarded = (Test-IdIsAbove $future.Id $again.Info.MostRecentId) -eq 'not above'
    $Check.observations['summary'] = [ordered]@{
        id_given_out_again = $sameId
        guard_would_notice = $guarded
        pairs_of_other_checks = $pairs.Count
        pairs_above = @($pairs | Where-Object { $_ -eq 'above' }).Count
        pairs_not_above = @($pairs | Where-Object { $_ -eq 'not above' }).Count
        pairs_of_another_history = @($pairs | Where-Object { $_ -eq 'other history' }).Count
        file_id_unchanged_by_setting_back = $future.Seen.frozen.file_id -eq $again.Seen.frozen.file_id
    }
    $text = "with companions: $withCompanions, same id: $sameId, guard notices: $guarded; disk alone: $diskAlone; " +
        "$(@($pairs | Where-Object { $_ -eq 'not above' }).Count) of $($pairs.Count) other pairs not above their base"
    if ($withCompanions -eq 'missed' -and -not $guarded) {
        Set-Verdict $Check 'refuted' "a false answer that the guard on ids does not notice; the file's id must ($text)"
    } elseif ($diskAlone -eq 'missed' -and (Test-IdIsAbove $again.Id $alone.Info.MostRecentId) -eq 'above') {
        Set-Verdict $Check 'refuted' "old companions beside another disk give a false answer ($text)"
    } elseif ($pairs -contains 'not above') {
        Set-Verdict $Check 'differs' "the guard makes needless fulls ($text)"
    } else {
        Set-Verdict $Check 'confirmed' $text
    }
}

# As the guard reads ids: the same history, and a sequence above the base's (spec 4.9).
function Test-IdIsAbove {
    param([string]$Base, [string]$MostRecent)
    if ($Base -ceq $MostRecent) { return 'not above' }
    $form = '^(.*):([0-9A-Fa-f]{8})$'
    if ($Base -notmatch $form) { return 'other form' }
    $history, $sequence = $Matches[1], [Convert]::ToUInt32($Matches[2], 16)
    if ($MostRecent -notmatch $form) { return 'other form' }
    if ($Matches[1] -ne $history) { return 'other history' }
    if ([Convert]::ToUInt32($Matches[2], 16) -gt $sequence) { 'above' } else { 'not above' }
}
