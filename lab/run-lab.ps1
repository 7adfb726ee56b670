<#
.SYNOPSIS
Asks a real Hyper-V host the questions that decide what e3 may rely on, and writes a report.

.DESCRIPTION
Makes throw-away VMs named e3-lab-<GUID>-..., removes them again, and touches nothing else. In guests that you name, only
recovery checkpoints are made and removed. Takes less than an hour. See docs/windows-lab.md.

.PARAMETER Folder
Where VMs, disks and the report go: a local NTFS or ReFS folder with 8 GB free.

.PARAMETER WindowsGuest
Name of a running VM with Windows, for questions about consistency.

.PARAMETER LinuxGuest
Name of a running VM with Linux, likewise.

.PARAMETER Agent
Path of e3-backup-agent.exe: it is then tried, too, service installation included.

.PARAMETER Only
Ids of checks, such as L4,L12. All, if left out.

.PARAMETER Keep
Keeps VMs and disks, to look at them. The next start offers to remove them.

.EXAMPLE
.\run-lab.ps1 -Folder D:\lab -WindowsGuest DC01 -Agent .\e3-backup-agent.exe
#>
param(
    [Parameter(Mandatory = $true)][string]$Folder,
    [string]$WindowsGuest = '',
    [string]$LinuxGuest = '',
    [string]$Agent = '',
    [string[]]$Only = @(),
    [switch]$Keep
)

Set-StrictMode -Version 1
$ErrorActionPreference = 'Stop'
$ProgressPreference = 'SilentlyContinue'

# Why this host or this shell cannot answer, or nothing.
function Get-Refusal {
    if ($PSVersionTable.PSVersion.Major -ne 5) { return 'start it with powershell.exe (Windows PowerShell 5.1), not pwsh' }
    if (-not [Environment]::Is64BitProcess) { return 'start it in the 64-bit powershell.exe' }
    $identity = New-Object Security.Principal.WindowsPrincipal ([Security.Principal.WindowsIdentity]::GetCurrent())
    if (-not $identity.IsInRole([Security.Principal.WindowsBuiltInRole]::Administrator)) { return 'start it elevated (Run as administrator)' }
    if (-not (Get-Module -ListAvailable -Name Hyper-V)) { return 'the Hyper-V module for Windows PowerShell is not installed' }
    if (-not (Get-Service -Name vmms -ErrorAction SilentlyContinue)) { return 'this machine has no Hyper-V role' }
    if ((Get-Service -Name vmms).Status -ne 'Running') { return 'the service vmms is not running' }
    if ($Agent -and -not (Test-Path -LiteralPath $Agent -PathType Leaf)) { return "there is no file $Agent" }
}

$refusal = Get-Refusal
if ($refusal) {
    Write-Host "The lab cannot run here: $refusal." -ForegroundColor Red
    exit 2
}

foreach ($part in 'report', 'virtdisk', 'wmi', 'checkpoint', 'throwaway', 'checks-checkpoint', 'checks-tracking', 'checks-restore', 'checks-agent') {
    . (Join-Path $PSScriptRoot "$part.ps1")
}

# From `powershell -File` a list comes as one text.
$wanted = @($Only | ForEach-Object { $_ -split ',' } | ForEach-Object { $_.Trim().ToUpperInvariant() } | Where-Object { $_ })
$unknown = @($wanted | Where-Object { @($script:Checks | ForEach-Object { $_.Id }) -notcontains $_ })
if ($unknown.Count -gt 0) {
    Write-Host "There is no check $($unknown -join ', '). There are: $(@($script:Checks | ForEach-Object { $_.Id }) -join ', ')" -ForegroundColor Red
    exit 2
}
# L20 last of the L: it also judges the ids that the others met.
$order = @{ Expression = { $_.Agent } }, @{ Expression = { $_.Id -eq 'L20' } }, @{ Expression = { [int]$_.Id.Substring(1) } }
$selected = @($script:Checks | Where-Object { $wanted.Count -eq 0 -or $wanted -contains $_.Id } | Sort-Object -Property $order)

$null = New-Item -ItemType Directory -Path $Folder -Force
$Folder = (Resolve-Path -LiteralPath $Folder).ProviderPath
if ($Folder -notmatch '^[A-Za-z]:\\') {
    Write-Host "The lab cannot run there: $Folder is not on a local drive." -ForegroundColor Red
    exit 2
}

$prefix = 'e3-lab-' + [Guid]::NewGuid().ToString('N')
$script:Results = @()
$script:Lab = [pscustomobject]@{
    Prefix = $prefix
    Folder = Join-Path $Folder $prefix
    WindowsGuest = $WindowsGuest
    LinuxGuest = $LinuxGuest
    Agent = if ($Agent) { (Resolve-Path -LiteralPath $Agent).ProviderPath } else { '' }
    Keep = [bool]$Keep
    # What exists because of us, to be removed whatever happens.
    Vms = @()
    Planned = @()
    Checkpoints = @()
    ReferencePoints = @()
    Left = @()
    # Ids that were asked with, and the newest id of the file they were asked of (L20).
    IdPairs = @()
}
Remove-Leftovers $Folder
$freeBytes = (New-Object IO.DriveInfo $Folder).AvailableFreeSpace
if ($freeBytes -lt 8gb) {
    Write-Host "The lab cannot run there: $Folder has $([int]($freeBytes / 1mb)) MB free, and needs 8192." -ForegroundColor Red
    exit 2
}
$started = Get-Date
$hostFacts = Get-HostFacts
$reportPath = Join-Path $Folder ('lab-report-{0}-{1}.json' -f $env:COMPUTERNAME, $started.ToString('yyyyMMdd-HHmm'))

Write-Host "e3 lab on $($hostFacts.os) $($hostFacts.build), Hyper-V $($hostFacts.hyperv)"
Write-Host "$($selected.Count) checks, at most $(($selected | Measure-Object -Property Minutes -Sum).Sum) minutes. Ctrl+C stops and cleans up."
try {
    $null = New-Item -ItemType Directory -Path $script:Lab.Folder
    foreach ($check in $selected) { Invoke-Check $check }
} finally {
    # Also after Ctrl+C. Nothing here may write to the pipeline, which is closed by then.
    Write-Host 'Cleaning up ...'
    $null = Remove-EverythingOfLab
    if ($script:Lab.Keep) { Write-Host "Kept: VMs named $prefix-... and $($script:Lab.Folder)" }
    $null = Write-Report $reportPath $hostFacts $started
}
