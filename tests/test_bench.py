#!/usr/bin/env python3
"""Tests of tenon-bench, through pipes and pseudo-terminals. No speed is ever checked.

usage: test_bench.py TENON DATA_DIR [NAME]
"""

import csv
import hashlib
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree

import bench_places  # noqa: F401  pylint: disable=unused-import
import cli_lib
from bench_lib import Bench, finite
from cli_lib import case, check, equal, main

# What a peer prints: llama-bench's JSON for the options it was given, and a note on stderr.
FAKE = """#!/bin/sh
echo "$*" >>{log}
p=0 n=0
while [ $# -gt 0 ]; do
    case $1 in -p) p=$2 ;; -n) n=$2 ;; esac
    shift
done
echo 'loading' >&2
echo "[{{\\"n_prompt\\": $p, \\"n_gen\\": $n, \\"avg_ts\\": 3.5, \\"samples_ts\\": [3.5]}}]"
"""


cli_lib.Tenon = Bench


# ---- usage --------------------------------------------------------------------------------------


@case
def wrong_usage_is_64(t):
    for args in (
        (),
        ("-m",),
        ("-m", t.model, "--nope"),
        ("-m", t.model, "-p", "x"),
        ("-m", t.model, "-p", "-1"),
        ("-m", t.model, "-d", "4-1"),
        ("-m", t.model, "-r", "0"),
        ("-m", t.model, "-b", "0"),
        ("-m", t.model, "--pg", "8"),
        ("-m", t.model, "--pg", "8,0"),
        ("-m", t.model, "--pg", "1-8"),
        ("-m", t.model, "--kv", "q8"),
        ("-m", t.model, "--kv", ""),
        ("-m", t.model, "--load", "fast"),
        ("-m", t.model, "-o", "sql"),
        ("-m", t.model, "--peer", "vllm bench"),
        ("--compare", "one.json"),
        ("--generate", "html"),
        ("--synthetic", "llama-135m"),
        ("--synthetic", "no-such-shape:q4_0"),
        ("-m", t.model, "--isa", "bogus"),
        ("-m", t.model, "--placements", "auto"),
        ("-m", t.model, "--hardware", "rtx3060-ddr4"),
        ("-m", t.model, "--vram", "8G"),
        ("-m", t.model, "--place", "ffn_=host"),
        ("-m", t.model, "--placements", "best", "--hardware", "rtx3060-ddr4"),
        ("-m", t.model, "--placements", "manual:", "--hardware", "rtx3060-ddr4"),
        ("-m", t.model, "--placements", "auto", "--hardware", "rtx3060-ddr4", "--vram", "8Q"),
        ("-m", t.model, "--placements", "auto", "--hardware", "rtx3060-ddr4", "--load-time"),
        ("-m", t.model, "--placements", "auto", "--hardware", "rtx3060-ddr4", "--peer", "x {prompt}"),
        ("-m", t.model, "--placements", "auto", "--device", "emu", "--place", "ffn_=host"),
        ("-m", t.model, "--device", "emu", "--hardware", "rtx3060-ddr4"),
        ("-m", t.model, "--device", "emu", "--vram", "8Q"),
    ):
        t.fails(64, *args)
    t.fails(64, "-m", t.model, "-p", "12x", words=("--n-prompt", "12x"))
    t.fails(64, "-m", t.model, "--th", "2", words=("--th ", "--threads", "--throttle"))


@case
def help_fits_a_terminal(t):
    lines = t.ok("--help").decode().splitlines()
    check(len(lines) > 30, "help is short")
    check(max(map(len, lines)) <= 80, f"too wide: {max(lines, key=len)!r}")
    options = [line for line in lines if re.match("  (-[a-z],|   ) --[a-z]", line)]
    check(25 < len(options) <= 40, f"{len(options)} options are visible")
    check(all(o in "\n".join(lines) for o in ("--peer", "--compare", "--svg")), "options missing")


