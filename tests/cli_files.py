"""Models as files: in parts, being loaded, with chat templates that nobody knows."""

import os
import re
import signal
import struct
import subprocess

from cli_lib import ENDLESS, Skip, case, check, equal, golden, sanitized, with_string_key

SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


def skip_string(data, at):
    return at + 8 + struct.unpack_from("<Q", data, at)[0]


def skip_value(data, at, kind):
    if kind == 8:
        return skip_string(data, at)
    if kind != 9:
        return at + SCALARS[kind]
    element, n = struct.unpack_from("<IQ", data, at)
    at += 12
    if element != 8:
        return at + n * SCALARS[element]
    for _ in range(n):
        at = skip_string(data, at)
    return at


def read_header(data):
    """The keys as one piece of bytes and their number; the tensors as [entry without offset, offset];
    where their data starts."""
    _, _, n_tensors, n_keys = struct.unpack_from("<IIQQ", data)
    at = 24
    for _ in range(n_keys):
        at = skip_string(data, at)
        at = skip_value(data, at + 4, struct.unpack_from("<I", data, at)[0])
    keys, tensors = data[24:at], []
    for _ in range(n_tensors):
        end = skip_string(data, at)
        end += 8 + 8 * struct.unpack_from("<I", data, end)[0]
        tensors.append((data[at:end], struct.unpack_from("<Q", data, end)[0]))
        at = end + 8
    return keys, n_keys, tensors, (at + 31) // 32 * 32


def part_keys(no, count, n_tensors):
    def entry(name, kind, value):
        return struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + value

    return (
        entry(b"split.no", 2, struct.pack("<H", no))
        + entry(b"split.count", 2, struct.pack("<H", count))
        + entry(b"split.tensors.count", 5, struct.pack("<i", n_tensors))
    )


def split_model(t, name, cuts):
    """Writes t.model in parts, each from one of the cuts on; returns the first one's path."""
    with open(t.model, "rb") as f:
        data = f.read()
    keys, n_keys, tensors, start = read_header(data)
    ends = [offset for _, offset in tensors[1:]] + [len(data) - start]
    paths = []
    for i, first in enumerate(cuts):
        last = cuts[i + 1] if i + 1 < len(cuts) else len(tensors)
        mine, base = tensors[first:last], tensors[first][1]
        head = struct.pack("<4sIQQ", b"GGUF", 3, len(mine), 3 + (n_keys if i == 0 else 0))
        head += (keys if i == 0 else b"") + part_keys(i, len(cuts), len(tensors))
        head += b"".join(e + struct.pack("<Q", offset - base) for e, offset in mine)
        head += b"\0" * (-len(head) % 32)
        part = "%s-%05d-of-%05d.gguf" % (name, i + 1, len(cuts))
        paths.append(t.file(part, head + data[start + base : start + ends[last - 1]]))
    return paths[0]


@case
def a_model_in_parts(t):
    path = split_model(t, "parts", [0, 5, 11])
    ids = ",".join(str(i) for i in golden(t)["sequences"][0]["tokens"][:16])
    logits = ("--tokens", ids, "--out", "-")
    whole = t.ok("logits", t.model, *logits)
    for load in ("auto", "read", "map"):
        got = t.ok("logits", path, *logits, "--load", load)
        equal(len(got), len(whole), f"bytes with --load {load}")
        equal(got == t.ok("logits", t.model, *logits, "--load", load), True, f"same with {load}")
    check(b"3 files" in t.ok("inspect", path), "inspect does not count the files")
    os.remove(path.replace("00002-of", "00000-of").replace("00001-of", "00003-of"))
    t.fails(66, "run", path, "-p", "x", words=("parts-00003-of-00003.gguf",))


@case
def weights_come_after_the_first_word(t):
    words = ("-p", "x", *ENDLESS, "-v")
    said = b"of the mapped file are in memory now"
    texts = []
    for args, come in (
        (("run", "--raw", "-n", "4"), True),
        (("run", "--raw", "-n", "1"), False),
        (("run", "--raw", "-n", "4", "--load", "read"), False),
        (("chat", "--template", "chatml", "-n", "4"), True),
    ):
        code, out, err = t.run(args[0], t.model, *args[1:], *words)
        equal(code, 0, f"exit code of {args}: {err!r}")
        equal(said in err, come, f"{args}: weights come after the first batch: {err!r}")
        texts.append(out)
    check(texts[0] == texts[2], f"other words from the mapped file: {texts}")


@case
def an_unknown_template_names_the_choices(t):
    path = t.file(
        "strange.gguf",
        with_string_key(t.model, "tokenizer.chat_template", "{{ strange_macro(messages) }}"),
    )
    words = ("template is unknown", "--template NAME", "chatml", "llama3", "gemma", "zephyr")
    t.fails(65, "chat", path, words=words)
    t.fails(65, "run", path, "-p", "x", words=words)
    t.fails(64, "chat", path, "--template", "nonsense", words=("'nonsense'", "chatml", "zephyr"))
    check(t.ok("chat", path, "--template", "zephyr", "-n", "2", "-p", "x"), "no answer")
    check(t.ok("run", path, "--raw", "-n", "2", "-p", "x", *ENDLESS), "no text")


PRELOAD = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <sys/types.h>
/* Ctrl-C as soon as weights are read; a third one would end the program whatever it does. */
ssize_t pread(int fd, void *p, size_t n, off_t at)
{
    ssize_t (*real)(int, void *, size_t, off_t) = (ssize_t (*)(int, void *, size_t, off_t))dlsym(RTLD_NEXT, "pread");
    static int calls;
    if (__sync_fetch_and_add(&calls, 1) == 0) raise(SIGINT);
    return real(fd, p, n, at);
}
"""


@case
def interrupted_loading_is_130(t):
    if sanitized(t):
        raise Skip("a sanitizer wants to be the first library")
    source, library = t.file("preload.c", PRELOAD.encode()), os.path.join(t.dir, "preload.so")
    subprocess.run(["cc", "-shared", "-fPIC", source, "-o", library, "-ldl"], check=True)
    env = t.env(LD_PRELOAD=library)
    for args in (("run", "-p", "x", "--json"), ("chat", "--template", "chatml", "-p", "x")):
        code, out, err = t.run(args[0], t.model, *args[1:], "--load", "read", env=env)
        equal(code, 128 + signal.SIGINT, f"exit code of {args[0]}: {err!r}")
        equal(out, b"", f"stdout of {args[0]}: begun, though the model was not there")


@case
def long_work_shows_its_progress(t):
    if sanitized(t):
        raise Skip("long work is too long with a sanitizer")
    text = t.file("progress.txt", b"Once upon a time there was a king who had a daughter. " * 1000)
    args = ("perplexity", t.model, "--file", text, "--ctx", "64", "-t", "1")
    tty = t.terminal(*args)
    equal(tty.wait(), 0, "exit code")
    check(re.search(rb"\r[a-z]+ \[#* *\] +\d+%", tty.seen), f"no progress: {tty.seen[:500]!r}")
    stays = re.search(rb"\d%[^\r][^\n]*", tty.seen)
    check(not stays, f"the bar stays: {stays}")
    _, _, err = t.run(*args)
    check(b"\r" not in err and b"#" not in err, f"a bar in a pipe: {err[:300]!r}")
