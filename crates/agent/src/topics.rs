//! `help`: topics that belong to no single command, and the help of every command.

use clap::CommandFactory as _;

use crate::cli::Cli;
use crate::failure::{Code, Failure};
use crate::outcome::Outcome;
use crate::output::print;

/// The table of exit codes.
pub const EXIT_CODES: &str = "\
Exit codes

   0  done, nothing to say
   1  failed, none of the below; look
   2  wrong usage or configuration; nothing was tried
   3  partly done: some VMs, disks or files failed, each named
   4  done, with warnings (consistency lowered, disk left out, merge pending); --warnings-ok makes it 0
   5  refused by preflight or because something is in the way; nothing changed
   6  VM, point, disk, path or id not found, or ambiguous (candidates are listed)
   7  busy: another run or program works on the VM or file; try later
   8  damage was found: stored bytes are missing or not what was written; act now
   9  hypervisor or host error: service, rights, checkpoint, an unreadable disk
  10  the repository does not exist
  11  the repository is locked by an upgrade
  12  wrong repository password
  13  storage unreachable after retries, or it refuses the keys
  14  no space: in the storage, on the target, or on the host
 130  interrupted by Ctrl+C; cleaned up, earlier points untouched
 143  the same by SIGTERM

When all parts of some work fail in the same way, that way's code is used; when in different ways, 1.
Codes that are not listed here are failures. With --json the last object on standard output names the code too.
";

const POINTS: &str = "\
Naming a restore point

  7f3a91c2d4e5…   its id, from `points list`; any unique beginning will do
  DC01@latest     the newest point of a VM, by name or id
  DC01@1          the same; DC01@2 is the one before it, and so on

A point is always complete: it holds every disk of the VM as it was at one instant, and restoring it needs no other
point. Any point can be deleted at any time without harm to the others.

What is held (HELD) stays whatever the retention policy says: `points hold`, `points release`. `retention plan` shows which
points the policy keeps and which it would let go; nothing goes before `retention apply`.

How a disk was read (READ): `full` with its reason, or `incremental`: what Hyper-V's change tracking says has changed
since the point before. CHANGED is what differed from that point, STORED what the repository grew by.

Consistency: `application` (the guest froze its applications), `crash` (as after a power cut), `offline` (the VM was off).
";

const ENVIRONMENT: &str = "\
Environment

  E3_REPOSITORY        repository URL; --repo goes before it
  E3_PASSWORD          repository password; --password-file goes before it
  E3_HOST              local or lab:DIR, for `instant` qemu; --host goes before it
  E3_STATE             folder of instant sessions in place of the machine's own; --state goes before it
  E3_CHAP_SECRET, E3_MUTUAL_CHAP_SECRET
                       login secrets of `serve iscsi`; --chap-secret-file and --mutual-chap-secret-file go before them
  E3_CONFIG            configuration file in place of the user's own; --config goes before it
  E3_LOG               filter of traces, such as info or backup=debug; -v goes without it
  NO_COLOR             no colour
  AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_PROFILE, AWS_SHARED_CREDENTIALS_FILE
                       keys for S3, or where they are
  AWS_REGION, AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, AWS_CA_BUNDLE
                       region, service and certificates for S3; the URL goes before them

Configuration file: ~/.config/e3/config.toml (%APPDATA%\\e3\\config.toml), then /etc/e3/config.toml
(%ProgramData%\\e3\\config.toml). Keys: docs/service.md; `config show --origin`
prints what counts. `repo connect` writes the first. Flags go before the
environment, the environment before the files. Passwords are never stored.
";

const RECOVERY: &str = "\
Recovery when the host is gone, and the server too

Needed: this program on any machine, the repository's URL, its password (both are on the recovery kit, see `repo kit`),
and for S3 the keys. Nothing else: no server, no old host, no database. The password is never stored: give the file, or
the prompt, to each command. kit.txt is the recovery kit, or has the password alone in it.

  e3-backup-agent repo connect URL --password-file kit.txt
  e3-backup-agent points list --password-file kit.txt
  e3-backup-agent restore vm VM@latest --host local --folder D:\\VMs --password-file kit.txt

Before the last: the same with --dry-run says what is in the way, without touching anything. --same-id makes the VM itself
instead of a copy; --network OLD=NEW connects it; --power-on starts it. See `restore vm --help`.

No Hyper-V at hand: run the VM straight from the backup under QEMU, in seconds; see docs/instant-restore.md.

  e3-backup-agent instant start VM@latest --host qemu --password-file kit.txt

Or restore the disks to files, and attach them anywhere.

  e3-backup-agent restore disk VM@latest --disk 0 --to disk0.vhdx --password-file kit.txt

No e3 at hand: stock Kopia reads the repository with the same password. Each point is a snapshot of hyperv@HOST.

  kopia repository connect filesystem --path FOLDER          (or s3 --bucket … --endpoint …)
  kopia snapshot list --all
  kopia restore SNAPSHOT ./restored                           disks/*.vhdx attach as they are

Not sure that a point is whole: `verify VM@latest --level full` reads every byte; `DC01@2` is the point before.
A repository that is reached but refuses the password (exit 12): a wrong file; mind its line end and spaces.
";

const TOPICS: [(&str, &str); 4] =
    [("exit-codes", EXIT_CODES), ("points", POINTS), ("environment", ENVIRONMENT), ("recovery", RECOVERY)];

/// Prints a topic, or the long help of the command that the words name.
pub fn help(words: &[String]) -> Result<Outcome, Failure> {
    if let [word] = words
        && let Some((_, text)) = TOPICS.iter().find(|(name, _)| name == word)
    {
        print(text);
        return Ok(Outcome::DONE);
    }
    let mut root = Cli::command();
    root.build();
    let mut command = &mut root;
    for word in words {
        let Some(sub) = command.find_subcommand_mut(word) else {
            let why = format!("there is no topic or command {:?}", words.join(" "));
            return Err(Failure::new("help", "", Code::Usage, why).with_steps(&[
                "choose a topic: exit-codes, points, environment, recovery",
                "see --help for the commands",
            ]));
        };
        command = sub;
    }
    print(&command.render_long_help().to_string());
    Ok(Outcome::DONE)
}
