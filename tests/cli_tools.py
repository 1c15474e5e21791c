"""The tools: inspect, tokenize, logits, perplexity."""

import array
import json
import math
import os
import re
import struct

from cli_lib import case, check, equal, golden, inspect, on_device, slow_rate


@case
def inspect_shows_the_header(t):
    j = inspect(t, t.model)
    equal(
        j["metadata"]["general.architecture"], {"kind": "string", "value": "llama"}, "architecture"
    )
    equal(j["metadata"]["llama.block_count"]["value"], 3, "block_count")
    tokens = j["metadata"]["tokenizer.ggml.tokens"]
    equal(
        (tokens["kind"], tokens["element"], tokens["n"], len(tokens["values"])),
        ("array", "string", 384, 384),
        "tokens",
    )
    equal(j["n_params"], golden(t)["n_params"], "n_params")
    embd = next(x for x in j["tensors"] if x["name"] == "token_embd.weight")
    equal((embd["type"], embd["shape"], embd["bytes"]), ("F16", [64, 384], 49152), "token_embd")
    text = t.ok("inspect", t.model).decode()
    for what in ('general.architecture (string) = "llama"', "token_embd.weight", "64 x 384"):
        check(what in text, f"{what!r} is not in the text")
    last = max(x["offset"] for x in j["tensors"])
    with open(t.model, "rb") as f:
        head = f.read(last)  # the header alone, as of a file still being copied
    equal(
        inspect(t, t.file("head.gguf", head[:20000]))["tensors"],
        j["tensors"],
        "tensors of a bare header",
    )


