#!/usr/bin/env python3
"""Writes the small tokenizers beside this script and what the `tokenizers` library makes of many texts.

Needs `tokenizers` (0.23.3 made the files committed here). Each directory gets tokenizer.json, tokenizer_config.json and
cases.json: [{"text", "ids", "prompt", "decoded", "shown"}]: ids of the text, ids with what the post-processor adds, and
the ids decoded without and with special tokens; then [{"ids", "decoded", "shown"}] for ids that are no text's.
"""
import json
import pathlib
import random

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

HERE = pathlib.Path(__file__).resolve().parent
TRAINING = (HERE.parent / "default/heldback.txt").read_text(encoding="utf-8")
EXTRA = "Die Größe naïver Cafés; 你好，世界。 日本語のテキスト Привет мир 123 4567 3.14 don't I'll WE'VE 😀😃 \t\n  \r\n" * 20


def added(id, content, **flags):
    token = {"id": id, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
             "special": True}
    return {**token, **flags}


def trained(size, special, normalizer, pre_tokenizer, alphabet=()):
    """The vocabulary and merges of a BPE of `size` tokens."""
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token=special[0] if special else None))
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=list(alphabet),
                                  show_progress=False)
    tokenizer.train_from_iterator([TRAINING, EXTRA], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], model["merges"]


def document(vocab, merges, **parts):
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
             "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    model.update(parts.pop("model", {}), vocab=vocab, merges=merges)
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
            "pre_tokenizer": None, "post_processor": None, "decoder": None, **parts, "model": model}


