"""Tests of tenon-bench: bytes of both sides, devices, placements; imported by test_bench.py."""

import csv
import io
import json
import os
import re
import subprocess

import cli_lib
from bench_lib import finite
from cli_lib import case, check, equal

# ---- bytes --------------------------------------------------------------------------------------


def inspected(t, model):
    tenon = [t.path.removesuffix("-bench"), "inspect", model, "--json"]
    j = json.loads(subprocess.run(tenon, capture_output=True, check=True).stdout)
    keys = {k.split(".", 1)[1]: v["value"] for k, v in j["metadata"].items() if "value" in v}
    return keys, [x for x in j["tensors"] if len(x["shape"]) > 1]


def read_weights(keys, tensors):
    """Bytes of (layers' matrices with the chosen experts only, those of the last layer behind its KV,
    the head, one row of the embedding)."""
    layers = tail = 0
    for x in tensors:
        if x["name"].startswith("blk."):
            expert = len(x["shape"]) > 2
            read = x["bytes"] * keys["expert_used_count"] // x["shape"][2] if expert else x["bytes"]
            layers += read
            last = x["name"].startswith(f"blk.{keys['block_count'] - 1}.")
            tail += read if last and not re.search(r"attn_[qkv]\.", x["name"]) else 0
    by_name = {x["name"]: x for x in tensors}
    embd = by_name["token_embd.weight"]
    return layers, tail, by_name.get("output.weight", embd)["bytes"], embd["bytes"] // embd["shape"][1]


def read_kv(keys, lengths, n=1):
    """F16 bytes of KV read by evaluations of n tokens that end at these lengths; of sliding windows
    those of n windows. In the last layer only the last token of all looks back."""
    window, period = keys.get("attention.sliding_window"), 6
    position = keys["attention.head_count_kv"] * 2
    position *= keys["attention.key_length"] + keys["attention.value_length"]
    total = 0
    for layer in range(keys["block_count"]):
        local = window and layer % period != period - 1
        last = layer == keys["block_count"] - 1 and n > 1
        span = window and window + (0 if last else n - 1)
        for end in lengths[-1:] if last else lengths:
            total += position * (min(end, span) if local else end)
    return total


def check_bytes(t, arch, *more):
    """Of 8 prompt tokens in batches of 4, and of 4 generated ones, each behind 40 others."""
    model = os.path.join(t.data, f"arch/{arch}/model-f16.gguf")
    keys, tensors = inspected(t, model)
    layers, tail, head, row = read_weights(keys, tensors)
    args = (model, "-p", "8", "-n", "4", "-b", "4", "-d", "40", "-r", "2", "--warmup", "0", "-o", "json")
    r = json.loads(t.ok(*args, *more))
    pp, tg = r["results"]
    equal(tg["weight_bytes_per_token"], layers + head + row, f"{arch}: weights of a token")
    equal(tg["kv_bytes_per_token"], read_kv(keys, (41, 42, 43, 44)) / 4, f"{arch}: KV of a token")
    equal(pp["kv_bytes_per_token"], read_kv(keys, (44, 48), 4) / 8, f"{arch}: KV of a prompt")
    if not keys.get("expert_count"):
        want = (2 * layers - tail + head + 8 * row) / 8
        equal(pp["weight_bytes_per_token"], want, f"{arch}: weights of a prompt")
    for x in r["results"]:
        total = x["weight_bytes_per_token"] + x["kv_bytes_per_token"]
        parts = x["host"]["bytes_per_token"] + x["device"]["bytes_per_token"]
        check(abs(parts / total - 1) < 1e-9, f"{arch}: {parts} bytes of both sides, not {total}")
    return keys, tensors, pp, tg


def check_flop(pp, keys, tensors, arch):
    """Weights that a token of a prompt is multiplied with."""
    flop = 0
    for x in tensors:
        last = x["name"].startswith(f"blk.{keys['block_count'] - 1}.")
        if not x["name"].startswith("blk.") or last and not re.search(r"attn_[qkv]", x["name"]):
            continue
        used = keys["expert_used_count"] if len(x["shape"]) > 2 else 1
        flop += 2 * x["shape"][0] * x["shape"][1] * used
    near = pp["tflop_per_second"] * 1e12 / pp["median"] / flop
    check(flop > 0 and abs(near - 1) < 1e-6, f"{arch}: {near} of {flop} flop a token")


