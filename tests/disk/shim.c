/* Watches, from inside a process, what it does to the files under one directory. Makes that go wrong when told to.
 *
 * Tests preload this library into the program. Each change of a file, a directory or a name, and the beginning and end of
 * each sync, becomes a record of the trace, in one order for all processes. A lock is held from before the change until
 * after its record. So a test that holds the lock and kills a process finds everything the process did in the trace.
 * image.rs makes what a power cut would leave from the trace. Tests ask for faults, delays and controls through a shared
 * page, which they can change while programs run.
 *
 * It sees only what goes through libc. Calls that it can't express are recorded as such, and fail the test.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum kind { WRITE = 1, SIZE, ADD, REMOVE, RENAME, SYNC_BEGIN, SYNC_END, UNKNOWN };

/* As trace.rs reads it. */
struct head {
    uint32_t magic;
    uint32_t kind;
    uint64_t inode;
    uint64_t a;
    uint64_t b;
    int32_t result;
    uint32_t pid;
    uint32_t name_length;
    uint32_t other_length;
    uint64_t data_length;
};

enum { MAGIC = 0x4b534944 };

enum class { NONE, WRITES, SYNCS, NAMES, OPENS };

enum swallow { NOTHING, FIRST_SYNCS, WAL_SYNCS };

/* As shim.rs writes and reads it: numbers of 64 bits. */
struct control {
    uint64_t fault_class;   /* which calls fail */
    uint64_t fault_at;      /* the n-th of them, counted from 1 */
    uint64_t fault_errno;   /* how */
    uint64_t fault_forever; /* and all that follow */
    uint64_t fault_drops;   /* a failed sync forgets what it should have written */
    uint64_t seen;          /* how many calls of that class there were */
    uint64_t failed;        /* how many were made to fail */
    uint64_t hold;          /* syncs don't end while this is set */
    uint64_t delay;         /* milliseconds that each sync takes */
    uint64_t waiting;       /* syncs that are held or delayed now */
    uint64_t swallow;       /* syncs that are silently skipped */
    uint64_t kill_at;       /* the process dies before the n-th change */
    uint64_t changes;       /* how many changes and syncs there were */
    uint64_t swallowed;     /* how many syncs were skipped */
    char only[144];         /* faults, holds and delays are only for paths that contain this */
};

static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static char root[PATH_MAX];
static size_t root_length;
static int trace = -1;
static struct control *control;

static int (*real_open)(const char *, int, ...);
static int (*real_openat)(int, const char *, int, ...);
static ssize_t (*real_write)(int, const void *, size_t);
static ssize_t (*real_writev)(int, const struct iovec *, int);
static ssize_t (*real_pwrite)(int, const void *, size_t, off_t);
static ssize_t (*real_pwritev)(int, const struct iovec *, int, off_t);
static int (*real_ftruncate)(int, off_t);
static int (*real_truncate)(const char *, off_t);
static int (*real_fallocate)(int, int, off_t, off_t);
static int (*real_rename)(const char *, const char *);
static int (*real_renameat)(int, const char *, int, const char *);
static int (*real_renameat2)(int, const char *, int, const char *, unsigned);
static int (*real_unlinkat)(int, const char *, int);
static int (*real_mkdirat)(int, const char *, mode_t);
static int (*real_linkat)(int, const char *, int, const char *, int);
static int (*real_symlinkat)(const char *, int, const char *);
static int (*real_fsync)(int);
static int (*real_fdatasync)(int);
static void *(*real_mmap)(void *, size_t, int, int, int, off_t);
static long (*real_syscall)(long, ...);

static void find(void *pointer, const char *name) {
    *(void **)pointer = dlsym(RTLD_NEXT, name);
    if (*(void **)pointer == NULL) {
        fprintf(stderr, "shim: no %s in libc\n", name);
        abort();
    }
}

