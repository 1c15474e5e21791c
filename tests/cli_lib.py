"""What the tests of the command line share: cases, processes behind pipes and terminals, models."""

import errno
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback

TIMEOUT = 30  # seconds until a hanging program counts as failed


# The model is random and small: it never ends by itself once its end token is banned.
ENDLESS = ("--logit-bias", "2=-inf", "--seed", "1")
TALK = ("--template", "chatml")


class Skip(Exception):
    """Raised by a case that cannot run here; its text says why."""


CASES = []


def case(function):
    CASES.append(function)
    return function


def check(condition, message):
    if not condition:
        raise AssertionError(message)


def equal(got, want, what):
    check(got == want, f"{what} is {got!r}, want {want!r}")


class Tenon:
    """The program under test, and a folder for what the tests write."""

    def __init__(self, path, data):
        self.path = os.path.abspath(path)
        self.model = os.path.abspath(os.path.join(data, "arch/llama/model-f16.gguf"))
        self.data = os.path.abspath(data)
        self.dir = tempfile.mkdtemp(prefix="tenon-cli-")

    def env(self, **more):
        keep = {
            k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "XDG_STATE_HOME", "LC_ALL")
        }
        keep.update({"HOME": self.dir, "TERM": "xterm", "LANG": "C.UTF-8"})
        keep.update(more)
        return keep

    def file(self, name, content):
        path = os.path.join(self.dir, name)
        with open(path, "wb") as f:
            f.write(content)
        return path

    def run(self, *args, stdin=b"", env=None, **popen):
        """Behind pipes: (exit code, stdout, stderr) as bytes."""
        p = subprocess.run(
            [self.path, *args],
            input=stdin,
            capture_output=True,
            timeout=TIMEOUT,
            env=env or self.env(),
            **popen,
        )
        return p.returncode, p.stdout, p.stderr

    def ok(self, *args, **kw):
        code, out, err = self.run(*args, **kw)
        check(code == 0, f"{args}: exit code {code}: {err.decode(errors='replace')}")
        return out

    def fails(self, want, *args, words=(), **kw):
        """Expects an exit code, nothing but one or more 'tenon:' lines, and words among them."""
        code, out, err = self.run(*args, **kw)
        text = err.decode(errors="replace")
        check(code == want, f"{args}: exit code {code}, want {want}: {text}")
        check("tenon: " in text, f"{args}: no message on stderr: {text!r}")
        for word in words:
            check(word in text, f"{args}: {word!r} is not in the message: {text!r}")
        return out

    def start(self, *args, **popen):
        return subprocess.Popen(
            [self.path, *args],
            stdin=popen.pop("stdin", subprocess.PIPE),
            stdout=popen.pop("stdout", subprocess.PIPE),
            stderr=popen.pop("stderr", subprocess.PIPE),
            env=self.env(),
            **popen,
        )

    def terminal(self, *args, env=None, stdout=None):
        return Terminal([self.path, *args], env or self.env(), stdout)

    def close(self):
        shutil.rmtree(self.dir, ignore_errors=True)


def slow_rate(t):
    """GB/s to which the emulated device can be slowed: about a twentieth of what it reads here and
    now, 1, 2 or 5 times a power of ten. As text, as programs show it."""
    tenon = os.path.join(os.path.dirname(t.path), "tenon")
    slow = (tenon, "run", t.model, "-p", "x", "-n", "1", "--device", "emu", "--throttle", "1000000")
    p = subprocess.run(slow, capture_output=True, timeout=TIMEOUT)
    if b"libtenon-emu.so" in p.stderr:
        raise Skip("built without the emulated device")
    found = re.search(rb"reads (\S+) GB/s and cannot be slowed", p.stderr)
    equal((p.returncode, found is not None), (64, True), f"a refusal of {p.stderr!r}")
    rates = [float(f"{m}e{e}") for e in range(-9, 6) for m in (1, 2, 5)]
    return "%g" % max(r for r in rates if r <= float(found[1]) / 20)


