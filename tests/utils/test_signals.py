"""Ctrl-C of commands: while they import, where exceptions are lost, and twice during a long computation in C.

XLA's compiler is such a computation.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from internvlu_jax.utils.signals import children_spared, interrupts_held, interrupts_unwrapped, second_interrupt_ends

ROOT = Path(__file__).parents[2]
BUSY = """
import hashlib, signal
from internvlu_jax.utils.signals import second_interrupt_ends
signal.signal(signal.SIGINT, lambda *_: print("noted", flush=True))
with second_interrupt_ends("interrupted; x"):
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2 * 10**9)
"""


def test_the_second_one_ends_what_runs_no_handler():
    busy = subprocess.Popen(
        [sys.executable, "-c", BUSY], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert busy.stdout.readline() == "ready\n"
        time.sleep(0.2)
        busy.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert busy.poll() is None, "the first one waits"
        busy.send_signal(signal.SIGINT)
        assert busy.wait(timeout=30) == 130
        assert (busy.stdout.read(), busy.stderr.read()) == ("", "interrupted; x\n")
    finally:
        busy.kill()
        busy.communicate()


@pytest.fixture
def interrupts():
    """Ctrl-C as at a terminal: what a shell starts in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_nothing_is_left_behind(interrupts):
    """And handlers that get their turn decide."""
    threads = threading.active_count()
    with pytest.raises(KeyboardInterrupt), second_interrupt_ends("x"):
        signal.raise_signal(signal.SIGINT)
    assert signal.set_wakeup_fd(-1) == -1 and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert threading.active_count() == threads


# From the first moment on


IMPORTED = re.compile(r"import time: +\d+ \| +\d+ \| +(\S+)$")
# As pip writes it.
SCRIPT = "import sys\nfrom internvlu_jax.cli import main\nif __name__ == '__main__':\n    sys.exit(main())\n"
TRAIN = ("-m", "experiments.train", "debug", "--help")


def interrupted(command: tuple[str, ...], package: str, more: int, wait: float = 0) -> tuple[int, list[str]]:
    """Status and lines of a command that is interrupted when its package and so many modules more were imported."""
    command = (sys.executable, "-X", "importtime", *command)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (
        TemporaryDirectory() as folder,
        subprocess.Popen(
            command, cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as process,
    ):
        names = (found[1] for line in process.stderr if (found := IMPORTED.match(line)))
        assert package in names, "it ended before"
        for _ in range(more):
            next(names)
        timer = threading.Timer(wait, process.send_signal, [signal.SIGINT])
        timer.start()
        said = [line for line in process.stderr.read().splitlines() if line and not IMPORTED.match(line)]
        timer.join()
    return process.returncode, said


@pytest.mark.parametrize("more", [0, 40, 300, 700])
def test_while_a_command_is_imported(more, interrupts):
    assert interrupted(TRAIN, "experiments", more) == (130, ["interrupted"])


def test_while_the_shell_command_is_imported(interrupts, tmp_path):
    (tmp_path / "internvlu-jax").write_text(SCRIPT)
    for command in (("-m", "internvlu_jax.cli", "--help"), (str(tmp_path / "internvlu-jax"), "--help")):
        assert interrupted(command, "internvlu_jax", 30) == (130, ["internvlu-jax: interrupted"])


def commands() -> list[str]:
    """All modules that are run by `python -m`."""
    files = [path for top in ("internvlu_jax", "experiments") for path in (ROOT / top).rglob("*.py")]
    files = [path for path in files if '\nif __name__ == "__main__":' in path.read_text(encoding="utf-8")]
    return [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__") for path in files]


@pytest.mark.slow
@pytest.mark.parametrize("name", commands())
def test_while_any_command_is_imported(name, interrupts):
    """And at moments of a clock, as long as it has not come to an end, or its interpreter to that."""
    top = name.partition(".")[0]
    line = "internvlu-jax: interrupted" if top == "internvlu_jax" else "interrupted"
    assert interrupted(("-m", name, "--help"), top, 25) == (130, [line])
    for seconds in (0.1, 0.3, 1.0, 2.0, 3.0):
        status, said = interrupted(("-m", name, "--help"), top, 0, seconds)
        assert (status, said) == (130, [line]) or (status in (0, 2, -signal.SIGINT) and "Traceback" not in str(said))


RAISED = """
import signal
import internvlu_jax
class Freed:
    __del__ = lambda self: signal.raise_signal(signal.SIGINT)
"""


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("signal.raise_signal(signal.SIGINT)", 130, "internvlu-jax: interrupted"),
        ("Freed()", 130, "internvlu-jax: interrupted"),
        ("import inside", 130, "internvlu-jax: interrupted"),
        ("try:\n    signal.raise_signal(signal.SIGINT)\nexcept KeyboardInterrupt:\n    exit('mine')", 1, "mine"),
        ("1 / 0", 1, "ZeroDivisionError: division by zero"),
    ],
)
def test_an_interrupt_of_a_command(code, status, said, interrupts, tmp_path):
    """Also where its exception would be lost; one that is handled is the command's own, and so are other errors."""
    (tmp_path / "inside.py").write_text("import signal\ntry:\n    signal.raise_signal(signal.SIGINT)\nexcept: pass")
    (tmp_path / "internvlu-jax").write_text(RAISED + code)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, tmp_path / "internvlu-jax"], env=env, capture_output=True, text=True, check=False
    )
    lines = ended.stderr.splitlines()
    assert (ended.returncode, lines[-1]) == (status, said) and ended.stdout == ""
    assert len(lines) == 1 or status == 1


