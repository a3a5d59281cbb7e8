// The least that a VM costs on this machine: one vCPU, 128 MiB, and the KVM calls that portcullis-vmm makes for it, in
// the same order, with nothing around them: no configuration, no checks, no threads, no jail.
//
//   floor KERNEL          a static 64-bit ELF file with one segment; what it writes to COM1 comes out of standard output,
//                         a reset by the i8042 ends it with exit code 0
//
// Linux Documentation/virt/kvm/api.rst says what the calls mean.
#include <elf.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MEMORY = 128 << 20, TSS = 0xfffbd000, COM1 = 0x3f8, I8042 = 0x64, RESET = 0xfe, MAX_CPUID = 256 };
enum { GDT = 0x500, STACK = 0x8ff0, TABLES = 0x9000 };

static long ask(int fd, unsigned long request, void *argument, const char *what) {
    long result = ioctl(fd, request, argument);
    if (result < 0) {
        perror(what);
        exit(3);
    }
    return result;
}

// Copies the segment where it belongs; gives where it begins.
static uint64_t load(uint8_t *memory, const char *path) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat about;
    if (fd < 0 || fstat(fd, &about) != 0) {
        perror(path);
        exit(2);
    }
    uint8_t *file = mmap(NULL, about.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    Elf64_Ehdr *header = (Elf64_Ehdr *)file;
    Elf64_Phdr *segment = (Elf64_Phdr *)(file + header->e_phoff);
    memcpy(memory + segment->p_paddr, file + segment->p_offset, segment->p_filesz);
    uint64_t entry = header->e_entry;
    munmap(file, about.st_size);
    close(fd);
    return entry;
}

// The first 4 GiB mapped to themselves in 2-MiB pages, and flat segments.
static void tables(uint8_t *memory) {
    uint64_t *top = (uint64_t *)(memory + TABLES), *pointers = top + 512, *directories = pointers + 512;
    top[0] = (TABLES + 0x1000) | 3;
    for (uint64_t gib = 0; gib < 4; gib++) {
        pointers[gib] = (TABLES + 0x2000 + 0x1000 * gib) | 3;
        for (uint64_t page = 0; page < 512; page++)
            directories[512 * gib + page] = ((gib << 30) + (page << 21)) | 0x83;
    }
    uint64_t descriptors[6] = {0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00008b0000000067, 0};
    memcpy(memory + GDT, descriptors, sizeof descriptors);
}

static void start(int vcpu, uint64_t entry) {
    struct kvm_sregs sregs;
    ask(vcpu, KVM_GET_SREGS, &sregs, "KVM_GET_SREGS");
    struct kvm_segment code = {.limit = ~0u, .selector = 0x10, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1};
    struct kvm_segment data = {.limit = ~0u, .selector = 0x18, .type = 3, .present = 1, .db = 1, .s = 1, .g = 1};
    sregs.cs = code;
    sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
    sregs.tr = (struct kvm_segment){.limit = 0x67, .selector = 0x20, .type = 11, .present = 1};
    sregs.gdt.base = GDT;
    sregs.gdt.limit = 47;
    sregs.idt.base = sregs.idt.limit = 0;
    sregs.cr0 = 0x80000031;
    sregs.cr3 = TABLES;
    sregs.cr4 = 0x20;
    sregs.efer = 0x500;
    ask(vcpu, KVM_SET_SREGS, &sregs, "KVM_SET_SREGS");
    struct kvm_regs regs = {.rip = entry, .rsp = STACK, .rbp = STACK, .rflags = 2};
    ask(vcpu, KVM_SET_REGS, &regs, "KVM_SET_REGS");
}

static int make_vcpu(int kvm, int vm, uint64_t entry) {
    int vcpu = ask(vm, KVM_CREATE_VCPU, 0, "KVM_CREATE_VCPU");
    struct kvm_cpuid2 *cpuid = calloc(1, sizeof *cpuid + MAX_CPUID * sizeof(struct kvm_cpuid_entry2));
    cpuid->nent = MAX_CPUID;
    ask(kvm, KVM_GET_SUPPORTED_CPUID, cpuid, "KVM_GET_SUPPORTED_CPUID");
    ask(vcpu, KVM_SET_CPUID2, cpuid, "KVM_SET_CPUID2");
    struct {
        struct kvm_msrs head;
        struct kvm_msr_entry entries[2];
    } msrs = {.head.nmsrs = 2, .entries = {{.index = 0x1a0, .data = 1}, {.index = 0x2ff, .data = (1 << 11) | 6}}};
    ask(vcpu, KVM_SET_MSRS, &msrs, "KVM_SET_MSRS");
    struct kvm_fpu fpu = {.fcw = 0x37f, .mxcsr = 0x1f80};
    ask(vcpu, KVM_SET_FPU, &fpu, "KVM_SET_FPU");
    start(vcpu, entry);
    return vcpu;
}

int main(int argc, char **argv) {
    if (argc != 2)
        return 2;
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (kvm < 0 || ask(kvm, KVM_GET_API_VERSION, 0, "KVM_GET_API_VERSION") != 12)
        return 3;
    uint8_t *memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
        return 3;
    int vm = ask(kvm, KVM_CREATE_VM, 0, "KVM_CREATE_VM");
    struct kvm_userspace_memory_region slot = {.memory_size = MEMORY, .userspace_addr = (uint64_t)memory};
    ask(vm, KVM_SET_USER_MEMORY_REGION, &slot, "KVM_SET_USER_MEMORY_REGION");
    ask(vm, KVM_SET_TSS_ADDR, (void *)TSS, "KVM_SET_TSS_ADDR");
    struct kvm_enable_cap split = {.cap = KVM_CAP_SPLIT_IRQCHIP};
    ask(vm, KVM_ENABLE_CAP, &split, "KVM_CAP_SPLIT_IRQCHIP");
    tables(memory);
    int vcpu = make_vcpu(kvm, vm, load(memory, argv[1]));
    long size = ask(kvm, KVM_GET_VCPU_MMAP_SIZE, 0, "KVM_GET_VCPU_MMAP_SIZE");
    struct kvm_run *run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    if (run == MAP_FAILED)
        return 3;
    for (;;) {
        ask(vcpu, KVM_RUN, 0, "KVM_RUN");
        if (run->exit_reason != KVM_EXIT_IO) {
            fprintf(stderr, "exit %u\n", run->exit_reason);
            return 1;
        }
        uint8_t *data = (uint8_t *)run + run->io.data_offset;
        if (run->io.port == COM1 && write(1, data, 1) != 1)
            return 1;
        if (run->io.port == I8042 && *data == RESET)
            return 0;
    }
}
