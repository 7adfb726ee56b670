//! Every name that the program under test uses: nothing of the seam is a string that nobody checks.
//!
//! The seam of a [`LabHost`](crate::LabHost) notes each class, property, method, parameter, type and direction that the
//! program hands over, and each property and output that it reads. `product-names.txt` lists what it uses; a name that is
//! not there stops the test that meets it, and `tests/every_name.rs` changes every name of the list, one at a time, and
//! sees the simulator refuse it.
//!
//! With `HYPERV_SIM_RECORD` set to a folder, names are written there instead, into a file for each process: so the list is
//! made anew, and compared with what a whole run has used.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::panic::Location;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Mutex, Once, PoisonError};

use hyperv::seam::{
    CimValue, Instance, MethodOutput, Namespace, ObjectPath, ReadObserver, Wmi, WmiError, observe_reads,
};

use crate::embedded;
use crate::object_path::parse_path;
use crate::schema::{Type, schema, type_name, type_of};
use crate::wql::{self, Literal, Query};

/// The folder that names are written to.
const RECORD: &str = "HYPERV_SIM_RECORD";

/// What the program uses, one name per line, sorted.
pub const PRODUCT_NAMES: &str = include_str!("../product-names.txt");

/// One use of a name, as a line: what it is, the namespace, the class, and what follows from the kind.
#[derive(Clone, Copy, Debug)]
enum Use<'a> {
    /// A class that is asked for.
    Class(&'a str),
    /// A property in a condition, with the kind of literal.
    Where(&'a str, &'a str, &'a str),
    /// A column.
    Select(&'a str, &'a str),
    Association(&'a str),
    Result(&'a str),
    /// A property that is read.
    Read(&'a str, &'a str),
    Call(&'a str, &'a str),
    /// A parameter that is given, with its type.
    In(&'a str, &'a str, &'a str, &'a str),
    /// An output that is read.
    Out(&'a str, &'a str, &'a str),
    /// A property of an embedded instance that is given, with its type.
    Written(&'a str, &'a str, &'a str),
}

impl Use<'_> {
    fn line(self, namespace: Namespace) -> String {
        let n = match namespace {
            Namespace::Virtualization => "virtualization",
            Namespace::Cimv2 => "cimv2",
            Namespace::Storage => "storage",
            Namespace::Cluster => "cluster",
        };
        match self {
            Self::Class(class) => format!("class {n} {class}"),
            Self::Where(class, property, literal) => format!("where {n} {class} {property} {literal}"),
            Self::Select(class, property) => format!("select {n} {class} {property}"),
            Self::Association(class) => format!("association {n} {class}"),
            Self::Result(class) => format!("result {n} {class}"),
            Self::Read(class, property) => {
                let kind = schema().class(class).and_then(|class| class.property(property));
                format!("read {n} {class} {property} {}", kind.map_or("unknown".into(), |(_, kind)| describe(kind)))
            }
            Self::Call(class, method) => format!("call {n} {class} {method}"),
            Self::In(class, method, parameter, kind) => format!("in {n} {class} {method} {parameter} {kind}"),
            Self::Out(class, method, parameter) => {
                let method_of = schema().class(class).and_then(|class| class.methods.get(method));
                let kind = method_of.and_then(|method| method.outputs.get(parameter));
                format!("out {n} {class} {method} {parameter} {}", kind.map_or("unknown".into(), describe))
            }
            Self::Written(class, property, kind) => format!("written {n} {class} {property} {kind}"),
        }
    }
}

/// A type as lines have it: `uint16`, `string[]`.
pub(crate) fn describe(kind: &Type) -> String {
    format!("{}{}", type_name(kind.base), if kind.is_array { "[]" } else { "" })
}

fn describe_value(value: &CimValue) -> String {
    match value {
        CimValue::Null => "null".into(),
        CimValue::Array(base, _) => format!("{}[]", type_name(*base)),
        scalar => type_of(scalar).map_or("null", type_name).into(),
    }
}

/// Notes a use: stops the program when the list does not have it, or writes it down.
fn note(namespace: Namespace, used: Use<'_>) {
    static SEEN: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    static FILE: LazyLock<Option<PathBuf>> = LazyLock::new(|| {
        let folder = PathBuf::from(std::env::var_os(RECORD).filter(|folder| !folder.is_empty())?);
        std::fs::create_dir_all(&folder).expect("the folder for names can be made");
        Some(folder.join(format!("{}.txt", uuid::Uuid::new_v4())))
    });
    let line = used.line(namespace);
    let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    if seen.contains(&line) {
        return;
    }
    seen.insert(line.clone());
    match &*FILE {
        Some(path) => {
            let file = std::fs::File::options().create(true).append(true).open(path);
            let written = file.and_then(|mut file| writeln!(file, "{line}"));
            written.unwrap_or_else(|e| panic!("write {}: {e}", path.display()));
        }
        None => {
            drop(seen);
            assert!(
                is_listed(&line),
                "the program uses {line:?}, which crates/hyperv_sim/product-names.txt does not list. If it is right, \
                 add the line; `cargo run -p hyperv_sim --example product_names` says how to make the whole list anew."
            );
        }
    }
}

fn is_listed(line: &str) -> bool {
    static LISTED: LazyLock<BTreeSet<&str>> = LazyLock::new(|| PRODUCT_NAMES.lines().collect());
    LISTED.contains(line)
}

/// A [`Wmi`] that notes every name on its way to another one.
pub(crate) struct NamedWmi {
    inner: Arc<dyn Wmi>,
}

impl NamedWmi {
    pub(crate) fn new(inner: Arc<dyn Wmi>) -> Self {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| observe_reads(ReadObserver { property: property_is_read, output: output_is_read }));
        Self { inner }
    }
}

impl Wmi for NamedWmi {
    fn query(&self, namespace: Namespace, text: &str) -> Result<Vec<Instance>, WmiError> {
        match wql::parse(text) {
            Ok(Query::Select { columns, class, conditions }) => {
                note(namespace, Use::Class(&class));
                columns.iter().for_each(|column| note(namespace, Use::Select(&class, column)));
                for condition in &conditions {
                    let literal = match condition.literal {
                        Literal::Text(_) => "text",
                        Literal::Number(_) => "number",
                        Literal::Boolean(_) => "boolean",
                        Literal::Null => "null",
                    };
                    note(namespace, Use::Where(&class, &condition.property, literal));
                }
            }
            Ok(Query::Associators { assoc_class, result_class, .. }) => {
                assoc_class.iter().for_each(|class| note(namespace, Use::Association(class)));
                result_class.iter().for_each(|class| note(namespace, Use::Result(class)));
            }
            // The host refuses it.
            Err(_) => {}
        }
        self.inner.query(namespace, text)
    }

    fn get(&self, namespace: Namespace, path: &ObjectPath) -> Result<Instance, WmiError> {
        self.inner.get(namespace, path)
    }

    fn class_properties(&self, namespace: Namespace, class: &str) -> Result<Option<Vec<String>>, WmiError> {
        note(namespace, Use::Class(class));
        self.inner.class_properties(namespace, class)
    }

    fn call(
        &self,
        namespace: Namespace,
        object: &ObjectPath,
        method: &str,
        parameters: &[(&str, CimValue)],
    ) -> Result<MethodOutput, WmiError> {
        // A path that is none is the class itself.
        let class = parse_path(object.as_str()).map_or_else(|| object.as_str().to_owned(), |path| path.class);
        note(namespace, Use::Call(&class, method));
        let signature = schema().class(&class).and_then(|class| class.methods.get(method));
        for (name, value) in parameters {
            note(namespace, Use::In(&class, method, name, &describe_value(value)));
            let embedded_class = signature.and_then(|method| method.inputs.get(*name)?.class.as_deref());
            let values = match value {
                CimValue::Array(_, values) => values.as_slice(),
                scalar => std::slice::from_ref(scalar),
            };
            for text in values.iter().filter(|value| matches!(value, CimValue::String(_))) {
                let instance = embedded_class.and_then(|class| embedded::parse(text.as_str()?, class).ok());
                for instance in instance.iter() {
                    note_written(namespace, instance);
                }
            }
        }
        let output = self.inner.call(namespace, object, method, parameters)?;
        let outputs: Vec<String> = output.out.keys().cloned().collect();
        LAST_CALLS.with_borrow_mut(|calls| calls.insert(outputs, (class, method.to_owned())));
        Ok(output)
    }
}

fn note_written(namespace: Namespace, instance: &Instance) {
    for (name, value) in instance.properties.iter().filter(|(_, value)| !value.is_null()) {
        note(namespace, Use::Written(&instance.class, name, &describe_value(value)));
    }
}

thread_local! {
    /// The last method of this thread that had these outputs, so that a read of one of them finds its method.
    static LAST_CALLS: RefCell<BTreeMap<Vec<String>, (String, String)>> = const { RefCell::new(BTreeMap::new()) };
}

fn property_is_read(class: &str, name: &str, at: &'static Location<'static>) {
    if is_program(at.file()) {
        let namespace = schema().class(class).map_or(Namespace::Virtualization, |class| class.namespace);
        note(namespace, Use::Read(class, name));
    }
}

fn output_is_read(output: &MethodOutput, name: &str, at: &'static Location<'static>) {
    if !is_program(at.file()) {
        return;
    }
    let outputs: Vec<String> = output.out.keys().cloned().collect();
    let last = LAST_CALLS.with_borrow(|calls| calls.get(&outputs).cloned());
    if let Some((class, method)) = last {
        note(Namespace::Virtualization, Use::Out(&class, &method, name));
    }
}

/// Whether a place in the source belongs to the program, rather than to this crate or to a test.
fn is_program(file: &str) -> bool {
    let file = file.replace('\\', "/");
    file.contains("crates/") && file.contains("/src/") && !file.contains("crates/hyperv_sim/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_read_is_not_listed() {
        let space = Namespace::Virtualization;
        let method = ("Msvm_VirtualSystemSnapshotService", "CreateSnapshot");
        for (used, listed) in [
            (Use::Read("Msvm_ComputerSystem", "ElementName"), true),
            (Use::Read("Msvm_ComputerSystem", "ElementNam"), false),
            (Use::Read("Msvm_ComputerSystem", "InstanceID"), false),
            (Use::Out(method.0, method.1, "Job"), true),
            (Use::Out(method.0, method.1, "job"), false),
            // The wrong direction.
            (Use::Out(method.0, method.1, "AffectedSystem"), false),
            (Use::In(method.0, method.1, "Job", "reference"), false),
            (Use::In(method.0, method.1, "SnapshotType", "uint32"), false),
        ] {
            assert_eq!(is_listed(&used.line(space)), listed, "{used:?}");
        }
    }

    #[test]
    fn only_the_program_is_watched() {
        for (file, expected) in [
            ("crates/hyperv/src/inventory.rs", true),
            (r"crates\backup\src\run.rs", true),
            ("/somewhere/crates/agent/src/host.rs", true),
            ("crates/hyperv_sim/src/objects.rs", false),
            ("crates/hyperv_sim/tests/strict.rs", false),
            ("crates/backup/tests/vm.rs", false),
        ] {
            assert_eq!(is_program(file), expected, "{file}");
        }
    }
}
