#!/usr/bin/env python3
"""Tests of gpu.py with a stand-in for nvidia-smi and for the tests that it runs.

usage: test_gpu.py TENON DATA_DIR [NAME]
"""

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile

import cli_lib
from cli_lib import case, check, equal, main

HERE = os.path.dirname(os.path.abspath(__file__))
CARD = ("0, Some GPU, GPU-1, 1.2, 3, 9.0, 81559, 1, 345, 2619, 1980, 2619, 700.00, 31, "
        "5, 5, 16, [N/A], Enabled")


def script(path, text):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as f:
        f.write("#!/bin/sh\n" + text)
    os.chmod(path, 0o755)


def run(folder, *args, card=None, sanitizer=None, smi=None, program=os.path.join(HERE, "gpu.py")):
    """gpu.py with only the stand-ins in PATH, and sleep; its output, exit code, report."""
    bin_ = os.path.join(folder, "bin")
    os.makedirs(bin_, exist_ok=True)
    if card is not None:
        smi = "echo '%s'\n" % card
    if smi:
        script(os.path.join(bin_, "nvidia-smi"), smi)
    for tool in "sleep", "grep":
        if not os.path.exists(os.path.join(bin_, tool)):
            os.symlink(shutil.which(tool), os.path.join(bin_, tool))
    if sanitizer:
        script(os.path.join(bin_, "compute-sanitizer"), sanitizer)
    out = os.path.join(folder, "report.json")
    p = subprocess.run([sys.executable, program, *args, "--build", folder,
                        "--models", os.path.join(folder, "models"), "--out", out], env={"PATH": bin_}, cwd=os.path.dirname(HERE),
                       stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
    report = json.load(open(out)) if os.path.exists(out) else None
    return p.stdout.decode(), p.returncode, report


def limited(folder):
    """gpu.py with a second for each step."""
    path = os.path.join(folder, "limited.py")
    with open(path, "w") as f:
        f.write("import sys\nsys.dont_write_bytecode = True\nsys.path.insert(0, %r)\nimport gpu\ngpu.LIMITS = dict.fromkeys(gpu.LIMITS, 1)\n"
                "sys.exit(gpu.main())\n" % HERE)
    return path


def programs(folder, text, **other):
    for name in os.listdir(HERE):
        if name.startswith(("test_device", "test_exec_device", "test_elastic", "test_stream",
                            "test_placements", "test_turns", "test_experts",
                            "modeltest_forward")) and name.endswith(".c"):
            script(os.path.join(folder, "tests", name[:-2]), other.get(name[:-2], text))
    os.makedirs(os.path.join(folder, "models"))
    for name in "a.gguf", "b.gguf":
        open(os.path.join(folder, "models", name), "w").close()


@case
def no_gpu_is_said(t):
    with tempfile.TemporaryDirectory() as folder:
        text, code, report = run(folder, "test")
        equal(code, 0, "the exit code")
        check("There is no NVIDIA GPU here" in text, text)
        equal(text.splitlines()[-1], "0 passed, 0 failed, 1 skipped", "the last line")
        equal(report, None, "the report")


@case
def passing_tests_are_reported(t):
    with tempfile.TemporaryDirectory() as folder:
        programs(folder, '[ "$1" = --cuda ] && echo "3 passed, 0 failed, 1 skipped"\n')
        text, code, report = run(folder, "test", card=CARD, sanitizer='shift 4; "$@"\n')
        equal(code, 0, text)
        card = report["gpus_before"][0]
        equal(card["name"], "Some GPU", "name")
        equal(card["clocks.max.sm"], 1980, "clock")
        equal(card["ecc.mode.current"], None, "ECC")
        equal(report["passed"], 3 * len(report["steps"]), "report['passed']")
        names = [step["name"] for step in report["steps"]]
        for name in "test_device under racecheck", "test_exec_devices", "test_elastic", "test_stream", "test_experts":
            check(name in names, str(names))


@case
def real_models_are_optional_and_missed_aloud(t):
    with tempfile.TemporaryDirectory() as folder:
        programs(folder, "echo '1 passed, 0 failed'\n",
                 modeltest_forward='[ "$2" = on_the_device ] && echo "4 passed, 0 failed"\n')
        text, code, report = run(folder, "test", card=CARD, sanitizer='shift 4; "$@"\n')
        equal(code, 0, text)
        equal(report["passed"], len(report["steps"]) + 3, "report['passed']")
        os.unlink(os.path.join(folder, "models", "b.gguf"))
        text, code, report = run(folder, "test", card=CARD, sanitizer='shift 4; "$@"\n')
        equal(code, 0, text)
        equal(report["skipped"], 1, "report['skipped']")
        check("'make models' fetches them" in text, text)


@case
def failures_are_failures(t):
    for bad in ("echo '2 passed, 1 failed'\nexit 1\n", "exit 139\n", "echo hello\n",
                "echo '5 passed, 0 failed'\nexit 1\n"):
        with tempfile.TemporaryDirectory() as folder:
            programs(folder, "echo '1 passed, 0 failed'\n", test_device_ops=bad)
            text, code, report = run(folder, "test", card=CARD, sanitizer='shift 4; "$@"\n')
            equal(code, 1, bad)
            equal(report["failed"], 5, bad)  # by itself and under four sanitizers


@case
def a_sanitizer_that_finds_something_fails(t):
    with tempfile.TemporaryDirectory() as folder:
        programs(folder, "echo '1 passed, 0 failed'\n")
        text, code, report = run(folder, "test", card=CARD,
                                 sanitizer='shift 4; "$@"; exit 86\n')
        equal(code, 1, "the exit code")
        equal(report["failed"], 8, "report['failed']")


@case
def a_sanitizer_that_refuses_the_device_is_missed_aloud(t):
    with tempfile.TemporaryDirectory() as folder:
        programs(folder, "echo '1 passed, 0 failed'\n")
        text, code, report = run(folder, "test", card=CARD,
                                 sanitizer="echo '= Error: Device not supported'; exit 1\n")
        equal(code, 0, text)
        equal((report["failed"], report["skipped"]), (0, 8), "failed and skipped")
        check("test_device under memcheck" in text and "compute-sanitizer: Device not supported" in text, text)


@case
def libraries_are_found(t):
    """The kit's own, and cuBLAS where the loader does not look: in a package of this Python."""
    with tempfile.TemporaryDirectory() as folder:
        cublas = os.path.join(folder, "site", "nvidia", "cu13", "lib")
        for path in cublas, os.path.join(folder, "lib"):
            os.makedirs(path)
        programs(folder, 'echo "$LD_LIBRARY_PATH" >>%s/paths\necho "1 passed, 0 failed"\n' % folder)
        program = os.path.join(folder, "there.py")
        with open(program, "w") as f:
            f.write("import sys\nsys.dont_write_bytecode = True\nsys.path[:0] = %r\nimport gpu\nsys.exit(gpu.main())\n"
                    % [HERE, os.path.join(folder, "site")])
        for there in False, True:
            if there:
                open(os.path.join(cublas, "libcublas.so.13"), "w").close()
            run(folder, "test", card=CARD, program=program)
            with open(os.path.join(folder, "paths")) as f:
                paths = f.read().splitlines()[-1].split(":")
            check(os.path.join(folder, "lib") in paths, "the kit's: %s" % paths)
            equal(cublas in paths, there, "cuBLAS in %s" % paths)


@case
def the_plug_in_remembers_where_cublas_is(t):
    with tempfile.TemporaryDirectory() as folder:
        script(os.path.join(folder, "bin", "nvcc"), "exit 1\n")
        os.makedirs(os.path.join(folder, "lib64"))
        p = subprocess.run(["make", "-n", "CUDA=on", "NVCC=" + os.path.join(folder, "bin", "nvcc"),
                            "BUILD=" + os.path.join(folder, "build"), "cuda-plugin"],
                           cwd=os.path.dirname(HERE), stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
        want = "-L{0} -Xlinker -rpath -Xlinker {0} -lcublas".format(os.path.join(folder, "lib64"))
        check(want in p.stdout.decode(), p.stdout.decode()[-1000:] + p.stderr.decode()[-300:])


def plugins(folder, cuda, nvcc):
    """make plugins with this nvcc, which writes its command lines to a file, and a host compiler; exit
    code, what make said, the command lines."""
    calls = os.path.join(folder, "calls")
    script(os.path.join(folder, "bin", "nvcc"), 'echo "$*" >>%s\n%s' % (calls, nvcc))
    os.makedirs(os.path.join(folder, "lib64"), exist_ok=True)
    open(os.path.join(folder, "lib64", "libcublas.so"), "w").close()
    open(calls, "w").close()
    p = subprocess.run(["make", "CUDA=" + cuda, "NVCC=" + os.path.join(folder, "bin", "nvcc"),
                        "BUILD=" + os.path.join(folder, "build"), "plugins"], cwd=os.path.dirname(HERE),
                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120)
    with open(calls) as f:
        return p.returncode, p.stdout.decode(), f.read().splitlines()


# The file that -o names comes into being.
WORKS = 'for a; do [ "$o" ] && : >"$a"; o=; [ "$a" = -o ] && o=1; done\nexit 0\n'


@case
def an_nvcc_that_cannot_compile_is_done_without(t):
    with tempfile.TemporaryDirectory() as folder:
        plugin = os.path.join(folder, "build", "libtenon-cuda.so")
        broken = "echo 'note: x' >&2\necho 'error: unsupported GNU version' >&2\nexit 1\n"
        for _ in range(2):
            code, text, calls = plugins(folder, "auto", broken)
            equal((code, len(calls), os.path.exists(plugin)), (0, 1, False), text)
            check("nvcc cannot compile a test program (error: unsupported GNU version): building without "
                  "the CUDA plug-in. CUDA=on shows its errors" in text, text)
        code, text, calls = plugins(folder, "on", broken)
        check(code != 0 and "\nerror: unsupported GNU version\n" in text, text)
        # It is tried anew, and what compiled is remembered until another nvcc or host compiler.
        code, text, calls = plugins(folder, "auto", WORKS)
        equal((code, os.path.exists(plugin), "cannot compile" in text), (0, True, False), text)
        sources = len([n for n in os.listdir(os.path.join(HERE, "../kernels/cuda")) if n.endswith(".cu")])
        equal(len(calls), 1 + sources + 1, "one program to try, all of device code, the plug-in")
        equal(plugins(folder, "auto", WORKS)[::2], (0, []), "nothing is left to do")
        with open(os.path.join(folder, "build", "cuda", "compiles"), "a") as f:
            f.write("other\n")
        equal(len(plugins(folder, "auto", WORKS)[2]), 1, "it is tried with another compiler")


@case
def what_does_not_fit_is_skipped(t):
    with tempfile.TemporaryDirectory() as folder:
        programs(folder, "echo '1 passed, 0 failed'\n")
        text, code, report = run(folder, "test", "--seconds", "1", card=CARD)
        equal(code, 0, "the exit code")
        equal(report["passed"], 0, "report['passed']")
        equal(report["skipped"], len(report["steps"]), "report['skipped']")
        check("no time was left" in text, text)


@case
def a_step_that_hangs_is_ended(t):
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "report.json")
        # Its child holds the pipe; the report of the steps before is there already.
        programs(folder, "echo '1 passed, 0 failed'\n",
                 test_device_attend="sleep 50 & wait\n",
                 test_device_ops="grep -q '\"result\": \"passed\"' %s && echo '3 passed, 0 failed'\n" % out)
        text, code, report = run(folder, "test", card=CARD, program=limited(folder))
        equal(code, 1, text)
        steps = {step["name"]: step for step in report["steps"]}
        equal(steps["test_device_attend"]["why"], "it did not end within 1 s", "why")
        check(steps["test_device_attend"]["seconds"] < 20, "its child was waited for")
        equal((report["failed"], steps["test_stream"]["result"]), (1, "passed"), "the others")


@case
def fields_that_a_driver_does_not_know(t):
    with tempfile.TemporaryDirectory() as folder:
        programs(folder, "echo '1 passed, 0 failed'\n")
        smi = ('case $1 in *,*|*pcie*) echo not a valid field; exit 2;; *=index) echo 0;;\n'
               '*=memory.total) echo 24576;; *) echo x;; esac\n')
        text, code, report = run(folder, "test", smi=smi)
        equal(code, 0, text)
        card = report["gpus_before"][0]
        equal((card["index"], card["memory.total"], card["pcie.link.gen.max"]), (0, 24576, None), "card")


def rows(step):
    return [line["result"] for line in step["report"] if "result" in line]


def check_share(row, text):
    """Of a prompt the share of what the device's cuBLAS was seen to multiply, in the text, too."""
    share, peak = row["percent_of_device_f16"], row["device_f16_tflop_per_second"]
    if row["test"].startswith("tg"):
        equal((share, peak, row["tflop_per_second"]), (None, None, None), "arithmetic of %s" % row["test"])
        check("%.1f tok/s, %.3g %% of the read limit" % (row["median"], row["percent_of_limit"]) in text, text)
        return
    check(0 < peak < math.inf and 0 < share < math.inf, "%r %% of %r TFLOP/s" % (share, peak))
    near = share / (100 * row["tflop_per_second"] / peak)
    check(abs(near - 1) < 1e-6, "%r %% of %r TFLOP/s" % (share, peak))
    check("%.1f tok/s, %.3g %% of the device's cuBLAS (F16, %.3g" % (row["median"], share, peak) in text, text)


def on_the_emulated_device(folder, throttle, seconds):
    """gpu.py with everything small and the emulated device in the place of a GPU."""
    path = os.path.join(folder, "emulated.py")
    with open(path, "w") as f:
        f.write("import sys\nsys.dont_write_bytecode = True\nsys.path.insert(0, %r)\nimport gpu\n"
                "gpu.DEVICE, gpu.DEEP, few = 'emu', 8, '-p 4 -n 2 -r 1 -t 1 --warmup 0 --no-hash'.split()\n"
                "gpu.SHAPES = (('tiny-llama:q4_k_m', 100, 50), ('tiny-moe:q4_0', 100, 50))\n"
                "gpu.SHAPED, gpu.PLACED[1:2], gpu.PLACED[-7:] = few, ['tiny-llama:q4_k_m'], ['8M', *few]\n"
                "gpu.PLACED += ['--hardware', 'rtx3060-ddr4']\ngpu.FAST, gpu.THROTTLED = 0, (%s,)\n"
                "gpu.PLACED_DEPTHS = gpu.THROTTLED_DEPTHS = '0,8'\n"
                "gpu.LIMITS = dict.fromkeys(gpu.LIMITS, %d)\nsys.exit(gpu.main())\n"
                % (HERE, throttle, seconds))
    return path


@case
def every_step_runs_on_the_emulated_device(t):
    """The real programs: command lines, reports and labels of all steps, but for the speed of a GPU."""
    rate = cli_lib.slow_rate(t)
    with tempfile.TemporaryDirectory() as folder:
        for name in "tenon", "tenon-bench":
            os.symlink(os.path.join(os.path.dirname(t.path), name), os.path.join(folder, name))
        text, code, report = run(folder, "bench", card=CARD,
                                 program=on_the_emulated_device(folder, rate, 100))
        equal(code, 0, text)
        calibration, placed, small, slow, last = report["steps"]
        check("emulated" in calibration["report"]["label"], "the profile's label")
        equal([len(rows(s)) for s in (placed, small, slow, last)], [12, 4, 12, 4], "rows")
        equal(slow["name"], "placements, throttled to %s GB/s" % rate, "name of the slow step")
        for step in placed, small, slow, last:
            label = "emulated" + (", throttled to %s GB/s" % rate if step is slow else "")
            for row in rows(step):
                equal((row["label"], row["error"]), (label, None), step["name"])
                placed_row = step in (placed, slow)
                check((row["predicted_tokens_per_second"] is not None) == placed_row, "%s" % row)
        peak = placed["report"][0]["environment"]["device_f16_tflop_per_second"]
        check(peak > 0 and math.isfinite(peak), "the F16 peak is %r" % peak)
        for row in rows(small) + rows(last):
            check_share(row, text)
        equal({row["parameters"]["placement"] for row in rows(slow)}, {"layers", "ffn-host", "auto"},
              "placements")


# A case of each that ends soon.
QUICK = {"test_device": "opens_and_tells", "test_device_attend": "rope_table", "test_device_ops": "glu",
         "test_device_throttle": "faster_than", "test_device_weights": "weight_sizes",
         "test_exec_device": "rules_without_a_tensor", "test_exec_device_best": "no_token_is",
         "test_exec_devices": "a_plan_for_more", "test_elastic": "a_context_at_an_edge",
         "test_stream": "what_is_on_devices", "test_experts": "equal_counts",
         "test_placements": "a_placement_by_rules", "test_turns": "no_weights_move"}


@case
def every_test_runs_on_the_emulated_device(t):
    real = os.path.join(os.path.dirname(t.path), "build/release/tests")
    with tempfile.TemporaryDirectory() as folder:
        for name, case_name in QUICK.items():
            script(os.path.join(folder, "tests", name),
                   'shift\nexec %s/%s "$@" %s\n' % (real, name, case_name))
        text, code, report = run(folder, "test", card=CARD, sanitizer='shift 4; "$@"\n')
        equal(code, 0, text)
        equal({s["name"]: s["result"] for s in report["steps"]},
              {s["name"]: "skipped" if s["name"] == "real models" else "passed" for s in report["steps"]},
              "results")


@case
def a_device_that_was_asked_for_and_is_not_there_fails(t):
    """Beside a test without a plug-in there is no device of any kind."""
    real = os.path.join(os.path.dirname(t.path), "build/release/tests")
    with tempfile.TemporaryDirectory() as folder:
        asked = ("test_turns", "--cuda"), ("test_exec_device", "--cuda"), ("test_turns",)
        for name, *device in asked:
            shutil.copy(os.path.join(real, name), folder)
            p = subprocess.run([os.path.join(folder, name), *device], stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL, timeout=60, cwd=os.path.dirname(HERE))
            counts = p.stdout.decode()
            quiet = " 0 failed" in counts and p.returncode == 0
            check(quiet == (not device), f"{name} {device}: {counts}, exit code {p.returncode}")


@case
def a_kit_without_git_says_its_commit(t):
    with tempfile.TemporaryDirectory() as folder:
        script(os.path.join(folder, "tenon"),
               '[ "$*" = --version ] && echo tenon 1.2 && echo commit 0123abc\n')
        report = run(folder, "bench", card=CARD, program=limited(folder))[2]
        equal(report["commit"], "0123abc", "commit")


def card_of_speed(folder, speed):
    """A calibration that finds GB/s."""
    script(os.path.join(folder, "tenon"),
           '[ "$*" = "calibrate --device cuda" ] || exit 64\necho note >&2\n'
           'echo \'{"devices": [{"matvec_gb_s": {"Q4_K": %d}}]}\'\necho kept >&2\n' % speed)


@case
def bench_keeps_the_reports(t):
    with tempfile.TemporaryDirectory() as folder:
        card_of_speed(folder, 1500)
        script(os.path.join(folder, "tenon-bench"),
               'for a; do file=$a; done\necho \'{"row": 1}\' >"$file"\n')
        text, code, report = run(folder, "bench", card=CARD.replace("81559", "12000"))
        equal(code, 0, text)
        equal(report["steps"][0]["report"], {"devices": [{"matvec_gb_s": {"Q4_K": 1500}}]}, "report['steps'][0]['report']")
        equal(report["steps"][1]["report"], [{"row": 1}], "report['steps'][1]['report']")
        commands = [step["command"] for step in report["steps"][1:] if "command" in step]
        equal([c[c.index("-d") + 1] for c in commands], ["0,2048,8192", "0,32768", "0,32768"],
              "depths")
        equal([c[c.index("--placements") + 1] for c in commands if "--placements" in c],
              ["layers,ffn-host,auto"], "placements")
        check("--vram" in commands[0], "placements have equal memory")
        equal(report["steps"][-1]["why"], "the card has 12000 MiB", "report['steps'][-1]['why']")
        text, code, report = run(folder, "bench", card=CARD.replace("81559", "8192"))
        equal([step.get("why") for step in report["steps"]],
              [None, None, None, "the card has 8192 MiB", None, "the card has 8192 MiB"],
              "what is skipped")
        # A fast card is measured as a slow one, too; before the largest model.
        card_of_speed(folder, 1501)
        text, code, report = run(folder, "bench", card=CARD)
        slow = [step["command"] for step in report["steps"][4:6]]
        equal([c[c.index("--throttle") + 1] for c in slow], ["350", "1000"], "throttled to")
        check(all("--placements" in c for c in slow), "%s" % slow)
        equal([step["name"] for step in report["steps"][4:]],
              ["placements, throttled to 350 GB/s", "placements, throttled to 1000 GB/s",
               "llama-70b:q4_k_m at depth 0,32768"], "the last steps")
        check(sum("--throttle" in step["command"] for step in report["steps"]) == 2, "slow steps")
        # What was measured before it was broken off is kept.
        script(os.path.join(folder, "tenon-bench"),
               'for a; do file=$a; done\nprintf \'{"row": 1}\\n{"ro\' >"$file"\nsleep 60\n')
        text, code, report = run(folder, "bench", card=CARD, program=limited(folder))
        equal((report["steps"][2]["result"], report["steps"][2]["report"]), ("failed", [{"row": 1}]),
              "a step that was broken off")
        script(os.path.join(folder, "tenon-bench"), "exit 0\n")
        text, code, report = run(folder, "bench", card=CARD)
        equal(code, 1, "the exit code")


if __name__ == "__main__":
    sys.exit(main(sys.argv))
