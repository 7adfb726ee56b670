//! What restores leave for later: those that were cut off, and VMs that were replaced and kept.

use backup::{HostState, Observer, remove_due_vms, settle_restores};

use crate::failure::{Attempt as _, Failure};
use crate::host::OpenHost;

/// Puts in order what restores left that did not end, and removes replaced VMs whose days are over; says in words what
/// was done. A VM that was being replaced is back on the host afterwards.
pub fn put_in_order(host: &OpenHost, state: &HostState, observer: &dyn Observer) -> Result<Vec<String>, Failure> {
    let what = "put in order what former restores left";
    let mut done = settle_restores(&host.host, state, observer).attempt(what, &*host.name)?;
    done.extend(remove_due_vms(&host.host, state).attempt("remove VMs that were replaced", &*host.name)?);
    Ok(done)
}
