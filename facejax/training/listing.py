"""What `facejax train --list` and `facejax train RECIPE --help` show."""

import contextlib
import io
import re

from facejax.training.recipe import find_recipe, preset_of, recipe_names, registered_recipe


def recipe_list() -> str:
    """Recipes and their presets: the command, and the hardware, time and score that it was measured with."""
    lines = []
    for name in recipe_names():
        recipe = registered_recipe(name)
        lines.append(f"{recipe.name}: {recipe.summary}")
        for label, preset in recipe.presets.items():
            lines += [f"  {label}: {preset.command}"]
            lines += [f"    {what}: {getattr(preset, what)}" for what in ("hardware", "time", "score")]
    return "\n".join(lines)


def config_help(recipe: str, preset: str = "small") -> str:
    """Every field of a recipe's config, for --set: its name, its kind, its sentence, and the value in the preset."""
    import tyro

    config = preset_of(find_recipe(recipe), preset).config
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.suppress(SystemExit):
        tyro.cli(
            type(config),
            default=config,
            args=["--help"],
            prog=f"facejax train {recipe} --preset {preset} --set field=value",
            config=(tyro.conf.FlagConversionOff,),
            use_underscores=True,
        )
    return re.sub(r"--(?=\w+\.\w)", "", told.getvalue()).replace(" [-h] [OPTIONS]", " ...")
