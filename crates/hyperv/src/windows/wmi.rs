//! WMI of this machine.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use super::automation::{self, Automation, RawObject};
use super::com::{Apartment, Connection, Failure, Next, Objects};
use super::object_path::class_of;
use super::workers::Workers;
use crate::seam::{CimValue, Instance, MethodOutput, Namespace, ObjectPath, Wmi, WmiError};

/// WMI over COM. Calls may run concurrently, each in a thread of its own pool: COM's interfaces never leave the thread
/// that made them.
pub struct WmiCom {
    workers: Workers<Connections>,
}

/// More calls at once only wait for each other in the provider.
const MOST_THREADS: usize = 8;

const NOT_FOUND: u32 = 0x8004_1002;
const INVALID_CLASS: u32 = 0x8004_1010;
const INVALID_OBJECT_PATH: u32 = 0x8004_103A;
const INVALID_METHOD_PARAMETERS: u32 = 0x8004_102F;
const TYPE_MISMATCH: u32 = 0x8004_1005;

impl Default for WmiCom {
    fn default() -> Self {
        Self::new()
    }
}

impl WmiCom {
    /// Connects when it is first asked.
    pub fn new() -> Self {
        Self::with_threads(MOST_THREADS)
    }

    /// The same with so many threads at most.
    pub fn with_threads(most: usize) -> Self {
        Self { workers: Workers::new(most.max(1), Connections::default) }
    }

    /// Subscribes to the events of a WQL event query such as `SELECT * FROM __InstanceModificationEvent WITHIN 2 WHERE
    /// TargetInstance ISA 'Msvm_ComputerSystem'`. Events shorten a wait, no more: they stop coming when the service
    /// restarts, so what is true is asked for (spec 8.2).
    pub fn subscribe(&self, namespace: Namespace, wql: &str) -> Result<EventStream, WmiError> {
        EventStream::open(namespace, wql.to_owned())
    }

    /// Runs `read`, which changes nothing, once more when the connection was lost.
    fn reading<T: Send + 'static>(
        &self,
        namespace: Namespace,
        operation: String,
        read: impl Fn(&Connection) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, WmiError> {
        let result = self.workers.run(move |connections| match connections.with(namespace, &read) {
            Err(failure) if connection_is_lost(failure.hresult) => connections.with(namespace, &read),
            result => result,
        });
        result.map_err(|failure| error(operation, failure))
    }
}

impl Wmi for WmiCom {
    fn query(&self, namespace: Namespace, wql: &str) -> Result<Vec<Instance>, WmiError> {
        let operation = format!("query {wql:?}");
        let wql = wql.to_owned();
        let objects = self.reading(namespace, operation.clone(), move |connection| {
            match connection.query(&wql).and_then(|objects| collect(&objects)) {
                // The class may be one of newer hosts.
                Err(failure) if failure.hresult == INVALID_CLASS => Ok(Vec::new()),
                result => result,
            }
        })?;
        objects.into_iter().map(|raw| instance(&operation, raw)).collect()
    }

    fn get(&self, namespace: Namespace, path: &ObjectPath) -> Result<Instance, WmiError> {
        let operation = format!("get {path}");
        let path = path.as_str().to_owned();
        let raw = self.reading(namespace, operation.clone(), move |connection| connection.get(&path)?.read())?;
        instance(&operation, raw)
    }

    fn class_properties(&self, namespace: Namespace, class: &str) -> Result<Option<Vec<String>>, WmiError> {
        let operation = format!("get class {class}");
        let class = class.to_owned();
        self.reading(namespace, operation, move |connection| match connection.get(&class) {
            Ok(object) => Ok(Some(object.read()?.properties.into_iter().map(|property| property.name).collect())),
            Err(failure) if matches!(failure.hresult, NOT_FOUND | INVALID_CLASS) => Ok(None),
            Err(failure) => Err(failure),
        })
    }

    fn call(
        &self,
        namespace: Namespace,
        object: &ObjectPath,
        method: &str,
        parameters: &[(&str, CimValue)],
    ) -> Result<MethodOutput, WmiError> {
        let operation = format!("call {method} on {object}");
        let call = Call {
            path: object.as_str().to_owned(),
            method: method.to_owned(),
            parameters: parameters.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect(),
        };
        let result = self.workers.run(move |connections| {
            // Only what comes before the call itself is tried again: whether a lost call was done is not known.
            let input = match connections.with(namespace, |connection| call.signature(connection)) {
                Err(failure) if connection_is_lost(failure.hresult) => {
                    connections.with(namespace, |connection| call.signature(connection))
                }
                result => result,
            }?;
            connections.with(namespace, |connection| {
                let input = input.map(|signature| call.fill(&signature)).transpose()?;
                let output = connection.exec_method(&call.path, &call.method, input.as_ref())?;
                output.map(|output| output.read()).transpose()
            })
        });
        let output = result.map_err(|failure| error(operation.clone(), failure))?;
        method_output(&operation, output)
    }
}

