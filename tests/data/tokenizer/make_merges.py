#!/usr/bin/env python3
"""Writes merges.json and learned.json beside this script: what the `tokenizers` library learns from some texts.

Needs `tokenizers` (0.23.3 made the files committed here). learned.json is a whole tokenizer.json of 300 tokens, as the
library writes it; merges.json is [{"text" or "file" (below tests/data), "vocab_size" asked for,
"special_tokens", "merges": ["left right", ...]}], learned with the pre-tokenizer of models/default/tokenizer.json.
"""
import json
import pathlib
import random

import tokenizers
from tokenizers import pre_tokenizers, trainers

HERE = pathlib.Path(__file__).resolve().parent
DEFAULT = json.loads((HERE.parents[2] / "models/default/tokenizer.json").read_text(encoding="utf-8"))
SPECIAL = ["<|begin|>", "<|end|>"]
MIXED = ("Die Größe naïver Cafés; 你好，世界。日本語のテキスト、カタカナ Привет мир 123 4567 3.14 don't I'll WE'VE 😀😃👩‍👩‍👧 ½ ²\n"
         "if (x != 0) {\n\t\treturn f(x)->y[10];\r\n  }\r\n\r\n   \n e\u0301a\u0300 ﷺ\u00a0\u3000 --- ...!?\n")


def tokenizer_of(text, vocab_size, special):
    empty = {**DEFAULT, "added_tokens": [], "model": {**DEFAULT["model"], "vocab": {}, "merges": []}}
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(empty))
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def learned(text, vocab_size, special):
    tokenizer = tokenizer_of(text, vocab_size, special)
    return [" ".join(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]


def case(text, vocab_size, special=SPECIAL, file=None):
    source = {"file": file} if file else {"text": text}
    return {**source, "vocab_size": vocab_size, "special_tokens": special, "merges": learned(text, vocab_size, special)}


def main():
    file = "default/heldback.txt"
    chosen = random.Random(7)
    cases = [case((HERE.parent / file).read_bytes().decode(), 1024, file=file), case(MIXED, 1024, [])]
    for alphabet in ("ab", "abc", "ab ", "a\n ", "1234", "一二三", "a😀é", "ab.!'"):
        for length in (60, 400):  # full of ties and of pairs that overlap
            cases.append(case("".join(chosen.choice(alphabet) for _ in range(length)), 300, SPECIAL[:1]))
    lines = ",\n".join(json.dumps(one, ensure_ascii=False) for one in cases)
    whole = tokenizer_of((HERE.parent / file).read_bytes().decode(), 300, SPECIAL)
    (HERE / "learned.json").write_text(whole.to_str(pretty=True), encoding="utf-8", newline="")
    (HERE / "merges.json").write_text("[" + lines + "]\n", encoding="utf-8", newline="")


main()
