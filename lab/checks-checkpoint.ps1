# Checkpoints, conversion, guests, neighbours: what the host answers, and with which codes. Spec hyperv 3, 4.4, 9.

Add-Check 'L5' -Minutes 4 `
    -Question 'ConsistencyLevel of the reference point after conversions of level 1 and level 2' `
    -Assumes '1 after level 1, 2 after level 2' `
    -Decides 'crates/hyperv/src/checkpoint.rs (Reached::and), the label of every point' `
    -Run {
    param($Check)
    $vm = New-LabVm 'L5'
    $off = Invoke-Round $Check 'level 2, VM off' $vm
    Start-LabVm $vm -Seconds 3
    $running = Invoke-Round $Check 'level 2, VM running without a guest system' $vm
    $wrong = @($off, $running | Where-Object { $_.Point -and $_.Point.ConsistencyLevel -ne 2 }).Count
    $asked = 0
    foreach ($name in @($script:Lab.WindowsGuest, $script:Lab.LinuxGuest | Where-Object { $_ })) {
        foreach ($level in 1, 2) {
            $seen = Invoke-GuestRound $name $level
            $Check.observations["$name, level $level"] = $seen
            if (-not $seen.reference_point) { continue }
            $asked++
            if ($seen.reference_point.consistency_level -ne $level) { $wrong++ }
        }
    }
    if ($wrong -gt 0) {
        Set-Verdict $Check 'differs' "$wrong reference points name another level than was asked for; the product believes the lower"
    } elseif ($asked -eq 0) {
        Set-Verdict $Check 'skipped' 'level 2 is as assumed; level 1 needs -WindowsGuest or -LinuxGuest'
    } else {
        Set-Verdict $Check 'confirmed' "the level asked for is the level named, $asked times in given guests"
    }
}

# Checkpoint and conversion of a given VM, and removal of what came of it. Only checkpoints are made; never while somebody
# else's backup is under way.
function Invoke-GuestRound {
    param([string]$Name, [int]$Level)
    $vm = Get-GivenVm $Name
    $seen = [ordered]@{ vss_component_status = $vm.Vss }
    if ($vm.Problem) {
        $seen.not_asked = $vm.Problem
        return $seen
    }
    $former = Get-ActiveDisk $vm.Id
    $checkpoints = @($script:Lab.Checkpoints)
    $points = @($script:Lab.ReferencePoints)
    try {
        $checkpoint = New-RecoveryCheckpoint $vm.Id $Level 1200
        $seen.create = $checkpoint.Answer
        if (-not $checkpoint.Settings) { return $seen }
        $conversion = Convert-Checkpoint $vm.Id ([string]$checkpoint.Settings.__PATH)
        $seen.convert = $conversion.Answer
        if ($conversion.Point) { $seen.reference_point = Get-ReferencePointFacts $conversion.Point }
    } finally {
        # In a VM that is not ours nothing stays, not even with -Keep.
        $made = @($script:Lab.Checkpoints | Where-Object { $checkpoints -notcontains $_ })
        $converted = @($script:Lab.ReferencePoints | Where-Object { $points -notcontains $_ })
        $seen.removal = @($made | ForEach-Object { Remove-RecoveryCheckpoint $_ }) + @($converted | ForEach-Object { Remove-ReferencePoint $_ })
    }
    $seen.merge = Wait-Merge $vm.Id $former 600
    $seen
}

function Get-GivenVm {
    param([string]$Name)
    $found = @(Get-VM | Where-Object { $_.Name -eq $Name })
    $given = [pscustomobject]@{ Id = ''; Problem = ''; Vss = '(none)' }
    if ($found.Count -ne 1) {
        $given.Problem = "there are $($found.Count) VMs of this name"
        return $given
    }
    $given.Id = $found[0].VMId.ToString().ToUpperInvariant()
    if ($found[0].State -ne 'Running') { $given.Problem = "it is $($found[0].State), not running" }
    if (@(Get-RecoveryCheckpoint $given.Id).Count -gt 0) { $given.Problem = 'it has a recovery checkpoint: another backup is under way' }
    $component = Find-V2 "SELECT * FROM Msvm_VssComponent WHERE SystemName = '$($given.Id)'" | Select-Object -First 1
    if ($component) { $given.Vss = @($component.OperationalStatus) -join ', ' }
    $given
}

