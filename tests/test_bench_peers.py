#!/usr/bin/env python3
"""Tests of bench/peers.py with peers that only pretend. No speed is ever checked.

usage: test_bench_peers.py TENON DATA_DIR [NAME]
"""

import argparse
import json
import os
import re
import subprocess
import sys

from cli_lib import Skip, case, check, equal, main

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# llama-bench's options and JSON; RATE by the words it was called with.
FAKE = """#!/bin/sh
if [ "$1" = --help ]; then echo 'usage: llama-bench {help}'; exit; fi
rate={rate} p=0 n=0
case "$*" in {fast}) rate=$((rate * 2)) ;; esac
while [ $# -gt 0 ]; do
    case $1 in -p) p=$2 ;; -n) n=$2 ;; esac
    shift
done
pp="{{\\"n_prompt\\": $p, \\"n_gen\\": 0, \\"samples_ts\\": [$rate]}}"
tg="{{\\"n_prompt\\": 0, \\"n_gen\\": $n, \\"samples_ts\\": [$rate]}}"
if [ $p = 0 ]; then echo "[$tg]"; elif [ $n = 0 ]; then echo "[$pp]"; else echo "[$pp, $tg]"; fi
"""


def add_peer(folder, name, rate, fast, text="--repack <0|1>"):
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, name)
    with open(path, "w", encoding="utf-8") as f:
        f.write(FAKE.format(rate=rate, fast=fast, help=text))
    os.chmod(path, 0o755)


def run(t, folder, rows, *more, keep=False, quick=True):
    """(exit code, rows, table, messages); keep: what an earlier run wrote."""
    out = os.path.join(t.dir, "table")
    for end in (".md", ".json"):
        if os.path.exists(out + end) and not keep:
            os.remove(out + end)
    tenon = os.path.abspath(t.path)
    command = [sys.executable, os.path.join(TOP, "bench/peers.py"), "--rows", rows, *more]
    command += ["--quick"] if quick else []
    command += ["--tenon", tenon, "--bench", tenon + "-bench", "--out", out]
    for ident in ("smollm2-135m", "gemma3-270m"):
        command += ["--model", f"{ident}={t.model}"]
    path = folder + ":/usr/bin:/bin"
    p = subprocess.run(command, capture_output=True, text=True, env=t.env(PATH=path), check=False)
    if not os.path.exists(out + ".json"):
        return p.returncode, [], "", p.stderr
    with open(out + ".json", encoding="utf-8") as f:
        report = f.read()
    check(t.dir not in report and t.dir not in p.stdout, "folders of this machine in the report")
    if p.stdout:
        with open(out + ".md", encoding="utf-8") as f:
            equal(f.read(), p.stdout, "the table's file and standard output")
    return p.returncode, json.loads(report)["rows"], p.stdout, p.stderr


@case
def best_peer_of_all_settings(t):
    folder = os.path.join(t.dir, "both")
    add_peer(folder, "llama-bench", 10, "'-fa 1 --repack 0 '*")
    add_peer(folder, "ik-llama-bench", 7, "*-rtr*", "-rtr <0|1>")
    code, rows, table, said = run(t, folder, "resident|512.*(smol|gemma)")
    equal(code, 0, f"exit code ({said})")
    equal([r["test"] for r in rows], ["tg128"] * 4 + ["pp512"] * 4, "tests")
    equal([r["threads"] for r in rows[::2]], [1] * 4, "threads of every other row")
    for r in rows:
        equal((r["peer"], r["who"]), (20, "llama.cpp -fa 1 --repack 0"), "best peer")
        check(abs(r["ratio"] * 20 / r["tenon"] - 1) < 1e-6, f"ratio {r['ratio']}")
        (other,) = r["others"]
        equal((other["who"], other["median"]), ("ik_llama.cpp -fa 1 -rtr 1", 14), "the other peer")
        check(abs(other["ratio"] * 14 / r["tenon"] - 1) < 1e-6, f"ratio {other}")
    check("| 20.00 | llama.cpp -fa 1 --repack 0 |" in table, f"{table}")
    check("| ik_llama.cpp -fa 1 -rtr 1: " in table, f"{table}")
    check("avx2* of llama.cpp on PATH: left out" in said, f"{said}")
    check("no llama-bench of" not in said, f"{said}")
    add_peer(folder, "ik-llama-bench", 30, "never", "-rtr <0|1>")
    _, rows, _, _ = run(t, folder, "resident.*smol")
    equal([(r["peer"], r["who"]) for r in rows], [(30, "ik_llama.cpp -fa 1")] * 2, "the other peer")


