#!/usr/bin/env python3
"""Tests of the tenon program, through pipes and pseudo-terminals.

usage: test_cli.py TENON DATA_DIR [NAME]
"""

import ctypes
import json
import math
import os
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time

import cli_chat  # noqa: F401, its cases register themselves
import cli_files  # noqa: F401
import cli_plan  # noqa: F401
import cli_tools  # noqa: F401
from cli_lib import ENDLESS, TALK, Skip, case, check, equal, inspect, main, sanitized, with_string_key

# ---- usage, help, version -----------------------------------------------------------------------


@case
def wrong_usage_is_64(t):
    for args in (
        (),
        ("nonsense",),
        ("run",),
        ("run", "a", "b"),
        ("run", "a", "--nope"),
        ("run", "a", "-Z"),
        ("run", "a", "-n"),
        ("run", "a", "-n", "x"),
        ("run", "a", "--temp", "nan"),
        ("run", "a", "--temp", "-1"),
        ("run", "a", "--top-p", "2"),
        ("run", "a", "--kv", "q8"),
        ("run", "a", "--kv", "q8_0x"),
        ("run", "a", "--logit-bias", "5"),
        ("run", "a", "--seed", "-1"),
        ("--temp", "1"),
        ("inspect", t.model, "--temp", "1"),
        ("logits", t.model, "--out", "x"),
        ("logits", t.model, "--tokens", "1"),
        ("logits", t.model, "--tokens", "a", "--out", "x"),
        ("perplexity", t.model),
        ("run", t.model, "-p", ""),
        ("--generate", "html"),
        ("run", t.model, "-p", "x", "--isa", "bogus"),
        ("run", t.model, "-p", "x", "-t", "-1"),
    ):
        equal(t.fails(64, *args), b"", f"stdout of {args}")


@case
def messages_name_the_option(t):
    t.fails(64, "run", "a", "--temp", "warm", words=("--temp", "warm"))
    t.fails(64, "run", "a", "--nope", words=("--nope is unknown",))
    t.fails(64, "run", "a", "-Z", words=("-Z is unknown",))
    t.fails(64, "run", "a", "--t=5", words=("--t=5 ", "more than one", "--threads", "--temp"))
    t.fails(64, "run", "a", "--json=4", words=("--json=4 takes no value",))
    t.fails(64, "run", "a", "--temp", words=("--temp needs a value",))
    t.fails(64, "run", "a", "-c", "1073741825", words=("--ctx", "1073741824"))
    t.fails(64, "tokenize", "a", "--temp", "1", words=("--temp", "tokenize"))


@case
def help_names_every_option_once(t):
    out = t.ok("run", "--help").decode()
    for name in (
        "--prompt",
        "--predict",
        "--ctx",
        "--threads",
        "--seed",
        "--temp",
        "--top-k",
        "--top-p",
        "--min-p",
        "--repeat-penalty",
        "--presence-penalty",
        "--frequency-penalty",
        "--stop",
        "--logit-bias",
        "--json",
        "--raw",
        "--template",
    ):
        equal(len(re.findall(rf"(?m)^ .*{name} ", out)), 1, f"lines of {name}")
    check("--add-special" not in out, "run --help shows an option of tokenize")
    names = set()
    for command in ("chat", "run", "inspect", "tokenize", "logits", "perplexity", "plan", "calibrate"):
        check(command in t.ok("--help").decode(), f"--help lacks {command}")
        names |= set(re.findall(r"--([a-z-]+)", t.ok(command, "-h").decode().split("\n\n", 2)[2]))
    names -= {"help", "version"}
    check(len(names) <= 40, f"{len(names)} options: {sorted(names)}")


