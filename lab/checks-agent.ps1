# The product itself on this host: what the other checks ask of Hyper-V, asked of e3-backup-agent. Run with -Agent only.

# Runs the agent with JSON output. Start-Process, because Windows PowerShell takes a line on standard error for a failure.
function Invoke-Agent {
    param([string[]]$Arguments, [int]$LimitSeconds = 600)
    $out = Join-Path $script:Lab.Folder 'agent.out'
    $err = Join-Path $script:Lab.Folder 'agent.err'
    $line = ($Arguments | ForEach-Object { if ($_ -match '\s') { '"' + $_ + '"' } else { $_ } }) -join ' '
    $clock = [Diagnostics.Stopwatch]::StartNew()
    $process = Start-Process -FilePath $script:Lab.Agent -ArgumentList $line -NoNewWindow -PassThru `
        -RedirectStandardOutput $out -RedirectStandardError $err
    # The exit code is only kept for a process whose handle was asked for before it ended.
    $null = $process.Handle
    if (-not $process.WaitForExit($LimitSeconds * 1000)) {
        $process.Kill()
        throw "e3-backup-agent $line did not end within $LimitSeconds s"
    }
    [pscustomobject]@{
        Line = $line
        Exit = $process.ExitCode
        Out = [IO.File]::ReadAllText($out)
        Err = [IO.File]::ReadAllText($err)
        ElapsedMs = $clock.ElapsedMilliseconds
    }
}

# What of an answer goes into the report: the last object of standard output holds the result or the error.
function Get-AgentFacts {
    param($Answer)
    $last = @($Answer.Out -split "`r?`n" | Where-Object { $_.Trim() }) | Select-Object -Last 1
    [ordered]@{
        arguments = $Answer.Line
        exit = $Answer.Exit
        elapsed_ms = $Answer.ElapsedMs
        last_line = $last
        errors = $Answer.Err
    }
}

Add-Check 'A1' -Minutes 1 -Agent `
    -Question 'Does the agent see the VMs of this host' `
    -Assumes 'vm list names every VM that Get-VM names' `
    -Decides 'crates/hyperv/src/windows, crates/hyperv/src/inventory.rs' `
    -Run {
    param($Check)
    $vm = New-LabVm 'A1'
    $list = Invoke-Agent @('vm', 'list', '--host', 'local', '--json')
    $show = Invoke-Agent @('vm', 'show', $vm.Id, '--host', 'local', '--json')
    # The list names VMs of others, so only counts of it are kept.
    $missing = @(Get-VM | Where-Object { $list.Out -notmatch $_.VMId.ToString() }).Count
    $Check.observations['vm list'] = [ordered]@{ exit = $list.Exit; elapsed_ms = $list.ElapsedMs; vms = @(Get-VM).Count; missing = $missing }
    $Check.observations['vm show'] = [ordered]@{ exit = $show.Exit; elapsed_ms = $show.ElapsedMs; output = $show.Out; errors = $show.Err }
    if ($list.Exit -ne 0) { $Check.observations['vm list'].errors = $list.Out + $list.Err }
    if ($list.Exit -eq 0 -and $show.Exit -eq 0 -and $missing -eq 0) {
        Set-Verdict $Check 'confirmed' "$(@(Get-VM).Count) VMs in $($list.ElapsedMs) ms"
    } else {
        Set-Verdict $Check 'refuted' "vm list: exit $($list.Exit), $missing VMs missing; vm show: exit $($show.Exit)"
    }
}

Add-Check 'A2' -Minutes 4 -Agent `
    -Question 'Full, incremental and restore with a folder repository: are the restored bytes those of the disk' `
    -Assumes 'The second point is incremental; each restored disk equals the disk as it was; nothing of ours stays on the VM' `
    -Decides 'everything' `
    -Run {
    param($Check)
    $vm = New-LabVm 'A2' -DiskBytes 256mb
    $repository = Join-Path $vm.Folder 'repository'
    $common = '--repo', $repository, '--json'
    $known = [ordered]@{}
    $steps = [ordered]@{}
    $former = $env:E3_PASSWORD
    $env:E3_PASSWORD = [Guid]::NewGuid().ToString()
    try {
        $steps.create = Invoke-Agent (@('repo', 'create') + $common)
        foreach ($run in 'full', 'incremental') {
            $at = if ($run -eq 'full') { 1mb } else { 100mb }
            Write-LabDisk $vm.Disk @((New-Write $at 8mb), (New-Write 200mb 65536))
            $known[$run] = Get-DiskHash $vm.Disk
            $steps["backup, $run"] = Invoke-Agent (@('backup', $vm.Id, '--host', 'local', '--consistency', 'crash') + $common)
        }
        foreach ($number in 1, 2) {
            $target = Join-Path $vm.Folder "restored-$number.vhdx"
            $steps["restore of $number"] = Invoke-Agent (@('restore', 'disk', "$($vm.Id)@$number", '--to', $target) + $common)
        }
    } finally {
        $env:E3_PASSWORD = $former
    }
    foreach ($step in $steps.Keys) { $Check.observations[$step] = Get-AgentFacts $steps[$step] }
    $equal = [ordered]@{
        newest = (Get-DiskHash (Join-Path $vm.Folder 'restored-1.vhdx')) -eq $known.incremental
        oldest = (Get-DiskHash (Join-Path $vm.Folder 'restored-2.vhdx')) -eq $known.full
    }
    $Check.observations['restored bytes equal'] = $equal
    $Check.observations['left on the VM'] = [ordered]@{
        recovery_checkpoints = @(Get-RecoveryCheckpoint $vm.Id).Count
        reference_points = @(Get-ReferencePoint $vm.Id).Count
        disk = (Get-ActiveDisk $vm.Id)[0] -eq $vm.Disk
    }
    $second = $steps['backup, incremental'].Out
    $isIncremental = $second -match '"mode"\s*:\s*"incremental"'
    # 4 is done with warnings, such as a merge that was still going on.
    $failed = @($steps.Keys | Where-Object { $steps[$_].Exit -notin 0, 4 })
    $warned = @($steps.Keys | Where-Object { $steps[$_].Exit -eq 4 })
    if ($failed.Count -gt 0) {
        Set-Verdict $Check 'refuted' "exit $($steps[$failed[0]].Exit) at $($failed[0])"
    } elseif ($equal.Values -contains $false) {
        Set-Verdict $Check 'refuted' 'a restored disk differs from the disk as it was'
    } elseif (-not $isIncremental -or $warned.Count -gt 0 -or @(Get-RecoveryCheckpoint $vm.Id).Count -gt 0) {
        Set-Verdict $Check 'differs' "bytes are right; second point incremental: $isIncremental; warnings at: $($warned -join ', ')"
    } else {
        Set-Verdict $Check 'confirmed' 'both points restore to the very bytes, the second was incremental'
    }
}

function Get-DiskHash {
    param([string]$Path)
    Use-AttachedDisk $Path $true { param($attached) $attached.Sha256() }
}

Add-Check 'A3' -Minutes 1 -Agent `
    -Question 'Is the service installed, seen and removed again' `
    -Assumes 'service install, status and remove end with 0, and the service manager agrees' `
    -Decides 'crates/agent/src/service' `
    -Run {
    param($Check)
    $name = 'e3-backup-agent'
    if (Get-Service -Name $name -ErrorAction SilentlyContinue) {
        Set-Verdict $Check 'skipped' 'the service is installed on this host already, and is left alone'
        return
    }
    $there = @()
    try {
        foreach ($step in 'install', 'status') {
            $Check.observations["service $step"] = Get-AgentFacts (Invoke-Agent @('service', $step, '--json') 60)
        }
        $there += [bool](Get-Service -Name $name -ErrorAction SilentlyContinue)
        $Check.observations['as the service manager has it'] = Get-WmiObject -Class Win32_Service -Filter "Name = '$name'" |
            ForEach-Object { [ordered]@{ start = $_.StartMode; delayed = $_.DelayedAutoStart; account = $_.StartName; state = $_.State } }
    } finally {
        $Check.observations['service remove'] = Get-AgentFacts (Invoke-Agent @('service', 'remove', '--yes', '--json') 60)
    }
    $there += [bool](Get-Service -Name $name -ErrorAction SilentlyContinue)
    $exits = @('service install', 'service remove' | ForEach-Object { $Check.observations[$_].exit })
    if ($there[0] -and -not $there[1] -and ($exits -join ',') -eq '0,0') {
        Set-Verdict $Check 'confirmed' 'installed and gone again'
    } else {
        Set-Verdict $Check 'refuted' "there after install: $($there[0]), after remove: $($there[1]); exits $($exits -join ', ')"
    }
}
