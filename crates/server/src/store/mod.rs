//! The database: SQLite in the data folder, or MySQL/MariaDB that several instances share.
//!
//! One statement text serves both; what differs is in [`Dialect`] and `schema.rs`. A [`Tx`] is either a read, which
//! promises nothing about two statements seeing the same instant, or a write, which is a transaction and is taken back
//! when it is dropped without [`Tx::commit`].
//!
//! On SQLite writes of one process queue before they begin, so that none waits on the file's lock. On MySQL two writes
//! may deadlock: that is [`StoreError::is_transient`], and the caller does the whole call again.

mod migrate;
pub mod schema;
mod value;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sqlx::mysql::{MySqlConnectOptions, MySqlPoolOptions, MySqlRow};
use sqlx::pool::PoolConnection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous};
use sqlx::{AssertSqlSafe, Column as _, MySql, MySqlPool, Row as _, Sqlite, SqlitePool, Transaction, TypeInfo as _};
use sqlx::{Executor as _, ValueRef as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub use value::{Row, Value, time_text};

/// Which database it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// A file of this instance.
    Sqlite,
    /// MySQL 8 or MariaDB 10.6 and newer.
    MySql,
}

/// Why the database did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Connecting failed.
    #[error("connect to the database {place}")]
    Connect {
        /// Where it is, without a password.
        place: String,
        /// Why.
        source: sqlx::Error,
    },
    /// Its address is none.
    #[error("database address {0:?} is neither sqlite:PATH nor mysql://USER@HOST/NAME")]
    Address(String),
    /// A statement failed.
    #[error("ask the database ({statement})")]
    Statement {
        /// Its first words.
        statement: String,
        /// Why.
        source: sqlx::Error,
    },
    /// An answer is not what the schema says.
    #[error("database column {name} {what}")]
    Column {
        /// The column.
        name: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The schema is of another program.
    #[error("database schema: {0}")]
    Schema(String),
}

impl StoreError {
    fn column(name: &str, what: &'static str) -> Self {
        StoreError::Column { name: name.to_owned(), what }
    }

    fn statement(sql: &str, source: sqlx::Error) -> Self {
        let statement = sql.split_whitespace().take(6).collect::<Vec<_>>().join(" ");
        StoreError::Statement { statement, source }
    }

    fn database(&self) -> Option<&dyn sqlx::error::DatabaseError> {
        match self {
            StoreError::Statement { source, .. } => source.as_database_error(),
            _ => None,
        }
    }

    /// A row with that unique key is there already.
    pub fn is_duplicate(&self) -> bool {
        self.database().is_some_and(|error| error.is_unique_violation())
    }

    /// A row that is referred to is missing, or a value is outside of what its column takes.
    pub fn is_refused_value(&self) -> bool {
        self.database().is_some_and(|error| {
            error.is_foreign_key_violation()
                || error.is_check_violation()
                // MySQL: data too long, out of range, truncated.
                || matches!(error.code().as_deref(), Some("22001" | "22003" | "01000" | "4025"))
        })
    }

    /// Two transactions met: doing the whole again may succeed.
    pub fn is_transient(&self) -> bool {
        // SQLSTATE 40001 is a deadlock; 5 and 517 are SQLite's "busy" and "busy snapshot"; HY000 1205 a lock wait.
        self.database().is_some_and(|error| {
            matches!(error.code().as_deref(), Some("40001" | "5" | "517"))
                || error.message().contains("Lock wait timeout")
                || error.message().contains("Record has changed since last read")
        })
    }
}

/// A database.
#[derive(Debug, Clone)]
pub struct Db {
    pool: Pool,
    writers: Arc<Semaphore>,
    queries: Arc<AtomicU64>,
}

#[derive(Debug, Clone)]
enum Pool {
    Sqlite(SqlitePool),
    MySql(MySqlPool),
}