@case
def man_page_lists_every_option(t):
    options = set(re.findall(r"(--[a-z-]+)", t.ok("--help").decode()))
    page = t.ok("--generate", "man").decode()
    check(page.startswith(".TH TENON-BENCH 1"), f"{page[:40]!r}")
    missing = [o for o in options if o.replace("-", "\\-") not in page]
    equal(missing, [], "options without a place in the man page")


@case
def version_is_the_librarys(t):
    lines = t.ok("--version").decode().split()
    equal(lines[0], "tenon-bench", "first word")
    check(re.fullmatch(r"\d+\.\d+\.\d+", lines[1]), f"{lines}")


# ---- the report ---------------------------------------------------------------------------------


def check_row(row, model_keys):
    for key in ("tokens_per_second", "median", "mad", "gb_per_second", "percent_of_limit"):
        check(finite(row[key]) and row[key] >= 0, f"{key} of {row['test']}: {row[key]}")
    equal(row["tokens_per_second"], row["median"], "tokens_per_second")
    samples = sorted(row["samples"])
    equal(len(samples), 5, "samples")
    check(all(finite(s) and s > 0 for s in samples), f"samples {samples}")
    equal(row["median"], samples[2], "median of five")
    equal((row["min"], row["max"]), (samples[0], samples[-1]), "min and max")
    low, high = row["ci95"]
    check(low <= samples[0] and samples[-1] <= high, f"interval {low}, {high}")
    check(row["label"] == "measured" and row["engine"] == "tenon" and row["error"] is None, f"{row}")
    check(finite(row["peak_rss_bytes"]) and row["peak_rss_bytes"] > 1e6, f"{row['peak_rss_bytes']}")
    equal((row["hops_per_token"], row["join_wait_seconds_per_token"]), (0, 0), "hops on one side")
    equal((row["device_memory_bytes"], row["device"]["bytes_per_token"]), (None, 0), "no device")
    equal(row["host"]["percent_of_limit"], row["percent_of_limit"], "the host's share of the limit")
    equal(row["predicted_tokens_per_second"], None, "nothing was planned")
    check(row["weight_bytes_per_token"] > 0 and row["kv_bytes_per_token"] >= 0, f"{row}")
    near = row["median"] * (row["weight_bytes_per_token"] + row["kv_bytes_per_token"]) / 1e9
    check(abs(row["gb_per_second"] / near - 1) < 1e-6, "gb_per_second is not rate times bytes")
    limit = 100 * row["gb_per_second"] / row["limit_gb_per_second"]
    check(abs(row["percent_of_limit"] / limit - 1) < 1e-6, "percent_of_limit")
    for key in model_keys:
        check(key in row["parameters"], f"no {key} among the parameters")


@case
def json_schema(t):
    r = t.report("-d", "0,300", "--pg", "8,4")
    with open(t.model, "rb") as f:
        equal(r["model"]["sha256"], hashlib.sha256(f.read()).hexdigest(), "sha256")
    equal(r["model"]["path"], t.model, "path")
    equal(sum(r["model"]["bytes_by_type"].values()), r["model"]["weight_bytes"], "bytes by type")
    check(finite(r["model"]["first_load"]["seconds"]), "first load")
    equal(r["models"], [r["model"]], "models")
    e = r["environment"]
    for path in (
        "build.commit build.dirty build.compiler build.flags cpu.model cpu.caches cpu.clock "
        "cpu.smt memory.bytes memory.numa_nodes system.kernel gpu_driver gpus date "
        "command engine.devices read_peak device_read_peak_gb_per_second "
        "device_f16_tflop_per_second"
    ).split():
        at = e
        for key in path.split("."):
            check(key in at, f"environment has no {path}")
            at = at[key]
    names = ["pp8", "tg4", "pp8+tg4 (pp)", "pp8+tg4 (tg)"]
    names += [n + " @ d300" for n in names]
    equal([row["test"] for row in r["results"]], names, "tests")
    for row in r["results"]:
        equal((row["warmup_runs"], row["warmup_settled"]), (1, False), "warm-up")
        check_row(row, ("n_prompt", "n_gen", "depth", "threads", "batch", "kv", "isa", "load"))
        prompt = row["test"].startswith("pp8") and "(tg)" not in row["test"]
        check(finite(row["time_to_first_token"]) == prompt, f"time to first token of {row}")
        times = row["token_seconds"]
        check(
            (times["p50"] is None)
            if prompt
            else 0 < times["p50"] <= times["p95"] <= times["p99"] <= times["max"],
            f"token times {times}",
        )
        equal(row["parameters"]["depth"], 300 if "d300" in row["test"] else 0, "depth")
    deep = [row["kv_bytes_per_token"] for row in r["results"] if row["test"].startswith("tg4")]
    check(deep[1] > 50 * deep[0], f"KV bytes do not grow with the depth: {deep}")


