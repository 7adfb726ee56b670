//! COM and WMI as safe functions over plain data. Nothing is decided here.
//!
//! The thread rules are types: an [`Apartment`] and everything made in it are `!Send`, and whatever holds a COM
//! interface also holds its apartment, so that the apartment outlives it.

#![allow(unsafe_code)]

use std::mem::ManuallyDrop;
use std::rc::Rc;
use std::sync::Once;
use std::time::Duration;

use windows::Win32::Foundation::{E_NOINTERFACE, SysAllocStringLen, VARIANT_BOOL};
use windows::Win32::System::Com::{
    CLSCTX_INPROC_SERVER, COINIT_MULTITHREADED, CoCreateInstance, CoInitializeEx, CoInitializeSecurity,
    CoSetProxyBlanket, CoUninitialize, EOAC_NONE, EOAC_STATIC_CLOAKING, RPC_C_AUTHN_LEVEL_PKT_PRIVACY,
    RPC_C_IMP_LEVEL_IMPERSONATE, SAFEARRAY,
};
use windows::Win32::System::Ole::{
    SafeArrayCreateVector, SafeArrayGetDim, SafeArrayGetElement, SafeArrayGetLBound, SafeArrayGetUBound,
    SafeArrayGetVartype, SafeArrayPutElement,
};
use windows::Win32::System::Rpc::{RPC_C_AUTHN_WINNT, RPC_C_AUTHZ_NONE};
use windows::Win32::System::Variant::{
    VARENUM, VARIANT, VARIANT_0, VARIANT_0_0, VARIANT_0_0_0, VT_ARRAY, VT_BOOL, VT_BSTR, VT_EMPTY, VT_I1, VT_I2, VT_I4,
    VT_I8, VT_NULL, VT_R4, VT_R8, VT_UI1, VT_UI2, VT_UI4, VT_UI8, VT_UNKNOWN,
};
use windows::Win32::System::Wmi::{
    IEnumWbemClassObject, IWbemClassObject, IWbemLocator, IWbemServices, WBEM_FLAG_CONNECT_USE_MAX_WAIT,
    WBEM_FLAG_FORWARD_ONLY, WBEM_FLAG_NONSYSTEM_ONLY, WBEM_FLAG_RETURN_IMMEDIATELY, WBEM_GENERIC_FLAG_TYPE,
    WBEM_INFINITE, WBEM_S_TIMEDOUT, WbemLocator,
};
use windows::core::{BSTR, Error, IUnknown, Interface, PCWSTR};

use super::automation::{Automation, ElementType, RawObject, RawProperty};

/// A call failed.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Failure {
    pub hresult: u32,
    /// What the provider or the system says about it; may be empty.
    pub message: String,
}

/// `WBEM_E_TYPE_MISMATCH`: also for what a VARIANT holds that WMI should not send.
const TYPE_MISMATCH: u32 = 0x8004_1005;

/// This thread's membership of the process's multithreaded apartment, which ends with the last clone.
#[derive(Clone)]
pub(super) struct Apartment {
    _entered: Rc<Entered>,
}

struct Entered;

impl Apartment {
    /// Enters it; the first time in the process also sets the process's security.
    pub(super) fn enter() -> Result<Self, Failure> {
        // SAFETY: no argument points anywhere. `Entered` balances the call, on this thread: it is `!Send` in its `Rc`.
        unsafe { CoInitializeEx(None, COINIT_MULTITHREADED) }.ok().map_err(failure)?;
        let apartment = Self { _entered: Rc::new(Entered) };
        static SECURITY: Once = Once::new();
        SECURITY.call_once(set_process_security);
        Ok(apartment)
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        // SAFETY: balances the successful `CoInitializeEx` of this thread. Every interface made since then held a clone
        // of the apartment and was released before it.
        unsafe { CoUninitialize() };
    }
}

/// Once per process, before any proxy; the values serve WMI and VSS alike (spec 8.5). Whoever came first wins:
/// `RPC_E_TOO_LATE` is no error, and other failures leave the system's defaults, which WMI takes too.
fn set_process_security() {
    // SAFETY: a null descriptor and null lists are allowed and mean the defaults; -1 services lets COM choose.
    let _ = unsafe {
        CoInitializeSecurity(
            None,
            -1,
            None,
            None,
            RPC_C_AUTHN_LEVEL_PKT_PRIVACY,
            RPC_C_IMP_LEVEL_IMPERSONATE,
            None,
            EOAC_STATIC_CLOAKING,
            None,
        )
    };
}

