"""tenon plan: from a header to text, JSON, a picture and back."""

import json
import os
import re
import xml.etree.ElementTree

from cli_lib import ENDLESS, TALK, case, check, equal, on_device

ON = ("--hardware", "rtx3090-ddr5", "--ctx", "32k")
BIG = "llama-70b:q4_k_m"


def plan(t, *args):
    return json.loads(t.ok("plan", *args, "--json"))


@case
def plan_tells_where_and_why(t):
    out = t.ok("plan", BIG, *ON).decode()
    for word in ("rtx3090-ddr5", "assumed", "layers", "ffn-host", "all-host", "prices", "MiB"):
        check(word in out, f"{word} is not in the text")
    for word in ("39.6 GiB of weights", "plan: optimum, proven to be the best;"):
        check(word in out, out[:400])
    small = t.ok("plan", t.model, "--hardware", "rtx3060-ddr4").decode()
    check("0.306 MiB of weights" in small, small[:400])
    check("plan: layers, 0.0 % above the optimum, which is proven\n" in small, small[:400])
    check("1 GiB more device memory gains nothing" in small, small[-400:])
    here, there = re.search(r"device speed: ([\d.]+) instead of ([\d.]+) ms/token", out).groups()
    check(float(here) < float(there), f"{here} instead of {there}")
    err = t.run("plan", t.model, "--ctx", "99k")[2]
    check(b"--ctx 101376 is more than the" in err, f"{err!r}")
    rows = re.findall(r"(?m)^(\d+|head) +(device|host)? +[#.]{40}  \d+/\d+", out)
    equal([r[0] for r in rows], [str(i) for i in range(80)] + ["head"], "rows of layers")


@case
def plan_obeys_overrides(t):
    j = plan(t, BIG, *ON, "--place", "ffn_up=host,blk\\.0\\.=device", "--place", "attn=device")
    shares = {
        u["match"]: u["where"] for u in j["units"] if u["layer"] == 5 and u["part"] == "tensor"
    }
    equal(shares.get("^blk\\.5\\.ffn_up\\.weight$"), "host", "blk.5.ffn_up")
    attn = [u for u in j["units"] if u["layer"] == 5 and u["part"] == "attn"]
    equal(attn[0]["where"], "device", "attention of layer 5")
    rules = "ffn_up=host,ffn_(gate|down)=device,^output=host"
    units = plan(t, t.model, "--hardware", "rtx3060-ddr4", "--place", rules)["units"]
    ffn = [u for u in units if u["layer"] == 1 and u["part"] == "ffn"][0]
    check(ffn["where"] == "split" and abs(ffn["share"] - 2 / 3) < 1e-6, f"{ffn}")
    equal([u["reason"] for u in units if u["part"] == "head"], ["an override says so"], "head")
    text = t.ok("plan", BIG, *ON, "--place", "ffn=split:0.2").decode()
    check("  all-host     does not fit, or not with these rules\n" in text, text[:900])
    code, _, err = t.run("plan", BIG, *ON, "--place", "ffn_dwn=host")
    equal(code, 0, "exit code")
    check(b"warning" in err and b"near: ffn_down" in err, f"no near name in {err!r}")


@case
def plan_counts_a_q8_0_cache(t):
    plans = (plan(t, BIG, *ON, "--kv", kv) for kv in ("f16", "q8_0"))
    full = [sum(m["kv_full_bytes"] for m in [j["host"], *j["devices"]]) for j in plans]
    check(full[0] > 0 and full[1] * 64 == full[0] * 34, f"bytes of a full cache: {full}")
    price = "KV q8_0 instead of f16 = "
    prices = t.ok("plan", BIG, *ON).decode()
    check(price in prices and "if this build" not in prices, f"prices: {prices}")
    check(price not in t.ok("plan", BIG, *ON, "--kv", "q8_0").decode(), "a price of what it has")
    odd = t.ok("plan", t.model, *ON).decode()  # heads of 16
    check(price not in odd, f"the price of a cache that cannot be: {odd}")


