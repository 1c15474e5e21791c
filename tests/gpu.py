#!/usr/bin/env python3
"""Runs the device tests or the benchmarks on a GPU and writes a JSON report.

usage: gpu.py test|bench [--build DIR] [--out FILE] [--models DIR] [--seconds N]

Without a GPU nothing is run and no report is written: that is said, counts as skipped, exit code 0.
What does not fit into the time (600 s) counts as skipped too; a step that hangs is ended and has
failed. The report is written anew after every step. Needs nothing from the network.

BUILD may be the folder that 'make gpu-kit' fills, for a machine on which nothing can be built.
"""

import argparse
import glob
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time

FIELDS = ("index name uuid driver_version vbios_version compute_cap memory.total memory.used "
          "clocks.sm clocks.mem clocks.max.sm clocks.max.mem power.limit temperature.gpu "
          "pcie.link.gen.current pcie.link.gen.max pcie.link.width.current "
          "ecc.mode.current persistence_mode").split()
# Each with an exit code of its own, so that a finding is a failure.
SANITIZERS = "memcheck racecheck initcheck synccheck".split()
# What the sanitizers, which are slow, look at: memory and streams, then ops.
SANITIZED = ["test_device", "test_device_ops"]
# What it says of a machine on which it can find nothing.
NO_SANITIZER = "Device not supported"
# Seconds after which a step hangs.
LIMITS = {"test": 200, "sanitizer": 100, "bench": 400, "placements": 200, "throttled": 90}


def value(text):
    text = text.strip()
    if text in ("", "N/A", "[N/A]", "[Not Supported]", "[Unknown Error]"):
        return None
    try:
        number = float(text)
    except ValueError:
        return text
    return int(number) if number.is_integer() else number


def ask(fields):
    """nvidia-smi's rows of these fields; [] if it does not know them or is not there."""
    try:
        out = subprocess.run(["nvidia-smi", "--query-gpu=" + ",".join(fields),
                              "--format=csv,noheader,nounits"],
                             stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    if out.returncode:
        return []
    rows = [line.split(",") for line in out.stdout.decode(errors="replace").splitlines()]
    return [dict(zip(fields, map(value, row))) for row in rows if len(row) == len(fields)]


def gpus():
    """What nvidia-smi says of each GPU; [] if there is none. A field that this driver does not know
    fails the whole question, so then they are asked for one by one."""
    cards = ask(FIELDS)
    if cards:
        return cards
    cards = ask(["index"])
    for field in FIELDS[1:] if cards else []:
        for card, row in zip(cards, ask([field]) or [{field: None}] * len(cards)):
            card.update(row)
    return cards


def first_line(*command, start=""):
    """The first line of its output that starts so, without its start; None: there is none."""
    try:
        out = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = out.stdout.decode(errors="replace").splitlines()
    return next((line[len(start):] for line in lines if line.startswith(start)), None)


def folder_of(build):
    """Where the programs lie."""
    return build if build != "build/release" else "."


def commit_of(build):
    """A kit may lie where there is no git: then the program knows."""
    return (first_line("git", "describe", "--always", "--dirty") or
            first_line(os.path.join(folder_of(build), "tenon"), "--version", start="commit "))


def run_within(command, seconds):
    """Exit code, or None where it had to be ended, and output. What it started itself ends with it:
    it would hold the pipe open."""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, start_new_session=True) as p:
        try:
            out = p.communicate(timeout=seconds)[0]
            return p.returncode, out
        except subprocess.TimeoutExpired:
            os.killpg(p.pid, signal.SIGKILL)
            return None, p.communicate()[0]