/// A namespace of this machine, connected.
pub(super) struct Connection {
    services: IWbemServices,
    apartment: Apartment,
}

impl Connection {
    /// Connects to `namespace`, for example `root\cimv2`; waits two minutes at most.
    pub(super) fn open(apartment: &Apartment, namespace: &str) -> Result<Self, Failure> {
        // SAFETY: this thread is in an apartment. The class and the interface belong together.
        let locator: IWbemLocator =
            unsafe { CoCreateInstance(&WbemLocator, None, CLSCTX_INPROC_SERVER) }.map_err(failure)?;
        let (namespace, null) = (BSTR::from(namespace), BSTR::new());
        // SAFETY: the strings live over the call; null ones mean the caller's own user, locale and authority.
        let services = unsafe {
            locator.ConnectServer(&namespace, &null, &null, &null, WBEM_FLAG_CONNECT_USE_MAX_WAIT.0, &null, None)
        }
        .map_err(failure)?;
        set_blanket(&services)?;
        Ok(Self { services, apartment: apartment.clone() })
    }

    /// Starts a WQL query.
    pub(super) fn query(&self, wql: &str) -> Result<Objects, Failure> {
        let (language, query) = (BSTR::from("WQL"), BSTR::from(wql));
        // SAFETY: the strings live over the call; no context.
        let objects = unsafe { self.services.ExecQuery(&language, &query, SEMISYNCHRONOUS, None) }.map_err(failure)?;
        self.objects(objects)
    }

    /// Subscribes to the events of a WQL event query.
    pub(super) fn subscribe(&self, wql: &str) -> Result<Objects, Failure> {
        let (language, query) = (BSTR::from("WQL"), BSTR::from(wql));
        // SAFETY: the strings live over the call; no context.
        let objects = unsafe { self.services.ExecNotificationQuery(&language, &query, SEMISYNCHRONOUS, None) };
        self.objects(objects.map_err(failure)?)
    }

    fn objects(&self, objects: IEnumWbemClassObject) -> Result<Objects, Failure> {
        set_blanket(&objects)?;
        Ok(Objects { objects, apartment: self.apartment.clone() })
    }

    /// An instance by its path, or a class by its name.
    pub(super) fn get(&self, path: &str) -> Result<Object, Failure> {
        let mut object = None;
        // SAFETY: the path lives over the call, `object` takes the one reference that is given out.
        unsafe {
            self.services.GetObject(&BSTR::from(path), WBEM_GENERIC_FLAG_TYPE(0), None, Some(&raw mut object), None)
        }
        .map_err(failure)?;
        self.object(object).ok_or_else(|| nothing_delivered("GetObject"))
    }

    /// Invokes a method; `input` is an instance of its in-signature. What it returns is none for a method without any
    /// result.
    pub(super) fn exec_method(
        &self,
        path: &str,
        method: &str,
        input: Option<&Object>,
    ) -> Result<Option<Object>, Failure> {
        let mut output = None;
        // SAFETY: the strings and `input` live over the call, `output` takes the one reference that is given out.
        unsafe {
            self.services.ExecMethod(
                &BSTR::from(path),
                &BSTR::from(method),
                WBEM_GENERIC_FLAG_TYPE(0),
                None,
                input.map(|input| &input.object),
                Some(&raw mut output),
                None,
            )
        }
        .map_err(failure)?;
        Ok(self.object(output))
    }

    fn object(&self, object: Option<IWbemClassObject>) -> Option<Object> {
        Some(Object { object: object?, apartment: self.apartment.clone() })
    }
}

const SEMISYNCHRONOUS: WBEM_GENERIC_FLAG_TYPE =
    WBEM_GENERIC_FLAG_TYPE(WBEM_FLAG_FORWARD_ONLY.0 | WBEM_FLAG_RETURN_IMMEDIATELY.0);