@case
def version_has_four_lines(t):
    lines = t.ok("--version").decode().splitlines()
    equal([line.split()[0] for line in lines], ["tenon", "commit", "isa", "devices"], "lines")
    check(re.fullmatch(r"tenon \d+\.\d+\.\d+", lines[0]), f"version line {lines[0]!r}")
    used, levels = re.fullmatch(r"isa (\w+) \(this CPU has ([\w ]+)\)", lines[2]).groups()
    levels = levels.split()
    equal((levels[0], levels[-1]), ("scalar", used), "the first level and the last, which is used")
    for level in levels:
        equal(t.ok("--version", "--isa", level).decode().splitlines()[2].split()[1], level, "level")


@case
def openblas_gets_the_core_of_this_cpu(t):
    """tenon names it, as OpenBLAS may be older than the CPU; where another program has chosen an old
    one, that is a line of the log, and our own kernel serves."""
    with open("/proc/cpuinfo", encoding="utf-8") as f:
        if " avx2" not in f.read():
            raise Skip("this CPU has no AVX2")
    tokens = ",".join(str(3 + i) for i in range(40))

    def logits(name, **env):
        out = os.path.join(t.dir, name)
        words = ("logits", t.model, "--tokens", tokens, "--out", out, "-v")
        code, _, err = t.run(*words, env=t.env(**env))
        equal(code, 0, f"exit code ({err})")
        (line,) = re.findall("unquantised weights: (.*)", err.decode())
        with open(out, "rb") as f:
            content = f.read()
        return line, struct.unpack(f"<{len(content) // 4}f", content)

    line, want = logits("best")
    if "was not found" in line:
        raise Skip("no OpenBLAS")
    check(re.fullmatch(r"OpenBLAS [\d.]+ (Haswell|SkylakeX) pthread", line), f"core: {line}")
    line, got = logits("old", OPENBLAS_CORETYPE="Prescott")
    check("without AVX2" in line and "OPENBLAS_CORETYPE=" in line, f"an old core: {line}")
    worst = max(abs(a - b) for a, b in zip(want, got, strict=True))
    check(worst < 1e-4, f"logits differ by {worst}")
    check(got != want, "the refused OpenBLAS computed them")


@case
def without_a_driver_the_host_serves(t):
    """The plug-in for GPUs is there, a driver is not: nothing but --device cuda notices."""
    folder = os.path.dirname(t.path)
    plugins = ("libtenon-cuda.so", "build/release/libtenon-cuda.so")
    if not any(os.path.exists(os.path.join(folder, p)) for p in plugins):
        raise Skip("built without nvcc")
    if os.path.exists("/dev/nvidiactl"):
        raise Skip("there is a driver")
    check("devices none" in t.ok("--version").decode().splitlines(), "--version names a device")
    logits = ("logits", t.model, "--tokens", "1,2", "--out", "-")
    equal(t.ok(*logits), t.ok(*logits, "--device", "none"), "logits")
    t.fails(71, *logits, "--device", "cuda", words=("no CUDA device can be used",))
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        loaded = t.run("run", t.model, "-p", "a", "-n", "1", env=t.env(LD_DEBUG="files"))[2]
        check(b"libm.so" in loaded and b"libcublas" not in loaded, "cuBLAS is loaded for nothing")


@case
def man_page_and_completions(t):
    man = t.ok("--generate", "man").decode()
    for what in (".TH TENON", "\\-\\-top\\-k", ".B 75", "NO_COLOR"):
        check(what in man, f"the man page lacks {what}")
    bash = t.ok("--generate", "bash")
    check(b"--logit-bias" in bash, "bash completion lacks --logit-bias")
    equal(subprocess.run(["bash", "-n"], input=bash).returncode, 0, "bash -n")
    script = bash.decode() + (
        "\nCOMP_WORDS=(tenon run --top); COMP_CWORD=2; _tenon; echo ${COMPREPLY[*]}"
        "\nCOMP_WORDS=(tenon t); COMP_CWORD=1; _tenon; echo ${COMPREPLY[*]}"
    )
    shown = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    equal(shown.stdout, "--top-k --top-p\ntokenize\n", "bash completes")
    zsh, fish = t.ok("--generate", "zsh"), t.ok("--generate", "fish")
    check(zsh.startswith(b"#compdef tenon"), "zsh completion")
    for name in re.findall(r"(?m)^ .*--([a-z-]+)", t.ok("run", "--help").decode()):
        check(re.search(rb"run\) words='[^']* --%s[ ']" % name.encode(), bash), f"bash lacks --{name}")
        check(b"'--%s[" % name.encode() in zsh, f"zsh completion lacks --{name}")
        check(re.search(rb"\brun\b.*' -l %s " % name.encode(), fish), f"fish lacks --{name}")
    for shell, text in (("zsh", zsh), ("fish", fish)):
        if shutil.which(shell):  # their syntax, where they are installed
            equal(subprocess.run([shell, "-n", t.file(shell, text)]).returncode, 0, f"{shell} -n")


