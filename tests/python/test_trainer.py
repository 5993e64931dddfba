"""mla.Trainer: runs of training from Python."""
import csv
import json
import pathlib

import numpy
import pytest

import mla
from reference import HEADS_CONFIG

TEXT = (pathlib.Path(__file__).parents[2] / "README.md").read_text() * 2
SMALL = {"vocabulary": 300, "steps": 6, "batch": 4, "length": 32, "measure_every": 3, "held_back": 0.2, "seed": 7}


def weights(directory):
    return (pathlib.Path(directory) / "model.safetensors").read_bytes()


def test_a_run_learns_and_makes_a_model(tmp_path):
    trainer = mla.Trainer.begin(tmp_path / "run", TEXT, **{**SMALL, "steps": 30, "measure_every": 10}, dtype="f32")
    assert trainer.steps == 0 and trainer.total_steps == 30 and trainer.best is None and trainer.parameters > 100000
    steps = list(trainer)
    assert [s.step for s in steps] == list(range(1, 31)) and trainer.steps == 30
    assert abs(steps[0].loss - numpy.log(300)) < 0.1 and steps[-1].loss < steps[0].loss - 0.3
    assert [s.step for s in steps if s.held_back is not None] == [10, 20, 30]
    best = min((s for s in steps if s.held_back is not None), key=lambda s: s.held_back)
    assert best.is_best and trainer.best == (best.step, best.held_back)
    with open(tmp_path / "run" / "train_log.csv") as file:
        assert [float(row["loss"]) for row in csv.DictReader(file)] == pytest.approx([s.loss for s in steps], rel=1e-5)
    assert sum(1 for _ in mla.Model(tmp_path / "run").generate("The", 4)) <= 5
    with pytest.raises(ValueError, match="30 steps done"):
        trainer.step()


def test_it_goes_on_to_the_same_bits(tmp_path):
    list(mla.Trainer.begin(tmp_path / "whole", TEXT, **SMALL))
    part = mla.Trainer.begin(tmp_path / "part", TEXT, **SMALL)
    part.step()
    part.step()
    part.save()
    with pytest.raises(ValueError, match="another process trains here"):
        mla.Trainer.resume(tmp_path / "part", TEXT)
    del part
    rest = mla.Trainer.resume(tmp_path / "part", TEXT)
    assert rest.steps == 2 and [s.step for s in rest] == [3, 4, 5, 6]
    assert weights(tmp_path / "part") == weights(tmp_path / "whole")


def test_it_takes_a_config_of_any_family(tmp_path):
    config = HEADS_CONFIG
    options = {k: v for k, v in SMALL.items() if k != "vocabulary"}
    list(mla.Trainer.begin(str(tmp_path / "heads"), TEXT, config, **options))
    assert json.loads((tmp_path / "heads" / "config.json").read_text()) == config
    assert mla.Model(tmp_path / "heads").inspect()["attention"] == "GQA"


@pytest.mark.parametrize("match, options", [
    ("preset: found 'huge'", {"config": "huge"}), ("model_type", {"config": {"model_type": "bert"}}), ("steps: found 0", {"steps": 0}),
    ("batch: found -1", {"batch": -1}), ("length", {"length": 0}), ("held back", {"held_back": 0}), ("dtype", {"dtype": "int8"}),
    ("attention: found 'x'", {"attention": "x"}), ("attention: found auto", {"attention": "auto"}),
    ("learning rate", {"learning_rate": -1.0}), ("decay", {"weight_decay": -1.0}), ("vocab", {"vocabulary": 3}),
    ("vocabulary: found -5", {"vocabulary": -5}), ("measure_every: found -1", {"measure_every": -1}),
    ("text", {"text": ""}), ("1000 tokens|1001", {"length": 1000, "text": "A short text.\n" * 20})])
def test_errors_say_what_and_leave_nothing(tmp_path, match, options):
    options = {"text": TEXT, **SMALL, **options}
    with pytest.raises(ValueError, match=match):
        mla.Trainer.begin(tmp_path / "run", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("match, options", [
    ("steps: found 1.5, expected an integer", {"steps": 1.5}), ("seed: found -1", {"seed": -1}), ("dtype: found 3", {"dtype": 3}),
    ("learning_rate: found 'x', expected a number", {"learning_rate": "x"})])
def test_options_of_another_type(tmp_path, match, options):
    with pytest.raises(TypeError, match=match):
        mla.Trainer.begin(tmp_path / "run", TEXT, **{**SMALL, **options})
    assert list(tmp_path.iterdir()) == []


def test_another_run_and_another_text(tmp_path):
    mla.Trainer.begin(tmp_path / "run", TEXT, **SMALL)
    with pytest.raises(ValueError, match="is there already; Trainer.resume"):
        mla.Trainer.begin(tmp_path / "run", TEXT, **SMALL)
    with pytest.raises(ValueError, match="another text"):
        mla.Trainer.resume(tmp_path / "run", TEXT + ".")
    with pytest.raises(ValueError, match="no training.json"):
        mla.Trainer.resume(tmp_path / "nowhere", TEXT)
