"""Writes docs/reference.md and the README's table of models from the registries: `python docs/build.py`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import timm

from castling_convert import errors
from castling_convert.artifact.precision import PRECISIONS
from castling_convert.attention import FORMS, AttentionConfig
from castling_convert.exporting import FORMATS
from castling_convert.families import FAMILIES, castable_names
from castling_convert.loading import ALIASES
from castling_convert.quantize import QUANTIZERS
from castling_convert.recipe import Recipe, shipped
from castling_convert.tasks import TASKS

FILE, README = Path(__file__).parent / "reference.md", Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- models: made by docs/build.py -->", "<!-- end of models -->"
ABREAST = 3
"""Families in a row of the README's table."""


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def first_sentence(thing: object) -> str:
    text = " ".join((thing.__doc__ or "").split())
    return text.partition(". ")[0].rstrip(".")


def exits() -> list[tuple[int, str]]:
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.CastlingError)
    ]
    found: dict[int, list[str]] = {}
    for kind in kinds:
        if kind is not errors.CastlingError:
            found.setdefault(kind.exit_code, []).append(f"`{kind.__name__}`: {first_sentence(kind)}")
    return [(0, "done"), *((code, "; ".join(said)) for code, said in sorted(found.items()))]


def page() -> str:
    recipes = [Recipe.load(name) for name in shipped()]
    sections = {
        "Recipes": table(
            ("recipe", "form", "window", "images", "layers alone", "optimiser"),
            [
                (f"`{recipe.name}`", recipe.attention.form, recipe.attention.window or "", recipe.distill.images,
                 f"{recipe.distill.align.share:.0%}", recipe.distill.optimizer.name)
                for recipe in recipes
            ],
        ),
        "Linear forms (`attention.form`)": table(
            ("form", "keys of its own"),
            [
                (f"`{name}`", ", ".join(f"`{key}`" for key in form.config.model_fields
                                        if key not in AttentionConfig.model_fields) or "none")
                for name, form in FORMS.items()
            ],
        ),
        "Formats (`--format`)": table(
            ("format", "file", "precisions"),
            [(f"`{name}`", f"`{found.suffix}`", ", ".join(found.precisions)) for name, found in FORMATS.items()],
        ),
        "Precisions (`--precision`)": table(
            ("precision", "parity holds within"),
            [(f"`{name}`", str(found.tolerance).replace("|logit|", "logit")) for name, found in PRECISIONS.items()],
        ),
        "Quantizers (`quantizer=`)": table(("method",), [(f"`{name}`",) for name in QUANTIZERS]),
        "Tasks (`--task`)": table(
            ("task", "what it is"),
            [(f"`{name}`", first_sentence(task)) for name, task in TASKS.items()],
        ),
        "Families": table(
            ("family", "timm modules", "names left out"),
            [(family.title, ", ".join(family.timm_modules), len(family.excluded)) for family in FAMILIES],
        ),
        "Aliases": table(("alias", "timm name"), [(f"`{alias}`", f"`{name}`") for alias, name in ALIASES.items()]),
        "Exit codes": table(("code", "when"), exits()),
    }  # fmt: skip
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    return f"# Reference\n\nMade from the registries by `python docs/build.py`; a test holds it current.\n\n{body}\n"


def counts() -> dict[str, int]:
    """How many timm names of each family can be castled, the largest family first."""
    found: Counter[str] = Counter()
    for name in castable_names():
        module = timm.models.model_entrypoint(name).__module__.removeprefix("timm.models.")
        family = next(family for family in reversed(FAMILIES) if module in family.timm_modules)
        found[family.title.removeprefix("timm ")] += 1
    return dict(found.most_common())


def models() -> str:
    """The README's table: some families abreast, so that it fits on a screen."""
    cells = [(title, str(count)) for title, count in counts().items()]
    cells += [("", "")] * (-len(cells) % ABREAST)
    height = len(cells) // ABREAST
    rows = [[text for column in range(ABREAST) for text in cells[row + column * height]] for row in range(height)]
    return table(("family", "names") * ABREAST, rows)


def readme(text: str) -> str:
    """`text` with today's table of models."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{models()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    FILE.write_text(page(), encoding="utf-8")
    README.write_text(readme(README.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"wrote {FILE} and {README}")
