#!/usr/bin/env python3
"""The table of tenon against other engines: alternating runs on this machine, best peer a cell.

    peers.py [--rows REGEX] [--minutes N] [--again] [--quick] [--model ID=FILE]... [--out NAME]

Peers are every llama-bench found on PATH: of llama.cpp and of ik_llama.cpp (told apart by their
--help; at depths, its llama-sweep-bench if that is there), one with avx2 in its name or folders
for the rows limited to AVX2. What is not there is said and left out. Every peer is tried once
on every model with each of the settings that make it fastest on some machine; its best then
alternates with ours. Writes NAME.md and NAME.json after every cell, and what is there already, rows
and trials, is not measured again: the table can be made in pieces. See bench/README.md. Python's
standard library only.
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
import tempfile
import time

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PROMPT = "What is the capital of France?"
SWEEP = "ik_llama.cpp, sweep-bench"
SETTINGS = {
    "llama.cpp": ("-fa 0", "-fa 1", "-fa 0 --repack 0", "-fa 1 --repack 0"),
    "ik_llama.cpp": ("-fa 1", "-fa 1 -rtr 1"),
    SWEEP: ("-fa 1", "-fa 1 -rtr"),
}
# name: the kind, numbered where there are several
Peer = collections.namedtuple("Peer", "kind name path avx2 help")
# group: of the table; model: id; threads: 0 = all cores; isa: None = the best; target: least ratio;
# share: least percentage of the read limit, or None
Cell = collections.namedtuple("Cell", "group model threads isa args target share")

BUSY = "a busy process beside it / one thread alone"
START = "start to first token, ms (less is better)"
AGAIN = "second start, --load image, ms (less is better)"
SMALL = ("smollm2-135m", "gemma3-270m")
LARGE = tuple("llama-1b:" + t for t in ("q4_k_m", "q4_0", "q8_0", "q6_k"))
# Model, tokens, type of the KV cache. SmolLM2 was trained for 8,192 tokens, and we refuse more.
DEPTHS = (
    ("smollm2-135m", 4096, "f16"),
    ("smollm2-135m", 4096, "q8_0"),
    ("gemma3-270m", 4096, "f16"),
    ("gemma3-270m", 4096, "q8_0"),
    ("gemma3-270m", 16384, "f16"),
    ("gemma3-270m", 16384, "q8_0"),
    ("llama-1b:q4_k_m", 4096, "f16"),
)
# What a token of a prompt costs: weights it is multiplied by (all but the embedding and the head), and
# elements of all heads of the layers that see every key and of those that see a window, and the window.
WORK = {
    "smollm2-135m": (106_168_320, 30 * 9 * 64, 0, 0),
    "gemma3-270m": (100_270_080, 3 * 4 * 256, 15 * 4 * 256, 512),
    "llama-1b": (973_078_528, 16 * 32 * 64, 0, 0),
}
# Of a peer's best setting beside the best peer's in the trial: those below do not alternate, which
# would cost as much time again and change nothing in the table.
WORTH = 0.8


def decode_cells():
    for isa in (None, "avx2"):
        for model in LARGE:
            for threads in (1, 0):
                args = ("-p", "0", "-n", "32")
                yield Cell("decode, DRAM-bound", model, threads, isa, args, 1.6, 85)
    for isa in (None, "avx2"):
        for model in SMALL:
            for threads in (0,) if isa else (1, 0):
                args = ("-p", "0", "-n", "128")
                yield Cell("decode, cache-resident", model, threads, isa, args, 1.8, None)


def prefill_cells():
    for isa, target in ((None, 1.9), ("avx2", 1.6)):
        for model in SMALL + LARGE:
            least = 1.0 if isa and model.endswith("q8_0") else target
            for threads in (1, 0) if model in SMALL and not isa else (0,):
                yield Cell("prefill 512", model, threads, isa, ("-p", "512", "-n", "0"), least, None)


def cells():
    yield from decode_cells()
    yield from prefill_cells()
    for model, depth, kv in DEPTHS:
        args = ("-p", "512", "-n", "32", "-d", str(depth), "--kv", kv)
        name = f"depth {depth}" + (f", {kv} cache" if kv != "f16" else "")
        yield Cell(name, model, 0, None, args, 2.0, None)
    yield Cell(BUSY, SMALL[0], 0, None, ("-p", "0", "-n", "64"), 0.8, None)
    for group in (START, AGAIN):
        for model in SMALL + LARGE[:1]:
            yield Cell(group, model, 0, None, (), -0.5, None)


def key_of(cell):
    """Names the cell in the report, on the command line, and in messages."""
    threads = {0: "", 1: ", 1 thread"}[cell.threads]
    return f"{cell.group}, {cell.model}{threads}{', ' + cell.isa if cell.isa else ''}"


def say(text):
    print("peers.py: " + text, file=sys.stderr, flush=True)


def give_up(text):
    say(text)
    sys.exit(1)


# ---- what there is ------------------------------------------------------------------------------


def help_of(path):
    """In a folder of its own: sweep-bench leaves a log wherever it is called."""
    with tempfile.TemporaryDirectory() as folder:
        p = subprocess.run([path, "--help"], capture_output=True, cwd=folder, check=False)
    return (p.stdout + p.stderr).decode(errors="replace")


def find_peers():
    """Every program on PATH whose name has llama-bench or llama-sweep-bench in it, once each."""
    found, seen = [], set()
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        names = sorted(os.listdir(folder)) if os.path.isdir(folder) else ()
        for name in names:
            path = os.path.realpath(os.path.join(folder, name))
            if not re.search("llama-(sweep-)?bench", name) or path in seen:
                continue
            if not os.access(path, os.X_OK):
                continue
            seen.add(path)
            text = help_of(path)
            kind = "ik_llama.cpp" if "-rtr" in text else "llama.cpp"
            kind = SWEEP if "sweep-bench" in name else kind
            avx2 = "avx2" in "/".join([*folder.split("/")[-2:], name]).lower()
            before = sum((q.kind, q.avx2) == (kind, avx2) for q in found)
            label = f"{kind} [{before + 1}]" if before else kind
            found.append(Peer(kind, label, os.path.join(folder, name), avx2, text))
    for kind in ("llama.cpp", "ik_llama.cpp"):
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


def bench(args, model, *more, runs=None):
    """A report of tenon-bench, or None after saying why there is none."""
    runs = runs or (("-r", "2", "--warmup", "1") if args.quick else ("-r", "5", "--warmup", "4"))
    command = [args.bench, "-m", model, *runs, "--no-hash", "-o", "json", *more]
    p = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if p.returncode in (130, 143):
        raise KeyboardInterrupt
    try:
        return json.loads(p.stdout)
    except ValueError:
        say(f"tenon-bench ended with {p.returncode}: {' '.join(more)}")
        return None


def fits(peer, cell):
    """Where ik_llama.cpp has its sweep-bench, that measures at depths, and llama-bench does not."""
    return peer.avx2 == (cell.isa == "avx2") and (peer.kind != SWEEP or is_deep(cell))


def candidates(peers, cell):
    """(peer, its setting) for every setting that a peer knows."""
    peers = [p for p in peers if fits(p, cell)]
    if any(p.kind == SWEEP for p in peers):
        peers = [p for p in peers if p.kind != "ik_llama.cpp"]
    for p in peers:
        for words in SETTINGS[p.kind]:
            known = all(w in p.help for w in words.split() if w.startswith("--"))
            if known:
                yield p, words


def label_of(peer, words):
    """Of a report: no folders."""
    return f"{peer.name} {words}"


def tests_of(report):
    """The rows of each test, ours first and then the peers' in the order of the command line."""
    tests = {}
    for row in report["results"] if report else ():
        tests.setdefault(row["test"], []).append(row)
    return tests