class Terminal:
    """The program behind a pseudo-terminal. stdout: a path to redirect standard output to."""

    def __init__(self, argv, env, stdout=None):
        self.seen = b""
        self.code = None
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            if stdout:
                fd = os.open(stdout, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
                os.dup2(fd, 1)
            os.execve(argv[0], argv, env)

    def send(self, data):
        os.write(self.fd, data if isinstance(data, bytes) else data.encode())

    def _read(self, wait):
        ready, _, _ = select.select([self.fd], [], [], wait)
        if not ready:
            return True
        try:
            data = os.read(self.fd, 65536)
        except OSError as e:
            if e.errno != errno.EIO:
                raise
            data = b""
        self.seen += data
        return bool(data)

    def expect(self, what, since=0):
        """Waits until `what` is shown after offset `since`; returns the offset behind it."""
        what = what if isinstance(what, bytes) else what.encode()
        end = time.monotonic() + TIMEOUT
        while what not in self.seen[since:]:
            alive = self._read(0.1)
            if (not alive or time.monotonic() > end) and what not in self.seen[since:]:
                self.kill()
                raise AssertionError(f"{what!r} was not shown, but {self.seen[since:][-2000:]!r}")
        return self.seen.index(what, since) + len(what)

    def wait(self):
        """The exit code, once the program has ended by itself."""
        end = time.monotonic() + TIMEOUT
        while self._read(0.1):
            if time.monotonic() > end:
                self.kill()
                raise AssertionError(f"the program did not end; shown: {self.seen[-2000:]!r}")
        _, status = os.waitpid(self.pid, 0)
        os.close(self.fd)
        self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def kill(self):
        try:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


def sanitized(t):
    return b"libasan" in subprocess.run(["ldd", t.path], capture_output=True).stdout


def golden(t):
    with open(os.path.join(t.data, "arch/llama/golden.json")) as f:
        return json.load(f)


def inspect(t, path):
    return json.loads(t.ok("inspect", path, "--json"))


def with_string_key(model, key, value):
    """A model's bytes with one more string in the metadata: the first entry, padded so that the
    tensor data stays aligned to 32."""
    with open(model, "rb") as f:
        data = f.read()
    magic, version, tensors, keys = struct.unpack_from("<IIQQ", data)
    name, text = key.encode(), value.encode()
    text += b" " * (-(8 + len(name) + 4 + 8 + len(text)) % 32)
    entry = struct.pack("<Q", len(name)) + name + struct.pack("<IQ", 8, len(text)) + text
    return struct.pack("<IIQQ", magic, version, tensors, keys + 1) + entry + data[24:]


def on_device(t, *args, **kw):
    """The command's output with an emulated device; skips the case where there is none."""
    code, out, err = t.run(*args, "--device", "emu", **kw)
    if code == 65 and (b"libtenon-emu" in err or b"knows no devices" in err):
        raise Skip("built without the emulated device")
    equal(code, 0, f"exit code of {args}: {err!r}")
    return out, err


def tokenize(t, path, texts, *options):
    """The ids of every text by `tenon tokenize --jsonl`."""
    lines = "".join(json.dumps(text) + "\n" for text in texts).encode()
    out = t.ok("tokenize", path, "--jsonl", *options, stdin=lines).splitlines()
    equal(len(out), len(texts), "number of lines")
    return [json.loads(line) for line in out]


def check_rows(name, texts, got, want):
    wrong = [i for i, ids in enumerate(got) if ids != want[i]]
    first = f"{texts[wrong[0]]!r} gives {got[wrong[0]]}, not {want[wrong[0]]}" if wrong else ""
    check(not wrong, f"{name}: strings {wrong} differ: {first}")


def main(argv):
    if len(argv) not in (3, 4):
        print("usage: test_cli.py TENON DATA_DIR [NAME]", file=sys.stderr)
        return 2
    passed = failed = skipped = 0
    t = Tenon(argv[1], argv[2])
    try:
        for function in CASES:
            if len(argv) == 4 and argv[3] not in function.__name__:
                continue
            try:
                function(t)
                passed += 1
            except Skip as why:
                skipped += 1
                print(f"skipped {function.__name__}: {why}", file=sys.stderr)
            except Exception as e:  # a case that breaks is a case that fails
                failed += 1
                where = traceback.extract_tb(e.__traceback__)
                lines = [
                    f"{os.path.basename(f.filename)}:{f.lineno}"
                    for f in where
                    if not f.filename.endswith("cli_lib.py")
                ]
                print(
                    f"FAILED {function.__name__} ({', '.join(lines)}): {type(e).__name__}: {e}",
                    file=sys.stderr,
                )
    finally:
        t.close()
    print(f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
    return 1 if failed else 0
