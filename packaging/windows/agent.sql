-- What wixl has no words for; msibuild adds it to the package, a statement a line.
-- The folder of the program goes to the end of the machine's PATH, and with the program.
CREATE TABLE `Environment` (`Environment` CHAR(72) NOT NULL, `Name` CHAR(255) NOT NULL LOCALIZABLE, `Value` CHAR(255) LOCALIZABLE, `Component_` CHAR(72) NOT NULL PRIMARY KEY `Environment`)
INSERT INTO `Environment` (`Environment`, `Name`, `Value`, `Component_`) VALUES ('Path', '=-*PATH', '[~];[INSTALLDIR]', 'Agent')
INSERT INTO `InstallExecuteSequence` (`Action`, `Condition`, `Sequence`) VALUES ('RemoveEnvironmentStrings', '', 3300)
INSERT INTO `InstallExecuteSequence` (`Action`, `Condition`, `Sequence`) VALUES ('WriteEnvironmentStrings', '', 5200)
-- wixl knows no text with variables in it (#%).
INSERT INTO `Registry` (`Registry`, `Root`, `Key`, `Name`, `Value`, `Component_`) VALUES ('EventMessageFile', 2, 'SYSTEM\CurrentControlSet\Services\EventLog\Application\e3-backup-agent', 'EventMessageFile', '#%%SystemRoot%\System32\EventCreate.exe', 'Agent')