@case
def every_combination_is_measured(t):
    r = t.report("-t", "1,2", "--kv", "f16,f32", "-b", "4,8", "-r", "1", "--isa", "scalar,best")
    seen = {
        (p["threads"], p["kv"], p["batch"], p["isa"])
        for p in (row["parameters"] for row in r["results"])
    }
    equal(len(r["results"]), 32, "rows")
    best = t.report("-r", "1")["results"][0]["parameters"]["isa"]
    equal({isa for _, _, _, isa in seen}, {"scalar", best}, "instruction sets")
    equal(len(seen), 8 if best == "scalar" else 16, "combinations")
    equal(r["results"][0]["ci95"], None, "interval of one run")


@case
def kv_types_are_measured(t):
    """The bytes of a position tell that the cache is what the row says."""
    model = os.path.join(t.data, "arch/llama3/model-f16.gguf")  # heads of 32
    args = ("-m", model, "-p", "0", "-n", "2", "-d", "16", "-r", "1", "--warmup", "0", "-o", "json")
    rows = json.loads(t.ok(*args, "--kv", "f16,q8_0"))["results"]
    equal([row["parameters"]["kv"] for row in rows], ["f16", "q8_0"], "types")
    f16, q8_0 = (row["kv_bytes_per_token"] for row in rows)
    check(f16 > 0 and abs(q8_0 / f16 - 34 / 64) < 1e-6, f"bytes of KV: {f16}, in Q8_0 {q8_0}")


@case
def several_models(t):
    other = t.file("other.gguf", open(t.model, "rb").read())
    r = json.loads(
        t.ok(t.model, "-m", other, "-p", "4", "-n", "0", "-r", "1", "--warmup", "0", "-o", "json")
    )
    equal([m["path"] for m in r["models"]], [other, t.model], "models")
    equal([row["model"] for row in r["results"]], [0, 1], "models of the rows")


@case
def forms_agree(t):
    args = t.quick("-r", "2", "--no-hash")
    lines = [json.loads(line) for line in t.ok(*args, "-o", "jsonl").splitlines()]
    equal([list(line) for line in lines], [["environment"], ["model"], ["result"], ["result"]], "lines")
    equal(lines[1]["model"]["sha256"], None, "sha256 with --no-hash")
    rows = list(csv.reader(io.StringIO(t.ok(*args, "-o", "csv").decode())))
    equal({len(row) for row in rows}, {len(rows[0])}, "fields of every CSV line")
    for key in ("test", "tokens_per_second", "ci95_low", "token_seconds.p99", "percent_of_limit"):
        check(key in rows[0], f"no {key} in CSV")
    at = rows[0].index("test")
    equal([row[at] for row in rows[1:]], ["pp8", "tg4"], "tests in CSV")
    table = t.ok(*args).decode().splitlines()
    bars = {line.count("|") for line in table if line.startswith("|")}
    equal(len(bars), 1, "different numbers of columns in the table")
    check(any("pp8" in line for line in table) and " thread" in table[0], f"{table}")


