/* Preloaded into a process that trains: the k-th file operation below a folder fails, is cut short, or is the last one
   that the process does; and the calendar's clock jumps or stands still. Nothing happens before `chaos_arm`. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* The order of library.KINDS; the clock's calls are counted behind them. */
enum { OPEN, WRITE, RENAME, FSYNC, UNLINK, MKDIR, TRUNCATE, COPY, READ, KINDS };
static const char *const NAMES[] = {"open", "write", "rename", "fsync", "unlink", "mkdir", "truncate", "copy", "read"};
enum { CLOCK = KINDS, FIRED, COUNTERS };
/* The order of library.ACTIONS. */
enum { FAIL, SHORT, KILL_BEFORE, KILL_AFTER, SIGNAL };

struct rule {
    long kinds;    /* bits */
    char part[64]; /* of the path below the folder; "" for every path */
    long first, last, count;
    int action, value;
};

static char root[PATH_MAX];
static size_t root_length;
static struct rule rules[8];
static int num_rules;
static volatile int armed;
static long *counters; /* shared with whoever armed it: they outlive a kill */

static long long jump_ns, offset_ns;
static long jump_call;
static int freezes;
static volatile long long frozen_ns;

#define REAL(name) ((__typeof__(&name))real(#name))
static void *real(const char *name) {
    void *found = dlvsym(RTLD_NEXT, name, "GLIBC_2.3.2"); /* condition variables have an older version too */
    return found ? found : dlsym(RTLD_NEXT, name);
}

int chaos_arm(const char *folder, const char *counters_file) {
    int file = syscall(SYS_openat, AT_FDCWD, counters_file, O_RDWR | O_CREAT, 0600);
    if (file < 0 || syscall(SYS_ftruncate, file, sizeof(long) * COUNTERS) < 0) return -1;
    counters = mmap(NULL, sizeof(long) * COUNTERS, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    syscall(SYS_close, file);
    if (counters == MAP_FAILED) return -1;
    snprintf(root, sizeof root, "%s", folder);
    root_length = strlen(root);
    armed = 1;
    return 0;
}

int chaos_rule(long kinds, const char *part, long first, long last, int action, int value) {
    if (num_rules == 8) return -1;
    struct rule *rule = &rules[num_rules];
    *rule = (struct rule){.kinds = kinds, .first = first, .last = last, .action = action, .value = value};
    snprintf(rule->part, sizeof rule->part, "%s", part);
    num_rules++;
    return 0;
}

/* The clock is off by `start` from now on, and by `jump` more from its k-th reading on, or stands still from there. */
void chaos_clock(long long start, long k, long long jump, int freeze) {
    offset_ns = start, jump_call = k, jump_ns = jump, freezes = freeze;
}

/* -- rules --------------------------------------------------------------------------------------------------------- */

static void tell(const char *what, int kind, long number, const char *path) {
    char line[PATH_MAX + 100];
    int length = snprintf(line, sizeof line, "chaos: %s at %s %ld: %s\n", what, NAMES[kind], number, path + root_length);
    __atomic_add_fetch(&counters[FIRED], 1, __ATOMIC_SEQ_CST);
    syscall(SYS_write, 2, line, length);
}

static void end_here(void) {
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;) pause();
}

/* What an operation has to do: -1 to go on as ever, else the action of a rule, its value in *value. */
static int apply(int kind, const char *path, int *value) {
    __atomic_add_fetch(&counters[kind], 1, __ATOMIC_SEQ_CST);
    int result = -1;
    for (int i = 0; i < num_rules; i++) {
        struct rule *rule = &rules[i];
        if (!(rule->kinds >> kind & 1) || !strstr(path + root_length, rule->part)) continue;
        long number = __atomic_add_fetch(&rule->count, 1, __ATOMIC_SEQ_CST);
        if (number < rule->first || number > rule->last) continue;
        tell(rule->action == FAIL ? strerror(rule->value) : rule->action == SHORT ? "short" :
             rule->action == SIGNAL ? "signal" : "kill", kind, number, path);
        if (rule->action == KILL_BEFORE) end_here();
        if (rule->action == SIGNAL) kill(getpid(), rule->value);
        else result = rule->action, *value = rule->value;
    }
    return result;
}

static int is_below(int folder, const char *path, char *whole) {
    if (!armed || !path) return 0;
    if (path[0] == '/') {
        snprintf(whole, PATH_MAX, "%s", path);
    } else {
        char link[64] = "/proc/self/cwd";
        if (folder != AT_FDCWD) snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        ssize_t length = syscall(SYS_readlink, link, whole, PATH_MAX / 2);
        if (length < 0) return 0;
        snprintf(whole + length, PATH_MAX - length, "/%s", path);
    }
    return !strncmp(whole, root, root_length) && (whole[root_length] == '/' || !whole[root_length]);
}