static void begin(void) {
    find(&real_open, "open");
    find(&real_openat, "openat");
    find(&real_write, "write");
    find(&real_writev, "writev");
    find(&real_pwrite, "pwrite");
    find(&real_pwritev, "pwritev");
    find(&real_ftruncate, "ftruncate");
    find(&real_truncate, "truncate");
    find(&real_fallocate, "fallocate");
    find(&real_rename, "rename");
    find(&real_renameat, "renameat");
    find(&real_renameat2, "renameat2");
    find(&real_unlinkat, "unlinkat");
    find(&real_mkdirat, "mkdirat");
    find(&real_linkat, "linkat");
    find(&real_symlinkat, "symlinkat");
    find(&real_fsync, "fsync");
    find(&real_fdatasync, "fdatasync");
    find(&real_mmap, "mmap");
    find(&real_syscall, "syscall");
    const char *where = getenv("DISK_ROOT"), *to = getenv("DISK_TRACE"), *by = getenv("DISK_CONTROL");
    if (where == NULL || to == NULL || by == NULL || realpath(where, root) == NULL) return;
    root_length = strlen(root);
    trace = real_open(to, O_RDWR | O_APPEND | O_CLOEXEC);
    int page = real_open(by, O_RDWR | O_CLOEXEC);
    if (page >= 0) {
        void *at = real_mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, page, 0);
        control = at == MAP_FAILED ? NULL : at;
        close(page);
    }
    if (trace < 0 || control == NULL) {
        fprintf(stderr, "shim: cannot open %s and %s\n", to, by);
        abort();
    }
}

__attribute__((constructor)) static void start(void) { pthread_once(&once, begin); }

/* ---- which files -------------------------------------------------------------------------------------------------- */

static int is_below(const char *path) {
    return root_length && strncmp(path, root, root_length) == 0 && (path[root_length] == '/' || path[root_length] == 0);
}

/* Whether the open file or directory is below the root. Returns its current path. */
static int is_ours(int fd, struct stat *meta, char *path) {
    int saved = errno, ours = 0;
    pthread_once(&once, begin);
    if (root_length && fstat(fd, meta) == 0 && (S_ISREG(meta->st_mode) || S_ISDIR(meta->st_mode))) {
        char link[64];
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t length = readlink(link, path, PATH_MAX - 1);
        path[length < 0 ? 0 : length] = 0;
        ours = is_below(path);
    }
    errno = saved;
    return ours;
}

/* A name in a directory below the root. */
struct place {
    char path[PATH_MAX];
    const char *name;
    uint64_t parent;
};

/* Finds the place that a path names, if it is below the root. Doesn't follow a link at its end. */
static int find_place(int at, const char *given, struct place *place) {
    int saved = errno, found = 0;
    char joined[PATH_MAX * 2], parent[PATH_MAX];
    pthread_once(&once, begin);
    if (!root_length || given == NULL || *given == 0) return 0;
    if (*given == '/') {
        snprintf(joined, sizeof joined, "%s", given);
    } else {
        char base[PATH_MAX] = "";
        if (at == AT_FDCWD) {
            if (getcwd(base, sizeof base) == NULL) goto out;
        } else {
            char link[64];
            snprintf(link, sizeof link, "/proc/self/fd/%d", at);
            ssize_t length = readlink(link, base, sizeof base - 1);
            if (length < 0) goto out;
            base[length] = 0;
        }
        snprintf(joined, sizeof joined, "%s/%s", base, given);
    }
    size_t length = strlen(joined);
    while (length > 1 && joined[length - 1] == '/') joined[--length] = 0;
    char *slash = strrchr(joined, '/');
    *slash = 0;
    if (realpath(*joined ? joined : "/", parent) == NULL || !is_below(parent)) goto out;
    struct stat meta;
    if (stat(parent, &meta) != 0) goto out;
    place->parent = meta.st_ino;
    if (snprintf(place->path, sizeof place->path, "%s/%s", parent, slash + 1) >= (int)sizeof place->path) goto out;
    place->name = strrchr(place->path, '/') + 1;
    found = 1;
out:
    errno = saved;
    return found;
}