# ---- models that cannot be used -----------------------------------------------------------------


@case
def missing_file_is_66(t):
    for command in (
        ("run", "-p", "x"),
        ("inspect",),
        ("tokenize", "-p", "x"),
        ("chat",),
        ("logits", "--tokens", "1", "--out", os.path.join(t.dir, "x")),
    ):
        t.fails(66, command[0], os.path.join(t.dir, "no.gguf"), *command[1:], words=("no.gguf",))
    t.fails(66, "perplexity", t.model, "--file", os.path.join(t.dir, "no.txt"), words=("no.txt",))
    t.fails(66, "logits", t.model, "--tokens", "@" + os.path.join(t.dir, "no.ids"), "--out", "x")


@case
def directory_is_74(t):
    t.fails(74, "run", t.dir, "-p", "x", words=("directory",))
    t.fails(74, "inspect", t.dir, words=("directory",))


@case
def broken_file_is_65(t):
    with open(t.model, "rb") as f:
        good = f.read()
    for name, content in (
        ("empty", b""),
        ("noise", bytes(range(256)) * 8),
        ("text", b"hello\n" * 100),
        ("cut", good[:5000]),
        ("short", good[:-1000]),
        ("version", good[:4] + b"\x09" + good[5:]),
    ):
        path = t.file(name + ".gguf", content)
        t.fails(65, "run", path, "-p", "x", words=(name,))
    t.fails(65, "inspect", t.file("cut2.gguf", good[:5000]))


@case
def unsupported_architecture_is_65(t):
    with open(t.model, "rb") as f:
        good = f.read()
    at = good.index(b"general.architecture") + len(b"general.architecture") + 12
    path = t.file("arch.gguf", good[:at] + b"lxama" + good[at + 5 :])
    t.fails(65, "run", path, "-p", "x", words=("lxama",))
    t.fails(65, "plan", path, words=("lxama",))
    check(b"lxama" in t.ok("inspect", path), "inspect does not show a file tenon cannot run")


@case
def unknown_template_is_65(t):
    path = t.file(
        "template.gguf", with_string_key(t.model, "tokenizer.chat_template", "{{ nobody knows }}")
    )
    t.fails(65, "run", path, "-p", "x", words=("--template", "chatml"))
    t.fails(65, "chat", path, words=("--template", "chatml"))
    t.ok("run", path, "-p", "x", "-n", "2", "--raw")
    t.ok("run", path, "-p", "x", "-n", "2", *TALK)


@case
def model_without_template_cannot_chat(t):
    t.fails(65, "chat", t.model, words=("--template",))


@case
def nan_logits_are_70(t):
    tensor = next(x for x in inspect(t, t.model)["tensors"] if x["name"] == "output_norm.weight")
    equal(tensor["type"], "F32", "type of output_norm")
    with open(t.model, "rb") as f:
        data = bytearray(f.read())
    data[tensor["offset"] : tensor["offset"] + 4] = struct.pack("<f", math.nan)
    t.fails(70, "run", t.file("nan.gguf", data), "-p", "x", "-n", "4")