@case
def plan_replays_its_json(t):
    first = t.ok("plan", BIG, *ON, "--json")
    path = t.file("plan.json", first)
    moving, b = json.loads(first), plan(t, BIG, *ON, "--plan", path)
    equal((b["chosen"], b["warnings"]), ("file", []), "chosen")
    for key in ("predicted", "units", "device_bytes", "host_bytes", "elastic", "live"):
        equal(b[key], moving[key], key)
    text = t.ok("plan", BIG, *ON, "--plan", path).decode()
    check("not in a replay by chat and run" in text, f"text: {text}")
    # Without moves its units are where a full context leaves them, and that is predicted.
    stays = plan(t, BIG, *ON, "--plan", path, "--fixed")
    a, b = moving["predicted"]["decode_tok_s"], stays["predicted"]["decode_tok_s"]
    check(moving["elastic"] and not stays["elastic"], "what moves")
    check(b["32768"] == a["32768"] and b["0"] < 0.8 * a["0"], f"moving {a}, staying {b}")
    check(stays["predicted"]["request_s"] > moving["predicted"]["request_s"], "the request")
    check(len(stays["warnings"]) == 1 and "32768 tokens" in stays["warnings"][0], stays["warnings"])
    again = plan(t, BIG, *ON, "--plan", t.file("stays.json", json.dumps(stays).encode()))
    equal((again["units"], again["predicted"]), (stays["units"], stays["predicted"]), "again")
    t.fails(64, "plan", "llama-8b:q4_k_m", *ON, "--plan", path, words=("plan.json", "this is"))
    t.fails(64, "plan", BIG, "--hardware", "rtx4090-ddr5", "--plan", path, words=("rtx4090-ddr5",))
    t.fails(64, "plan", BIG, *ON, "--plan", path, "--vram", "4G", words=("--plan", "--vram"))
    few = t.ok("plan", BIG, *ON, "-t", "2", "--load", "map", "--json")
    path2, two = t.file("two.json", few), json.loads(few)
    equal((two["threads"], moving["threads"], two["mapped"]), (2, 8, True), "threads, mapped")
    check(two["predicted"]["request_s"] > moving["predicted"]["request_s"], "fewer threads")
    again = plan(t, BIG, *ON, "--load", "map", "--plan", path2)
    equal(again["predicted"], two["predicted"], "predictions with its threads")
    t.fails(64, "plan", BIG, *ON, "--plan", path2, words=("--load map", "not given"))
    t.fails(64, "plan", BIG, *ON, "--plan", path, "-t", "4", words=("--threads 8", "--threads 4"))
    t.fails(
        64, "plan", BIG, *ON, "--plan", path, "--place", "a=host", words=("--plan", "--place")
    )
    t.fails(65, "plan", BIG, *ON, "--plan", t.file("broken.json", first[:999]), words=("broken",))


@case
def plan_obeys_budgets(t):
    j = plan(t, BIG, *ON, "--vram", "10G", "--ram", "60G")
    equal(j["host_budget_bytes"], 60 << 30, "host budget")
    equal(j["budget_bytes"], 10 << 30, "device budget")
    check(0 < j["device_bytes"] <= 10 << 30, f"{j['device_bytes']} bytes on the device")
    check(0 < j["host_bytes"] <= 60 << 30, f"{j['host_bytes']} bytes on the host")
    t.fails(
        64,
        "plan",
        "llama-8b:q4_k_m",
        *ON,
        "--vram",
        "2G",
        "--place",
        ".*=device",
        words=("--place", "--vram", "MiB"),
    )
    t.fails(64, "plan", BIG, *ON, "--for", "99999+9", words=("--for", "--ctx"))
    t.fails(64, "plan", BIG, *ON, "--vram", "12 apples", words=("--vram",))
    t.fails(64, "plan", BIG, *ON, "--vram", "999G", words=("--vram", "RTX 3090"))
    _, _, err = t.run("plan", BIG, *ON, "--ram", "99G")
    check(b"--ram 101376M is more than the 65536 MiB of the host" in err, f"{err!r}")
    check(b"warning" not in t.run("plan", BIG, *ON, "--ram", "60G")[2], "within the memory")


@case
def plan_counts_the_named_devices(t):
    card = ("--hardware", "rtx3090-ddr5", "--ctx", "32k")
    args = (BIG, *card, "--device", "cuda:0,1", "--vram", "20G,8G")
    first = t.ok("plan", *args, "--json")
    j = json.loads(first)
    equal([d["budget_bytes"] for d in j["devices"]], [20 << 30, 8 << 30], "budgets")
    check("with 2 devices" in j["hardware"]["name"], f"machine: {j['hardware']}")
    layers = [u["device"] for u in j["units"] if u["part"] == "attn"]
    equal(len(layers), 80, "layers")
    check(layers == sorted(layers) and set(layers) == {0, 1}, f"devices of layers: {layers}")
    for d in j["devices"]:
        check(0 < d["bytes"] <= d["budget_bytes"], f"over budget: {d}")
    text = t.ok("plan", *args).decode()
    check("(which)" in text and "device 1" in text, f"text: {text}")
    path = t.file("two.json", first)
    equal(plan(t, *args, "--plan", path)["units"], j["units"], "replayed units")
    t.fails(64, "plan", BIG, *card, "--plan", path, words=("with 2 devices",))
    one = plan(t, BIG, *card, "--device", "emu", "--vram", "20G")
    equal(len(one["devices"]), 1, "devices of emu")
    none = plan(t, BIG, *card, "--device", "none", "--ram", "80G")
    equal(none["device_bytes"], 0, "device bytes of none")
    three = plan(t, t.model, "--device", "emu:3")["hardware"]["name"]
    equal(three, "rtx3060-ddr4 with 3 devices", "machine of emu:3")
    t.fails(64, "plan", BIG, *card, "--device", "emu:99", words=("n_devices", "99"))


