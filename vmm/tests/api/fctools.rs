//! The crate `fctools`, a client of Firecracker that others wrote, drives a VM: by requests, by a configuration file, and
//! from a snapshot.

use std::path::Path;

use fctools::process_spawner::DirectProcessSpawner;
use fctools::runtime::tokio::TokioRuntime;
use fctools::vm::api::VmApi;
use fctools::vm::configuration::{InitMethod, VmConfiguration, VmConfigurationData};
use fctools::vm::models::{
    BalloonDevice, BootSource, CreateSnapshot, Drive, EntropyDevice, LoggerSystem, MachineConfiguration, MetricsSystem,
    SnapshotType, UpdateBalloonDevice, UpdateDrive, VsockDevice,
};
use fctools::vm::shutdown::{VmShutdownAction, VmShutdownMethod};
use fctools::vm::snapshot::PrepareVmFromSnapshotOptions;
use fctools::vm::{Vm, VmState};
use fctools::vmm::arguments::{VmmApiSocket, VmmArguments, VmmLogLevel, VmmSeccompFilter};
use fctools::vmm::executor::unrestricted::UnrestrictedVmmExecutor;
use fctools::vmm::installation::VmmInstallation;
use fctools::vmm::ownership::VmmOwnershipModel;
use fctools::vmm::resource::system::ResourceSystem;
use fctools::vmm::resource::{CreatedResourceType, MovedResourceType, ResourceType};

use crate::client::{LIMIT, program};
use crate::guest::Guest;

type Client = Vm<UnrestrictedVmmExecutor, DirectProcessSpawner, TokioRuntime>;
type Resources = ResourceSystem<DirectProcessSpawner, TokioRuntime>;

const MOVED: ResourceType = ResourceType::Moved(MovedResourceType::Copied);

/// Arguments that Firecracker has, and the socket `name` in `dir`.
fn executor(dir: &Path, name: &str) -> UnrestrictedVmmExecutor {
    let arguments = VmmArguments::new(VmmApiSocket::Enabled(dir.join(name)));
    let arguments = arguments.log_level(VmmLogLevel::Info).show_log_level().show_log_origin().log_module("vmm");
    UnrestrictedVmmExecutor::new(
        arguments.enable_boot_timer().seccomp_filter(VmmSeccompFilter::Disabled).enable_pci_support(),
    )
}

/// All that a VM of this VMM may have, beside a network card.
fn everything(dir: &Path, resources: &mut Resources) -> VmConfigurationData {
    std::fs::write(dir.join("kernel"), Guest::new().print("ready").hang().elf()).unwrap();
    std::fs::write(dir.join("disk"), vec![0; 4096]).unwrap();
    let mut resource = |name: &str, kind| resources.create_resource(dir.join(name), kind).unwrap();
    VmConfigurationData {
        boot_source: BootSource {
            kernel_image: resource("kernel", MOVED),
            boot_args: Some("console=ttyS0 reboot=k panic=1 pci=off".to_owned()),
            initrd: None,
        },
        drives: vec![Drive {
            drive_id: "rootfs".to_owned(),
            is_root_device: true,
            cache_type: None,
            partuuid: None,
            is_read_only: Some(false),
            block: Some(resource("disk", MOVED)),
            rate_limiter: None,
            io_engine: None,
            socket: None,
        }],
        pmem_devices: Vec::new(),
        machine_configuration: MachineConfiguration {
            vcpu_count: 2,
            mem_size_mib: 16,
            smt: Some(true),
            track_dirty_pages: Some(true),
            huge_pages: None,
        },
        cpu_template: None,
        network_interfaces: Vec::new(),
        balloon_device: Some(BalloonDevice {
            amount_mib: 1,
            deflate_on_oom: true,
            stats_polling_interval_s: Some(1),
            free_page_reporting: Some(true),
        }),
        vsock_device: Some(VsockDevice { guest_cid: 3, uds: resource("v.sock", ResourceType::Produced) }),
        logger_system: Some(LoggerSystem {
            logs: Some(resource("vm.log", ResourceType::Created(CreatedResourceType::File))),
            level: None,
            show_level: Some(true),
            show_log_origin: Some(true),
            module: Some("vmm".to_owned()),
        }),
        metrics_system: Some(MetricsSystem {
            metrics: resource("metrics", ResourceType::Created(CreatedResourceType::Fifo)),
        }),
        memory_hotplug_configuration: None,
        mmds_configuration: None,
        entropy_device: Some(EntropyDevice { rate_limiter: None }),
    }
}