@case
def bytes_are_those_of_the_model(t):
    """Worked out from the header: a dense model, one of experts, sliding windows."""
    for arch in ("llama3", "qwen3moe", "gemma3"):
        keys, tensors, pp, tg = check_bytes(t, arch)
        tied = all(x["name"] != "output.weight" for x in tensors)
        want = sum(
            4 * (x["shape"][0] + x["shape"][1]) * (keys["expert_used_count"] if len(x["shape"]) > 2 else 1)
            for x in tensors
            if tied or x["name"] != "token_embd.weight"
        )
        equal(tg["activation_bytes_per_token"], want, f"{arch}: activations")
        check_flop(pp, keys, tensors, arch)


@case
def bytes_on_both_sides(t):
    """As many as on one side, wherever they are read."""
    need_emulated(t)
    for arch in ("llama3", "qwen3moe", "gemma3"):
        _, _, _, tg = check_bytes(t, arch, "--device", "emu", "--place", "ffn_=host")
        check(tg["host"]["bytes_per_token"] > 0 and tg["device"]["bytes_per_token"] > 0, f"{tg}")


# ---- predictions --------------------------------------------------------------------------------

SHAPE, CARD = "llama-8b:q4_k_m", ("--hardware", "rtx3060-ddr4", "--vram", "4G")


def planned(t, *more):
    """What tenon plan says about the same request in a context of the same size."""
    tenon = t.path.removesuffix("-bench")
    command = [tenon, "plan", SHAPE, *CARD, "--ctx", "2688", "--json", *more]
    return subprocess.run(command, capture_output=True, check=True).stdout


@case
def placements_are_predicted_as_planned(t):
    args = ("--synthetic", SHAPE, *CARD, "--placements", "layers,ffn-host,auto", "-d", "0,2048")
    r = json.loads(t.ok(*args, "-o", "json"))
    rows = {(row["parameters"]["placement"], row["test"]): row for row in r["results"]}
    equal(len(rows), 12, "rows")
    for depth, end in ((0, ""), (2048, " @ d2048")):
        plan = json.loads(planned(t, "--for", f"512+128@{depth}"))
        wants = {name: plan["candidates"][name] for name in ("layers", "ffn-host")}
        wants["auto"] = plan["predicted"]
        for name, want in wants.items():
            pp, tg = rows[name, "pp512" + end], rows[name, "tg128" + end]
            equal((pp["label"], tg["label"]), ("simulated", "simulated"), "labels")
            equal(tg["parameters"]["vram"], "4G", "vram")
            for got, wanted in (
                (pp["tokens_per_second"], want["prefill_tok_s"]),
                (tg["tokens_per_second"], 1000 / want["step_ms"]),
            ):
                check(abs(got / wanted - 1) < 1e-6, f"{name}{end}: {got}, planned {wanted}")
    equal(len(r["model"]["plans"]), 6, "plans in the report")
    path = t.file("plans.json", json.dumps(r).encode())
    compared = json.loads(t.run("--compare", path, path, "-o", "json")[1])["rows"]
    equal([row["ratio"] for row in compared], [1] * 12, "ratios of a report to itself")
    table = t.ok(*args).decode()
    check("simulated: predicted for rtx3060-ddr4, not measured" in table, f"no label:\n{table}")
    check("GB/s" not in table and "95 %" not in table, f"columns of what was not measured:\n{table}")


@case
def memory_of_every_device(t):
    """--vram limits each device of a profile."""
    both = ("--hardware", "2x-rtx3090-ddr4")
    args = ("--synthetic", SHAPE, *both, "--vram", "2G", "--placements", "auto", "-o", "json")
    pp, tg = json.loads(t.ok(*args))["results"]
    command = [t.path.removesuffix("-bench"), "plan", SHAPE, *both, "--vram", "2G,2G", "--ctx", "640"]
    command += ["--for", "512+128@0", "--json"]
    want = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["predicted"]
    for got, wanted in ((pp, want["prefill_tok_s"]), (tg, 1000 / want["step_ms"])):
        check(abs(got["tokens_per_second"] / wanted - 1) < 1e-6, f"{got['tokens_per_second']}, planned {wanted}")