/// A method call, on its way to the thread that makes it.
struct Call {
    path: String,
    method: String,
    parameters: Vec<(String, CimValue)>,
}

impl Call {
    /// The method's in-signature. Also refuses parameters where the method takes none.
    fn signature(&self, connection: &Connection) -> Result<Option<super::com::Object>, Failure> {
        let class = class_of(&self.path);
        if class.is_empty() {
            return Err(own_failure(INVALID_OBJECT_PATH, "the path names no class".into()));
        }
        let signature = connection.get(class)?.in_signature(&self.method)?;
        match self.parameters.first() {
            Some((name, _)) if signature.is_none() => Err(self.no_parameter(name)),
            _ => Ok(signature),
        }
    }

    /// The parameters, each of exactly the type that the signature wants.
    fn fill(&self, signature: &super::com::Object) -> Result<super::com::Object, Failure> {
        let input = signature.spawn()?;
        for (name, value) in &self.parameters {
            let declared = signature.property(name)?.ok_or_else(|| self.no_parameter(name))?;
            let value = automation::to_wmi(declared.cim_type, value)
                .map_err(|mismatch| own_failure(TYPE_MISMATCH, format!("parameter {name} {mismatch}")))?;
            input.set(name, &value)?;
        }
        Ok(input)
    }

    fn no_parameter(&self, name: &str) -> Failure {
        own_failure(INVALID_METHOD_PARAMETERS, format!("{} has no parameter {name}", self.method))
    }
}

fn method_output(operation: &str, output: Option<RawObject>) -> Result<MethodOutput, WmiError> {
    let mut out = match output {
        Some(raw) => instance(operation, raw)?.properties,
        None => Default::default(),
    };
    let return_value = match out.remove("ReturnValue") {
        None | Some(CimValue::Null) => 0,
        Some(CimValue::Sint32(value)) => value.cast_unsigned(),
        Some(value) => value.as_u64().and_then(|value| u32::try_from(value).ok()).ok_or_else(|| {
            error(operation.to_owned(), own_failure(TYPE_MISMATCH, format!("ReturnValue is {value:?}")))
        })?,
    };
    Ok(MethodOutput { return_value, out })
}

/// One thread's connections. A lost one is opened anew by the next call.
#[derive(Default)]
struct Connections {
    apartment: Option<Apartment>,
    open: HashMap<Namespace, Connection>,
}

impl Connections {
    fn with<T>(
        &mut self,
        namespace: Namespace,
        act: impl FnOnce(&Connection) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let apartment = match &mut self.apartment {
            Some(apartment) => apartment,
            none => none.insert(Apartment::enter()?),
        };
        let connection = match self.open.entry(namespace) {
            Entry::Occupied(open) => open.into_mut(),
            Entry::Vacant(place) => place.insert(Connection::open(apartment, namespace.path())?),
        };
        let result = act(connection);
        if result.as_ref().is_err_and(|failure| connection_is_lost(failure.hresult)) {
            self.open.remove(&namespace);
        }
        result
    }
}

/// The service, or our proxy for it, is gone: `RPC_S_SERVER_UNAVAILABLE`, `RPC_S_CALL_FAILED` and
/// `…_CALL_FAILED_DNE`, `RPC_E_DISCONNECTED`, `WBEM_E_TRANSPORT_FAILURE`, `CO_E_OBJNOTCONNECTED`,
/// `RPC_E_SERVER_DIED` and `…_DIED_DNE`.
fn connection_is_lost(hresult: u32) -> bool {
    matches!(
        hresult,
        0x8007_06BA | 0x8007_06BE | 0x8007_06BF | 0x8001_0108 | 0x8004_1015 | 0x8004_01FD | 0x8001_0007 | 0x8001_0012
    )
}

fn collect(objects: &Objects) -> Result<Vec<RawObject>, Failure> {
    let mut found = Vec::new();
    while let Next::Object(object) = objects.next(None)? {
        found.push(object.read()?);
    }
    Ok(found)
}

fn instance(operation: &str, raw: RawObject) -> Result<Instance, WmiError> {
    automation::instance(raw).map_err(|problem| error(operation.to_owned(), own_failure(TYPE_MISMATCH, problem)))
}

fn own_failure(hresult: u32, message: String) -> Failure {
    Failure { hresult, message }
}

fn error(operation: String, failure: Failure) -> WmiError {
    let Failure { hresult, mut message } = failure;
    if message.is_empty() {
        // WMI's own codes have no text in the system's table.
        message = status_text(hresult).to_owned();
    }
    WmiError { operation, hresult, message }
}