Add-Check 'L6' -Minutes 1 `
    -Question 'ConvertToReferencePoint with a settings text and without; which outputs are filled' `
    -Assumes 'An empty string is taken; the result is found by the job, the output, or the query' `
    -Decides 'crates/hyperv/src/reference_point.rs (find_reference_point)' `
    -Run {
    param($Check)
    $vm = New-LabVm 'L6'
    $text = New-SettingText 'Msvm_VirtualSystemReferencePointSettingData' @{ ConsistencyLevel = [byte]2 }
    $forms = [ordered]@{ 'empty string' = ''; 'null' = $null; 'settings of level 2' = $text }
    $ways = [ordered]@{}
    foreach ($form in $forms.Keys) {
        $round = Invoke-Round $Check $form $vm -SettingsText $forms[$form]
        $ways[$form] = [ordered]@{
            accepted = $round.Ending.succeeded
            by_output = $round.Ending.found_by_output
            by_association = $round.Ending.found_by_association
            by_query = $round.Ending.found_by_query
        }
    }
    $Check.observations['how the result is found'] = $ways
    $empty = $ways['empty string']
    if (-not $empty.accepted -or $empty.by_query -ne 1) {
        Set-Verdict $Check 'refuted' 'with an empty string there is no reference point'
    } elseif ($empty.by_association -ne 1) {
        Set-Verdict $Check 'differs' "the job names $($empty.by_association) results; output filled: $($empty.by_output)"
    } else {
        Set-Verdict $Check 'confirmed' "found by the job; output filled: $($empty.by_output)"
    }
}

Add-Check 'L9' -Minutes 3 `
    -Question 'Level 1 on off, saved and paused VMs; a recovery checkpoint with user checkpoints switched off' `
    -Assumes 'Level 2 works in all of these; level 1 is asked of running VMs only' `
    -Decides 'crates/backup/src/run/freeze.rs (consistency policy), crates/hyperv/src/protection.rs' `
    -Run {
    param($Check)
    $vm = New-LabVm 'L9' -Guest
    $results = [ordered]@{}
    $states = [ordered]@{
        off = { $null }
        running = { Start-LabVm $vm }
        paused = { Suspend-VM -VM (Get-VM -Id $vm.Id) }
        saved = { Resume-VM -VM (Get-VM -Id $vm.Id); Save-VM -VM (Get-VM -Id $vm.Id) }
        'off, user checkpoints disabled' = { Remove-VMSavedState -VM (Get-VM -Id $vm.Id); Set-VM -VM (Get-VM -Id $vm.Id) -CheckpointType Disabled }
    }
    foreach ($state in $states.Keys) {
        $null = & $states[$state]
        foreach ($level in 2, 1) {
            $former = Get-ActiveDisk $vm.Id
            $made = New-RecoveryCheckpoint $vm.Id $level 120
            $seen = [ordered]@{ enabled_state = (Get-V2Vm $vm.Id).EnabledState; create = $made.Answer }
            if ($made.Settings) {
                $seen.removal = Remove-RecoveryCheckpoint ([string]$made.Settings.__PATH)
                $seen.merge = Wait-Merge $vm.Id $former
            }
            $Check.observations["$state, level $level"] = $seen
            $results["$state, level $level"] = $made.Answer.succeeded
        }
    }
    $refused = @($results.Keys | Where-Object { $_ -like '*level 2' -and -not $results[$_] })
    $granted = @($results.Keys | Where-Object { $_ -like '*level 1' -and $results[$_] })
    if ($refused.Count -gt 0) {
        Set-Verdict $Check 'refuted' "level 2 is refused: $($refused -join '; ')"
    } else {
        Set-Verdict $Check 'confirmed' "level 2 works everywhere; level 1 without a guest is granted for: $($granted -join '; ')"
    }
}

Add-Check 'L10' -Minutes 1 `
    -Question 'With which sharing can the frozen files be opened; what are the companions called' `
    -Assumes 'Frozen files open for reading with all sharing; the leaf does not open in virtdisk; companions are <file>.rct and <file>.mrt' `
    -Decides 'crates/hyperv/src/frozen.rs (own reader, companions), crates/hyperv/src/windows' `
    -Run {
    param($Check)
    $vm = New-LabVm 'L10' -Guest
    Start-LabVm $vm
    $null = Invoke-Round $Check 'to have tracking on' $vm
    $round = Invoke-Round $Check 'looked at' $vm -WhileFrozen {
        param($round)
        $leaf = (Get-ActiveDisk $vm.Id)[0]
        $files = [ordered]@{ frozen = Test-OpenModes $round.Frozen; leaf = Test-OpenModes $leaf }
        foreach ($suffix in '.rct', '.mrt') { $files["frozen $suffix"] = Test-OpenModes ($round.Frozen + $suffix) }
        $files['leaf by virtdisk'] = try { $null = Get-DiskInfo $leaf; 'opens' } catch { $_.Exception.GetBaseException().Message }
        $files['in the folder'] = @(Get-ChildItem -LiteralPath ([IO.Path]::GetDirectoryName($leaf)) -Force | ForEach-Object { $_.Name })
        [pscustomobject]@{ Files = $files }
    }
    $files = $round.Found.Files
    $Check.observations['files during the checkpoint'] = $files
    $suffixes = @($round.Seen.frozen.companions | ForEach-Object { $_.suffix })
    if ($files.frozen['share read, write, delete'] -ne 'opens') {
        Set-Verdict $Check 'refuted' "the frozen file does not open: $($files.frozen['share read, write, delete'])"
    } elseif ('.rct' -notin $suffixes -or '.mrt' -notin $suffixes) {
        Set-Verdict $Check 'refuted' "companions found: $($suffixes -join ', '); the product would call them missing and read in full"
    } elseif ($files['leaf by virtdisk'] -eq 'opens') {
        Set-Verdict $Check 'differs' 'the leaf of a running VM opens; nothing else stands between it and a reader'
    } else {
        Set-Verdict $Check 'confirmed' "companions: $($suffixes -join ', ')"
    }
}