/* ---- one order, and the trace ------------------------------------------------------------------------------------- */

static void lock(void) {
    int saved = errno;
    pthread_mutex_lock(&mutex);
    while (flock(trace, LOCK_EX) != 0 && errno == EINTR) {
    }
    errno = saved;
}

static void unlock(void) {
    int saved = errno;
    flock(trace, LOCK_UN);
    pthread_mutex_unlock(&mutex);
    errno = saved;
}

static void record(enum kind kind, uint64_t inode, uint64_t a, uint64_t b, int result, const char *name,
                   const char *other, const struct iovec *data, int count, size_t length) {
    int saved = errno;
    struct head head = {.magic = MAGIC, .kind = kind, .inode = inode, .a = a, .b = b, .result = result};
    head.pid = (uint32_t)getpid();
    head.name_length = name == NULL ? 0 : (uint32_t)strlen(name);
    head.other_length = other == NULL ? 0 : (uint32_t)strlen(other);
    head.data_length = length;
    size_t total = sizeof head + head.name_length + head.other_length + length;
    char *bytes = malloc(total), *end = bytes;
    if (bytes == NULL) abort();
    memcpy(end, &head, sizeof head), end += sizeof head;
    if (name != NULL) memcpy(end, name, head.name_length), end += head.name_length;
    if (other != NULL) memcpy(end, other, head.other_length), end += head.other_length;
    for (int i = 0; i < count && length > 0; i++) {
        size_t part = data[i].iov_len < length ? data[i].iov_len : length;
        memcpy(end, data[i].iov_base, part), end += part, length -= part;
    }
    if (real_write(trace, bytes, total) != (ssize_t)total) {
        fprintf(stderr, "shim: the trace can't be written: %s\n", strerror(errno));
        abort();
    }
    free(bytes);
    errno = saved;
}

static void record_unknown(const char *what, const char *path) {
    lock();
    record(UNKNOWN, 0, 0, 0, 0, what, path, NULL, 0, 0);
    unlock();
}

/* ---- what goes wrong ---------------------------------------------------------------------------------------------- */

static int concerns(const char *path) { return control->only[0] == 0 || strstr(path, control->only) != NULL; }

/* Counts a call, which holds the lock, and says whether it must fail. Sets errno. */
static int fails(enum class class, const char *path) {
    if (++control->changes == control->kill_at) {
        kill(getpid(), SIGKILL);
        for (;;) pause();
    }
    if (control->fault_class != class || !concerns(path)) return 0;
    uint64_t n = ++control->seen;
    if (n != control->fault_at && !(control->fault_forever && n > control->fault_at && control->fault_at > 0)) return 0;
    control->failed++;
    errno = (int)control->fault_errno;
    return 1;
}

static int is_first_sync_of(uint64_t inode) {
    static uint64_t known[4096];
    static size_t count;
    for (size_t i = 0; i < count; i++)
        if (known[i] == inode) return 0;
    if (count < sizeof known / sizeof *known) known[count++] = inode;
    return 1;
}

static int is_swallowed(uint64_t inode, const char *path, int is_file) {
    size_t length = strlen(path);
    switch (control->swallow) {
        case FIRST_SYNCS: return is_file && is_first_sync_of(inode);
        case WAL_SYNCS: return length > 4 && strcmp(path + length - 4, "-wal") == 0;
        default: return 0;
    }
}

