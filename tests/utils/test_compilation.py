"""Programs that are compiled at the least cost."""

import os

import jax
import pytest

from internvlu_jax.utils.compilation import compile_quickly


@pytest.mark.parametrize(
    ("version", "flags"), [((0, 10, 2), "--given=1 --xla_cpu_use_fusion_emitters=false"), ((0, 11, 0), "--given=1")]
)
def test_a_flag_is_given_to_versions_that_know_it(version, flags, monkeypatch):
    before = jax.config.values["jax_disable_most_optimizations"]
    monkeypatch.setenv("XLA_FLAGS", "--given=1")
    monkeypatch.setattr(jax, "__version_info__", version)
    try:
        compile_quickly()
        assert jax.config.values["jax_disable_most_optimizations"]
        assert os.environ["XLA_FLAGS"] == flags
    finally:
        jax.config.update("jax_disable_most_optimizations", before)