/// What WMI wants of a proxy: privacy, and to act as us. Needed on the services and on every enumerator.
fn set_blanket(proxy: &impl Interface) -> Result<(), Failure> {
    let proxy: IUnknown = proxy.cast().map_err(failure)?;
    // SAFETY: the proxy is alive; no principal name and no identity are given.
    let set = unsafe {
        CoSetProxyBlanket(
            &proxy,
            RPC_C_AUTHN_WINNT,
            RPC_C_AUTHZ_NONE,
            PCWSTR::null(),
            RPC_C_AUTHN_LEVEL_PKT_PRIVACY,
            RPC_C_IMP_LEVEL_IMPERSONATE,
            None,
            EOAC_NONE,
        )
    };
    match set {
        // Not a proxy: the object lives in this process, and nothing is sent.
        Err(error) if error.code() == E_NOINTERFACE => Ok(()),
        set => set.map_err(failure),
    }
}

/// The objects that a query finds, or the events of a subscription.
pub(super) struct Objects {
    objects: IEnumWbemClassObject,
    apartment: Apartment,
}

/// What came next.
pub(super) enum Next {
    Object(Object),
    End,
    TimedOut,
}

impl Objects {
    /// Waits for the next one, or no longer than `timeout`.
    pub(super) fn next(&self, timeout: Option<Duration>) -> Result<Next, Failure> {
        let wait_ms = match timeout {
            None => WBEM_INFINITE,
            Some(timeout) => i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX),
        };
        let (mut next, mut count) = ([None], 0);
        // SAFETY: there is room for the one object that is asked for, and for the count.
        let status = unsafe { self.objects.Next(wait_ms, &mut next, &raw mut count) };
        if status.is_err() {
            return Err(failure(status.into()));
        }
        let [object] = next;
        Ok(match object {
            Some(object) => Next::Object(Object { object, apartment: self.apartment.clone() }),
            None if status.0 == WBEM_S_TIMEDOUT.0 => Next::TimedOut,
            None => Next::End,
        })
    }
}

/// An instance, a class, or a method's signature.
pub(super) struct Object {
    object: IWbemClassObject,
    apartment: Apartment,
}

impl Object {
    /// Reads everything: class, path and properties, system properties apart.
    pub(super) fn read(&self) -> Result<RawObject, Failure> {
        read_object(&self.object)
    }