def peer_words(chosen):
    return [w for p, words in chosen for w in ("--peer", f"{p.path} {words}")]


# ---- the peers' best settings -------------------------------------------------------------------


def is_deep(cell):
    return "-d" in cell.args


def trial_key(cell):
    """Cells of the same key share a trial."""
    depth = f", at depth, {after(cell.args, '--kv')} cache" if is_deep(cell) else ""
    return f"{cell.model}{', ' + cell.isa if cell.isa else ''}{depth}"


def try_at_depth(args, every, cell, model):
    """As try_settings, behind 512 tokens."""
    once = ("-r", "1", "--warmup", "0")
    short = (*isa_words(cell), "-p", "512", "-n", "8", "-d", "512", "--kv", after(cell.args, "--kv"))
    report = bench(args, model, *short, *peer_words(every), runs=once)
    rates = {label_of(*c): {} for c in every}
    for test, group in tests_of(report).items():
        for choice, row in zip(every, group[1:]):
            if not row["error"]:
                rates[label_of(*choice)][test[:2]] = row["median"]
    return rates


def try_setting(peer, words, model):
    """{"pp": tok/s, "tg": tok/s} of one run of llama-bench with as many threads as it takes by itself."""
    command = [peer.path, *words.split(), "-m", model, "-p", "128", "-n", "8"]
    p = subprocess.run([*command, "-r", "1", "-o", "json"], capture_output=True, check=False)
    try:
        results = json.loads(p.stdout)
    except ValueError:
        say(f"{label_of(peer, words)} ended with {p.returncode}")
        return {}
    return {"tg" if r["n_gen"] else "pp": statistics.mean(r["samples_ts"]) for r in results}


