//! A message as mail, through `lettre`.

use std::time::Duration;

use lettre::address::Envelope;
use lettre::message::{Mailbox, MultiPart};
use lettre::{Address, Message, SmtpTransport, Transport as _};

use super::outbox::Trouble;
use super::text::Text;
use crate::settings::Mail;

/// A server that does not answer within this is away.
const PATIENCE: Duration = Duration::from_secs(30);

/// One mail.
#[derive(Debug)]
pub struct Letter {
    /// Addresses with commas between them.
    pub to: String,
    /// The receivers do not see each other.
    pub is_blind: bool,
    /// What it says.
    pub text: Text,
    /// The same however often it is sent, so that a copy is known as one.
    pub id: String,
    /// Mails of one alert are one thread.
    pub thread: Option<String>,
}

/// The addresses of a list; the first that is none.
pub fn addresses(list: &str) -> Result<Vec<Address>, String> {
    let parts = list.split(',').map(str::trim).filter(|part| !part.is_empty());
    let addresses = parts.map(|part| part.parse::<Address>().map_err(|_| format!("{part:?} is no mail address")));
    let addresses: Vec<Address> = addresses.collect::<Result<_, _>>()?;
    if addresses.is_empty() { Err("names nobody".into()) } else { Ok(addresses) }
}

/// Checks how mail is sent, without sending any.
pub fn check(mail: &Mail) -> Result<(), String> {
    mail.from.parse::<Mailbox>().map_err(|_| format!("{:?} is no mail address", mail.from))?;
    SmtpTransport::from_url(&mail.relay).map(drop).map_err(|error| format!("the mail relay's address: {error}"))
}

/// Sends it, and waits for the relay's word. What the relay said.
pub fn send(mail: &Mail, letter: &Letter) -> Result<String, Trouble> {
    let message = compose(mail, letter).map_err(Trouble::lasting)?;
    let builder = SmtpTransport::from_url(&mail.relay).map_err(|error| Trouble::lasting(error.to_string()))?;
    let transport = builder.timeout(Some(PATIENCE)).build();
    match transport.send(&message) {
        Ok(response) => {
            let words = response.message().collect::<Vec<_>>().join(" ");
            Ok(format!("{} {words}", response.code()))
        }
        Err(error) => {
            let mut why = error.to_string();
            let mut source = std::error::Error::source(&error);
            while let Some(error) = source {
                why = format!("{why}: {error}");
                source = error.source();
            }
            Err(Trouble { why, is_lasting: error.is_permanent() })
        }
    }
}

fn compose(mail: &Mail, letter: &Letter) -> Result<Message, String> {
    let from: Mailbox = mail.from.parse().map_err(|_| format!("{:?} is no mail address", mail.from))?;
    let receivers = addresses(&letter.to)?;
    let domain = from.email.domain().to_owned();
    let mut builder = Message::builder()
        .from(from.clone())
        .subject(letter.text.subject.clone())
        .message_id(Some(format!("<{}@{domain}>", letter.id)));
    if let Some(thread) = &letter.thread {
        builder = builder.in_reply_to(format!("<{thread}@{domain}>")).references(format!("<{thread}@{domain}>"));
    }
    if letter.is_blind {
        builder = builder.to(from.clone());
    } else {
        builder = receivers.iter().fold(builder, |builder, to| builder.to(Mailbox::new(None, to.clone())));
    }
    let envelope = Envelope::new(Some(from.email), receivers).map_err(|error| error.to_string())?;
    let html = format!("<!doctype html><html><body>{}</body></html>", letter.text.html);
    let body = MultiPart::alternative_plain_html(letter.text.plain.clone(), html);
    builder.envelope(envelope).multipart(body).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_addresses() {
        for (list, expected) in [
            ("a@example.com", Some(1)),
            (" a@example.com, b@example.com ,", Some(2)),
            ("", None),
            (",", None),
            ("a", None),
            ("a@example.com b@example.com", None),
            ("a@example.com\r\nBcc: b@example.com", None),
            ("A <a@example.com>", None),
        ] {
            assert_eq!(addresses(list).ok().map(|list| list.len()), expected, "{list:?}");
        }
    }

    #[test]
    fn a_letter_says_who_gets_it_and_stays_the_same() {
        let mail = Mail { relay: "smtp://localhost".into(), from: "e3 <e3@example.com>".into() };
        let text = Text { subject: "Grüße".into(), plain: "a".into(), html: "<p>a</p>".into() };
        let letter = |is_blind| Letter {
            to: "a@example.com,b@example.com".into(),
            is_blind,
            text: text.clone(),
            id: "delivery-1".into(),
            thread: Some("alert-1-1".into()),
        };
        let message = compose(&mail, &letter(false)).expect("a message");
        assert_eq!(message.envelope().to().len(), 2);
        let said = String::from_utf8(message.formatted()).expect("text");
        for part in [
            "To: a@example.com, b@example.com",
            "Message-ID: <delivery-1@example.com>",
            "References: <alert-1-1@example.com>",
        ] {
            assert!(said.contains(part), "{part} in {said}");
        }
        let blind = compose(&mail, &letter(true)).expect("a message");
        assert_eq!(blind.envelope().to().len(), 2);
        let said = String::from_utf8(blind.formatted()).expect("text");
        assert!(!said.contains("a@example.com") && !said.contains("b@example.com"), "{said}");
    }
}