static void wait_as_told(const char *path) {
    struct timespec start, now, pause = {.tv_nsec = 1000000};
    if (!concerns(path) || (!control->hold && !control->delay)) return;
    __atomic_add_fetch(&control->waiting, 1, __ATOMIC_SEQ_CST);
    clock_gettime(CLOCK_MONOTONIC, &start);
    for (;;) {
        clock_gettime(CLOCK_MONOTONIC, &now);
        int64_t passed = (now.tv_sec - start.tv_sec) * 1000 + (now.tv_nsec - start.tv_nsec) / 1000000;
        if (!__atomic_load_n(&control->hold, __ATOMIC_SEQ_CST) &&
            passed >= (int64_t)__atomic_load_n(&control->delay, __ATOMIC_SEQ_CST))
            break;
        nanosleep(&pause, NULL);
    }
    __atomic_sub_fetch(&control->waiting, 1, __ATOMIC_SEQ_CST);
}

static int do_sync(int fd, int (*sync)(int)) {
    struct stat meta;
    char path[PATH_MAX];
    if (!is_ours(fd, &meta, path)) return sync(fd);
    int saved = errno;
    lock();
    if (is_swallowed(meta.st_ino, path, S_ISREG(meta.st_mode))) {
        control->swallowed++;
        unlock();
        errno = saved;
        return 0;
    }
    int failed = fails(SYNCS, path), why = errno, drops = (int)control->fault_drops;
    static uint64_t last;
    uint64_t number = ((uint64_t)getpid() << 32) | ++last;
    record(SYNC_BEGIN, meta.st_ino, number, 0, 0, path, NULL, NULL, 0, 0);
    unlock();
    wait_as_told(path);
    int result = failed ? -1 : sync(fd);
    if (!failed) why = errno;
    lock();
    record(SYNC_END, meta.st_ino, number, failed && drops, result == 0 ? 0 : why, NULL, NULL, NULL, 0, 0);
    unlock();
    errno = result == 0 ? saved : why;
    return result;
}

int fsync(int fd) {
    pthread_once(&once, begin);
    return do_sync(fd, real_fsync);
}

int fdatasync(int fd) {
    pthread_once(&once, begin);
    return do_sync(fd, real_fdatasync);
}

/* ---- contents ----------------------------------------------------------------------------------------------------- */

/* `at` is where to write, or -1 for the file's position. */
static ssize_t do_write(int fd, const struct iovec *data, int count, off_t at) {
    struct stat meta;
    char path[PATH_MAX];
    pthread_once(&once, begin);
    if (!is_ours(fd, &meta, path)) return at < 0 ? real_writev(fd, data, count) : real_pwritev(fd, data, count, at);
    lock();
    if (fails(WRITES, path)) {
        unlock();
        return -1;
    }
    off_t where = at;
    if (at < 0) {
        if (fcntl(fd, F_GETFL) & O_APPEND) {
            fstat(fd, &meta);
            where = meta.st_size;
        } else {
            where = lseek(fd, 0, SEEK_CUR);
        }
    }
    ssize_t written = at < 0 ? real_writev(fd, data, count) : real_pwritev(fd, data, count, at);
    if (written > 0)
        record(WRITE, meta.st_ino, (uint64_t)where, 0, 0, NULL, NULL, data, count, (size_t)written);
    unlock();
    return written;
}

ssize_t write(int fd, const void *bytes, size_t length) {
    struct iovec data = {(void *)bytes, length};
    return do_write(fd, &data, 1, -1);
}

ssize_t writev(int fd, const struct iovec *data, int count) { return do_write(fd, data, count, -1); }

ssize_t pwrite(int fd, const void *bytes, size_t length, off_t at) {
    struct iovec data = {(void *)bytes, length};
    return do_write(fd, &data, 1, at);
}

ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t at) { return pwrite(fd, bytes, length, at); }

ssize_t pwritev(int fd, const struct iovec *data, int count, off_t at) { return do_write(fd, data, count, at); }

ssize_t pwritev64(int fd, const struct iovec *data, int count, off64_t at) { return do_write(fd, data, count, at); }

ssize_t pwritev2(int fd, const struct iovec *data, int count, off_t at, int flags) {
    (void)flags;
    return do_write(fd, data, count, at);
}

