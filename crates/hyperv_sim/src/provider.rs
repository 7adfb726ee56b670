//! The WMI provider: queries, objects, and the strict door to the methods.

use std::collections::BTreeMap;
use std::sync::Arc;

use hyperv::seam::{CimType, CimValue, Instance, MethodOutput, Namespace, ObjectPath, Wmi, WmiError};

use crate::embedded;
use crate::error::LabError;
use crate::faults::Fault;
use crate::host::{LabHost, Tx};
use crate::methods;
use crate::object_path::{ParsedPath, parse_path};
use crate::objects;
use crate::schema::{Class, Method, Type, schema};
use crate::service;
use crate::wql::{self, Query};

const FAILED: u32 = 0x8004_1001;
const NOT_FOUND: u32 = 0x8004_1002;
const ACCESS_DENIED: u32 = 0x8004_1003;
const TYPE_MISMATCH: u32 = 0x8004_1005;
const INVALID_PARAMETER: u32 = 0x8004_1008;
const INVALID_NAMESPACE: u32 = 0x8004_100E;
const INVALID_CLASS: u32 = 0x8004_1010;
const INVALID_QUERY: u32 = 0x8004_1017;
const INVALID_METHOD: u32 = 0x8004_102E;
const INVALID_OBJECT_PATH: u32 = 0x8004_103A;

/// [`Wmi`] of a [`LabHost`].
pub(crate) struct LabWmi {
    host: Arc<LabHost>,
}

/// Why a call ends without a `ReturnValue`.
pub(crate) enum Refusal {
    /// The provider's own HRESULT and text.
    Wmi(u32, String),
    /// The lab broke down.
    Lab(LabError),
}

impl From<LabError> for Refusal {
    fn from(error: LabError) -> Self {
        Self::Lab(error)
    }
}

impl Refusal {
    fn into_error(self, operation: String) -> WmiError {
        match self {
            Self::Wmi(hresult, message) => WmiError { operation, hresult, message },
            Self::Lab(error) => WmiError { operation, hresult: FAILED, message: describe(&error) },
        }
    }
}

/// An error with its causes, on one line.
pub(crate) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

impl LabWmi {
    pub(crate) fn new(host: Arc<LabHost>) -> Self {
        Self { host }
    }

    /// Runs `body` in a call of the host. A refusal still commits what had become due before it.
    fn transact<R>(
        &self,
        operation: impl FnOnce() -> String,
        body: impl FnOnce(&mut Tx<'_>) -> Result<R, Refusal>,
    ) -> Result<R, WmiError> {
        let result = self.host.transact(|tx| match body(tx) {
            Ok(value) => Ok(Ok(value)),
            Err(Refusal::Lab(error)) => Err(error),
            Err(refusal) => Ok(Err(refusal)),
        });
        match result {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(refusal)) => Err(refusal.into_error(operation())),
            Err(error) => Err(Refusal::Lab(error).into_error(operation())),
        }
    }
}

impl Wmi for LabWmi {
    fn query(&self, namespace: Namespace, wql: &str) -> Result<Vec<Instance>, WmiError> {
        self.transact(
            || format!("query {wql:?}"),
            |tx| {
                service::arrive(tx, None)?;
                run_query(tx, namespace, wql)
            },
        )
    }

    fn get(&self, namespace: Namespace, path: &ObjectPath) -> Result<Instance, WmiError> {
        self.transact(
            || format!("get {path}"),
            |tx| {
                service::arrive(tx, None)?;
                if lacks_rights(tx)? {
                    return Err(Refusal::Wmi(ACCESS_DENIED, "Access denied".into()));
                }
                resolve(tx, namespace, path)
            },
        )
    }

    fn class_properties(&self, namespace: Namespace, class: &str) -> Result<Option<Vec<String>>, WmiError> {
        self.transact(
            || format!("look at class {class}"),
            |tx| {
                service::arrive(tx, None)?;
                let class = schema().class(class).filter(|class| class.namespace == namespace);
                Ok(class.map(|class| class.properties.keys().cloned().collect()))
            },
        )
    }

