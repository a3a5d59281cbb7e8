//! Which request is which operation.

use super::fault::Fault;
use super::http::{Method, Request};

/// What can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Name, state and version.
    GetInstance,
    /// The version.
    GetVersion,
    /// The whole configuration.
    GetConfig,
    /// What to boot.
    PutBootSource,
    /// vCPUs and memory.
    GetMachineConfig,
    /// vCPUs and memory, as a whole.
    PutMachineConfig,
    /// vCPUs and memory, in parts.
    PatchMachineConfig,
    /// A CPU template.
    PutCpuConfig,
    /// A disk.
    PutDrive,
    /// A disk, in parts.
    PatchDrive,
    /// A network card.
    PutNetworkInterface,
    /// A network card, in parts.
    PatchNetworkInterface,
    /// Sockets between guest and host.
    PutVsock,
    /// The balloon.
    GetBalloon,
    /// The balloon, as a whole.
    PutBalloon,
    /// The balloon's size.
    PatchBalloon,
    /// What the guest says of its memory.
    GetBalloonStatistics,
    /// How often it says so.
    PatchBalloonStatistics,
    /// What the guest reads of the metadata service.
    GetMetadata,
    /// The same, as a whole.
    PutMetadata,
    /// The same, in parts.
    PatchMetadata,
    /// The metadata service.
    PutMetadataService,
    /// A source of entropy.
    PutEntropy,
    /// Where the log goes.
    PutLogger,
    /// Where metrics go.
    PutMetrics,
    /// Where the serial line goes.
    PutSerial,
    /// Start, Ctrl-Alt-Del, flush of metrics.
    PutActions,
    /// Pause and resume.
    PatchVm,
    /// Keep the paused VM in files.
    CreateSnapshot,
    /// Go on from such files.
    LoadSnapshot,
}

/// Every operation with its method and path. A part of the path in braces stands for a name.
pub const ROUTES: &[(Method, &str, Operation)] = &[
    (Method::Get, "/", Operation::GetInstance),
    (Method::Get, "/version", Operation::GetVersion),
    (Method::Get, "/vm/config", Operation::GetConfig),
    (Method::Put, "/boot-source", Operation::PutBootSource),
    (Method::Get, "/machine-config", Operation::GetMachineConfig),
    (Method::Put, "/machine-config", Operation::PutMachineConfig),
    (Method::Patch, "/machine-config", Operation::PatchMachineConfig),
    (Method::Put, "/cpu-config", Operation::PutCpuConfig),
    (Method::Put, "/drives/{id}", Operation::PutDrive),
    (Method::Patch, "/drives/{id}", Operation::PatchDrive),
    (Method::Put, "/network-interfaces/{id}", Operation::PutNetworkInterface),
    (Method::Patch, "/network-interfaces/{id}", Operation::PatchNetworkInterface),
    (Method::Put, "/vsock", Operation::PutVsock),
    (Method::Put, "/entropy", Operation::PutEntropy),
    (Method::Get, "/mmds", Operation::GetMetadata),
    (Method::Put, "/mmds", Operation::PutMetadata),
    (Method::Patch, "/mmds", Operation::PatchMetadata),
    (Method::Put, "/mmds/config", Operation::PutMetadataService),
    (Method::Get, "/balloon", Operation::GetBalloon),
    (Method::Put, "/balloon", Operation::PutBalloon),
    (Method::Patch, "/balloon", Operation::PatchBalloon),
    (Method::Get, "/balloon/statistics", Operation::GetBalloonStatistics),
    (Method::Patch, "/balloon/statistics", Operation::PatchBalloonStatistics),
    (Method::Put, "/logger", Operation::PutLogger),
    (Method::Put, "/metrics", Operation::PutMetrics),
    (Method::Put, "/serial", Operation::PutSerial),
    (Method::Put, "/actions", Operation::PutActions),
    (Method::Patch, "/vm", Operation::PatchVm),
    (Method::Put, "/snapshot/create", Operation::CreateSnapshot),
    (Method::Put, "/snapshot/load", Operation::LoadSnapshot),
];

