//! Judging an ID token (OpenID Connect Core 3.1.3.7, RFC 7515): who signed it, for whom, until when, and for which login.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use ring::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm};
use serde::Deserialize;
use serde_json::{Map, Value};

/// Clocks of provider and server may differ by so much.
const LEEWAY_SECS: i64 = 60;
/// Longest token that is looked at.
const MAX_BYTES: usize = 64 << 10;

/// Why a token is worth nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It is no signed token.
    #[error("it is no signed token")]
    Malformed,
    /// `none`, a symmetric one, or one that is not known here.
    #[error("its algorithm {0:?} is not taken")]
    Algorithm(String),
    /// No key of the provider has its id and kind.
    #[error("the provider has no such key")]
    UnknownKey,
    /// The signature is not of that key.
    #[error("its signature is wrong")]
    Signature,
    /// A claim that it must have is missing or not the expected one.
    #[error("its {0} is not the expected one")]
    Claim(&'static str),
    /// It is over.
    #[error("it has expired")]
    Expired,
    /// It begins later.
    #[error("it is not valid yet")]
    NotYet,
}

/// A key of a provider (RFC 7517).
#[derive(Debug, Clone, Deserialize)]
pub struct Jwk {
    /// `RSA`, `EC` or `OKP`.
    pub kty: String,
    /// Its id.
    #[serde(default)]
    pub kid: Option<String>,
    /// `sig`, or `enc`, which signs nothing.
    #[serde(default, rename = "use")]
    pub usage: Option<String>,
    /// The one algorithm that it is for.
    #[serde(default)]
    pub alg: Option<String>,
    /// Curve.
    #[serde(default)]
    pub crv: Option<String>,
    /// RSA's modulus.
    #[serde(default)]
    pub n: Option<String>,
    /// RSA's exponent.
    #[serde(default)]
    pub e: Option<String>,
    /// A point's coordinate, or an Ed25519 key.
    #[serde(default)]
    pub x: Option<String>,
    /// A point's other coordinate.
    #[serde(default)]
    pub y: Option<String>,
}

/// What a token has to say.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    /// `iss`.
    pub issuer: &'a str,
    /// In `aud`.
    pub client_id: &'a str,
    /// `nonce`.
    pub nonce: &'a str,
    /// Now.
    pub now: Timestamp,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: Option<String>,
    /// Extensions that must be understood; none is.
    #[serde(default)]
    crit: Option<Value>,
}

/// The claims of a token that a key of the provider signed for this login.
pub fn verify(token: &str, keys: &[Jwk], expected: &Expected<'_>) -> Result<Map<String, Value>, TokenError> {
    if token.len() > MAX_BYTES {
        return Err(TokenError::Malformed);
    }
    let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
    let (header, payload) = signed.split_once('.').ok_or(TokenError::Malformed)?;
    let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Malformed);
    let header: Header = serde_json::from_slice(&decode(header)?).map_err(|_| TokenError::Malformed)?;
    if header.crit.is_some() {
        return Err(TokenError::Malformed);
    }
    let signature = decode(signature)?;
    let mut candidates = keys.iter().filter(|key| fits(key, &header)).peekable();
    if !["RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA"].contains(&header.alg.as_str()) {
        return Err(TokenError::Algorithm(header.alg.chars().take(16).collect()));
    }
    if candidates.peek().is_none() {
        return Err(TokenError::UnknownKey);
    }
    if !candidates.any(|key| is_signed_by(key, &header.alg, signed.as_bytes(), &signature)) {
        return Err(TokenError::Signature);
    }
    let claims: Map<String, Value> = serde_json::from_slice(&decode(payload)?).map_err(|_| TokenError::Malformed)?;
    check(&claims, expected)?;
    Ok(claims)
}

fn fits(key: &Jwk, header: &Header) -> bool {
    let kind = match header.alg.as_str() {
        "RS256" | "RS384" | "RS512" | "PS256" => "RSA",
        "ES256" | "ES384" => "EC",
        "EdDSA" => "OKP",
        _ => return false,
    };
    key.kty == kind
        && key.usage.as_deref().is_none_or(|usage| usage == "sig")
        && key.alg.as_ref().is_none_or(|alg| *alg == header.alg)
        && (header.kid.is_none() || header.kid == key.kid)
}

