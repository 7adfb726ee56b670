# Bringing VMs back, and what the host offers for later parts of the product. Spec hyperv 6.3, 6.5, 7, 10.3.

Add-Check 'L12' -Minutes 2 `
    -Question 'Import of a recovery checkpoint''s .vmcx, with its .vmrs and .vmgs, under a new id' `
    -Assumes 'It is imported as ...\Virtual Machines\<GUID>.vmcx, validated and realized' `
    -Decides 'crates/hyperv/src/recreate/import.rs; if refuted, recreate/build.rs becomes the only way' `
    -Run {
    param($Check)
    $vm = New-LabVm 'L12'
    $files = Save-Definition $Check $vm
    $disk = Join-Path $files.Folder 'restored.vhdx'
    Copy-Item -LiteralPath $vm.Disk -Destination $disk
    $planned = Import-Definition $Check 'import' $files.Definition $true
    if (-not $planned) {
        Set-Verdict $Check 'refuted' "not imported: $(Format-Answer $Check.observations['import'])"
        return
    }
    $service = Get-V2Service 'Msvm_VirtualSystemManagementService'
    $steps = [ordered]@{}
    $Check.observations['steps'] = $steps
    $checkpoints = @(Get-Associated $planned.__PATH $script:CheckpointOfVm $script:Settings)
    $Check.observations['checkpoints in the definition'] = @($checkpoints | ForEach-Object { [string]$_.VirtualSystemType })
    foreach ($one in $checkpoints) { $steps["drop $($one.InstanceID)"] = Remove-RecoveryCheckpoint $one.__PATH }
    $settings = Get-V2Settings $planned.__PATH
    $roots = @{ ElementName = $script:Lab.Prefix + '-L12-imported' }
    foreach ($name in 'ConfigurationDataRoot', 'SnapshotDataRoot', 'SuspendDataRoot', 'SwapFileDataRoot', 'GuestStateDataRoot') {
        $roots[$name] = Join-Path $files.Folder 'new'
    }
    $steps.name_and_roots = Invoke-V2 $service 'ModifySystemSettings' @{ SystemSettings = Get-SettingText $settings $roots }
    $medium = Get-DiskSetting $settings.__PATH | Select-Object -First 1
    $steps.disk = Invoke-V2 $service 'ModifyResourceSettings' @{
        ResourceSettings = [string[]]@(Get-SettingText $medium @{ HostResource = [string[]]@($disk) })
    }
    $steps.validate = Invoke-V2 $service 'ValidatePlannedSystem' @{ PlannedSystem = [string]$planned.__PATH }
    $steps.realize = Invoke-V2 $service 'RealizePlannedSystem' @{ PlannedSystem = [string]$planned.__PATH }
    if ($steps.realize.succeeded) {
        $script:Lab.Vms += [string]$planned.Name
        $script:Lab.Planned = @($script:Lab.Planned | Where-Object { $_ -ne [string]$planned.__PATH })
        $Check.observations['start'] = try {
            Start-VM -VM (Get-VM -Id $planned.Name)
            'started'
        } catch { $_.Exception.Message }
    }
    $failed = @($steps.Keys | Where-Object { -not $steps[$_].succeeded })
    if ($failed.Count -gt 0) {
        Set-Verdict $Check 'refuted' "failed at $($failed[0]): $(Format-Answer $steps[$failed[0]])"
    } elseif ($Check.observations['start'] -ne 'started') {
        Set-Verdict $Check 'differs' "realized, but it does not start: $($Check.observations['start'])"
    } else {
        Set-Verdict $Check 'confirmed' 'imported, validated, realized, started'
    }
}

Add-Check 'L13' -Minutes 1 `
    -Question 'Import under an id that is taken: which code' `
    -Assumes 'Refused by import or validation. The product asks before and refuses by itself' `
    -Decides 'crates/hyperv/src/recreate/import.rs (refuse_taken_id), crates/hyperv/src/error.rs' `
    -Run {
    param($Check)
    $vm = New-LabVm 'L13'
    $files = Save-Definition $Check $vm
    $planned = Import-Definition $Check 'import' $files.Definition $false
    $text = Format-Answer $Check.observations['import']
    if (-not $planned) {
        Set-Verdict $Check 'confirmed' "import: $text"
        return
    }
    $answer = Invoke-V2 (Get-V2Service 'Msvm_VirtualSystemManagementService') 'ValidatePlannedSystem' @{ PlannedSystem = [string]$planned.__PATH }
    $Check.observations['validate'] = $answer
    $Check.observations['removal'] = Remove-PlannedVm $planned.__PATH
    if ($answer.succeeded) {
        Set-Verdict $Check 'differs' "neither import nor validation minds ($text); only our own question protects the VM"
    } else {
        Set-Verdict $Check 'confirmed' "import: $text; validation: $(Format-Answer $answer)"
    }
}