def test_others_keep_their_own(interrupts, tmp_path):
    """Whoever imports the packages, as a module that is run or not; and what ignores Ctrl-C goes on to do so."""
    (tmp_path / "mine").mkdir()
    look = "import signal, sys, internvlu_jax, experiments\n"
    look += "kept = signal.getsignal(signal.SIGINT), sys.excepthook, sys.unraisablehook\n"
    look += "assert kept == (signal.{}, sys.__excepthook__, sys.__unraisablehook__), kept\n"
    (tmp_path / "mine/__init__.py").write_text(look.format("default_int_handler"))
    (tmp_path / "mine/__main__.py").write_text("")
    (tmp_path / "internvlu-jax").write_text("import signal\n" + look.format("SIG_IGN"))
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", "mine", "experiments.train"], cwd=tmp_path, env=env, check=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    subprocess.run([sys.executable, tmp_path / "internvlu-jax"], cwd=tmp_path, env=env, check=True)


def test_children_leave_interrupts_to_their_parent(interrupts):
    """From their first moment on; one that comes meanwhile is not lost."""
    with pytest.raises(KeyboardInterrupt), children_spared():
        child = subprocess.Popen([sys.executable, "-c", "print('done')"], stdout=subprocess.PIPE, text=True)
        child.send_signal(signal.SIGINT)
        child.send_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert child.communicate()[0] == "done\n" and child.returncode == 0


@pytest.fixture
def another_thread():
    """Which the kernel may give a signal of the process to, as those of JAX: Python then runs its handler at once."""
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait)
    thread.start()
    yield
    ended.set()
    thread.join()


@pytest.mark.parametrize("within", [False, True])
def test_what_another_thread_gets_waits(within, interrupts, another_thread):
    """It comes once, also to what counts the signals, and when all such blocks have ended."""
    inside, outside = os.pipe()
    os.set_blocking(outside, False)
    before, reached = signal.set_wakeup_fd(outside), []
    try:
        with pytest.raises(KeyboardInterrupt), interrupts_held():
            with interrupts_held() if within else nullcontext():
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.1)
                reached.append(1)
            reached.append(2)
    finally:
        signal.set_wakeup_fd(before)
        os.close(outside)
    assert reached == [1, 2] and os.read(inside, 9) == bytes([signal.SIGINT])
    os.close(inside)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_handlers_that_are_not_pythons_stay(another_thread):
    for handler in (signal.SIG_IGN, signal.SIG_DFL):
        before = signal.signal(signal.SIGTERM, handler)
        with interrupts_held():
            assert signal.getsignal(signal.SIGTERM) is handler, "what a child begins with"
        signal.signal(signal.SIGTERM, before)


FIRST = """
import signal
from multiprocessing import get_context
from internvlu_jax.utils.signals import children_spared
for number in (signal.SIGTERM, signal.SIGINT):
    process = get_context("spawn").Process(target=signal.raise_signal, args=(number,))
    with children_spared():
        process.start()
    process.join()
    print(process.exitcode)
"""


def test_the_first_child_of_multiprocessing_too():
    """With it comes a process of multiprocessing's own."""
    ended = subprocess.run([sys.executable, "-c", FIRST], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["0", "0"]


def test_what_others_make_of_an_interrupt_is_one_again():
    """JAX does where it compares metadata; what was raised in place of one, `from None`, stays."""
    with pytest.raises(KeyboardInterrupt), interrupts_unwrapped():
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise ValueError("Exception raised while checking equality") from error
    with pytest.raises(KeyboardInterrupt), interrupts_unwrapped():  # which came while another error was handled
        try:
            try:
                raise OSError
            except OSError:
                raise KeyboardInterrupt  # noqa: B904
        except KeyboardInterrupt as error:
            raise ValueError("Exception raised while checking equality") from error
    with pytest.raises(ValueError, match="stopped"), interrupts_unwrapped():
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise ValueError("stopped") from None
    with pytest.raises(ValueError, match="mine"), interrupts_unwrapped():
        raise ValueError("mine")
