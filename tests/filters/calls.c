/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Make system calls under a filter that refuses all of them, and note what each one returned.
 * calls FILE: u32 instructions, u32 calls, the filter, the calls; the results are written over
 * the numbers of the calls. For x86_64 and the 32-bit calls of it. What ends it is that it cannot
 * end: exit_group is refused as well.
 */
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

struct call {
    int64_t number; /* then: the result */
    uint64_t foreign;
    uint64_t arguments[6];
};

static int64_t call_kernel(const struct call *call)
{
    register uint64_t r10 __asm__("r10") = call->arguments[3];
    register uint64_t r8 __asm__("r8") = call->arguments[4];
    register uint64_t r9 __asm__("r9") = call->arguments[5];
    int64_t result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(call->number), "D"(call->arguments[0]), "S"(call->arguments[1]),
                       "d"(call->arguments[2]), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

/* The 32-bit ABI's sixth argument is where a frame's pointer may be; built without a red zone. */
static int64_t call_foreign(const struct call *call)
{
    register uint64_t sixth __asm__("r8") = call->arguments[5];
    int64_t result;
    __asm__ volatile("push %%rbp\n mov %%r8, %%rbp\n int $0x80\n pop %%rbp"
                     : "=a"(result), "+r"(sixth)
                     : "a"(call->number), "b"(call->arguments[0]), "c"(call->arguments[1]),
                       "d"(call->arguments[2]), "S"(call->arguments[3]), "D"(call->arguments[4])
                     : "memory", "r9", "r10", "r11");
    return (int32_t)result;
}

int main(int count, char **args)
{
    struct rlimit no_core = {0, 0};
    struct stat file;
    struct sock_fprog program;
    struct call *calls;
    uint32_t *head;
    int fd = count == 2 ? open(args[1], O_RDWR) : -1;
    if (fd < 0 || fstat(fd, &file) < 0 || setrlimit(RLIMIT_CORE, &no_core) < 0)
        return 1;
    head = mmap(0, (size_t)file.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (head == MAP_FAILED)
        return 2;
    program.len = (unsigned short)head[0];
    program.filter = (struct sock_filter *)(head + 2);
    calls = (struct call *)(program.filter + program.len);
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return 3;
    if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) < 0)
        return 4;
    for (uint32_t i = 0; i < head[1]; i++)
        calls[i].number = calls[i].foreign ? call_foreign(&calls[i]) : call_kernel(&calls[i]);
    __builtin_trap();
}
