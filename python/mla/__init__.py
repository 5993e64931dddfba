"""Multi-Head Latent Attention on CPUs: FlashMLA's interface (mla.flash_mla) and DeepSeek-architecture models (mla.Model)."""
from mla import flash_mla
from mla._core import isa, set_threads, threads
from mla.model import Model

__version__ = "0.1.0"
__all__ = ["Model", "flash_mla", "isa", "set_threads", "threads"]
