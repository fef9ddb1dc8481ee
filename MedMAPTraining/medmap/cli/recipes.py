"""``medmap recipes``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from medmap.cli.base import app, out

if TYPE_CHECKING:
    from medmap.training.published import PublishedRow
    from medmap.training.recipe import Recipe


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="Show this recipe in full.")] = None,
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
        figures = ", ".join(
            f"{key} {value}" for key, value in row.published.items() if key != "note"
        )
        out.print(
            f"  {row.name:42} {row.recipe.split:20} {figures}".rstrip(),
            soft_wrap=True,
            markup=False,
        )
    root = recipes_folder()
    others = [
        path.stem for folder in (root, root / "networks") for path in sorted(folder.glob("*.json"))
    ]
    others += [f"myops/{path.stem}" for path in sorted((root / "myops").glob("*.json"))]
    out.print(f"\nWithout a table: {', '.join(others)}.", soft_wrap=True)
    out.print(
        "Train one with: medmap train RECIPE --data FOLDER --run RUN --bundle BUNDLE",
        soft_wrap=True,
    )


def _show(recipe: Recipe, row: PublishedRow | None) -> None:
    import json
    from dataclasses import asdict

    out.print(recipe.about, soft_wrap=True, markup=False)
    if row is not None and row.teacher:
        out.print(
            f"\nmedmap train {row.teacher} --data FOLDER --run RUN-TEACHER --bundle TEACHER",
            soft_wrap=True,
        )
        out.print(
            f"medmap train {row.name} --teacher TEACHER --data FOLDER --run RUN --bundle BUNDLE",
            soft_wrap=True,
        )
    out.print()
    out.print(
        json.dumps({k: v for k, v in asdict(recipe).items() if k != "about"}, indent=1),
        markup=False,
    )
