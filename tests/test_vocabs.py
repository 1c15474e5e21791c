#!/usr/bin/env python3
"""Published vocabularies through `tenon tokenize`: the recorded ids, and nothing else.

usage: test_vocabs.py TENON DATA_DIR [NAME]

data/vocab/vocabs.tar.xz holds the vocabularies and, in expected.json, what llama.cpp gives; rows
where that is not what the model's own tokenizer library gives stand in data/vocab/disagreements.json
with both answers. The library counts.
"""

import json
import os
import sys
import tarfile

from cli_lib import case, check, check_rows, equal, main, tokenize


class Vocabs:
    """The archive, unpacked once into the folder of the tests."""

    def __init__(self, t):
        self.dir = os.path.join(t.dir, "vocabs")
        if not os.path.isdir(self.dir):
            os.mkdir(self.dir)
            with tarfile.open(os.path.join(t.data, "vocab/vocabs.tar.xz")) as tar:
                for member in tar:
                    with open(os.path.join(self.dir, os.path.basename(member.name)), "wb") as f:
                        f.write(tar.extractfile(member).read())
        with open(os.path.join(self.dir, "expected.json"), encoding="utf-8") as f:
            expected = json.load(f)
        with open(os.path.join(t.data, "vocab/disagreements.json"), encoding="utf-8") as f:
            self.disagreements = json.load(f)["rows"]
        self.strings, self.rows = expected["strings"], expected["vocabs"]
        self.data = t.data

    def path(self, name):
        here = os.path.join(self.dir, name + ".gguf")
        return here if os.path.exists(here) else os.path.join(self.data, "vocab", name + ".gguf")

    def want(self, name, of, special, recorded):
        """The recorded ids, with the library's in place of those it disagrees with."""
        want = list(recorded)
        for row in self.disagreements:
            if (row["vocab"], row["of"], row["special"]) == (name, of, special):
                i = row["index"]
                equal(want[i], row["llama.cpp"], f"llama.cpp's answer to {name}, {of} {i}")
                want[i] = row["library"]
        return want


def recorded_ids(t, k, *options):
    v = Vocabs(t)
    equal(len(v.rows), 14, "vocabularies")
    for name in v.rows:
        got = tokenize(t, v.path(name), v.strings, *options)
        recorded = [both[k] for both in v.rows[name]["tokens"]]
        check_rows(name, v.strings, got, v.want(name, "strings", bool(k), recorded))


@case
def strings_without_special_tokens(t):
    recorded_ids(t, 0)


@case
def strings_with_special_tokens(t):
    recorded_ids(t, 1, "--add-special", "--parse-special")


@case
def the_fields_own_strings(t):
    v = Vocabs(t)
    seen = 0
    for name, row in v.rows.items():
        if "texts" in row:
            want = v.want(name, "texts", False, row["ids"])
            check_rows(name, row["texts"], tokenize(t, v.path(name), row["texts"]), want)
            seen += 1
    equal(seen, 12, "vocabularies with strings of their own")


@case
def no_disagreement_is_listed_in_vain(t):
    v = Vocabs(t)
    for row in v.disagreements:
        check(row["library"] != row["llama.cpp"], f"both answers are the same: {row}")
        check(row["vocab"] in v.rows, f"no such vocabulary: {row}")
    keys = [(r["vocab"], r["of"], r["index"], r["special"]) for r in v.disagreements]
    equal(len(set(keys)), len(keys), "different rows")


if __name__ == "__main__":
    sys.exit(main(sys.argv))