static int is_file_below(int file, char *whole) {
    if (!armed || file <= 2) return 0;
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = syscall(SYS_readlink, link, whole, PATH_MAX - 1);
    if (length < 0) return 0;
    whole[length] = 0;
    return !strncmp(whole, root, root_length) && whole[root_length] == '/';
}

#define AS_EVER (-1)
/* Fails, or does the operation; then the process may end. */
#define DO(kind, below, path, failure, call)                                     \
    do {                                                                         \
        int value_ = 0, action_ = (below) ? apply(kind, path, &value_) : AS_EVER; \
        if (action_ == FAIL) return errno = value_, failure;                     \
        __typeof__(call) result_ = call;                                         \
        if (action_ == KILL_AFTER) end_here();                                   \
        return result_;                                                          \
    } while (0)

/* -- operations ---------------------------------------------------------------------------------------------------- */

static int writes(int flags) { return (flags & O_ACCMODE) != O_RDONLY || flags & O_CREAT; }

#define OPENING(name, folder, declaration, arguments)                         \
    int name declaration {                                                    \
        int mode = 0;                                                         \
        if (flags & (O_CREAT | O_TMPFILE)) {                                  \
            va_list rest;                                                     \
            va_start(rest, flags);                                            \
            mode = va_arg(rest, int);                                         \
            va_end(rest);                                                     \
        }                                                                     \
        char whole[PATH_MAX];                                                 \
        int below = writes(flags) && is_below(folder, path, whole);           \
        DO(OPEN, below, whole, -1, REAL(name) arguments);                     \
    }
OPENING(open, AT_FDCWD, (const char *path, int flags, ...), (path, flags, mode))
OPENING(open64, AT_FDCWD, (const char *path, int flags, ...), (path, flags, mode))
OPENING(openat, folder, (int folder, const char *path, int flags, ...), (folder, path, flags, mode))
OPENING(openat64, folder, (int folder, const char *path, int flags, ...), (folder, path, flags, mode))

#define STREAM(name)                                                                     \
    FILE *name(const char *path, const char *mode) {                                     \
        char whole[PATH_MAX];                                                            \
        int below = strpbrk(mode, "wa+") != NULL && is_below(AT_FDCWD, path, whole);     \
        DO(OPEN, below, whole, NULL, REAL(name)(path, mode));                            \
    }
STREAM(fopen)
STREAM(fopen64)

/* Half of the bytes are written where the process ends behind the operation, or the write is to be short. */
#define WRITING(name, declaration, half, all)                                                           \
    ssize_t name declaration {                                                                          \
        char whole[PATH_MAX];                                                                           \
        int value = 0, action = is_file_below(file, whole) ? apply(WRITE, whole, &value) : AS_EVER;     \
        if (action == FAIL) return errno = value, -1;                                                   \
        if (action == SHORT && size > 1) return REAL(name) half;                                        \
        if (action == KILL_AFTER) {                                                                     \
            if (REAL(name) half < 0) {}                                                                 \
            end_here();                                                                                 \
        }                                                                                               \
        return REAL(name) all;                                                                          \
    }
WRITING(write, (int file, const void *data, size_t size), (file, data, size / 2), (file, data, size))
WRITING(pwrite, (int file, const void *data, size_t size, off_t at), (file, data, size / 2, at), (file, data, size, at))
WRITING(pwrite64, (int file, const void *data, size_t size, off64_t at), (file, data, size / 2, at), (file, data, size, at))
WRITING(writev, (int file, const struct iovec *data, int size), (file, data, size / 2), (file, data, size))

#define READING(name, declaration, arguments)                                \
    ssize_t name declaration {                                               \
        char whole[PATH_MAX];                                                \
        DO(READ, is_file_below(file, whole), whole, -1, REAL(name) arguments); \
    }
READING(read, (int file, void *data, size_t size), (file, data, size))
READING(pread64, (int file, void *data, size_t size, off64_t at), (file, data, size, at))

#define BY_PATH(kind, name, folder, named, declaration, arguments)                  \
    int name declaration {                                                          \
        char whole[PATH_MAX];                                                       \
        DO(kind, is_below(folder, named, whole), whole, -1, REAL(name) arguments);  \
    }