    /// A property that this class has, or none.
    pub(super) fn property(&self, name: &str) -> Result<Option<RawProperty>, Failure> {
        const NOT_FOUND: u32 = 0x8004_1002;
        match get(&self.object, name) {
            Ok((value, cim_type)) => Ok(Some(RawProperty { name: name.to_owned(), cim_type, value })),
            Err(failure) if failure.hresult == NOT_FOUND => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Sets a property that this class has, with its own type.
    pub(super) fn set(&self, name: &str, value: &Automation) -> Result<(), Failure> {
        let value = to_variant(value)?;
        // SAFETY: name and value live over the call, which copies them.
        unsafe { self.object.Put(&windows::core::HSTRING::from(name), 0, &raw const value, 0) }.map_err(failure)
    }

    /// The in-signature of a method of this class; none for one without parameters. A method that the class does not
    /// have is 0x80041002.
    pub(super) fn in_signature(&self, method: &str) -> Result<Option<Object>, Failure> {
        let (mut input, mut output) = (None, None);
        // SAFETY: the name lives over the call; each place takes the one reference that is given out.
        unsafe { self.object.GetMethod(&windows::core::HSTRING::from(method), 0, &raw mut input, &raw mut output) }
            .map_err(failure)?;
        Ok(input.map(|object| Object { object, apartment: self.apartment.clone() }))
    }

    /// A new instance of this class.
    pub(super) fn spawn(&self) -> Result<Object, Failure> {
        // SAFETY: a method of a living object; no argument points anywhere.
        let object = unsafe { self.object.SpawnInstance(0) }.map_err(failure)?;
        Ok(Object { object, apartment: self.apartment.clone() })
    }
}

fn read_object(object: &IWbemClassObject) -> Result<RawObject, Failure> {
    let system = |name: &str| match get(object, name) {
        Ok((Automation::Text(text), _)) => Some(text),
        _ => None,
    };
    let mut properties = Vec::new();
    // SAFETY: a method of a living object. No other enumeration of it is open: objects are not shared, and this
    // function ends what it begins.
    unsafe { object.BeginEnumeration(WBEM_FLAG_NONSYSTEM_ONLY.0) }.map_err(failure)?;
    loop {
        let (mut name, mut value, mut cim_type, mut flavor) = (BSTR::new(), VARIANT::default(), 0, 0);
        // SAFETY: each place is empty and takes what is given out; `name` and `value` free it.
        unsafe { object.Next(0, &raw mut name, &raw mut value, &raw mut cim_type, &raw mut flavor) }
            .map_err(failure)?;
        // The status that says "no more" is a success: the name stays empty.
        if name.is_empty() {
            break;
        }
        properties.push(RawProperty { name: name.to_string(), cim_type, value: from_variant(&value)? });
    }
    // SAFETY: ends the enumeration begun above.
    unsafe { object.EndEnumeration() }.map_err(failure)?;
    let class = system("__CLASS").unwrap_or_default();
    Ok(RawObject { class, path: system("__PATH"), properties, text: String::new() })
}

fn get(object: &IWbemClassObject, name: &str) -> Result<(Automation, i32), Failure> {
    let (mut value, mut cim_type) = (VARIANT::default(), 0);
    // SAFETY: the name lives over the call; `value` is empty, takes what is given out, and frees it.
    unsafe { object.Get(&windows::core::HSTRING::from(name), 0, &raw mut value, Some(&raw mut cim_type), None) }
        .map_err(failure)?;
    Ok((from_variant(&value)?, cim_type))
}

/// An object inside a property, with its text.
fn read_embedded(unknown: &IUnknown) -> Result<Automation, Failure> {
    let object: IWbemClassObject = unknown.cast().map_err(failure)?;
    let mut raw = read_object(&object)?;
    // SAFETY: a method of a living object; no argument points anywhere.
    raw.text = unsafe { object.GetObjectText(0) }.map_err(failure)?.to_string();
    Ok(Automation::Object(Box::new(raw)))
}

/// Reads a VARIANT.
pub(super) fn from_variant(variant: &VARIANT) -> Result<Automation, Failure> {
    let vt = variant.vt();
    // SAFETY: reading the union's outer struct is always right; which of its inner fields is set is what `vt` says.
    let inner = unsafe { &variant.Anonymous.Anonymous.Anonymous };
    if vt.0 & VT_ARRAY.0 != 0 {
        // SAFETY: `vt` says that this field is set.
        return read_array(unsafe { inner.parray });
    }
    // SAFETY: in each arm, `vt` says that the field is set. Strings and objects are borrowed from the variant, which
    // keeps owning them.
    Ok(unsafe {
        match vt {
            VT_EMPTY | VT_NULL => Automation::Null,
            VT_BOOL => Automation::Bool(inner.boolVal.0 != 0),
            VT_UI1 => Automation::U8(inner.bVal),
            VT_I2 => Automation::I16(inner.iVal),
            VT_I4 => Automation::I32(inner.lVal),
            VT_I1 => Automation::Integer(inner.cVal.into()),
            VT_UI2 => Automation::Integer(inner.uiVal.into()),
            VT_UI4 => Automation::Integer(inner.ulVal.into()),
            VT_I8 => Automation::Integer(inner.llVal),
            // Beyond `i64` it is nobody's number: WMI sends 64-bit integers as text.
            VT_UI8 => i64::try_from(inner.ullVal).map_or(Automation::Unknown(VT_UI8.0), Automation::Integer),
            VT_R4 => Automation::Real(inner.fltVal.into()),
            VT_R8 => Automation::Real(inner.dblVal),
            VT_BSTR => Automation::Text(inner.bstrVal.to_string()),
            VT_UNKNOWN => match inner.punkVal.as_ref() {
                Some(unknown) => read_embedded(unknown)?,
                None => Automation::Null,
            },
            other => Automation::Unknown(other.0),
        }
    })
}

/// Reads an array that a living VARIANT owns.
fn read_array(array: *const SAFEARRAY) -> Result<Automation, Failure> {
    if array.is_null() {
        return Ok(Automation::Null);
    }
    // SAFETY: the array belongs to a VARIANT that the caller borrows, and is not null; so for the three calls below.
    if unsafe { SafeArrayGetDim(array) } != 1 {
        return Err(Failure { hresult: TYPE_MISMATCH, message: "an array of more than one dimension".into() });
    }
    // SAFETY: as above.
    let vt = unsafe { SafeArrayGetVartype(array) }.map_err(failure)?;
    // SAFETY: as above; dimension 1 exists.
    let (first, last) = unsafe { (SafeArrayGetLBound(array, 1), SafeArrayGetUBound(array, 1)) };
    let (first, last) = (first.map_err(failure)?, last.map_err(failure)?);
    const READABLE: [VARENUM; 13] =
        [VT_BOOL, VT_UI1, VT_I1, VT_UI2, VT_I2, VT_UI4, VT_I4, VT_UI8, VT_I8, VT_R4, VT_R8, VT_BSTR, VT_UNKNOWN];
    if !READABLE.contains(&vt) {
        return Ok(Automation::Unknown(VT_ARRAY.0 | vt.0));
    }
    let mut values = Vec::new();
    for index in first..=last {
        // An element of these types has 8 bytes at most, as the union of a VARIANT, which then frees it.
        let mut element = with_type(vt, VARIANT_0_0_0 { llVal: 0 });
        // SAFETY: the index is within the bounds; `SafeArrayGetElement` copies an element of type `vt` to the start of
        // the union, where a VARIANT of that type has it.
        unsafe {
            let place = &raw mut (*element.Anonymous.Anonymous).Anonymous;
            SafeArrayGetElement(array, &raw const index, place.cast())
        }
        .map_err(failure)?;
        values.push(from_variant(&element)?);
    }
    Ok(Automation::Array(element_of(vt), values))
}

fn element_of(vt: VARENUM) -> ElementType {
    match vt {
        VT_BOOL => ElementType::Bool,
        VT_UI1 => ElementType::U8,
        VT_I2 => ElementType::I16,
        VT_I4 => ElementType::I32,
        VT_BSTR => ElementType::Text,
        _ => ElementType::Other,
    }
}

/// Makes a VARIANT of a value that can be sent.
pub(super) fn to_variant(value: &Automation) -> Result<VARIANT, Failure> {
    Ok(match value {
        Automation::Null => with_type(VT_NULL, VARIANT_0_0_0 { llVal: 0 }),
        Automation::Bool(value) => VARIANT::from(*value),
        Automation::U8(value) => VARIANT::from(*value),
        Automation::I16(value) => VARIANT::from(*value),
        Automation::I32(value) => VARIANT::from(*value),
        Automation::Text(text) => VARIANT::from(to_bstr(text)),
        Automation::Array(element, values) => make_array(*element, values)?,
        other => return Err(not_sent(other)),
    })
}

fn make_array(element: ElementType, values: &[Automation]) -> Result<VARIANT, Failure> {
    let vt = match element {
        ElementType::Bool => VT_BOOL,
        ElementType::U8 => VT_UI1,
        ElementType::I16 => VT_I2,
        ElementType::I32 => VT_I4,
        ElementType::Text => VT_BSTR,
        ElementType::Other => return Err(not_sent(&Automation::Array(element, values.to_vec()))),
    };
    let out_of_memory = || Failure { hresult: 0x8007_000E, message: "no memory for an array".into() };
    let count = u32::try_from(values.len()).map_err(|_| out_of_memory())?;
    // SAFETY: no argument points anywhere.
    let array = unsafe { SafeArrayCreateVector(vt, 0, count) };
    if array.is_null() {
        return Err(out_of_memory());
    }
    // From here on the VARIANT owns the array.
    let variant = with_type(VARENUM(VT_ARRAY.0 | vt.0), VARIANT_0_0_0 { parray: array });
    for (index, value) in (0i32..).zip(values) {
        // SAFETY: the array is alive, the index within its bounds, and in each arm what is put has the array's type: it
        // is copied. A string is put by the pointer that a BSTR is, which is then freed as it was made.
        let put = unsafe {
            match (element, value) {
                (ElementType::Bool, Automation::Bool(value)) => {
                    let value = VARIANT_BOOL(if *value { -1 } else { 0 });
                    SafeArrayPutElement(array, &raw const index, (&raw const value).cast())
                }
                (ElementType::U8, Automation::U8(value)) => {
                    SafeArrayPutElement(array, &raw const index, std::ptr::from_ref(value).cast())
                }
                (ElementType::I16, Automation::I16(value)) => {
                    SafeArrayPutElement(array, &raw const index, std::ptr::from_ref(value).cast())
                }
                (ElementType::I32, Automation::I32(value)) => {
                    SafeArrayPutElement(array, &raw const index, std::ptr::from_ref(value).cast())
                }
                (ElementType::Text, Automation::Text(text)) => {
                    let text = to_bstr(text).into_raw();
                    let put = SafeArrayPutElement(array, &raw const index, text.cast());
                    drop(BSTR::from_raw(text));
                    put
                }
                (_, other) => return Err(not_sent(other)),
            }
        };
        put.map_err(failure)?;
    }
    Ok(variant)
}

/// A string that is never null: an empty one must not pass for none.
fn to_bstr(text: &str) -> BSTR {
    let units: Vec<u16> = text.encode_utf16().collect();
    // SAFETY: copies the units that it is given.
    unsafe { SysAllocStringLen(Some(&units)) }
}

fn with_type(vt: VARENUM, value: VARIANT_0_0_0) -> VARIANT {
    let inner = VARIANT_0_0 { vt, wReserved1: 0, wReserved2: 0, wReserved3: 0, Anonymous: value };
    VARIANT { Anonymous: VARIANT_0 { Anonymous: ManuallyDrop::new(inner) } }
}

fn not_sent(value: &Automation) -> Failure {
    Failure { hresult: TYPE_MISMATCH, message: format!("{value:?} cannot be sent") }
}

fn nothing_delivered(call: &str) -> Failure {
    // WBEM_E_UNEXPECTED
    Failure { hresult: 0x8004_101D, message: format!("{call} succeeded and delivered nothing") }
}

/// The code, with the best text there is: the provider's own, else the error object's, else the system's.
fn failure(error: Error) -> Failure {
    let hresult = error.code().0.cast_unsigned();
    let message = extended_status(&error).unwrap_or_else(|| error.message());
    Failure { hresult, message: message.trim().to_owned() }
}

/// The description in the `__ExtendedStatus` object that WMI leaves with a failed call.
fn extended_status(error: &Error) -> Option<String> {
    let info = error.as_ptr();
    // SAFETY: null, or the error object, which `error` keeps alive over the borrow.
    let info = unsafe { IUnknown::from_raw_borrowed(&info) }?;
    let status: IWbemClassObject = info.cast().ok()?;
    match get(&status, "Description") {
        Ok((Automation::Text(text), _)) if !text.trim().is_empty() => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::automation::every_type;
    use super::*;

    #[test]
    fn every_type_survives_a_variant() {
        for (code, value, carried) in every_type() {
            let variant = to_variant(&carried).unwrap();
            assert_eq!(from_variant(&variant), Ok(carried.clone()), "CIM type {code}: {value:?}");
            // A copy is a value of its own: strings and arrays in it are freed apart.
            let copy = variant.clone();
            drop(variant);
            assert_eq!(from_variant(&copy), Ok(carried), "CIM type {code}: {value:?}, copied");
        }
    }

    #[test]
    fn types_that_are_only_read() {
        for (variant, expected) in [
            (VARIANT::default(), Automation::Null),
            (VARIANT::from(-3i8), Automation::Integer(-3)),
            (VARIANT::from(65_535u16), Automation::Integer(65_535)),
            (VARIANT::from(u32::MAX), Automation::Integer(4_294_967_295)),
            (VARIANT::from(i64::MIN), Automation::Integer(i64::MIN)),
            (VARIANT::from(7u64), Automation::Integer(7)),
            (VARIANT::from(u64::MAX), Automation::Unknown(VT_UI8.0)),
            (VARIANT::from(0.5f32), Automation::Real(0.5)),
            (VARIANT::from(0.25f64), Automation::Real(0.25)),
            (with_type(VT_UNKNOWN, VARIANT_0_0_0 { llVal: 0 }), Automation::Null),
            (with_type(ARRAY_OF_TEXT, VARIANT_0_0_0 { llVal: 0 }), Automation::Null),
            (with_type(VARENUM(6), VARIANT_0_0_0 { llVal: 1 }), Automation::Unknown(6)),
        ] {
            assert_eq!(from_variant(&variant), Ok(expected));
        }
    }

    const ARRAY_OF_TEXT: VARENUM = VARENUM(VT_ARRAY.0 | VT_BSTR.0);

    #[test]
    fn what_is_only_read_is_not_sent() {
        let text = || vec![Automation::Text("a".into())];
        for value in [
            Automation::Integer(1),
            Automation::Real(1.0),
            Automation::Unknown(6),
            Automation::Array(ElementType::Other, vec![]),
            Automation::Array(ElementType::I32, text()),
        ] {
            let refused = to_variant(&value).err().map(|failure| failure.hresult);
            assert_eq!(refused, Some(TYPE_MISMATCH), "{value:?}");
        }
        assert!(to_variant(&Automation::Array(ElementType::Text, text())).is_ok());
    }
}