    fn call(
        &self,
        namespace: Namespace,
        object: &ObjectPath,
        method: &str,
        parameters: &[(&str, CimValue)],
    ) -> Result<MethodOutput, WmiError> {
        self.transact(
            || format!("call {method} on {object}"),
            |tx| {
                let restart = service::arrive(tx, Some(method))?;
                let faults = tx.faults()?;
                for fault in &faults {
                    match fault {
                        Fault::NoRights => return Err(Refusal::Wmi(ACCESS_DENIED, "Access denied".into())),
                        Fault::MethodUnreachable { method: failing, hresult } if failing == method => {
                            return Err(Refusal::Wmi(*hresult, "injected".into()));
                        }
                        _ => {}
                    }
                }
                let (instance, is_class) = match class_named(namespace, object)? {
                    Some(class) => (class, true),
                    None => (resolve(tx, namespace, object)?, false),
                };
                let class = schema().own(&instance.class);
                let signature =
                    class.methods.get(method).filter(|signature| signature.is_static == is_class).ok_or_else(|| {
                        Refusal::Wmi(INVALID_METHOD, format!("{} has no method {method}", class.name))
                    })?;
                let inputs = check_inputs(tx, signature, parameters)?;
                let planned = faults.iter().find_map(|fault| match fault {
                    Fault::MethodReturns { method: failing, return_value } if failing == method => Some(*return_value),
                    _ => None,
                });
                let output = match planned {
                    Some(return_value) => MethodOutput { return_value, out: BTreeMap::new() },
                    None => methods::call(tx, &instance, method, &inputs)?,
                };
                match restart {
                    Some(restart) => Err(service::leave(tx, &restart)?),
                    None => Ok(checked_output(signature, method, output)),
                }
            },
        )
    }
}

fn lacks_rights(tx: &Tx<'_>) -> Result<bool, LabError> {
    Ok(tx.faults()?.contains(&Fault::NoRights))
}

fn run_query(tx: &Tx<'_>, namespace: Namespace, wql: &str) -> Result<Vec<Instance>, Refusal> {
    let invalid = |why: String| Refusal::Wmi(INVALID_QUERY, why);
    let query = wql::parse(wql).map_err(invalid)?;
    if namespace == Namespace::Cluster && tx.options.cluster.is_none() {
        return Err(Refusal::Wmi(INVALID_NAMESPACE, format!("there is no {}", namespace.path())));
    }
    if lacks_rights(tx)? {
        return Ok(Vec::new());
    }
    match query {
        Query::Select { columns, class, conditions } => {
            // A real host finds nothing in a class that it does not have; here a class that no host has is a mistake.
            let class = schema()
                .class(&class)
                .filter(|class| class.namespace == namespace)
                .ok_or_else(|| Refusal::Wmi(INVALID_CLASS, format!("{} has no class {class}", namespace.path())))?;
            for name in columns.iter().chain(conditions.iter().map(|condition| &condition.property)) {
                if class.property(name).is_none() {
                    return Err(invalid(format!("{} has no property {name}", class.name)));
                }
            }
            for condition in &conditions {
                condition.check(class).map_err(invalid)?;
            }
            let mut found = Vec::new();
            for mut instance in objects::instances(tx, class) {
                let mut fits = true;
                for condition in &conditions {
                    fits &= condition.matches(&instance).map_err(invalid)?;
                }
                if fits {
                    if !columns.is_empty() {
                        let wanted = |name: &str| columns.iter().any(|column| column.eq_ignore_ascii_case(name));
                        instance.properties.retain(|name, _| wanted(name));
                    }
                    found.push(instance);
                }
            }
            Ok(found)
        }
        Query::Associators { path, assoc_class, result_class } => {
            let source = resolve(tx, namespace, &ObjectPath::new(path))?;
            let unknown = |name: &str| Refusal::Wmi(INVALID_CLASS, format!("there is no class {name}"));
            let association = assoc_class.as_deref().ok_or_else(|| invalid("AssocClass is wanted".into()))?;
            let association = schema().class(association).filter(|class| class.is_association);
            let association = association.ok_or_else(|| unknown(assoc_class.as_deref().unwrap_or_default()))?;
            let result_class = match &result_class {
                Some(name) => Some(schema().class(name).ok_or_else(|| unknown(name))?),
                None => None,
            };
            associated(tx, namespace, &source, association, result_class)
        }
    }
}

