//! Who calls, and what they may see and do (spec control-api 1.5, 6.3, 10.3).

pub mod agent;
pub mod audit;
pub mod gate;
pub mod heard;
pub mod password;
pub mod person;
pub mod totp;

use control_api::words::Role;

use crate::store::Value;

/// The rows that a caller may see: one client's, of all its tenants or one.
///
/// Every query of a handler begins with [`Filter::within`]; nothing finds a row by a bare id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scope {
    /// The client.
    pub client: i64,
    /// Only this tenant's rows. None: every tenant's, and those of no tenant.
    pub tenant: Option<i64>,
}

/// Conditions of a query, joined with `AND`.
#[derive(Debug, Clone)]
pub struct Filter {
    /// For behind `WHERE`.
    pub sql: String,
    /// For its marks.
    pub args: Vec<Value>,
}

impl Filter {
    /// Only rows of `table` (a name or alias) inside of the scope.
    pub fn within(scope: Scope, table: &str) -> Filter {
        let mut filter = Filter { sql: format!("{table}.client_id = ?"), args: vec![scope.client.into()] };
        if let Some(tenant) = scope.tenant {
            filter = filter.and(&format!("{table}.tenant_id = ?"), tenant);
        }
        filter
    }

    /// Only rows of an agent's own client and tenant, where none is a tenant of its own.
    pub fn beside(agent: &agent::Agent, table: &str) -> Filter {
        let filter = Filter { sql: format!("{table}.client_id = ?"), args: vec![agent.client.into()] };
        match agent.tenant {
            Some(tenant) => filter.and(&format!("{table}.tenant_id = ?"), tenant),
            None => filter.and_sql(&format!("{table}.tenant_id IS NULL")),
        }
    }

    /// And this condition with its one value.
    pub fn and(mut self, sql: &str, value: impl Into<Value>) -> Filter {
        self.args.push(value.into());
        self.and_sql(sql)
    }

    /// And this condition.
    pub fn and_sql(mut self, sql: &str) -> Filter {
        self.sql += " AND ";
        self.sql += sql;
        self
    }

    /// And that column has one of these values; none means that nothing matches.
    pub fn and_in<V: Into<Value>>(mut self, column: &str, values: impl IntoIterator<Item = V>) -> Filter {
        let values: Vec<Value> = values.into_iter().map(Into::into).collect();
        if values.is_empty() {
            return self.and_sql("1 = 0");
        }
        let marks = crate::store::marks(values.len());
        self.args.extend(values);
        self.and_sql(&format!("{column} IN ({marks})"))
    }

    /// And the text contains this, whatever its letters mean to the database.
    pub fn and_contains(self, column: &str, text: &str) -> Filter {
        let mut pattern = String::from("%");
        for letter in text.to_lowercase().chars() {
            if matches!(letter, '%' | '_' | '!') {
                pattern.push('!');
            }
            pattern.push(letter);
        }
        pattern.push('%');
        self.and(&format!("LOWER({column}) LIKE ? ESCAPE '!'"), pattern)
    }

    /// The values, with these behind them.
    pub fn args_and(&self, more: &[Value]) -> Vec<Value> {
        self.args.iter().chain(more).cloned().collect()
    }
}

/// What a route of the client area needs (6.2, 6.3 and the table of console 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// A session, be it without the second factor that it still needs.
    Begun,
    /// To be signed in.
    SignedIn,
    /// Lists, runs, points.
    View,
    /// Reports.
    Report,
    /// Run, cancel, edit jobs.
    Operate,
    /// Verify a point or hold it.
    Hold,
    /// Restore, browse.
    Restore,
    /// Everything of the scope but people and audit settings.
    Admin,
    /// People, roles, tenants.
    Own,
    /// The audit log.
    Audit,
}

/// Whether a role may do that.
pub fn allows(role: Role, need: Need) -> bool {
    match need {
        Need::Begun | Need::SignedIn | Need::Report => true,
        Need::View => role != Role::Auditor,
        Need::Operate => matches!(role, Role::Operator | Role::Admin | Role::Owner),
        Need::Hold => matches!(role, Role::Operator | Role::RestoreOperator | Role::Admin | Role::Owner),
        Need::Restore => matches!(role, Role::RestoreOperator | Role::Admin | Role::Owner),
        Need::Admin => matches!(role, Role::Admin | Role::Owner),
        Need::Own => role == Role::Owner,
        Need::Audit => matches!(role, Role::Auditor | Role::Admin | Role::Owner),
    }
}

/// Whether everything that `lower` may do, `higher` may do too: what a token may be given.
pub fn covers(higher: Role, lower: Role) -> bool {
    const NEEDS: [Need; 8] =
        [Need::View, Need::Report, Need::Operate, Need::Hold, Need::Restore, Need::Admin, Need::Own, Need::Audit];
    NEEDS.into_iter().all(|need| allows(higher, need) || !allows(lower, need))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Spec control-api 6.3 and console 2, a row per need: viewer, operator, restore operator, admin, owner, auditor.
    #[test]
    fn roles_may_do_what_the_contract_says() {
        for (need, allowed) in [
            (Need::Begun, [true, true, true, true, true, true]),
            (Need::SignedIn, [true, true, true, true, true, true]),
            (Need::View, [true, true, true, true, true, false]),
            (Need::Report, [true, true, true, true, true, true]),
            (Need::Operate, [false, true, false, true, true, false]),
            (Need::Hold, [false, true, true, true, true, false]),
            (Need::Restore, [false, false, true, true, true, false]),
            (Need::Admin, [false, false, false, true, true, false]),
            (Need::Own, [false, false, false, false, true, false]),
            (Need::Audit, [false, false, false, true, true, true]),
        ] {
            for (role, allowed) in Role::ALL.iter().zip(allowed) {
                assert_eq!(allows(*role, need), allowed, "{role} {need:?}");
            }
        }
        assert!(covers(Role::Owner, Role::Admin) && covers(Role::Admin, Role::RestoreOperator));
        assert!(!covers(Role::Operator, Role::RestoreOperator) && !covers(Role::Viewer, Role::Auditor));
        assert!(covers(Role::Viewer, Role::Viewer));
    }

    #[test]
    fn a_filter_never_reaches_beyond_its_scope() {
        let tenant = Filter::within(Scope { client: 3, tenant: Some(9) }, "r").and("r.id = ?", 5_i64);
        assert_eq!(tenant.sql, "r.client_id = ? AND r.tenant_id = ? AND r.id = ?");
        assert_eq!(tenant.args, [Value::Int(3), Value::Int(9), Value::Int(5)]);
        let none = Filter::within(Scope { client: 3, tenant: None }, "r").and_in("r.id", Vec::<i64>::new());
        assert_eq!(none.sql, "r.client_id = ? AND 1 = 0");
        let like = Filter::within(Scope { client: 3, tenant: None }, "r").and_contains("r.name", "50%_!");
        assert_eq!(like.args[1], Value::Text("%50!%!_!!%".into()));
    }
}
