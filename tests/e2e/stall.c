/*
 * A disk, a resolver, a network and a log that hang: preloaded into the sidecar (LD_PRELOAD).
 *
 * STALL_PLACES names what is watched, one place a line: `spool=/a/folder`, or `sgp=sgp.test:8080` (a
 * host name and a TCP port). What no place matches is passed on untouched. Standard output and error
 * are the place `log`, which is always there.
 *
 * STALL_CONTROL is a file that the test and this process map: a slot for each place and call. The
 * shim writes the names of the slots and counts the calls; the test sets what a call does from then
 * on: nothing special, hang until released, fail with an errno, or take its time. Nothing here
 * makes a system call to learn that, and a hanging call does not end early for a signal.
 *
 * The calls are those that CPython, libuv and SQLite make with glibc 2.33 or newer on 64 bits.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define CALLS(X)                                                                                   \
    X(open) X(read) X(pread) X(write) X(pwrite) X(writev) X(fsync) X(fdatasync) X(ftruncate)       \
    X(fallocate) X(rename) X(unlink) X(mkdir) X(rmdir) X(stat) X(fstat) X(access) X(opendir)       \
    X(chmod) X(lock) X(mmap) X(close) X(getaddrinfo) X(connect)
#define NUMBER(name) CALL_##name,
#define NAME(name) #name,
enum call { CALLS(NUMBER) N_CALLS };
static const char *const call_names[] = {CALLS(NAME)};

enum { MAX_PLACES = 8, MAX_DESCRIPTORS = 4096, POLL_NS = 2000000 };
enum mode { NORMAL, HANG, FAIL, SLOW };

struct slot { /* 64 bytes, read by tests/support/stalls.py */
    char call[16], place[16];
    atomic_uint count;    /* calls so far */
    atomic_uint waiting;  /* calls that hang now */
    atomic_uint mode;
    atomic_int skip;      /* so many calls pass before the mode applies */
    atomic_uint argument; /* FAIL: the errno; SLOW: milliseconds; connect, HANG: a deaf port */
    unsigned reserved[3];
};
static struct slot *slots;

static char *patterns[MAX_PLACES]; /* the log, which is place 0, has none */
static int n_places = 1;
static signed char place_of[MAX_DESCRIPTORS]; /* 1 more than the place; 0: not watched */

#define REAL(name)                                                                                 \
    ({                                                                                             \
        static __typeof__(&name) real;                                                             \
        if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name);                              \
        real;                                                                                      \
    })

