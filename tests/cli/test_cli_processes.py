"""What only a real process shows: signals, start-up time, a machine without network."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

import castling_convert as cc
from castling_convert.distillation.state import saved_step
from castling_convert.distillation.tracking import TRACKERS
from castling_convert.errors import BundleError

SCRIPT = Path(sys.executable).with_name("castling")
COMMAND = [sys.executable, "-m", "castling_convert"]
pytestmark = pytest.mark.xdist_group("processes")


def start(environment, *arguments, nohup=False):
    command = [*(["nohup"] if nohup else []), *COMMAND, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def until(reached, process) -> None:
    """Wait until `reached()`, while the process runs, two minutes at most."""
    deadline = time.monotonic() + 120
    while not reached():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "it did not come so far in two minutes"
        time.sleep(0.02)


def only_error(err: str) -> str:
    """The one error line of a process that may have shown progress before it."""
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, err
    assert err.splitlines()[-1] == lines[0], err
    return lines[0]


def test_help_answers_within_a_second_and_imports_nothing_heavy(environment):
    if not SCRIPT.exists():
        pytest.skip(f"no {SCRIPT}: the package is not installed in this environment")

    def seconds() -> float:
        started = time.monotonic()
        done = subprocess.run([SCRIPT, "--help"], env=environment, capture_output=True, text=True, check=True)
        assert "castling convert" in done.stdout
        return time.monotonic() - started

    assert min(seconds() for _ in range(4)) < 1
    code = (
        "import sys; from castling_convert.cli import cli; cli(['convert', '--help'], standalone_mode=False); "
        "print([m for m in ('torch', 'timm', 'onnx', 'rich', 'accelerate', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_signal_during_training_can_be_resumed(environment, here, tiny, castling, number):
    arguments = ["convert", *tiny, "--data", "digits", "--steps", 2000, "-o", "out"]
    process = start(environment, *arguments)
    metrics = here / "out" / "train" / "metrics.jsonl"
    until(lambda: metrics.exists() and metrics.read_text().count("\n") >= 3, process)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    line = only_error(err)
    step = int(re.search(r"interrupted after step (\d+) of 2000", line)[1])
    assert "--resume" in line
    assert step == len(metrics.read_text().splitlines()) < 2000
    assert [path.name for path in here.iterdir()] == ["out"]
    assert [path.name for path in (here / "out").iterdir()] == ["train"]
    with pytest.raises(BundleError, match=r"holds an unfinished conversion.*--resume"):
        cc.load("out")
    castling("export", "out").failed(2, "unfinished conversion", "--resume")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
@pytest.mark.parametrize("after", [0.0, 2.0], ids=["while importing", "two seconds later"])
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc to see how far the process is")
def test_a_signal_before_training_leaves_nothing(environment, here, tiny, number, after):
    process = start(environment, "convert", *tiny, "--data", "digits", "--steps", 100_000, "-o", "out")
    maps = Path(f"/proc/{process.pid}/maps")
    until(lambda: "libtorch" in maps.read_text(), process)
    time.sleep(after)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    line = only_error(err)
    assert line.startswith("error: interrupted")
    if "--resume" not in line:  # on a fast machine the training has begun: the test above
        assert list(here.iterdir()) == []


@pytest.mark.parametrize("as_text", [False, True], ids=["", "in a text run as code"])
@pytest.mark.parametrize("imported", ["castling_convert.cli", "click", "castling_convert.errors", "torch"])
def test_ctrl_c_while_the_command_is_still_imported(environment, here, tmp_path, imported, as_text):
    """The signal comes from within the import: of click first, of torch by the command itself. In a text that is run as
    code, as dataclasses run theirs, Python remembers it and would end itself by another signal. (A shell's background
    processes would not hear it before the command itself listens.)"""
    kill = "os.kill(os.getpid(), signal.SIGINT)"
    (tmp_path / "sitecustomize.py").write_text(f"""
import os, signal, sys

signal.signal(signal.SIGINT, signal.default_int_handler)