@case
def plan_says_what_is_missing(t):
    code, out, err = t.run("plan", "llama-405b:q4_k_m", *ON, "--json")
    equal(code, 71, "exit code")
    j = json.loads(out)
    equal((j["feasible"], j["chosen"], "optimum" in j), (False, "none", False), "feasible")
    equal(len(j["remedies"]), 2, "remedies")
    check(j["remedies"][0]["request_s"] <= j["remedies"][1]["request_s"], "order of remedies")
    mib = -(-j["short_bytes"] // (1 << 20))
    check(f"{mib} MiB are missing" in err.decode(), f"{mib} MiB: {err!r}")
    equal(err.decode().count("it would with"), 2, "remedies in the message")
    # A long context of a model that fits otherwise: a cache in fewer bytes is the way.
    long = ("--hardware", "rtx3060-ddr4", "--ctx", "128k")
    code, out, err = t.run("plan", "llama-8b:q4_k_m", *long, "--ram", "8G", "--json")
    equal(code, 71, f"exit code of a long context: {err!r}")
    remedy = [r for r in json.loads(out)["remedies"] if "--kv q8_0" in r["text"]]
    equal(len(remedy), 1, f"--kv q8_0 among {json.loads(out)['remedies']}")
    fits = plan(t, "llama-8b:q4_k_m", *long, "--ram", "8G", "--kv", "q8_0")
    check(abs(fits["optimum"]["request_s"] / remedy[0]["request_s"] - 1) < 0.01, "its time")


def rows_of(root):
    """Each row of the picture: share of the device and reason, of attention and FFN."""
    svg = "{http://www.w3.org/2000/svg}"
    rows, wide = {}, {}
    for e in root:
        if e.tag == svg + "text" and e.get("text-anchor") == "end":
            name = e.text
            rows[name] = {}
        elif e.tag == svg + "rect" and e.get("class"):
            part = "attn" if float(e.get("x")) < 100 else "ffn"
            width = float(e.get("width"))
            whole = wide.setdefault((name, part), width)  # the host's part is below the device's
            share = width / whole if e.get("class") == "d" else 0
            rows[name][part] = (share, e.find(svg + "title").text)
    return rows


@case
def plan_draws_a_picture(t):
    path = os.path.join(t.dir, "plan.svg")
    t.ok("plan", BIG, *ON, "--svg", path)
    root = xml.etree.ElementTree.parse(path).getroot()
    equal(root.tag, "{http://www.w3.org/2000/svg}svg", "root element")
    j = plan(t, BIG, *ON)
    drawn = rows_of(root)
    equal(list(drawn), [*map(str, range(80)), "head"], "rows of the picture")
    for u in j["units"]:
        row = drawn["head" if u["layer"] < 0 else str(u["layer"])]
        got, why = row["attn" if u["part"] == "attn" else "ffn"]
        check(abs(got - u["share"]) < 1e-3, f"{u['match']}: {got} is drawn, not {u['share']}")
        equal(why, u["reason"], "reason")
    said = "".join(root.itertext())
    check(f"{j['predicted']['decode_tok_s']['0']:.2f} tok/s" in said, f"picture: {said[:300]}")
    two = ("--device", "cuda:0,1", "--vram", "20G,8G")
    t.ok("plan", BIG, *ON, *two, "--svg", path)
    names = list(rows_of(xml.etree.ElementTree.parse(path).getroot()))
    of = [u["device"] for u in plan(t, BIG, *ON, *two)["units"] if u["part"] == "attn"]
    equal(names, [f"{i} ({d})" for i, d in enumerate(of)] + ["head (1)"], "devices of the rows")
    t.run("plan", "llama-405b:q4_k_m", *ON, "--svg", path)
    said = "".join(xml.etree.ElementTree.parse(path).getroot().itertext())
    check("does not fit: " in said and "tok/s;" not in said, f"picture: {said[:300]}")
    t.fails(64, "plan", BIG, *ON, "--svg", "-", "--json", words=("--json", "--svg"))
    t.fails(74, "plan", BIG, *ON, "--svg", os.path.join(t.dir, "no/such.svg"), words=("such.svg",))


@case
def plan_reads_only_the_header(t):
    with open(t.model, "rb") as f:
        whole = f.read()
    cut = t.file("header.gguf", whole[: len(whole) // 2])
    j = plan(t, cut)
    equal(j["model"]["layers"], 3, "layers")
    at = whole.index(b"llama.attention.head_count_kv") + len("llama.attention.head_count_kv") + 4
    cannot = t.file("heads.gguf", whole[:at] + (65536).to_bytes(4, "little") + whole[at + 4 :])
    why = t.run("run", cannot, "-p", "x")[2].decode().strip().split("\n")[-1]
    t.fails(65, "plan", cannot, words=("head_count_kv", why))


@case
def plan_knows_which_experts_are_chosen(t):
    cache = os.path.join(t.dir, "experts")
    env = t.env(XDG_CACHE_HOME=cache)
    moe = os.path.join(t.data, "arch/qwen3moe/model-f16.gguf")
    args = ("plan", moe, "--hardware", "rtx3060-ddr4", "--ctx", "256")
    before = json.loads(t.ok(*args, "--json", env=env))
    equal(before["experts"], [], "experts before any run")
    check("if all are chosen alike" in t.ok(*args, env=env).decode(), "the text before any run")
    t.ok("run", moe, "--raw", "-p", "Hello", "-n", "100", *ENDLESS, "--device", "none", env=env)
    names = os.listdir(os.path.join(cache, "tenon"))
    check(len(names) == 1 and re.fullmatch(r"experts-[0-9a-f]{16}\.json", names[0]), f"{names}")
    name = names[0]
    path = os.path.join(cache, "tenon", name)
    with open(path, "rb") as f:
        counts = json.load(f)["layers"]
    equal([len(row) for row in counts], [8, 8, 8], "counters")
    equal(sum(counts[0]) % 3, 0, "choices of three experts a token")
    check(sum(counts[0]) >= 300, f"{counts[0]}")
    first = t.ok(*args, "--json", env=env)
    equal(json.loads(first)["experts"], counts, "experts of the plan")
    check("as counted in earlier runs" in t.ok(*args, env=env).decode(), "the text after a run")
    again = t.ok(*args, "--plan", t.file("experts.json", first), "--json")  # another cache
    equal(json.loads(again)["units"], json.loads(first)["units"], "replayed units")
    with open(path, "wb") as f:
        f.write(b"rubbish")
    code, out, err = t.run(*args, "--json", env=env)
    equal((code, json.loads(out)["experts"]), (0, []), "a broken file")
    check(b"warning" in err and name.encode() in err, f"{err!r}")
    chat = ("chat", moe, *TALK, "-n", "6", *ENDLESS, "--hardware", "rtx3060-ddr4")
    _, err = on_device(t, *chat, stdin=b"Hello\n/stats\n", env=env)
    check(re.search(rb"experts: [0-9.]+ % of \d+ choices on the device", err), f"{err!r}")


@case
def calibrate_keeps_what_plan_uses(t):
    cache = os.path.join(t.dir, "cache")
    env = t.env(XDG_CACHE_HOME=cache)
    before = t.ok("plan", t.model, env=env).decode()
    check("assumed" in before, f"an unmeasured machine: {before[:300]!r}")
    profile = json.loads(t.ok("calibrate", "-t", "1", env=env))
    equal(profile["format"], "tenon-profile-1", "format")
    equal(profile["host"]["threads"], 1, "threads")
    path = os.path.join(cache, "tenon", "hardware.json")
    with open(path, "rb") as f:
        equal(json.load(f)["host"], profile["host"], "the kept profile")
    forged = json.loads(json.dumps(profile))
    forged["host"]["kv_gb_s"]["f16"] = 123456.0
    with open(path, "w") as f:
        json.dump(forged, f)
    again = json.loads(t.ok("calibrate", "-t", "1", env=env))["host"]["kv_gb_s"]["f16"]
    check(again < 100000, f"{again} GB/s: it is not measured again")
    after = t.ok("plan", t.model, env=env).decode()
    check("machine: measured" in after, f"a measured machine: {after[:300]!r}")
    t.ok("plan", t.model, "--hardware", path)
    shipped = t.ok("calibrate", "--hardware", "rtx3090-ddr5", env=t.env(XDG_CACHE_HOME="/nowhere"))
    sources = plan(t, t.model, *ON)["hardware"]["sources"]
    equal(json.loads(shipped)["sources"], sources, "sources of figures")
    check("936 GB/s" in sources["devices.matvec_gb_s"], f"{sources}")
    card = plan(t, t.model, "--hardware", t.file("card.json", shipped), "--ctx", "32k")
    equal(card["predicted"], plan(t, t.model, *ON)["predicted"], "with the printed profile")
    t.fails(66, "calibrate", "--hardware", "rtx9999", words=("rtx9999", "rtx3090-ddr5"))
    t.fails(64, "calibrate", t.model, env=env, words=("too many",))
    blocked = t.env(XDG_CACHE_HOME=t.file("blocked", b""))
    code, out, err = t.run("calibrate", "-t", "1", env=blocked)
    equal(code, 0, "exit code without a cache")
    check(json.loads(out) and b"not kept" in err, f"{err!r}")
