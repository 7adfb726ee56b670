//! What a caller is told when something fails (spec control-api 0.5): one table of codes.

use std::fmt;

use serde_json::{Map, Value, json};

use crate::secret::SecretError;
use crate::store::StoreError;

macro_rules! codes {
    ($($name:ident = $status:literal $code:literal $message:literal;)*) => {
        /// Stable codes; each has one HTTP status.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Code { $(#[doc = $message] $name),* }

        impl Code {
            /// Every code.
            pub const ALL: &[Code] = &[$(Code::$name),*];

            /// The HTTP status.
            pub fn status(self) -> u16 {
                match self { $(Code::$name => $status),* }
            }

            /// The word on the wire.
            pub fn word(self) -> &'static str {
                match self { $(Code::$name => $code),* }
            }

            fn message(self) -> &'static str {
                match self { $(Code::$name => $message),* }
            }
        }
    };
}

codes! {
    BadRequest = 400 "bad_request" "The request cannot be read";
    MissingField = 400 "missing_field" "A required field is missing";
    InvalidField = 400 "invalid_field" "A field has a value that it cannot have";
    InvalidId = 400 "invalid_identifier_format" "An identifier is neither an integer nor a UUID";
    BadEncoding = 400 "bad_encoding" "The compact form cannot be decoded";
    MissingCredentials = 401 "missing_credentials" "Credentials are missing";
    Unauthorized = 401 "unauthorized" "The credentials are not valid";
    AgentDisabled = 401 "agent_disabled" "An administrator has disabled this agent";
    TokenExpired = 401 "token_expired" "The token has expired";
    TokenRevoked = 401 "token_revoked" "The token was revoked";
    TokenExhausted = 401 "token_exhausted" "The token was used as often as it may be";
    SessionExpired = 401 "session_expired" "The session has ended; sign in again";
    CsrfFailed = 403 "csrf_failed" "The CSRF token or the origin does not match the session";
    ForbiddenRole = 403 "forbidden_role" "This role may not do that";
    MfaRequired = 403 "mfa_required" "A second factor is needed for this";
    NotClaimed = 403 "operation_not_claimed" "The operation is not claimed by this agent";
    NotFound = 404 "not_found" "Not found";
    RunNotFound = 404 "run_not_found" "Run not found";
    CommandNotFound = 404 "command_not_found" "Command not found";
    PointNotFound = 404 "point_not_found" "Restore point not found";
    SessionNotFound = 404 "session_not_found" "Session not found";
    BodyTimeout = 408 "timeout" "The body did not come in time";
    MethodNotAllowed = 405 "method_not_allowed" "This method is not allowed here";
    AlreadyRunning = 409 "ALREADY_RUNNING" "A run of this job is in progress";
    StaleClaim = 409 "stale_claim" "The run was claimed again since";
    InvalidTransition = 409 "invalid_transition" "The run cannot go from its state to that one";
    AlreadyCompleted = 409 "already_completed" "It was completed otherwise before";
    Conflict = 409 "conflict" "It contradicts what is stored";
    SessionActive = 409 "session_active" "An instant restore session uses this point";
    EnrolDisabled = 409 "agent_disabled" "An administrator has disabled this agent, and must enable it first";
    AgentCloned = 409 "agent_cloned" "Two machines use this agent's token; an administrator must choose";
    EngineNotAvailable = 409 "engine_not_available" "This server does not have the engine of this route";
    TooLarge = 413 "body_too_large" "The body is too large";
    UnsupportedMediaType = 415 "unsupported_media_type" "Send JSON or a form";
    ValidationFailed = 422 "validation_failed" "The values do not fit together";
    VersionTooOld = 426 "agent_version_too_old" "This agent is too old for this server";
    RateLimited = 429 "rate_limited" "Too many requests";
    ChunksCapReached = 429 "chunks_cap_reached" "This run has as many log chunks as it may have";
    ServerError = 500 "server_error" "The server failed; its log names the request";
    Maintenance = 503 "maintenance" "The server cannot work at the moment";
}

/// Why a call failed.
#[derive(Debug)]
pub struct Failure {
    /// What kind of failure.
    pub code: Code,
    /// For people.
    pub message: String,
    /// For programs.
    pub details: Map<String, Value>,
    /// For this server's log only.
    pub cause: Option<Box<Cause>>,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::Other(why) => f.write_str(why),
            Cause::Store(error) => {
                write!(f, "{error}")?;
                let mut source = std::error::Error::source(error);
                while let Some(error) = source {
                    write!(f, ": {error}")?;
                    source = error.source();
                }
                Ok(())
            }
        }
    }
}

/// What stands behind a [`Code::ServerError`].
#[derive(Debug)]
pub enum Cause {
    /// The database.
    Store(StoreError),
    /// Anything else.
    Other(String),
}

impl Failure {
    /// With the usual message.
    pub fn new(code: Code) -> Failure {
        Failure { code, message: code.message().to_owned(), details: Map::new(), cause: None }
    }

    /// With a message of its own.
    pub fn with(code: Code, message: impl Into<String>) -> Failure {
        Failure { message: message.into(), ..Failure::new(code) }
    }

    /// A required field that is missing.
    pub fn missing(field: &str) -> Failure {
        Failure::with(Code::MissingField, format!("Field {field} is missing")).detail("field", field)
    }

    /// A field whose value is out of the question.
    pub fn invalid(field: &str, why: impl fmt::Display) -> Failure {
        Failure::with(Code::InvalidField, format!("Field {field}: {why}")).detail("field", field)
    }

    /// Fields that do not fit, each with the reason.
    pub fn validation(fields: &[(String, String)]) -> Failure {
        let message = fields.iter().map(|(field, why)| format!("{field}: {why}")).collect::<Vec<_>>().join("; ");
        let fields: Map<String, Value> = fields.iter().map(|(field, why)| (field.clone(), json!(why))).collect();
        Failure::with(Code::ValidationFailed, message).detail("fields", fields)
    }

    /// Too many requests: when to come back.
    pub fn limited(retry_after_secs: u64) -> Failure {
        Failure::new(Code::RateLimited).detail("retry_after_secs", retry_after_secs)
    }

    /// The server's own fault, with what its log should say.
    pub fn internal(cause: impl fmt::Display) -> Failure {
        Failure { cause: Some(Box::new(Cause::Other(cause.to_string()))), ..Failure::new(Code::ServerError) }
    }

    /// The same with one more detail.
    pub fn detail(mut self, name: &str, value: impl Into<Value>) -> Failure {
        self.details.insert(name.to_owned(), value.into());
        self
    }

    fn store(&self) -> Option<&StoreError> {
        match self.cause.as_deref() {
            Some(Cause::Store(error)) => Some(error),
            _ => None,
        }
    }

    /// Whether doing the whole call again may succeed.
    pub fn is_transient(&self) -> bool {
        self.store().is_some_and(StoreError::is_transient)
    }

    /// Whether a unique key of the database stood against it.
    pub fn is_duplicate(&self) -> bool {
        self.store().is_some_and(StoreError::is_duplicate)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Failure {
        // A value that no column takes slipped through the checks of the call: that is the caller's value all the same.
        let code = if error.is_refused_value() { Code::InvalidField } else { Code::ServerError };
        Failure { cause: Some(Box::new(Cause::Store(error))), ..Failure::new(code) }
    }
}

impl From<SecretError> for Failure {
    fn from(error: SecretError) -> Failure {
        Failure::internal(error)
    }
}

impl From<Code> for Failure {
    fn from(code: Code) -> Failure {
        Failure::new(code)
    }
}