class Early:
    def find_spec(self, name, path=None, target=None):
        if name == "{imported}":
            sys.meta_path.remove(self)
            {f"exec({kill!r}, globals())" if as_text else kill}

sys.meta_path.insert(0, Early())
""")
    done = started_with(tmp_path, environment, "convert", "--model", "vit_t", "--no-pretrained")
    assert done.returncode == 130
    assert done.stderr.strip() == "error: interrupted"
    assert list(here.iterdir()) == []


def test_ctrl_c_that_is_swallowed_while_the_command_is_imported(environment, here, tmp_path):
    """As Python itself swallows what is raised in the callbacks of its own import locks, with a traceback."""
    (tmp_path / "sitecustomize.py").write_text("""
import os, signal, sys, weakref

signal.signal(signal.SIGINT, signal.default_int_handler)

class Early:
    def find_spec(self, name, path=None, target=None):
        if name == "click":
            sys.meta_path.remove(self)
            weakref.ref(Early(), lambda _: os.kill(os.getpid(), signal.SIGINT))

sys.meta_path.insert(0, Early())
""")
    done = started_with(tmp_path, environment, "convert", "--model", "vit_t", "--no-pretrained", "--json")
    assert done.returncode == 130
    assert json.loads(done.stderr) == {"error": "interrupted", "exit_code": 130}
    assert list(here.iterdir()) == []


def test_ctrl_c_while_torch_is_imported(environment, here, tmp_path):
    """Where its C++ calls Python, an exception is the end of the process, by abort; here it is swallowed. No handler
    may raise there."""
    (tmp_path / "sitecustomize.py").write_text("""
import os, signal, sys

signal.signal(signal.SIGINT, signal.default_int_handler)

class Early:
    def find_spec(self, name, path=None, target=None):
        if name == "torch._meta_registrations":
            sys.meta_path.remove(self)
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except BaseException:
                pass

sys.meta_path.insert(0, Early())
""")
    done = started_with(tmp_path, environment, "inspect", "--model", "vit_t")
    assert done.returncode == 130, done.stderr
    assert done.stderr.strip() == "error: interrupted"
    assert done.stdout == ""


def test_ctrl_c_at_the_end_of_a_command_shows_no_traceback(environment, tmp_path):
    """What is printed is printed; the signal finds Python itself at its end."""
    (tmp_path / "sitecustomize.py").write_text("""
import atexit, os, signal

signal.signal(signal.SIGINT, signal.default_int_handler)
atexit.register(os.kill, os.getpid(), signal.SIGINT)
""")
    done = started_with(tmp_path, environment, "--version")
    assert done.returncode == -signal.SIGINT
    assert done.stdout.startswith("castling, version ")
    assert done.stderr == ""


def started_with(folder, environment, *arguments) -> subprocess.CompletedProcess[str]:
    """The command, in a Python that runs the folder's `sitecustomize.py` first."""
    path = os.pathsep.join([str(folder), *filter(None, [environment.get("PYTHONPATH")])])
    command = [*COMMAND, *arguments]
    return subprocess.run(command, env={**environment, "PYTHONPATH": path}, capture_output=True, text=True, timeout=120)


def test_a_signal_that_a_library_swallows_still_stops_the_run(environment, here, tiny, tmp_path):
    """As a library does that tries whether another can be imported, and catches whatever comes."""
    (tmp_path / "early.py").write_text("""
import os, runpy, signal, sys

class Early:
    def find_spec(self, name, path=None, target=None):
        if name == "timm":
            sys.meta_path.remove(self)
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except BaseException:
                pass

sys.meta_path.insert(0, Early())
runpy.run_module("castling_convert", run_name="__main__")
""")
    arguments = map(str, ["convert", *tiny, "--data", "digits", "--steps", 300, "-o", "out"])
    done = subprocess.run(
        [sys.executable, tmp_path / "early.py", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 130, done.stderr
    assert only_error(done.stderr).startswith("error: interrupted")


@pytest.fixture
def hangups_count():
    """For what is started, whether or not nohup has told these tests to ignore them."""
    former = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, former)


@pytest.mark.usefixtures("hangups_count")
def test_a_closed_terminal_loses_no_step(environment, here, tiny, castling):
    """What still shows its progress there gets a SIGHUP, and an error from everything it writes."""
    arguments = [*map(str, ["convert", *tiny, "--data", "digits", "--steps", 2000, "-o", "out"])]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, [*COMMAND, *arguments], environment)
    metrics = here / "out" / "train" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") >= 3):
        assert time.monotonic() < deadline
        if select.select([terminal], [], [], 0.02)[0]:
            os.read(terminal, 4096)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 130
    step = json.loads((here / "out" / "train" / "state" / "run.json").read_text())["step"]
    assert step == metrics.read_text().count("\n") < 2000