__attribute__((constructor)) static void begin(void) {
    const char *file = getenv("STALL_CONTROL"), *text = getenv("STALL_PLACES");
    if (!file || !text) return;
    const char *names[MAX_PLACES] = {"log"};
    char *rest = strdup(text), *line;
    while (n_places < MAX_PLACES && (line = strsep(&rest, "\n"))) {
        names[n_places] = strsep(&line, "=");
        patterns[n_places++] = line;
    }
    size_t size = (size_t)n_places * N_CALLS * sizeof(struct slot);
    int descriptor = REAL(open)(file, O_RDWR | O_CLOEXEC);
    if (descriptor < 0 || REAL(ftruncate)(descriptor, (off_t)size)) abort(); /* new parts are 0 */
    void *map = REAL(mmap)(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    if (map == MAP_FAILED) abort();
    REAL(close)(descriptor);
    for (int place = 0; place < n_places; place++)
        for (int call = 0; call < N_CALLS; call++) {
            struct slot *slot = (struct slot *)map + place * N_CALLS + call;
            strncpy(slot->call, call_names[call], sizeof slot->call - 1);
            strncpy(slot->place, names[place], sizeof slot->place - 1);
        }
    place_of[1] = place_of[2] = 1;
    slots = map;
}

static int on_path(const char *path) {
    for (int place = 1; slots && path && place < n_places; place++) {
        size_t length = strlen(patterns[place]);
        if (!strncmp(path, patterns[place], length) && (!path[length] || path[length] == '/'))
            return place;
    }
    return -1;
}

static int on_host(const char *host) {
    for (int place = 1; slots && host && place < n_places; place++) {
        size_t length = strlen(host);
        if (!strncmp(patterns[place], host, length) && patterns[place][length] == ':') return place;
    }
    return -1;
}

static int on_port(unsigned port) {
    for (int place = 1; slots && place < n_places; place++) {
        const char *colon = strrchr(patterns[place], ':');
        if (colon && (unsigned)atoi(colon + 1) == port) return place;
    }
    return -1;
}

static int on(int descriptor) {
    return descriptor >= 0 && descriptor < MAX_DESCRIPTORS ? place_of[descriptor] - 1 : -1;
}

static int mark(int descriptor, int place) {
    if (descriptor >= 0 && descriptor < MAX_DESCRIPTORS) place_of[descriptor] = (signed char)(place + 1);
    return descriptor;
}

/* Count a call, and do what its slot says. Returns 1 if it must fail, with errno set. */
static int stalls(enum call call, int place) {
    if (!slots || place < 0) return 0;
    struct slot *slot = &slots[place * N_CALLS + call];
    atomic_fetch_add(&slot->count, 1);
    if (atomic_load(&slot->mode) == NORMAL || atomic_fetch_sub(&slot->skip, 1) > 0) return 0;
    const struct timespec poll = {0, POLL_NS};
    atomic_fetch_add(&slot->waiting, 1);
    while (atomic_load(&slot->mode) == HANG) nanosleep(&poll, NULL);
    if (atomic_load(&slot->mode) == SLOW)
        for (unsigned left = atomic_load(&slot->argument); left > 0; left -= left < 2 ? left : 2)
            nanosleep(&poll, NULL);
    atomic_fetch_sub(&slot->waiting, 1);
    if (atomic_load(&slot->mode) != FAIL) return 0;
    errno = (int)atomic_load(&slot->argument);
    return 1;
}

/* Define the function `name`, which counts as `call` at `place`. */
#define WATCH(type, failed, name, call, place, parameters, arguments)                              \
    type name parameters { return stalls(CALL_##call, place) ? failed : REAL(name) arguments; }
#define WATCH_INT(name, call, place, parameters, arguments)                                        \
    WATCH(int, -1, name, call, place, parameters, arguments)

#define OPEN(name, parameters, ...)                                                                \
    int name parameters {                                                                          \
        va_list more;                                                                              \
        va_start(more, flags);                                                                     \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;                    \
        va_end(more);                                                                              \
        int place = on_path(path);                                                                 \
        return stalls(CALL_open, place) ? -1 : mark(REAL(name)(__VA_ARGS__, flags, mode), place);  \
    }
OPEN(open, (const char *path, int flags, ...), path)
OPEN(open64, (const char *path, int flags, ...), path)
OPEN(openat, (int folder, const char *path, int flags, ...), folder, path)
OPEN(openat64, (int folder, const char *path, int flags, ...), folder, path)

int close(int descriptor) {
    int place = on(descriptor), fails = stalls(CALL_close, place), error = errno;
    if (place >= 0) mark(descriptor, -1);
    int result = REAL(close)(descriptor); /* Linux closes it even if it then fails */
    if (!fails) return result;
    errno = error;
    return -1;
}
int dup(int old) { return mark(REAL(dup)(old), on(old)); }
int dup2(int old, int new) { return mark(REAL(dup2)(old, new), on(old)); }
int dup3(int old, int new, int flags) { return mark(REAL(dup3)(old, new, flags), on(old)); }

#define FCNTL(name)                                                                                \
    int name(int fd, int command, ...) {                                                           \
        va_list more;                                                                              \
        va_start(more, command);                                                                   \
        void *argument = va_arg(more, void *);                                                     \
        va_end(more);                                                                              \
        int locks = command == F_SETLK || command == F_SETLKW || command == F_GETLK;               \
        if (locks && stalls(CALL_lock, on(fd))) return -1;                                         \
        int result = REAL(name)(fd, command, argument);                                            \
        return command == F_DUPFD || command == F_DUPFD_CLOEXEC ? mark(result, on(fd)) : result;   \
    }
FCNTL(fcntl)
FCNTL(fcntl64)
WATCH_INT(flock, lock, on(fd), (int fd, int operation), (fd, operation))
WATCH_INT(lockf64, lock, on(fd), (int fd, int command, off64_t size), (fd, command, size))

#define BYTES(name, call, parameters, arguments) WATCH(ssize_t, -1, name, call, on(fd), parameters, arguments)
BYTES(read, read, (int fd, void *to, size_t size), (fd, to, size))
BYTES(pread, pread, (int fd, void *to, size_t size, off_t at), (fd, to, size, at))
BYTES(pread64, pread, (int fd, void *to, size_t size, off64_t at), (fd, to, size, at))
BYTES(write, write, (int fd, const void *from, size_t size), (fd, from, size))
BYTES(pwrite, pwrite, (int fd, const void *from, size_t size, off_t at), (fd, from, size, at))
BYTES(pwrite64, pwrite, (int fd, const void *from, size_t size, off64_t at), (fd, from, size, at))
BYTES(writev, writev, (int fd, const struct iovec *parts, int count), (fd, parts, count))

WATCH_INT(fsync, fsync, on(fd), (int fd), (fd))
WATCH_INT(fdatasync, fdatasync, on(fd), (int fd), (fd))
WATCH_INT(ftruncate, ftruncate, on(fd), (int fd, off_t size), (fd, size))
WATCH_INT(ftruncate64, ftruncate, on(fd), (int fd, off64_t size), (fd, size))
WATCH_INT(truncate64, ftruncate, on_path(path), (const char *path, off64_t size), (path, size))
WATCH_INT(posix_fallocate64, fallocate, on(fd), (int fd, off64_t at, off64_t size), (fd, at, size))
WATCH_INT(fstat, fstat, on(fd), (int fd, struct stat *to), (fd, to))
WATCH_INT(fstat64, fstat, on(fd), (int fd, struct stat64 *to), (fd, to))
WATCH_INT(fchmod, chmod, on(fd), (int fd, mode_t mode), (fd, mode))
WATCH(void *, MAP_FAILED, mmap, mmap, on(fd),
      (void *at, size_t size, int allowed, int flags, int fd, off_t from), (at, size, allowed, flags, fd, from))
WATCH(void *, MAP_FAILED, mmap64, mmap, on(fd),
      (void *at, size_t size, int allowed, int flags, int fd, off64_t from), (at, size, allowed, flags, fd, from))

#define PATH(name, call, parameters, arguments) WATCH_INT(name, call, on_path(path), parameters, arguments)
PATH(rename, rename, (const char *path, const char *to), (path, to))
PATH(renameat, rename, (int a, const char *path, int b, const char *to), (a, path, b, to))
PATH(unlink, unlink, (const char *path), (path))
PATH(unlinkat, unlink, (int folder, const char *path, int flags), (folder, path, flags))
PATH(mkdir, mkdir, (const char *path, mode_t mode), (path, mode))
PATH(mkdirat, mkdir, (int folder, const char *path, mode_t mode), (folder, path, mode))
PATH(rmdir, rmdir, (const char *path), (path))
PATH(access, access, (const char *path, int kind), (path, kind))
PATH(faccessat, access, (int folder, const char *path, int kind, int flags), (folder, path, kind, flags))
PATH(chmod, chmod, (const char *path, mode_t mode), (path, mode))
PATH(stat, stat, (const char *path, struct stat *to), (path, to))
PATH(stat64, stat, (const char *path, struct stat64 *to), (path, to))
PATH(lstat, stat, (const char *path, struct stat *to), (path, to))
PATH(lstat64, stat, (const char *path, struct stat64 *to), (path, to))
PATH(fstatat, stat, (int folder, const char *path, struct stat *to, int flags), (folder, path, to, flags))
PATH(fstatat64, stat, (int folder, const char *path, struct stat64 *to, int flags), (folder, path, to, flags))
WATCH(DIR *, NULL, opendir, opendir, on_path(path), (const char *path), (path))

/* Names that end in .test are this machine, so that each upstream can have a name of its own. */
int getaddrinfo(const char *host, const char *service, const struct addrinfo *hints,
                struct addrinfo **found) {
    size_t length = host ? strlen(host) : 0;
    int is_question = !(hints && hints->ai_flags & AI_NUMERICHOST);
    if (is_question && stalls(CALL_getaddrinfo, on_host(host))) return EAI_AGAIN;
    if (is_question && length > 5 && !strcmp(host + length - 5, ".test")) host = "127.0.0.1";
    return REAL(getaddrinfo)(host, service, hints, found);
}

/* A socket that does not block hangs as behind a firewall: it connects to a port that is deaf. */
int connect(int fd, const struct sockaddr *to, socklen_t size) {
    int is_ip = to->sa_family == AF_INET || to->sa_family == AF_INET6;
    int place = is_ip ? on_port(ntohs(((const struct sockaddr_in *)to)->sin_port)) : -1;
    struct slot *slot = place < 0 ? NULL : &slots[place * N_CALLS + CALL_connect];
    unsigned deaf = slot ? atomic_load(&slot->argument) : 0;
    if (!deaf || atomic_load(&slot->mode) != HANG) {
        if (stalls(CALL_connect, place)) return -1;
        return REAL(connect)(fd, to, size);
    }
    atomic_fetch_add(&slot->count, 1);
    if (atomic_fetch_sub(&slot->skip, 1) > 0) return REAL(connect)(fd, to, size);
    atomic_fetch_add(&slot->waiting, 1);
    struct sockaddr_in away = {.sin_family = AF_INET, .sin_port = htons((unsigned short)deaf)};
    away.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return REAL(connect)(fd, (const struct sockaddr *)&away, sizeof away);
}
