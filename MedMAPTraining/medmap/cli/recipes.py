"""``medmap recipes``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from medmap.cli.base import app, err, out

if TYPE_CHECKING:
    from medmap.training.published import PublishedRow
    from medmap.training.recipe import Recipe


@app.command()
def recipes(
    name: Annotated[
        str | None,
        typer.Argument(help="Print this recipe as JSON, which medmap train takes as a file."),
    ] = None,
) -> None:
    """List the recipes: published results (split, Dice in percent), and one recipe per backbone."""
    from medmap.training.published import find_recipe, published_rows, recipes_folder

    if name is not None:
        _show(*find_recipe(name))
        return
    source = ""
    for row in published_rows().values():
        if row.source != source:
            source = row.source
            out.print(f"\n{source}", soft_wrap=True, markup=False)
        figures = ", ".join(f"{key} {value:.2f}" for key, value in row.published.items())
        line = f"  {row.name:42} {row.recipe.split:20} {figures}".rstrip()
        out.print(line, soft_wrap=True, markup=False)
    root = recipes_folder()
    without_table = []
    for folder in (root, root / "networks"):
        without_table += [path.stem for path in sorted(folder.glob("*.json"))]
    for path in sorted((root / "myops").glob("*.json")):
        without_table.append(f"myops/{path.stem}")
    out.print(f"\nWithout a table: {', '.join(without_table)}.", soft_wrap=True)
    out.print(
        "Train one with: medmap train RECIPE --data FOLDER --run RUN --bundle BUNDLE. "
        "Whole tables: medmap table.",
        soft_wrap=True,
    )


def _show(recipe: Recipe, row: PublishedRow | None) -> None:
    """The recipe on standard output; what people should know of it beside that."""
    import json
    from dataclasses import asdict

    err.print(recipe.about, soft_wrap=True, markup=False)
    if row is not None and row.teacher:
        data = "--data FOLDER --run RUN"
        teacher = f"medmap train {row.teacher} {data}-TEACHER --bundle TEACHER"
        student = f"medmap train {row.name} --teacher TEACHER {data} --bundle BUNDLE"
        err.print(f"\n{teacher}\n{student}", soft_wrap=True, markup=False)
    out.print(json.dumps(asdict(recipe), indent=1), soft_wrap=True, markup=False, highlight=False)
