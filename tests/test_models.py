#!/usr/bin/env python3
"""Tests of models.txt and of what fetches the models it lists; nothing leaves this machine.

usage: test_models.py TENON DATA_DIR
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ARCHS = ("llama", "qwen2", "qwen3", "qwen3moe", "gemma3")
COLUMNS = ("id", "arch", "quant", "bytes", "sha256", "licence", "file", "source")
CONTENT = b"GGUF and so on"


class Tree:
    """A copy of the script with a models.txt of its own."""

    def __init__(self, **columns):
        self.dir = tempfile.mkdtemp(prefix="tenon-models-")
        os.mkdir(os.path.join(self.dir, "python"))
        shutil.copy(os.path.join(ROOT, "python/fetch_models.py"), os.path.join(self.dir, "python"))
        source = os.path.join(self.dir, "published.gguf")
        with open(source, "wb") as f:
            f.write(CONTENT)
        row = {
            "id": "tiny",
            "arch": "llama",
            "quant": "F16",
            "bytes": str(len(CONTENT)),
            "sha256": hashlib.sha256(CONTENT).hexdigest(),
            "licence": "none",
            "file": "tiny.gguf",
            "source": "file://" + source,
        }
        row.update(columns)
        with open(os.path.join(self.dir, "models.txt"), "w") as f:
            f.write("# a comment\n" + " ".join(row[c] for c in COLUMNS) + "\n")

    def run(self, *args):
        script = os.path.join(self.dir, "python/fetch_models.py")
        return subprocess.run(
            [sys.executable, script, *args], cwd=self.dir, capture_output=True, text=True, timeout=60
        )

    def model(self):
        return os.path.join(self.dir, "models/tiny.gguf")


def lines_are_well_formed():
    ids, files = set(), set()
    with open(os.path.join(ROOT, "models.txt")) as f:
        rows = [line.split() for line in f if line.strip() and not line.startswith("#")]
    for row in rows:
        assert len(row) == len(COLUMNS), row
        m = dict(zip(COLUMNS, row))
        assert m["arch"] in ARCHS and re.fullmatch(r"(Q\d_K_[SML]|Q\d_[01K]|B?F\d\d)", m["quant"]), row
        assert re.fullmatch(r"-|[1-9]\d*", m["bytes"]) and re.fullmatch(r"-|[0-9a-f]{64}", m["sha256"]), row
        assert re.fullmatch(r"[\w.-]+\.gguf", m["file"]), row
        assert re.fullmatch(r"pypi:[\w.=,-]+==[\w.=,-]+|https://[\w.-]+/\S+\.gguf", m["source"]), row
        assert m["source"].startswith("pypi:") or m["source"].endswith("/" + m["file"]), row
        ids.add(m["id"])
        files.add(m["file"])
    assert len(ids) == len(files) == len(rows) >= 10, "ids or files occur twice"
    assert rows[0][0] == "smollm2-135m" and rows[0][3] == "98362432", rows[0]


def a_model_is_fetched_once():
    t = Tree()
    p = t.run("--path", "tiny")
    assert p.returncode == 0 and p.stdout == "models/tiny.gguf\n", p
    with open(t.model(), "rb") as f:
        assert f.read() == CONTENT
    os.remove(os.path.join(t.dir, "published.gguf"))
    p = t.run("--path", "tiny")
    assert p.returncode == 0 and "fetching" not in p.stderr, p
    assert os.listdir(os.path.join(t.dir, "models/.fetch")) == []
    shutil.rmtree(t.dir)


def what_is_wrong_is_not_kept():
    for columns, word in (({"sha256": "0" * 64}, "sha256"), ({"bytes": "7"}, "not 7")):
        t = Tree(**columns)
        p = t.run("tiny")
        assert p.returncode == 1 and word in p.stderr and "removed" in p.stderr, p
        assert not os.path.exists(t.model())
        assert "tiny.gguf" not in os.listdir(os.path.join(t.dir, "models/.fetch/tiny"))
        shutil.rmtree(t.dir)


def without_internet_it_is_said():
    t = Tree(source="http://127.0.0.1:9/tiny.gguf")
    p = t.run("tiny")
    assert p.returncode == 1 and not os.path.exists(t.model()), p
    assert "fetching tiny (none licence) from http://127.0.0.1:9/tiny.gguf" in p.stderr, p
    assert re.search(r"fetch_models.py: curl ended with code \d+: curl .*127.0.0.1", p.stderr), p
    assert "Traceback" not in p.stderr, p
    p = t.run("huge")
    assert p.returncode == 1 and "'huge' is no file and no model of models.txt: tiny" in p.stderr, p
    shutil.rmtree(t.dir)


def main():
    cases = [lines_are_well_formed]
    with_curl = [a_model_is_fetched_once, what_is_wrong_is_not_kept, without_internet_it_is_said]
    have_curl = shutil.which("curl") is not None
    failed = 0
    for case in cases + (with_curl if have_curl else []):
        try:
            case()
        except (AssertionError, OSError) as e:
            failed += 1
            print(f"FAILED {case.__name__}: {e!r}", file=sys.stderr)
    skipped = 0 if have_curl else len(with_curl)
    n = len(cases) + len(with_curl) - skipped
    print(f"{n - failed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
    return failed != 0


if __name__ == "__main__":
    sys.exit(main())
