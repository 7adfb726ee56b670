//! The two documents S3 answers with that we read: a page of a listing and an error.

use std::borrow::Cow;

use quick_xml::Reader;
use quick_xml::events::Event;

use super::time::parse_iso8601;
use crate::ObjectMeta;

/// Deepest nesting followed; S3 uses four levels.
const MAX_DEPTH: usize = 16;

/// One answer to `ListObjectsV2`. Keys are full, with the prefix of the bucket.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Page {
    pub objects: Vec<ObjectMeta>,
    /// Where the next page starts, if there is one.
    pub next: Option<String>,
}

/// What an error document says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ErrorDocument {
    pub code: String,
    pub message: String,
    /// Region the bucket is really in, with some redirects.
    pub region: Option<String>,
}

/// Reads a page asked for with `encoding-type=url`. The error says what is wrong with the document.
pub(super) fn parse_page(text: &str) -> Result<Page, String> {
    let mut page = Page::default();
    let (mut url_encoded, mut truncated, mut is_listing) = (false, false, false);
    let mut object = PartialObject::default();
    let mut keys = Vec::new();
    for_each_element(text, |path, value| {
        match path {
            ["ListBucketResult"] => is_listing = true,
            ["ListBucketResult", "EncodingType"] => url_encoded = value == "url",
            ["ListBucketResult", "IsTruncated"] => truncated = value == "true",
            ["ListBucketResult", "NextContinuationToken"] => page.next = Some(value.to_owned()),
            ["ListBucketResult", "Contents", "Key"] => object.key = Some(value.to_owned()),
            ["ListBucketResult", "Contents", "Size"] => object.len_bytes = Some(parse(value, str::parse, "Size")?),
            ["ListBucketResult", "Contents", "ETag"] => object.etag = Some(value.trim_matches('"').to_owned()),
            ["ListBucketResult", "Contents", "LastModified"] => {
                object.modified = Some(parse(value, |text| parse_iso8601(text).ok_or(()), "LastModified")?);
            }
            ["ListBucketResult", "Contents"] => {
                let object = std::mem::take(&mut object);
                let (Some(key), Some(len_bytes), Some(modified)) = (object.key, object.len_bytes, object.modified)
                else {
                    return Err("an object lacks its Key, Size or LastModified".to_owned());
                };
                keys.push(key);
                page.objects.push(ObjectMeta { key: String::new(), len_bytes, modified, etag: object.etag });
            }
            _ => {}
        }
        Ok(())
    })?;
    if !is_listing {
        return Err("the document is no ListBucketResult".to_owned());
    }
    // The encoding may be named after the keys it applies to.
    for (object, key) in page.objects.iter_mut().zip(keys) {
        object.key = if url_encoded { url_decode(&key).ok_or("a key is not URL-encoded UTF-8")? } else { key };
    }
    page.next = page.next.filter(|token| truncated && !token.is_empty());
    if truncated && page.next.is_none() {
        return Err("the page is truncated but names no next one".to_owned());
    }
    Ok(page)
}

#[derive(Default)]
struct PartialObject {
    key: Option<String>,
    len_bytes: Option<u64>,
    modified: Option<std::time::SystemTime>,
    etag: Option<String>,
}

/// Reads an error document, or `None` if it is something else.
pub(super) fn parse_error(text: &str) -> Option<ErrorDocument> {
    let mut found = ErrorDocument::default();
    let read = for_each_element(text, |path, value| {
        match path {
            ["Error", "Code"] => found.code = value.to_owned(),
            ["Error", "Message"] => found.message = value.to_owned(),
            ["Error", "Region"] => found.region = Some(value.to_owned()),
            _ => {}
        }
        Ok(())
    });
    (read.is_ok() && !found.code.is_empty()).then_some(found)
}

fn parse<T, E>(value: &str, parser: impl Fn(&str) -> Result<T, E>, name: &str) -> Result<T, String> {
    parser(value).map_err(|_| format!("{name} is {value:?}"))
}