@case
def table_shows_what_is_not_default(t):
    head = t.ok(*t.quick("-r", "1", "-b", "16", "--kv", "f32", "--load", "map")).decode()
    for word in ("batch", "kv", "load", "f32", "map", "16"):
        check(word in head, f"{word} is not in the table:\n{head}")
    text = t.file("words.txt", b"Once upon a time there was a king.\n" * 20)
    for args, words in (
        (("-r", "2"), "2 runs, warm-up of at most 1,"),
        (("--random", "--seed", "7"), "random tokens (seed 7),"),
        (("--text", text), "text of words.txt,"),
    ):
        head = t.ok(*t.quick(*args)).decode()
        check(words in head, f"{words} is not in the table:\n{head}")
    head = t.ok(t.model, "-p", "8", "-n", "4").decode()
    for word in ("batch", "| kv", "run", "warm", "text", "random"):
        check(word not in head.splitlines()[0] + head.splitlines()[2], f"defaults in the table:\n{head}")


@case
def load_time_rows(t):
    r = t.report("--load-time", "-r", "3")
    rows = {row["test"]: row for row in r["results"]}
    warm = rows["load (warm)"]
    equal((warm["unit"], warm["tokens_per_second"], len(warm["samples"])), ("GB/s", None, 3), "warm")
    check(warm["percent_of_limit"] > 0 and warm["limit_gb_per_second"] > 0, f"no limit: {warm}")
    near = 100 * warm["gb_per_second"] / warm["limit_gb_per_second"] / warm["percent_of_limit"]
    check(abs(near - 1) < 1e-6 and warm["gb_per_second"] == warm["median"], f"GB/s: {warm}")
    check(warm["page_cache_percent"] >= 98, f"{warm['page_cache_percent']} % of the file were cached")
    cold = rows["load (cold)"]  # where the kernel keeps the file it must say so
    check(cold["error"] or len(cold["samples"]) == 3, f"{cold}")
    check(cold["error"] or cold["page_cache_percent"] <= 2, f"{cold['page_cache_percent']} % cached")
    equal(rows["pp8"]["page_cache_percent"], None, "page cache of a prompt")
    check("pp8" in rows, "the tests after the loads are missing")


@case
def text_and_random(t):
    path = t.file("text.txt", b"Once upon a time there was a king.\n" * 20)
    for more in (("--text", path), ("--random",), ("--random", "--seed", "7")):
        check(t.report("-r", "1", *more)["results"][0]["samples"], f"{more}")
    # Which experts are read, and so how many bytes, depends on the tokens.
    model = os.path.join(t.data, "arch/qwen3moe/model-f16.gguf")
    args = (model, "-p", "7", "-n", "0", "-r", "1", "--warmup", "0", "-o", "json")
    every = ((), (), ("--text", path), ("--random",), ("--random", "--seed", "1"), ("--random", "--seed", "3"))
    rows = [json.loads(t.ok(*args, *more))["results"][0] for more in every]
    a, b, *others = [row["weight_bytes_per_token"] for row in rows]
    equal(a, b, "bytes of the same text")
    equal(others[1], others[2], "bytes of random tokens without a seed and with the default one")
    equal(len({a, others[0], others[1], others[3]}), 4, f"different tokens read alike: {a}, {others}")
    t.fails(66, *t.quick("--text", "no/such/text"), words=("no/such/text",))
    t.fails(74, *t.quick("--text", t.file("empty.txt", b"")), words=("empty",))


@case
def synthetic_models(t):
    args = ("--synthetic", "llama-135m:q4_0", "-p", "8", "-n", "0", "-r", "1", "--warmup", "0")
    r = json.loads(t.ok(*args, "-o", "json"))
    check(r["model"]["synthetic"] is True and r["model"]["sha256"] is None, f"{r['model']}")
    row = r["results"][0]
    # The test of the memory's speed takes as much as the weights: that is not the model's.
    if b"libasan" not in subprocess.run(["ldd", t.path], capture_output=True).stdout:
        most = 1.5 * row["weight_bytes_per_token"] * 8
        check(row["peak_rss_bytes"] < most, f"{row['peak_rss_bytes']} bytes, not below {most}")
    table = t.ok(*args).decode()
    check("llama-135m:q4_0 with random weights" in table, f"not labelled as synthetic:\n{table}")


