#!/usr/bin/env python3
"""Token ids of the two real models against what llama.cpp gives (data/real/tokens.json), but for the
disagreements listed there with what the models' own tokenizer libraries give, which counts; on the
texts of `cases` all agree.

usage: modeltest_tokens.py TENON DATA_DIR [NAME]
"""

import json
import os
import sys

from cli_lib import case, check_rows, equal, main, tokenize

MODELS = {
    "smollm2": "models/SmolLM2-135M-Instruct.Q4_1.gguf",
    "gemma3": "models/gemma-3-270m-q4_k_m.gguf",
}


def check_model(t, name):
    with open(os.path.join(t.data, "real/tokens.json"), encoding="utf-8") as f:
        recorded = json.load(f)
    path, texts, rows = MODELS[name], recorded["strings"], recorded[name]["tokens"]
    for row in recorded[name]["disagreements"]:
        equal(rows[row["index"]][row["special"]], row["llama.cpp"], "llama.cpp's answer")
        rows[row["index"]][row["special"]] = row["library"]
    check_rows(name, texts, tokenize(t, path, texts), [row[0] for row in rows])
    with_special = tokenize(t, path, texts, "--add-special", "--parse-special")
    check_rows(name, texts, with_special, [row[1] for row in rows])
    texts, ids = zip(*recorded[name]["cases"])
    check_rows(name, texts, tokenize(t, path, texts, "--parse-special"), ids)


@case
def smollm2_token_ids(t):
    check_model(t, "smollm2")


@case
def gemma3_token_ids(t):
    check_model(t, "gemma3")


if __name__ == "__main__":
    sys.exit(main(sys.argv))