def try_settings(args, every, cell, model):
    """{label: {"pp": tok/s, "tg": tok/s}}"""
    if is_deep(cell):
        return try_at_depth(args, every, cell, model)
    return {label_of(*choice): try_setting(*choice, model) for choice in every}


def tests_wanted(cell):
    """Of a cell: "pp", "tg" or both."""
    return [kind for kind, option in (("pp", "-p"), ("tg", "-n")) if "0" != after(cell.args, option)]


def after(words, option):
    return words[words.index(option) + 1]


def pick(every, rates, wanted, worth):
    """Of each peer the setting that was fastest in one of the tests, unless it was much slower there
    than the best peer."""
    chosen = set()
    for test in wanted:
        of = [(rates.get(label_of(*c), {}).get(test, 0), -i) for i, c in enumerate(every)]
        for path in {p.path for p, _ in every}:
            rate, i = max(x for x in of if every[-x[1]][0].path == path)
            if rate > 0 and rate >= worth * max(of)[0]:
                chosen.add(-i)
    return [every[i] for i in sorted(chosen)]


def best_settings(args, peers, cell, model, trials):
    """(peer, setting) of those that alternate with ours; the trial is kept in `trials`."""
    every = list(candidates(peers, cell))
    if len(every) < 2:
        return every
    key = trial_key(cell)
    if any(label_of(*c) not in trials.get(key, {}) for c in every):
        say(f"settings of the peers: {key}")
        trials[key] = try_settings(args, every, cell, model)
    small = cell.model in SMALL and not is_deep(cell)  # cheap, and both are of interest
    return pick(every, trials[key], tests_wanted(cell), 0 if small else WORTH) or every[:1]


# ---- rows of a sweep ----------------------------------------------------------------------------


def isa_words(cell):
    return ("--isa", cell.isa) if cell.isa else ()


def common_options(cell):
    return ("-t", str(cell.threads), *isa_words(cell), *cell.args)


def one_row(row, name):
    """What the table says of a peer."""
    over = row["tenon_over_this"]
    return {"who": name, "median": row["median"], "ratio": over["ratio"], "ci95": over["ci95"]}


def run_cell(args, cell, model, chosen):
    """(report, [(test, our row, the peers' rows as one_row, fastest first)])."""
    report = bench(args, model, *common_options(cell), *peer_words(chosen))
    names = [label_of(*c) for c in chosen]
    rows = []
    for test, group in tests_of(report).items():
        for row, name in zip(group, ["tenon", *names]):
            if row["error"]:
                say(f"{cell.model} {test}, {name}: {row['error']}")
        theirs = [one_row(r, name) for r, name in zip(group[1:], names) if not r["error"]]
        if not group[0]["error"]:
            rows.append((test, group[0], sorted(theirs, key=lambda r: -r["median"])))
    return report, rows


