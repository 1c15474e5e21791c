"""Chat: in a pipe, on a terminal, its commands and its keys."""

import json
import os
import re
import signal
import stat
import termios

from cli_lib import ENDLESS, TALK, Skip, case, check, equal, on_device


def chat(t, *args, **kw):
    tty = t.terminal("chat", t.model, *TALK, "-n", "6", "--temp", "0", *ENDLESS, *args, **kw)
    tty.expect("> ")
    return tty


@case
def chat_in_a_pipe(t):
    args = ("chat", t.model, *TALK, "-n", "6", "--temp", "0", *ENDLESS)
    code, out, err = t.run(*args, stdin=b"Hello\n")
    equal(code, 0, "exit code")
    check(out.endswith(b"\n") and b"stop:" not in out and b"> " not in err, f"{out!r} {err!r}")
    first = t.ok(*args, stdin=b"Hello\n/exit\nnever\n")
    equal(first, out, "the answer before /exit")
    equal(t.ok(*args, "-p", "Hello"), out, "the answer to -p")
    joined = t.ok(*args, stdin=b"one\\\ntwo\n")
    path = t.file("message.txt", b"one\ntwo")
    equal(
        t.ok(*args, stdin=f"/file {path}\n".encode()),
        joined,
        "the answer to the same message in a file",
    )
    path = t.file("message.txt", b"\xef\xbb\xbfone\ntwo\r\n")
    equal(
        t.ok(*args, stdin=f"/file {path}\r\n/exit\r\nnever\r\n".encode()),
        joined,
        "the answer to the file of another system, in lines of that system",
    )
    equal(t.ok(*args, stdin=b"one\\\r\ntwo\r\n"), joined, "the answer to two such lines")
    two = t.ok(*args, stdin=b"Hello\nAgain\n/undo\nAgain\n")
    equal(two[: len(first)], first, "first answer")
    again = two[len(first) :]
    equal(again[: len(again) // 2], again[len(again) // 2 :], "the answer after /undo")
    equal(t.ok(*args, stdin=b"Hello\n/retry\n"), out + out, "greedy /retry")
    equal(
        t.ok(*args, stdin=b"Nonsense\n/edit Hello\n")[-len(out) :], out, "the answer to /edit TEXT"
    )
    equal(
        t.ok(*args, stdin=b"Nonsense\n/clear\nHello\n")[-len(out) :], out, "the answer after /clear"
    )
    system = t.ok(*args, stdin=b"/system Be brief.\nHello\n")
    equal(
        t.ok(*args, "--system", "Be brief.", stdin=b"Hello\n"), system, "the answer with --system"
    )


@case
def chat_commands_speak_on_stderr(t):
    args = ("chat", t.model, *TALK, "-n", "6", *ENDLESS)
    code, out, err = t.run(
        *args, stdin=b"/help\n/params temp=0.25 nonsense=1\n/stats\n/nope\n/undo\n"
    )
    equal((code, out), (0, b""), "exit code and stdout")
    for word in (b"temp 0.25", b"'nonsense'", b"memory:", b"/nope", b"no message"):
        check(word in err, f"{word!r} is not in {err!r}")
    for name in "help exit clear undo retry edit system file params stats".split():
        check(re.search(rb"(?m)^/%s " % name.encode(), err), f"/help lacks /{name}: {err!r}")


@case
def parameters_change_the_next_answer(t):
    args = ("chat", t.model, *TALK, "-n", "12", *ENDLESS)
    greedy = t.ok(*args, "--temp", "0", stdin=b"Hello\n")
    check(t.ok(*args, "--temp", "5", stdin=b"Hello\n") != greedy, "a temperature changes nothing")
    equal(t.ok(*args, "--temp", "5", stdin=b"/params temp=0\nHello\n"), greedy, "after /params")
    equal(t.ok(*args, "--temp", "5", stdin=b"/params top-k=1\nHello\n"), greedy, "after /params")


@case
def plan_and_stats_of_a_chat(t):
    script = b"Hello\n/plan\n/stats\n"
    args = ("chat", t.model, *TALK, "-n", "6", *ENDLESS)
    check(b"no plan: everything is on the host" in t.run(*args, stdin=script)[2], "without device")
    _, err = on_device(t, *args, "--hardware", "rtx3060-ddr4", stdin=script)
    for word in (b"plan ", b"all-host ", b"budget", b"head ", b"decoding: emulated", b"predicted "):
        check(word in err, f"{word!r} is not in {err!r}")
    closing = re.search(rb"generated 6 tokens, [0-9.]+ tok/s \(predicted ([0-9.]+)\)", err)
    stats = re.search(rb"predicted ([0-9.]+) tok/s \(rtx3060-ddr4, (\d+) tokens live\)", err)
    check(closing and stats and closing.group(1) == stats.group(1), f"predictions: {err!r}")
    # Between the depths that `tenon plan` names, of which the context has two.
    j = json.loads(t.ok("plan", t.model, "--hardware", "rtx3060-ddr4", "--json"))

    def check_rate(j, told, live):
        (a, at_a), (b, at_b) = ((int(k), v) for k, v in j["predicted"]["decode_tok_s"].items())
        share = (int(live) - a) / (b - a)
        want = 1 / ((1 - share) / at_a + share / at_b)
        check(abs(float(told) - want) < 0.06, f"predicted {told}, not {want}")

    check_rate(j, stats.group(1), stats.group(2))
    # What `tenon plan --vram` says is what is done with as much, to the byte.
    limit = ("--hardware", "rtx3060-ddr4", "--vram", str(j["devices"][0]["bytes"]))
    text = t.ok("plan", t.model, *limit)
    _, err = on_device(t, *args, *limit, stdin=script)
    check(text.splitlines()[3:] == [*filter(text.splitlines()[3:].__contains__, err.splitlines())],
          f"planned {text!r}, did {err!r}")
    check(b"attention of 3 of 3 layers and 100 %" in err, f"not what fits: {err!r}")
    # A plan from a file that moves stays as a full context leaves it, and that is predicted.
    first = j["devices"][0]
    devices = [{**first, "budget_bytes": first["bytes"] - 120000}]
    moves = {**j, "elastic": True, "dropping": True, "live": 16, "devices": devices}
    path = t.file("moves.json", json.dumps(moves).encode())
    replayed = t.ok("plan", t.model, "--hardware", "rtx3060-ddr4", "--plan", path, "--fixed", "--json")
    slower = json.loads(replayed)
    at_first = [p["predicted"]["decode_tok_s"]["0"] for p in (j, slower)]
    check(at_first[1] < at_first[0] / 2, f"a plan that moves, and replayed: {at_first}")
    _, err = on_device(t, *args, "--plan", path, stdin=script)
    check(b"moves weights with the context" in err, f"a plan that stays: {err!r}")
    check(b"moving with" not in err and b"weights move as" not in err, f"stays: {err!r}")
    closing = re.search(rb"tok/s \(predicted ([0-9.]+)\)", err)
    stats = re.search(rb"predicted ([0-9.]+) tok/s \(rtx3060-ddr4, (\d+) tokens live\)", err)
    check(closing and stats and closing.group(1) == stats.group(1), f"predictions: {err!r}")
    check_rate(slower, stats.group(1), stats.group(2))
    # Rules are kept, and what they leave open is planned.
    rules = ("--place", "ffn_up=host,attn_=host,ffn_down=device")
    _, err = on_device(t, *args, *rules, stdin=script)
    check(b"plan " in err and b"by single tensors" in err, f"a plan with rules: {err!r}")
    check(b"attention of 0 of 3 layers" in err, f"a plan with rules: {err!r}")
    # On the host the depth makes a difference, so that the way to interpolate shows.
    j = json.loads(t.ok("plan", t.model, "--hardware", "rtx3060-ddr4", *rules, "--json"))
    closing = re.search(rb"tok/s \(predicted ([0-9.]+)\)", err)
    stats = re.search(rb"predicted ([0-9.]+) tok/s \(rtx3060-ddr4, (\d+) tokens live\)", err)
    check(closing and stats and closing.group(1) == stats.group(1), f"predictions: {err!r}")
    check_rate(j, closing.group(1), stats.group(2))


@case
def full_chat(t):
    args = ("chat", t.model, *TALK, "-n", "8", "--temp", "0", "-c", "160", *ENDLESS)
    talk = b"".join(b"Tell me about number %d please\n" % i for i in range(12))
    code, out, err = t.run(*args, stdin=talk)
    equal(code, 75, "exit code of a script that does not fit")
    check(b"160" in err and b"--shift" in err, f"{err!r}")
    code, out, err = t.run(*args, "--shift", stdin=talk)
    equal(code, 0, "exit code with --shift")
    check(b"dropped" in err and b"oldest turn" in err, f"{err!r}")
    equal(err.count(b"stop: length"), 12, "answers")
    # This format refuses a conversation that does not begin with a question.
    gemma = ("--template", "gemma", "--system", "Be brief.", "--shift")
    code, _, err = t.run(*args, *gemma, stdin=talk + b"/stats\n")
    equal((code, err.count(b"stop: length")), (0, 12), f"exit code and answers: {err!r}")
    left = int(re.search(rb"(\d+) messages", err).group(1))
    check(b"dropped" in err and left % 2 == 1, f"with the system message {left} messages: {err!r}")
    code, out, err = t.run("chat", t.model, *TALK, "-c", "64", *ENDLESS, stdin=b"Hello\n")
    equal(code, 75, "exit code of a script whose answer does not fit")
    check(out and b"64 tokens is full, the answer is cut off" in err, f"{err!r}")


@case
def chat_on_a_terminal(t):
    tty = chat(t)
    tty.send("Hello\r")
    at = tty.expect("stop: length")
    tty.expect("> ", at)
    tty.send("/nope\r")
    tty.expect("> ", tty.expect("no command /nope", at))
    tty.send(b"\x04")
    equal(tty.wait(), 0, "exit code after Ctrl-D")
    tty = chat(t)
    tty.send("/exit\r")
    equal(tty.wait(), 0, "exit code after /exit")


@case
def history_is_kept_private(t):
    state = os.path.join(t.dir, "state")
    env = t.env(XDG_STATE_HOME=state)
    tty = chat(t, env=env)
    if b"\x1b[?2004h" not in tty.seen:
        tty.kill()
        raise Skip("built without libedit")
    tty.send("remember me\r")
    tty.expect("> ", tty.expect("stop: length"))
    tty.send(b"\x04")
    equal(tty.wait(), 0, "exit code")
    path = os.path.join(state, "tenon/history")
    equal(stat.S_IMODE(os.stat(path).st_mode), 0o600, "mode of the history file")
    equal(stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode), 0o700, "mode of its folder")
    equal(os.listdir(os.path.dirname(path)), ["history"], "files beside it")
    tty = chat(t, env=env)
    tty.send(b"\x1b[A")
    tty.expect("remember me")
    tty.send("\r")
    tty.expect("> ", tty.expect("stop: length"))
    tty.send(b"\x04")
    tty.wait()
    other = t.env(XDG_STATE_HOME=os.path.join(t.dir, "other"))
    tty = chat(t, "--no-history", env=other)
    tty.send("secret\r")
    tty.expect("> ", tty.expect("stop: length"))
    tty.send(b"\x04")
    tty.wait()
    check(not os.path.exists(os.path.join(t.dir, "other")), "--no-history wrote a file")


def line_editing(tty):
    if b"\x1b[?2004h" not in tty.seen:
        tty.kill()
        raise Skip("built without libedit")
    return tty


def answer_to(t, keys, *args, shown=None):
    """The answer to what is typed, and how many tokens the message had."""
    path = os.path.join(t.dir, "answer.txt")
    tty = line_editing(chat(t, *args, stdout=path))
    tty.send(keys)
    if shown:
        tty.expect(shown)
        check(b"stop:" not in tty.seen, "a line was sent by itself")
        tty.send("\r")
    tty.expect("> ", tty.expect("stop: length"))
    tty.send(b"\x04")
    equal(tty.wait(), 0, "exit code")
    with open(path, "rb") as f:
        return f.read(), re.search(rb"prompt (\d+) tokens", tty.seen).group(1)


def answer_to_file(t, text, *args):
    path = t.file("message.txt", text.encode())
    args = ("chat", t.model, *TALK, "-n", "6", "--temp", "0", *ENDLESS, *args)
    _, out, err = t.run(*args, stdin=f"/file {path}\n".encode())
    return out, re.search(rb"prompt (\d+) tokens", err).group(1)


@case
def paste_is_one_message(t):
    for lines in (3, 40):  # short ones are shown, long ones folded
        text = "\n".join(f"line {i} of a paste" for i in range(lines))
        keys = b"\x1b[200~" + text.replace("\n", "\r").encode() + b"\x1b[201~"
        shown = "40 lines" if lines == 40 else "line 2 of a paste"
        equal(
            answer_to(t, keys, "-c", "4096", shown=shown),
            answer_to_file(t, text, "-c", "4096"),
            "answer to a pasted message and its tokens",
        )


@case
def new_lines_in_a_message(t):
    want = answer_to_file(t, "one\ntwo")
    for keys in (b"one\\\rtwo\r", b"one\x1b\rtwo\r"):
        equal(answer_to(t, keys), want, f"answer to {keys!r} and its tokens")


@case
def edit_brings_the_message_back(t):
    tty = line_editing(chat(t))
    tty.send("first words\r")
    at = tty.expect("> ", tty.expect("stop: length"))
    tty.send("/edit\r")
    at = tty.expect("first words", at)
    tty.send(" and more\r")
    tty.expect("> ", tty.expect("stop: length", at))
    tty.send(b"\x04")
    equal(tty.wait(), 0, "exit code")


@case
def interrupting_a_chat(t):
    def slow():
        tty = t.terminal("chat", t.model, *TALK, "-c", "2000000", *ENDLESS)
        tty.expect("> ")
        tty.send("Hello\r")
        return tty, tty.expect("\n", tty.expect("Hello")) + 20

    tty, at = slow()
    while len(tty.seen) < at + 200:  # the answer flows
        tty._read(0.1)
    tty.send(b"\x03")
    at = tty.expect("stop: interrupted", at)
    at = tty.expect("> ", at)
    if b"\x1b[?2004h" in tty.seen:  # without libedit nobody but the kernel knows what is typed
        tty.send("typed")
        at = tty.expect("typed", at)
        tty.send(b"\x03")  # clears the line only
        at = tty.expect("> ", at)
    tty.send("/stats\r")
    at = tty.expect("> ", tty.expect("messages", at))
    tty.send(b"\x03")
    at = tty.expect("again", at)
    tty.expect("> ", at)
    tty.send(b"\x03")
    equal(tty.wait(), 130, "exit code")
    tty, at = slow()
    while len(tty.seen) < at + 200:
        tty._read(0.1)
    tty.send(b"\x03")
    tty.expect("> ", tty.expect("stop: interrupted", at))
    tty.send(b"\x03")  # the second in a row, on an empty line
    equal(tty.wait(), 130, "exit code")


@case
def interrupting_the_reading_of_a_message(t):
    path = t.file("long.txt", b"Once upon a time there was a king. " * 20000)
    tty = chat(t, "-c", "1000000")
    tty.send("Hello\r")
    at = tty.expect("> ", tty.expect("stop: length"))
    tty.send(f"/file {path}\r")
    at = tty.expect("reading [", at)
    tty.send(b"\x03")
    at = tty.expect("> ", tty.expect("interrupted before the answer", at))
    tty.send("/retry\r")  # what came before is still there
    at = tty.expect("> ", tty.expect("stop: length", at))
    tty.send("/stats\r")
    tty.expect("> ", tty.expect("2 messages", at))
    tty.send(b"\x04")
    equal(tty.wait(), 0, "exit code")


@case
def terminating_a_chat(t):
    tty = chat(t)
    os.kill(tty.pid, signal.SIGTERM)
    equal(tty.wait(), 143, "exit code")
    check(
        tty.seen.count(b"\x1b[?2004h") == tty.seen.count(b"\x1b[?2004l"),
        "bracketed paste was left on",
    )


@case
def stopping_and_continuing_a_chat(t):
    tty = line_editing(chat(t))
    mode = termios.tcgetattr(tty.fd)
    while mode[3] & termios.ICANON:
        mode = termios.tcgetattr(tty.fd)
    os.kill(tty.pid, signal.SIGSTOP)
    os.waitpid(tty.pid, os.WUNTRACED)
    mode[3] |= termios.ICANON | termios.ECHO  # as a shell would
    termios.tcsetattr(tty.fd, termios.TCSANOW, mode)
    os.kill(tty.pid, signal.SIGCONT)
    tty.expect("\x1b[?2004h", len(tty.seen))
    check(not termios.tcgetattr(tty.fd)[3] & termios.ICANON, "the terminal is still in line mode")
    tty.send(b"\x04")
    equal(tty.wait(), 0, "exit code")


@case
def chat_with_stdout_in_a_file(t):
    path = os.path.join(t.dir, "answers.txt")
    tty = chat(t, stdout=path)
    tty.send("Hello\r")
    tty.expect("> ", tty.expect("stop: length"))
    tty.send(b"\x04")
    equal(tty.wait(), 0, "exit code")
    with open(path, "rb") as f:
        got = f.read()
    want = t.ok("chat", t.model, *TALK, "-n", "6", "--temp", "0", *ENDLESS, stdin=b"Hello\n")
    equal(got, want, "what the file holds")
