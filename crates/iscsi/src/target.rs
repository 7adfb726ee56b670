//! What is offered: targets, each with its units, and who may use them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::scsi::{Unit, UnitOptions};
use crate::{Device, TargetError};

/// A secret of a CHAP login. Its text appears in no output.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// From 12 bytes of text on, because the exchange can be attacked off line by whoever saw it (RFC 7143 9.2.1);
    /// Windows takes at most 16.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A name and the secret that proves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The CHAP name.
    pub name: String,
    /// The CHAP secret.
    pub secret: Secret,
}

/// How both sides prove who they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authentication {
    /// What an initiator must prove.
    pub initiator: Credentials,
    /// What we prove to an initiator that asks for it (mutual CHAP). The secret must be another one.
    pub target: Option<Credentials>,
}

/// A target before it is checked.
#[derive(Default)]
pub struct TargetOptions {
    /// `iqn.`, `eui.` or `naa.` name, lower case, at most 223 bytes.
    pub name: String,
    /// For people; may be empty.
    pub alias: String,
    /// Without it everyone who reaches the port may log in.
    pub authentication: Option<Authentication>,
    /// Names of the initiators that may log in and are told of this target; all may when this is empty.
    pub initiators: Vec<String>,
    /// Units by number, up to 255. Number 0 should be one of them: initiators look there first.
    pub units: Vec<(u8, Arc<dyn Device>, UnitOptions)>,
}

/// A target: a name, and units that are shared by all who log in to it.
pub(crate) struct Target {
    pub(crate) name: String,
    pub(crate) alias: String,
    pub(crate) authentication: Option<Authentication>,
    initiators: Vec<String>,
    pub(crate) units: BTreeMap<u8, Arc<Unit>>,
    /// It is being taken away: nobody is let in any more.
    pub(crate) closing: AtomicBool,
}

impl Target {
    pub(crate) fn allows(&self, initiator: &str) -> bool {
        self.initiators.is_empty() || self.initiators.iter().any(|name| name == initiator)
    }

    /// The unit in a LUN field, if there is one.
    pub(crate) fn unit(&self, field: [u8; 8]) -> Option<&Arc<Unit>> {
        let number = crate::wire::lun_number(field)?;
        self.units.get(&u8::try_from(number).ok()?)
    }
}

/// Everything one server offers.
#[derive(Default, Clone)]
pub struct Targets {
    pub(crate) targets: Vec<Arc<Target>>,
    pub(crate) discovery: Option<Authentication>,
}

impl Targets {
    /// Checks and takes all of them. `discovery` is asked of those who only list targets.
    pub fn new(
        targets: impl IntoIterator<Item = TargetOptions>,
        discovery: Option<Authentication>,
    ) -> Result<Self, TargetError> {
        check_authentication("discovery", discovery.as_ref())?;
        let none = Self { targets: Vec::new(), discovery };
        targets.into_iter().try_fold(none, |targets, options| targets.with(options))
    }

    /// One more.
    pub(crate) fn with(mut self, options: TargetOptions) -> Result<Self, TargetError> {
        let target = check(options)?;
        if self.find(&target.name).is_some() {
            return Err(TargetError::SameName(target.name));
        }
        self.targets.push(Arc::new(target));
        Ok(self)
    }

    pub(crate) fn find(&self, name: &str) -> Option<&Arc<Target>> {
        self.targets.iter().find(|target| target.name == name)
    }

    /// Whether somebody could get at a target, or a list of them, without a login.
    pub(crate) fn some_need_no_login(&self) -> bool {
        self.discovery.is_none() || self.targets.iter().any(|target| target.authentication.is_none())
    }
}

fn check(options: TargetOptions) -> Result<Target, TargetError> {
    let TargetOptions { name, alias, authentication, initiators, units } = options;
    let of_name = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".:-".contains(&byte);
    let prefixed = ["iqn.", "eui.", "naa."].iter().any(|prefix| name.starts_with(prefix));
    if !prefixed || name.len() > 223 || !name.bytes().all(of_name) {
        return Err(TargetError::Name(name));
    }
    // A value of a key is at most 255 bytes and has no zero.
    if alias.len() > 255 || alias.contains('\0') {
        return Err(TargetError::Alias(name));
    }
    check_authentication(&name, authentication.as_ref())?;
    let mut checked = BTreeMap::new();
    for (number, device, options) in units {
        let unit = Unit::new(device, options, name.clone());
        let unit = unit.map_err(|source| TargetError::Unit { target: name.clone(), number, source })?;
        if checked.insert(number, Arc::new(unit)).is_some() {
            return Err(TargetError::SameUnit { target: name, number });
        }
    }
    Ok(Target { name, alias, authentication, initiators, units: checked, closing: AtomicBool::new(false) })
}

fn check_authentication(of: &str, authentication: Option<&Authentication>) -> Result<(), TargetError> {
    let Some(authentication) = authentication else { return Ok(()) };
    let all = [Some(&authentication.initiator), authentication.target.as_ref()];
    for credentials in all.into_iter().flatten() {
        let name_fits = (1..=255).contains(&credentials.name.len()) && !credentials.name.contains('\0');
        if !name_fits || credentials.secret.bytes().len() < 12 {
            return Err(TargetError::Credentials(of.to_owned()));
        }
    }
    match &authentication.target {
        Some(target) if target.secret == authentication.initiator.secret => Err(TargetError::SameSecret(of.to_owned())),
        _ => Ok(()),
    }
}
