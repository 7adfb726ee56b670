//! The class in an object path.

/// `Msvm_ComputerSystem` of `\\HOST\root\virtualization\v2:Msvm_ComputerSystem.Name="…"`; the class whose signature a
/// method is called with. Empty when the path names none.
pub(super) fn class_of(path: &str) -> &str {
    // Key values may hold any of the separators; the class stands before the first key.
    let before_keys = path.split(['"', '=']).next().unwrap_or_default();
    let class_and_key = before_keys.rsplit(':').next().unwrap_or_default();
    // A namespace without a class has backslashes, a class never.
    let class = class_and_key.split('.').next().unwrap_or_default();
    if class.contains(['\\', '/']) { "" } else { class }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_class_is_found_whatever_the_keys_hold() {
        for (path, class) in [
            (
                r#"\\HOST\root\virtualization\v2:Msvm_ComputerSystem.CreationClassName="a",Name="b""#,
                "Msvm_ComputerSystem",
            ),
            (r#"\\HOST.example.com\root\cimv2:Win32_Service.Name="x:y.z=1""#, "Win32_Service"),
            (r#"\\H\root\v2:Msvm_X.InstanceID="Microsoft:AB\\83F8638B-8DCA-4152-9EDA-2CA8B33039B4\\0\\D""#, "Msvm_X"),
            ("root\\cimv2:StdRegProv", "StdRegProv"),
            ("StdRegProv", "StdRegProv"),
            ("Win32_OperatingSystem=@", "Win32_OperatingSystem"),
            (r#"Win32_LogicalDisk.DeviceID="C:""#, "Win32_LogicalDisk"),
            (r"\\HOST\root\cimv2", ""),
            ("", ""),
        ] {
            assert_eq!(class_of(path), class, "{path}");
        }
    }
}