function Test-OpenModes {
    param([string]$Path)
    $modes = [ordered]@{
        'share none' = 'None'
        'share read' = 'Read'
        'share read, write' = 'ReadWrite'
        'share read, write, delete' = 'ReadWrite, Delete'
    }
    $results = [ordered]@{}
    foreach ($mode in $modes.Keys) {
        $results[$mode] = try {
            [IO.File]::Open($Path, 'Open', 'Read', [IO.FileShare]$modes[$mode]).Dispose()
            'opens'
        } catch {
            '0x{0:X8}' -f $_.Exception.GetBaseException().HResult
        }
    }
    $results
}

Add-Check 'L11' -Minutes 3 `
    -Question 'Code and time of a level 1 request to a guest that cannot freeze' `
    -Assumes 'The job fails, with a code in its texts, and leaves no checkpoint' `
    -Decides 'crates/hyperv/src/advice.rs, crates/hyperv/src/error.rs (messages, when a fallback is tried)' `
    -Run {
    param($Check)
    $vm = New-LabVm 'L11' -Guest
    Start-LabVm $vm
    $former = Get-ActiveDisk $vm.Id
    $made = New-RecoveryCheckpoint $vm.Id 1 180
    $Check.observations['a guest without integration services'] = $made.Answer
    if ($made.Settings) {
        $Check.observations['removal'] = Remove-RecoveryCheckpoint ([string]$made.Settings.__PATH)
        $Check.observations['merge'] = Wait-Merge $vm.Id $former
    }
    if ($script:Lab.LinuxGuest) {
        $Check.observations["$($script:Lab.LinuxGuest), level 1"] = Invoke-GuestRound $script:Lab.LinuxGuest 1
    } else {
        $Check.observations['a Linux guest'] = 'not asked: give one with -LinuxGuest, its hv_vss_daemon stopped'
    }
    $text = Format-Answer $made.Answer
    if ($made.Answer.succeeded) {
        Set-Verdict $Check 'differs' "granted although nothing in the guest can freeze ($text)"
    } elseif ($made.Answer.recovery_checkpoints_new -gt 0) {
        Set-Verdict $Check 'refuted' "failed, and a checkpoint is there all the same ($text)"
    } else {
        Set-Verdict $Check 'confirmed' $text
    }
}

Add-Check 'L16' -Minutes 2 `
    -Question 'Form of reference point ids, null outputs, and what CreateReferencePoint of type 1 and 2 gives' `
    -Assumes 'Only conversion is used; it gives type 2 with as many ids as disks' `
    -Decides 'crates/hyperv/src/reference_point.rs (pairs, defects)' `
    -Run {
    param($Check)
    $vm = New-LabVm 'L16'
    $round = Invoke-Round $Check 'conversion' $vm
    foreach ($type in 1, 2) {
        $before = @(Get-ReferencePoint $vm.Id | ForEach-Object { $_.__PATH })
        $answer = Invoke-V2 (Get-V2Service 'Msvm_VirtualSystemReferencePointService') 'CreateReferencePoint' @{
            AffectedSystem = [string](Get-V2Vm $vm.Id).__PATH
            ReferencePointSettings = New-SettingText 'Msvm_VirtualSystemReferencePointSettingData' @{ ConsistencyLevel = [byte]2 }
            ReferencePointType = [uint16]$type
        }
        $new = @(Get-ReferencePoint $vm.Id | Where-Object { $before -notcontains $_.__PATH })
        foreach ($one in $new) { $script:Lab.ReferencePoints += [string]$one.__PATH }
        $Check.observations["created, type $type"] = [ordered]@{
            answer = $answer
            points = @($new | ForEach-Object { Get-ReferencePointFacts $_ })
        }
    }
    $facts = $round.Seen.reference_point
    $Check.observations['relative path'] = if ($round.Point) { [string]$round.Point.__RELPATH } else { '(none)' }
    if (-not $facts -or $facts.type -ne 2 -or $facts.ids.Count -ne $facts.disks.Count -or $facts.ids.Count -ne 1) {
        Set-Verdict $Check 'refuted' 'a conversion gives no usable id: every backup would be full'
    } else {
        Set-Verdict $Check 'confirmed' "$($facts.instance_id), id $($facts.ids[0]), output filled: $($round.Ending.found_by_output)"
    }
}

