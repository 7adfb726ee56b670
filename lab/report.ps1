# Checks as a list, their verdicts, and the report.
#
# A verdict is about the product: 'confirmed', the host does what we rely on; 'differs', it does something else that is
# safe, and something may be relaxed or worded anew; 'refuted', we rely on something that is not so; 'skipped', not asked;
# 'failed', asked without an answer.

$script:Checks = @()

function Add-Check {
    param([string]$Id, [int]$Minutes, [string]$Question, [string]$Assumes, [string]$Decides, [scriptblock]$Run, [switch]$Agent)
    $script:Checks += [pscustomobject]@{
        Id = $Id; Minutes = $Minutes; Question = $Question; Assumes = $Assumes; Decides = $Decides; Run = $Run; Agent = [bool]$Agent
    }
}

function Set-Verdict {
    param($Check, [string]$Verdict, [string]$Text)
    $Check.verdict = $Verdict
    $Check.text = $Text
}

# Runs one check and prints what came of it. Its VMs go at once: an hour of checks needs the memory of one.
function Invoke-Check {
    param($Definition)
    $check = [ordered]@{
        id = $Definition.Id
        question = $Definition.Question
        assumes = $Definition.Assumes
        decides = $Definition.Decides
        verdict = 'failed'
        text = 'it was interrupted'
        started = (Get-Date).ToUniversalTime().ToString('o')
        seconds = 0
        observations = [ordered]@{}
    }
    $script:Results += , $check
    Write-Host ''
    Write-Host ("{0}  {1}  (up to {2} min)" -f $Definition.Id, $Definition.Question, [Math]::Max(1, $Definition.Minutes))
    $clock = [Diagnostics.Stopwatch]::StartNew()
    try {
        if ($Definition.Agent -and -not $script:Lab.Agent) {
            Set-Verdict $check 'skipped' 'give the program with -Agent'
        } else {
            $null = & $Definition.Run $check
        }
    } catch {
        Set-Verdict $check 'failed' ($_.Exception.GetBaseException().Message)
        $check.failed_at = $_.InvocationInfo.PositionMessage
    } finally {
        $check.seconds = [int]$clock.Elapsed.TotalSeconds
    }
    $colours = @{ confirmed = 'Green'; differs = 'Yellow'; refuted = 'Red'; skipped = 'Gray'; failed = 'Magenta' }
    Write-Host ("    {0,-9}  {1}" -f $check.verdict, $check.text) -ForegroundColor $colours[$check.verdict]
    Write-Host ("    {0} s; decides: {1}" -f $check.seconds, $check.decides)
    if (-not $script:Lab.Keep) {
        foreach ($id in @($script:Lab.Vms)) {
            try {
                Remove-LabVm $id
                $script:Lab.Vms = @($script:Lab.Vms | Where-Object { $_ -ne $id })
            } catch {
                Write-Host "    VM $id is removed later: $($_.Exception.Message)"
            }
        }
    }
}

function Get-HostFacts {
    $os = Get-WmiObject -Class Win32_OperatingSystem
    $current = Get-ItemProperty 'HKLM:\SOFTWARE\Microsoft\Windows NT\CurrentVersion'
    $cluster = Get-Service -Name 'ClusSvc' -ErrorAction SilentlyContinue
    $volume = Get-WmiObject -Class Win32_Volume -Filter "DriveLetter = '$([IO.Path]::GetPathRoot($script:Lab.Folder).Substring(0, 2))'"
    [ordered]@{
        computer = $env:COMPUTERNAME
        os = $os.Caption
        build = '{0}.{1}' -f $os.BuildNumber, $current.UBR
        culture = (Get-Culture).Name
        powershell = $PSVersionTable.PSVersion.ToString()
        hyperv = (Get-Item (Join-Path $env:SystemRoot 'System32\vmms.exe')).VersionInfo.ProductVersion
        virtdisk = (Get-Item (Join-Path $env:SystemRoot 'System32\virtdisk.dll')).VersionInfo.ProductVersion
        configuration_versions = @(Get-VMHostSupportedVersion | ForEach-Object { $_.Version.ToString() })
        default_configuration_version = [string](Get-VMHostSupportedVersion -Default).Version
        cluster_service = if ($cluster) { [string]$cluster.Status } else { 'not there' }
        volume = if ($volume) { $volume.FileSystem } else { 'no drive letter' }
    }
}

# Console and file say the same; the file holds everything that was seen.
function Write-Report {
    param([string]$Path, $HostFacts, [datetime]$Started)
    $report = [ordered]@{
        format = 'e3-lab-report/1'
        host = $HostFacts
        started = $Started.ToUniversalTime().ToString('o')
        minutes = [Math]::Round(((Get-Date) - $Started).TotalMinutes, 1)
        given_guests = @($script:Lab.WindowsGuest, $script:Lab.LinuxGuest | Where-Object { $_ })
        not_removed = @($script:Lab.Left)
        checks = @($script:Results)
    }
    [IO.File]::WriteAllText($Path, (ConvertTo-Json $report -Depth 12), (New-Object System.Text.UTF8Encoding $false))
    Write-Host ''
    Write-Host 'Summary'
    foreach ($check in $script:Results) { Write-Host ('  {0,-4} {1,-9}  {2}' -f $check.id, $check.verdict, $check.text) }
    foreach ($left in $script:Lab.Left) { Write-Host "  not removed: $left" -ForegroundColor Red }
    Write-Host ''
    Write-Host "Report: $Path"
}
