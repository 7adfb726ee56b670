//! Migrations: numbered, forward only, checksummed, under a lock that every instance waits for.

use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use super::{Db, Dialect, StoreError, Tx, schema};
use crate::args;
use crate::hex;

/// One step of the schema.
struct Migration {
    version: i64,
    name: &'static str,
    /// What its checksum is made of: a step that changed after it was applied is refused.
    source: &'static str,
    kind: Kind,
}

enum Kind {
    /// The source is tables as [`schema`] writes them.
    Tables,
    /// The source is statements, one a line, that every dialect knows.
    Statements,
}

impl Migration {
    fn statements(&self, dialect: Dialect) -> Vec<String> {
        match self.kind {
            Kind::Tables => {
                let all = schema::tables();
                schema::tables_of(self.source).iter().flat_map(|table| table.statements(dialect, &all)).collect()
            }
            Kind::Statements => self.source.lines().map(|line| line.trim_end_matches(';').to_owned()).collect(),
        }
    }
}

fn migrations() -> [Migration; 3] {
    [
        Migration { version: 1, name: "all tables", source: schema::STEPS[0], kind: Kind::Tables },
        Migration { version: 2, name: "accounts", source: schema::STEPS[1], kind: Kind::Tables },
        // What counts and pages of hundreds of thousands of points are read from.
        Migration {
            version: 3,
            name: "indexes of lists",
            source: include_str!("schema_indexes.sql"),
            kind: Kind::Statements,
        },
    ]
}

/// Applies what is missing.
pub(super) async fn run(db: &Db) -> Result<(), StoreError> {
    match db.dialect() {
        // `BEGIN IMMEDIATE` is the lock, and the whole is one transaction.
        Dialect::Sqlite => {
            let mut tx = db.write().await?;
            apply(&mut tx).await?;
            tx.commit().await
        }
        // A statement that makes a table commits by itself here: the lock is one of its own, on this connection.
        Dialect::MySql => {
            let mut tx = db.read().await?;
            if tx.count("SELECT CAST(GET_LOCK('e3_migrations', 120) AS SIGNED)", args![]).await? != 1 {
                return Err(StoreError::Schema("another instance holds the migration lock for two minutes".into()));
            }
            let done = apply(&mut tx).await;
            let _ = tx.row("SELECT RELEASE_LOCK('e3_migrations')", args![]).await;
            done
        }
    }
}

async fn apply(tx: &mut Tx) -> Result<(), StoreError> {
    let table = "CREATE TABLE IF NOT EXISTS schema_migrations (version BIGINT NOT NULL PRIMARY KEY, \
                 name VARCHAR(191) NOT NULL, checksum VARCHAR(64) NOT NULL, applied_at VARCHAR(32) NULL)";
    tx.change(table, args![]).await?;
    let applied =
        tx.rows("SELECT version, checksum, applied_at FROM schema_migrations ORDER BY version", args![]).await?;
    let known = migrations();
    for row in &applied {
        let version = row.int("version")?;
        let Some(migration) = known.iter().find(|migration| migration.version == version) else {
            let text =
                format!("step {version} is of a newer version of this program: install that, or a copy from before");
            return Err(StoreError::Schema(text));
        };
        if row.opt_text("applied_at")?.is_none() {
            let text = format!("step {version} ({}) stopped half way: restore a copy from before", migration.name);
            return Err(StoreError::Schema(text));
        }
        if row.text("checksum")? != checksum(migration) {
            let text = format!(
                "step {version} ({}) was applied in another form: not a database of this version",
                migration.name
            );
            return Err(StoreError::Schema(text));
        }
    }
    for migration in known.iter().skip(applied.len()) {
        // Written first and completed last, so that a half-made schema on MySQL is recognised.
        let columns = [
            ("version", migration.version.into()),
            ("name", migration.name.into()),
            ("checksum", checksum(migration).into()),
        ];
        tx.insert("schema_migrations", &columns).await?;
        for statement in migration.statements(tx.dialect()) {
            tx.change(&statement, args![]).await?;
        }
        let at = super::time_text(Timestamp::now());
        let done = "UPDATE schema_migrations SET applied_at = ? WHERE version = ?";
        tx.change(done, args![at, migration.version]).await?;
    }
    Ok(())
}

fn checksum(migration: &Migration) -> String {
    hex(&Sha256::digest(migration.source.as_bytes()))
}
