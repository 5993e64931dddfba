#!/usr/bin/env python3
"""Our tokenizer beside the `tokenizers` library: one thread each, the same text, in turns.

Needs a Python with `tokenizers` (pip install tokenizers), and tokenizer_bench built:
    compare.py --bench build/bench/tokenizer_bench [--model DIR] [--text FILE] [--megabytes 4] [--rounds 5]

The text is FILE repeated to the size asked for, each copy with other words so that no cache sees the same copy again: a
word in 50 gets its letters rotated. Checks that both give the same ids; prints MB/s of both (median of all rounds) and
the ratio. Exits 1 if the ids differ.
"""
import argparse
import json
import os
import pathlib
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"
ROOT = pathlib.Path(__file__).resolve().parents[2]


def varied(text, size):
    """`text` again and again, up to `size` bytes, some words changed in every copy."""
    choose = random.Random(4)

    def change(match):
        word = match.group()
        return word[1:] + word[0] if choose.random() < 0.02 else word

    copies, total = [], 0
    while total < size:
        copies.append(re.sub(r"[a-z]{4,}", change, text) if copies else text)
        total += len(copies[-1].encode())
    return "".join(copies).encode()[:size].decode(errors="ignore")


def checksum(ids):
    value = 0xCBF29CE484222325
    for token in ids:
        value = (value ^ token) * 0x100000001B3 % 2**64
    return f"{value:016x}"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bench", required=True)
    parser.add_argument("--model", default=str(ROOT / "tests/data/tokenizer/deepseek-v3"))
    parser.add_argument("--text", default=str(ROOT / "tests/data/default/heldback.txt"))
    parser.add_argument("--megabytes", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    import tokenizers

    text = varied(pathlib.Path(arguments.text).read_text(encoding="utf-8"), int(arguments.megabytes * 1e6))
    tokenizer = tokenizers.Tokenizer.from_file(str(pathlib.Path(arguments.model) / "tokenizer.json"))
    ours, theirs = [], []
    with tempfile.NamedTemporaryFile(suffix=".txt") as file:
        file.write(text.encode())
        file.flush()
        for _ in range(arguments.rounds):
            command = [arguments.bench, arguments.model, file.name, "1"]
            result = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            ours.append(result["mb_per_s"])
            start = time.perf_counter()
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            theirs.append(len(text.encode()) / 1e6 / (time.perf_counter() - start))
    same = checksum(ids) == result["checksum"] and len(ids) == result["ids"]
    mine, other = statistics.median(ours), statistics.median(theirs)
    print(f"text: {len(text.encode()) / 1e6:.1f} MB, {len(ids)} ids, {'equal' if same else 'DIFFERENT'}")
    print(f"mla.cpp: {mine:.2f} MB/s   tokenizers {tokenizers.__version__}: {other:.2f} MB/s   ratio {mine / other:.2f}")
    print(f"load {result['load_s']:.2f} s, decode {result['decode_mb_per_s']:.1f} MB/s")
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
