"""A tracked avatar in pictures: beside its input, from anywhere, under its own light or another."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from facejax.apps.pictures import (
    Rgb,
    crop_window,
    face_window,
    in_window,
    labelled,
    preview_frames,
    window_camera,
    write_png,
)
from facejax.data.heads.avatar import AVATAR
from facejax.data.results import TrackResult
from facejax.data.video import Video, write_video
from facejax.geometry.colour import linear_to_srgb, linear_to_srgb_bytes, luminance, srgb_to_linear
from facejax.geometry.errors import InputError
from facejax.geometry.records import Camera, Image, Pose, PyTree
from facejax.models.avatar import Avatar
from facejax.objectives.metrics import hull_coverage, hull_mask, psnr, ssim
from facejax.renderers.lights import Light, NearLights, power_along
from facejax.scenes import Scene, make_scene

AVATAR_FILES = (AVATAR, "avatar.mp4", "avatar.png")
"""What `facejax track` adds to a result where the head is an avatar."""

Progress = Callable[[str, int, int], None]
_PANELS = ("input", "relit avatar", "fully lit avatar")
_FITS_PERCENT = 5.5  # lip error above which the avatar is said not to fit: its own person has 3.6, another 7.5


@dataclasses.dataclass(frozen=True, eq=False)
class AvatarView:
    """An avatar with the codes and lights of a clip: draws any frame from anywhere."""

    result: TrackResult
    """Of an avatar."""

    @functools.cached_property
    def avatar(self) -> Avatar:
        """As it was trained, at the result's scale."""
        head = self.result.load_head()
        assert isinstance(head, Avatar)
        return head

    @functools.cached_property
    def light(self) -> Float[Array, "f g 3"]:
        """The whole lighting code of each frame: the clip's, and what the frame adds."""
        return sum(jax.tree_util.tree_leaves(self.result.identity_code()), jnp.asarray(self.result.light_code))

    def mean_albedo(self) -> float:
        """Mean luminance of the face under the full light: what an exposure meter takes for its albedo."""
        texture = luminance(np.asarray(self.avatar.state["mean_texture"]))
        return float(texture[texture > 0.02].mean())

    def code_of(self, light: Light, pose: Pose) -> Float32[np.ndarray, "g 3"]:
        """The lighting code of a light in the camera frame: each group's share of it, over what it sends when full.

        Lamps count as distant, in their group's direction from the head. Raises `InputError` for an avatar whose
        capture does not say where its lights were.
        """
        directions, group = self.avatar.light_directions, self.avatar.light_group
        if directions is None or group is None:
            raise InputError("The avatar does not say where its lights were, so it cannot be lit by a map or a lamp.")
        weight = 4 * np.pi / len(directions)
        if isinstance(light, NearLights):
            away = np.asarray(light.positions) - np.asarray(pose.translation)
            distance = np.linalg.norm(away, axis=1, keepdims=True)
            power = np.zeros((len(directions), 3), np.float32)
            nearest = (away / distance @ directions.T).argmax(axis=1)
            np.add.at(power, nearest, np.asarray(light.intensity) / distance**2)
        else:
            power = np.asarray(power_along(light, directions))
        rows = int(group.max()) + 1
        code = np.zeros((rows, 3), np.float32)
        np.add.at(code, group, power)
        return code / (weight * np.bincount(group, minlength=rows)[:, None]).astype(np.float32)

    def draw(
        self, frame: int, pose: Pose, camera: Camera, size: tuple[int, int], code: Any = None
    ) -> Float32[np.ndarray, "h w 4"]:
        """Linear radiance, premultiplied by the coverage in the fourth channel.

        code: of the light; None is the clip's own, under which the lighting network is the adapted one. Under others it
        is as it was trained: what adaptation learnt holds for the clip alone.
        """
        model = self.result.light_model if code is None else "network"
        draw = _drawer(make_scene(self.avatar, size, light_model=model))
        frames = jax.tree_util.tree_map(lambda x: x[frame], self.result.frame_codes())
        light = self.light[frame] if code is None else jnp.asarray(code, jnp.float32)
        params = self.result.load_params() if code is None else self.avatar.params
        image = draw(params, self.result.identity_code(), frames, light, pose, camera)
        return np.concatenate([image.colour, np.asarray(image.coverage)[..., None]], axis=-1, dtype=np.float32)