async fn start(dir: &Path, init_method: InitMethod) -> Client {
    let firecracker = dir.join("firecracker");
    std::os::unix::fs::symlink(std::path::absolute(program().get_program()).unwrap(), &firecracker).unwrap();
    let installation = VmmInstallation::new(firecracker, dir.join("jailer"), dir.join("snapshot-editor"));
    let mut resources = Resources::new(DirectProcessSpawner, TokioRuntime, VmmOwnershipModel::Shared);
    let data = everything(dir, &mut resources);
    let configuration = VmConfiguration::New { init_method, data };
    let mut vm = Client::prepare(executor(dir, "api.sock"), resources, installation, configuration).await.unwrap();
    vm.start(LIMIT).await.unwrap();
    vm
}

async fn stop(mut vm: Client) {
    let kill = VmShutdownAction { method: VmShutdownMethod::Kill, timeout: Some(LIMIT), graceful: false };
    vm.shutdown([kill]).await.unwrap();
    vm.cleanup().await.unwrap();
}

fn run<F: Future<Output = ()>>(test: impl FnOnce(tempfile::TempDir) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(test(tempfile::tempdir().unwrap()));
}

#[test]
fn fctools_drives_a_vm_and_goes_on_from_its_snapshot() {
    run(|dir| async move {
        let mut vm = start(dir.path(), InitMethod::ViaApiCalls).await;
        assert_eq!(vm.get_firecracker_version().await.unwrap(), portcullis_vmm::api::FIRECRACKER_VERSION);
        let info = vm.get_info().await.unwrap();
        assert!(!info.is_paused && info.app_name == "portcullis-vmm", "{info:?}");
        assert_eq!(vm.get_machine_configuration().await.unwrap().smt, Some(true));
        vm.update_balloon_device(UpdateBalloonDevice { amount_mib: 2 }).await.unwrap();
        assert_eq!(vm.get_balloon_device().await.unwrap().amount_mib, 2);
        assert_eq!(vm.get_balloon_statistics().await.unwrap().target_mib, 2);
        let disk = vm.get_configuration().get_data().drives[0].block.clone();
        let update = UpdateDrive { drive_id: "rootfs".to_owned(), block: disk, rate_limiter: None };
        vm.update_drive(update).await.unwrap();
        vm.flush_metrics().await.unwrap();
        vm.pause().await.unwrap();
        let resources = vm.get_resource_system_mut();
        let mut produced = |name| resources.create_resource(dir.path().join(name), ResourceType::Produced).unwrap();
        let create = CreateSnapshot {
            snapshot_type: Some(SnapshotType::Full),
            snapshot: produced("state"),
            mem_file: produced("memory"),
        };
        let snapshot = vm.create_snapshot(create).await.unwrap();
        vm.resume().await.unwrap();
        assert_eq!(vm.get_state(), VmState::Running);
        let kill = VmShutdownAction { method: VmShutdownMethod::PauseThenKill, timeout: Some(LIMIT), graceful: false };
        vm.shutdown([kill]).await.unwrap();
        // What a killed VM leaves: Firecracker's clients know that it has to go.
        std::fs::remove_file(dir.path().join("v.sock")).unwrap();

        let options = PrepareVmFromSnapshotOptions {
            executor: executor(dir.path(), "second.sock"),
            process_spawner: DirectProcessSpawner,
            runtime: TokioRuntime,
            moved_resource_type: MovedResourceType::Copied,
            ownership_model: VmmOwnershipModel::Shared,
            track_dirty_pages: Some(true),
            resume_vm: Some(true),
            network_overrides: Vec::new(),
        };
        let mut second = snapshot.prepare_vm(&mut vm, options).await.unwrap();
        second.start(LIMIT).await.unwrap();
        assert!(!second.get_info().await.unwrap().is_paused);
        assert_eq!(second.get_balloon_device().await.unwrap().amount_mib, 2);
        stop(second).await;
    });
}

#[test]
fn fctools_starts_a_vm_by_a_configuration_file() {
    run(|dir| async move {
        let config = dir.path().join("vm.json");
        std::fs::write(&config, "").unwrap();
        let mut vm = start(dir.path(), InitMethod::ViaJsonConfiguration(config)).await;
        // Answered when it runs: the crate knows no VM that was not started.
        assert!(!vm.get_info().await.unwrap().is_paused);
        assert_eq!(vm.get_machine_configuration().await.unwrap().mem_size_mib, 16);
        stop(vm).await;
    });
}