Add-Check 'L17' -Minutes 2 `
    -Question 'A second recovery checkpoint while the first is merging' `
    -Assumes 'It may be refused, so the product waits for the merge' `
    -Decides 'crates/backup/src/run/prepare.rs (wait_until_idle), crates/hyperv/src/merge.rs' `
    -Run {
    param($Check)
    $vm = New-LabVm 'L17'
    $former = Get-ActiveDisk $vm.Id
    $first = New-RecoveryCheckpoint $vm.Id 2
    if (-not $first.Settings) { throw "no recovery checkpoint: $(Format-Answer $first.Answer)" }
    # What lies in the leaf has to be merged; half a GiB takes long enough to come in between.
    Write-LabDisk (Get-ActiveDisk $vm.Id)[0] @(0..127 | ForEach-Object { New-Write ([uint64]$_ * 4mb) 4mb })
    $Check.observations['end of the first'] = (Convert-Checkpoint $vm.Id ([string]$first.Settings.__PATH)).Answer
    $merging = (Get-ActiveDisk $vm.Id)[0] -ne $former[0]
    $second = New-RecoveryCheckpoint $vm.Id 2
    $Check.observations['merging when asked'] = $merging
    $Check.observations['second'] = $second.Answer
    if ($second.Settings) { $Check.observations['end of the second'] = Remove-RecoveryCheckpoint ([string]$second.Settings.__PATH) }
    $Check.observations['merge'] = Wait-Merge $vm.Id $former
    $text = Format-Answer $second.Answer
    if (-not $merging) {
        Set-Verdict $Check 'failed' "the merge had ended before the question was asked ($text)"
    } elseif ($second.Answer.succeeded) {
        Set-Verdict $Check 'differs' "it is granted; the wait could be shorter ($text)"
    } else {
        Set-Verdict $Check 'confirmed' $text
    }
}

Add-Check 'L18' -Minutes 2 `
    -Question 'Another backup product at work on the same VM; Replica' `
    -Assumes 'Its reference points leave ours alone; a recovery checkpoint of somebody else is reported and not touched' `
    -Decides 'crates/backup/src/recovery.rs, crates/hyperv/src/checkpoint_list.rs' `
    -Run {
    param($Check)
    $vm = New-LabVm 'L18'
    $ours = Invoke-Round $Check 'ours' $vm
    $one = @(New-Write 10mb 65536)
    Write-LabDisk $vm.Disk $one
    $theirs = Invoke-Round $Check 'theirs' $vm
    $two = @(New-Write 20mb 65536)
    Write-LabDisk $vm.Disk $two
    $Check.observations['they remove theirs'] = Remove-ReferencePoint $theirs.Point.__PATH
    $next = Invoke-Round $Check 'ours again' $vm -Since $ours.Id
    $coverage = Get-Coverage $next ($one + $two)

    $former = Get-ActiveDisk $vm.Id
    $foreign = New-RecoveryCheckpoint $vm.Id 2
    $beside = New-RecoveryCheckpoint $vm.Id 2
    $Check.observations['a second recovery checkpoint beside theirs'] = $beside.Answer
    foreach ($made in $beside, $foreign) {
        if ($made.Settings) { $null = Remove-RecoveryCheckpoint ([string]$made.Settings.__PATH) }
    }
    $Check.observations['merge'] = Wait-Merge $vm.Id $former
    $Check.observations['Replica'] = 'not asked: it needs a second host'
    $text = "our id after their backup: $coverage; second recovery checkpoint: $(Format-Answer $beside.Answer)"
    if ($coverage -eq 'missed') {
        Set-Verdict $Check 'refuted' "another backup takes changes from ours ($text)"
    } elseif ($coverage -eq 'refused') {
        Set-Verdict $Check 'differs' "another backup ends our tracking, which means fulls ($text)"
    } else {
        Set-Verdict $Check 'confirmed' $text
    }
}
