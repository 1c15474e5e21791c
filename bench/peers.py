#!/usr/bin/env python3
"""The table of tenon against other engines: alternating runs on this machine, best peer a cell.

    peers.py [--quick] [--only REGEX] [--model ID=FILE]... [--out NAME]

Peers are every llama-bench found on PATH: of llama.cpp and of ik_llama.cpp (told apart by their
--help), one with avx2 in its name for the rows limited to AVX2. What is not there is said and left
out. Every peer runs with each of the settings that make it fastest on some machine, and the best
counts. Writes NAME.md and NAME.json; see bench/README.md. Python's standard library only.
"""

import argparse
import collections
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PROMPT = "What is the capital of France?"
SETTINGS = {
    "llama.cpp": ("-fa 0", "-fa 1", "-fa 0 --repack 0", "-fa 1 --repack 0"),
    "ik_llama.cpp": ("-fa 1", "-fa 1 -rtr 1"),
}
Peer = collections.namedtuple("Peer", "kind path avx2")
# group: of the table; model: id; threads: 0 = all cores; isa: None = the best; target: least ratio
Cell = collections.namedtuple("Cell", "group model threads isa args target")

SMALL = ("smollm2-135m", "gemma3-270m")
LARGE = tuple("llama-1b:" + t for t in ("q4_k_m", "q4_0", "q8_0", "q6_k"))


def cells():
    for isa in (None, "avx2"):
        for model in LARGE:
            for threads in (1, 0):
                yield Cell("decode, DRAM-bound", model, threads, isa, ("-p", "0", "-n", "64"), 1.6)
    for isa in (None, "avx2"):
        for model in SMALL:
            yield Cell("decode, cache-resident", model, 0, isa, ("-p", "0", "-n", "128"), 1.8)
    for isa, target in ((None, 1.9), ("avx2", 1.6)):
        for model in SMALL + LARGE:
            least = 1.0 if isa and model.endswith("q8_0") else target
            yield Cell("prefill 512", model, 0, isa, ("-p", "512", "-n", "0"), least)
    for model, depth in (("smollm2-135m", 4096), ("gemma3-270m", 16384), ("llama-1b:q4_k_m", 4096)):
        args = ("-p", "512", "-n", "32", "-d", str(depth))
        yield Cell(f"depth {depth}", model, 0, None, args, 2.0)


def say(text):
    print("peers.py: " + text, file=sys.stderr, flush=True)


def give_up(text):
    say(text)
    sys.exit(1)


# ---- what there is ------------------------------------------------------------------------------


def find_peers():
    """Every program on PATH whose name has llama-bench in it, once each."""
    found, seen = [], set()
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        names = sorted(os.listdir(folder)) if os.path.isdir(folder) else ()
        for name in names:
            path = os.path.realpath(os.path.join(folder, name))
            if "llama-bench" not in name or path in seen or not os.access(path, os.X_OK):
                continue
            seen.add(path)
            text = subprocess.run([path, "--help"], capture_output=True, check=False)
            kind = "ik_llama.cpp" if b"-rtr" in text.stdout + text.stderr else "llama.cpp"
            found.append(Peer(kind, os.path.join(folder, name), "avx2" in name.lower()))
    for kind in SETTINGS:
        for avx2 in (False, True):
            if not any(p.kind == kind and p.avx2 == avx2 for p in found):
                what = "llama-bench*avx2*" if avx2 else "llama-bench"
                say(f"no {what} of {kind} on PATH: left out")
    return found


def model_path(ident, args):
    """Where a model is: given, fetched, or made of random weights."""
    if ident in args.model:
        return args.model[ident]
    if ":" not in ident:
        fetch = [sys.executable, os.path.join(TOP, "python/fetch_models.py"), "--path", ident]
        p = subprocess.run(fetch, stdout=subprocess.PIPE, text=True, check=False)
        if p.returncode:
            say(f"no model {ident}: its rows are left out")
        return p.stdout.strip() if p.returncode == 0 else None
    path = os.path.join(TOP, "models", "synthetic-" + ident.replace(":", "-") + ".gguf")
    if not os.path.exists(path):
        say(f"making {os.path.basename(path)} of random weights")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if subprocess.run([args.make_model, ident, path + ".part"], check=False).returncode:
            give_up(f"cannot make {path}")
        os.rename(path + ".part", path)
    return path


# ---- measuring ----------------------------------------------------------------------------------


def bench(args, model, *more):
    """A report of tenon-bench, or None after saying why there is none."""
    runs = ("-r", "2", "--warmup", "1") if args.quick else ("-r", "5")
    command = [args.bench, "-m", model, *runs, "--no-hash", "-o", "json", *more]
    p = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if p.returncode in (130, 143):
        raise KeyboardInterrupt
    try:
        return json.loads(p.stdout)
    except ValueError:
        say(f"tenon-bench ended with {p.returncode}: {' '.join(more)}")
        return None


def peer_options(peers, cell):
    chosen = [p for p in peers if p.avx2 == (cell.isa == "avx2")]
    return [f"{p.path} {words}" for p in chosen for words in SETTINGS[p.kind]]


