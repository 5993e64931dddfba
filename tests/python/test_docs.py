"""The examples of docs/python.md print what it says, and README's runs."""
import doctest
import pathlib

import numpy

import mla
from reference import torch

ROOT = pathlib.Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "python.md"


def test_the_examples_of_the_document():
    text = DOCUMENT.read_text()
    parts = text.split("\n## ")
    if torch is None:
        parts = [part for part in parts if not part.startswith("With torch")]
    text = "\n## ".join(parts).replace("```\n", "\n")
    examples = doctest.DocTestParser().get_doctest(text, {}, DOCUMENT.name, str(DOCUMENT), 0)
    assert len(examples.examples) > 20
    said = []
    doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(examples, out=said.append)
    assert not said, "".join(said)


def test_the_example_of_the_readme(tmp_path, capsys):
    code = (ROOT / "README.md").read_text().split("```python\n")[1].split("```")[0]
    for name, value in (('"DIR"', repr(mla.Model().directory)), ('"my-other-model"', repr(str(tmp_path / "my-model"))), ("steps=500", "steps=2")):
        assert name in code
        code = code.replace(name, value)
    values = {"q": numpy.zeros((1, 1, 4, 576), numpy.float32), "k_cache": numpy.zeros((2, 64, 1, 576), numpy.float32),
              "block_table": numpy.int32([[1]]), "cache_seqlens": numpy.int32([9]), "text": DOCUMENT.read_text() * 3}
    exec(code, values)
    assert values["out"].shape == (1, 1, 4, 512) and len(values["session"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert all(float(loss) > 0 for loss in said[-2:])
