# Hyper-V's WMI provider, raw: what a method returned, what its job said, and how long it took. Cmdlets of the Hyper-V
# module would hide all three. Spec hyperv 1.7, 8.1, 8.2, 8.7.

$script:V2 = 'root\virtualization\v2'
$script:UnfinishedJobStates = 2, 3, 4, 5, 6, 11, 12
$script:SuccessfulJobStates = 7, 32768

function Find-V2 {
    param([string]$Query)
    Get-WmiObject -Namespace $script:V2 -Query $Query
}

function Get-Associated {
    param([string]$Path, [string]$Association, [string]$ResultClass)
    Find-V2 ('ASSOCIATORS OF {' + $Path + '} WHERE AssocClass = ' + $Association + ' ResultClass = ' + $ResultClass)
}

# Services are singletons whose keys differ between versions; the first instance is the service.
function Get-V2Service {
    param([string]$Class)
    $service = Find-V2 "SELECT * FROM $Class" | Select-Object -First 1
    if (-not $service) { throw "this host has no $Class" }
    $service
}

function Get-V2Vm {
    param([string]$Id)
    $vm = Find-V2 "SELECT * FROM Msvm_ComputerSystem WHERE Name = '$Id'" | Select-Object -First 1
    if (-not $vm) { throw "there is no VM $Id" }
    $vm
}

function Get-V2Settings {
    param([string]$SystemPath)
    Get-Associated $SystemPath 'Msvm_SettingsDefineState' 'Msvm_VirtualSystemSettingData' | Select-Object -First 1
}

function Test-Property {
    param($Instance, [string]$Name)
    @($Instance.psbase.Properties | ForEach-Object { $_.Name }) -contains $Name
}

# Changes properties, those that this version of Windows has, and gives the whole instance as the text that methods take.
function Get-SettingText {
    param($Instance, [hashtable]$Properties)
    foreach ($name in $Properties.Keys) {
        if (Test-Property $Instance $name) { $Instance.psbase.Properties[$name].Value = $Properties[$name] }
    }
    $Instance.psbase.GetText([System.Management.TextFormat]::CimDtd20)
}

function New-SettingText {
    param([string]$Class, [hashtable]$Properties)
    $instance = ([wmiclass]('\\.\' + $script:V2 + ':' + $Class)).CreateInstance()
    Get-SettingText $instance $Properties
}

# Calls a method and waits for its job. Never throws for a refusal: the refusal is what we came for.
function Invoke-V2 {
    param($Object, [string]$Method, [hashtable]$Parameters = @{}, [int]$LimitSeconds = 300)
    $clock = [Diagnostics.Stopwatch]::StartNew()
    $answer = [ordered]@{ method = $Method; succeeded = $false; return_value = $null; outputs = [ordered]@{} }
    try {
        $in = $Object.psbase.GetMethodParameters($Method)
        foreach ($name in $Parameters.Keys) { $in.psbase.Properties[$name].Value = $Parameters[$name] }
        $out = $Object.psbase.InvokeMethod($Method, $in, $null)
        $answer.return_value = [uint32]$out.psbase.Properties['ReturnValue'].Value
        foreach ($property in $out.psbase.Properties) {
            if ($property.Name -eq 'ReturnValue') { continue }
            $answer.outputs[$property.Name] = if ($null -eq $property.Value) { '(null)' } else { $property.Value }
        }
        $answer.returned_after_ms = $clock.ElapsedMilliseconds
        $answer.succeeded = $answer.return_value -eq 0
        if ($answer.return_value -eq 4096) {
            $answer.job = Wait-V2Job ([string]$answer.outputs['Job']) $LimitSeconds
            $answer.succeeded = $script:SuccessfulJobStates -contains $answer.job.state
        }
    } catch {
        $cause = $_.Exception.GetBaseException()
        $answer.exception = $cause.Message
        $answer.hresult = '0x{0:X8}' -f $cause.HResult
        if ($cause -is [System.Management.ManagementException]) { $answer.wmi_status = '0x{0:X8}' -f [int]$cause.ErrorCode }
    }
    $answer.elapsed_ms = $clock.ElapsedMilliseconds
    $answer
}

function Wait-V2Job {
    param([string]$Path, [int]$LimitSeconds)
    $clock = [Diagnostics.Stopwatch]::StartNew()
    $job = [wmi]$Path
    $cancelled = $false
    try {
        while ((Test-Unfinished $job) -and $clock.Elapsed.TotalSeconds -lt $LimitSeconds) {
            Start-Sleep -Milliseconds 200
            $job.psbase.Get()
        }
    } finally {
        # After the limit, and after Ctrl+C. A cancelled job may still complete, and what it made must not be lost, so it
        # is waited for all the same.
        if (Test-Unfinished $job) {
            $cancelled = $true
            if ($job.Cancellable) { $null = Invoke-V2 $job 'RequestStateChange' @{ RequestedState = [uint16]4 } }
            while ((Test-Unfinished $job) -and $clock.Elapsed.TotalSeconds -lt $LimitSeconds + 300) {
                Start-Sleep -Milliseconds 200
                $job.psbase.Get()
            }
        }
    }
    $texts = @()
    try {
        $errors = $job.psbase.InvokeMethod('GetErrorEx', $null, $null)
        $texts = @($errors.psbase.Properties['Errors'].Value | Where-Object { $_ } | ForEach-Object { Get-MessageOf $_ })
    } catch {
        $texts = @("GetErrorEx: $($_.Exception.Message)")
    }
    $all = (@([string]$job.ErrorDescription) + $texts) -join "`n"
    [ordered]@{
        class = [string]$job.__CLASS
        type = $job.JobType
        state = [int]$job.JobState
        error_code = $job.ErrorCode
        error_description = [string]$job.ErrorDescription
        errors = $texts
        codes = @([regex]::Matches($all, '0x[0-9A-Fa-f]{8}') | ForEach-Object { $_.Value } | Select-Object -Unique)
        cancelled_by_us = $cancelled
        elapsed_ms = $clock.ElapsedMilliseconds
    }
}

function Test-Unfinished {
    param($Job)
    $script:UnfinishedJobStates -contains [int]$Job.JobState
}

# The message of an embedded Msvm_Error.
function Get-MessageOf {
    param([string]$Text)
    try {
        $node = ([xml]$Text).SelectSingleNode("//PROPERTY[@NAME='Message']/VALUE")
        if ($node) { return $node.InnerText }
    } catch { }
    $Text
}

# How an answer reads in a sentence.
function Format-Answer {
    param($Answer)
    if ($Answer.exception) { return "refused with $($Answer.hresult): $($Answer.exception)" }
    $text = "returned $($Answer.return_value)"
    if ($Answer.job) {
        $text += ", job state $($Answer.job.state), code $($Answer.job.error_code) $($Answer.job.codes -join ' ')"
    }
    "$text after $($Answer.elapsed_ms) ms"
}
