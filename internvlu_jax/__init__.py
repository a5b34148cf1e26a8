"""InternVL-U on JAX: one model that understands, generates and edits pictures."""

from typing import TYPE_CHECKING

from internvlu_jax.utils.signals import interrupt_is_one_line

if TYPE_CHECKING:
    from internvlu_jax.inference.pipeline import ChatCache as ChatCache
    from internvlu_jax.inference.pipeline import InternVLUPipeline as InternVLUPipeline
    from internvlu_jax.inference.pipeline import PipelineOutput as PipelineOutput

__all__ = ["ChatCache", "InternVLUPipeline", "PipelineOutput"]
__version__ = "0.1.0"

interrupt_is_one_line(("internvlu_jax", "internvlu-jax"), "internvlu-jax: interrupted")


def __getattr__(name: str) -> object:
    """Imports the pipeline, and JAX with it, only when it is asked for."""
    if name in __all__:
        from internvlu_jax.inference import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