@pytest.mark.usefixtures("hangups_count")
@pytest.mark.parametrize("signals", [[signal.SIGHUP], [signal.SIGHUP] * 2, [signal.SIGTERM, signal.SIGHUP]], ids=str)
def test_a_hangup_never_counts_as_the_second_signal(environment, here, tiny, signals):
    process = start(environment, "convert", *tiny, "--data", "digits", "--steps", 2000, "-o", "out")
    metrics = here / "out" / "train" / "metrics.jsonl"
    until(lambda: metrics.exists() and metrics.read_text().count("\n") >= 3, process)
    for number in signals:
        process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert re.search(r"interrupted after step \d+ of 2000; go on with the same command and --resume", only_error(err))


def test_nohup_is_respected(environment, here, tiny):
    process = start(environment, "convert", *tiny, "--data", "digits", "--steps", 30, "-o", "out", nohup=True)
    metrics = here / "out" / "train" / "metrics.jsonl"
    until(lambda: metrics.exists() and metrics.read_text().count("\n") >= 3, process)
    process.send_signal(signal.SIGHUP)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert (here / "out" / "config.json").is_file()


def test_a_checkpoint_every_so_many_minutes(environment, here, tiny, castling):
    """Long before `checkpoint_every` steps; a kill loses what came after it alone."""
    settings = ("--set", "distill.checkpoint_every=100000", "--set", "distill.checkpoint_minutes=0.005")
    process = start(environment, "convert", *tiny, "--data", "digits", "--steps", 2000, "-o", "out", *settings)
    state = here / "out" / "train" / "state"

    def step() -> int:  # each state takes the place of the one before
        return saved_step(state) or 0

    until(lambda: step() > 1, process)
    process.kill()
    process.communicate()
    assert 1 < step() < 2000


def refused_download(environment, here) -> str:
    process = start(environment, "convert", "--model", "deit_s")
    out, err = process.communicate(timeout=240)
    assert process.returncode == 2, err
    assert out == ""
    line = only_error(err)
    assert err.splitlines() == [line]  # nothing but the one line
    assert [
        word for word in ("deit_s", "can't be downloaded", "--weights", "--no-pretrained") if word not in line
    ] == []
    assert list(here.iterdir()) == []
    return line


def test_no_network_when_the_user_has_said_so(environment, here, tmp_path):
    refused_download({**environment, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}, here)


def test_no_network_as_the_machine_finds_out(environment, here, tmp_path):
    """Nothing listens on the discard port, so every connection is refused, as without a network."""
    started = time.monotonic()
    unreachable = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "cache")}
    refused_download({**environment, **unreachable}, here)
    assert time.monotonic() - started < 40  # the user is not kept waiting for retries


