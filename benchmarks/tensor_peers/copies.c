/* Counts the bytes of large copies in user space, for LD_PRELOAD: what memcpy and memmove are asked for, from 64 KiB on.
   The count stands in the first eight bytes of the file that COPIES_FILE names. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { LARGE = 64 * 1024 };
static _Atomic uint64_t fallback;
static _Atomic uint64_t *count = &fallback;

__attribute__((constructor)) static void open_count(void) {
    const char *path = getenv("COPIES_FILE");
    int file = path ? open(path, O_RDWR) : -1;
    if (file < 0) return;
    void *page = mmap(NULL, 8, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (page != MAP_FAILED) count = page;
    close(file);
}

typedef void *(*copy_function)(void *, const void *, size_t);

void *memmove(void *to, const void *from, size_t size) {
    static copy_function real;
    if (!real) real = (copy_function)dlsym(RTLD_NEXT, "memmove");
    if (size >= LARGE) *count += size;
    return real(to, from, size);
}

void *memcpy(void *restrict to, const void *restrict from, size_t size) {
    static copy_function real;
    if (!real) real = (copy_function)dlsym(RTLD_NEXT, "memcpy");
    if (size >= LARGE) *count += size;
    return real(to, from, size);
}