ssize_t pwritev64v2(int fd, const struct iovec *data, int count, off64_t at, int flags) {
    (void)flags;
    return do_write(fd, data, count, at);
}

int ftruncate(int fd, off_t size) {
    struct stat meta;
    char path[PATH_MAX];
    pthread_once(&once, begin);
    if (!is_ours(fd, &meta, path)) return real_ftruncate(fd, size);
    lock();
    int result = fails(WRITES, path) ? -1 : real_ftruncate(fd, size);
    if (result == 0) record(SIZE, meta.st_ino, (uint64_t)size, 0, 0, NULL, NULL, NULL, 0, 0);
    unlock();
    return result;
}

int ftruncate64(int fd, off64_t size) { return ftruncate(fd, size); }

int truncate(const char *path, off_t size) {
    struct place place;
    if (find_place(AT_FDCWD, path, &place)) record_unknown("truncate", place.path);
    return real_truncate(path, size);
}

int truncate64(const char *path, off64_t size) { return truncate(path, size); }

int fallocate(int fd, int mode, off_t at, off_t length) {
    struct stat meta;
    char path[PATH_MAX];
    pthread_once(&once, begin);
    if (!is_ours(fd, &meta, path)) return real_fallocate(fd, mode, at, length);
    if (mode != 0) record_unknown("fallocate", path);
    lock();
    int result = fails(WRITES, path) ? -1 : real_fallocate(fd, mode, at, length);
    fstat(fd, &meta);
    if (result == 0) record(SIZE, meta.st_ino, (uint64_t)meta.st_size, 0, 0, NULL, NULL, NULL, 0, 0);
    unlock();
    return result;
}

int fallocate64(int fd, int mode, off64_t at, off64_t length) { return fallocate(fd, mode, at, length); }

int posix_fallocate(int fd, off_t at, off_t length) { return fallocate(fd, 0, at, length) == 0 ? 0 : errno; }

int posix_fallocate64(int fd, off64_t at, off64_t length) { return posix_fallocate(fd, at, length); }

/* ---- names -------------------------------------------------------------------------------------------------------- */

static int do_open(int at, const char *given, int flags, mode_t mode) {
    struct place place;
    struct stat before, after, parent;
    pthread_once(&once, begin);
    int writes = (flags & (O_CREAT | O_TRUNC)) || (flags & O_ACCMODE) != O_RDONLY;
    if (!writes || !find_place(at, given, &place)) return real_openat(at, given, flags, mode);
    if ((flags & O_TMPFILE) == O_TMPFILE) record_unknown("O_TMPFILE", place.path);
    lock();
    if (fails(OPENS, place.path)) {
        unlock();
        return -1;
    }
    int saved = errno;
    int existed = stat(place.path, &before) == 0;
    errno = saved;
    int fd = real_openat(at, given, flags, mode);
    if (fd >= 0) {
        saved = errno;
        fstat(fd, &after);
        if (!existed) {
            /* If a link was followed, the file is elsewhere. */
            char path[PATH_MAX], dir[PATH_MAX];
            is_ours(fd, &parent, path);
            snprintf(dir, sizeof dir, "%s", path);
            *strrchr(dir, '/') = 0;
            if (is_below(dir) && stat(dir, &parent) == 0)
                record(ADD, after.st_ino, parent.st_ino, S_ISDIR(after.st_mode), 0, strrchr(path, '/') + 1, NULL, NULL,
                       0, 0);
        } else if ((flags & O_TRUNC) && S_ISREG(before.st_mode) && before.st_size > 0) {
            record(SIZE, after.st_ino, 0, 0, 0, NULL, NULL, NULL, 0, 0);
        }
        errno = saved;
    }
    unlock();
    return fd;
}

#define MODE_OF(flags, last)                                    \
    mode_t mode = 0;                                            \
    if ((flags) & (O_CREAT | (O_TMPFILE & ~O_DIRECTORY))) {     \
        va_list more;                                           \
        va_start(more, last);                                   \
        mode = va_arg(more, mode_t);                            \
        va_end(more);                                           \
    }

