// Calls functions of this process on the processor of Bochs, in this process's own memory: a kernel compiled for
// instructions that the machine lacks runs where it lies, on the arguments where they lie.
//
// Nothing here allocates while an emulated function runs: it may be in the middle of malloc itself.
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <fcntl.h>
#include <cerrno>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace {

using Address = std::uint64_t;

constexpr Address PAGE = 4096;
constexpr Address FRAME = PAGE * 512;  // the emulated page table has pages of 2 MiB, Bochs's memory is of 4 KiB
constexpr Address N_TABLES = 8192;     // emulated page tables, at emulated physical addresses [0, N_TABLES * PAGE)
constexpr Address N_FRAMES = 1 << 15;  // 64 GiB of addresses in use
constexpr Address FIRST_FRAME = N_TABLES * PAGE / FRAME;
constexpr Address PRESENT_WRITABLE_USER = 7, LARGE = 0x80;
constexpr Address STACK_BYTES = 64 << 20;

// What Bochs calls back; the layout of bochscpu's C interface. Those not used stay null.
struct Hooks {
    void* context;
    void* before_exception[9];
    void (*exception)(void*, std::uint32_t, std::uint32_t vector, std::uint32_t code);
    void* before_clflush[4];
    void (*clflush)(void*, std::uint32_t, Address virtual_address, Address physical_address);
    void* after_clflush[10];
};

// bochscpu's C interface, as far as it is used.
struct Bochs {
    void* (*cpu_from)(std::uint32_t id);
    void (*run)(void* cpu, Hooks** hooks);
    void (*stop)(void* cpu);
    void (*page_insert)(Address physical, void* host);
    Address (*rip)(void* cpu);
    Address (*rsp)(void* cpu);
    Address (*cr2)(void* cpu);
    Address (*rax)(void* cpu);
    void (*set_rax)(void* cpu, Address value);
    Address (*arguments[6])(void* cpu);  // rdi, rsi, rdx, r10, r8, r9: of a system call
};

Bochs bochs;
void* cpu;
std::uint8_t* tables;  // [N_TABLES][PAGE]; the first is the root
Address n_tables = 1;
Address frames[N_FRAMES];             // host address / FRAME of an emulated frame
std::uint64_t inserted[N_FRAMES][8];  // a bit for each of a frame's pages
Address n_frames = FIRST_FRAME;
std::uint8_t* stub;  // [0]: where a called function returns to, [16]: where a system call enters
std::uint8_t* stack;
char maps[2][1 << 20];     // /proc/self/maps, as it was last read and as it is
std::uint64_t failure[4];  // vector + 1, error code, rip, cr2

std::uint64_t& entry(Address table, Address index) {
    return reinterpret_cast<std::uint64_t*>(tables + table * PAGE)[index];
}

// Emulated physical frame of a host address, with the tables that lead to it.
Address frame_of(Address host) {
    Address table = 0;
    for (int shift : {39, 30}) {
        std::uint64_t& next = entry(table, host >> shift & 511);
        if (next == 0) {
            if (n_tables == N_TABLES) {
                std::fputs("the emulated processor has no page table left\n", stderr);
                std::abort();
            }
            next = n_tables++ * PAGE | PRESENT_WRITABLE_USER;
        }
        table = next / PAGE;
    }
    std::uint64_t& last = entry(table, host >> 21 & 511);
    if (last == 0) {
        if (n_frames == N_FRAMES) {
            std::fputs("the process has more memory than the emulated processor can address\n", stderr);
            std::abort();
        }
        frames[n_frames] = host / FRAME;
        last = n_frames++ * FRAME | PRESENT_WRITABLE_USER | LARGE;
    }
    return last / FRAME;
}

void show(Address begin, Address end) {
    for (Address host = begin; host < end; host += PAGE) {
        Address const frame = frame_of(host), page = host % FRAME / PAGE;
        if ((inserted[frame][page / 64] >> page % 64 & 1) == 0) {
            inserted[frame][page / 64] |= std::uint64_t{1} << page % 64;
            bochs.page_insert(frame * FRAME + page * PAGE, reinterpret_cast<void*>(host));
        }
    }
}

std::size_t read_maps(char* text) {
    int const file = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    std::size_t n = 0;
    for (ssize_t got = 1; file >= 0 && got > 0 && n < sizeof maps[0] - 1;
         n += got > 0 ? static_cast<std::size_t>(got) : 0) {
        got = read(file, text + n, sizeof maps[0] - 1 - n);
    }
    close(file);
    text[n] = '\0';
    return n;
}