@case
def placements_by_hand(t):
    rules = t.file("rules", b"# all of it\n\nffn_=host\nattn_=device\n")
    more = ("--for", "512+128@2048", "--place", "ffn_=host,attn_=device")
    plan = t.file("plan.json", planned(t, *more))
    common = ("--synthetic", SHAPE, *CARD, "-d", "2048", "-o", "json", "--placements")
    r = json.loads(t.ok(*common, f"manual:{rules},manual:{plan},auto,ffn-host"))
    rates = [row["tokens_per_second"] for row in r["results"]]
    same = all(abs(a / b - 1) < 1e-6 for a, b in zip(rates[0:2], rates[2:4]))
    check(same, f"rules, and a replayed plan made of the same: {rates}")
    check(rates[0] < rates[4] and abs(rates[1] / rates[7] - 1) < 0.1, f"rules: {rates}")
    for name, word in ((t.file("none", b"# nothing"), "neither"), ("no/such/file", "no/such/file")):
        r = json.loads(t.ok(*common, f"manual:{name},auto"))
        check(word in r["results"][0]["error"] and not r["results"][2]["error"], f"{r['results'][0]}")


@case
def placements_that_do_not_fit(t):
    common = ("--synthetic", SHAPE, "--hardware", "rtx3060-ddr4", "-d", "8192")
    args = (*common, "--vram", "500M,8G", "--placements", "ffn-host", "-o", "json")
    rows = json.loads(t.ok(*args))["results"]
    check(all("does not fit" in row["error"] for row in rows[:2]), f"{rows[0]['error']}")
    check(not rows[2]["error"] and rows[2]["parameters"]["vram"] == "8G", f"{rows[2]}")
    path = os.path.join(t.dir, "bars.svg")
    t.ok(*common, "--vram", "6G", "--placements", "layers,auto", "--svg", path)
    text = open(path).read()
    check("tg128, layers" in text and "tg128, auto" in text, "no bar for each placement")


def need_emulated(t):
    if t.run(t.model, "--device", "emu", "-p", "1", "-n", "0", "-r", "1", "--warmup", "0")[0]:
        raise cli_lib.Skip("no emulated device here")


def check_sides(row):
    """Both sides' bytes, and the time that the busier one needs at its limit."""
    host, device = row["host"], row["device"]
    total = row["weight_bytes_per_token"] + row["kv_bytes_per_token"]
    parts = host["bytes_per_token"] + device["bytes_per_token"]
    check(abs(parts / total - 1) < 1e-6, f"bytes of both sides: {parts}, not {total}")
    shares = [side["percent_of_limit"] or 0 for side in (host, device)]
    near = max(shares) / row["percent_of_limit"]
    check(abs(near - 1) < 1e-6, f"{row['percent_of_limit']} % of the limit, sides {shares}")


@case
def emulated_device(t):
    need_emulated(t)
    args = ("-r", "1", "--no-hash", "--device", "emu", "--place", "ffn_=host", "--place", "output=host")
    r = t.report(*args)
    for row in r["results"]:
        equal((row["label"], row["error"]), ("emulated", None), "label and error")
        equal(row["parameters"]["placement"], "ffn_=host,output=host", "placement")
        check(row["hops_per_token"] > 0, f"no hops: {row['hops_per_token']}")
        check(row["join_wait_seconds_per_token"] > 0, f"{row['test']} waits for nobody")
        check(row["host"]["bytes_per_token"] > 0 and row["device"]["bytes_per_token"] > 0, f"{row}")
        equal(finite(row["percent_of_device_f16"]), row["test"].startswith("pp"), "share of the F16 peak")
        check(finite(row["device_memory_bytes"]) and row["device_memory_bytes"] > 1e5, f"{row}")
        check_sides(row)
    e = r["environment"]
    equal([d["emulated"] for d in e["engine"]["devices"]], [True], "the device in the environment")
    check(e["device_read_peak_gb_per_second"] > 0, "the device's peak was not measured")
    check(e["device_f16_tflop_per_second"] > 0, "the device's F16 peak was not measured")
    report, picture = os.path.join(t.dir, "emulated.json"), os.path.join(t.dir, "emulated.svg")
    table = t.ok(*t.quick(*args, "--svg", picture)).decode()
    with open(picture) as f:
        check(", emulated<" in f.read(), "the drawing says nothing of the emulated device")
    with open(report, "w") as f:
        json.dump(r, f)
    compared = t.ok("--compare", report, report).decode()
    equal(compared.count(", emulated"), len(r["results"]), f"labels in\n{compared}")
    for word in ("device emu (emulated), reads ", "multiplies F16 at ", "TFLOP/s", "% F16", "device MiB", "hops/token", "wait ms/token"):
        check(word in table, f"{word} is not in the table:\n{table}")


