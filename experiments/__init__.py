"""Commands that train, measure and study: `python -m experiments.NAME`."""

from internvlu_jax.utils.signals import interrupt_is_one_line

interrupt_is_one_line(("experiments",), "interrupted")
