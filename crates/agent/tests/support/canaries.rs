//! Secrets that are planted, and searched for in every usual encoding.
#![allow(dead_code, reason = "each test file uses its own part")]

/// The same bytes as somebody might write them.
fn encodings(canary: &str) -> Vec<(&'static str, Vec<u8>)> {
    let bytes = canary.as_bytes();
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let url: String = bytes.iter().map(|byte| percent(*byte, "%20")).collect();
    let form: String = bytes.iter().map(|byte| percent(*byte, "+")).collect();
    let mut all = vec![
        ("raw", bytes.to_vec()),
        ("hex", hex.clone().into_bytes()),
        ("HEX", hex.to_uppercase().into_bytes()),
        ("URL", url.clone().into_bytes()),
        ("url", lower_escapes(&url).into_bytes()),
        ("form", form.into_bytes()),
        ("JSON", serde_json::to_string(canary).unwrap().trim_matches('"').replace('/', "\\/").into_bytes()),
    ];
    // Base64 within a longer text begins at any of three places; the ends depend on the neighbours and are left out.
    for shift in 0..3 {
        let padded = [&vec![0; shift][..], bytes].concat();
        for alphabet in ["+/", "-_"] {
            let text = base64(&padded, alphabet);
            let (first, last) = (shift + usize::from(shift > 0), padded.len() / 3 * 4);
            all.push(("base64", text.as_bytes()[first..last].to_vec()));
        }
    }
    all
}

fn percent(byte: u8, space: &str) -> String {
    match byte {
        b' ' => space.to_owned(),
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    }
}

/// `%2F` as `%2f`, and nothing else changed.
fn lower_escapes(url: &str) -> String {
    let mut escape = 0;
    url.chars()
        .map(|c| match (c, escape) {
            ('%', _) => {
                escape = 2;
                c
            }
            (_, 0) => c,
            _ => {
                escape -= 1;
                c.to_ascii_lowercase()
            }
        })
        .collect()
}

/// Without the fill at its end.
pub fn base64(bytes: &[u8], last_two: &str) -> String {
    let letters: Vec<char> = ('A'..='Z').chain('a'..='z').chain('0'..='9').chain(last_two.chars()).collect();
    bytes
        .chunks(3)
        .flat_map(|three| {
            let group =
                three.iter().fold(0_u32, |group, byte| group << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
            (0..=three.len()).map(move |digit| (group >> (18 - 6 * digit) & 63) as usize)
        })
        .map(|digit| letters[digit])
        .collect()
}

/// Names of the canaries, and of their encodings, that are in these bytes.
pub struct Search(Vec<(&'static str, &'static str, Vec<u8>)>);

impl Search {
    /// A search for these, each by its name.
    pub fn of(canaries: &[(&'static str, &str)]) -> Self {
        let each = canaries
            .iter()
            .flat_map(|(name, canary)| encodings(canary).into_iter().map(|(encoding, bytes)| (*name, encoding, bytes)));
        Self(each.collect())
    }

    /// What is there, as `name (encoding)`.
    pub fn found(&self, bytes: &[u8]) -> Vec<String> {
        let has = |needle: &[u8]| {
            let first = needle[0];
            let mut from = 0;
            while let Some(at) = bytes[from..].iter().position(|byte| *byte == first) {
                from += at;
                if bytes[from..].starts_with(needle) {
                    return true;
                }
                from += 1;
            }
            false
        };
        self.0.iter().filter(|(_, _, needle)| has(needle)).map(|(name, code, _)| format!("{name} ({code})")).collect()
    }
}