@case
def throttled_device(t):
    need_emulated(t)
    rate = cli_lib.slow_rate(t)
    label = f"emulated, throttled to {rate} GB/s"
    args = ("-r", "1", "--no-hash", "--device", "emu", "--throttle", rate)
    r = t.report(*args)
    equal([(row["label"], row["error"]) for row in r["results"]], [(label, None)] * len(r["results"]), "labels")
    device = r["environment"]["engine"]["devices"][0]
    check(device["slower"] > 1 and "%g" % device["throttle_gb_per_second"] == rate, f"{device}")
    report, picture = os.path.join(t.dir, "slow.json"), os.path.join(t.dir, "slow.svg")
    table = t.ok(*t.quick(*args, "--svg", picture)).decode()
    check(f"device emu ({label})" in table, f"no label in\n{table}")
    check(f", {label}<" in open(picture).read(), "the drawing does not say it")
    with open(report, "w") as f:
        json.dump(r, f)
    compared = t.ok("--compare", report, report).decode()
    equal(compared.count(", " + label), len(r["results"]), f"labels in\n{compared}")
    t.fails(64, t.model, "--throttle", "1", words=("--throttle needs a --device",))


def check_csv_regret(t, args):
    """The requests end the CSV, each beside the rows it is made of."""
    rows = list(csv.DictReader(io.StringIO(t.ok(*t.quick(*args, "-o", "csv")).decode())))
    measured, requests = rows[:16], rows[16:]
    names = [f"8+4 @ d{depth}" for depth in (0, 0, 40, 40)]
    equal([row["test"] for row in requests], names, "requests in CSV")
    check(all(row["regret"] == "" for row in measured), "regret of a single row")
    for row in requests:
        keys = [k for k in row if k.startswith("parameters.") and not k.startswith("parameters.n_")]
        parts = [x for x in measured if x["median"] and all(x[k] == row[k] for k in keys)]
        equal([x["test"][:2] for x in parts], ["pp", "tg"], f"parts of {row['test']}")
        seconds = 8 / float(parts[0]["median"]) + 4 / float(parts[1]["median"])
        check(abs(float(row["median"]) / seconds - 1) < 1e-6, f"{row['median']} s, not {seconds}")
        equal((row["unit"], row["tokens_per_second"], row["host.bytes_per_token"]), ("s", "", ""), "unit")
        alike = [float(x["median"]) for x in requests if x["test"] == row["test"]]
        want = float(row["median"]) / min(alike) - 1
        check(abs(float(row["regret"]) - want) < 1e-6, f"regret {row['regret']}, not {want}")