def what_limits(cell, ours, ratio, peers):
    """Of a cell that misses its target, or has none to miss."""
    if ratio is None:
        every = list(candidates(peers, cell))
        return "the peer cannot run it" if every else "no peer"
    if ours["disturbed"]:
        return "disturbed: " + ours["disturbed"]
    share = ours["percent_of_limit"]
    if ratio >= cell.target and not (cell.share and not (share and share >= cell.share)):
        return ""
    return f"{share:.0f} % of the read limit" if share and ours["test"].startswith("tg") else "arithmetic"


def commit_in(report):
    return report["environment"]["build"]["commit"] or "unknown"


def table_rows(args, peers, cell, model, trials):
    chosen = best_settings(args, peers, cell, model, trials)
    report, rows = run_cell(args, cell, model, chosen)
    for i, (test, ours, theirs) in enumerate(rows):
        best = theirs[0] if theirs else {"who": "", "median": None, "ratio": None, "ci95": None}
        yield {
            "key": key_of(cell),
            "group": cell.group,
            "model": cell.model,
            "test": test,
            "threads": ours["parameters"]["threads"],
            "isa": ours["parameters"]["isa"],
            "tenon": ours["median"],
            "peer": best["median"],
            "who": best["who"],
            "ratio": best["ratio"],
            "ci95": best["ci95"],
            "others": theirs[1:],
            "target": cell.target,
            "percent_of_limit": ours["percent_of_limit"],
            "target_percent": cell.share,
            "note": what_limits(cell, ours, best["ratio"], peers),
            "commit": commit_in(report),
            "report": None if i else report,
        }


# ---- rows that are no sweep ---------------------------------------------------------------------


def busy_rows(args, peers, cell, model, trials):
    """All threads with another process busy on one core, against one thread undisturbed."""
    chosen = best_settings(args, peers, cell, model, trials)
    common = (*cell.args, *peer_words(chosen))
    alone = bench(args, model, "-t", "1", *common)
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        beside = bench(args, model, "-t", "0", *common)
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
    if not alone or not beside:
        return
    names = [""] + [label_of(*c) for c in chosen]
    for one, all_threads, name in zip(alone["results"], beside["results"], names):
        if one["error"] or all_threads["error"]:
            continue
        ratio = all_threads["median"] / one["median"]
        yield {
            "key": key_of(cell),
            "group": BUSY,
            "model": cell.model,
            "test": one["test"],
            "threads": all_threads["parameters"]["threads"],
            "isa": one["parameters"]["isa"],
            "tenon": None if name else all_threads["median"],
            "peer": all_threads["median"] if name else None,
            "who": name,
            "ratio": ratio,
            "ci95": None,
            "target": None if name else cell.target,
            "note": "" if name or ratio >= cell.target else "the scheduler",
            "commit": commit_in(alone),
            "report": None if name else {"alone": alone, "beside": beside},
        }


def seconds_of(command, cache):
    start = time.monotonic()
    null = subprocess.DEVNULL
    env = {**os.environ, "XDG_CACHE_HOME": cache}
    p = subprocess.run(command, stdin=null, stdout=null, stderr=null, env=env, check=False)
    return time.monotonic() - start if p.returncode == 0 else None


def prompt_tokens(args, model):
    """As many as the peers are to evaluate: letters are tokens in a synthetic vocabulary."""
    words = [args.tenon, "tokenize", model, "--add-special"]
    p = subprocess.run(words, input=PROMPT, capture_output=True, text=True, check=False)
    return len(p.stdout.split()) if p.returncode == 0 else 8


