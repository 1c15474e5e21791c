"""What tests of tenon-bench share."""

import json
import math
import os

import cli_lib
from cli_lib import check, equal


class Bench(cli_lib.Tenon):
    """tenon-bench, which lies beside tenon; its messages start with its own name."""

    def __init__(self, path, data):
        super().__init__(os.path.join(os.path.dirname(os.path.abspath(path)), "tenon-bench"), data)

    def fails(self, want, *args, words=(), **kw):
        code, out, err = self.run(*args, **kw)
        text = err.decode(errors="replace")
        equal(code, want, f"exit code of {args} ({text})")
        check("tenon-bench: " in text, f"{args}: no message on stderr: {text!r}")
        for word in words:
            check(word in text, f"{args}: {word!r} is not in the message: {text!r}")
        return out

    def quick(self, *args):
        return (self.model, "-p", "8", "-n", "4", "--warmup", "1", *args)

    def report(self, *args):
        return json.loads(self.ok(*self.quick("-o", "json", *args)))


def finite(x):
    return isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x)