BY_PATH(RENAME, rename, AT_FDCWD, to, (const char *from, const char *to), (from, to))
BY_PATH(RENAME, renameat, there, to, (int here, const char *from, int there, const char *to), (here, from, there, to))
BY_PATH(UNLINK, unlink, AT_FDCWD, path, (const char *path), (path))
BY_PATH(UNLINK, unlinkat, folder, path, (int folder, const char *path, int flags), (folder, path, flags))
BY_PATH(UNLINK, rmdir, AT_FDCWD, path, (const char *path), (path))
BY_PATH(MKDIR, mkdir, AT_FDCWD, path, (const char *path, mode_t mode), (path, mode))
BY_PATH(MKDIR, mkdirat, folder, path, (int folder, const char *path, mode_t mode), (folder, path, mode))
BY_PATH(TRUNCATE, truncate64, AT_FDCWD, path, (const char *path, off64_t size), (path, size))

#define BY_FILE(kind, name, declaration, arguments)                              \
    int name declaration {                                                       \
        char whole[PATH_MAX];                                                    \
        DO(kind, is_file_below(file, whole), whole, -1, REAL(name) arguments);   \
    }
BY_FILE(FSYNC, fsync, (int file), (file))
BY_FILE(FSYNC, fdatasync, (int file), (file))
BY_FILE(TRUNCATE, ftruncate, (int file, off_t size), (file, size))
BY_FILE(TRUNCATE, ftruncate64, (int file, off64_t size), (file, size))

ssize_t copy_file_range(int from, off64_t *at, int file, off64_t *to, size_t size, unsigned flags) {
    char whole[PATH_MAX];
    DO(COPY, is_file_below(file, whole), whole, -1, REAL(copy_file_range)(from, at, file, to, size, flags));
}
ssize_t sendfile64(int file, int from, off64_t *at, size_t size) {
    ssize_t sendfile64(int, int, off64_t *, size_t);
    char whole[PATH_MAX];
    DO(COPY, is_file_below(file, whole), whole, -1, REAL(sendfile64)(file, from, at, size));
}

/* -- the calendar's clock ------------------------------------------------------------------------------------------ */

static long long shift_at(long call) { return offset_ns + (jump_call && call >= jump_call ? jump_ns : 0); }

static long long shifted(long long now) {
    if (!armed) return now;
    long call = __atomic_add_fetch(&counters[CLOCK], 1, __ATOMIC_SEQ_CST);
    if (jump_call && call == jump_call) __atomic_add_fetch(&counters[FIRED], 1, __ATOMIC_SEQ_CST);
    now += shift_at(call);
    if (freezes && jump_call && call >= jump_call) {
        if (!frozen_ns) frozen_ns = now;
        return frozen_ns;
    }
    return now;
}

static long long nanoseconds(void) {
    struct timespec now;
    syscall(SYS_clock_gettime, CLOCK_REALTIME, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static __typeof__(&clock_gettime) next;
    if (!next) next = REAL(clock_gettime);
    int result = next(clock, now);
    if (armed && !result && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        long long time = shifted(now->tv_sec * 1000000000LL + now->tv_nsec);
        now->tv_sec = time / 1000000000, now->tv_nsec = time % 1000000000;
    }
    return result;
}

int gettimeofday(struct timeval *now, void *zone) {
    (void)zone;
    long long time = shifted(nanoseconds());
    now->tv_sec = time / 1000000000, now->tv_usec = time % 1000000000 / 1000;
    return 0;
}

time_t time(time_t *now) {
    time_t seconds = shifted(nanoseconds()) / 1000000000;
    if (now) *now = seconds;
    return seconds;
}

/* Waits until a time of the clock end when they would if the kernel's clock had jumped too. */
static const struct timespec *kernels(const struct timespec *end, struct timespec *own) {
    if (!armed || end->tv_sec < 500000000) return end; /* of the monotonic clock */
    long long time = end->tv_sec * 1000000000LL + end->tv_nsec - shift_at(counters[CLOCK]);
    own->tv_sec = time / 1000000000, own->tv_nsec = time % 1000000000;
    return own;
}

#define WAITING(name, declaration, arguments) \
    int name declaration {                    \
        struct timespec own;                  \
        return REAL(name) arguments;          \
    }
WAITING(pthread_cond_timedwait, (pthread_cond_t * condition, pthread_mutex_t *mutex, const struct timespec *end),
        (condition, mutex, kernels(end, &own)))
WAITING(pthread_cond_clockwait,
        (pthread_cond_t * condition, pthread_mutex_t *mutex, clockid_t clock, const struct timespec *end),
        (condition, mutex, clock, kernels(end, &own)))
WAITING(sem_timedwait, (sem_t * semaphore, const struct timespec *end), (semaphore, kernels(end, &own)))
WAITING(sem_clockwait, (sem_t * semaphore, clockid_t clock, const struct timespec *end),
        (semaphore, clock, kernels(end, &own)))