# A recovery checkpoint's three files, copied to where an import wants them.
function Save-Definition {
    param($Check, $Vm)
    $folder = Join-Path $Vm.Folder 'definition'
    $machines = Join-Path $folder 'Virtual Machines'
    $null = New-Item -ItemType Directory -Path $machines
    $former = Get-ActiveDisk $Vm.Id
    $made = New-RecoveryCheckpoint $Vm.Id 2
    if (-not $made.Settings) { throw "no recovery checkpoint: $(Format-Answer $made.Answer)" }
    $source = Join-Path $made.Settings.ConfigurationDataRoot $made.Settings.ConfigurationFile
    $stem = [IO.Path]::GetFileNameWithoutExtension($source)
    $Check.observations['configuration file'] = [string]$made.Settings.ConfigurationFile
    $hasGuestState = Test-Property $made.Settings 'GuestStateFile'
    $Check.observations['guest state file'] = if ($hasGuestState) { [string]$made.Settings.GuestStateFile } else { '(no such property)' }
    $copied = @()
    foreach ($extension in '.vmcx', '.vmrs', '.vmgs') {
        $file = [IO.Path]::ChangeExtension($source, $extension)
        if (-not (Test-Path -LiteralPath $file)) { continue }
        Copy-Item -LiteralPath $file -Destination (Join-Path $machines ($stem + $extension))
        $copied += $extension
    }
    $Check.observations['files of the checkpoint'] = $copied
    $Check.observations['removal of the checkpoint'] = Remove-RecoveryCheckpoint ([string]$made.Settings.__PATH)
    $Check.observations['merge'] = Wait-Merge $Vm.Id $former
    [pscustomobject]@{ Folder = $folder; Definition = Join-Path $machines ($stem + '.vmcx') }
}

# The planned VM, or none; the answer goes into the report. By output, by job, or as a new one that bears the lab's name: a
# planned VM of somebody else, made meanwhile, must not be taken for ours.
function Import-Definition {
    param($Check, [string]$Label, [string]$File, [bool]$NewId)
    $before = @(Get-PlannedVm | ForEach-Object { $_.__PATH })
    $answer = Invoke-V2 (Get-V2Service 'Msvm_VirtualSystemManagementService') 'ImportSystemDefinition' @{
        SystemDefinitionFile = $File; SnapshotFolder = ''; GenerateNewSystemIdentifier = $NewId
    }
    $Check.observations[$Label] = $answer
    $output = [string]$answer.outputs['ImportedSystem']
    $planned = $null
    if ($output -and $output -ne '(null)') {
        $planned = [wmi]$output
    } elseif ($answer.job) {
        $planned = Get-Associated ([string]$answer.outputs['Job']) 'Msvm_AffectedJobElement' 'Msvm_PlannedComputerSystem' |
            Select-Object -First 1
    }
    if (-not $planned) {
        $planned = Get-PlannedVm | Where-Object { $before -notcontains $_.__PATH -and $_.ElementName -match $script:LabName } |
            Select-Object -First 1
    }
    if ($planned) { $script:Lab.Planned += [string]$planned.__PATH }
    $planned
}

function Get-PlannedVm { Find-V2 'SELECT * FROM Msvm_PlannedComputerSystem' }

function Remove-PlannedVm {
    param([string]$Path)
    $answer = Invoke-V2 (Get-V2Service 'Msvm_VirtualSystemManagementService') 'DestroySystem' @{ AffectedSystem = $Path }
    if ($answer.succeeded) { $script:Lab.Planned = @($script:Lab.Planned | Where-Object { $_ -ne $Path }) }
    $answer
}

Add-Check 'L14' -Minutes 0 `
    -Question 'Storage migration of a VM whose leaf is a differencing disk on another volume' `
    -Assumes 'That it works (spec 7.5)' `
    -Decides 'instant restore, which is not in the product yet' `
    -Run { param($Check) Set-Verdict $Check 'skipped' 'not run yet: it belongs to instant restore' }

Add-Check 'L15' -Minutes 0 `
    -Question 'Parent VHDX on an iSCSI LUN: rights, read-only volume, loopback under load' `
    -Assumes 'That it works (spec 7.A)' `
    -Decides 'instant restore, which is not in the product yet' `
    -Run { param($Check) Set-Verdict $Check 'skipped' 'not run yet: it needs our iSCSI target and belongs to instant restore' }

Add-Check 'L19' -Minutes 1 `
    -Question 'WebClient: is it there, and with which settings' `
    -Assumes 'It may be missing or stopped' `
    -Decides 'drive mapping, which is not in the product yet' `
    -Run {
    param($Check)
    $service = Get-WmiObject -Class Win32_Service -Filter "Name = 'WebClient'"
    $feature = Get-WmiObject -Class Win32_OptionalFeature -Filter "Name = 'WebDAV-Redirector'"
    $key = 'HKLM:\SYSTEM\CurrentControlSet\Services\WebClient\Parameters'
    $values = if (Test-Path $key) { Get-ItemProperty $key } else { $null }
    $Check.observations['service'] = if ($service) { "$($service.State), $($service.StartMode)" } else { 'not there' }
    $Check.observations['feature WebDAV-Redirector'] = if ($feature) { "InstallState $($feature.InstallState)" } else { 'not there' }
    foreach ($name in 'BasicAuthLevel', 'FileSizeLimitInBytes', 'FileAttributesLimitInBytes', 'ServerNotFoundCacheLifeTimeInSec') {
        $Check.observations[$name] = if ($values) { $values.$name } else { '(none)' }
    }
    Set-Verdict $Check 'confirmed' "service: $($Check.observations['service']); feature: $($Check.observations['feature WebDAV-Redirector'])"
}