@case
def avx2_rows_have_peers_of_their_own(t):
    with open("/proc/cpuinfo", encoding="utf-8") as f:
        if " avx2" not in f.read():
            raise Skip("this CPU has no AVX2")
    folder = os.path.join(t.dir, "avx2")
    add_peer(os.path.join(folder, "avx2", "bin"), "llama-bench", 10, "never")
    _, rows, _, said = run(t, os.path.join(folder, "avx2", "bin"), "resident.*smol")
    equal([(r["isa"] == "avx2", r["peer"]) for r in rows][-1], (True, 10), "limited to AVX2")
    equal(rows[0]["peer"], None, "a peer for AVX2 in a row for all levels")
    check("no llama-bench of llama.cpp on PATH: left out" in said, f"{said}")


@case
def missing_peers_are_said(t):
    code, rows, table, said = run(t, os.path.join(t.dir, "none"), "resident.*gemma|^start.*smol")
    equal(code, 0, f"exit code ({said})")
    equal(len(re.findall("left out", said)), 4, "peers left out")
    equal([(r["ratio"], r["note"]) for r in rows], [(None, "no peer")] * 3, "rows without a peer")
    check(all(r["tenon"] > 0 for r in rows), f"{rows}")
    check("no peer |" in table, f"{table}")


@case
def busy_process(t):
    folder = os.path.join(t.dir, "busy")
    add_peer(folder, "llama-bench", 10, "*'-t 1 '*")
    _, rows, table, _ = run(t, folder, "busy")
    equal([r["who"] for r in rows], ["", "llama.cpp -fa 0"], "who")
    check(rows[0]["ratio"] > 0 and rows[0]["tenon"] > 0, f"{rows[0]}")
    threads = rows[1]["threads"]
    equal(rows[1]["ratio"], 1 if threads == 1 else 0.5, "the peer's ratio")
    check(">= 0.8" in table, f"{table}")


@case
def peers_of_one_name(t):
    """As two checkouts have them; a setting that a program does not know is not tried."""
    for name, rate, text in (("a", 10, ""), ("b", 7, "-rtr <0|1>")):
        add_peer(os.path.join(t.dir, name), "llama-bench", rate, "*-rtr*|*--repack*", text)
    path = os.path.join(t.dir, "a") + ":" + os.path.join(t.dir, "b")
    _, rows, _, _ = run(t, path, "resident.*smol")
    best = (14, "ik_llama.cpp -fa 1 -rtr 1")
    equal([(r["peer"], r["who"]) for r in rows], [best] * 2, "best peer")


def set_notes(t, notes):
    """Whether rows count as disturbed is the test's decision, not this machine's."""
    path = os.path.join(t.dir, "table.json")
    with open(path, encoding="utf-8") as f:
        report = json.load(f)
    for row, note in zip(report["rows"], notes):
        row["note"] = note
    with open(path, "w", encoding="utf-8") as f:
        json.dump(report, f)