int open(const char *path, int flags, ...) {
    MODE_OF(flags, flags)
    return do_open(AT_FDCWD, path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    MODE_OF(flags, flags)
    return do_open(AT_FDCWD, path, flags | O_LARGEFILE, mode);
}

int openat(int at, const char *path, int flags, ...) {
    MODE_OF(flags, flags)
    return do_open(at, path, flags, mode);
}

int openat64(int at, const char *path, int flags, ...) {
    MODE_OF(flags, flags)
    return do_open(at, path, flags | O_LARGEFILE, mode);
}

int creat(const char *path, mode_t mode) { return do_open(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

int creat64(const char *path, mode_t mode) { return creat(path, mode); }

static int do_unlink(int at, const char *given, int flags) {
    struct place place;
    struct stat meta;
    pthread_once(&once, begin);
    if (!find_place(at, given, &place)) return real_unlinkat(at, given, flags);
    lock();
    int saved = errno, existed = lstat(place.path, &meta) == 0;
    errno = saved;
    int result = fails(NAMES, place.path) ? -1 : real_unlinkat(at, given, flags);
    if (result == 0 && existed) record(REMOVE, meta.st_ino, place.parent, 0, 0, place.name, NULL, NULL, 0, 0);
    unlock();
    return result;
}

int unlink(const char *path) { return do_unlink(AT_FDCWD, path, 0); }

int rmdir(const char *path) { return do_unlink(AT_FDCWD, path, AT_REMOVEDIR); }

int remove(const char *path) {
    struct stat meta;
    return do_unlink(AT_FDCWD, path, lstat(path, &meta) == 0 && S_ISDIR(meta.st_mode) ? AT_REMOVEDIR : 0);
}

int unlinkat(int at, const char *path, int flags) { return do_unlink(at, path, flags); }

static int do_rename(int at, const char *from, int other, const char *to, unsigned flags) {
    struct place old, new;
    struct stat meta;
    pthread_once(&once, begin);
    int old_ours = find_place(at, from, &old), new_ours = find_place(other, to, &new);
    if (!old_ours && !new_ours) return real_renameat2(at, from, other, to, flags);
    if (old_ours != new_ours || (flags & ~(unsigned)RENAME_NOREPLACE)) record_unknown("rename", from);
    lock();
    int saved = errno, existed = lstat(old.path, &meta) == 0;
    errno = saved;
    int result = fails(NAMES, new.path) ? -1 : real_renameat2(at, from, other, to, flags);
    if (result == 0 && existed)
        record(RENAME, meta.st_ino, old.parent, new.parent, 0, old.name, new.name, NULL, 0, 0);
    unlock();
    return result;
}

int rename(const char *from, const char *to) { return do_rename(AT_FDCWD, from, AT_FDCWD, to, 0); }

int renameat(int at, const char *from, int other, const char *to) { return do_rename(at, from, other, to, 0); }

int renameat2(int at, const char *from, int other, const char *to, unsigned flags) {
    return do_rename(at, from, other, to, flags);
}

static int do_mkdir(int at, const char *given, mode_t mode) {
    struct place place;
    struct stat meta;
    pthread_once(&once, begin);
    if (!find_place(at, given, &place)) return real_mkdirat(at, given, mode);
    lock();
    int result = fails(OPENS, place.path) ? -1 : real_mkdirat(at, given, mode);
    if (result == 0 && stat(place.path, &meta) == 0)
        record(ADD, meta.st_ino, place.parent, 1, 0, place.name, NULL, NULL, 0, 0);
    unlock();
    return result;
}

int mkdir(const char *path, mode_t mode) { return do_mkdir(AT_FDCWD, path, mode); }

int mkdirat(int at, const char *path, mode_t mode) { return do_mkdir(at, path, mode); }

int linkat(int at, const char *from, int other, const char *to, int flags) {
    struct place place;
    struct stat meta;
    pthread_once(&once, begin);
    if (!find_place(other, to, &place)) return real_linkat(at, from, other, to, flags);
    lock();
    int result = fails(NAMES, place.path) ? -1 : real_linkat(at, from, other, to, flags);
    if (result == 0 && stat(place.path, &meta) == 0)
        record(ADD, meta.st_ino, place.parent, 0, 0, place.name, NULL, NULL, 0, 0);
    unlock();
    return result;
}

int link(const char *from, const char *to) { return linkat(AT_FDCWD, from, AT_FDCWD, to, 0); }

int symlinkat(const char *target, int at, const char *path) {
    struct place place;
    if (find_place(at, path, &place)) record_unknown("symlink", place.path);
    return real_symlinkat(target, at, path);
}

int symlink(const char *target, const char *path) { return symlinkat(target, AT_FDCWD, path); }

/* ---- what has another way, or none -------------------------------------------------------------------------------- */

/* A program that is told that a file can't be copied within the kernel writes its bytes instead. */
static int refuses_to_copy(int to) {
    struct stat meta;
    char path[PATH_MAX];
    if (!is_ours(to, &meta, path)) return 0;
    errno = EINVAL;
    return 1;
}

ssize_t copy_file_range(int from, off64_t *at, int to, off64_t *where, size_t length, unsigned flags) {
    if (refuses_to_copy(to)) return -1;
    return real_syscall(SYS_copy_file_range, from, at, to, where, length, flags);
}

ssize_t sendfile(int to, int from, off_t *at, size_t length) {
    if (refuses_to_copy(to)) return -1;
    return real_syscall(SYS_sendfile, to, from, at, length);
}

ssize_t sendfile64(int to, int from, off64_t *at, size_t length) { return sendfile(to, from, at, length); }

ssize_t splice(int from, off64_t *at, int to, off64_t *where, size_t length, unsigned flags) {
    if (refuses_to_copy(to)) return -1;
    return real_syscall(SYS_splice, from, at, to, where, length, flags);
}

long syscall(long number, ...) {
    long given[6];
    va_list more;
    va_start(more, number);
    for (int i = 0; i < 6; i++) given[i] = va_arg(more, long);
    va_end(more);
    pthread_once(&once, begin);
    if ((number == SYS_copy_file_range || number == SYS_splice) && refuses_to_copy((int)given[2])) return -1;
    if (number == SYS_sendfile && refuses_to_copy((int)given[0])) return -1;
    return real_syscall(number, given[0], given[1], given[2], given[3], given[4], given[5]);
}

int syncfs(int fd) {
    record_unknown("syncfs", "");
    return (int)real_syscall(SYS_syncfs, fd);
}

void sync(void) {
    record_unknown("sync", "");
    real_syscall(SYS_sync);
}

int sync_file_range(int fd, off64_t at, off64_t length, unsigned flags) {
    struct stat meta;
    char path[PATH_MAX];
    if (is_ours(fd, &meta, path)) record_unknown("sync_file_range", path);
    return (int)real_syscall(SYS_sync_file_range, fd, at, length, flags);
}

/* Nobody sees what is written through a map. SQLite's index of a WAL may be mapped: no power cut leaves it. */
void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t at) {
    struct stat meta;
    char path[PATH_MAX];
    pthread_once(&once, begin);
    if (fd >= 0 && (flags & MAP_SHARED) && (protection & PROT_WRITE) && is_ours(fd, &meta, path)) {
        size_t end = strlen(path);
        if (end < 4 || strcmp(path + end - 4, "-shm") != 0) record_unknown("mmap", path);
    }
    return real_mmap(address, length, protection, flags, fd, at);
}

void *mmap64(void *address, size_t length, int protection, int flags, int fd, off64_t at) {
    return mmap(address, length, protection, flags, fd, at);
}