fn associated(
    tx: &Tx<'_>,
    namespace: Namespace,
    source: &Instance,
    association: &Class,
    result_class: Option<&Class>,
) -> Result<Vec<Instance>, Refusal> {
    let mut found = Vec::new();
    for (one, other) in objects::pairs(tx, &association.name) {
        let target = match &source.path {
            Some(path) if *path == one => other,
            Some(path) if *path == other => one,
            _ => continue,
        };
        let target = resolve(tx, namespace, &target)?;
        if result_class.is_none_or(|class| schema().own(&target.class).is_a(&class.name)) {
            found.push(target);
        }
    }
    Ok(found)
}

/// The class itself, when the path is nothing but its name: what static methods are called on.
fn class_named(namespace: Namespace, path: &ObjectPath) -> Result<Option<Instance>, Refusal> {
    let name = path.as_str();
    if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        return Ok(None);
    }
    let class = schema().class(name).filter(|class| class.namespace == namespace);
    let class = class.ok_or_else(|| Refusal::Wmi(INVALID_CLASS, format!("there is no class {name}")))?;
    Ok(Some(Instance { class: class.name.clone(), path: None, properties: BTreeMap::new() }))
}

/// The object that a path names, in this namespace of this host.
fn resolve(tx: &Tx<'_>, namespace: Namespace, path: &ObjectPath) -> Result<Instance, Refusal> {
    let parsed = parse_path(path.as_str())
        .ok_or_else(|| Refusal::Wmi(INVALID_OBJECT_PATH, format!("{path} is no object path")))?;
    let ParsedPath { host, namespace: named, class, .. } = &parsed;
    let is_here = host == "." || host.eq_ignore_ascii_case(&tx.options.host_name);
    if !is_here || !named.eq_ignore_ascii_case(namespace.path()) {
        return Err(Refusal::Wmi(INVALID_NAMESPACE, format!(r"\\{host}\{named} is not {}", namespace.path())));
    }
    if schema().class(class).is_none_or(|class| class.namespace != namespace) {
        return Err(Refusal::Wmi(INVALID_CLASS, format!("there is no class {class}")));
    }
    objects::find(tx, &parsed).ok_or_else(|| Refusal::Wmi(NOT_FOUND, format!("{path} does not exist")))
}

/// Input parameters that have passed every check: names, types, references, embedded instances.
pub(crate) struct Inputs {
    values: BTreeMap<String, CimValue>,
    objects: BTreeMap<String, Vec<Instance>>,
    embedded: BTreeMap<String, Vec<Instance>>,
}

impl Inputs {
    /// A parameter; null when it was left out.
    pub(crate) fn value(&self, name: &str) -> &CimValue {
        static NULL: CimValue = CimValue::Null;
        self.values.get(name).unwrap_or(&NULL)
    }

    pub(crate) fn text(&self, name: &str) -> &str {
        self.value(name).as_str().unwrap_or_default()
    }

    pub(crate) fn number(&self, name: &str) -> u64 {
        self.value(name).as_u64().unwrap_or_default()
    }

    /// The object that a required reference names.
    pub(crate) fn object(&self, name: &str) -> &Instance {
        &self.objects[name][0]
    }

