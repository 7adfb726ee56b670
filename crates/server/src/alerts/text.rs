//! The words of a message. Names in it are somebody's: one line, no control characters, escaped where it is HTML.

use serde_json::Value as Json;

/// A message in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    /// The subject of a mail.
    pub subject: String,
    /// Lines of text.
    pub plain: String,
    /// The same as simple HTML.
    pub html: String,
}

/// One line of at most so many characters, without what hides or turns round others.
pub fn line(text: &str, most: usize) -> String {
    let is_hidden = |letter: char| {
        letter.is_control()
            || matches!(letter, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().take(most).map(|letter| if is_hidden(letter) { ' ' } else { letter }).collect()
}

/// For an element or an attribute in double quotes.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            letter => escaped.push(letter),
        }
    }
    escaped
}

/// The words for what became of an alert.
pub fn of_alert(event: &str, payload: &Json, server: &str) -> Text {
    let text = |name: &str| line(payload[name].as_str().unwrap_or_default(), 300);
    let (title, reason) = (text("title"), text("reason"));
    let word = match event {
        "opened" => "ALERT",
        "escalated" => "WORSE",
        "repeated" => "STILL",
        "resolved" => "RESOLVED",
        _ => "TEST",
    };
    let mut lines = vec![title.clone()];
    if !reason.is_empty() {
        lines.push(if event == "resolved" { format!("It was: {reason}") } else { reason });
    }
    if let Some(opened) = payload["opened_at"].as_str() {
        lines.push(format!("Open since {opened}"));
    }
    if let Some(resolved) = payload["resolved_at"].as_str() {
        lines.push(format!("Resolved at {resolved}"));
    }
    if payload["folded"].as_i64().is_some_and(|folded| folded > 0) {
        lines.push(format!("It came back {} times within two hours", payload["folded"]));
    }
    if let Some(id) = payload["alert_id"].as_i64() {
        lines.push(format!("{server}/alerts/{id}"));
    }
    let html: Vec<String> = lines.iter().map(|line| format!("<p>{}</p>", escape(line))).collect();
    Text { subject: format!("[e3] {word}: {title}"), plain: lines.join("\n\n") + "\n", html: html.concat() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_stay_text() {
        let payload = json!({
            "alert_id": 7, "title": "DC01\r\nBcc: all@example.com: at risk", "reason": "<script>\u{202e}&\"",
            "opened_at": "2026-11-27T12:00:00.000Z", "folded": 4,
        });
        let text = of_alert("opened", &payload, "https://backup.example.com");
        assert_eq!(text.subject, "[e3] ALERT: DC01  Bcc: all@example.com: at risk");
        assert!(text.html.contains("&lt;script&gt; &amp;&quot;") && !text.html.contains("<script>"), "{}", text.html);
        assert!(text.plain.contains("https://backup.example.com/alerts/7"), "{}", text.plain);
        assert!(text.plain.contains("4 times"), "{}", text.plain);
    }
}