class Session:
    def __init__(self, seconds, save):
        self.end = time.monotonic() + seconds
        self.steps = []
        self.save = save

    def run(self, name, command, kind="test", parse=None):
        """Runs one step within what is left of the time and notes how it went."""
        left = self.end - time.monotonic()
        step = {"name": name, "command": command}
        self.steps.append(step)
        if left < 5:
            step.update(result="skipped", why="no time was left", passed=0, failed=0, skipped=1)
        else:
            self.execute(step, command, kind, left, parse)
        self.said(step)

    def said(self, step):
        print("%-44s %s%s" % (step["name"], step["result"],
                              " (%s)" % step["why"] if "why" in step else ""), flush=True)
        self.save(self)

    def execute(self, step, command, kind, left, parse):
        start, seconds = time.monotonic(), min(left, LIMITS[kind])
        try:
            code, out = run_within(command, seconds)
        except OSError as e:
            code, out = -1, str(e).encode()
        text = out.decode(errors="replace")
        step["seconds"] = round(time.monotonic() - start, 2)
        found = re.findall(r"^(\d+) passed, (\d+) failed(?:, (\d+) skipped)?$", text, re.M)
        passed, failed, skipped = (sum(int(f[i] or 0) for f in found) for i in range(3))
        if code is None and seconds == left:
            step.update(result="skipped", why="it did not fit into the time", output=text[-8000:])
            skipped += 1
        elif kind == "sanitizer" and code and NO_SANITIZER in text:
            step.update(result="skipped", why="compute-sanitizer: " + NO_SANITIZER, output=text[-8000:])
            passed, failed, skipped = 0, 0, 1
        elif code or failed or code is None:
            if code is None:
                step["why"] = "it did not end within %g s" % seconds
            step.update(result="failed", exit_code=code, output=text[-8000:])
            failed = failed or 1
            sys.stderr.write(text[-8000:])
        elif not parse and not passed and not skipped:
            step.update(result="failed", why="it ran no test", output=text[-8000:])
            failed = 1
        elif not parse:
            step["result"] = "passed" if passed else "skipped"
        if parse:
            passed, failed = self.keep(step, parse, text, passed, failed)
        step.update(passed=passed, failed=failed, skipped=skipped)

    def keep(self, step, parse, text, passed, failed):
        """The report that a step has left, also of one that was ended on the way."""
        try:
            step["report"] = parse(text)
        except (OSError, ValueError) as e:
            if "result" in step:
                return passed, failed
            step.update(result="failed", why="no report: %s" % e)
            return passed, failed + 1
        if "result" in step:
            return passed, failed
        step["result"] = "passed"
        return passed + 1, failed

    def skip(self, name, why):
        self.steps.append({"name": name, "result": "skipped", "why": why,
                           "passed": 0, "failed": 0, "skipped": 1})
        self.said(self.steps[-1])

    def total(self, what):
        return sum(step[what] for step in self.steps)


def cublas_folders():
    """Where cuBLAS may lie unknown to the loader: toolkits, and packages of this Python. The plug-in
    needs it to load at all."""
    places = ["/usr/local/cuda*/lib64", "/usr/local/cuda*/targets/*/lib"]
    places += [os.path.join(path, "nvidia", "*", "lib") for path in sys.path if path]
    return [folder for place in places for folder in sorted(glob.glob(place))
            if glob.glob(os.path.join(folder, "libcublas.so.*"))]


def run_tests(session, build, models):
    names = sorted(glob.glob("tests/test_device*.c") + glob.glob("tests/test_exec_device*.c"))
    names += ["tests/test_elastic.c", "tests/test_stream.c", "tests/test_placements.c",
              "tests/test_turns.c", "tests/test_experts.c"]
    names = [os.path.basename(n)[:-2] for n in names]
    for name in names:
        session.run(name, [os.path.join(build, "tests", name), "--cuda"])
    # Of the tests with real models those that are about a device.
    if len(glob.glob(os.path.join(models, "*.gguf"))) < 2:
        session.skip("real models", "%s has not both; 'make models' fetches them" % models)
    else:
        session.run("real models", [os.path.join(build, "tests", "modeltest_forward"), "--cuda",
                                    "on_the_device"])
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    for name in SANITIZED:
        for tool in SANITIZERS:
            title = "%s under %s" % (name, tool)
            if os.access(sanitizer, os.X_OK):
                session.run(title, [sanitizer, "--tool", tool, "--error-exitcode", "86",
                                    os.path.join(build, "tests", name), "--cuda"], "sanitizer")
            else:
                session.skip(title, "compute-sanitizer is not installed")


# A shape, and MiB for its weights and, at a depth of 32,768, for its keys and values besides.
SHAPES = (("llama-1b:q4_k_m", 2000, 1100), ("llama-8b:q4_k_m", 6500, 4400),
          ("llama-70b:q4_k_m", 45000, 10800))
# The prompt in one batch: weights are dequantised once, and products fill a large card.
SHAPED, DEEP = ["-p", "2048", "-b", "2048", "-n", "64", "-r", "3"], 32768
# The ways to place a model in half the memory that its weights take: predicted, measured, regret.
PLACED = ["--synthetic", "llama-8b:q4_k_m", "--placements", "layers,ffn-host,auto", "--vram", "3G",
          "-p", "512", "-n", "32", "-r", "2"]
PLACED_DEPTHS, THROTTLED_DEPTHS = "0,2048,8192", "0,4096"
# A card that reads faster (GB/s) is made slow besides, as slow as cards that people have.
FAST, THROTTLED = 1500, (350, 1000)
DEVICE = "cuda"


def rows_of(path):
    """The rows that tenon-bench has written so far; the last line may be cut off."""
    with open(path) as f:
        lines = f.read().split("\n")[:-1]
    rows = [json.loads(line) for line in lines]
    if not rows:
        raise ValueError("it is empty")
    return rows


def shares(row):
    """One line: of what was measured besides, how much a prompt or a generation reaches; None: of a row
    without a figure."""
    if row["error"] or not row["median"]:
        return None
    prompt = row["percent_of_device_f16"]
    percent = row["percent_of_limit"] if prompt is None else prompt
    what = "read limit" if prompt is None else "device's cuBLAS (F16, %.3g TFLOP/s)" % (
        row["device_f16_tflop_per_second"])
    where = row["parameters"]["placement"]
    return "    %-20s %10.1f tok/s%s%s" % (
        row["test"], row["median"], "" if percent is None else ", %.3g %% of the %s" % (percent, what),
        "" if where == "device" else ", " + where)