fn is_signed_by(key: &Jwk, algorithm: &str, signed: &[u8], signature: &[u8]) -> bool {
    let part = |text: &Option<String>| text.as_ref().and_then(|text| URL_SAFE_NO_PAD.decode(text).ok());
    let by_rsa = |parameters: &'static signature::RsaParameters| {
        let (Some(n), Some(e)) = (part(&key.n), part(&key.e)) else { return false };
        RsaPublicKeyComponents { n: &n, e: &e }.verify(parameters, signed, signature).is_ok()
    };
    let by_point = |curve: &str, width: usize, verification: &'static dyn VerificationAlgorithm| {
        let (Some(x), Some(y)) = (part(&key.x), part(&key.y)) else { return false };
        if key.crv.as_deref() != Some(curve) || x.len() != width || y.len() != width {
            return false;
        }
        let point = [&[4], x.as_slice(), &y].concat();
        UnparsedPublicKey::new(verification, point).verify(signed, signature).is_ok()
    };
    match algorithm {
        "RS256" => by_rsa(&signature::RSA_PKCS1_2048_8192_SHA256),
        "RS384" => by_rsa(&signature::RSA_PKCS1_2048_8192_SHA384),
        "RS512" => by_rsa(&signature::RSA_PKCS1_2048_8192_SHA512),
        "PS256" => by_rsa(&signature::RSA_PSS_2048_8192_SHA256),
        "ES256" => by_point("P-256", 32, &signature::ECDSA_P256_SHA256_FIXED),
        "ES384" => by_point("P-384", 48, &signature::ECDSA_P384_SHA384_FIXED),
        "EdDSA" if key.crv.as_deref() == Some("Ed25519") => part(&key.x)
            .is_some_and(|x| UnparsedPublicKey::new(&signature::ED25519, x).verify(signed, signature).is_ok()),
        _ => false,
    }
}