def label_of(peers, engine):
    """Kind and settings of a peer's row."""
    for p in peers:
        name = os.path.basename(p.path)
        if engine == name or engine.startswith((name + " ", p.path + " ")):
            return p.kind + engine[engine.index(name) + len(name) :]
    return engine


def run_cell(args, peers, cell, model):
    """Rows of the table: (test, ours, best peer's row or None)."""
    options = [w for p in peer_options(peers, cell) for w in ("--peer", p)]
    isa = ("--isa", cell.isa) if cell.isa else ()
    report = bench(args, model, "-t", str(cell.threads), *isa, *cell.args, *options)
    if not report:
        return None, []
    tests = {}
    for row in report["results"]:
        tests.setdefault(row["test"], []).append(row)
    rows = []
    for test, group in tests.items():
        theirs = [r for r in group[1:] if not r["error"]]
        for r in group:
            if r["error"]:
                say(f"{cell.model} {test}, {r['engine']}: {r['error']}")
        best = max(theirs, key=lambda r: r["median"], default=None)
        if not group[0]["error"]:
            rows.append((test, group[0], best))
    return report, rows


def what_limits(cell, ours, ratio, peers):
    """Of a cell that misses its target, or has none to miss."""
    if ratio is None:
        return "no peer" if not peer_options(peers, cell) else "the peer cannot run it"
    if ours["disturbed"]:
        return "disturbed: " + ours["disturbed"]
    if ratio >= cell.target:
        return ""
    share = ours["percent_of_limit"]
    return f"{share:.0f} % of the read limit" if share else "arithmetic"


def table_rows(args, peers, cell, model, reports):
    report, rows = run_cell(args, peers, cell, model)
    if report:
        reports.append({"cell": cell._asdict(), "report": report})
    for test, ours, best in rows:
        over = best["tenon_over_this"] if best else {}
        yield {
            "group": cell.group,
            "model": cell.model,
            "test": test,
            "threads": ours["parameters"]["threads"],
            "isa": ours["parameters"]["isa"],
            "tenon": ours["median"],
            "peer": best["median"] if best else None,
            "who": label_of(peers, best["engine"]) if best else "",
            "ratio": over.get("ratio"),
            "ci95": over.get("ci95"),
            "target": cell.target,
            "note": what_limits(cell, ours, over.get("ratio"), peers),
        }


# ---- rows that are no sweep ---------------------------------------------------------------------


def busy_rows(args, peers, model):
    """All threads with another process busy on one core, against one thread undisturbed."""
    native = [p for p in peers if not p.avx2]
    options = [w for p in native for w in ("--peer", f"{p.path} {SETTINGS[p.kind][-1]}")]
    common = ("-p", "0", "-n", "64", *options)
    alone = bench(args, model, "-t", "1", *common)
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        beside = bench(args, model, "-t", "0", *common)
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
    if not alone or not beside:
        return
    for one, all_threads in zip(alone["results"], beside["results"]):
        if one["error"] or all_threads["error"]:
            continue
        ours = one["engine"] == "tenon"
        ratio = all_threads["median"] / one["median"]
        yield {
            "group": "a busy process beside it / one thread alone",
            "model": "smollm2-135m",
            "test": one["test"],
            "threads": all_threads["parameters"]["threads"],
            "isa": one["parameters"]["isa"],
            "tenon": all_threads["median"] if ours else None,
            "peer": None if ours else all_threads["median"],
            "who": "" if ours else label_of(peers, one["engine"]),
            "ratio": ratio,
            "ci95": None,
            "target": 0.8 if ours else None,
            "note": "" if not ours or ratio >= 0.8 else "the scheduler",
        }


def seconds_of(command):
    start = time.monotonic()
    null = subprocess.DEVNULL
    p = subprocess.run(command, stdin=null, stdout=null, stderr=null, check=False)
    return time.monotonic() - start if p.returncode == 0 else None


def start_row(args, ident, model):
    """From the start of the program to its end after one token, the file in the page cache."""
    ours = [args.tenon, "run", model, "-n", "1", "--temp", "0", "--prompt", PROMPT]
    name = next((n for n in ("llama-completion", "llama-cli") if shutil.which(n)), None)
    theirs = [name, "-m", model, "-n", "1", "--temp", "0", "-no-cnv", "-p", PROMPT]
    if not name:
        say("no llama-completion or llama-cli on PATH: start-up without a peer")
    times = {"ours": [], "theirs": []}
    for _ in range(3 if args.quick else 8):
        times["ours"].append(seconds_of(ours))
        if name:
            times["theirs"].append(seconds_of(theirs))
    if None in times["ours"]:
        say(f"tenon run failed on {model}")
        return None
    if None in times["theirs"]:
        say(f"{name} failed on {model}")
        times["theirs"] = []
    mine = 1000 * statistics.median(times["ours"][1:])
    other = 1000 * statistics.median(times["theirs"][1:]) if times["theirs"] else None
    ratio = mine / other if other else None
    return {
        "group": "start to first token, ms (less is better)",
        "model": ident,
        "test": "start",
        "threads": 0,
        "isa": "",
        "tenon": mine,
        "peer": other,
        "who": "llama.cpp" if other else "",
        "ratio": ratio,
        "ci95": None,
        "target": -0.5,
        "note": "no peer" if ratio is None else "" if ratio <= 0.5 else "loading",
    }


