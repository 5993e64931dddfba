"""Multi-Head Latent Attention on CPUs: FlashMLA's interface (mla.flash_mla), and models of DeepSeek's architecture: to run
(mla.Model, mla.Session) and to train (mla.Trainer)."""
from mla import flash_mla
from mla._core import isa, set_threads, threads
from mla.model import Model, Session
from mla.trainer import Step, Trainer

__version__ = "0.1.0"
__all__ = ["Model", "Session", "Step", "Trainer", "flash_mla", "isa", "set_threads", "threads"]