# What the driver's library says of two cards.
NVML = """
static int text(char *to, const char *from) { int i = 0; do to[i] = from[i]; while (from[i++]); return 0; }
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **d) { *d = (void *)(1ul + i); return i > 1; }
int nvmlDeviceGetName(void *d, char *to, unsigned n) { return n < 9 || text(to, d == (void *)1 ? "Card A" : "Card B"); }
int nvmlSystemGetDriverVersion(char *to, unsigned n) { return n < 9 || text(to, "570.1"); }
int nvmlSystemGetCudaDriverVersion_v2(int *v) { *v = 12080; return 0; }
int nvmlDeviceGetClockInfo(void *d, int kind, unsigned *v) { *v = 1000u * kind + (unsigned)(unsigned long)d; return 0; }
int nvmlDeviceGetMaxClockInfo(void *d, int kind, unsigned *v) { *v = 2000u * kind; return d == (void *)2; }
int nvmlDeviceGetPowerManagementLimit(void *d, unsigned *v) { *v = 350000; return !d; }
int nvmlDeviceGetCurrPcieLinkGeneration(void *d, unsigned *v) { *v = 4; return !d; }
int nvmlDeviceGetCurrPcieLinkWidth(void *d, unsigned *v) { *v = 16; return !d; }
"""


@case
def gpus_are_in_the_environment(t):
    compiler = shutil.which("cc")
    if not compiler:
        raise cli_lib.Skip("no compiler here")
    source, library = t.file("nvml.c", NVML.encode()), os.path.join(t.dir, "libnvidia-ml.so.1")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    env = t.env(LD_LIBRARY_PATH=t.dir)
    code, out, err = t.run(*t.quick("-r", "1", "-o", "json"), env=env)
    equal(code, 0, f"exit code ({err})")
    a, b = json.loads(out)["environment"]["gpus"]
    equal((a["name"], b["name"], a["driver"], a["cuda"]), ("Card A", "Card B", "570.1", 12080), "names")
    equal((b["clock"]["sm_mhz"], b["clock"]["memory_mhz"]), (1002, 2002), "clocks")
    equal((a["clock"]["sm_max_mhz"], b["clock"]["sm_max_mhz"]), (2000, None), "most, and not told")
    equal((a["power_cap_watts"], a["pcie"]["generation"], a["pcie"]["width"]), (350, 4, 16), "limits")
    equal((a["power_watts"], a["pcie"]["max_width"]), (None, None), "functions that are not there")
    if not os.path.exists("/proc/driver/nvidia/version"):
        equal(t.report("-r", "1")["environment"]["gpus"], None, "without the library")


@case
def a_busy_machine_is_marked(t):
    n = 200 if cli_lib.sanitized(t) else 2000  # long enough for the clock ticks of the others
    args = (t.model, "-p", "0", "-n", str(n), "-r", "5", "--warmup", "0", "-t", "1", "--kv", "f32")
    count = len(os.sched_getaffinity(0)) + 1
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        row = json.loads(t.ok(*args, "-o", "json"))["results"][0]
        table = t.ok(*args).decode()
    finally:
        for p in others:
            p.kill()
            p.wait()
    check(row["watch"]["others_percent"] > 5, f"{row['watch']}")
    check("other programs used" in row["disturbed"], f"{row['disturbed']}")
    check(re.search(rf"\| tg{n} \| [^|]* \* \|", re.sub(" +", " ", table)), f"no star:\n{table}")
    check(f"- tg{n}, kv f32: other programs used" in table, f"no reason or not of which:\n{table}")


# ---- what cannot be measured --------------------------------------------------------------------