def test_an_interrupted_run_resumed_by_the_same_command(environment, here, tiny, castling, monkeypatch):
    """With --resume the second process ends the first one's work: every step once, and a whole bundle."""
    arguments = ["convert", *tiny, "--data", "digits", "--steps", 40, "-o", "out", "--set", "distill.batch_size=4"]
    process = start(environment, *arguments, "--set", "distill.checkpoint_every=5")
    metrics = here / "out" / "train" / "metrics.jsonl"
    until(lambda: metrics.exists() and metrics.read_text().count("\n") >= 8, process)
    process.kill()  # no chance to save anything: the last checkpoint has to do
    process.communicate()
    assert (here / "out" / "train" / "state" / "run.json").is_file()
    castling(*arguments, "--set", "distill.checkpoint_every=5", "--resume").done()
    records = [json.loads(line) for line in (here / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, 41))
    assert [path.name for path in here.iterdir()] == ["out"]
    assert [path.name for path in (here / "out" / "train").iterdir()] == ["trained.safetensors"]
    assert cc.load("out").num_classes == 10


@pytest.mark.parametrize("flags", [(), ("--force",), ("--resume",)], ids=["plain", "force", "resume"])
def test_a_second_process_is_refused_until_the_first_is_dead(environment, here, tiny, castling, flags):
    arguments = ["convert", *tiny, "--data", "digits", "--steps", 60, "--set", "distill.batch_size=4", "-o", "out"]
    process = start(environment, *arguments[:-4], "--set", "distill.batch_size=4", "-o", "out",
                    "--set", "distill.checkpoint_every=1")  # fmt: skip
    until((here / "out" / "train" / "state" / "run.json").exists, process)
    process.send_signal(signal.SIGSTOP)
    os.waitpid(process.pid, os.WUNTRACED)  # it is alive, and changes nothing while this one looks
    result = castling(*arguments, *flags)
    line = result.refused(
        f"out is in the hands of process {process.pid} on {socket.gethostname()}, since 20", "--output"
    )
    assert "wait for it" in line
    process.kill()
    process.communicate()
    if flags == ():
        castling(*arguments).failed(2, "out holds an unfinished conversion", "--resume")
    else:
        castling(*arguments, *flags).done()
        assert [path.name for path in here.iterdir()] == ["out"]


def test_two_that_begin_at_once_end_as_one(environment, here, tiny):
    arguments = ["convert", *tiny, "--data", "digits", "--steps", 20, "-o", "castled/out"]
    both = [start(environment, *arguments, "--seed", seed) for seed in (1, 2)]
    errors = [process.communicate(timeout=120)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], errors
    assert "castled/out is in the hands of process" in only_error(errors[0] if both[0].returncode else errors[1])
    assert len((here / "castled" / "out" / "metrics.jsonl").read_text().splitlines()) == 20
    assert [path.name for path in (here / "castled").iterdir()] == ["out"]