fn check(claims: &Map<String, Value>, expected: &Expected<'_>) -> Result<(), TokenError> {
    let text = |name: &str| claims.get(name).and_then(Value::as_str);
    if text("iss") != Some(expected.issuer) {
        return Err(TokenError::Claim("iss"));
    }
    let audiences = claims.get("aud").map(super::texts).unwrap_or_default();
    if !audiences.iter().any(|audience| audience == expected.client_id) {
        return Err(TokenError::Claim("aud"));
    }
    let authorized = text("azp");
    if (audiences.len() > 1 || claims.contains_key("azp")) && authorized != Some(expected.client_id) {
        return Err(TokenError::Claim("azp"));
    }
    // A time of another kind than a number is as good as none: nothing is skipped because it cannot be read.
    let time = |name: &'static str| match claims.get(name) {
        None => Ok(None),
        Some(value) => {
            let seconds = value.as_i64().or_else(|| value.as_f64().map(|seconds| seconds as i64));
            seconds.map(Some).ok_or(TokenError::Claim(name))
        }
    };
    let now = expected.now.as_second();
    let until = time("exp")?.ok_or(TokenError::Claim("exp"))?;
    if until.saturating_add(LEEWAY_SECS) <= now {
        return Err(TokenError::Expired);
    }
    let issued = time("iat")?.ok_or(TokenError::Claim("iat"))?;
    if issued.max(time("nbf")?.unwrap_or(i64::MIN)) > now + LEEWAY_SECS {
        return Err(TokenError::NotYet);
    }
    if text("nonce") != Some(expected.nonce) {
        return Err(TokenError::Claim("nonce"));
    }
    if text("sub").is_none_or(|subject| subject.is_empty() || subject.chars().count() > 255) {
        return Err(TokenError::Claim("sub"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use ring::rand::SystemRandom;
    use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
    use serde_json::json;

    use super::*;

    struct Signer {
        pair: EcdsaKeyPair,
        key: Jwk,
    }

    fn signer(kid: &str) -> Signer {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).expect("key");
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random).expect("key");
        let point = pair.public_key().as_ref().to_vec();
        let (x, y) = (URL_SAFE_NO_PAD.encode(&point[1..33]), URL_SAFE_NO_PAD.encode(&point[33..]));
        let key = json!({"kty": "EC", "crv": "P-256", "kid": kid, "use": "sig", "x": x, "y": y});
        Signer { pair, key: serde_json::from_value(key).expect("JWK") }
    }

    impl Signer {
        fn sign(&self, header: &Value, claims: &Value) -> String {
            let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
            let signed = format!("{}.{}", part(header), part(claims));
            let signature = self.pair.sign(&SystemRandom::new(), signed.as_bytes()).expect("signature");
            format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
        }
    }

    const NOW: i64 = 1_800_000_000;

    fn expected() -> Expected<'static> {
        let now = Timestamp::from_second(NOW).expect("time");
        Expected { issuer: "https://id.example.com", client_id: "e3", nonce: "n1", now }
    }

    fn claims() -> Value {
        json!({"iss": "https://id.example.com", "aud": "e3", "sub": "alice", "nonce": "n1", "iat": NOW, "exp": NOW + 300})
    }

    #[test]
    fn a_token_is_taken_only_as_a_whole() {
        let one = signer("one");
        let header = json!({"alg": "ES256", "kid": "one"});
        let with = |name: &str, value: Value| {
            let mut claims = claims();
            claims[name] = value;
            claims
        };
        let without = |name: &str| {
            let mut claims = claims();
            claims.as_object_mut().expect("claims").remove(name);
            claims
        };
        for (case, claims, result) in [
            ("as it should be", claims(), Ok(())),
            ("for several, with us as the authorised party", with("aud", json!(["x", "e3"])), Err("azp")),
            ("of another issuer", with("iss", json!("https://id.example.com/")), Err("iss")),
            ("without issuer", without("iss"), Err("iss")),
            ("for somebody else", with("aud", json!("other")), Err("aud")),
            ("for nobody", without("aud"), Err("aud")),
            ("with another authorised party", with("azp", json!("other")), Err("azp")),
            ("with us as the authorised party", with("azp", json!("e3")), Ok(())),
            ("of another login", with("nonce", json!("n2")), Err("nonce")),
            ("of no login", without("nonce"), Err("nonce")),
            ("within the leeway", with("exp", json!(NOW - 59)), Ok(())),
            ("expired", with("exp", json!(NOW - 60)), Err("expired")),
            ("without an end", without("exp"), Err("exp")),
            ("with an end that is a text", with("exp", json!("2999")), Err("exp")),
            ("from the future", with("iat", json!(NOW + 61)), Err("yet")),
            ("not before later", with("nbf", json!(NOW + 61)), Err("yet")),
            ("not before a text", with("nbf", json!("later")), Err("nbf")),
            ("of nobody", with("sub", json!("")), Err("sub")),
        ] {
            let verdict = verify(&one.sign(&header, &claims), std::slice::from_ref(&one.key), &expected());
            match result {
                Ok(()) => assert_eq!(verdict.map(|claims| claims["sub"].clone()), Ok(json!("alice")), "{case}"),
                Err(word) => {
                    let error = verdict.expect_err(case).to_string();
                    assert!(error.contains(word), "{case}: {error}");
                }
            }
        }
    }

    #[test]
    fn a_signature_is_of_the_key_that_is_named_and_of_its_kind() {
        let (one, other) = (signer("one"), signer("other"));
        let keys = [one.key.clone(), other.key.clone()];
        let sign = |header: Value| one.sign(&header, &claims());
        let good = sign(json!({"alg": "ES256", "kid": "one"}));
        let verdict = |token: &str, keys: &[Jwk]| verify(token, keys, &expected()).map(drop);
        assert_eq!(verdict(&good, &keys), Ok(()));
        assert_eq!(verdict(&sign(json!({"alg": "ES256"})), &keys), Ok(()), "no key is named: each is tried");
        assert_eq!(verdict(&sign(json!({"alg": "ES256", "kid": "other"})), &keys), Err(TokenError::Signature));
        assert_eq!(verdict(&sign(json!({"alg": "ES256", "kid": "new"})), &keys), Err(TokenError::UnknownKey));
        for alg in ["none", "HS256", "ES512", ""] {
            let refused = Err(TokenError::Algorithm(alg.into()));
            assert_eq!(verdict(&sign(json!({"alg": alg, "kid": "one"})), &keys), refused, "{alg}");
        }
        assert_eq!(verdict(&sign(json!({"alg": "RS256", "kid": "one"})), &keys), Err(TokenError::UnknownKey));
        assert_eq!(verdict(&sign(json!({"alg": "ES256", "crit": ["b64"]})), &keys), Err(TokenError::Malformed));
        let encrypts = Jwk { usage: Some("enc".into()), ..one.key.clone() };
        assert_eq!(verdict(&good, &[encrypts]), Err(TokenError::UnknownKey), "a key that is not for signing");
        assert_eq!(verdict(&good, &[]), Err(TokenError::UnknownKey));
        // Any changed letter, any cut.
        for at in (0..good.len()).step_by(7) {
            let mut changed = good.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).expect("text");
            assert!(changed == good || verdict(&changed, &keys).is_err(), "letter {at}");
            assert!(verdict(&good[..at], &keys).is_err(), "cut at {at}");
        }
    }
}
