"""The check of the repository's files: which it refuses, and what it says."""

import shutil
import subprocess
from pathlib import Path

import pytest

CHECK = Path(__file__).parents[1] / ".ci/check_sizes"
LARGE = 1_200_000

pytestmark = pytest.mark.skipif(
    shutil.which("git") is None or not CHECK.exists(), reason="needs git and the repository's .ci"
)


def git(repository, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", "-C", repository, *identity, *arguments], check=True, capture_output=True, text=True)


def commit(repository, path, size, message):
    file = repository / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"\1" * size)
    git(repository, "add", path)
    git(repository, "commit", "-q", "-m", message)


def check(repository):
    done = subprocess.run([CHECK, repository], capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


@pytest.fixture
def repository(tmp_path):
    """With a large file from before the rule, which is gone, and the rule."""
    root = tmp_path / "repository"
    root.mkdir()
    git(root, "init", "-q", "-b", "main")
    commit(root, "old.bin", LARGE + 1, "before the rule")
    git(root, "rm", "-q", "old.bin")
    git(root, "commit", "-q", "-m", "old.bin goes")
    commit(root, ".ci/check_sizes", 10, "the rule")
    commit(root, "a.txt", 1_000_000, "just small enough")
    return root


def test_a_large_file_is_refused_with_its_commit_even_if_it_is_gone(repository):
    assert check(repository) == (0, "")
    commit(repository, "experiments/results/a sheet.png", LARGE, "a sheet")
    added = git(repository, "rev-parse", "--short", "HEAD").stdout.strip()
    line = f"experiments/results/a sheet.png: 1,200,000 bytes, added by commit {added} a sheet"
    status, said = check(repository)
    assert (status, said.splitlines()[0]) == (1, line)
    git(repository, "rm", "-q", "experiments/results/a sheet.png")
    git(repository, "commit", "-q", "-m", "the sheet goes")
    status, said = check(repository)
    assert (status, said.splitlines()[0]) == (1, line)


def test_what_comes_with_a_merge_is_refused(repository):
    git(repository, "checkout", "-q", "-b", "side")
    commit(repository, "b.txt", 10, "on the side")
    git(repository, "checkout", "-q", "main")
    commit(repository, "c.txt", 10, "on main")
    git(repository, "merge", "-q", "--no-commit", "--no-ff", "side")
    commit(repository, "large.bin", LARGE, "the merge")
    status, said = check(repository)
    assert status == 1
    assert said.startswith("large.bin: 1,200,000 bytes") and "the merge" in said.splitlines()[0]


@pytest.mark.parametrize("folder", ["internvlu_jax/small_world/weights", "tests/goldens"])
def test_weights_and_recorded_numbers_may_be_large(repository, folder):
    commit(repository, f"{folder}/model.safetensors", LARGE, "weights")
    assert check(repository) == (0, "")


def test_a_shallow_clone_is_checked_as_far_as_it_goes(repository, tmp_path):
    def shallow(name):
        git(tmp_path, "clone", "-q", "--depth", "1", repository.as_uri(), name)
        return check(tmp_path / name)

    assert shallow("small") == (0, "")
    commit(repository, "b.bin", LARGE, "large")
    status, said = shallow("large")
    assert status == 1
    assert said.startswith("b.bin: 1,200,000 bytes")
