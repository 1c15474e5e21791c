#!/usr/bin/env python3
"""Tests of `make install`: what a stranger's program finds, and the README's example built against it.

usage: test_install.py TENON DATA_DIR
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MODEL = os.path.join(ROOT, "tests/data/arch/llama/model-f16.gguf")
FILES = """bin/tenon bin/tenon-bench include/tenon/tenon.h include/tenon/gguf.h
include/tenon/status.h lib/libtenon.a lib/libtenon.so
lib/pkgconfig/tenon.pc share/man/man1/tenon.1 share/man/man1/tenon-bench.1
share/bash-completion/completions/tenon share/zsh/site-functions/_tenon
share/fish/vendor_completions.d/tenon.fish""".split()


def run(*args, **more):
    return subprocess.run(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


def install(prefix):
    env = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "DESTDIR")}
    p = run("make", "-C", ROOT, "install", f"PREFIX={prefix}", env=env)
    assert p.returncode == 0, p.stdout + p.stderr


def files_are_there(prefix):
    for f in FILES:
        assert os.path.getsize(os.path.join(prefix, f)) > 100, f


def programs_run(prefix):
    p = run(os.path.join(prefix, "bin/tenon"), "--version")
    assert p.returncode == 0 and p.stdout.startswith("tenon "), p
    p = run(os.path.join(prefix, "bin/tenon-bench"), "--help")
    assert p.returncode == 0 and "--help" in p.stdout, p


def versions_agree(prefix):
    env = dict(os.environ, PKG_CONFIG_PATH=os.path.join(prefix, "lib/pkgconfig"))
    version = run("pkg-config", "--modversion", "tenon", env=env).stdout.strip()
    p = run(os.path.join(prefix, "bin/tenon"), "--version")
    assert p.stdout.startswith(f"tenon {version}\n"), (version, p.stdout)
    library = os.path.realpath(os.path.join(prefix, "lib/libtenon.so"))
    assert os.path.basename(library) == f"libtenon.so.{version}", library


def build_example(prefix, static):
    readme = open(os.path.join(ROOT, "README.md")).read()
    source = re.search(r"```c\n(.*?)```", readme, re.S).group(1)
    assert source.count("\n") <= 50, "the example has grown"
    c, exe = os.path.join(prefix, "greedy.c"), os.path.join(prefix, "greedy")
    with open(c, "w") as f:
        f.write(source)
    env = dict(os.environ, PKG_CONFIG_PATH=os.path.join(prefix, "lib/pkgconfig"))
    flags = ["--cflags", "--libs"] + (["--static"] if static else [])
    words = run("pkg-config", *flags, "tenon", env=env).stdout.split()
    if static:
        words = [os.path.join(prefix, "lib/libtenon.a") if w == "-ltenon" else w for w in words]
    p = run("cc", "-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror", c, *words, "-o", exe)
    assert p.returncode == 0, p.stderr
    return exe


def example_runs(prefix, static):
    exe = build_example(prefix, static)
    env = dict(os.environ, LD_LIBRARY_PATH=os.path.join(prefix, "lib"))
    p = run(exe, MODEL, env=env)
    assert p.returncode == 0 and len(p.stdout) > 1 and p.stderr == "", p
    p = run(exe, MODEL + ".missing", env=env)
    assert p.returncode == 1 and "missing" in p.stderr, p
    if static:
        return
    link = os.path.join(prefix, "lib/libtenon.so")  # for the linker: programs want the SONAME
    os.rename(link, link + ".away")
    p = run(exe, MODEL, env=env)
    os.rename(link + ".away", link)
    assert p.returncode == 0, p.stderr


def exports_only_our_names(prefix):
    names = run("nm", "-D", "--defined-only", os.path.join(prefix, "lib/libtenon.so")).stdout.split("\n")
    names = [line.split()[-1].split("@")[0] for line in names if line]
    other = [n for n in names if not n.startswith("tn_")]
    assert len(names) > 20 and not other, other


def uninstalls(prefix):
    run("make", "-C", ROOT, "uninstall", f"PREFIX={prefix}")
    left = [f for f in FILES if os.path.exists(os.path.join(prefix, f))]
    assert not left, left


def main():
    prefix = tempfile.mkdtemp(prefix="tenon-install-")
    cases = [
        ("install", lambda: install(prefix)),
        ("files are there", lambda: files_are_there(prefix)),
        ("programs run", lambda: programs_run(prefix)),
        ("versions agree", lambda: versions_agree(prefix)),
        ("example with the shared library", lambda: example_runs(prefix, False)),
        ("example with the static library", lambda: example_runs(prefix, True)),
        ("exports only our names", lambda: exports_only_our_names(prefix)),
        ("uninstall", lambda: uninstalls(prefix)),
    ]
    failed = 0
    for name, case in cases:
        try:
            case()
        except (AssertionError, OSError) as e:
            failed += 1
            print(f"FAILED {name}: {e!r}", file=sys.stderr)
    shutil.rmtree(prefix)
    print(f"{len(cases) - failed} passed, {failed} failed")
    return failed != 0


if __name__ == "__main__":
    sys.exit(main())