@functools.lru_cache(maxsize=4)
def _drawer(scene: Scene) -> Callable[..., Image]:
    def draw(params: PyTree, clip: PyTree, frame: PyTree, light: Array, pose: Pose, camera: Camera) -> Image:
        return scene.view(params, clip, frame, light, pose, camera).image

    return jax.jit(draw)


def over(picture: Float[np.ndarray, "h w 4"], behind: Rgb) -> Rgb:
    """A drawn avatar laid over an 8-bit picture."""
    linear = picture[..., :3] + (1 - picture[..., 3:]) * srgb_to_linear(behind.astype(np.float32) / 255)
    return linear_to_srgb_bytes(linear)


def picture_of(view: AvatarView, result: TrackResult, video: Video, most: int = 40) -> dict[str, Any]:
    """As `evaluate_picture`, of the relit avatar; its control without texture is the fully lit one, best exposed."""
    ids = preview_frames(result, min(most, int(result.valid.sum())))
    window = face_window(result, max_height=256)
    camera, rows = window_camera(result, window), []
    for k in ids:
        photo = crop_window(video.read([int(result.frame_ids[k]) - video.first])[0], window)
        pose, points = result.pose(int(k)), in_window(result.landmarks[k], window)
        drawn = view.draw(int(k), pose, camera, window.size)
        full = view.draw(int(k), pose, camera, window.size, view.avatar.network.full_light())
        mask = hull_mask(points, window.size) & (drawn[..., 3] > 0.99)
        if not mask.any():
            continue
        seen = photo.astype(np.float32) / 255
        linear = srgb_to_linear(seen)
        gain = (linear * full[..., :3])[mask].sum(axis=0) / np.maximum((full[..., :3] ** 2)[mask].sum(axis=0), 1e-9)
        pictures = {
            "": drawn[..., :3],
            "_without_texture": full[..., :3] * gain,
            "_mean_colour": np.broadcast_to(srgb_to_linear(seen[mask].mean(axis=0)), linear.shape),
        }
        row = {"hull_coverage": hull_coverage(drawn[..., 3], points)}
        for suffix, colour in pictures.items():
            shown = np.asarray(linear_to_srgb(np.clip(colour, 0, 1)), np.float32)
            shown = np.where(mask[..., None], shown, seen)
            row[f"psnr{suffix}"], row[f"ssim{suffix}"] = float(psnr(shown, seen, mask)), float(ssim(shown, seen, mask))
        rows.append(row)
    means = {key: float(np.mean([r[key] for r in rows])) for key in (rows[0] if rows else ())}
    return {"frames": len(rows), **means}


def how_it_fits(lips_percent: float | None) -> str:
    """A sentence about whether this avatar can be the person of the clip.

    Lips tell best: adaptation paints anyone's face on an avatar, and flow moves it there, but its mouth stays its own.
    """
    if lips_percent is None or lips_percent <= _FITS_PERCENT:
        return ""
    return (
        f"the avatar's lips are off by {lips_percent:.1f} % of the eye distance, where those of the right person are "
        f"off by less than {_FITS_PERCENT:g} %: this may be somebody else's avatar"
    )


def write_avatar(folder: Path, view: AvatarView, result: TrackResult, video: Video, progress: Progress) -> None:
    """Write a video of the avatar beside the input, and a sheet of four frames."""
    window = face_window(result, max_height=384)
    camera, kept = window_camera(result, window), {}
    picks = set(preview_frames(result, 4).tolist())

    def rows() -> Iterator[Rgb]:
        for k, frame in enumerate(video.frames()):
            photo = crop_window(frame, window)
            panels = [photo, photo, np.full_like(photo, 24)]
            if result.valid[k]:
                pose = result.pose(k)
                panels[1] = over(view.draw(k, pose, camera, window.size), np.full_like(photo, 24))
                full = view.draw(k, pose, camera, window.size, view.avatar.network.full_light())
                panels[2] = over(full, panels[2])
            note = "" if result.valid[k] else result.status_names[result.status[k]]
            row = [labelled(p, label, note) for p, label in zip(panels, _PANELS, strict=True)]
            shown = np.concatenate(row, axis=1)
            if k in picks:
                kept[k] = shown
            progress("avatar.mp4", k + 1, len(result))
            yield shown

    step = result.frame_seconds
    write_video(folder / "avatar.mp4", rows(), fps=1 / step if step > 0 else 25.0)
    write_png(folder / "avatar.png", np.concatenate([kept[k] for k in sorted(kept)]))