def json_in(text):
    """The object that a program has printed, among its messages."""
    return json.loads(text[text.index("{"):text.rindex("}") + 1])


def rate_of(calibration):
    """GB/s that the first device's mat-vecs read at most, as it was calibrated; 0: not known."""
    try:
        return max(calibration["report"]["devices"][0]["matvec_gb_s"].values())
    except (KeyError, IndexError, ValueError):
        return 0


def run_bench(session, build, cards):
    folder = folder_of(build)
    bench = os.path.join(folder, "tenon-bench")
    sizes = [card["memory.total"] for card in cards if card["memory.total"]]
    memory = max(sizes) if sizes else None # not known: try
    report = os.path.join("build", "gpu-bench-part.jsonl")
    os.makedirs("build", exist_ok=True)

    def measure(kind, title, *args):
        if os.path.exists(report):
            os.unlink(report)
        session.run(title, [bench, "--device", DEVICE, *args, "-o", "jsonl", "--out", report], kind,
                    lambda text: rows_of(report))
        for line in session.steps[-1].get("report", ()):
            if "result" in line and shares(line["result"]):
                print(shares(line["result"]), flush=True)

    # What predictions are made of: crossing latency, contended pairs, the host's attention, ...
    os.environ["XDG_CACHE_HOME"] = os.path.abspath(os.path.join("build", "gpu-cache"))
    session.run("calibration", [os.path.join(folder, "tenon"), "calibrate", "--device", DEVICE],
                "placements", json_in)

    def measure_shape(shape, weights, kv):
        depths = "0,%d" % DEEP
        if memory and memory < weights:
            session.skip(shape, "the card has %s MiB" % memory)
            return
        if memory and memory < weights + kv:
            session.skip("%s at depth %d" % (shape, DEEP), "the card has %s MiB" % memory)
            depths = "0"
        # One process a shape: its weights are made once.
        measure("bench", "%s at depth %s" % (shape, depths), "--synthetic", shape, "-d", depths,
                *SHAPED)

    # The largest comes last: it may take what time there is.
    measure("placements", "placements", *PLACED, "-d", PLACED_DEPTHS)
    for shape in SHAPES[:-1]:
        measure_shape(*shape)
    for wanted in THROTTLED if rate_of(session.steps[0]) > FAST else ():
        measure("throttled", "placements, throttled to %g GB/s" % wanted, *PLACED, "-d",
                THROTTLED_DEPTHS, "--warmup", "2", "--throttle", "%g" % wanted)
    measure_shape(*SHAPES[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["test", "bench"])
    parser.add_argument("--build", default="build/release")
    parser.add_argument("--out")
    parser.add_argument("--models", default="models")
    parser.add_argument("--seconds", type=float, default=600)
    args = parser.parse_args()
    out = args.out or "build/gpu-%s.json" % args.what
    start = time.time()
    before = gpus()
    if not before:
        print("There is no NVIDIA GPU here (nvidia-smi names none): nothing was run.")
        print("0 passed, 0 failed, 1 skipped")
        return 0
    os.makedirs(os.path.dirname(os.path.abspath(out)), exist_ok=True)

    def save(session, after=None):
        report = {
            "what": args.what,
            "emulated": False,
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(start)),
            "seconds": round(time.time() - start, 1),
            "commit": commit,
            "machine": {"system": platform.platform(), "cpus": os.cpu_count()},
            "gpus_before": before,  # clocks and temperature change under load
            "gpus_after": after,    # null: it was broken off
            "passed": session.total("passed"),
            "failed": session.total("failed"),
            "skipped": session.total("skipped"),
            "steps": session.steps,
        }
        with open(out + ".part", "w") as f:
            json.dump(report, f, indent=1)
            f.write("\n")
        os.replace(out + ".part", out)
        return report

    session = Session(args.seconds, save)
    libraries = os.path.abspath(os.path.join(args.build, "lib"))
    kit = [libraries] if os.path.isdir(libraries) else []  # what the machine may lack
    paths = [p for p in [os.environ.get("LD_LIBRARY_PATH"), *kit, *cublas_folders()] if p]
    if paths:
        os.environ["LD_LIBRARY_PATH"] = ":".join(paths)
    commit = commit_of(args.build)
    if args.what == "test":
        run_tests(session, args.build, args.models)
    else:
        run_bench(session, args.build, before)
    report = save(session, gpus())
    print("report: %s" % out)
    print("%d passed, %d failed, %d skipped" % (report["passed"], report["failed"],
                                               report["skipped"]))
    return report["failed"] > 0


if __name__ == "__main__":
    sys.exit(main())