def start_commands(peers, model, n_tokens):
    """What starts, loads, evaluates as many tokens as the prompt has, gives one token and ends."""
    for name in ("llama-completion", "llama-cli"):
        if shutil.which(name):
            yield name, [name, "-m", model, "-n", "1", "--temp", "0", "-no-cnv", "-p", PROMPT]
            break
    for p in peers:
        cold = ["--no-warmup"] if "--no-warmup" in p.help else ["-w", "0"]
        if not p.avx2 and p.kind != SWEEP:
            words = ["-m", model, "-p", str(n_tokens), "-n", "0", "-r", "1", *cold]
            yield f"{p.name}'s llama-bench", [p.path, *words]


def start_rows(args, peers, cell, model, _):
    """From the start of the program to its end after one token, the file in the page cache. The first
    start of each does not count: it makes the image, where there is one."""
    ours = [args.tenon, "run", model, "--raw", "-n", "1", "--temp", "0", "--prompt", PROMPT]
    ours += ["--load", "image"] if cell.group == AGAIN else []
    commands = {"tenon": ours, **dict(start_commands(peers, model, prompt_tokens(args, model)))}
    times = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(3 if args.quick else 8):
            for name, command in commands.items():
                times[name].append(seconds_of(command, cache))
    for name in [name for name, t in times.items() if None in t]:
        say(f"{name} failed on {model}")
        del times[name]
    if "tenon" not in times:
        return
    medians = {name: 1000 * statistics.median(t[1:]) for name, t in times.items()}
    mine = medians.pop("tenon")
    best = min(medians, key=medians.get, default=None)
    ratio = mine / medians[best] if best else None
    yield {
        "key": key_of(cell),
        "group": cell.group,
        "model": cell.model,
        "test": "start",
        "threads": 0,
        "isa": "",
        "tenon": mine,
        "peer": medians.get(best),
        "who": best or "",
        "ratio": ratio,
        "ci95": None,
        "target": cell.target,
        "note": "no peer" if ratio is None else "" if ratio <= -cell.target else "loading",
        "commit": commit_of(args),
        "report": {"seconds": times},
    }


def commit_of(args):
    p = subprocess.run([args.bench, "--version"], capture_output=True, text=True, check=False)
    return p.stdout.split()[-1].removesuffix("-dirty") if p.stdout else ""


# ---- the table ----------------------------------------------------------------------------------


def number(x):
    return "" if x is None else f"{x:.0f}" if x >= 1000 else f"{x:.1f}" if x >= 100 else f"{x:.2f}"


def verdict(row):
    disturbed = row["note"].startswith("disturbed")
    if row["ratio"] is None or row["target"] is None or disturbed:
        return ""
    if row["target"] < 0:
        return "met" if row["ratio"] <= -row["target"] else "missed"
    least = row.get("target_percent")
    enough = not least or (row["percent_of_limit"] or 0) >= least
    return "met" if row["ratio"] >= row["target"] and enough else "missed"


def gops(row):
    """10^9 multiplications and additions a second of a prompt's row."""
    weights, full, local, window = WORK[row["model"].split(":")[0]]
    numbers = [int(n) for n in re.findall(r"\d+", row["test"])]
    keys = numbers[0] / 2 + sum(numbers[1:])
    each = 2 * weights + 4 * (full * keys + local * min(keys, window))
    return each * row["tenon"] / 1e9


def file_bytes(model, rows):
    """From the report of another row of the model; None where there is none."""
    reports = [r["report"] for r in rows if r["model"] == model and r["report"]]
    return next((x["model"]["file_bytes"] for x in reports if "model" in x), None)


def limit_words(row, rows):
    """The note, and how fast that is which limits the row."""
    if row["note"] == "arithmetic":
        return f"arithmetic: {gops(row) / row['threads']:.0f} GOP/s a thread"
    if row["note"] == "loading" and file_bytes(row["model"], rows):
        return f"loading: {file_bytes(row['model'], rows) / row['tenon'] / 1e6:.2f} GB/s"
    return row["note"]