    /// The objects of an array of references; `None` when it was null.
    pub(crate) fn objects(&self, name: &str) -> Option<&[Instance]> {
        self.objects.get(name).map(Vec::as_slice)
    }

    /// An embedded instance; `None` when the text was empty or null.
    pub(crate) fn embedded(&self, name: &str) -> Option<&Instance> {
        self.embedded_list(name).first()
    }

    /// The embedded instances of an array; none when it was null.
    pub(crate) fn embedded_list(&self, name: &str) -> &[Instance] {
        self.embedded.get(name).map(Vec::as_slice).unwrap_or_default()
    }

    /// A truth value; false when it was left out.
    pub(crate) fn flag(&self, name: &str) -> bool {
        self.value(name).as_bool().unwrap_or_default()
    }
}

fn check_inputs(tx: &Tx<'_>, method: &Method, parameters: &[(&str, CimValue)]) -> Result<Inputs, Refusal> {
    let bad = |why: String| Refusal::Wmi(INVALID_PARAMETER, why);
    let mut inputs = Inputs { values: BTreeMap::new(), objects: BTreeMap::new(), embedded: BTreeMap::new() };
    for (name, value) in parameters {
        // Names compare without case in WMI; here a misspelling in case is a misspelling.
        let kind = method.inputs.get(*name).ok_or_else(|| bad(format!("there is no parameter {name}")))?;
        if inputs.values.insert((*name).to_owned(), value.clone()).is_some() {
            return Err(bad(format!("{name} is given twice")));
        }
        if !kind.admits(value) {
            return Err(Refusal::Wmi(TYPE_MISMATCH, format!("{name} is {kind:?}, not {value:?}")));
        }
        check_content(tx, name, kind, value, &mut inputs)?;
    }
    for (name, kind) in &method.inputs {
        if !kind.nullable && inputs.value(name).is_null() {
            return Err(bad(format!("{name} is missing")));
        }
    }
    Ok(inputs)
}

fn check_content(tx: &Tx<'_>, name: &str, kind: &Type, value: &CimValue, inputs: &mut Inputs) -> Result<(), Refusal> {
    let Some(class) = &kind.class else { return Ok(()) };
    let values = match value {
        CimValue::Array(_, values) => values.as_slice(),
        scalar => std::slice::from_ref(scalar),
    };
    if kind.base == CimType::String {
        let mut instances = Vec::new();
        for text in values.iter().filter_map(CimValue::as_str) {
            if text.is_empty() && !kind.is_array {
                continue;
            }
            let instance = embedded::parse(text, class)
                .map_err(|why| Refusal::Wmi(INVALID_PARAMETER, format!("{name}: {why}")))?;
            instances.push(instance);
        }
        inputs.embedded.insert(name.to_owned(), instances);
        return Ok(());
    }
    if value.is_null() {
        return Ok(());
    }
    let references = values.iter().filter_map(|value| match value {
        CimValue::Reference(path) => Some(path),
        _ => None,
    });
    let mut objects = Vec::new();
    for path in references {
        let object = resolve(tx, Namespace::Virtualization, path)?;
        if !schema().own(&object.class).is_a(class) {
            return Err(Refusal::Wmi(INVALID_PARAMETER, format!("{name}: {path} is no {class}")));
        }
        objects.push(object);
    }
    inputs.objects.insert(name.to_owned(), objects);
    Ok(())
}

/// Outputs as the schema has them; anything else is a mistake of ours. Missing ones become null.
fn checked_output(method: &Method, name: &str, mut output: MethodOutput) -> MethodOutput {
    for (parameter, value) in &output.out {
        let kind = method.outputs.get(parameter);
        assert!(kind.is_some_and(|kind| kind.admits(value)), "output {parameter} of {name}: {value:?}");
    }
    for parameter in method.outputs.keys() {
        output.out.entry(parameter.clone()).or_insert(CimValue::Null);
    }
    output
}
