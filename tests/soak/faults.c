/* Preloaded: the n-th call of a kind on a file below a folder fails, or the process is killed there. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

enum { CREATE, OPEN, WRITE, SYNC, RENAME, UNLINK, LINK, MKDIR, READ, KINDS };
enum { KILLED = 0, KILLED_HALF_WAY = -1 };

static char folder[PATH_MAX];
static int armed = -1, fault;
static long at, seen[KINDS];

/* fault: an error number, KILLED before the call, or KILLED_HALF_WAY through a write. Counts anew. */
void fault_arm(const char *below, int kind, long n, int number) {
    snprintf(folder, sizeof folder, "%s", below);
    memset(seen, 0, sizeof seen);
    armed = kind, at = n, fault = number;
}

long fault_seen(int kind) { return seen[kind]; }

static int due(int kind, const char *path) {
    if (!folder[0] || !path || !strstr(path, folder)) return 0;
    return seen[kind]++ == at && kind == armed;
}

static int fails(int kind, const char *path) {
    if (!due(kind, path)) return 0;
    if (fault <= 0) raise(SIGKILL);
    errno = fault;
    return 1;
}

static const char *name_of(int file, char *name) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t size = readlink(link, name, PATH_MAX - 1);
    if (size < 0) return NULL;
    name[size] = 0;
    return name;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define MODE(flags) \
    va_list rest; \
    va_start(rest, flags); \
    mode_t mode = (flags) & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
    va_end(rest)
#define KIND(flags) (((flags) & O_ACCMODE) == O_RDONLY ? OPEN : CREATE)

int open(const char *path, int flags, ...) {
    MODE(flags);
    return fails(KIND(flags), path) ? -1 : REAL(open)(path, flags, mode);
}
int open64(const char *path, int flags, ...) {
    MODE(flags);
    return fails(KIND(flags), path) ? -1 : REAL(open64)(path, flags, mode);
}
int openat(int at_folder, const char *path, int flags, ...) {
    MODE(flags);
    return fails(KIND(flags), path) ? -1 : REAL(openat)(at_folder, path, flags, mode);
}
int openat64(int at_folder, const char *path, int flags, ...) {
    MODE(flags);
    return fails(KIND(flags), path) ? -1 : REAL(openat64)(at_folder, path, flags, mode);
}
ssize_t write(int file, const void *data, size_t size) {
    char name[PATH_MAX];
    if (file > 2 && folder[0] && due(WRITE, name_of(file, name))) {
        if (fault > 0) {
            errno = fault;
            return -1;
        }
        if (fault == KILLED_HALF_WAY) REAL(write)(file, data, size / 2);
        raise(SIGKILL);
    }
    return REAL(write)(file, data, size);
}
ssize_t read(int file, void *data, size_t size) {
    char name[PATH_MAX];
    return file > 2 && folder[0] && fails(READ, name_of(file, name)) ? -1 : REAL(read)(file, data, size);
}
int fsync(int file) {
    char name[PATH_MAX];
    return folder[0] && fails(SYNC, name_of(file, name)) ? -1 : REAL(fsync)(file);
}
int rename(const char *from, const char *to) { return fails(RENAME, to) ? -1 : REAL(rename)(from, to); }
int unlink(const char *path) { return fails(UNLINK, path) ? -1 : REAL(unlink)(path); }
int link(const char *from, const char *to) { return fails(LINK, to) ? -1 : REAL(link)(from, to); }
int mkdir(const char *path, mode_t mode) { return fails(MKDIR, path) ? -1 : REAL(mkdir)(path, mode); }
