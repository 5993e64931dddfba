#!/usr/bin/env python3
"""A model that mla train made, loaded by Hugging Face transformers: its f32 logits against those of mla logits.

    pip install torch==2.13.0 transformers==5.24.0 numpy
    tests/compare_with_transformers.py MODEL [--mla build/mla] [--text TEXT]

Prints the largest difference and exits with 1 if it is above 5e-4, if the tokenizers disagree, or if a tensor is missing
or left over.
"""
import argparse
import os
import subprocess
import sys
import tempfile

import numpy
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model")
    options.add_argument("--mla", default=os.path.join(ROOT, "build", "mla"))
    options.add_argument("--text", default="And God said, Let there be light: and there was light.")
    options = options.parse_args()

    ids = Tokenizer.from_file(os.path.join(options.model, "tokenizer.json")).encode(options.text).ids
    ours = subprocess.run([options.mla, "tokenize", "--model", options.model, "--text", options.text, "--json"],
                          stdout=subprocess.PIPE, text=True, check=True).stdout
    if str(ids).replace(" ", "") not in ours.replace(" ", "").replace("\n", ""):
        sys.exit(f"tokenizers disagree: transformers {ids}, mla {ours}")

    model, report = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32, attn_implementation="eager",
                                                         output_loading_info=True)
    if report["missing_keys"] or report["unexpected_keys"] or report["mismatched_keys"]:
        sys.exit(f"tensors: {report}")
    with torch.inference_mode():
        expected = model(torch.tensor([ids])).logits[0].numpy()
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "logits.npy")
        subprocess.run([options.mla, "logits", "--model", options.model, "--dtype", "f32", "--ids",
                        ",".join(map(str, ids)), "--out", path], check=True)
        found = numpy.load(path)
    difference = float(numpy.abs(found - expected).max())
    print(f"{len(ids)} tokens, {expected.shape[1]} logits each: largest difference {difference:.2e}, expected at most 5e-4")
    sys.exit(difference > 5e-4)


main()