@case
def sweep_bench_measures_at_depths(t):
    sys.path.insert(0, os.path.join(TOP, "bench"))
    import peers  # pylint: disable=import-outside-toplevel,import-error

    def peer(kind, avx2=False):
        return peers.Peer(kind, kind, f"/{kind}/bench", avx2, "--repack")

    all_peers = [peer("llama.cpp"), peer("ik_llama.cpp"), peer(peers.SWEEP), peer("llama.cpp", True)]
    for cell in peers.cells():
        kinds = {p.kind for p, _ in peers.candidates(all_peers, cell)}
        deep = cell.group.startswith("depth")
        want = {"llama.cpp", peers.SWEEP if deep else "ik_llama.cpp"}
        equal(kinds, {"llama.cpp"} if cell.isa else want, peers.key_of(cell))


@case
def peers_leave_nothing_behind(t):
    """A program that writes where it is called, as sweep-bench does for --help."""
    folder, place = os.path.join(t.dir, "logs"), os.path.join(t.dir, "here")
    os.mkdir(place)
    add_peer(folder, "llama-bench", 10, "never")
    with open(os.path.join(folder, "llama-bench"), "r+", encoding="utf-8") as f:
        text = f.read().replace("then echo", "then echo log >llama.log; echo", 1)
        f.seek(0)
        f.write(text)
    command = [sys.executable, os.path.join(TOP, "bench/peers.py"), "--list", "--rows", "busy", "--out", os.path.join(t.dir, "list")]
    out = subprocess.run(command, capture_output=True, cwd=place, env=t.env(PATH=folder + ":/usr/bin:/bin"), check=True)
    check(b"busy" in out.stdout and b"no llama-bench of llama.cpp" not in out.stderr, f"{out}")
    equal(os.listdir(place), [], "files where peers.py was called")


@case
def made_in_pieces(t):
    folder = os.path.join(t.dir, "pieces")
    add_peer(folder, "llama-bench", 10, "never")
    one, both_models = "resident.*smol.*m$", "resident.*(smol.*m|gemma.*m)$"
    _, first, _, _ = run(t, folder, one)
    set_notes(t, [""])
    code, _, _, said = run(t, folder, both_models, "--minutes", "0.000001", keep=True)
    check(code == 0 and "1 cells are left" in said, f"{code}: {said}")
    _, both, table, _ = run(t, folder, both_models, keep=True)
    equal([r["model"] for r in both], ["smollm2-135m", "gemma3-270m"], "rows of both pieces")
    equal(both[0]["tenon"], first[0]["tenon"], "the first row was measured again")
    equal(table.count("| decode, cache-resident |"), 2, "rows in the table")
    set_notes(t, ["disturbed: by a test", ""])
    readme = t.file("README.md", b"above\n<!-- peers -->\nold\n<!-- end -->\nbelow\n")
    _, again, table, _ = run(t, folder, both_models, "--readme", readme, keep=True, quick=False)
    check(again[0]["tenon"] != first[0]["tenon"], "a disturbed row was not measured again")
    equal(again[1]["tenon"], both[1]["tenon"], "a good row was measured again")
    with open(readme, encoding="utf-8") as f:
        equal(f.read(), f"above\n<!-- peers -->\n{table}<!-- end -->\nbelow\n", "the README's table")


@case
def trials_are_kept(t):
    """Every setting is tried once on a model; the rows of another run use what came out."""
    folder = os.path.join(t.dir, "kept")
    add_peer(folder, "llama-bench", 10, "'-fa 1 --repack 0 '*")
    code, rows, _, said = run(t, folder, "resident.*smol", "--trials")
    equal((code, rows), (0, []), f"exit code and rows ({said})")
    with open(os.path.join(t.dir, "table.json"), encoding="utf-8") as f:
        trial = json.load(f)["trials"]["smollm2-135m"]
    equal(len(trial), 4, "settings")
    equal(trial["llama.cpp -fa 1 --repack 0"], {"pp": 20, "tg": 20}, "the fast one")
    equal(trial["llama.cpp -fa 0"], {"pp": 10, "tg": 10}, "another")
    add_peer(folder, "llama-bench", 10, "'-fa 0 -m'*")
    _, rows, _, said = run(t, folder, "(resident|512).*smol.*m$", keep=True)
    equal([r["who"] for r in rows], ["llama.cpp -fa 1 --repack 0"] * 2, "settings of the rows")
    check("settings of the peers" not in said, f"tried again: {said}")


