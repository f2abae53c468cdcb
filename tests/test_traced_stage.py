"""Path-traced test images of the stage: their layout, their light, and their radiance against the fast renderer's."""

import shutil

import numpy as np
import pytest

from facejax.data.captures import LightStage, read_facts, select, write_facts
from facejax.geometry.errors import InputError
from facejax.made_up.light_stage import LightStageSpec, write_capture
from facejax.made_up.traced_stage import StageTracer, add_test_images, is_traced
from facejax.made_up.wild_clips import Person
from facejax.renderers.llvm import require_llvm

TINY = LightStageSpec(
    seed=2, expressions=1, partly_lit=1, cameras=2, image_size=32, texture_size=32, shadow_size=32, lights=20, groups=5,
    test_every=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    try:
        require_llvm()
    except InputError as e:
        pytest.skip(str(e))
    return write_capture(tmp_path_factory.mktemp("stage") / "capture", TINY)


def test_traced_entries_are_read_like_any_other_and_added_once(folder, tmp_path):
    mine = tmp_path / "capture"
    shutil.copytree(folder, mine)
    before = LightStage(mine).entries
    entries = add_test_images(mine, 3, samples=4)
    capture = LightStage(mine)
    assert capture.entries == (*before, *entries)
    assert all(is_traced(e) and e.split == "test" for e in entries)
    assert not any(is_traced(e) for e in before)
    assert len({e.expression for e in entries}) == 1
    assert entries[0].fully_lit
    assert len(select(capture, "test")) == 3
    lights = []
    for i in range(len(before), len(capture.entries)):
        for camera in range(2):
            view = capture.view(i, camera)
            assert np.isfinite(view.image).all()
            assert 0.1 < (view.mask > 0.5).mean() < 0.9
            assert view.texture[view.seen == 0].max() == 0
            assert (view.seen > 0).sum() > 50
        lights.append(view.light)
    assert (lights[0] == 1).all()
    assert (lights[1].sum(axis=0) == 1).all()
    assert np.ptp(lights[2], axis=1).max() > 0.05  # coloured
    # less light, darker
    assert capture.view(len(before) + 1, 0).image.mean() < 0.5 * capture.view(len(before), 0).image.mean()

    times = {e.file: (mine / e.file).stat().st_mtime_ns for e in entries}
    (mine / entries[1].file).unlink()
    write_facts(mine, list(before), **{k: v for k, v in read_facts(mine).items() if k not in _OWN})
    with np.load(mine / entries[2].file) as held:
        kept = held["image"]
    assert add_test_images(mine, 3, samples=4) == entries
    assert LightStage(mine).entries == capture.entries
    assert (mine / entries[2].file).stat().st_mtime_ns == times[entries[2].file]
    np.testing.assert_array_equal(LightStage(mine).frame(len(before) + 2)["image"], kept)


_OWN = ("format", "version", "entries")


def test_both_renderers_mean_the_same_by_radiance(folder):
    """The traced picture has light between parts of the face, real relief and softer edges, so it agrees roughly."""
    capture = LightStage(folder)
    tracer = StageTracer(capture, samples=64)
    for entry in range(2):
        fast = capture.frame(entry)
        slow = tracer.frame(capture.entries[entry].expression, fast["light"])
        np.testing.assert_array_equal(slow["vertices"], fast["vertices"])
        both = (fast["mask"] > 250) & (slow["mask"] > 250)
        assert both.sum() > 0.9 * (fast["mask"] > 250).sum()
        a, b = (x["image"].astype(np.float64)[both] for x in (fast, slow))
        assert b.mean() / a.mean() == pytest.approx(1.05, abs=0.12)
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.9


def test_bad_input_is_refused(folder, tmp_path):
    with pytest.raises(InputError, match="at least 1"):
        add_test_images(folder, 0)
    with pytest.raises(InputError, match="is no capture"):
        add_test_images(tmp_path)
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    facts = {k: v for k, v in read_facts(other).items() if k not in (*_OWN, "spec")}
    write_facts(other, list(LightStage(other).entries), **facts)
    with pytest.raises(InputError, match="not of a virtual light stage"):
        add_test_images(other)
    assert Person.of_capture(folder).skin == TINY.skin
