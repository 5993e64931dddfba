"""The examples of docs/python.md print what it says."""
import doctest
import pathlib

from reference import torch

DOCUMENT = pathlib.Path(__file__).parents[2] / "docs" / "python.md"


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
