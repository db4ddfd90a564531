"""Who reads what is printed: a narrow terminal, one without colours, a pipe that is closed, a program."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest

from castling_convert.cli import models

CASTLING = [sys.executable, "-m", "castling_convert"]


def on_terminal(environment: dict[str, str], columns: int, *arguments: str) -> tuple[int, str]:
    """Exit code and output of `castling` on a terminal of so many columns."""
    pid, terminal = pty.fork()
    if pid == 0:  # in the child
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        os.execve(sys.executable, [*CASTLING, *arguments], environment)
    shown = b""
    try:
        while part := os.read(terminal, 4096):
            shown += part
    except OSError:  # what Linux says when the child has closed its side
        pass
    finally:
        os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown.decode().replace("\r\n", "\n")


@pytest.fixture
def environment(environment):
    return {
        name: value for name, value in environment.items() if name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")
    } | {"TERM": "xterm-256color"}


def test_no_color(environment):
    line = "no recipe named 'zzz'; shipped recipes: castling-fast, castling-window, castling, datafree, reference\n"
    code, shown = on_terminal(environment, 80, "recipes", "show", "zzz")
    assert (code, shown) == (2, f"\x1b[31merror: \x1b[0m{line}")
    code, shown = on_terminal({**environment, "NO_COLOR": "1"}, 80, "recipes", "show", "zzz")
    assert (code, shown) == (2, f"error: {line}")


def test_a_table_on_a_narrow_terminal_is_a_list(environment):
    """Of which no word is cut; a table of that width has words broken in two."""
    arguments = ("inspect", "--model", "vit_t", "--no-pretrained", "--model-arg", "depth=1")
    code, shown = on_terminal({**environment, "NO_COLOR": "1"}, 40, *arguments)
    assert code == 0
    words = "kind: Attention\n  tokens: 197\n  heads: 3\n  head dim: 64\n  M MACs: softmax, castled: 44.0, 42.1\n"
    assert f"blocks.0.attn\n  {words}  can be castled: yes\n" in shown
    code, shown = on_terminal({**environment, "NO_COLOR": "1"}, 100, *arguments)
    assert code == 0
    assert "│ blocks.0.attn │ Attention │ 197    │ 3     │ 64       │ 44.0, 42.1 " in shown


@pytest.mark.parametrize(
    "words", ["models", "models --json", "recipes list", "recipes show castling", "convert --help"]
)
def test_a_closed_pipe_ends_it_without_a_word(environment, words):
    """As `castling models | head -1` does, with the exit code that a shell gives for `yes | head -1`."""
    process = subprocess.Popen(
        [*CASTLING, *words.split()], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    assert (process.stderr.read(), process.wait(timeout=120)) == ("", 141)
    process.stderr.close()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            "recipes show zzz",
            "no recipe named 'zzz'; shipped recipes: castling-fast, castling-window, castling, datafree, reference",
        ),
        ("recipes validate", "Missing argument 'RECIPE'. (see: castling recipes validate --help)"),
        (
            "evaluate nothing --data digits",
            "no bundle at nothing; make one with: castling convert --model NAME --output nothing",
        ),
        ("verify nothing", None),
        ("convert --model zzzz --no-pretrained", None),
        ("inspect --model zzzz", None),
        ("analyze --model zzzz", None),
        ("bench nothing", None),
        ("export nothing --format zzzz", None),
        ("models zzzz", "no model that can be castled matches 'zzzz'"),
        ("doctor --zzz", None),
        ("demo --seed x", None),
    ],
)
def test_an_error_for_a_program_is_one_object(castling, words, line):
    plain, result = castling(*words.split()), castling(*words.split(), "--json")
    assert result.out == ""
    assert result.err.count("\n") == 1
    found = json.loads(result.err)
    assert found == {"error": plain.refused().removeprefix("error: "), "exit_code": 2}
    assert line in (None, found["error"])
    assert result.code == 2


def test_an_error_after_some_progress_is_the_last_line(castling):
    lines = castling("export", "nothing", "--json").err.splitlines()
    assert json.loads(lines[-1]) == {
        "error": "no bundle at nothing; make one with: castling convert --model NAME --output nothing",
        "exit_code": 2,
    }


def test_an_option_that_looks_like_it_is_not_asked_for(castling):
    castling("recipes", "show", "--", "--json").refused("no recipe named '--json'")


def test_a_recipe_for_a_program(castling):
    shown = json.loads(castling("recipes", "show", "castling", "--set", "distill.steps=7", "--json").done().out)
    assert (shown["name"], shown["distill"]["steps"], shown["attention"]["form"]) == ("castling", 7, "landmarks")
    checked = json.loads(castling("recipes", "validate", "datafree", "--json").done().out)
    assert checked == {
        "valid": True, "recipe": "datafree", "name": "datafree", "version": 2, "steps": None, "images": 76_800,
    }  # fmt: skip
    counted = castling("recipes", "validate", "datafree", "--set", "distill.steps=7", "--json").done().out
    assert json.loads(counted)["steps"] == 7


@pytest.fixture
def kept(castling, tmp_path, monkeypatch):
    """The file of the cache, which is made here."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    castling("models").done()
    return tmp_path / "cache" / "castling-convert" / "models.json"


def test_models_are_read_from_the_cache(castling, kept):
    values = json.loads(kept.read_text())
    kept.write_text(json.dumps({**values, "models": ["kept"], "aliases": {"k": "kept"}}))
    assert json.loads(castling("models", "--json").done().out) == {"aliases": {"k": "kept"}, "models": ["kept"]}


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: json.dumps({**json.loads(text), "models": [1]}),
        lambda text: json.dumps({**json.loads(text), "aliases": ["k"]}),
        lambda text: json.dumps({**json.loads(text), "registry": ["1.0", "0.1", "of other files"], "models": []}),
    ],
    ids=["cut short", "a list", "a number", "no aliases", "of another version"],
)
def test_a_cache_that_is_not_right_is_made_again(castling, kept, change):
    right = kept.read_text()
    kept.write_text(change(right))
    castling("models", "deit3_s*").done()
    assert kept.read_text() == right


def test_no_cache_no_harm(castling, here, monkeypatch):
    """A file is in the way of its folder."""
    (here / "cache").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "cache"))
    assert "deit3_small_patch16_224" in castling("models", "deit3_s*").done().out


def test_the_registry_of_the_cache_knows_families_and_aliases(monkeypatch, tmp_path):
    """In a checkout they change while the version stays."""
    before = models._registry()
    package = tmp_path / "castling_convert"
    (package / "families").mkdir(parents=True)
    (package / "cli").mkdir()
    (package / "loading.py").write_text("ALIASES = {}")
    monkeypatch.setattr(models, "__file__", str(package / "cli" / "models.py"))
    assert models._registry()[:2] == before[:2]
    assert models._registry()[2] != before[2]
