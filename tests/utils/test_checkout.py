"""The commit of the code that is running, in repositories made for it."""

import shutil
import subprocess

import pytest

from internvlu_jax.utils.checkout import commit


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_commit(tmp_path):
    assert commit(tmp_path) is None

    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    commit.cache_clear()
    git("init", "-q")
    (tmp_path / "a").write_text("a")
    git("add", "a")
    git("commit", "-q", "-m", "a")
    assert commit(tmp_path) == git("rev-parse", "HEAD")
    commit.cache_clear()
    (tmp_path / "b").write_text("not tracked")
    assert commit(tmp_path) == git("rev-parse", "HEAD")
    commit.cache_clear()
    (tmp_path / "a").write_text("b")
    assert commit(tmp_path) == git("rev-parse", "HEAD") + "+"
    commit.cache_clear()
