"""Every block of Python in the documentation runs, page by page, from top to bottom.

What a page speaks of (`talk.mp4`, `sky.hdr`, ...) is made here, small. A block that cannot run says why in a comment
above it, `<!-- not run: why -->`, and is reported as skipped. Examples with `>>>` are pytest's own doctests.
"""

import dataclasses
import shutil
import sys
import types
from pathlib import Path

import imageio.v3 as imageio
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_documentation import PAGES, ROOT, pages

import facejax
from facejax import cli
from facejax.data import load_model, save_environment, write_video
from facejax.data.checkpoints import find_checkpoint
from facejax.fitting import FitConfig, fit_clip, fit_image, fit_sequence
from facejax.geometry import Camera, Pose, linear_to_srgb_bytes, project, rotvec_to_matrix, to_camera_frame
from facejax.renderers import Environment, make_renderer

FRAMES, PHOTOS, SIDE = 5, 2, 96
BLOCKS = {str(p.relative_to(ROOT)): list(pages.python_blocks(p.read_text())) for p in PAGES}
NEEDS = {
    "README.md": ("talk.mp4",),
    "CONTRIBUTING.md": ("talk.mp4",),
    "docs/quick-start.md": ("talk.mp4", "talk"),
    "docs/fitting.md": ("talk.mp4", "photos"),
    "docs/relighting.md": ("tracked", "sky.hdr"),
    "docs/avatars.md": ("talk.mp4", "avatar"),
    "docs/captures.md": ("DIR",),
}
"""What has to lie in the folder in which a page's blocks run."""


def is_doctest(code: str) -> bool:
    return code.lstrip().startswith(">>>")


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """Little time goes into making tiny problems fast."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def clip() -> tuple[np.ndarray, np.ndarray]:
    """The built-in head, which turns: pictures, and where its 478 points are."""
    head = load_model("generic")
    shared, frame = head.init_code()
    camera = Camera(focal=jnp.full(2, 1.8 * SIDE), principal_point=jnp.full(2, SIDE / 2))
    render = make_renderer(head.topology, (SIDE, SIDE))

    @jax.jit
    def shot(yaw):
        turn = rotvec_to_matrix(jnp.array([0.05, 1.0, 0.0]) * yaw)
        pose = Pose(rotation=jnp.diag(jnp.array([1.0, -1.0, -1.0])) @ turn, translation=jnp.array([0.0, 0.0, 0.6]))
        face = head.decode(head.params, shared, frame)
        points = project(to_camera_frame(head.landmark_points(face.vertices), pose), camera)
        return render(face, head.init_light(), pose, camera).colour, points

    shots = [shot(yaw) for yaw in np.linspace(-0.3, 0.3, FRAMES).astype(np.float32)]
    return np.stack([linear_to_srgb_bytes(colour) for colour, _ in shots]), np.stack([points for _, points in shots])


@pytest.fixture(scope="module")
def quick(clip):
    """A way to fit, told where the clip's points are, and stopped after landmarks: no detector, no waiting."""

    def quick(function):
        def fit(video, params, *, config=FitConfig(), **options):  # noqa: B008 (frozen)
            small = dataclasses.replace(config, texture=False, key_frames=min(config.key_frames, 2), window=8)
            seen = clip[1][:PHOTOS] if function is fit_image else clip[1]
            return function(video, params, landmarks=seen, config=small, **options)

        return fit

    return quick


@pytest.fixture(scope="module")
def things(clip, quick, tmp_path_factory) -> Path:
    """All that `NEEDS` names."""
    folder = tmp_path_factory.mktemp("things")
    write_video(folder / "talk.mp4", clip[0], fps=25.0)
    (folder / "photos").mkdir()
    for k, picture in enumerate(clip[0][:PHOTOS]):
        imageio.imwrite(folder / "photos" / f"{k}.png", picture)
    quick(fit_sequence)(folder / "talk.mp4", load_model("generic")).save(folder / "talk")
    shutil.copytree(folder / "talk", folder / "tracked")
    sky = np.random.default_rng(0).uniform(0.2, 1.0, (16, 32, 3)).astype(np.float32)
    save_environment(folder / "sky.hdr", Environment(radiance=jnp.asarray(sky)))
    shutil.copytree(find_checkpoint("deep-lighting-small"), folder / "avatar")
    spec = {"groups": 4, "lights": 8, "expressions": 2, "test_every": 2, "partly_lit": 1, "cameras": 1}
    spec |= {"image_size": 16, "texture_size": 16, "shadow_size": 16}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "use_compilation_cache", lambda: None)
        settings = [word for name, value in spec.items() for word in ("--set", f"{name}={value}")]
        assert cli.main(["data", "light-stage", str(folder / "DIR"), *settings]) == 0
    return folder


@pytest.mark.parametrize("page", [page for page, blocks in BLOCKS.items() if blocks])
def test_the_blocks_of_a_page_run(page, quick, request, tmp_path, monkeypatch):
    for need in NEEDS.get(page, ()):
        thing = request.getfixturevalue("things") / need
        (shutil.copytree if thing.is_dir() else shutil.copy)(thing, tmp_path / need)
    for module in (facejax, sys.modules["facejax.fitting"]):
        monkeypatch.setattr(module, "fit_sequence", quick(fit_sequence))
        monkeypatch.setattr(module, "fit_image", quick(fit_image))
    monkeypatch.setattr(sys.modules["facejax.fitting"], "fit_clip", quick(fit_clip))
    monkeypatch.chdir(tmp_path)
    namespace = types.ModuleType("page")  # a module, because dataclasses look for theirs
    monkeypatch.setitem(sys.modules, "page", namespace)
    for line, code, reason in BLOCKS[page]:
        if not reason and not is_doctest(code):
            # as many empty lines before, so that a traceback names the page's own line
            exec(compile("\n" * (line - 1) + code, str(ROOT / page), "exec"), vars(namespace))


NOT_RUN = [(f"{page}:{line}", reason) for page, blocks in BLOCKS.items() for line, _, reason in blocks if reason]


@pytest.mark.parametrize(("place", "reason"), NOT_RUN, ids=[place for place, _ in NOT_RUN])
def test_blocks_that_do_not_run_say_why(place, reason):
    pytest.skip(f"{place}: {reason}")


def test_every_block_is_found():
    """A fence that the pattern misses, or a doctest on a page that is not searched for doctests, would not run."""
    for page, blocks in BLOCKS.items():
        assert len(blocks) == (ROOT / page).read_text().count("```python"), page
        assert page.startswith("docs/") or not any(is_doctest(code) for _, code, _ in blocks), page
    assert sum(len(blocks) for blocks in BLOCKS.values()) > 10


def test_a_comment_keeps_a_block_from_running():
    text = (
        "<!-- not run: slow -->\n```python\na\n```\n\n<!-- not run: no -->\ntext\n```python\nb\n```\n```bash\nc\n```\n"
    )
    assert list(pages.python_blocks(text)) == [(3, "a\n", "slow"), (9, "b\n", "")]