impl Db {
    /// Connects, and brings the schema up to date under a lock.
    ///
    /// `address` is `sqlite:PATH` or `mysql://USER:PASSWORD@HOST:PORT/NAME`.
    pub async fn open(address: &str) -> Result<Db, StoreError> {
        let pool = if let Some(path) = address.strip_prefix("sqlite:") {
            let options = SqliteConnectOptions::new()
                .filename(path)
                .create_if_missing(true)
                .foreign_keys(true)
                .journal_mode(SqliteJournalMode::Wal)
                .synchronous(SqliteSynchronous::Full)
                .busy_timeout(Duration::from_secs(15))
                // KiB, of each connection: the indexes that a list of 200,000 points is counted in.
                .pragma("cache_size", "-16384")
                .pragma("temp_store", "MEMORY")
                .statement_cache_capacity(400);
            let connected = SqlitePoolOptions::new().max_connections(8).connect_with(options).await;
            Pool::Sqlite(connected.map_err(|source| StoreError::Connect { place: path.to_owned(), source })?)
        } else if address.starts_with("mysql://") {
            let options: MySqlConnectOptions = address.parse().map_err(|_| StoreError::Address(hide(address)))?;
            let options = options.timezone("+00:00".to_owned()).statement_cache_capacity(400);
            let connected = MySqlPoolOptions::new()
                .max_connections(24)
                .acquire_timeout(Duration::from_secs(20))
                .after_connect(|connection, _| {
                    Box::pin(async move {
                        connection.execute("SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION'").await?;
                        connection.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED").await?;
                        Ok(())
                    })
                })
                .connect_with(options)
                .await;
            Pool::MySql(connected.map_err(|source| StoreError::Connect { place: hide(address), source })?)
        } else {
            return Err(StoreError::Address(hide(address)));
        };
        let db = Db { pool, writers: Arc::new(Semaphore::new(1)), queries: Arc::default() };
        migrate::run(&db).await?;
        Ok(db)
    }

    /// Which database it is.
    pub fn dialect(&self) -> Dialect {
        match self.pool {
            Pool::Sqlite(_) => Dialect::Sqlite,
            Pool::MySql(_) => Dialect::MySql,
        }
    }

    /// How many statements were executed so far, for budgets in tests.
    pub fn query_count(&self) -> u64 {
        self.queries.load(Ordering::Relaxed)
    }

    /// For reading.
    pub async fn read(&self) -> Result<Tx, StoreError> {
        let failed = |source| StoreError::statement("take a connection", source);
        let inner = match &self.pool {
            Pool::Sqlite(pool) => Inner::SqliteRead(pool.acquire().await.map_err(failed)?),
            Pool::MySql(pool) => Inner::MySqlRead(pool.acquire().await.map_err(failed)?),
        };
        Ok(Tx { inner, _turn: None, queries: self.queries.clone() })
    }

    /// For writing: a transaction.
    pub async fn write(&self) -> Result<Tx, StoreError> {
        let failed = |source| StoreError::statement("BEGIN", source);
        let (inner, turn) = match &self.pool {
            Pool::Sqlite(pool) => {
                // The semaphore is never closed.
                let turn = self.writers.clone().acquire_owned().await.ok();
                (Inner::Sqlite(pool.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?), turn)
            }
            Pool::MySql(pool) => (Inner::MySql(pool.begin().await.map_err(failed)?), None),
        };
        Ok(Tx { inner, _turn: turn, queries: self.queries.clone() })
    }

    /// Lets go of every connection.
    pub async fn close(&self) {
        match &self.pool {
            Pool::Sqlite(pool) => pool.close().await,
            Pool::MySql(pool) => pool.close().await,
        }
    }
}

/// An address without its password.
fn hide(address: &str) -> String {
    match url::Url::parse(address) {
        Ok(mut url) => {
            let _ = url.set_password(None);
            url.to_string()
        }
        Err(_) => address.split('@').next_back().unwrap_or_default().to_owned(),
    }
}

