//! The first ten minutes, line by line: the commands that a new user types, and the shape of what they say.
//!
//! `#` in a shape stands for a figure with its unit, `@` for an id, `~` for a date with its time. Where a line has more
//! than the specification's transcript, it is because ours says more, and the comment beside it says what.

mod support;

use support::{Desk, finish};

/// A line with its figures masked and runs of spaces made one.
fn shape(line: &str) -> String {
    let mut words: Vec<String> = Vec::new();
    for word in line.split_whitespace() {
        let bare = word.trim_matches([',', '(', ')', '~']);
        let is_figure = !bare.is_empty()
            && bare.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
            && !matches!(words.last().map(String::as_str), Some("disk" | "format"));
        let is_id = bare.len() >= 8 && bare.bytes().all(|byte| byte.is_ascii_hexdigit());
        let is_date = bare.len() == 10
            && bare.as_bytes()[4] == b'-'
            && bare.get(..4).is_some_and(|year| year.parse::<u16>().is_ok());
        let is_time = bare.len() == 8 && bare.as_bytes()[2] == b':' && bare.as_bytes()[5] == b':';
        let is_unit = ["B", "KiB", "MiB", "GiB", "KiB/s", "MiB/s", "GiB/s", "B/s", "ms", "s", "min"].contains(&bare);
        match words.last_mut() {
            // A figure and its unit are one.
            Some(last) if is_unit && last.trim_start_matches('(') == "#" => last.push_str(&word.replace(bare, "")),
            Some(last) if is_time && last == "~" => {}
            _ if is_date => words.push("~".to_owned()),
            _ if is_id => words.push(word.replace(bare, "@")),
            _ if is_figure => words.push(word.replace(bare, "#")),
            _ => words.push(word.to_owned()),
        }
    }
    words.join(" ")
}

fn shapes(text: &str) -> Vec<String> {
    text.lines().map(shape).collect()
}

#[test]
fn the_first_ten_minutes() {
    let desk = Desk::empty();
    let created = desk.ok(["repo", "create"]);
    let lines = shapes(&created.stdout);
    // Ours says the id too, and the format on a line of its own.
    assert!(lines[0].starts_with("created ") && lines[0].ends_with("repo"), "{created:?}");
    assert_eq!(lines[1], "id @");
    assert_eq!(shape(lines[2].trim()), "format Kopia format 3, BLAKE3-256-128, AES256-GCM-HMAC-SHA256");
    assert!(created.stderr.contains("next ") && created.stderr.contains("lab create ./lab"), "{created:?}");

    desk.ok(["lab", "create", "./lab"]);
    desk.raw_file("server.vhdx.raw", 16, 1);
    desk.ok(["vhd", "convert", "server.vhdx.raw", "server.vhdx"]);
    desk.ok(["lab", "add-vm", "./lab", "DC01", "--disk", "server.vhdx"]);

    // Ours says how much changed, too.
    let full = desk.ok(["backup", "DC01"]);
    assert_eq!(
        shapes(&full.stdout),
        [
            "DC01 full (first run) read # changed # stored # application merged # # #",
            "point @ DC01@latest checked: structure"
        ],
        "{full:?}"
    );
    desk.ok(["lab", "write", "./lab", "DC01", "--mib", "4"]);
    let incremental = desk.ok(["backup", "DC01"]);
    assert_eq!(
        shapes(&incremental.stdout),
        [
            "DC01 incremental read # changed # stored # application merged # # #",
            "point @ DC01@latest checked: structure"
        ],
        "{incremental:?}"
    );

    // Ours has a last column: who holds the point, which nobody does here.
    let listed = desk.ok(["points", "list"]);
    assert_eq!(
        shapes(&listed.stdout),
        [
            "POINT VM WHEN READ CHANGED STORED CONSISTENCY VERIFIED RESTORABLE HELD",
            "@ DC01 ~ incremental # # application structure yes –",
            "@ DC01 ~ full # # application structure yes –",
        ],
        "{listed:?}"
    );
    // Ours names the VM, too.
    let verified = desk.ok(["verify", "DC01@latest", "--level", "full"]);
    assert_eq!(shapes(&verified.stdout), ["@ DC01 every byte read and hashed # # ok"], "{verified:?}");

    let restored = finish(&mut desk.command(["restore", "disk", "DC01@2", "--to", "./yesterday.vhdx"]));
    let told = shapes(&restored.stderr);
    assert_eq!(told[0], "plan disk 0, # with # of data, to ./yesterday.vhdx (# free), about #", "{restored:?}");
    assert_eq!(
        told.last().map(String::as_str),
        Some("next Hyper-V attaches this file as it is; so would what `kopia restore` writes")
    );
    // Ours says the rate, and which disk of which point went where.
    assert_eq!(
        shapes(&restored.stdout),
        ["done # in # # every byte checked DC01 disk 0 of point @ in ./yesterday.vhdx"],
        "{restored:?}"
    );
    assert!(desk.path("yesterday.vhdx").is_file());
}

#[test]
fn shapes_mask_figures_and_nothing_else() {
    for (line, expected) in [
        ("DC01  full (first run)   read 8.1 GiB   merged 1 s", "DC01 full (first run) read # merged #"),
        (
            "plan     disk 0, 127 GiB with 8.1 GiB of data, to x (410 GiB free), about 12 s",
            "plan disk 0, # with # of data, to x (# free), about #",
        ),
        ("c41e07aa  DC01  2026-11-21 03:02:11  incremental", "@ DC01 ~ incremental"),
        ("point 7f3a91c2  DC01@latest   checked: structure", "point @ DC01@latest checked: structure"),
    ] {
        assert_eq!(shape(line), expected, "{line}");
    }
}
