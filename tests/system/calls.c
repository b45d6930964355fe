/* SPDX-License-Identifier: Apache-2.0 */
/*
 * calls ABI NUMBER [ARGUMENT]...: make one system call and print what it returned. ABI: "own",
 * "x32" (its bit in the number) or "x86" (int 0x80). Static and without a library's help, so that
 * it tells of the kernel alone.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static long call(long number, const unsigned long *a)
{
    register unsigned long r10 __asm__("r10") = a[3];
    register unsigned long r8 __asm__("r8") = a[4];
    register unsigned long r9 __asm__("r9") = a[5];
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a[0]), "S"(a[1]), "d"(a[2]), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

static long call_x86(long number, const unsigned long *a)
{
    long result;
    __asm__ volatile("int $0x80"
                     : "=a"(result)
                     : "a"(number), "b"(a[0]), "c"(a[1]), "d"(a[2]), "S"(a[3]), "D"(a[4])
                     : "memory", "r8", "r9", "r10", "r11");
    return (int)result;
}

int main(int count, char **args)
{
    unsigned long arguments[6] = {0};
    long number;
    if (count < 3 || count > 9)
        return 2;
    number = strtol(args[2], NULL, 0);
    for (int i = 3; i < count; i++)
        arguments[i - 3] = strtoul(args[i], NULL, 0);
    if (strcmp(args[1], "x86") == 0)
        printf("%ld\n", call_x86(number, arguments));
    else
        printf("%ld\n",
               call(strcmp(args[1], "x32") == 0 ? number | 0x40000000 : number, arguments));
    return 0;
}