/// Statements on one connection.
#[derive(Debug)]
pub struct Tx {
    inner: Inner,
    _turn: Option<OwnedSemaphorePermit>,
    queries: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Inner {
    SqliteRead(PoolConnection<Sqlite>),
    MySqlRead(PoolConnection<MySql>),
    Sqlite(Transaction<'static, Sqlite>),
    MySql(Transaction<'static, MySql>),
}

/// Binds the values and runs the given method on whichever connection it is.
macro_rules! on_connection {
    ($self:expr, $sql:expr, $args:expr, $method:ident, |$answer:ident| $sqlite:expr, $mysql:expr) => {{
        $self.queries.fetch_add(1, Ordering::Relaxed);
        match &mut $self.inner {
            Inner::SqliteRead(connection) => {
                let $answer = bind_sqlite($sql, $args).$method(&mut **connection).await;
                $answer.map_err(|error| StoreError::statement($sql, error)).and_then($sqlite)
            }
            Inner::Sqlite(connection) => {
                let $answer = bind_sqlite($sql, $args).$method(&mut **connection).await;
                $answer.map_err(|error| StoreError::statement($sql, error)).and_then($sqlite)
            }
            Inner::MySqlRead(connection) => {
                let $answer = bind_mysql($sql, $args).$method(&mut **connection).await;
                $answer.map_err(|error| StoreError::statement($sql, error)).and_then($mysql)
            }
            Inner::MySql(connection) => {
                let $answer = bind_mysql($sql, $args).$method(&mut **connection).await;
                $answer.map_err(|error| StoreError::statement($sql, error)).and_then($mysql)
            }
        }
    }};
}

impl Tx {
    /// Which database it is.
    pub fn dialect(&self) -> Dialect {
        match self.inner {
            Inner::SqliteRead(_) | Inner::Sqlite(_) => Dialect::Sqlite,
            Inner::MySqlRead(_) | Inner::MySql(_) => Dialect::MySql,
        }
    }

    /// What follows a `SELECT` that locks its rows against other instances. SQLite has one writer anyway.
    pub fn for_update(&self) -> &'static str {
        if self.dialect() == Dialect::MySql { " FOR UPDATE" } else { "" }
    }

    /// The same, passing over rows that another instance has locked.
    pub fn for_update_skipping(&self) -> &'static str {
        if self.dialect() == Dialect::MySql { " FOR UPDATE SKIP LOCKED" } else { "" }
    }

    /// Every row.
    pub async fn rows(&mut self, sql: &str, args: &[Value]) -> Result<Vec<Row>, StoreError> {
        on_connection!(self, sql, args, fetch_all, |answer| sqlite_rows, mysql_rows)
    }

    /// The first row, if there is one.
    pub async fn row(&mut self, sql: &str, args: &[Value]) -> Result<Option<Row>, StoreError> {
        Ok(self.rows(sql, args).await?.into_iter().next())
    }

    /// The one integer of an answer; 0 for none.
    pub async fn count(&mut self, sql: &str, args: &[Value]) -> Result<i64, StoreError> {
        let row = self.row(sql, args).await?;
        match row.and_then(|row| row.values.into_iter().next()) {
            Some(Value::Int(count)) => Ok(count),
            Some(Value::Null) | None => Ok(0),
            Some(_) => Err(StoreError::column("count", "is no integer")),
        }
    }

    /// Changes rows; how many matched.
    pub async fn change(&mut self, sql: &str, args: &[Value]) -> Result<u64, StoreError> {
        on_connection!(self, sql, args, execute, |answer| |done| Ok(done.rows_affected()), |done| Ok(
            done.rows_affected()
        ))
    }

    /// Inserts one row into a table with an id; its id.
    pub async fn insert(&mut self, table: &str, columns: &[(&str, Value)]) -> Result<i64, StoreError> {
        let names: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
        let marks = vec!["?"; columns.len()].join(", ");
        let sql = format!("INSERT INTO {table} ({}) VALUES ({marks})", names.join(", "));
        let args: Vec<Value> = columns.iter().map(|(_, value)| value.clone()).collect();
        let (sql, args) = (sql.as_str(), args.as_slice());
        on_connection!(self, sql, args, execute, |answer| |done| Ok(done.last_insert_rowid()), |done| Ok(
            i64::try_from(done.last_insert_id()).unwrap_or(0)
        ))
    }

    /// The same, where a row with the same unique key may be there: whether it was inserted.
    pub async fn insert_new(&mut self, table: &str, columns: &[(&str, Value)]) -> Result<bool, StoreError> {
        match self.insert(table, columns).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_duplicate() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Sets columns of the rows that match; how many did.
    pub async fn update(
        &mut self,
        table: &str,
        columns: &[(&str, Value)],
        condition: &str,
        args: &[Value],
    ) -> Result<u64, StoreError> {
        let sets: Vec<String> = columns.iter().map(|(name, _)| format!("{name} = ?")).collect();
        let sql = format!("UPDATE {table} SET {} WHERE {condition}", sets.join(", "));
        let args: Vec<Value> = columns.iter().map(|(_, value)| value.clone()).chain(args.iter().cloned()).collect();
        self.change(&sql, &args).await
    }

    /// Makes a write last. A read has nothing to commit.
    pub async fn commit(self) -> Result<(), StoreError> {
        let done = match self.inner {
            Inner::SqliteRead(_) | Inner::MySqlRead(_) => Ok(()),
            Inner::Sqlite(transaction) => transaction.commit().await,
            Inner::MySql(transaction) => transaction.commit().await,
        };
        done.map_err(|source| StoreError::statement("COMMIT", source))
    }
}

/// `?, ?, ?` for that many values.
pub fn marks(count: usize) -> String {
    vec!["?"; count].join(", ")
}

type SqliteQuery<'q> = sqlx::query::Query<'q, Sqlite, sqlx::sqlite::SqliteArguments>;
type MySqlQuery<'q> = sqlx::query::Query<'q, MySql, sqlx::mysql::MySqlArguments>;

fn bind_sqlite(sql: &str, args: &[Value]) -> SqliteQuery<'static> {
    args.iter().fold(sqlx::query(AssertSqlSafe(sql.to_owned())), |query, value| match value.clone() {
        Value::Null => query.bind(None::<String>),
        Value::Int(value) => query.bind(value),
        Value::Real(value) => query.bind(value),
        Value::Text(value) => query.bind(value),
        Value::Bytes(value) => query.bind(value),
        Value::Time(value) => query.bind(time_text(value)),
    })
}

fn bind_mysql(sql: &str, args: &[Value]) -> MySqlQuery<'static> {
    args.iter().fold(sqlx::query(AssertSqlSafe(sql.to_owned())), |query, value| match value.clone() {
        Value::Null => query.bind(None::<String>),
        Value::Int(value) => query.bind(value),
        Value::Real(value) => query.bind(value),
        Value::Text(value) => query.bind(value),
        Value::Bytes(value) => query.bind(value),
        Value::Time(value) => query.bind(value::mysql_time(value)),
    })
}

