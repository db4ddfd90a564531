"""castling verify"""

from __future__ import annotations

from pathlib import Path

import click

from .options import PATH, data_help, json_option, print_json, print_table


@click.command("verify", epilog="Example, after castling demo: castling verify castled/digits/model.onnx --data digits")
@click.argument("artifact", type=PATH)
@click.option("--bundle", type=PATH, help="The bundle [default: found by the artifact's record of it].")
@click.option("--data", help=data_help + " Without it generated images are used.")
@click.option("--atol", type=float, help="Allowed absolute error on a logit [default: by the precision].")
@click.option("--rtol", type=float, help="Allowed relative error on a logit [default: by the precision].")
@click.option("--limit", type=click.IntRange(min=1), default=256, show_default=True, help="Images, for a bundle.")
@json_option
def command(
    artifact: Path,
    bundle: Path | None,
    data: str | None,
    limit: int,
    atol: float | None,
    rtol: float | None,
    as_json: bool,
) -> None:
    """Compare ARTIFACT with its bundle's folded model and with the trained model before folding.

    Given a bundle, everything in it is compared: the trained model, the folded one, and every artifact; the
    result is kept in its verify.json.
    """
    from rich.table import Table

    from ..errors import BundleError, CheckFailed
    from ..verification.artifact import verify

    if artifact.is_dir():
        if bundle is not None:
            raise BundleError(f"{artifact} is a folder, so the bundle itself; leave out --bundle, or give an artifact")
        _ladder(artifact, data, limit, atol, rtol, as_json)
        return
    result = verify(artifact, bundle_path=bundle, data=data, atol=atol, rtol=rtol)
    if as_json:
        print_json(result.to_dict())
    else:
        table = Table(title=f"{artifact} on {result.images}", title_justify="left")
        for column in ("against", "max error", "mean error", "agreement", "holds"):
            table.add_column(column)
        for name, parity in (("folded model", result.folded), ("trained model", result.trained)):
            if parity is not None:
                table.add_row(name, f"{parity.max_error:.1e}", f"{parity.mean_error:.1e}",
                              f"{parity.agreement:.1f} %", "yes" if parity.holds else "NO")  # fmt: skip
        print_table(table)
        if result.trained is None:
            click.echo(
                "the bundle keeps no trained model (its train/ folder is gone): compared with the folded one only"
            )
    changed = f"{artifact} was changed since it was exported: its content's hash is another"
    if not (result.folded.holds and (result.trained is None or result.trained.holds)):
        also = "" if result.intact else f"; {changed}"
        raise CheckFailed(f"{artifact} differs from its bundle {result.bundle} by more than {result.allowed}{also}")
    if not result.intact:
        raise CheckFailed(f"{changed}; export it again")


def _ladder(path: Path, data: str | None, limit: int, atol: float | None, rtol: float | None, as_json: bool) -> None:
    from rich.table import Table

    from ..errors import CheckFailed
    from ..verification.ladder import FILE, ladder

    result = ladder(path, data, limit, atol=atol, rtol=rtol)
    if as_json:
        print_json(result.to_dict())
    else:
        table = Table(title=f"{path} on {result.images}", title_justify="left")
        for column in ("", "precision", "max error", "mean error", "agreement", result.judged_by, "allowed", "holds"):
            table.add_column(column)
        for rung in result.rungs:
            top1 = "" if rung.top1 is None else f"{rung.top1:.2f} %"
            if rung.parity is None:
                table.add_row(rung.name, rung.precision, *[""] * 3, top1, rung.note, "")
            else:
                parity = rung.parity
                table.add_row(rung.name, rung.precision, f"{parity.max_error:.1e}", f"{parity.mean_error:.1e}",
                              f"{parity.agreement:.1f} %", top1, rung.allowed or "",
                              "yes" if rung.holds else f"NO {rung.note}")  # fmt: skip
        print_table(table)
        click.echo(f"kept in {path / FILE}")
    if not result.holds:
        wrong = [rung.name for rung in result.rungs if not rung.holds]
        verb = "differ" if len(wrong) > 1 else "differs"
        raise CheckFailed(f"{', '.join(wrong)} of {path} {verb} by more than allowed, or from what was exported")
