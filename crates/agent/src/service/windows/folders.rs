//! The machine's folder of the agent, for the system and administrators alone.

use super::ffi;
use crate::config::machine_folder;
use crate::failure::{Attempt as _, Failure};

/// Protected (nothing is inherited from ProgramData, where users may write); everything for SYSTEM and administrators,
/// and for what is made below. Owner: administrators, so that whoever made the folder first gets nothing from that.
const ACCESS: &str = "O:BAG:BAD:PAI(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)";

/// Makes the folders of configuration, journals and log, or takes over what is there.
pub fn prepare() -> Result<(), Failure> {
    let machine = machine_folder();
    for folder in [machine.clone(), machine.join("state"), machine.join("log")] {
        let on = folder.display().to_string();
        ffi::make_folder(&folder, ACCESS).attempt("make the folder of the agent", on)?;
    }
    Ok(())
}
