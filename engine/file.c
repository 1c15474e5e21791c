#include "file.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

tn_status tn_file_read(const char *path, size_t most, const char *what, char **text, size_t *len,
                       const tn_allocator *a, tn_error *err)
{
    FILE *f = fopen(path, "rbe");
    if (!f)
        return tn_fail(err, errno == ENOENT ? TN_ENOENT : TN_EIO, -1, "%s: %s", path,
                       strerror(errno));
    *text = tn_alloc_raw(a, most + 1, 1);
    *len = *text ? fread(*text, 1, most, f) : 0;
    const bool failed = ferror(f) != 0, longer = *len == most;
    fclose(f);
    if (!*text) return tn_fail_nomem(err, most, "a file");
    (*text)[*len] = 0;
    if (!failed && !longer) return TN_OK;
    tn_free(a, *text);
    return longer ? tn_fail(err, TN_EFORMAT, -1, "%s: too large for %s", path, what)
                  : tn_fail(err, TN_EIO, -1, "%s: reading failed", path);
}

tn_status tn_file_replace(const char *path, const char *text, const tn_allocator *a, tn_error *err)
{
    tn_status s = TN_OK;
    char *temporary = tn_alloc(a, strlen(path) + 32, 1);
    if (!temporary) return tn_fail_nomem(err, strlen(path), "a file's name");
    sprintf(temporary, "%s.%ld", path, (long)getpid());
    FILE *f = fopen(temporary, "wbe");
    const bool written = f && fwrite(text, 1, strlen(text), f) == strlen(text);
    const bool closed = f && fclose(f) == 0;
    if (!written || !closed || rename(temporary, path) != 0) {
        s = tn_fail(err, TN_EIO, -1, "%s: %s", path, strerror(errno));
        if (f) remove(temporary);
    }
    tn_free(a, temporary);
    return s;
}