@case
def again_is_for_another_build(t):
    folder = os.path.join(t.dir, "again")
    add_peer(folder, "llama-bench", 10, "never")
    rows = "resident.*m$"
    _, first, _, _ = run(t, folder, rows)
    set_notes(t, ["", ""])
    _, same, _, _ = run(t, folder, rows, "--again", keep=True)
    equal([r["tenon"] for r in same], [r["tenon"] for r in first], "rows of this build")
    set_commit(t, 1, "0123456")
    _, new, _, _ = run(t, folder, rows, "--again", keep=True)
    equal(new[0]["tenon"], first[0]["tenon"], "the row of this build")
    check(new[1]["commit"] != "0123456" and new[1]["tenon"] != first[1]["tenon"], f"{new[1]['commit']}")


def set_commit(t, i, commit):
    path = os.path.join(t.dir, "table.json")
    with open(path, encoding="utf-8") as f:
        report = json.load(f)
    report["rows"][i]["commit"] = commit
    with open(path, "w", encoding="utf-8") as f:
        json.dump(report, f)


@case
def slow_peers_do_not_alternate(t):
    sys.path.insert(0, os.path.join(TOP, "bench"))
    import peers  # pylint: disable=import-outside-toplevel,import-error

    a, b = peers.Peer("A", "A", "/a", False, ""), peers.Peer("B", "B", "/b", False, "")
    every = [(a, "1"), (a, "2"), (b, "1")]
    rates = {"A 1": {"pp": 100, "tg": 5}, "A 2": {"pp": 90, "tg": 10}, "B 1": {"pp": 79, "tg": 8.1}}
    for wanted, worth, want in (
        (["pp"], 0.8, [every[0]]),
        (["tg"], 0.8, [every[1], every[2]]),
        (["pp", "tg"], 0.8, every),
        (["pp"], 0, [every[0], every[2]]),
    ):
        equal(peers.pick(every, rates, wanted, worth), want, f"{wanted} {worth}")
    equal(peers.pick(every, {"B 1": {"tg": 1}}, ["tg"], 0.8), [every[2]], "a peer that failed")
    cell = next(c for c in peers.cells() if c.group.startswith("depth"))
    equal(peers.tests_wanted(cell), ["pp", "tg"], "both tests at depth")
    deep = [c for c in peers.cells() if c.group.startswith("depth") and c.model == cell.model]
    equal(len({peers.trial_key(c) for c in deep}), 2, "an F16 and a Q8_0 cache have trials of their own")
    equal(len({peers.key_of(c) for c in deep}), len(deep), "every row has a name of its own")
    equal(peers.tests_wanted(next(peers.decode_cells())), ["tg"], "generation")
    equal(peers.tests_wanted(next(peers.prefill_cells())), ["pp"], "prompts")


@case
def rows_miss_by_the_read_limit_too(t):
    sys.path.insert(0, os.path.join(TOP, "bench"))
    import peers  # pylint: disable=import-outside-toplevel,import-error

    row = {"ratio": 2.0, "target": 1.6, "target_percent": 85, "note": ""}
    for percent, want in ((90, "met"), (85, "met"), (84, "missed"), (None, "missed")):
        equal(peers.verdict({**row, "percent_of_limit": percent}), want, f"{percent} % of the limit")
    equal(peers.verdict({**row, "ratio": 1.5, "percent_of_limit": 90}), "missed", "a low ratio")
    start = {"target": -0.5, "note": ""}
    equal([peers.verdict({**start, "ratio": r}) for r in (0.5, 0.51)], ["met", "missed"], "start")
    equal(peers.verdict({**row, "ratio": None}), "", "no peer")
    cells = [peers.key_of(c) for c in peers.cells()]
    equal(len(set(cells)), len(cells), "names of cells")