/// What Firecracker has and this VMM has not: any method, the path or what it begins with, its name, and what to do instead.
const NOT_SUPPORTED: &[(Option<Method>, &str, &str, &str)] = &[
    (None, "/pmem", "a persistent memory (pmem) device", "use a read-only drive"),
    (None, "/hotplug/memory", "memory hotplug", "start the VM with the most memory that it may need, and a balloon"),
    (None, "/balloon/hinting", "free page hinting", "use free_page_reporting"),
    (Some(Method::Delete), "/drives", "unplugging a drive", "drives stay for the VM's life"),
    (Some(Method::Delete), "/network-interfaces", "unplugging a network interface", "cards stay for the VM's life"),
];

/// The operation that a request asks for, and the name in its path.
pub(super) fn find(request: &Request) -> Result<(Operation, Option<&str>), Fault> {
    let path = request.path.as_str();
    // As in Firecracker, one slash at the end changes nothing.
    let path = path.strip_suffix('/').filter(|path| !path.is_empty()).unwrap_or(path);
    for (method, template, operation) in ROUTES {
        if *method == request.method
            && let Some(name) = matches(template, path)
        {
            return Ok((*operation, name));
        }
    }
    let begins = |prefix: &str| path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let what =
        NOT_SUPPORTED.iter().find(|(method, prefix, ..)| method.is_none_or(|m| m == request.method) && begins(prefix));
    Err(match what {
        Some((_, _, what, instead)) => {
            Fault::new(format!("{what} is not supported by this VMM ({} {path}); {instead}", request.method))
        }
        None => Fault::new(format!("Invalid request method and/or path: {} {path}.", request.method)),
    })
}

/// Whether `path` is of this form, and the name in it.
#[allow(clippy::option_option)] // whether it fits, and whether there is a name
fn matches<'a>(template: &str, path: &'a str) -> Option<Option<&'a str>> {
    let (mut wanted, mut found) = (template.split('/'), path.split('/'));
    let mut name = None;
    loop {
        match (wanted.next(), found.next()) {
            (None, None) => return Some(name),
            (Some(part), Some(text)) if part.starts_with('{') => name = Some(text),
            (Some(part), Some(text)) if part == text => {}
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: Method, path: &str) -> Request {
        Request { method, path: path.to_owned(), body: Vec::new(), keep_alive: true }
    }

    #[test]
    fn every_route_is_found_and_none_twice() {
        for (index, (method, template, operation)) in ROUTES.iter().enumerate() {
            let path = template.replace("{id}", "rootfs");
            let request = request(*method, &path);
            let name = template.contains('{').then_some("rootfs");
            assert_eq!(find(&request).unwrap(), (*operation, name), "{template}");
            assert!(!ROUTES[..index].iter().any(|(m, t, o)| (m, t) == (method, template) || o == operation));
        }
    }

    #[test]
    fn a_slash_at_the_end_changes_nothing_and_all_else_does() {
        assert_eq!(find(&request(Method::Get, "/version/")).unwrap().0, Operation::GetVersion);
        for path in ["/version//", "//version", "/Version", "/version?x", "/vm", "/vm/config/x", ""] {
            let fault = find(&request(Method::Get, path)).unwrap_err();
            assert!(fault.message.contains("Invalid request method and/or path: GET"), "{path}: {}", fault.message);
        }
        assert!(find(&request(Method::Put, "/version")).is_err());
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        for (method, path, word) in [
            (Method::Put, "/pmem/p0", "pmem"),
            (Method::Get, "/hotplug/memory", "hotplug"),
            (Method::Patch, "/balloon/hinting/start", "hinting"),
            (Method::Delete, "/drives/rootfs", "unplugging"),
        ] {
            let fault = find(&request(method, path)).unwrap_err();
            assert!(fault.message.contains(word) && fault.message.contains("not supported"), "{}", fault.message);
        }
        assert!(find(&request(Method::Put, "/cpu-configuration")).unwrap_err().message.starts_with("Invalid"));
    }
}
