//! The schema as data: `schema.txt`, and what it becomes in each dialect (spec control-api 7.1).

use control_api::words;

use super::Dialect;

/// One table.
#[derive(Debug)]
pub struct Table<'a> {
    /// Its name.
    pub name: &'a str,
    columns: Vec<Column<'a>>,
    keys: Vec<Key<'a>>,
}

#[derive(Debug)]
struct Column<'a> {
    name: &'a str,
    kind: Kind<'a>,
    is_null: bool,
    is_primary: bool,
    default: Option<&'a str>,
    on_delete: &'static str,
}

#[derive(Debug)]
enum Kind<'a> {
    Id,
    BigId,
    Reference(&'a str),
    Str(usize),
    Enum(Vec<&'a str>),
    Json,
    Bool,
    /// Ours, in milliseconds.
    Time,
    /// The design document's, in seconds on MySQL.
    DesignTime,
    U63,
    Int,
    TinyInt,
    Real,
    Hash,
    Blob,
    Text,
}

#[derive(Debug)]
struct Key<'a> {
    name: &'a str,
    columns: Vec<&'a str>,
    is_unique: bool,
    /// Unique only among rows of which this holds.
    only_where: Option<&'a str>,
}

/// The schema as it is written down, a text for each step that made tables.
pub const STEPS: [&str; 2] = [include_str!("schema.txt"), include_str!("schema_accounts.txt")];

/// Every table, in an order in which they can be made.
///
/// # Panics
/// When a text of [`STEPS`], which are part of the program, is not well formed.
pub fn tables() -> Vec<Table<'static>> {
    STEPS.into_iter().flat_map(tables_of).collect()
}

/// The tables of one step.
pub(super) fn tables_of(text: &'static str) -> Vec<Table<'static>> {
    let mut tables: Vec<Table> = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix("table ") {
            tables.push(Table { name, columns: Vec::new(), keys: Vec::new() });
            continue;
        }
        let table = tables.last_mut().expect("a column stands below its table");
        if let Some(rest) = line.strip_prefix("unique ") {
            table.keys.push(key(rest, true));
        } else if let Some(rest) = line.strip_prefix("index ") {
            table.keys.push(key(rest, false));
        } else {
            table.columns.push(column(line));
        }
    }
    tables
}