# ---- the table ----------------------------------------------------------------------------------


def number(x):
    return "" if x is None else f"{x:.0f}" if x >= 1000 else f"{x:.1f}" if x >= 100 else f"{x:.2f}"


def verdict(row):
    disturbed = row["note"].startswith("disturbed")
    if row["ratio"] is None or row["target"] is None or disturbed:
        return ""
    if row["target"] < 0:
        return "met" if row["ratio"] <= -row["target"] else "missed"
    return "met" if row["ratio"] >= row["target"] else "missed"


def markdown(rows, environment):
    cpu = environment.get("cpu", {})
    build = environment.get("build", {})
    yield (
        f"{cpu.get('model')}, {cpu.get('cpus_online')} CPUs, {environment.get('date')}, tenon "
        f"{build.get('version')} {build.get('commit')}{' (changed)' if build.get('dirty') else ''}, "
        f"{build.get('compiler')}"
    )
    yield ""
    yield "| what | model | test | threads | isa | tenon | best peer | who | ratio | target | |"
    yield "|:--|:--|:--|--:|:--|--:|--:|:--|--:|--:|:--|"
    for r in rows:
        interval = " ({:.2f} - {:.2f})".format(*r["ci95"]) if r["ci95"] else ""
        ratio = "" if r["ratio"] is None else f"{r['ratio']:.2f}{interval}"
        target = r["target"]
        want = "" if target is None else f"<= {-target:g}" if target < 0 else f">= {target:g}"
        words = ", ".join(w for w in (verdict(r), r["note"]) if w)
        yield (
            f"| {r['group']} | {r['model']} | {r['test']} | {r['threads'] or ''} | {r['isa']} | "
            f"{number(r['tenon'])} | {number(r['peer'])} | {r['who']} | {ratio} | {want} | {words} |"
        )


def without_folders(x):
    """Reports are published: names of files, not where they lay."""
    if isinstance(x, dict):
        return {k: without_folders(v) for k, v in x.items()}
    if isinstance(x, list):
        return [without_folders(v) for v in x]
    return re.sub(r"(?<![\w.])/(?:[^/\s]+/)+", "", x) if isinstance(x, str) else x


def write(args, rows, reports):
    environment = reports[0]["report"]["environment"] if reports else {}
    text = "\n".join(markdown(rows, environment)) + "\n"
    os.makedirs(os.path.dirname(args.out) or ".", exist_ok=True)
    out = without_folders({"rows": rows, "reports": reports})
    with open(args.out + ".md", "w", encoding="utf-8") as f:
        f.write(text)
    with open(args.out + ".json", "w", encoding="utf-8") as f:
        json.dump(out, f, indent=1)
        f.write("\n")
    print(text, end="", flush=True)


def measure(args, peers, rows, reports):
    def wanted(group, model):
        return re.search(args.only, group + " " + model)

    known = {}

    def path(ident):
        if ident not in known:
            known[ident] = model_path(ident, args)
        return known[ident]

    for cell in cells():
        if cell.isa and not peer_options(peers, cell):
            continue  # find_peers has said so
        if wanted(cell.group + " " + (cell.isa or ""), cell.model) and path(cell.model):
            say(f"{cell.group}, {cell.model}, {cell.isa or 'best isa'}")
            rows.extend(table_rows(args, peers, cell, path(cell.model), reports))
    if wanted("busy", SMALL[0]) and path(SMALL[0]):
        rows.extend(busy_rows(args, peers, path(SMALL[0])))
    for ident in SMALL + LARGE[:1]:
        if wanted("start", ident) and path(ident):
            row = start_row(args, ident, path(ident))
            rows.extend([row] if row else [])


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--quick", action="store_true", help="two runs instead of five")
    p.add_argument("--only", default="", help="rows whose name and model this expression matches")
    p.add_argument("--model", action="append", default=[], help="ID=FILE: take this file for a model")
    p.add_argument("--out", default=os.path.join(TOP, "bench/results/peers"))
    p.add_argument("--bench", default=os.path.join(TOP, "tenon-bench"))
    p.add_argument("--tenon", default=os.path.join(TOP, "tenon"))
    p.add_argument("--make-model", default=os.path.join(TOP, "build/release/tests/make_model"))
    args = p.parse_args()
    args.model = dict(m.split("=", 1) for m in args.model)
    rows, reports, code = [], [], 0
    try:
        measure(args, find_peers(), rows, reports)
    except KeyboardInterrupt:
        say("interrupted: the table has what is finished")
        code = 130
    if rows:
        write(args, rows, reports)
    else:
        say("nothing was measured")
    return code or (0 if rows else 1)


if __name__ == "__main__":
    sys.exit(main())
