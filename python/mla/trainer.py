"""Training of small models, step by step."""
import json
import os
from typing import Any, Dict, Iterator, NamedTuple, Optional, Tuple, Union

from mla import _arguments, _core

_Path = Union[str, "os.PathLike[str]"]


class Step(NamedTuple):
    """What one step of training did."""
    step: int
    loss: float  #: nats per token of the step's text, before the step
    learning_rate: float
    gradient_norm: float  #: before it was clipped
    tokens_per_second: float  #: since this process began or went on
    held_back: Optional[float]  #: bits per byte of the text that is held back, on steps that measure it
    is_best: bool  #: the best measurement so far: the directory's weights are these


class Trainer:
    """A run of training and its directory, which `mla.Model` loads: what `mla train` does, from Python.

    Iterating takes the steps that are left. A run that was stopped at any moment goes on with `resume`, from its last measurement or
    `save`, to the same bits as one that never stopped.
    """

    def __init__(self, training: "_core.Training", directory: str):
        self._training, self.directory = training, directory

    def __repr__(self) -> str:
        return f"mla.Trainer({self.directory!r}, {self.steps} of {self.total_steps} steps)"

    @classmethod
    def begin(cls, directory: _Path, text: str, config: Union[str, Dict[str, Any]] = "tiny", *, vocabulary: int = 0, steps: int = 1000,
              batch: int = 16, length: int = 256, learning_rate: float = 2e-3, weight_decay: float = 0.1, held_back: float = 0.03,
              measure_every: int = 0, dtype: str = "bf16", attention: str = "explicit", seed: int = 0) -> "Trainer":
        """Begins a run in a directory that is not there yet: learns a tokenizer from the text and draws weights.

        config: a preset, "tiny" or "small", with `vocabulary` tokens (0: what it is made for), or the content of a config.json as a
        dict, of any family. batch: sequences of a step. length: tokens of a sequence. held_back: share of the text, at its end, that
        is measured, not trained on. measure_every: steps between measurements (0: a twentieth of all). dtype: bf16 or f32, of matrix
        products. attention: explicit or absorbed, the form of latent attention.

        Raises ValueError naming what is wrong: a directory that exists, an empty or too short text, a config that is none.
        """
        directory = os.fspath(directory)
        if os.path.exists(directory):
            raise ValueError(f"{directory}: is there already; Trainer.resume goes on with a run")
        is_preset = isinstance(config, str)
        options = {"preset": config if is_preset else "", "config": "" if is_preset else json.dumps(config, indent=2) + "\n",
                   "config_name": "config", "vocabulary": vocabulary, "steps": steps, "batch": batch, "length": length,
                   "learning_rate": learning_rate, "weight_decay": weight_decay, "held_back": held_back, "measure_every": measure_every,
                   "dtype": dtype, "attention": attention, "seed": seed}
        return cls(_core.Training.begin(directory, _arguments.text("text", text), options), directory)

    @classmethod
    def resume(cls, directory: _Path, text: str) -> "Trainer":
        """Goes on with the run of a directory and the text that it began with.

        Raises ValueError if there is no run, if it is broken, if another process is at it, or if the text is another.
        """
        directory = os.fspath(directory)
        return cls(_core.Training.resume(directory, _arguments.text("text", text)), directory)

    @property
    def steps(self) -> int:
        """Steps taken so far."""
        return self._training.steps

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self._training.total_steps

    @property
    def parameters(self) -> int:
        """Numbers that are trained."""
        return self._training.parameters

    @property
    def best(self) -> Optional[Tuple[int, float]]:
        """The step of the best measurement and its bits per byte, or None before the first."""
        return self._training.best

    def step(self) -> Step:
        """Takes one step. Raises ValueError if all are done, or if the loss is no finite number."""
        return Step(*self._training.step())

    def __iter__(self) -> Iterator[Step]:
        while self.steps < self.total_steps:
            yield self.step()

    def save(self) -> None:
        """Writes the state as it is, so that `resume` goes on from here."""
        self._training.save()