@case
def what_limits_a_row_is_said_in_figures(t):
    sys.path.insert(0, os.path.join(TOP, "bench"))
    import peers  # pylint: disable=import-outside-toplevel,import-error

    for model in {c.model for c in peers.cells()}:
        check(model.split(":")[0] in peers.WORK, f"nothing is known of the work of {model}")
    row = {"model": "llama-1b:q8_0", "test": "pp512", "tenon": 100.0, "threads": 2, "report": None}
    row["note"] = "arithmetic"
    # 2 * 973,078,528 + 4 * 256 keys * 32,768 elements, 50 tokens a second and thread
    equal(peers.limit_words(row, []), "arithmetic: 99 GOP/s a thread", "of a prompt")
    row["test"] = "pp512 @ d16384"
    equal(peers.limit_words(row, []), "arithmetic: 206 GOP/s a thread", "at depth")
    row.update(model="gemma3-270m", tenon=1000.0)
    # 2 * 100,270,080 + 4 * (16,640 * 3,072 + 512 * 15,360)
    equal(peers.limit_words(row, []), "arithmetic: 218 GOP/s a thread", "with windows")
    load = {**row, "note": "loading", "report": {"seconds": {}}}
    equal(peers.limit_words(load, [load]), "loading", "without a size")
    size = {**row, "report": {"model": {"file_bytes": 2e9}}}
    equal(peers.limit_words(load, [load, size]), "loading: 2.00 GB/s", "with a size")
    equal(peers.limit_words({**row, "note": "70 %"}, []), "70 %", "another note")
    deep = next(c for c in peers.cells() if peers.is_deep(c))
    ours = {"disturbed": None, "percent_of_limit": 40.0, "test": "tg32 @ d4096"}
    equal(peers.what_limits(deep, ours, 1.9, []), "40 % of the read limit", "generation at depth")
    ours["test"] = "pp512 @ d4096"
    equal(peers.what_limits(deep, ours, 1.9, []), "arithmetic", "a prompt at depth")


@case
def the_table_names_the_day_of_the_last_row(t):
    sys.path.insert(0, os.path.join(TOP, "bench"))
    import peers  # pylint: disable=import-outside-toplevel,import-error

    early, late = ({"date": f"2026-01-0{d}T08:00:00"} for d in (2, 3))
    rows = [{"report": {"environment": early}}, {"report": {"alone": {"environment": late}}}]
    rows += [{"report": {"environment": early}}, {"report": None}]
    equal(peers.environment_of(rows), late, "the environment")
    equal(peers.environment_of([{"report": None}]), {}, "that of no row")


@case
def quick_rows_come_first(t):
    sys.path.insert(0, os.path.join(TOP, "bench"))
    import peers  # pylint: disable=import-outside-toplevel,import-error

    args = argparse.Namespace(rows="", again=True, bench=os.path.abspath(t.path) + "-bench")
    native = [c for c in peers.cells() if not c.isa]
    rows = [{"key": peers.key_of(c), "note": "", "commit": "of another build"} for c in native[:2]]
    todo = peers.pending(args, [], rows)
    equal(sorted(map(peers.key_of, todo)), sorted(map(peers.key_of, native)), "without peers for AVX2")
    ranks = [peers.rank(c) for c in todo]
    equal(ranks, sorted(ranks), "ranks")
    last = [c for c in todo if peers.rank(c) == 0][-2:]
    equal(last, native[:2], "rows of another build, behind those that are missing")
    args.again = False
    equal(len(peers.pending(args, [], rows)), len(native) - 2, "rows of another build are kept")


@case
def nothing_to_measure(t):
    code, rows, _, said = run(t, os.path.join(t.dir, "none"), "no such row")
    equal((code, rows), (1, []), "exit code and rows")
    check("nothing was measured" in said, f"{said}")


if __name__ == "__main__":
    sys.exit(main(sys.argv))
