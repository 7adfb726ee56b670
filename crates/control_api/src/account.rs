//! People, their sessions and tokens, tenants, the audit log (6.2, 6.3, 10).
#![allow(missing_docs, reason = "the fields are the contract's; each type names the section")]

use serde_json::Value;

use crate::Time;
use crate::words::{MfaAction, MfaState, Role};

wire! {
    /// `console_setup.php`: the first owner, with the token of the set-up link.
    pub struct Setup {
        pub token: String,
        pub email: String,
        pub password: String,
        /// Name of the client whose owner this is.
        pub name: String,
        #[serde(default)]
        pub timezone: Option<String>,
    }

    /// `console_login.php`.
    pub struct Login {
        pub email: String,
        pub password: String,
    }

    /// Answer of `console_login.php`; the session itself is a cookie.
    pub struct LoggedIn {
        /// For the header `X-CSRF-Token` of every call that changes something.
        pub csrf_token: String,
        pub user: User,
        /// What the second factor asks for before anything else can be called.
        pub mfa: MfaState,
    }

    /// Answer of `console_session.php`.
    pub struct CurrentSession {
        pub user: User,
        pub mfa: MfaState,
        /// Until when actions that destroy something may be called (6.3).
        pub mfa_fresh_until: Option<Time>,
    }

    /// `console_mfa.php` (6.2, 10.4).
    pub struct Mfa {
        pub action: MfaAction,
        /// Six digits.
        #[serde(default)]
        pub code: Option<String>,
        /// In place of a code; each serves once.
        #[serde(default)]
        pub recovery_code: Option<String>,
    }

    /// Answer of `console_mfa.php`. Secret and recovery codes are shown once.
    pub struct MfaAnswer {
        /// Of the new session that takes the place of this one.
        #[serde(default)]
        pub csrf_token: Option<String>,
        /// In base32, for typing.
        #[serde(default)]
        pub secret: Option<String>,
        /// The same for a QR code.
        #[serde(default)]
        pub otpauth_uri: Option<String>,
        #[serde(default)]
        pub recovery_codes: Vec<String>,
        pub recovery_codes_left: i64,
        pub mfa: MfaState,
    }

    /// A person and what they may do.
    pub struct User {
        pub id: i64,
        pub email: String,
        pub client_id: i64,
        pub role: Role,
        /// None means every tenant of the client.
        pub tenant_id: Option<i64>,
        pub status: String,
        pub last_login_at: Option<Time>,
        /// Whether the account has a second factor.
        pub mfa_enrolled: bool,
    }

    /// `e3backup_user_create.php`, and with `id` `…_update.php`.
    pub struct UserRequest {
        #[serde(default)]
        pub id: Option<i64>,
        #[serde(default)]
        pub email: Option<String>,
        #[serde(default)]
        pub password: Option<String>,
        #[serde(default)]
        pub role: Option<Role>,
        #[serde(default)]
        pub tenant_id: Option<i64>,
        /// `active` or `disabled`.
        #[serde(default)]
        pub status: Option<String>,
        /// Takes the second factor away, of somebody who lost it.
        #[serde(default)]
        pub reset_mfa: bool,
    }

    /// Answer of the calls on one person.
    pub struct UserAnswer {
        pub user: User,
    }

    /// Answer of `e3backup_user_list.php`.
    pub struct Users {
        pub users: Vec<User>,
        pub total: i64,
    }

    /// `e3backup_tenant_create.php`, and with `id` `…_update.php`.
    pub struct TenantRequest {
        #[serde(default)]
        pub id: Option<i64>,
        #[serde(default)]
        pub name: Option<String>,
        #[serde(default)]
        pub slug: Option<String>,
        /// `active` or `suspended`.
        #[serde(default)]
        pub status: Option<String>,
    }

    /// A tenant of a client.
    pub struct Tenant {
        pub id: i64,
        pub public_id: String,
        pub name: String,
        pub slug: String,
        pub status: String,
    }

    /// Answer of the calls on one tenant.
    pub struct TenantAnswer {
        pub tenant: Tenant,
    }

    /// Answer of `e3backup_tenant_list.php`.
    pub struct Tenants {
        pub tenants: Vec<Tenant>,
        pub total: i64,
    }

    /// `e3backup_api_token_create.php`: a token with at most the caller's own role.
    pub struct CreateApiToken {
        #[serde(default)]
        pub description: Option<String>,
        #[serde(default)]
        pub role: Option<Role>,
        #[serde(default)]
        pub lifetime_hours: Option<i64>,
        /// `destroy`: may also delete (6.3). Not named, it has what the caller has at this moment.
        #[serde(default)]
        pub scopes: Option<Vec<String>>,
    }

    /// A new API token; its value is shown once.
    pub struct CreatedApiToken {
        pub id: i64,
        pub token: String,
        pub expires_at: Option<Time>,
    }

    /// `e3backup_api_token_revoke.php`.
    pub struct RevokeApiToken {
        pub id: i64,
    }

    /// One of the caller's own API tokens, without its value.
    pub struct ApiToken {
        pub id: i64,
        pub description: Option<String>,
        pub role: Role,
        pub scopes: Vec<String>,
        pub created_at: Time,
        pub expires_at: Option<Time>,
        pub last_used_at: Option<Time>,
        pub revoked_at: Option<Time>,
    }

    /// Answer of `e3backup_api_token_list.php`.
    pub struct ApiTokens {
        pub tokens: Vec<ApiToken>,
        pub total: i64,
    }

    /// `e3backup_user_delete.php`: the phrase is the person's mail address.
    pub struct DeleteUser {
        pub user_id: i64,
        pub confirm_phrase: String,
    }

    /// `e3backup_tenant_delete.php`: the phrase is the tenant's slug.
    pub struct DeleteTenant {
        pub tenant_id: i64,
        pub confirm_phrase: String,
    }

    /// `cloudbackup_audit.php` (6.2).
    pub struct AuditQuery {
        #[serde(default)]
        pub action: Option<String>,
        #[serde(default)]
        pub since_id: Option<i64>,
        #[serde(default)]
        pub limit: Option<i64>,
    }

    /// One entry of the audit log (10.6).
    pub struct AuditEvent {
        pub id: i64,
        pub at: Time,
        pub actor_kind: String,
        pub actor_id: Option<i64>,
        pub action: String,
        pub entity_type: String,
        pub entity_id: String,
        pub ip: Option<String>,
        pub before: Option<Value>,
        pub after: Option<Value>,
        pub hash: String,
    }

    /// Answer of `cloudbackup_audit.php`.
    pub struct AuditEvents {
        pub events: Vec<AuditEvent>,
        /// Whether every entry follows from the one before.
        pub chain_intact: bool,
    }

    /// `limit` and `offset` of a list (6).
    pub struct Page {
        #[serde(default)]
        pub limit: Option<i64>,
        #[serde(default)]
        pub offset: Option<i64>,
    }

    /// `console_oidc_start.php`.
    pub struct BeginOidc {
        /// The provider's slug.
        pub provider: String,
    }

    /// Answer of `console_oidc_start.php`: where the browser goes now.
    pub struct BegunOidc {
        pub authorization_url: String,
    }

    /// `console_oidc_finish.php`: the query with which the provider sent the browser back.
    pub struct FinishOidc {
        pub code: String,
        pub state: String,
        /// RFC 9207.
        #[serde(default)]
        pub iss: Option<String>,
    }

    /// What a group of a provider gives; the first rule that fits decides.
    pub struct GroupRole {
        pub group: String,
        pub role: Role,
        #[serde(default)]
        pub tenant_id: Option<i64>,
    }

    /// `e3backup_oidc_save.php`; with `id` what is missing stays. The secret is write-only.
    #[derive(Default)]
    pub struct OidcProviderRequest {
        #[serde(default)]
        pub id: Option<i64>,
        #[serde(default)]
        pub name: Option<String>,
        #[serde(default)]
        pub slug: Option<String>,
        #[serde(default)]
        pub issuer: Option<String>,
        #[serde(default)]
        pub oidc_client_id: Option<String>,
        #[serde(default)]
        pub client_secret: Option<String>,
        #[serde(default)]
        pub scopes: Option<String>,
        #[serde(default)]
        pub groups_claim: Option<String>,
        #[serde(default)]
        pub mapping: Option<Vec<GroupRole>>,
        /// Whether a login there is a second factor here.
        #[serde(default)]
        pub counts_as_mfa: Option<bool>,
        #[serde(default)]
        pub is_active: Option<bool>,
    }

    /// A provider that people of a client sign in at.
    pub struct OidcProvider {
        pub id: i64,
        pub name: String,
        pub slug: String,
        pub issuer: String,
        pub oidc_client_id: String,
        pub has_client_secret: bool,
        pub scopes: String,
        pub groups_claim: String,
        pub mapping: Vec<GroupRole>,
        pub counts_as_mfa: bool,
        pub is_active: bool,
    }

    /// Answer of the calls on one provider.
    pub struct OidcProviderAnswer {
        pub provider: OidcProvider,
    }

    /// Answer of `e3backup_oidc_list.php`.
    pub struct OidcProviders {
        pub providers: Vec<OidcProvider>,
        pub total: i64,
    }

    /// Names a provider.
    pub struct OidcProviderRef {
        pub provider_id: i64,
    }
}