@case
def impossible_cells_stay_in_their_row(t):
    r = t.report("-r", "1", "-d", "0,2147483000", "--isa", "bogus,best")
    rows = r["results"]
    equal(len(rows), 8, "rows")
    bad = [row for row in rows if row["error"]]
    equal(len(bad), 6, "rows with an error")
    for row in bad:
        check(row["samples"] == [] and row["tokens_per_second"] is None, f"{row}")
    check("bogus" in rows[0]["error"], rows[0]["error"])
    check(re.search("n_ctx|KV cache|memory", rows[-1]["error"]), rows[-1]["error"])
    check("bogus" in t.ok(*t.quick("-r", "1", "--isa", "bogus,best")).decode(), "reason in the table")


@case
def missing_and_broken_models(t):
    t.fails(66, "no/such/model.gguf", words=("no/such/model.gguf",))
    t.fails(65, t.file("broken.gguf", b"GGUF" + bytes(100)), words=("broken.gguf",))
    # One that works is enough.
    out = t.ok("no/such/model.gguf", *t.quick("-r", "1"))
    check(b"no/such/model.gguf" in out and b"pp8" in out, f"{out!r}")


@case
def output_errors_are_74(t):
    for more in ((), ("-o", "json"), ("-o", "csv"), ("-o", "jsonl"), ("--out", "/dev/full")):
        with open("/dev/full", "wb") as full:
            p = subprocess.run(
                [t.path, *t.quick("-r", "1", *more)], stdout=full, stderr=subprocess.PIPE
            )
        equal(p.returncode, 74, f"exit code of {more} into a full disk")
        equal(p.stderr.count(b"cannot write"), 1, f"messages in {p.stderr!r}")
    for args in (("--help",), ("--generate", "man"), t.quick("-r", "1")):
        reader, writer = os.pipe()
        os.close(reader)
        p = subprocess.run([t.path, *args], stdout=writer, stderr=subprocess.PIPE)
        os.close(writer)
        equal(p.returncode, 74, f"exit code of {args} with nobody reading")
    t.fails(74, *t.quick("-r", "1", "--svg", "/no/such/folder/a.svg"), words=("a.svg",))
    t.fails(74, *t.quick("-r", "1", "--out", "/no/such/folder/a.json"), words=("a.json",))


@case
def signals_keep_what_is_finished(t):
    args = (t.model, "-p", "8", "-n", "500000", "-r", "2", "--warmup", "0")
    for form in ("md", "csv"):
        p = t.start(*args, "-o", form)
        lines = [p.stdout.readline() for _ in range(5 if form == "md" else 2)]
        check(b"pp8" in lines[-1], f"first row: {lines}")
        time.sleep(0.2)
        p.send_signal(signal.SIGINT)
        out, _ = p.communicate(timeout=30)
        equal((p.returncode, b"tg" in out), (130, False), "exit code and a row that was not finished")
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        p = t.start(*args, "-o", "jsonl")
        lines = [p.stdout.readline() for _ in range(3)]
        equal(json.loads(lines[2])["result"]["test"], "pp8", "first row")
        time.sleep(0.2)
        p.send_signal(number)
        out, _ = p.communicate(timeout=30)
        equal((p.returncode, out), (code, b""), "exit code and a row that was not finished")
    p = t.start(*args, "-o", "json")
    time.sleep(1.5)
    p.send_signal(signal.SIGINT)
    out, _ = p.communicate(timeout=30)
    equal(p.returncode, 130, "exit code")
    rows = json.loads(out)["results"]
    equal([(row["test"], len(row["samples"])) for row in rows], [("pp8", 2)], "finished rows")
    # While a peer runs: it is stopped as well.
    mark = os.path.join(t.dir, "peer-runs")
    p = t.start(*t.quick("-o", "csv", "--peer", f"touch {mark}; sleep 60; echo {{prompt}} 7"))
    while not os.path.exists(mark) and p.poll() is None:
        time.sleep(0.05)
    p.send_signal(signal.SIGINT)
    out, _ = p.communicate(timeout=30)
    equal((p.returncode, out), (130, b""), "exit code and rows beside a peer")


# ---- terminals ----------------------------------------------------------------------------------


