#!/usr/bin/env python3
"""Runs the device tests or the benchmarks on a GPU and writes a JSON report.

usage: gpu.py test|bench [--build DIR] [--out FILE] [--models DIR] [--seconds N]

Without a GPU nothing is run and no report is written: that is said, counts as skipped, exit code 0.
What does not fit into the time (600 s) counts as skipped too. Needs nothing from the network.
"""

import argparse
import glob
import json
import os
import platform
import re
import shutil
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


def value(text):
    text = text.strip()
    if text in ("", "N/A", "[N/A]", "[Not Supported]", "[Unknown Error]"):
        return None
    try:
        number = float(text)
    except ValueError:
        return text
    return int(number) if number.is_integer() else number


def gpus():
    """What nvidia-smi says of each GPU; [] if there is none."""
    try:
        out = subprocess.run(["nvidia-smi", "--query-gpu=" + ",".join(FIELDS),
                              "--format=csv,noheader,nounits"],
                             stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    if out.returncode:
        return []
    rows = [line.split(",") for line in out.stdout.decode(errors="replace").splitlines()]
    return [dict(zip(FIELDS, map(value, row))) for row in rows if len(row) == len(FIELDS)]


def first_line(*command):
    try:
        out = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=60)
        return out.stdout.decode(errors="replace").strip().splitlines()[0]
    except (OSError, subprocess.TimeoutExpired, IndexError):
        return None


class Session:
    def __init__(self, seconds):
        self.end = time.monotonic() + seconds
        self.steps = []

    def run(self, name, command, parse=None):
        """Runs one step within what is left of the time and notes how it went."""
        left = self.end - time.monotonic()
        step = {"name": name, "command": command}
        self.steps.append(step)
        if left < 5:
            step.update(result="skipped", why="no time was left", passed=0, failed=0, skipped=1)
        else:
            self.execute(step, command, left, parse)
        print("%-44s %s%s" % (name, step["result"],
                              " (%s)" % step["why"] if "why" in step else ""), flush=True)

    def execute(self, step, command, left, parse):
        start = time.monotonic()
        try:
            out = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                 stderr=subprocess.STDOUT, timeout=left)
            code, text = out.returncode, out.stdout.decode(errors="replace")
        except subprocess.TimeoutExpired as e:
            code, text = None, (e.stdout or b"").decode(errors="replace")
        except OSError as e:
            code, text = -1, str(e)
        step["seconds"] = round(time.monotonic() - start, 2)
        found = re.findall(r"^(\d+) passed, (\d+) failed(?:, (\d+) skipped)?$", text, re.M)
        passed, failed, skipped = (sum(int(f[i] or 0) for f in found) for i in range(3))
        if code is None:
            step.update(result="skipped", why="it did not fit into the time")
            skipped += 1
        elif code or failed:
            step.update(result="failed", exit_code=code, output=text[-8000:])
            failed = failed or 1
            sys.stderr.write(text[-8000:])
        elif parse:
            try:
                step.update(result="passed", report=parse())
                passed += 1
            except (OSError, ValueError) as e:
                step.update(result="failed", why="no report: %s" % e)
                failed += 1
        elif not passed and not skipped:
            step.update(result="failed", why="it ran no test", output=text[-8000:])
            failed = 1
        else:
            step["result"] = "passed" if passed else "skipped"
        step.update(passed=passed, failed=failed, skipped=skipped)

    def skip(self, name, why):
        self.steps.append({"name": name, "result": "skipped", "why": why,
                           "passed": 0, "failed": 0, "skipped": 1})
        print("%-44s skipped (%s)" % (name, why), flush=True)

    def total(self, what):
        return sum(step[what] for step in self.steps)


def run_tests(session, build, models):
    names = sorted(glob.glob("tests/test_device*.c") + glob.glob("tests/test_exec_device*.c"))
    names += ["tests/test_elastic.c", "tests/test_stream.c"]
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
                                    os.path.join(build, "tests", name), "--cuda"])
            else:
                session.skip(title, "compute-sanitizer is not installed")


def run_bench(session, build, cards):
    bench = os.path.join(build, "tenon-bench") if build != "build/release" else "./tenon-bench"
    memory = max(card["memory.total"] or 0 for card in cards)
    for shape, mib in ("llama-1b:q4_k_m", 2000), ("llama-8b:q4_k_m", 9000), \
                      ("llama-70b:q4_k_m", 48000):
        for depth in 0, 32768:
            name = "%s at depth %d" % (shape, depth)
            if memory < mib + depth // 8:
                session.skip(name, "the card has %s MiB" % memory)
                continue
            report = os.path.join("build", "gpu-bench-part.json")
            if os.path.exists(report):
                os.unlink(report)
            session.run(name, [bench, "--synthetic", shape, "--device", "cuda", "-p", "2048", "-n",
                               "64", "-d", str(depth), "-r", "3", "-o", "json", "--out", report],
                        lambda: json.load(open(report)))


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
    session = Session(args.seconds)
    if args.what == "test":
        run_tests(session, args.build, args.models)
    else:
        run_bench(session, args.build, before)
    report = {
        "what": args.what,
        "emulated": False,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(start)),
        "seconds": round(time.time() - start, 1),
        "commit": first_line("git", "describe", "--always", "--dirty"),
        "machine": {"system": platform.platform(), "cpus": os.cpu_count()},
        "gpus_before": before,  # clocks and temperature change under load
        "gpus_after": gpus(),
        "passed": session.total("passed"),
        "failed": session.total("failed"),
        "skipped": session.total("skipped"),
        "steps": session.steps,
    }
    os.makedirs(os.path.dirname(os.path.abspath(out)), exist_ok=True)
    with open(out, "w") as f:
        json.dump(report, f, indent=1)
        f.write("\n")
    print("report: %s" % out)
    print("%d passed, %d failed, %d skipped" % (report["passed"], report["failed"],
                                               report["skipped"]))
    return report["failed"] > 0


if __name__ == "__main__":
    sys.exit(main())