def markdown(rows, environment):
    cpu = environment.get("cpu", {})
    build = environment.get("build", {})
    commits = sorted({r["commit"][:12] for r in rows})
    yield (
        f"{cpu.get('model')}, {cpu.get('cpus_online')} CPUs, {environment.get('date', '')[:10]}, "
        f"tenon {build.get('version')} {' and '.join(commits)}, {build.get('compiler')}"
    )
    yield ""
    yield "| what | model | test | threads | isa | tenon | best peer | who | ratio | others | target | |"
    yield "|:--|:--|:--|--:|:--|--:|--:|:--|--:|:--|--:|:--|"
    for r in rows:
        interval = " ({:.2f} - {:.2f})".format(*r["ci95"]) if r["ci95"] else ""
        ratio = "" if r["ratio"] is None else f"{r['ratio']:.2f}{interval}"
        target = r["target"]
        want = "" if target is None else f"<= {-target:g}" if target < 0 else f">= {target:g}"
        if r.get("target_percent"):
            want += f" and {r['target_percent']} % of the limit"
        words = ", ".join(w for w in (verdict(r), limit_words(r, rows)) if w)
        others = ", ".join(f"{o['who']}: {o['ratio']:.2f}" for o in r.get("others") or ())
        yield (
            f"| {r['group']} | {r['model']} | {r['test']} | {r['threads'] or ''} | {r['isa']} | "
            f"{number(r['tenon'])} | {number(r['peer'])} | {r['who']} | {ratio} | {others} | {want} | {words} |"
        )


def without_folders(x):
    """Reports are published: names of files, not where they lay."""
    if isinstance(x, dict):
        return {k: without_folders(v) for k, v in x.items()}
    if isinstance(x, list):
        return [without_folders(v) for v in x]
    return re.sub(r"(?<![\w.])/(?:[^/\s]+/)+", "", x) if isinstance(x, str) else x


def environment_of(rows):
    """Of the row measured last: rows of several days stand in one table."""
    found = [{}]
    for row in rows:
        report = row["report"] or {}
        for r in (report, report.get("alone", {})):
            if "environment" in r:
                found.append(r["environment"])
    return max(found, key=lambda e: e.get("date", ""))


def load(args):
    """What an earlier run wrote: {"trials": {cell's trial_key: try_settings's}, "rows": [...]}."""
    try:
        with open(args.out + ".json", encoding="utf-8") as f:
            table = json.load(f)
            return {"trials": table.get("trials", {}), "rows": table["rows"]}
    except (OSError, ValueError, KeyError):
        return {"trials": {}, "rows": []}


def write(args, table):
    order = {key_of(c): i for i, c in enumerate(cells())}
    rows = table["rows"]
    rows.sort(key=lambda r: order.get(r["key"], len(order)))
    text = "\n".join(markdown(rows, environment_of(rows))) + "\n"
    os.makedirs(os.path.dirname(args.out) or ".", exist_ok=True)
    for end, content in (
        (".md", text if rows else None),
        (".json", json.dumps(without_folders(table), indent=1) + "\n"),
    ):
        if content is None:
            continue
        with open(args.out + end + ".part", "w", encoding="utf-8") as f:
            f.write(content)
        os.rename(args.out + end + ".part", args.out + end)
    if args.readme and rows and not args.quick:
        put_into(args.readme, text)
    return text


def put_into(path, text):
    """Between the lines <!-- peers --> and <!-- end --> of a Markdown file."""
    with open(path, encoding="utf-8") as f:
        old = f.read()
    new = re.sub(r"(?s)(<!-- peers -->\n).*?(<!-- end -->)", lambda m: m[1] + text + m[2], old, count=1)
    if "<!-- peers -->" not in old:
        give_up(f"{path} has no line <!-- peers -->")
    with open(path, "w", encoding="utf-8") as f:
        f.write(new)


# ---- one piece after the other ------------------------------------------------------------------


def rank(cell):
    """What is measured first: the quick, what most people ask for; the order of the table is another."""
    long = cell.model in LARGE and (is_deep(cell) or (cell.isa and cell.threads == 1))
    return 2 if long or "16384" in cell.args else 1 if cell.isa or is_deep(cell) else 0