@case
def placements_are_carried_out(t):
    need_emulated(t)
    more = ("--device", "emu", "--hardware", "rtx3060-ddr4", "--vram", "20K,40M")
    args = (*more, "--no-hash", "-r", "1", "-d", "0,40", "--placements", "layers,ffn-host")
    r = t.report(*args)
    rows = r["results"]
    equal(len(rows), 16, "rows")
    check(all("memory" in row["error"] for row in rows[:8]), f"20K: {rows[0]['error']}")
    for row in rows[8:]:
        equal((row["label"], row["error"]), ("emulated", None), "label and error")
        check(row["predicted_tokens_per_second"] > 0, f"no prediction: {row}")
        near = row["measured_over_predicted"] * row["predicted_tokens_per_second"]
        check(abs(near / row["median"] - 1) < 1e-6, "measured over predicted")
        check(0 < row["device_memory_bytes"] <= 40 << 20, f"{row['device_memory_bytes']} bytes")
        split = row["parameters"]["placement"] == "ffn-host"
        equal(row["hops_per_token"] > 1, split and row["test"].startswith("tg"), f"hops of {row}")
        equal(row["parameters"]["vram"], "40M", "device memory")
    plans = [name for name in r["model"]["plans"] if ", 40M, " in name]
    equal(len(plans), 4, "plans in the report, one a placement and depth")
    check_csv_regret(t, args)
    equal([(x["request"], x["vram"]) for x in r["regret"]], [("8+4 @ d0", "40M"), ("8+4 @ d40", "40M")], "regret")
    best = {}
    for row in rows[8:]:
        p, depth = row["parameters"], row["parameters"]["depth"]
        seconds = (p["n_prompt"] or p["n_gen"]) / row["median"]
        best.setdefault(depth, {}).setdefault(p["placement"], []).append(seconds)
    for x, (_, placements) in zip(r["regret"], sorted(best.items())):
        least = min(map(sum, placements.values()))
        equal(x["placements"][x["fastest"]]["regret"], 0, "regret of the fastest")
        for name, seconds in placements.items():
            of = [rows_at for rows_at in x["placements"][name]["rows"]]
            equal([r["results"][i]["test"][:3] for i in of], ["pp8", "tg4"], "rows of a request")
            got, want = x["placements"][name]["regret"], sum(seconds) / least - 1
            check(abs(got - want) < 1e-6, f"regret of {name}: {got}, not {want}")
    lines = t.ok(*t.quick(*args, "-o", "jsonl")).splitlines()
    last = json.loads(lines[-1])["regret"]
    equal([x["request"] for x in last], [x["request"] for x in r["regret"]], "regret in JSON lines")
    table = t.ok(*t.quick(*args, "--vram", "40M")).decode()
    check("| 8+4 @ d40 | 40M | ffn-host |" in table and "predicted" in table, f"{table}")


# A host that reads its KV cache slowly beside a device that reads weights slowly.
def odd_machine(t):
    device = {
        "name": "a slow card", "memory_bytes": 1 << 31, "reserved_bytes": 0,
        "matvec_gb_s": {"other": 0.1}, "kv_gb_s": {"f16": 10, "f32": 10, "q8_0": 10},
        "prefill_tflops": {"32": 0.001, "512": 0.001}, "op_us": 0, "pinned_gb_s": 10, "pageable_gb_s": 10,
        "crossing_us": 10, "crossing_p95_us": 10,
    }  # fmt: skip
    host = {
        "name": "a slow host", "memory_bytes": 1 << 34, "reserved_bytes": 0,
        "matvec_gb_s": {"other": 100}, "kv_gb_s": {"f16": 0.05, "f32": 0.05, "q8_0": 0.05},
        "prefill_tflops": {"32": 1, "512": 1}, "op_us": 0, "cores": 2, "threads": 2, "scaling": [],
    }  # fmt: skip
    beside = ("host_beside_copy", "copy_beside_host", "host_beside_device", "device_beside_host")
    profile = {
        "format": "tenon-profile-1", "name": "odd", "label": "made up", "key": "", "host": host,
        "devices": [device], "contended": dict.fromkeys(beside, 1), "sources": {},
    }  # fmt: skip
    return t.file("odd.json", json.dumps(profile).encode())


@case
def another_plan_at_another_depth(t):
    """What the rows read is what the plan of their own depth says, not that of the depth before."""
    need_emulated(t)
    model = os.path.join(t.data, "arch/llama3/model-f16.gguf")
    args = (model, "-p", "8", "-n", "4", "-d", "0,40,400", "-r", "1", "--warmup", "0", "-o", "json")
    more = ("--device", "emu", "--hardware", odd_machine(t), "--vram", "40M", "--placements", "auto")
    r = json.loads(t.ok(*args, *more))
    used = {}
    for name, plan in r["model"]["plans"].items():
        used[int(re.search("@ d([0-9]+)", name)[1])] = any(u["share"] for u in plan["units"])
    equal(used, {0: False, 40: False, 400: True}, "depths at which the plan uses the device")
    for row in r["results"]:
        depth, there = row["parameters"]["depth"], row["device"]["bytes_per_token"] > 0
        equal((row["error"], there), (None, used[depth]), f"error and device of {row['test']}")


@case
def placements_without_a_device(t):
    code, out, _ = t.run(*t.quick("--device", "none-such", "--placements", "layers,auto", "-o", "json"))
    rows = json.loads(out)["results"]
    equal((code, len(rows)), (64, 4), "exit code and rows")
    equal([row["parameters"]["placement"] for row in rows], ["layers", "layers", "auto", "auto"], "rows")