@case
def out_of_memory_is_71(t):
    if sanitized(t):
        raise Skip("a sanitizer needs more address space than the limits")
    codes = {}
    for mib in (8, 16, 24, 32, 40, 48, 64, 80, 96, 128, 192, 256, 512, 4096):

        def limit(n=mib):
            resource.setrlimit(resource.RLIMIT_AS, (n << 20, n << 20))

        code, _, err = t.run(
            "run", t.model, "-p", "x", "-n", "4", "-t", "1", *ENDLESS, preexec_fn=limit
        )
        codes[mib] = code
        # 127: the dynamic loader itself had no room.
        check(code in (0, 71, 127), f"with {mib} MiB: exit code {code}: {err!r}")
        if code == 71:
            check(b"memory" in err, f"with {mib} MiB: {err!r}")
    check(71 in codes.values() and codes[4096] == 0, f"exit codes by MiB: {codes}")


# ---- run ----------------------------------------------------------------------------------------


@case
def stdout_is_only_the_text(t):
    args = ("run", t.model, "-p", "Once upon a time", "-n", "24", "--temp", "0", *ENDLESS)
    code, out, err = t.run(*args)
    equal(code, 0, "exit code")
    check(out and b"tok/s" not in out, f"stdout {out!r}")
    closing = rb"(?m)^stop: length \| prompt \d+ tokens, [\d.]+ tok/s \| generated 24 tokens, "
    check(re.search(closing + rb"[\d.]+ tok/s \| context \d+/512$", err), f"stderr {err!r}")
    for mark in (b"\x1b", b"\r"):
        check(mark not in err, f"{mark!r} on a stderr that is no terminal: {err!r}")
    equal(t.ok(*args), out, "a second greedy run")
    _, _, err = t.run("run", t.model, "-p", "x", "-n", "1", *ENDLESS)
    check(b"| generated 1 token |" in err, f"one token has no speed: {err!r}")
    equal(t.ok("run", "-m", t.model, *args[2:]), out, "the run with -m")
    equal(
        t.ok("run", t.model, *args[4:], stdin=b"Once upon a time\n"),
        out,
        "the run with a piped prompt",
    )
    path = t.file("prompt.txt", b"Once upon a time\n")
    equal(t.ok("run", t.model, "--file", path, *args[4:]), out, "the run with --file")
    path = t.file("prompt.txt", b"\xef\xbb\xbfOnce upon a time\r\n")
    equal(t.ok("run", t.model, "--file", path, *args[4:]), out, "the run with a file of Windows")


@case
def seed_decides_the_text(t):
    def text(seed):
        return t.ok(
            "run",
            t.model,
            "-p",
            "x",
            "-n",
            "24",
            "--logit-bias",
            "2=-inf",
            "--temp",
            "1",
            "-s",
            seed,
        )

    equal(text("7"), text("7"), "text of the same seed")
    check(len({text(s) for s in "1234"}) > 1, "four seeds give one text")
    code, out, err = t.run(
        "run", t.model, "-p", "x", "-n", "24", "--logit-bias", "2=-inf", "--temp", "1"
    )
    seed = re.search(rb"seed: (\d+)", err)
    check(code == 0 and seed, f"no seed on stderr: {err!r}")
    equal(text(seed.group(1).decode()), out, "text of the seed that was printed")


@case
def sampling_options_arrive(t):
    args = ("run", t.model, "-p", "Once upon a time", "-n", "16", *ENDLESS)
    greedy = t.ok(*args, "--temp", "0")
    for one in (("--top-k", "1"), ("--top-p", "0"), ("--min-p", "1")):
        equal(t.ok(*args, "--temp", "5", *one), greedy, f"text with {one}, which leave one token")
    check(t.ok(*args, "--temp", "5", "--top-k", "0") != greedy, "a temperature of 5 changes nothing")
    for more in (
        ("--repeat-penalty", "1000"),
        ("--presence-penalty", "1000"),
        ("--frequency-penalty", "1000"),
    ):
        events = t.ok(*args, "--temp", "0", "--json", "--repeat-last-n", "-1", *more).splitlines()
        ids = [json.loads(e)["id"] for e in events[1:-1] if b'"id"' in e]
        equal(len(set(ids)), len(ids), f"different ids with {more}")