@case
def inspect_reads_the_header_alone(t):
    """Of a file of 400 GB, all of it hole but the header: reading it would outlast the time limit."""
    name, size = b"blk.0.ffn_up.weight", 400 * 2**30
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 1)
    head += struct.pack("<Q", 20) + b"general.architecture" + struct.pack("<IQ", 8, 5) + b"llama"
    head += struct.pack("<Q", len(name)) + name + struct.pack("<IQQIQ", 2, 4096, size // 2 // 4096, 1, 0)
    path = t.file("sparse.gguf", head)
    start = (len(head) + 31) // 32 * 32
    os.truncate(path, start + size)
    j = inspect(t, path)
    equal((j["file_bytes"], j["tensor_bytes"]), (start + size, size), "bytes")
    text = t.ok("inspect", path).decode()
    check("blk.0.ffn_up.weight" in text, text)
    os.truncate(path, start + size - 1)  # still to be shown: it may be on its way
    equal(inspect(t, path)["tensor_bytes"], size, "bytes of a file that is not complete")


@case
def tokenize_gives_the_reference_ids(t):
    tests = golden(t)["tokenizer_tests"]["tests"]
    for x in tests:
        ids = t.ok("tokenize", t.model, "--parse-special", stdin=x["text"].encode())
        equal([int(i) for i in ids.split()], x["tokens"], f"ids of {x['text']!r}")
        check(ids.endswith(b"\n") and ids.count(b"\n") == 1, f"not one line: {ids!r}")
    lines = "".join(json.dumps(x["text"]) + "\n" for x in tests).encode()
    out = t.ok("tokenize", t.model, "--parse-special", "--json", stdin=lines)
    equal(
        [json.loads(line) for line in out.splitlines()],
        [x["tokens"] for x in tests],
        "ids of --json",
    )


@case
def tokenize_options(t):
    bos = t.ok("tokenize", t.model, "--add-special", stdin=b"x").split()[0]
    equal(bos, b"1", "first id with --add-special")
    plain = t.ok("tokenize", t.model, "-p", "</s>").split()
    special = t.ok("tokenize", t.model, "-p", "</s>", "--parse-special").split()
    check(b"2" not in plain and b"2" in special, f"</s> gives {plain} and, parsed, {special}")
    equal(t.ok("tokenize", t.model, stdin=b""), b"\n", "ids of nothing")
    equal(t.ok("tokenize", t.model, "--jsonl", stdin=b""), b"", "lines of nothing")
    equal(t.ok("tokenize", t.model, "--jsonl", stdin=b'""'), b"[]\n", "ids of an empty string")
    with_nul = json.loads(t.ok("tokenize", t.model, "--jsonl", stdin=b'"a\\u0000b"\n'))
    equal(
        with_nul,
        [int(i) for i in t.ok("tokenize", t.model, stdin=b"a\0b").split()],
        "ids with a zero byte",
    )
    t.fails(65, "tokenize", t.model, "--jsonl", stdin=b'"a"\n5\n', words=("line 2",))
    t.fails(65, "tokenize", t.model, "--jsonl", stdin=b'"a\n', words=("line 1",))
    _, _, err = t.run("tokenize", t.model, stdin=b"a\xffb\xfe")
    check(b"2 bytes" in err and b"U+FFFD" in err, f"invalid UTF-8 is not said: {err!r}")


@case
def logits_match_the_reference(t):
    g = golden(t)
    sequence = g["sequences"][0]
    with open(os.path.join(t.data, "arch/llama", sequence["logits_file"]), "rb") as f:
        want = array.array("f", f.read())
    path = os.path.join(t.dir, "logits.f32")
    ids = ",".join(str(i) for i in sequence["tokens"])
    id_file = t.file("ids.txt", ids.replace(",", "\n").encode())
    for args, stdin in (
        (("--tokens", ids), b""),
        (("--tokens", "@" + id_file), b""),
        (("--tokens", "-"), ids.encode()),
        (("--tokens", ids, "-b", "7"), b""),
        (("--tokens", ids, "--exact"), b""),
        (("--tokens", ids, "--load", "map"), b""),
    ):
        t.ok("logits", t.model, *args, "--out", path, stdin=stdin)
        with open(path, "rb") as f:
            got = array.array("f", f.read())
        equal(len(got), len(want), f"number of logits with {args}")
        worst = max(abs(a - b) if abs(a - b) >= 0 else math.inf for a, b in zip(got, want))
        check(worst <= g["tolerance"]["f32_activations"], f"{args}: largest difference {worst}")
    equal(
        t.ok("logits", t.model, "--tokens", ids, "--out", "-"),
        t.ok("logits", t.model, "--tokens", ids, "--out", "-"),
        "a second run on standard output",
    )


@case
def failed_logits_leave_no_file(t):
    path = os.path.join(t.dir, "bad.f32")
    t.fails(64, "logits", t.model, "--tokens", "1,2,99999", "--out", path, words=("99999",))
    check(not os.path.exists(path), "half a file was left")
    t.fails(75, "logits", t.model, "--tokens", "1,2,3", "-c", "2", "--out", path)


@case
def perplexity_of_logits(t):
    """The definition, computed once more here from `tenon logits`."""
    text = ("Once upon a time there was a king who had three daughters. " * 12).encode()
    path = t.file("text.txt", text + b"\n")
    ids = [int(i) for i in t.ok("tokenize", t.model, "--add-special", stdin=text).split()]
    chunk, nll = 64, []
    for c in range(len(ids) // chunk):
        part = [1] + ids[c * chunk + 1 : (c + 1) * chunk]
        raw = t.ok("logits", t.model, "--tokens", ",".join(map(str, part)), "--out", "-")
        rows = array.array("f", raw)
        for i in range(chunk // 2, chunk - 1):
            row = rows[i * 384 : (i + 1) * 384]
            nll.append(math.log(sum(math.exp(x) for x in row)) - row[part[i + 1]])
    mean = sum(nll) / len(nll)
    error = math.sqrt((sum(x * x for x in nll) / len(nll) - mean * mean) / (len(nll) - 1))
    out = t.ok("perplexity", t.model, "--file", path, "--ctx", "64", "--kv", "f32").decode()
    last = re.fullmatch(r"perplexity: ([\d.]+) \+/- ([\d.]+)", out.splitlines()[-1])
    check(last, f"last line of {out!r}")
    got, got_error = float(last.group(1)), float(last.group(2))
    check(abs(got - math.exp(mean)) <= 1e-3 * got, f"perplexity {got}, want {math.exp(mean)}")
    check(
        abs(got_error - math.exp(mean) * error) <= 1e-2 * got_error, f"standard error {got_error}"
    )
    equal(len(out.splitlines()) - 1, len(ids) // chunk, "lines of chunks")
    j = json.loads(
        t.ok("perplexity", t.model, "--file", path, "--ctx", "64", "--kv", "f32", "--kl", "--json")
    )
    check(abs(j["perplexity"] - got) < 1e-3 and 0 <= abs(j["kl"]) < 1e-4, f"{j}")
    t.fails(64, "perplexity", t.model, "--file", path, "--ctx", "100000", words=("--ctx",))


@case
def kv_cache_in_q8_0(t):
    model = os.path.join(t.data, "arch/llama3/model-f16.gguf")  # heads of 32
    ids = ",".join(str(i) for i in golden(t)["sequences"][0]["tokens"][:24])
    logits = ("logits", model, "--tokens", ids, "--out", "-")
    f32, f16, q8_0 = (array.array("f", t.ok(*logits, "--kv", k)) for k in ("f32", "f16", "q8_0"))
    equal(len(q8_0), len(f32), "number of logits")

    def off(x):
        return math.sqrt(sum((a - b) ** 2 for a, b in zip(x, f32)) / len(f32))

    check(0 < 2 * off(f16) < off(q8_0) < 0.15, f"rms: f16 {off(f16)}, q8_0 {off(q8_0)}")
    run = ("run", model, "--raw", "-p", "Once upon a time", "-n", "4", "--temp", "0")
    check(len(t.ok(*run, "--kv", "q8_0")) > 0, "no text")
    words = ("Q8_0", "multiples of 32", "16")  # the heads of t.model
    t.fails(65, "logits", t.model, "--tokens", "1", "--out", "-", "--kv", "q8_0", words=words)
    t.fails(65, "plan", t.model, "--hardware", "rtx3060-ddr4", "--kv", "q8_0", words=words)
    for shell in ("bash", "zsh", "fish"):
        check(b"f16 f32 q8_0" in t.ok("--generate", shell), f"completion of {shell}")


@case
def tensors_go_where_place_says(t):
    ids = ",".join(str(i) for i in golden(t)["sequences"][0]["tokens"][:24])
    logits = ("logits", t.model, "--tokens", ids, "--out", "-")
    want = array.array("f", t.ok(*logits))
    for place in (
        (),
        ("--place", ".*=device"),
        ("--place", ".*=host"),
        ("--place", "ffn_=host"),
        ("--place", "ffn_up=host,attn_v=host", "--place", "output=host", "--vram", "1G"),
    ):
        got = array.array("f", on_device(t, *logits, *place)[0])
        equal(len(got), len(want), f"number of logits with {place}")
        worst = max(abs(a - b) if abs(a - b) >= 0 else math.inf for a, b in zip(got, want))
        check(worst <= 1e-4, f"{place}: largest difference {worst}")
    run = ("run", t.model, "-p", "Once upon a time", "-n", "12", "--temp", "0", "--kv", "f32")
    text, err = on_device(t, *run)
    equal(text, t.ok(*run), "text of run")
    check(b"emulated" in err, f"no label: {err!r}")
    # Without --json the likeliest token alone comes from the device, with it all logits.
    for args, want in ((("--device", "emu", "--place", ".*=device"), True), ((), False)):
        events = [json.loads(line) for line in t.ok(*run, *args, "--json").splitlines()]
        said = "".join(e["text"] for e in events if "text" in e)
        equal(said.rstrip("\n"), text.decode().rstrip("\n"), "text of the events")
        equal(events[-1]["emulated"], want, f"the label with {args}")
    # A device made slow computes the same, and speeds say so.
    rate = slow_rate(t)
    slow = ("--place", ".*=device", "--throttle", rate)
    out, err = on_device(t, *run, *slow)
    equal(out, text, "text with a throttled device")
    check(f"| emulated, throttled to {rate} GB/s".encode() in err, f"no label: {err!r}")
    event = json.loads(on_device(t, *run, *slow, "--json")[0].splitlines()[-1])
    equal(event["label"], f"emulated, throttled to {rate} GB/s", "the label of the event")
    t.fails(64, *run, "--device", "emu", "--throttle", "1000000", words=("cannot be slowed",))
    t.fails(64, *run, "--device", "none", "--throttle", "1", words=("--throttle", "no device"))
    # The emulated device is used only where it was asked for.
    check(b"emulated" not in t.run(*run)[2], "an emulated device was chosen")
    path = t.file("place.txt", b"Once upon a time there was a king who had a daughter. " * 12)
    perplexity = ("perplexity", t.model, "--file", path, "--ctx", "64", "--kv", "f32", "--json")
    a, b = json.loads(on_device(t, *perplexity)[0]), json.loads(t.ok(*perplexity))
    check(abs(a["perplexity"] - b["perplexity"]) < 1e-3, f"perplexity: {a}, on the host {b}")
    equal((a["emulated"], b["emulated"]), (True, False), "labels of perplexity")
    words = on_device(t, *perplexity[:-1])[0].decode().splitlines()[-1]
    check(words.endswith(" (emulated device)"), f"no label: {words!r}")
    chat = ("chat", t.model, "--template", "chatml", "--temp", "0", "-n", "8", "--kv", "f32")
    out, err = on_device(t, *chat, "--place", "ffn_=host", stdin=b"hello\n/stats\n")
    equal(out, t.ok(*chat, stdin=b"hello\n"), "answer of chat")
    check(b"last answer (emulated): prompt" in err, f"/stats without a label: {err!r}")


@case
def two_devices_serve_a_model(t):
    ids = ",".join(str(i) for i in golden(t)["sequences"][0]["tokens"][:24])
    logits = ("logits", t.model, "--tokens", ids, "--out", "-", "-c", "64", "-b", "16")
    want = array.array("f", t.ok(*logits))
    on_device(t, *logits, "--kv", "f32")  # skips where there is none
    machine = ("--hardware", "rtx3060-ddr4", "--place", ".*=device", "--vram", "872K,852K")
    code, out, err = t.run(*logits, "--kv", "f32", *machine, "--device", "emu:2")
    equal(code, 0, f"exit code: {err!r}")
    check(b"on the devices (layers 0 to 1 by device 0, 2 to 2 by device 1)" in err, f"said {err!r}")
    got = array.array("f", out)
    equal(len(got), len(want), "number of logits")
    worst = max(abs(a - b) if abs(a - b) >= 0 else math.inf for a, b in zip(got, want))
    check(worst <= 1e-4, f"largest difference {worst}")


@case
def wrong_places_and_devices_are_said(t):
    logits = ("logits", t.model, "--tokens", "1,2", "--out", "-")
    _, err = on_device(t, *logits, "--place", "blk.9.nothing=host")
    check(b"'blk.9.nothing' matches no tensor" in err, f"stderr {err!r}")
    device = (*logits, "--device", "emu")
    everything = ("--place", ".*=device")
    t.fails(64, *device, *everything, "--vram", "100K", words=("--place", "--vram", "MiB"))
    code, _, err = t.run(*device, "--hardware", "rtx3060-ddr4", "--ram", "100K")
    equal((code, err.count(b"it would with")), (71, 1), f"remedies of a run: {err!r}")
    check(b"MiB are missing" in err, f"{err!r}")
    t.fails(64, *device, "--vram", "lots", words=("--vram", "lots"))
    t.fails(64, *device, "--vram", "0", words=("--vram",))
    t.fails(64, *device, "--place", "ffn_=gpu", words=("ffn_=gpu",))
    t.fails(64, *logits, "--device", "abacus", words=("abacus",))
    t.fails(64, *logits, "--place", ".*=host", words=("--place", "--device"))
    t.fails(64, *logits, "--vram", "1G", words=("--vram", "--device"))


@case
def a_plan_is_carried_out(t):
    """The planner's answer for a shipped machine, from the profile and from what `plan` printed."""
    ids = ",".join(str(i) for i in golden(t)["sequences"][0]["tokens"][:24])
    logits = ("logits", t.model, "--tokens", ids, "--out", "-", "-c", "64")
    want = array.array("f", t.ok(*logits))
    machine = ("--hardware", "rtx3060-ddr4", "-c", "64", "--kv", "f32")
    plan = t.file("plan.json", t.ok("plan", t.model, *machine, "--json"))
    device_none = (*logits, "--device", "none")
    for args in (
        (),
        ("--hardware", "rtx3060-ddr4"),
        ("--hardware", "rtx3060-ddr4", "--place", "ffn_up=host"),
        ("--hardware", "rtx3060-ddr4", "--plan", plan),
        ("--plan", plan),
    ):
        out, err = on_device(t, *logits, "--kv", "f32", *args)
        check(b"plan " in err and b"rtx3060-ddr4" in err, f"{args}: stderr {err!r}")
        check(b"no tensor matches" not in err, f"{args}: stderr {err!r}")
        got = array.array("f", out)
        equal(len(got), len(want), f"number of logits with {args}")
        worst = max(abs(a - b) if abs(a - b) >= 0 else math.inf for a, b in zip(got, want))
        check(worst <= 1e-4, f"{args}: largest difference {worst}")
    _, err = on_device(t, *logits, "--vram", "100K")
    check(b"plan " in err, f"without rules a plan is made: {err!r}")
    t.fails(64, *device_none, "--vram", "1G", words=("--vram", "--device"))
    t.fails(64, *logits, "--hardware", "rtx3060-ddr4", words=("--hardware", "--device"))
    t.fails(64, *logits, "--plan", plan, words=("--plan", "--device"))