// Shows the processor all memory of this process that may be read. Doing so may map more: until nothing is new.
void show_process() {
    for (;;) {
        read_maps(maps[1]);
        if (std::strcmp(maps[0], maps[1]) == 0) {
            return;
        }
        std::strcpy(maps[0], maps[1]);
        for (char const* line = maps[0]; *line != '\0';) {
            char* after = nullptr;
            Address const begin = std::strtoull(line, &after, 16);
            Address const end = std::strtoull(after + 1, &after, 16);
            char const* const next = std::strchr(after, '\n');
            if (next == nullptr) {
                std::fputs("the process has more mappings than fit into `maps`\n", stderr);
                std::abort();
            }
            bool const readable = after[1] == 'r';
            // The kernel's own pages (vvar, vsyscall) cannot be looked into like others.
            bool const special = std::memchr(after, '[', static_cast<std::size_t>(next - after)) != nullptr &&
                                 std::strncmp(next - 6, "[heap]", 6) != 0 &&
                                 std::strncmp(next - 7, "[stack]", 7) != 0 && std::strncmp(next - 6, "[vdso]", 6) != 0;
            if (readable && !special) {
                show(begin, end);
            }
            line = next + 1;
        }
    }
}

// Whether the system call may have mapped memory, or let another thread do so while it waited.
bool may_map(Address number, long const values[6]) {
    return number != SYS_futex || (values[1] & FUTEX_CMD_MASK) != FUTEX_WAKE;
}

void on_clflush(void*, std::uint32_t, Address, Address) {
    Address const at = bochs.rip(cpu) - reinterpret_cast<Address>(stub);
    if (at < 16) {
        bochs.stop(cpu);
    } else if (at < 32) {
        long values[6];
        for (int i = 0; i < 6; ++i) {
            values[i] = static_cast<long>(bochs.arguments[i](cpu));
        }
        Address const number = bochs.rax(cpu);
        long const result =
            syscall(static_cast<long>(number), values[0], values[1], values[2], values[3], values[4], values[5]);
        bochs.set_rax(cpu, static_cast<Address>(result == -1 ? -errno : result));
        if (may_map(number, values)) {
            show_process();
        }
    }
}

void on_exception(void*, std::uint32_t, std::uint32_t vector, std::uint32_t code) {
    failure[0] = vector + 1;
    failure[1] = code;
    failure[2] = bochs.rip(cpu);
    failure[3] = bochs.cr2(cpu);
    bochs.stop(cpu);
}

void* take(std::size_t bytes, int protection) {
    void* const memory = mmap(nullptr, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (memory == MAP_FAILED) {
        std::perror("mmap");
        std::abort();
    }
    return memory;
}

}  // namespace

extern "C" {

// Called once, after bochscpu has made its processor 0. Writes where system calls enter.
void prepare(Bochs const* interface, Address* system_calls) {
    bochs = *interface;
    cpu = bochs.cpu_from(0);
    tables = static_cast<std::uint8_t*>(take(N_TABLES * PAGE, PROT_READ | PROT_WRITE));
    stack = static_cast<std::uint8_t*>(take(STACK_BYTES, PROT_READ | PROT_WRITE));
    stub = static_cast<std::uint8_t*>(take(PAGE, PROT_READ | PROT_WRITE | PROT_EXEC));
    // clflush [rip + 0], whose hook runs on this side; then for ever here, or sysret.
    std::memcpy(stub, "\x0f\xae\x3d\0\0\0\0\xeb\xfe", 9);
    std::memcpy(stub + 16, "\x0f\xae\x3d\0\0\0\0\x48\x0f\x07", 10);
    for (Address table = 0; table < N_TABLES; ++table) {
        bochs.page_insert(table * PAGE, tables + table * PAGE);
    }
    *system_calls = reinterpret_cast<Address>(stub + 16);
}

// Address of the stack pointer of a call that returns to us.
Address top_of_stack() {
    auto* const top = reinterpret_cast<Address*>(stack + STACK_BYTES - PAGE - sizeof(Address));
    *top = reinterpret_cast<Address>(stub);
    return reinterpret_cast<Address>(top);
}

// Runs the processor, whose state has been set, until its function returns: 0, or 1 with the exception in `what`.
int run(Address* result, Address what[4]) {
    static Hooks hooks{};
    hooks.exception = on_exception;
    hooks.clflush = on_clflush;
    Hooks* chain[] = {&hooks, nullptr};
    std::memset(failure, 0, sizeof failure);
    show_process();
    bochs.run(cpu, chain);
    *result = bochs.rax(cpu);
    std::memcpy(what, failure, sizeof failure);
    return failure[0] != 0;
}

// Functions of a newer C library that bochscpu's wheel asks for.
unsigned long long __isoc23_strtoull(char const* text, char** end, int base) {
    return std::strtoull(text, end, base);
}

int __isoc23_sscanf(char const* text, char const* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int const n = std::vsscanf(text, format, arguments);
    va_end(arguments);
    return n;
}
}