def pending(args, peers, rows):
    """Cells to measure by rank, those without rows before those that need it again."""
    done = {r["key"] for r in rows}
    disturbed = {r["key"] for r in rows if r["note"].startswith("disturbed")}
    commit = commit_of(args) if args.again else None
    older = {r["key"] for r in rows if commit and r["commit"] != commit}
    wanted = [c for c in cells() if re.search(args.rows, key_of(c))]
    # Rows limited to AVX2 are about peers that are limited so; find_peers has said if there are none.
    wanted = [c for c in wanted if not c.isa or list(candidates(peers, c))]
    todo = [c for c in wanted if key_of(c) not in done - disturbed - older]
    return sorted(todo, key=lambda c: (rank(c), key_of(c) in done))


def measure_one(args, peers, cell, model, table):
    """Puts a cell's rows into the table, or only the trial that it needs."""
    if args.trials:
        if cell.group not in (START, AGAIN):
            best_settings(args, peers, cell, model, table["trials"])
        return
    begun = time.monotonic()
    rows = {BUSY: busy_rows, START: start_rows, AGAIN: start_rows}.get(cell.group, table_rows)
    new = list(rows(args, peers, cell, model, table["trials"]))
    took = round(time.monotonic() - begun)
    say(f"{key_of(cell)} took {took} s")
    if new:
        new[0]["seconds"] = took
        table["rows"] = [r for r in table["rows"] if r["key"] != key_of(cell)] + new


def measure(args, peers, table):
    """Measures what is pending until the time is over; returns how many cells are left."""
    begun, models = time.monotonic(), {}
    todo = pending(args, peers, table["rows"])
    for i, cell in enumerate(todo):
        if args.minutes and time.monotonic() - begun > 60 * args.minutes:
            return len(todo) - i
        if cell.model not in models:
            models[cell.model] = model_path(cell.model, args)
        if not models[cell.model]:
            continue
        say(f"{i + 1} of {len(todo)}: {key_of(cell)}")
        measure_one(args, peers, cell, models[cell.model], table)
        write(args, table)
    return 0


def list_pending(args, peers, table):
    took = {r["key"]: r["seconds"] for r in table["rows"] if r.get("seconds")}
    for key in map(key_of, pending(args, peers, table["rows"])):
        print(f"{key} ({took[key]} s last time)" if key in took else key)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--rows", default="", help="cells whose name this expression matches")
    p.add_argument("--minutes", type=float, help="begin no cell after so long; run again for the rest")
    p.add_argument("--again", action="store_true", help="measure also what another build measured")
    p.add_argument("--trials", action="store_true", help="only try the peers' settings")
    p.add_argument("--list", action="store_true", help="name the cells that would be measured")
    p.add_argument("--quick", action="store_true", help="two runs instead of five")
    p.add_argument("--model", action="append", default=[], help="ID=FILE: take this file for a model")
    p.add_argument("--out", default=os.path.join(TOP, "bench/results/peers"))
    p.add_argument("--readme", help="put the table into this file, where <!-- peers --> is")
    p.add_argument("--bench", default=os.path.join(TOP, "tenon-bench"))
    p.add_argument("--tenon", default=os.path.join(TOP, "tenon"))
    p.add_argument("--make-model", default=os.path.join(TOP, "build/release/tests/make_model"))
    args = p.parse_args()
    args.model = dict(m.split("=", 1) for m in args.model)
    table, peers, code, left = load(args), find_peers(), 0, 0
    if args.list:
        list_pending(args, peers, table)
        return 0
    try:
        left = measure(args, peers, table)
    except KeyboardInterrupt:
        say("interrupted: the table has what is finished")
        code = 130
    if table["rows"]:
        print(write(args, table), end="", flush=True)
    else:
        say("nothing was measured")
    if left:
        say(f"{left} cells are left: run the same command again")
    return code or (0 if table["rows"] or args.trials else 1)


if __name__ == "__main__":
    sys.exit(main())
