"""What importing costs, in fresh interpreters."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

import castling_convert as cc

HEAVY = (
    "torch timm onnx onnxruntime onnxscript onnxsim accelerate tensorrt tensorrt_rtx openvino matplotlib sklearn "
    "safetensors"
)


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_package_imports_nothing_heavy() -> None:
    code = "import sys, castling_convert, castling_convert.errors\n"
    assert run(code + f"print(*[m for m in {HEAVY.split()} if m in sys.modules])") == ""


def test_nothing_that_takes_time_is_imported_before_ctrl_c_is_answered() -> None:
    """Until `main` runs a Ctrl-C is a traceback; these are all the files that Python reads for it."""
    code = "import sys; before = set(sys.modules); import castling_convert.__main__\n"
    read = set(run(code + "print(*(set(sys.modules) - before))").split())
    ours = {"castling_convert", "castling_convert.version", "castling_convert.__main__"}
    assert read == {"__future__", *ours}


TIMM = {
    "before": "import timm, castling_convert",
    "after": "import castling_convert, timm",
    "after, by one of its modules": "import castling_convert, timm.layers",
    "after it was looked for": "import castling_convert, importlib.util; importlib.util.find_spec('timm'); import timm",
}


@pytest.mark.parametrize("order", TIMM)
def test_timm_knows_castled_models_in_either_order(order) -> None:
    code = "\nimport timm, importlib.resources\nprint(timm.is_model('castled'), type(timm.__loader__).__name__,"
    code += " timm.__loader__ is timm.__spec__.loader, importlib.resources.files('timm').joinpath('models').is_dir())"
    assert run(TIMM[order] + code) == "True SourceFileLoader True True"


def test_without_timm_the_error_is_of_timm() -> None:
    code = (
        "import sys, castling_convert\n"
        "sys.path[:] = [path for path in sys.path if 'site-packages' not in path]\n"
        "try: import timm\n"
        "except ModuleNotFoundError as error: print(error)"
    )
    assert run(code) == "No module named 'timm'"


def test_dir_and_all_import_nothing_heavy() -> None:
    code = "import sys, castling_convert as cc\nassert 'castle' in dir(cc) and 'fold' in cc.__all__\n"
    assert run(code + "print('torch' in sys.modules)") == "False"


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from castling_convert.cli import cli\n"
        "try: cli(['--help'])\n"
        "except SystemExit: pass\n"
        f"print('heavy:', *[m for m in {HEAVY.split()} if m in sys.modules])"
    )
    assert run(code).splitlines()[-1] == "heavy:"


@pytest.mark.parametrize(
    "words",
    ["recipes list", "recipes show castling", "recipes copy castling mine.yaml --force", "recipes validate datafree"],
)
def test_recipes_need_nothing_heavy(words, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert imported(words) == "0"


def test_models_need_nothing_heavy_the_second_time(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert "timm" in imported("models deit3_s*")
    assert imported("models deit3_s*") == "0"


def imported(words: str) -> str:
    """The exit code of a command, and what is heavy in what it has imported."""
    code = (
        f"import sys; sys.argv = ['castling', *{words.split()}]; from castling_convert.__main__ import main\n"
        "try: main()\n"
        f"except SystemExit as done: print(done.code, *[m for m in {HEAVY.split()} if m in sys.modules])"
    )
    return run(code).splitlines()[-1]


def test_help_answers_in_under_a_second() -> None:
    """Best of five: the machine may be busy with something else."""
    command = Path(sys.executable).with_name("castling")
    times = []
    for _ in range(5):
        start = time.perf_counter()
        done = subprocess.run([command, "--help"], capture_output=True, text=True, timeout=60, check=True)
        times.append(time.perf_counter() - start)
        assert "castling convert" in done.stdout
    assert min(times) < 1


def test_no_module_has_the_name_of_a_verb() -> None:
    """Importing it would put the module in the verb's place."""
    package = Path(cc.__file__).parent
    modules = {path.name.removesuffix(".py") for path in package.iterdir()}
    assert not modules & set(cc.__all__)


def test_verbs_stay_verbs_after_everything_was_imported() -> None:
    code = """
import pkgutil, importlib
import castling_convert as cc
for module in pkgutil.walk_packages(cc.__path__, "castling_convert."):
    if module.name.rpartition(".")[2] != "__main__":
        importlib.import_module(module.name)
for name in cc.__all__:
    value = getattr(cc, name)
    assert name == "__version__" or callable(value), (name, value)
print("verbs")
"""
    assert run(code) == "verbs"


def test_an_unknown_name_is_an_attribute_error() -> None:
    code = "import castling_convert as cc\ntry: cc.castel\nexcept AttributeError as e: print(e)"
    assert "castel" in run(code)
