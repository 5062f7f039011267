//! Opening the node, and a sentence for each way in which that fails.

use kvm_ioctls::{Cap, Kvm};
use std::ffi::CStr;

/// Where the node is.
pub const NODE: &CStr = c"/dev/kvm";

/// The only version of KVM's interface that there has been since Linux 2.6.22.
const API_VERSION: i32 = 12;

/// What was tried.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tried {
    Open,
    CreateVm,
    CreateVcpu,
}

/// Why the node is of no use, in one clause.
pub fn clause(node: &str, tried: Tried, errno: i32) -> String {
    let error = std::io::Error::from_raw_os_error(errno);
    let busy = "other hypervisors hold the processor's virtualization, or the limit of machines is reached: end one of them";
    match (tried, errno) {
        (Tried::Open, libc::ENOENT) => {
            format!(
                "there is no {node}: the host has no KVM, or its module is not loaded (modprobe kvm_intel or kvm_amd)"
            )
        }
        (Tried::Open, libc::ENODEV | libc::ENXIO) => {
            format!(
                "{node} is there, but no driver behind it: load the module (modprobe kvm_intel or kvm_amd)"
            )
        }
        (_, libc::EACCES | libc::EPERM) => {
            format!(
                "{node} is forbidden to this user: join the group that owns it (often kvm), or change its rights"
            )
        }
        (_, libc::EBUSY) => format!("{node} is busy: {busy}"),
        (Tried::Open, _) => format!("{node} does not open: {error}"),
        (Tried::CreateVm, _) => format!("{node} makes no machine: {error}"),
        (Tried::CreateVcpu, _) => format!("{node} makes no processor: {error}"),
    }
}

/// Whether the interface's version, -1 for none, is one that this engine knows; if not, why, in one clause.
pub fn check_version(node: &str, version: i32) -> Result<(), String> {
    match version {
        API_VERSION => Ok(()),
        0.. => Err(format!("{node} speaks version {version} of KVM's interface, not {API_VERSION}")),
        _ => Err(format!("{node} is not KVM: it does not answer KVM's questions")),
    }
}

/// A capability that this engine cannot do without, by number, and what it is.
const NEEDED: [(u32, &str); 10] = [
    (Cap::UserMemory as u32, "guest RAM from user space"),
    (Cap::SetTssAddr as u32, "a place for the TSS"),
    (Cap::UserNmi as u32, "NMIs from user space"),
    (Cap::VcpuEvents as u32, "pending events"),
    (Cap::Debugregs as u32, "debug registers"),
    (Cap::Xsave as u32, "XSAVE areas"),
    (Cap::ImmediateExit as u32, "immediate exits"),
    (Cap::X86UserSpaceMsr as u32, "MSRs in user space"),
    (Cap::X86MsrFilter as u32, "an MSR filter"),
    (kvm_bindings::KVM_CAP_SREGS2, "PDPTEs in the state"),
];

/// Which of the needed capabilities are missing, in one clause.
pub fn check_capabilities(node: &str, has: &dyn Fn(u32) -> bool) -> Result<(), String> {
    let missing: Vec<_> = NEEDED.iter().filter(|(cap, _)| !has(*cap)).map(|(_, what)| *what).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(format!("the KVM behind {node} is too old (Linux 5.16 would do): it lacks {}", missing.join(", ")))
}

/// Opens a node that is KVM and has what this engine needs; if not, why, in one clause.
pub fn open(node: &CStr) -> Result<Kvm, String> {
    let name = node.to_string_lossy();
    let kvm = Kvm::new_with_path(node).map_err(|e| clause(&name, Tried::Open, e.errno()))?;
    check_version(&name, kvm.get_api_version())?;
    check_capabilities(&name, &|cap| kvm.check_extension_raw(cap.into()) > 0)?;
    Ok(kvm)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_has_its_sentence() {
        let says = |tried, errno| clause("/dev/kvm", tried, errno);
        let all = [
            says(Tried::Open, libc::ENOENT),
            says(Tried::Open, libc::ENXIO),
            says(Tried::Open, libc::EACCES),
            says(Tried::CreateVm, libc::EBUSY),
            says(Tried::Open, libc::EMFILE),
            says(Tried::CreateVm, libc::ENOMEM),
            says(Tried::CreateVcpu, libc::ENOMEM),
        ];
        let distinct: std::collections::HashSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
        assert!(all.iter().all(|s| s.contains("/dev/kvm") && !s.ends_with('.')));
        assert!(
            all[0].starts_with("there is no /dev/kvm")
                && all[2].contains("forbidden")
                && all[3].contains("busy")
        );
        assert_eq!(says(Tried::Open, libc::EPERM), all[2]);
        assert_eq!(says(Tried::Open, libc::EBUSY), all[3]);
    }

    #[test]
    fn what_is_not_kvm_is_told() {
        assert!(check_version("/dev/kvm", 12).is_ok());
        assert!(check_version("/dev/kvm", -1).unwrap_err().contains("is not KVM"));
        assert!(check_version("/dev/kvm", 10).unwrap_err().contains("version 10"));
        // Nodes that every host has.
        assert!(open(c"/dev/null").unwrap_err().contains("/dev/null is not KVM"));
        assert!(open(c"/dev/no-such-node").unwrap_err().contains("there is no /dev/no-such-node"));
    }

    #[test]
    fn missing_capabilities_are_listed() {
        assert!(check_capabilities("n", &|_| true).is_ok());
        let e = check_capabilities("n", &|c| c != Cap::X86MsrFilter as u32 && c != Cap::Xsave as u32)
            .unwrap_err();
        assert!(e.ends_with("it lacks XSAVE areas, an MSR filter"), "{e}");
    }
}