@case
def json_events(t):
    args = ("run", t.model, "-p", "Once upon a time", "-n", "12", "--temp", "0", *ENDLESS)
    lines = t.ok(*args, "--json").splitlines()
    events = [json.loads(line) for line in lines]
    equal([e["event"] for e in events[:1] + events[-1:]], ["start", "stop"], "first and last event")
    tokens = [e for e in events if e["event"] == "token"]
    equal(len(tokens), 12, "token events")
    for e in tokens:
        check(
            isinstance(e["id"], int) and math.isfinite(e["logprob"]) and e["logprob"] <= 0, f"{e}"
        )
    equal("".join(e["text"] for e in events[1:-1]).encode(), t.ok(*args), "joined texts")
    stop = events[-1]
    equal((stop["reason"], stop["generated_tokens"]), ("length", 12), "stop event")
    for key in ("prompt_tokens", "load_seconds", "prompt_seconds", "generation_seconds"):
        check(stop[key] >= 0, f"{key} in {stop}")


@case
def stop_string_ends_before_itself(t):
    args = ("run", t.model, "-p", "Once upon a time", "-n", "40", "--temp", "0", *ENDLESS)
    text = t.ok(*args).decode()
    stop = text[5:8]
    code, out, err = t.run(*args, "--stop", stop, "--stop", "never in the text")
    equal(out.decode(), text[: text.index(stop)], f"text before {stop!r}")
    check(b"stop: stop-string" in err, f"{err!r}")
    equal(text.index(stop[1:]), text.index(stop) + 1, "where the shorter stop string is")
    got = t.ok(*args, "--stop", stop, "--stop", stop[1:]).decode()
    equal(got, text[: text.index(stop)], "text before the earlier of two stop strings")
    # A text that only begins like a stop string is shown in the end.
    equal(
        t.ok(*args, "--stop", text[-3:] + "\x01").decode(),
        text,
        "text with a stop string half there",
    )


@case
def logit_bias_forces_a_token(t):
    events = t.ok(
        "run", t.model, "-p", "x", "-n", "3", "--json", "--temp", "0", "--logit-bias", "300=1000"
    )
    ids = [json.loads(e).get("id") for e in events.splitlines()]
    equal(ids[1:4], [300, 300, 300], "forced ids")
    code, _, err = t.run("run", t.model, "-p", "x", "--temp", "0", "--logit-bias", "2=1000")
    check(code == 0 and b"stop: eos" in err, f"{err!r}")
    beyond = ("--logit-bias", "383=1", "--logit-bias", "384=1")
    for command in (("run", "--json"), ("chat", "--template", "chatml")):
        args = (command[0], t.model, "-p", "x", *command[1:], *beyond)
        out = t.fails(64, *args, words=("--logit-bias", "384"))
        equal(out, b"", f"stdout of {command[0]}: begun before the option was looked at")


@case
def full_context_is_75(t):
    t.fails(75, "run", t.model, "-p", "Once upon a time " * 40, "-c", "64", words=("64",))
    out = t.fails(
        75, "run", t.model, "-p", "Once", "-c", "32", *ENDLESS, words=("32", "context-full")
    )
    check(out, "no text before the context was full")