/// `WBEMSTATUS` in words (spec 8.5).
fn status_text(hresult: u32) -> &'static str {
    match hresult {
        0x8004_1001 => "the provider failed",
        NOT_FOUND => "there is no such object",
        0x8004_1003 => "access denied",
        0x8004_1004 => "the provider failed after it had begun",
        TYPE_MISMATCH => "a value of the wrong type",
        0x8004_1006 => "out of memory",
        0x8004_1008 => "an invalid parameter",
        0x8004_100C => "not supported",
        0x8004_100E => "there is no such namespace",
        INVALID_CLASS => "there is no such class",
        0x8004_1013 => "the provider could not be loaded",
        0x8004_1015 => "the connection to the service failed",
        0x8004_1017 => "an invalid query",
        0x8004_101D => "an unexpected answer",
        INVALID_METHOD_PARAMETERS => "invalid method parameters",
        INVALID_OBJECT_PATH => "an invalid object path",
        0x8004_106C => "the quota of the provider is used up",
        _ => "no text",
    }
}

/// Events of one subscription, in their order. Dropped, it ends the subscription within half a second.
pub struct EventStream {
    events: mpsc::Receiver<Result<Instance, WmiError>>,
    closed: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

/// What of an event nobody has taken yet; more wait in the service.
const MOST_WAITING_EVENTS: usize = 64;

impl EventStream {
    fn open(namespace: Namespace, wql: String) -> Result<Self, WmiError> {
        let operation = format!("subscribe to {wql:?}");
        let closed = Arc::new(AtomicBool::new(false));
        let (send, events) = mpsc::sync_channel(MOST_WAITING_EVENTS);
        let (send_opened, opened) = mpsc::sync_channel(1);
        let (seen_closed, thread_operation) = (closed.clone(), operation.clone());
        let thread = thread::Builder::new().name("wmi events".into()).spawn(move || {
            let subscribe = || {
                let connection = Connection::open(&Apartment::enter()?, namespace.path())?;
                connection.subscribe(&wql)
            };
            let objects = match subscribe() {
                Ok(objects) => objects,
                Err(failure) => return drop(send_opened.send(Err(failure))),
            };
            let _ = send_opened.send(Ok(()));
            while !seen_closed.load(Ordering::Relaxed) {
                let event = match objects.next(Some(EventStream::LOOK_UP)).and_then(read_event) {
                    Ok(None) => continue,
                    Ok(Some(raw)) => instance(&thread_operation, raw),
                    Err(failure) => Err(error(thread_operation.clone(), failure)),
                };
                let ended = event.is_err();
                if send.send(event).is_err() || ended {
                    return;
                }
            }
        });
        let failed = |hresult, message: String| error(operation.clone(), own_failure(hresult, message));
        // E_OUTOFMEMORY is what a thread that cannot start comes to.
        let thread = thread.map_err(|problem| failed(0x8007_000E, format!("start a thread: {problem}")))?;
        match opened.recv() {
            Ok(Ok(())) => Ok(Self { events, closed, thread: Some(thread) }),
            Ok(Err(failure)) => Err(error(operation, failure)),
            Err(mpsc::RecvError) => unreachable!("the thread reports before it ends"),
        }
    }

    /// How often a waiting thread looks whether anybody still listens.
    const LOOK_UP: Duration = Duration::from_millis(500);

    /// The next event's `TargetInstance`, or for an event without one the event itself; none within `timeout`. After an
    /// error nothing more comes.
    pub fn next(&self, timeout: Duration) -> Result<Option<Instance>, WmiError> {
        match self.events.recv_timeout(timeout) {
            Ok(event) => event.map(Some),
            Err(mpsc::RecvTimeoutError::Timeout) => Ok(None),
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                Err(error("wait for an event".into(), own_failure(0x8004_1015, "the subscription has ended".into())))
            }
        }
    }
}

fn read_event(next: Next) -> Result<Option<RawObject>, Failure> {
    let object = match next {
        Next::Object(object) => object,
        Next::TimedOut => return Ok(None),
        Next::End => return Err(own_failure(0x8004_1015, "the subscription has ended".into())),
    };
    let event = object.read()?;
    let target = event.properties.iter().find(|property| property.name.eq_ignore_ascii_case("TargetInstance"));
    Ok(Some(match target.map(|property| &property.value) {
        Some(Automation::Object(target)) => (**target).clone(),
        _ => event,
    }))
}

impl Drop for EventStream {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::Relaxed);
        // A thread that waits for room in the channel finds nobody listening.
        self.events = mpsc::sync_channel(1).1;
        if let Some(thread) = self.thread.take() {
            // It ends by itself; that it panicked has been printed.
            let _ = thread.join();
        }
    }
}