fn key(line: &'static str, is_unique: bool) -> Key<'static> {
    let (line, only_where) = match line.split_once(" where ") {
        Some((line, condition)) => (line, Some(condition)),
        None => (line, None),
    };
    let (name, columns) = line.split_once(" (").expect("a key has columns");
    let columns = columns.trim_end_matches(')').split(", ").collect();
    Key { name, columns, is_unique, only_where }
}

fn column(line: &'static str) -> Column<'static> {
    let (line, default) = match line.split_once(" = ") {
        Some((line, default)) => (line, Some(default)),
        None => (line, None),
    };
    let mut words = line.split(' ');
    let name = words.next().expect("a column has a name");
    let kind = kind(words.next().expect("a column has a type"));
    let mut column = Column { name, kind, is_null: false, is_primary: false, default, on_delete: "" };
    for word in words {
        match word {
            "null" => column.is_null = true,
            "primary" => column.is_primary = true,
            "cascade" => column.on_delete = " ON DELETE CASCADE",
            "setnull" => column.on_delete = " ON DELETE SET NULL",
            other => panic!("schema.txt: {name}: {other}?"),
        }
    }
    column
}

fn kind(word: &'static str) -> Kind<'static> {
    match word {
        "id" => Kind::Id,
        "bigid" => Kind::BigId,
        "json" => Kind::Json,
        "bool" => Kind::Bool,
        "ts" => Kind::Time,
        "ddts" => Kind::DesignTime,
        "u63" => Kind::U63,
        "int" => Kind::Int,
        "tinyint" => Kind::TinyInt,
        "real" => Kind::Real,
        "hash" => Kind::Hash,
        "blob" => Kind::Blob,
        "text" => Kind::Text,
        other => {
            if let Some(table) = other.strip_prefix("fk:") {
                return Kind::Reference(table);
            }
            if let Some(list) = other.strip_prefix("enum:") {
                return Kind::Enum(list.strip_prefix('@').map_or_else(|| list.split(',').collect(), words_of));
            }
            let length = other.strip_prefix("str(").and_then(|rest| rest.strip_suffix(')')?.parse().ok());
            Kind::Str(length.unwrap_or_else(|| panic!("schema.txt: type {other}?")))
        }
    }
}

/// The words of an enumeration of the contract, so that no list is written twice.
fn words_of(name: &str) -> Vec<&'static str> {
    let words = match name {
        "Engine" => words::Engine::WORDS,
        "SourceType" => words::SourceType::WORDS,
        "RunStatus" => words::RunStatus::WORDS,
        "RunType" => words::RunType::WORDS,
        "TriggerType" => words::TriggerType::WORDS,
        "JobStatus" => words::JobStatus::WORDS,
        "AgentStatus" => words::AgentStatus::WORDS,
        "BackupType" => words::BackupType::WORDS,
        "Consistency" => words::Consistency::WORDS,
        "CommandStatus" => words::CommandStatus::WORDS,
        "ApprovalStatus" => words::ApprovalStatus::WORDS,
        "RepoOperationType" => words::RepoOperationType::WORDS,
        "Role" => words::Role::WORDS,
        "Protection" => words::Protection::WORDS,
        "InstantStatus" => words::InstantStatus::WORDS,
        "VerifyStatus" => words::VerifyStatus::WORDS,
        "ScheduleType" => words::ScheduleType::WORDS,
        "AlertKind" => words::AlertKind::WORDS,
        "AlertState" => words::AlertState::WORDS,
        "AlertChannel" => words::AlertChannel::WORDS,
        other => panic!("schema.txt: enumeration {other}?"),
    };
    words.to_vec()
}

impl Table<'_> {
    /// The statements that make this table.
    pub fn statements(&self, dialect: Dialect, all: &[Table]) -> Vec<String> {
        match dialect {
            Dialect::Sqlite => self.sqlite(),
            Dialect::MySql => vec![self.mysql(all)],
        }
    }

    fn sqlite(&self) -> Vec<String> {
        let columns: Vec<String> = self.columns.iter().map(Column::sqlite).collect();
        let mut statements = vec![format!("CREATE TABLE {} (\n  {}\n)", self.name, columns.join(",\n  "))];
        for key in &self.keys {
            let unique = if key.is_unique { "UNIQUE " } else { "" };
            let mut statement =
                format!("CREATE {unique}INDEX {} ON {} ({})", key.name, self.name, key.columns.join(", "));
            if let Some(condition) = key.only_where {
                statement += &format!(" WHERE {condition}");
            }
            statements.push(statement);
        }
        statements
    }

    fn mysql(&self, all: &[Table]) -> String {
        let mut parts: Vec<String> = self.columns.iter().map(|column| column.mysql(all)).collect();
        for column in &self.columns {
            if let Kind::Reference(table) = column.kind {
                let Column { name, on_delete, .. } = column;
                parts.push(format!("FOREIGN KEY ({name}) REFERENCES {table}(id){on_delete}"));
            }
        }
        for key in &self.keys {
            let mut columns = key.columns.join(", ");
            if let Some(condition) = key.only_where {
                // A virtual column: a stored one is not allowed on a column whose foreign key cascades.
                let first = key.columns[0];
                let generated = format!("{}_key", key.name);
                parts.push(format!("{generated} INT AS (CASE WHEN {condition} THEN {first} END) VIRTUAL"));
                columns = columns.replacen(first, &generated, 1);
            }
            let unique = if key.is_unique { "UNIQUE " } else { "" };
            parts.push(format!("{unique}KEY {} ({columns})", key.name));
        }
        format!(
            "CREATE TABLE {} (\n  {}\n) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin",
            self.name,
            parts.join(",\n  ")
        )
    }
}

impl Column<'_> {
    fn sqlite(&self) -> String {
        let c = self.name;
        let (kind, check) = match &self.kind {
            Kind::Id | Kind::BigId => return format!("{c} INTEGER PRIMARY KEY AUTOINCREMENT"),
            Kind::Reference(table) => (format!("INTEGER REFERENCES {table}(id){}", self.on_delete), None),
            Kind::Str(length) => ("TEXT".into(), Some(format!("length({c}) <= {length}"))),
            Kind::Enum(words) => ("TEXT".into(), Some(format!("{c} IN ('{}')", words.join("', '")))),
            Kind::Json => ("TEXT".into(), Some(format!("json_valid({c})"))),
            Kind::Bool => ("INTEGER".into(), Some(format!("{c} IN (0, 1)"))),
            Kind::Time | Kind::DesignTime | Kind::Text => ("TEXT".into(), None),
            Kind::U63 | Kind::Int | Kind::TinyInt => ("INTEGER".into(), None),
            Kind::Real => ("REAL".into(), None),
            Kind::Hash => ("BLOB".into(), Some(format!("length({c}) = 32"))),
            Kind::Blob => ("BLOB".into(), None),
        };
        let check = check.map_or_else(String::new, |check| format!(" CHECK({check})"));
        format!("{c} {kind}{}{check}", self.rest())
    }

    fn mysql(&self, all: &[Table]) -> String {
        let kind = match &self.kind {
            Kind::Id => return format!("{} INT AUTO_INCREMENT PRIMARY KEY", self.name),
            Kind::BigId => return format!("{} BIGINT AUTO_INCREMENT PRIMARY KEY", self.name),
            Kind::Reference(table) => {
                let target = all.iter().find(|other| other.name == *table);
                let is_big = target.is_some_and(|target| matches!(target.columns[0].kind, Kind::BigId));
                (if is_big { "BIGINT" } else { "INT" }).into()
            }
            Kind::Str(length) => format!("VARCHAR({length})"),
            Kind::Enum(words) => format!("ENUM('{}')", words.join("','")),
            Kind::Json => "JSON".into(),
            Kind::Bool => "BOOLEAN".into(),
            Kind::Time => "DATETIME(3)".into(),
            // Explicit NULL or NOT NULL and a default keep the server from adding ON UPDATE by itself.
            Kind::DesignTime if self.is_null => return format!("{} TIMESTAMP NULL", self.name),
            Kind::DesignTime if self.name == "updated_at" => {
                let on_update = "DEFAULT CURRENT_TIMESTAMP ON UPDATE CURRENT_TIMESTAMP";
                return format!("{} TIMESTAMP NOT NULL {on_update}", self.name);
            }
            Kind::DesignTime => return format!("{} TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP", self.name),
            Kind::U63 => "BIGINT".into(),
            Kind::Int => "INT".into(),
            Kind::TinyInt => "TINYINT".into(),
            Kind::Real => "DOUBLE".into(),
            Kind::Hash => "BINARY(32)".into(),
            Kind::Blob => "LONGBLOB".into(),
            Kind::Text => "LONGTEXT".into(),
        };
        format!("{} {kind}{}", self.name, self.rest())
    }

    fn rest(&self) -> String {
        let mut rest = String::new();
        rest += if self.is_null { " NULL" } else { " NOT NULL" };
        if let Some(default) = self.default {
            let is_number = default.bytes().all(|byte| byte.is_ascii_digit());
            rest += &if is_number { format!(" DEFAULT {default}") } else { format!(" DEFAULT '{default}'") };
        }
        if self.is_primary {
            rest += " PRIMARY KEY";
        }
        rest
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_reference_points_at_a_table_made_before() {
        let all = tables();
        let mut made = BTreeSet::new();
        for table in &all {
            assert!(made.insert(table.name), "{} is there twice", table.name);
            for column in &table.columns {
                if let Kind::Reference(target) = column.kind {
                    assert!(made.contains(target), "{}.{} points at {target}", table.name, column.name);
                }
            }
            for key in &table.keys {
                for name in &key.columns {
                    let name = name.trim_end_matches(" desc");
                    let is_known = table.columns.iter().any(|column| column.name == name);
                    assert!(is_known, "{}: key {} names {name}", table.name, key.name);
                }
            }
        }
    }

    /// The design document's tables, as spec control-api 7.2 spells them.
    #[test]
    fn the_design_documents_columns_come_first_and_in_its_order() {
        let all = tables();
        for (name, columns) in [
            (
                "s3_hyperv_vms",
                "id job_id vm_name vm_guid generation is_linux integration_services rct_enabled created_at updated_at",
            ),
            (
                "s3_hyperv_vm_disks",
                "id vm_id disk_path controller_type controller_number controller_location vhd_format size_bytes \
                 rct_enabled current_rct_id created_at updated_at",
            ),
            (
                "s3_hyperv_checkpoints",
                "id vm_id run_id checkpoint_id checkpoint_name checkpoint_type rct_ids is_active created_at merged_at",
            ),
            (
                "s3_hyperv_backup_points",
                "id vm_id run_id backup_type manifest_id parent_backup_id vm_config_json disk_manifests \
                 total_size_bytes changed_size_bytes duration_seconds consistency_level created_at expires_at",
            ),
            (
                "s3_hyperv_instant_restore_sessions",
                "id backup_point_id target_host restored_vm_name session_type nbd_address iscsi_target_iqn \
                 differential_vhdx_path status migration_progress started_at completed_at",
            ),
        ] {
            let table = all.iter().find(|table| table.name == name).unwrap_or_else(|| panic!("{name} is missing"));
            let wanted: Vec<&str> = columns.split_whitespace().collect();
            let is: Vec<&str> = table.columns.iter().take(wanted.len()).map(|column| column.name).collect();
            assert_eq!(is, wanted, "{name}");
        }
    }
}