@case
def output_errors_are_74(t):
    args = ("run", t.model, "-p", "x", "-n", "20", *ENDLESS)
    with open("/dev/full", "wb") as full:
        for more in (
            args,
            args + ("--json",),
            ("inspect", t.model),
            ("tokenize", t.model, "-p", "x"),
            ("--help",),
            ("--version",),
            ("--generate", "man"),
        ):
            p = subprocess.run([t.path, *more], stdout=full, stderr=subprocess.PIPE, env=t.env())
            equal(p.returncode, 74, f"exit code of {more[0]} into a full disk")
            check(b"cannot write" in p.stderr, f"{p.stderr!r}")
    t.fails(74, "logits", t.model, "--tokens", "1", "--out", "/dev/full", words=("/dev/full",))
    t.fails(
        74,
        "logits",
        t.model,
        "--tokens",
        "1",
        "--out",
        t.dir + "/no/such/folder",
        words=("cannot write",),
    )
    reader, writer = os.pipe()
    os.close(reader)
    p = subprocess.run([t.path, *args], stdout=writer, stderr=subprocess.PIPE, env=t.env())
    os.close(writer)
    equal(p.returncode, 74, "exit code with nobody reading")


@case
def signals_are_130_and_143(t):
    for number, want in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        p = t.start("run", t.model, "-p", "x", "-c", "2000000", *ENDLESS)
        check(p.stdout.read(1), "no text")
        p.send_signal(number)
        _, err = p.communicate(timeout=60)
        equal(p.returncode, want, "exit code in generation")
        check(b"stop: interrupted" in err, f"{err!r}")
        p = t.start("run", t.model, "-c", "2000000")  # waits for standard input
        while not os.path.exists(f"/proc/{p.pid}/exe"):
            time.sleep(0.01)
        time.sleep(0.3)
        p.send_signal(number)
        equal(p.wait(timeout=60), want, "exit code while waiting for the prompt")
        p.communicate()


@case
def signal_in_prefill_is_130(t):
    prompt = t.file("long.txt", b"Once upon a time there was a king. " * 20000)
    p = t.start("run", t.model, "--file", prompt, "-c", "1000000", "-n", "1")
    time.sleep(1)
    p.send_signal(signal.SIGINT)
    out, _ = p.communicate(timeout=60)
    equal((p.returncode, out), (130, b""), "exit code and text")


@case
def run_on_a_terminal(t):
    tty = t.terminal("run", t.model, "-p", "Once", "-n", "8", "--temp", "0", *ENDLESS)
    equal(tty.wait(), 0, "exit code")
    check(b"stop: length" in tty.seen and b"\x1b[2m" in tty.seen, f"shown {tty.seen!r}")
    for env in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        tty = t.terminal(
            "run", t.model, "-p", "Once", "-n", "8", "--temp", "0", *ENDLESS, env=t.env(**env)
        )
        equal(tty.wait(), 0, "exit code")
        check(b"\x1b[" not in tty.seen, f"escape sequences with {env}: {tty.seen!r}")
    tty = t.terminal("run", t.model, "-n", "8")
    equal(tty.wait(), 64, "exit code without any prompt")


@case
def control_characters_are_shown_on_a_terminal_only(t):
    # <0x1B> is byte token 27 of this vocabulary, three after the special ones.
    args = ("run", t.model, "-p", "x", "-n", "3", "--temp", "0", "--logit-bias", "30=1000")
    equal(t.ok(*args), b"\x1b\x1b\x1b", "text in a pipe")
    tty = t.terminal(*args, env=t.env(NO_COLOR="1"))
    equal(tty.wait(), 0, "exit code")
    check(b"\x1b" not in tty.seen, f"shown {tty.seen!r}")
    check("␛␛␛".encode() in tty.seen, f"shown {tty.seen!r}")


@case
def file_content_is_shown_safely(t):
    path = t.file(
        "escape.gguf", with_string_key(t.model, "general.evil", "a\x1b[31mb\x7f\u009b\u202ec")
    )
    tty = t.terminal("inspect", path)
    equal(tty.wait(), 0, "exit code")
    check(b"\x1b" not in tty.seen and "\u009b".encode() not in tty.seen, "raw control characters")
    check("a␛[31mb␡\\u009b\\u202ec".encode() in tty.seen, f"shown {tty.seen[:3000]!r}")
    check(b"a\x1b[31mb" in t.ok("inspect", path), "a pipe gets other bytes than the file holds")


if __name__ == "__main__":
    sys.exit(main(sys.argv))
