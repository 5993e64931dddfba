#!/usr/bin/env python3
"""Writes mla/model/tokenizer/regex_unicode.cpp: the characters that Unicode 15 to 16 added, with their categories.

PCRE2 10.42 (Debian 12) knows Unicode 14, the `tokenizers` library knows 16. Run with a Python whose unicodedata is
Unicode 14 (3.11) and with `tokenizers` installed:  make_unicode_table.py > mla/model/tokenizer/regex_unicode.cpp
"""
import unicodedata

from tokenizers import Regex, pre_tokenizers

assert unicodedata.unidata_version == "14.0.0", unicodedata.unidata_version
CATEGORIES = "Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cf".split()

new = "".join(c for c in map(chr, (*range(0xD800), *range(0xE000, 0x110000))) if unicodedata.category(c) == "Cn")
category = {}
for name in CATEGORIES:
    matched = pre_tokenizers.Split(Regex(rf"\p{{{name}}}+"), "removed", invert=True).pre_tokenize_str(new)
    category.update({ord(c): name for text, _ in matched for c in text})
ranges = []
for code in sorted(category):
    if ranges and ranges[-1][1] == code - 1 and ranges[-1][2] == category[code]:
        ranges[-1][1] = code
    else:
        ranges.append([code, code, category[code]])
print("""// Written by tests/data/tokenizer/make_unicode_table.py; don't edit.
#include "mla/model/tokenizer/regex_unicode.h"

namespace mla {
namespace {

constexpr NewCharacters table[] = {""")
line = "   "
for first, last, name in ranges:
    entry = f' {{0x{first:X}, 0x{last:X}, "{name}"}},'
    if len(line + entry) > 110:
        print(line)
        line = "   "
    line += entry
print(line)
print("""};

}  // namespace

std::span<const NewCharacters> new_characters() { return table; }

}  // namespace mla""")