/// Shows `visit` each element when it ends: the names from the root down to it, and its own text.
fn for_each_element(text: &str, mut visit: impl FnMut(&[&str], &str) -> Result<(), String>) -> Result<(), String> {
    let bad = |error: &dyn std::fmt::Display| format!("bad XML: {error}");
    let mut reader = Reader::from_str(text);
    let mut path: Vec<Cow<'_, str>> = Vec::new();
    let mut value = String::new();
    loop {
        match reader.read_event().map_err(|error| bad(&error))? {
            Event::Start(element) => {
                if path.len() == MAX_DEPTH {
                    return Err("bad XML: nested too deep".to_owned());
                }
                path.push(element.local_name().as_ref().to_owned().into());
                value.clear();
            }
            Event::Empty(element) => {
                path.push(element.local_name().as_ref().to_owned().into());
                visit(&path.iter().map(|name| &**name).collect::<Vec<_>>(), "")?;
                path.pop();
                value.clear();
            }
            Event::Text(text) => value.push_str(&text.xml10_content()),
            Event::CData(text) => value.push_str(&text.xml10_content()),
            Event::GeneralRef(reference) => match reference.resolve_char_ref().map_err(|error| bad(&error))? {
                Some(character) => value.push(character),
                None => value.push(match reference.as_ref() {
                    "amp" => '&',
                    "lt" => '<',
                    "gt" => '>',
                    "quot" => '"',
                    "apos" => '\'',
                    _ => return Err("bad XML: unknown entity".to_owned()),
                }),
            },
            Event::End(_) => {
                visit(&path.iter().map(|name| &**name).collect::<Vec<_>>(), &value)?;
                path.pop();
                value.clear();
            }
            Event::Eof if path.is_empty() => return Ok(()),
            Event::Eof => return Err("bad XML: it breaks off".to_owned()),
            Event::Decl(_) | Event::PI(_) | Event::Comment(_) | Event::DocType(_) => {}
        }
    }
}

/// Undoes `encoding-type=url`: like an HTML form, so that `+` is a space and a plus is `%2B`.
fn url_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        bytes.push(match first {
            b'+' => b' ',
            b'%' => {
                let (digits, tail) = rest.split_at_checked(2)?;
                rest = tail;
                let value = |digit: u8| char::from(digit).to_digit(16);
                u8::try_from(value(digits[0])? * 16 + value(digits[1])?).ok()?
            }
            _ => *first,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, SystemTime};

    fn page(inner: &str) -> String {
        format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
             <Name>b</Name><Prefix></Prefix><KeyCount>1</KeyCount><MaxKeys>1000</MaxKeys>{inner}</ListBucketResult>"
        )
    }

    fn contents(key: &str) -> String {
        format!(
            "<Contents><Key>{key}</Key><LastModified>1970-01-01T00:00:05.000Z</LastModified>\
             <ETag>&quot;e&quot;</ETag><Size>7</Size><StorageClass>STANDARD</StorageClass></Contents>"
        )
    }

    #[test]
    fn a_page_is_read() {
        let modified = SystemTime::UNIX_EPOCH + Duration::from_secs(5);
        for (key, encoding, read) in [
            ("a&amp;b&#x2F;c", "", "a&b/c"),
            ("a+b%2B%C3%A4%20", "<EncodingType>url</EncodingType>", "a b+ä "),
            ("a+b%2B", "", "a+b%2B"),
        ] {
            let text = page(&format!("<IsTruncated>false</IsTruncated>{}{encoding}", contents(key)));
            let object = ObjectMeta { key: read.into(), len_bytes: 7, modified, etag: Some("e".into()) };
            assert_eq!(parse_page(&text), Ok(Page { objects: vec![object], next: None }), "{key}");
        }
    }

    #[test]
    fn the_next_page_is_named_only_if_there_is_one() {
        let token = "<NextContinuationToken>t/1</NextContinuationToken>";
        for (inner, next) in [
            (format!("<IsTruncated>true</IsTruncated>{token}"), Some("t/1".to_owned())),
            (format!("{token}<IsTruncated>false</IsTruncated>"), None),
            (String::new(), None),
        ] {
            assert_eq!(parse_page(&page(&inner)).map(|page| page.next), Ok(next), "{inner}");
        }
    }

    #[test]
    fn broken_pages_are_refused() {
        for text in [
            String::new(),
            "hello".to_owned(),
            "<html><body>Welcome</body></html>".to_owned(),
            page("<IsTruncated>true</IsTruncated>"),
            page("<IsTruncated>true</IsTruncated><NextContinuationToken/>"),
            page(&contents("k").replace("<Size>7</Size>", "")),
            page(&contents("k").replace(">7<", ">-7<")),
            page(&contents("k").replace("1970-", "x")),
            page(&format!("<EncodingType>url</EncodingType>{}", contents("%C3"))),
            page(&format!("<EncodingType>url</EncodingType>{}", contents("%4"))),
            page(&format!("<EncodingType>url</EncodingType>{}", contents("%+4"))),
            page(&contents("&unknown;")),
            page(&"<a>".repeat(100_000)),
            page(&contents("k")).replace("</ListBucketResult>", ""),
            page("</Contents>"),
        ] {
            assert!(parse_page(&text).is_err(), "{}", &text[..text.len().min(300)]);
        }
    }

    #[test]
    fn an_error_is_read() {
        let text =
            "<?xml version=\"1.0\"?><Error><Code>NoSuchKey</Code><Message>No &lt;key&gt;</Message><Key>k</Key></Error>";
        let found = parse_error(text).unwrap();
        assert_eq!((found.code.as_str(), found.message.as_str()), ("NoSuchKey", "No <key>"));
        for text in ["", "404 page not found", "<Error></Error>", "<Error><Code>NoSuchKey</Code>", "<html/>"] {
            assert_eq!(parse_error(text), None, "{text}");
        }
    }
}