@case
def progress_only_on_a_terminal(t):
    _, _, err = t.run(*t.quick("-r", "3"))
    equal(err, b"", "stderr in a pipe")
    # Drawn ten times a second at most: so many runs take longer than that on any machine.
    tty = t.terminal(*t.quick("-r", "80", "-d", "500", "-n", "64"))
    equal(tty.wait(), 0, "exit code")
    check(re.search(rb"left: [^\r]*run \d+ of 80", tty.seen), f"no progress: {tty.seen[:300]!r}")
    stays = re.search(rb"left: [^\r]*\r\n", tty.seen)
    check(not stays, f"the progress line stays: {stays}")


@case
def estimate_before_a_long_sweep(t):
    tty = t.terminal(t.model, "-p", "0", "-n", "400000", "-r", "5", "--warmup", "0")
    tty.expect("this may take about ")
    tty.expect("left: ")
    tty.send("\x03")
    equal(tty.wait(), 130, "exit code")


@case
def out_leaves_a_table_on_a_terminal(t):
    path = os.path.join(t.dir, "report.json")
    tty = t.terminal(*t.quick("-r", "1", "-o", "json", "--out", path))
    equal(tty.wait(), 0, "exit code")
    check(b"| pp8" in tty.seen, f"no table: {tty.seen!r}")
    with open(path) as f:
        equal(len(json.load(f)["results"]), 2, "rows in the file")
    equal(t.ok(*t.quick("-r", "1", "-o", "json", "--out", path)), b"", "stdout in a pipe")


# ---- drawings, comparisons, peers ---------------------------------------------------------------


@case
def drawings(t):
    for depths, what in (("0,64,256", "circle"), ("0", "rect")):
        path = os.path.join(t.dir, "a.svg")
        t.ok(*t.quick("-r", "2", "-d", depths, "-t", "1,2", "--svg", path))
        tree = xml.etree.ElementTree.parse(path)
        marks = tree.iter("{http://www.w3.org/2000/svg}" + what)
        equal(
            len([m for m in marks if m.get("width") != "100%"]),
            4 * len(depths.split(",")),
            f"{what}s for depths {depths}",
        )
        check("2 threads" in "".join(tree.getroot().itertext()), "no legend")
        check("nan" not in open(path).read(), "nan in the drawing")


def marks(tree, name):
    return [m for m in tree.iter("{http://www.w3.org/2000/svg}" + name) if m.get("width") != "100%"]


def proportional(pixels, values, what):
    ratios = [p / v for p, v in zip(pixels, values)]
    check(max(ratios) <= 1.02 * min(ratios), f"{what}: {pixels} for {values}")


@case
def drawings_are_to_scale(t):
    """Bars as long as the speeds; points as high, and as far to the right as the depth."""
    path, text = os.path.join(t.dir, "a.svg"), ("-o", "json", "--svg", os.path.join(t.dir, "a.svg"))
    rows = t.report("-r", "1", "-t", "1,2", *text)["results"]
    bars = [float(m.get("width")) for m in marks(xml.etree.ElementTree.parse(path), "rect")]
    for kind, of in (("pp", bars[:2]), ("tg", bars[2:])):
        proportional(of, [r["median"] for r in rows if r["test"].startswith(kind)], f"bars of {kind}")
    rows = t.report("-r", "1", "-d", "64,256", *text)["results"]
    dots = marks(xml.etree.ElementTree.parse(path), "circle")
    for kind, of in (("pp", dots[:2]), ("tg", dots[2:])):
        of_kind = [r for r in rows if r["test"].startswith(kind)]
        top = 340 * (kind == "tg") + 40  # of the plot, 240 high; 70 to its left
        high = [top + 240 - float(m.get("cy")) for m in of]
        proportional(high, [r["median"] for r in of_kind], f"heights of {kind}")
        right = [float(m.get("cx")) - 70 for m in of]
        proportional(right, [r["parameters"]["depth"] for r in of_kind], f"depths of {kind}")