fn names_of<R: sqlx::Row>(rows: &[R]) -> Arc<[String]> {
    rows.first().map(|row| row.columns().iter().map(|column| column.name().to_owned()).collect()).unwrap_or_default()
}

fn sqlite_rows(rows: Vec<SqliteRow>) -> Result<Vec<Row>, StoreError> {
    let names = names_of(&rows);
    let decode = |row: &SqliteRow, at: usize| -> Result<Value, sqlx::Error> {
        let raw = row.try_get_raw(at)?;
        if raw.is_null() {
            return Ok(Value::Null);
        }
        Ok(match raw.type_info().name() {
            "INTEGER" | "BOOLEAN" => Value::Int(row.try_get_unchecked(at)?),
            "REAL" => Value::Real(row.try_get_unchecked(at)?),
            "BLOB" => Value::Bytes(row.try_get_unchecked(at)?),
            _ => Value::Text(row.try_get_unchecked(at)?),
        })
    };
    collect(&rows, &names, decode)
}

fn mysql_rows(rows: Vec<MySqlRow>) -> Result<Vec<Row>, StoreError> {
    let names = names_of(&rows);
    let decode = |row: &MySqlRow, at: usize| -> Result<Value, sqlx::Error> {
        let raw = row.try_get_raw(at)?;
        if raw.is_null() {
            return Ok(Value::Null);
        }
        Ok(match raw.type_info().name() {
            "BIGINT UNSIGNED" | "INT UNSIGNED" => {
                let value: u64 = row.try_get_unchecked(at)?;
                Value::Int(i64::try_from(value).unwrap_or(i64::MAX))
            }
            "BIGINT" | "INT" | "MEDIUMINT" | "SMALLINT" | "TINYINT" | "BOOLEAN" => {
                Value::Int(row.try_get_unchecked(at)?)
            }
            "DOUBLE" => Value::Real(row.try_get_unchecked(at)?),
            "FLOAT" => Value::Real(row.try_get_unchecked::<f32, _>(at)?.into()),
            "DATETIME" => instant(row.try_get_unchecked::<time::PrimitiveDateTime, _>(at)?.assume_utc()),
            "TIMESTAMP" => instant(row.try_get_unchecked::<time::OffsetDateTime, _>(at)?),
            "BINARY" | "VARBINARY" | "TINYBLOB" | "BLOB" | "MEDIUMBLOB" | "LONGBLOB" => {
                // Text in a binary collation says the same; which it is, the reader of the column knows.
                Value::Bytes(row.try_get_unchecked(at)?)
            }
            _ => Value::Text(row.try_get_unchecked(at)?),
        })
    };
    collect(&rows, &names, decode)
}

fn instant(at: time::OffsetDateTime) -> Value {
    let nanoseconds = at.unix_timestamp_nanos();
    jiff::Timestamp::from_nanosecond(nanoseconds).map_or(Value::Null, Value::Time)
}

fn collect<R>(
    rows: &[R],
    names: &Arc<[String]>,
    decode: impl Fn(&R, usize) -> Result<Value, sqlx::Error>,
) -> Result<Vec<Row>, StoreError> {
    let mut answer = Vec::with_capacity(rows.len());
    for row in rows {
        let values: Result<Vec<Value>, sqlx::Error> = (0..names.len()).map(|at| decode(row, at)).collect();
        let values = values.map_err(|source| StoreError::statement("read an answer", source))?;
        answer.push(Row { names: names.clone(), values });
    }
    Ok(answer)
}