def test_onnxruntime_gpu_in_the_place_of_onnxruntime(environment, here, tiny, tmp_path):
    """The installed packages as they are, but for the name that pip has written down."""
    installed = Path(sysconfig.get_path("purelib"))
    (tmp_path / "site").mkdir()
    for path in installed.iterdir():
        if not path.name.startswith("onnxruntime-"):
            (tmp_path / "site" / path.name).symlink_to(path)
    (record,) = installed.glob("onnxruntime-*.dist-info")
    renamed = tmp_path / "site" / record.name.replace("onnxruntime", "onnxruntime_gpu")
    shutil.copytree(record, renamed)
    metadata = (renamed / "METADATA").read_text()
    (renamed / "METADATA").write_text(metadata.replace("Name: onnxruntime\n", "Name: onnxruntime-gpu\n"))
    home = Path(cc.__file__).parent.parent
    environment = {**environment, "PYTHONPATH": f"{tmp_path / 'site'}:{home}"}

    def castling(*arguments) -> str:
        command = [sys.executable, "-S", *COMMAND[1:], *map(str, arguments)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    shown = r"\d+\.\S+ \(onnxruntime-gpu\)"
    assert re.search(rf"onnxruntime +{shown}", castling("doctor"))
    castling("convert", *tiny, "--data", "digits", "--steps", 1, "-o", "out")
    assert re.fullmatch(shown, json.loads((here / "out" / "summary.json").read_text())["versions"]["onnxruntime"])


KILLED = """
import os, signal, accelerate
from pathlib import Path
from castling_convert import files

def kill(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)

def second_time(whole):
    calls = []
    def counted(*arguments, **options):
        calls.append(1)
        whole(*arguments, **options)
        if len(calls) == 2:
            kill()
    return counted

{patch}
from castling_convert.cli import main
main()
"""
SAVING = "accelerate.Accelerator.save_state = second_time(accelerate.Accelerator.save_state)"
MOVED = """
files._exchange = lambda one, other: False
whole = Path.rename
Path.rename = lambda self, target: (whole(self, target), kill() if ".old." in str(target) else None)[0]
"""
EXCHANGED = "whole = files._exchange; files._exchange = lambda *paths: (whole(*paths), kill())[0]"
FIRST = "accelerate.Accelerator.save_state = kill"


@pytest.mark.parametrize("patch", [SAVING, MOVED, EXCHANGED], ids=["saving", "between two renames", "exchanged"])
def test_killed_while_a_checkpoint_is_written(environment, here, tiny, castling, patch):
    """A kill that nothing can catch, at the second checkpoint: the same command with --resume ends as without it."""
    arguments = ["convert", *tiny, "--data", "digits", "--steps", 12, "--set", "distill.batch_size=4"]
    arguments += ["--set", "distill.checkpoint_every=4"]
    command = [sys.executable, "-c", KILLED.format(patch=patch), *map(str, arguments), "-o", "out"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [path.name for path in (here / "out" / "train").glob(".*")]  # it was killed in the middle
    castling(*arguments, "-o", "out", "--resume").done()
    castling(*arguments, "-o", "whole").done()
    assert sorted(path.name for path in here.iterdir()) == ["out", "whole"]
    assert sorted(path.name for path in (here / "out").rglob("*")) == sorted(
        path.name for path in (here / "whole").rglob("*")
    )
    weights = [(here / out / "model.safetensors").read_bytes() for out in ("out", "whole")]
    assert weights[0] == weights[1]


def test_killed_before_there_was_anything_to_lose(environment, here, tiny, castling):
    """Killed while the first checkpoint is written: the same command begins again."""
    arguments = ["convert", *tiny, "--data", "digits", "--steps", 6, "--set", "distill.batch_size=4", "-o", "out"]
    arguments += ["--set", "distill.checkpoint_every=3"]
    command = [sys.executable, "-c", KILLED.format(patch=FIRST), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    line = castling(*arguments, "--resume").failed(2, "nothing to resume", "holds no interrupted run")
    assert line.endswith("leave out --resume")
    castling(*arguments).done()
    assert [path.name for path in here.iterdir()] == ["out"]
    castling(*arguments).refused("out exists", "--force")


def test_after_so_many_minutes(castling, here, tiny):
    """One line, exit code 130, and the same command with --resume goes on."""
    arguments = ["convert", *tiny, "--data", "digits", "--steps", 3, "-o", "out"]
    stopped = castling(*arguments, "--max-minutes", "0.00001")
    line = "error: stopped by --max-minutes 1e-05 after step {} of 3; go on with the same command and --resume"
    assert stopped.failed(130) == line.format(1)
    assert [path.name for path in (here / "out").iterdir()] == ["train"]
    assert castling(*arguments, "--max-minutes", "0.00001", "--resume").failed(130) == line.format(2)
    assert "3 steps, " in (shown := castling(*arguments, "--max-minutes", "60", "--resume").done().out)
    assert "from step 3 on" in shown
    castling(*arguments, "--max-minutes", "0", "--force").refused("--max-minutes", "above zero, not 0")


def test_a_tracker_that_is_not_installed(castling, tiny, monkeypatch):
    monkeypatch.setitem(TRACKERS, "tensorboard", lambda: False)
    line = castling("convert", *tiny, "--track", "tensorboard", "-o", "out").refused()
    assert line == "error: --track tensorboard needs tensorboard: pip install 'castling-convert[track]'"
    castling("convert", *tiny, "--track", "wandb", "-o", "out").refused("--track 'wandb'", "use tensorboard")