def llama():
    """SentencePiece as Llama and MiniCPM3 have it: no pre-tokenizer, bytes for what the vocabulary lacks."""
    special = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    vocab, merges = trained(1200, special, normalizers.Replace(" ", "▁"), pre_tokenizers.Split("▁", "merged_with_next"))
    size = max(vocab.values()) + 1
    return document(
        vocab, [" ".join(merge) for merge in merges],
        model={"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True},
        added_tokens=[added(0, "<unk>"), added(1, "<s>"), added(2, "</s>"),
                      added(size, "<|im_start|>"), added(size + 1, "<|im_end|>", rstrip=True),
                      added(size + 2, "<tool>", normalized=True, special=False)],
        normalizer={"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, {
            "type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        post_processor={"type": "TemplateProcessing",
                        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                        "pair": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                                 {"SpecialToken": {"id": "<s>", "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}],
                        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        decoder={"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
    ), {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def metaspace():
    """Metaspace before the model, digits alone, unknown characters fused, some bytes to fall back on."""
    special = ["<unk>", "<s>", "</s>", "<0x0A>", "<0xE2>", "<0x82>", "<0xAC>"]
    vocab, merges = trained(900, special, None, pre_tokenizers.Metaspace())
    size = max(vocab.values()) + 1
    return document(
        vocab, merges, model={"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True},
        added_tokens=[added(0, "<unk>"), added(1, "<s>", lstrip=True, rstrip=True), added(2, "</s>", lstrip=True),
                      added(size, "the king", normalized=True, special=False, single_word=True)],
        pre_tokenizer={"type": "Sequence", "pretokenizers": [
            {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True},
            {"type": "Digits", "individual_digits": True}]},
        post_processor={"type": "TemplateProcessing",
                        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                                   {"SpecialToken": {"id": "</s>", "type_id": 0}}],
                        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]},
                                           "</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]}}},
        decoder={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True},
    ), {}


def gpt2():
    """Byte-level with GPT-2's regular expression, words looked up before merging, and added tokens of every kind."""
    vocab, merges = trained(1000, [], None, pre_tokenizers.ByteLevel(add_prefix_space=False),
                            pre_tokenizers.ByteLevel.alphabet())
    size = max(vocab.values()) + 1
    vocab["Ġwhosoever"] = size  # no merge makes it: only ignore_merges finds it
    kinds = [("<|endoftext|>", {}), ("<l>", {"lstrip": True}), ("<r>", {"rstrip": True}),
             ("<lr>", {"lstrip": True, "rstrip": True}), ("<n>", {"normalized": True, "special": False}),
             ("word", {"single_word": True, "special": False}), ("<|end", {"special": False}), ("éé", {"special": False}), ("ünï", {"special": False, "normalized": True}),
             ("<nl>", {"normalized": True, "special": False, "lstrip": True, "rstrip": True}),
             ("<sw>", {"single_word": True, "lstrip": True, "normalized": True, "special": False})]
    tokens = [added(size + 1 + i, content, **flags) for i, (content, flags) in enumerate(kinds)]
    return document(
        vocab, merges, model={"ignore_merges": True, "continuing_subword_prefix": "", "end_of_word_suffix": ""},
        added_tokens=tokens,
        pre_tokenizer={"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        post_processor={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
        decoder={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    ), {"bos_token": "<|endoftext|>", "eos_token": {"__type": "AddedToken", "content": "<|endoftext|>"}, "add_prefix_space": False}


FIXED = [
    "", " ", "  ", "a", "Hello, world!", "In the beginning God created the heaven and the earth.", " leading", "trailing ",
    "two  spaces   three", "tab\tand\nnew\r\nlines\n\n\n", "don't I'll WE'VE it's 'tis", "1 12 123 1234 12345 3.14159 ²³ Ⅷ ½",
    "naïve café Größe", "e\u0301 a\u030A\u0323 \u0301alone", "你好，世界。", "日本語のテキスト", "한국어 \u1112\u1161\u11AB", "Привет, мир",
    "שלום עולם", "مرحبا بالعالم", "नमस्ते दुनिया", "ไทย", "😀😃 👩‍👩‍👧‍👦 🇩🇪 👍🏽", "𝒳𝓎 𐍈 𠀀𪛖 \U000E0041 \U0010FFFD",
    "\u00a0nbsp\u2003em\u3000wide\u200bzero\u200dzwj\u180emvs\u0085nel\u2028ls\ufeffbom", "\x00\x01\x02\x7f\x80\x9f",
    "a" * 300, " " * 100, "\n" * 70, "ab" * 200, "aaaa bbbb" * 40, "▁▁ ▁a▁", "<0x0A><0xE2>", "€ € ₭", "�",
    "the king of the kings", "the kingdom the king, the king", "<s>a</s>", "a <s> b", " </s>  <s>  </s> x", "<unk>", "<s",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "x <|im_end|>   y", "call <tool> now<tool>", "<tool>",
    "<|endoftext|>a <|endoftext|> b", "a  <l>  b", "a  <r>  b", "a  <lr>  b<lr><lr> \t <lr>", "a <n> b<n>", "word words a word.",
    "wordword word_word 'word'", "<|end of", "<|endoftext", "caf\u00e9 \u00e9\u00e9", "x <nl>  <nl>\ny", " <sw> a<sw> <sw>b \u0301<sw>",
    " whosoever whosoevers whosoever", "def f(x):\n\treturn x**2  # square\n", "http://a.b/c?d=e&f=%20", "\u0897\u1c89\U00031350\U0001FAE9",
]
PLANES = [(0x20, 0x7F), (0x20, 0x7F), (0, 0x300), (0x300, 0x3000), (0x3000, 0xD800), (0xE000, 0x10000), (0x10000, 0x20000),
          (0x20000, 0x30000), (0x30000, 0x40000), (0xE0000, 0xF0000), (0xF0000, 0x110000), (0x1F300, 0x1FB00)]
SPACES = [" ", "  ", "\n", "\t", "\r\n", "\u00a0", "\u2003", "\u3000", "\u0085", "   "]


def random_text(choose, contents):
    parts = []
    for _ in range(choose.randint(1, 12)):
        kind = choose.random()
        if kind < 0.35:
            start = choose.randrange(len(TRAINING) - 40)
            parts.append(TRAINING[start:start + choose.randint(1, 30)])
        elif kind < 0.6:
            low, high = choose.choice(PLANES)
            parts.append("".join(chr(choose.randrange(low, high)) for _ in range(choose.randint(1, 6))))
        elif kind < 0.8:
            parts.append(choose.choice(SPACES))
        elif contents:
            parts.append(choose.choice(contents))
    return "".join(parts)


def cases(tokenizer, contents, count, seed):
    choose = random.Random(seed)
    texts = FIXED + [random_text(choose, contents) for _ in range(count)]
    result = []
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        result.append({"text": text, "ids": ids, "prompt": tokenizer.encode(text).ids, "decoded": tokenizer.decode(ids),
                       "shown": tokenizer.decode(ids, skip_special_tokens=False)})
    for _ in range(count // 2):
        size = tokenizer.get_vocab_size()
        ids = [choose.randrange(min(size, choose.choice([20, 280, size]))) for _ in range(choose.randint(1, 9))]
        result.append({"ids": ids, "decoded": tokenizer.decode(ids),
                       "shown": tokenizer.decode(ids, skip_special_tokens=False)})
    return result


def lines(values):
    return "[\n" + ",\n".join(json.dumps(value, ensure_ascii=True, separators=(",", ":")) for value in values) + "\n]\n"


def main():
    for name, make in {"llama": llama, "metaspace": metaspace, "gpt2": gpt2}.items():
        root, config = make()
        directory = HERE / name
        directory.mkdir(exist_ok=True)
        text = json.dumps(root, ensure_ascii=False, separators=(",", ":"))
        (directory / "tokenizer.json").write_text(text + "\n", encoding="utf-8")
        (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        contents = [token["content"] for token in root["added_tokens"]]
        result = cases(tokenizers.Tokenizer.from_str(text), contents, 160, name)
        (directory / "cases.json").write_text(lines(result), encoding="utf-8")


if __name__ == "__main__":
    main()
