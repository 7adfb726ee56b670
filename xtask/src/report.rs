//! How a task talks: headings and durations.

use std::time::Duration;

/// Begins a part of the output that a reader can find again.
pub fn heading(text: &str) {
    println!("\n==> {text}");
}

/// `0.42 s`, `7.3 s`, `2 min 05 s`.
pub fn seconds(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match seconds {
        s if s < 1.0 => format!("{s:.2} s"),
        s if s < 120.0 => format!("{s:.1} s"),
        s => format!("{} min {:02.0} s", s as u64 / 60, s % 60.0),
    }
}