def changed(t, report, factor, name):
    for row in report["results"]:
        row["samples"] = [s * factor * (1 + 0.001 * i) for i, s in enumerate([100.0] * 5)]
    return t.file(name, json.dumps(report).encode())


@case
def comparisons(t):
    r = t.report()
    old = changed(t, r, 1.0, "old.json")
    slow = changed(t, r, 0.9, "slow.json")
    equal(t.run("--compare", old, old)[0], 0, "exit code for equal reports")
    code, out, _ = t.run("--compare", old, slow)
    equal(code, 1, "exit code for 10 % slower")
    check(b"2 of 2 rows slower" in out and b"0.900" in out, f"{out!r}")
    equal(t.run("--compare", old, slow, "--threshold", "20")[0], 0, "exit code below the threshold")
    equal(t.run("--compare", slow, old)[0], 0, "exit code for faster")
    code, out, _ = t.run("--compare", old, slow, "-o", "json")
    equal([row["verdict"] for row in json.loads(out)["rows"]], ["slower"] * 2, "verdicts")
    lines = t.file("old.jsonl", t.ok(*t.quick("-o", "jsonl")))
    check(t.run("--compare", lines, lines)[0] == 0, "JSON lines cannot be compared")
    t.fails(66, "--compare", old, "no/such.json", words=("no/such.json",))
    t.fails(65, "--compare", old, t.file("x.json", b"{}"), words=("x.json",))
    t.fails(65, "--compare", old, t.file("x.json", b"nonsense"), words=("x.json",))
    r["results"] = []
    t.fails(65, "--compare", old, t.file("none.json", json.dumps(r).encode()))
    with open("/dev/full", "wb") as full:
        p = subprocess.run([t.path, "--compare", old, slow], stdout=full, stderr=subprocess.PIPE)
    equal(p.returncode, 74, "exit code into a full disk")


@case
def peers_alternate(t):
    log = os.path.join(t.dir, "log")
    fake = os.path.join(t.dir, "llama-bench")
    with open(fake, "w") as f:
        f.write(FAKE.format(log=log))
    os.chmod(fake, 0o755)
    env = t.env(PATH=t.dir + ":" + os.environ["PATH"])
    args = t.quick("-r", "4", "-d", "32", "-t", "1", "--peer", "llama-bench -fa 1", "--pg", "4,2")
    code, out, err = t.run(*args, "-o", "json", env=env)
    equal((code, err), (0, b""), "exit code and messages")
    rows = json.loads(out)["results"]
    equal(
        [(r["test"], r["engine"]) for r in rows[:4]],
        [(n, e) for n in ("pp8 @ d32", "tg4 @ d32") for e in ("tenon", "llama-bench -fa 1")],
        "rows",
    )
    equal(rows[1]["samples"], [3.5] * 4, "the peer's samples")
    ratio = rows[1]["tenon_over_this"]["ratio"]
    check(abs(ratio * 3.5 / rows[0]["median"] - 1) < 1e-6, f"ratio {ratio}")
    check(rows[0]["tenon_over_this"]["ratio"] is None, "a ratio to itself")
    with open(log) as f:
        calls = [c for c in f.read().splitlines() if c != "--help"]
    equal(len(calls), 8, "calls of the peer")
    check(
        calls[0].startswith(f"-fa 1 -m {t.model} -p 8 -n 0 -t 1 -b 512 -r 1 -o json -d 32"),
        f"call {calls[0]!r}",
    )
    table = t.run(*args, env=env)[1]
    check(b"tenon / peer" in table and b"llama-bench -fa 1" in table, f"{table!r}")


@case
def peers_that_fail_keep_the_sweep_going(t):
    r = t.report("-r", "2", "--peer", "no-such-llama-bench", "--peer", "echo {prompt} {generate} 7")
    errors = [row["error"] for row in r["results"]]
    check("not found" in errors[1] and errors[0] is None and errors[2] is None, f"{errors}")
    equal(r["results"][2]["samples"], [7, 7], "samples of the other peer")


if __name__ == "__main__":
    sys.exit(main(sys.argv))
