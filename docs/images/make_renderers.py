"""Draw `renderers.png`: one head under one hard light by every renderer, and how far each is from path tracing.

python docs/images/make_renderers.py. It needs LLVM, see `facejax doctor`. Prints times and errors as a table.
"""

import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image as Picture
from PIL import ImageDraw

from facejax.data.heads import load_model
from facejax.geometry.colour import linear_to_srgb
from facejax.geometry.records import Camera, Image, Pose
from facejax.geometry.rotations import rotvec_to_matrix
from facejax.renderers import (
    Environment,
    dib_vertex_light,
    environment_directions,
    make_renderer,
    project_environment,
    vertex_light,
)
from facejax.renderers.monte_carlo import make_monte_carlo_renderer
from facejax.renderers.path_tracer import make_path_tracer
from facejax.renderers.shadows import make_shadowed_renderer

SIZE = (288, 240)
REPEATS = 5


def hard_light() -> Environment:
    """A lamp of 5 degrees' radius above and to the right of the camera, in a dim room."""
    towards = environment_directions(64, 128)
    lamp = np.array([0.62, -0.52, -0.59])
    near = np.clip((towards @ (lamp / np.linalg.norm(lamp)) - np.cos(np.radians(8))) / 0.006, 0, 1)
    room = 0.25 + 0.1 * np.clip(-towards[..., 1], 0, 1)
    colour = room[..., None] * np.array([0.9, 1.0, 1.15]) + 75 * near[..., None] * np.array([1.0, 0.93, 0.82])
    return Environment(radiance=jnp.asarray(colour, jnp.float32))


def timed(call: Callable[[], Image]) -> tuple[Image, float]:
    picture = jax.block_until_ready(call())
    taken = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        picture = jax.block_until_ready(call())
        taken.append(time.perf_counter() - start)
    return picture, 1e3 * float(np.median(taken))


def main() -> None:
    head = load_model("generic")
    shared, frame = head.init_code()
    names = list(head.expression_names)
    activations = frame.activations.at[names.index("jawOpen")].set(0.15)
    shared = shared.replace(
        shape=jnp.asarray(np.random.default_rng(4).normal(size=len(shared.shape)) * 0.35, jnp.float32)
    )
    face = head.decode(head.params, shared, frame.replace(activations=activations), jnp.array([0.0, 0.0, 1.0]))
    face = face.replace(specular=jnp.full_like(face.specular, 0.04), roughness=jnp.full_like(face.roughness, 0.35))
    turn = jnp.diag(jnp.array([1.0, -1.0, -1.0])) @ rotvec_to_matrix(jnp.array([0.05, 0.35, 0.0]))
    centre = jnp.mean(face.vertices, axis=0)
    pose = Pose(rotation=turn, translation=jnp.array([0.0, 0.0, 1.0]) - turn @ centre)
    camera = Camera(focal=jnp.full(2, 830.0), principal_point=jnp.array([SIZE[1] / 2, SIZE[0] / 2]))
    sky = hard_light()
    nine = project_environment(sky, 9)
    key = jax.random.PRNGKey(0)

    def dib(face, light, pose, normals):  # type: ignore[no-untyped-def]
        diffuse, gloss = dib_vertex_light(face, light, pose, normals)
        return jnp.maximum(diffuse, 0.0), jnp.maximum(gloss, 0.0)

    smooth = jax.jit(make_renderer(head.topology, SIZE, shade=vertex_light))
    vertex = jax.jit(make_renderer(head.topology, SIZE, shade=dib))
    few = make_shadowed_renderer(head.topology, SIZE, directions=256)
    many = make_shadowed_renderer(head.topology, SIZE, directions=1024)
    chance = make_monte_carlo_renderer(head.topology, SIZE, samples=8)
    tables = {r: r.visibility_of(face.vertices) for r in (few, many)}
    own = chance.visibility_of(face.vertices)
    draw = {r: jax.jit(lambda table, r=r: r(face, sky, pose, camera, visibility=table)) for r in (few, many)}
    draw_chance = jax.jit(lambda table: chance(face, sky, pose, camera, key, visibility=table))
    quick = jax.jit(make_path_tracer(head.topology, SIZE, samples=8))
    true = jax.jit(make_path_tracer(head.topology, SIZE, samples=1024))

    columns: list[tuple[str, Callable[[], Image]]] = [
        ("3 bands, no shadows", lambda: smooth(face, nine[:9], pose, camera)),
        ("9 bands, Dib 2021", lambda: vertex(face, nine, pose, camera)),
        ("shadowed, 256 directions", lambda: draw[few](tables[few])),
        ("shadowed, 1,024 directions", lambda: draw[many](tables[many])),
        ("Monte Carlo, 8 samples", lambda: draw_chance(own)),
        ("path tracer, 8 paths", lambda: quick(face, sky, pose, camera, key)),
    ]
    reference = true(face, sky, pose, camera, key)
    inside = np.asarray(reference.coverage) > 0.99
    right = np.asarray(reference.colour)
    mean = right.mean(axis=-1)[inside].mean()
    exposure = 0.8 / np.percentile(right[inside], 98)
    height, width = SIZE
    sheet = Picture.new("RGB", (width * (len(columns) + 1), 2 * height + 36), "white")
    pen = ImageDraw.Draw(sheet)

    def paste(i: int, row: int, values: np.ndarray, text: str) -> None:
        sheet.paste(Picture.fromarray((np.clip(values, 0, 1) * 255).astype(np.uint8)), (i * width, row * (height + 18)))
        pen.text((i * width + 4, height + row * (height + 18) + 3), text, fill="black")

    def shown(image: Image) -> np.ndarray:
        return np.asarray(linear_to_srgb(jnp.clip(exposure * image.colour, 0, 1))) + 0.92 * (
            1 - np.asarray(image.coverage)[..., None]
        )

    print("| renderer | error, % of mean radiance | ms |\n|---|---|---|")
    for i, (name, call) in enumerate(columns):
        image, ms = timed(call)
        difference = np.asarray(image.colour).mean(axis=-1) - right.mean(axis=-1)
        both = inside & (np.asarray(image.coverage) > 0.99)
        error = float(np.abs(difference[both]).mean() / mean)
        print(f"| {name} | {100 * error:.1f} | {ms:.0f} |", flush=True)
        paste(i, 0, shown(image), name)
        wrong = np.where(both, difference / mean, 0.0)[..., None]
        red, blue = np.array([0.0, 1.0, 1.0]), np.array([1.0, 0.5, 0.0])
        paste(i, 1, 1 - np.clip(wrong, 0, 1) * red - np.clip(-wrong, 0, 1) * blue, f"error {100 * error:.1f} %")
    paste(len(columns), 0, shown(reference), "path tracer, 1,024 paths")
    paste(len(columns), 1, np.ones((height, width, 3)), "red: too bright, blue: too dark")
    sheet.quantize(160, dither=Picture.Dither.NONE).save(Path(__file__).with_name("renderers.png"), optimize=True)


if __name__ == "__main__":
    main()
