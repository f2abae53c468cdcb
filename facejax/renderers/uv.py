"""UV space: which surface point each texel shows, pictures unwrapped into textures, shading per texel, filtering.

A `Chart` lists the texels of a square texture that show the surface, with triangle and barycentric weights of each. It
is made once per mesh and size; everything that depends on a frame is a pure function of its arrays. Texels just outside
the chart's borders, which bilinear lookup mixes in, are a chart of their own (`gutter_chart`): each shows the point
that lies as far beyond the border on the mesh, so a texture whose gutter is filled has no line at its seams.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int

from facejax.geometry.cameras import project, to_camera_frame
from facejax.geometry.errors import InputError
from facejax.geometry.meshes import Topology, edge_neighbours, normalise, vertex_normals
from facejax.geometry.records import Camera, Face, Pose
from facejax.renderers.deferred import vertex_light
from facejax.renderers.raster import rasterise
from facejax.renderers.texture import sample_bilinear, sample_texture

_HIGHEST = jax.lax.Precision.HIGHEST
_ROUNDS = 6  # of `fill_gutter`


@dataclasses.dataclass(frozen=True, eq=False)
class Chart:
    """Which surface point each covered texel of a square texture shows."""

    size: int
    texels: np.ndarray
    """(n,) flat ids, row 0 at the top."""
    triangles: np.ndarray
    """(n, 3) vertex ids."""
    weights: np.ndarray
    """(n, 3) barycentric weights."""
    uv: np.ndarray
    """(n, 2) where in the texture that point lies: the texel's centre, for a gutter the place across the seam."""

    @property
    def covered(self) -> np.ndarray:
        """(size, size) bool: which texels are listed."""
        mask = np.zeros(self.size * self.size, dtype=bool)
        mask[self.texels] = True
        return mask.reshape(self.size, self.size)

    def joined(self, other: "Chart") -> "Chart":
        """Both charts' texels as one chart."""
        if other.size != self.size:
            raise InputError(f"Charts of {self.size} and {other.size} texels cannot be joined: make both of one size.")
        names = ("texels", "triangles", "weights", "uv")
        return Chart(size=self.size, **{n: np.concatenate([getattr(self, n), getattr(other, n)]) for n in names})


# -- charts -----------------------------------------------------------------------------------------------------------


def texture_chart(topology: Topology, size: int) -> Chart:
    """Rasterise the UV layout once: texel centres to points on the mesh. Where triangles overlap, one wins."""
    if size < 1:
        raise InputError(f"A texture needs at least one texel, not {size} x {size}.")
    triangle, weights = rasterise_chart(_corners_px(topology, size), size)
    texels = np.flatnonzero(triangle >= 0)
    ids = triangle.ravel()[texels]
    row, column = np.divmod(texels, size)
    return Chart(
        size=size,
        texels=texels,
        triangles=topology.faces[ids],
        weights=weights.reshape(-1, 3)[texels],
        uv=np.stack([(column + 0.5) / size, 1 - (row + 0.5) / size], axis=-1).astype(np.float32),
    )


def _corners_px(topology: Topology, size: int) -> np.ndarray:
    """(T, 3, 2) corners of triangles in texels, y down."""
    return (np.asarray(topology.uv, np.float64) * [size, -size] + [0, size])[topology.uv_faces]


def rasterise_chart(
    xy: Float[np.ndarray, "t 3 2"], size: int
) -> tuple[Int[np.ndarray, "size size"], Float32[np.ndarray, "size size 3"]]:
    """Which triangle of a flat chart lies at each texel's centre (-1: none), and the barycentric weights there.

    xy: corners in texels, y down, the centre of the top-left texel at (0.5, 0.5). Where triangles overlap, one wins.
    """
    triangle = np.full(size * size, -1, dtype=np.int64)
    weights = np.zeros((size * size, 3), dtype=np.float32)
    low = np.clip(np.ceil(xy.min(axis=1) - 0.5), 0, size).astype(int)
    high = np.clip(np.floor(xy.max(axis=1) - 0.5), -1, size - 1).astype(int)
    extent = (high - low + 1).max(axis=1) * np.all(high >= low, axis=1)
    level = np.ceil(np.log2(np.maximum(extent, 1))).astype(int)  # triangles are drawn in groups of like size
    a, b, c = xy[:, 0], xy[:, 1], xy[:, 2]
    area = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])
    for power in np.unique(level[extent > 0]):
        side = 1 << int(power)
        dy, dx = np.divmod(np.arange(side * side), side)
        group = np.flatnonzero((level == power) & (extent > 0) & (np.abs(area) > 1e-12))
        for ids in np.array_split(group, max(1, len(group) * side * side // (1 << 21))):
            column, row = low[ids, :1] + dx, low[ids, 1:] + dy
            px, py = column + 0.5, row + 0.5
            w = [
                ((q[ids, :1] - p[ids, :1]) * (py - p[ids, 1:]) - (q[ids, 1:] - p[ids, 1:]) * (px - p[ids, :1]))
                / area[ids, None]
                for p, q in ((b, c), (c, a), (a, b))
            ]
            inside = (np.minimum(np.minimum(w[0], w[1]), w[2]) >= -1e-6) & (column < size) & (row < size)
            flat = (row * size + column)[inside]
            triangle[flat] = np.broadcast_to(ids[:, None], inside.shape)[inside]
            weights[flat] = np.stack(w, axis=-1)[inside]
    return triangle.reshape(size, size), weights.reshape(size, size, 3)


def gutter_chart(topology: Topology, chart: Chart, width: int = 3) -> Chart:
    """Texels up to `width` outside the borders of the chart, each with the point that lies there across the seam.

    The plane of a border triangle is continued into its neighbour on the mesh, as if both were one sheet of paper
    whose halves may be turned and scaled against each other in the chart; at a border of the mesh itself, where nothing
    lies beyond, the nearest point of the edge is repeated.
    """
    size, corners = chart.size, _corners_px(topology, chart.size)
    across = _across(topology)
    triangle, edge = np.nonzero(across[..., 0] != -2)  # the seam edges: -2 marks those inside a chart
    a, b = (corners[triangle, (edge + k) % 3] for k in (1, 2))
    steps = np.maximum(np.ceil(2 * np.linalg.norm(b - a, axis=1)).astype(int), 1) + 1  # a place every half texel
    item = np.repeat(np.arange(len(triangle)), steps)
    part = (np.arange(len(item)) - np.repeat(np.cumsum(steps) - steps, steps)) / np.repeat(steps - 1, steps)
    place = a[item] + part[:, None] * (b - a)[item]
    reach = np.arange(-width - 1, width + 2)
    dy, dx = (d.ravel() for d in np.meshgrid(reach, reach, indexing="ij"))
    column = np.floor(place[:, :1]).astype(int) + dx
    row = np.floor(place[:, 1:]).astype(int) + dy
    away = np.hypot(column + 0.5 - place[:, :1], row + 0.5 - place[:, 1:])
    usable = (column >= 0) & (row >= 0) & (column < size) & (row < size) & (away <= width + 0.5)
    flat = (row * size + column)[usable]
    item, away = np.broadcast_to(item[:, None], usable.shape)[usable], away[usable]
    outside = ~chart.covered.ravel()[flat]
    flat, item, away = flat[outside], item[outside], away[outside]
    order = np.lexsort((away, flat))
    texels, first = np.unique(flat[order], return_index=True)  # each texel belongs to its nearest edge
    chosen = item[order][first]
    ids, weights = _continued(topology, corners, across, triangle[chosen], edge[chosen], texels, size)
    uv = np.einsum("nk,nkj->nj", weights, np.asarray(topology.uv)[topology.uv_faces[ids]])
    return Chart(
        size=size,
        texels=texels,
        triangles=topology.faces[ids],
        weights=weights.astype(np.float32),
        uv=uv.astype(np.float32),
    )


def _across(topology: Topology) -> np.ndarray:
    """(T, 3, 2): for the edge opposite each corner, (triangle, its corner opposite the same edge) on the mesh's other
    side; -1 at a border of the mesh, -2 where the chart is not cut there."""
    faces, uv_faces = topology.faces, topology.uv_faces
    far, n = edge_neighbours(faces), len(faces)
    result = np.full((n, 3, 2), -1, dtype=np.int64)
    start, end = np.roll(faces, -1, axis=1).ravel(), np.roll(faces, -2, axis=1).ravel()  # of the edge at each corner
    key = np.minimum(start, end).astype(np.int64) * topology.n_vertices + np.maximum(start, end)
    order = np.argsort(key, kind="stable")
    paired = np.flatnonzero(key[order][1:] == key[order][:-1])
    i, j = order[paired], order[paired + 1]
    joined = (far.ravel()[i] >= 0) & (far.ravel()[j] >= 0)  # an edge of more than two triangles counts as a border
    i, j = i[joined], j[joined]
    flat = result.reshape(-1, 2)
    flat[i], flat[j] = np.stack(np.divmod(j, 3), axis=-1), np.stack(np.divmod(i, 3), axis=-1)
    uv_start, uv_end = np.roll(uv_faces, -1, axis=1).ravel(), np.roll(uv_faces, -2, axis=1).ravel()
    same = np.where(
        (start[i] == start[j])[:, None], np.stack([uv_start[j], uv_end[j]], -1), np.stack([uv_end[j], uv_start[j]], -1)
    )
    uv = np.asarray(topology.uv)  # by position: a vertex may have been written twice
    whole = np.isclose(uv[uv_start[i]], uv[same[:, 0]]).all(-1) & np.isclose(uv[uv_end[i]], uv[same[:, 1]]).all(-1)
    flat[i[whole]] = flat[j[whole]] = -2
    return result


def _continued(
    topology: Topology,
    corners: np.ndarray,
    across: np.ndarray,
    triangle: np.ndarray,
    edge: np.ndarray,
    texels: np.ndarray,
    size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """(triangle, weights) of the points that texels beyond an edge show."""
    n = np.arange(len(triangle))
    row, column = np.divmod(texels, size)
    place = np.stack([column + 0.5, row + 0.5], axis=-1)
    a, b = (corners[triangle, (edge + k) % 3] for k in (1, 2))
    length = np.maximum(np.linalg.norm(b - a, axis=1), 1e-9)
    along = np.clip(np.sum((place - a) * (b - a), axis=1) / length**2, 0, 1)
    beyond = np.linalg.norm(place - a - along[:, None] * (b - a), axis=1)
    weights = np.zeros((len(triangle), 3))
    weights[n, (edge + 1) % 3], weights[n, (edge + 2) % 3] = 1 - along, along  # the nearest point of the edge
    other, corner = across[triangle, edge, 0], across[triangle, edge, 1]
    k = np.flatnonzero(other >= 0)
    t, c = other[k], corner[k]
    start = topology.faces[triangle[k], (edge[k] + 1) % 3]
    forward = topology.faces[t, (c + 1) % 3] == start  # the shared edge may run either way in the neighbour
    first, second = np.where(forward, (c + 1) % 3, (c + 2) % 3), np.where(forward, (c + 2) % 3, (c + 1) % 3)
    a, b, apex = corners[t, first], corners[t, second], corners[t, c]
    there = np.maximum(np.linalg.norm(b - a, axis=1), 1e-9)
    foot = np.sum((apex - a) * (b - a), axis=1) / there**2
    height = np.maximum(np.linalg.norm(apex - a - foot[:, None] * (b - a), axis=1), 1e-9)
    up = np.clip(beyond[k] * there / length[k] / height, 0, 1)
    w = np.stack([1 - along[k] - up * (1 - foot), along[k] - up * foot, up], axis=-1)
    w = np.maximum(w, 0)
    w /= w.sum(axis=1, keepdims=True)
    weights[k] = 0
    for column_of, value in zip((first, second, c), w.T, strict=True):
        weights[k, column_of] = value
    ids = triangle.copy()
    ids[k] = t
    return ids, weights


# -- pictures into textures -------------------------------------------------------------------------------------------


def at_texels(
    values: Float[Array, "v c"],
    triangles: Int[Array, "n 3"] | np.ndarray,
    weights: Float[Array, "n 3"] | np.ndarray,
) -> Float[Array, "n c"]:
    """Values of per-vertex attributes at the points of a chart (`chart.triangles`, `chart.weights`)."""
    a, b, c = (values[triangles[:, i]] * weights[:, i, None] for i in range(3))
    return a + b + c


def on_image(vertices: Float[Array, "v 3"], pose: Pose, camera: Camera) -> Float[Array, "v 3"]:
    """Where head-frame vertices are drawn: x and y in pixels, depth in metres; what `rasterise` takes."""
    in_camera = to_camera_frame(vertices, pose)
    return jnp.concatenate([project(in_camera, camera), in_camera[:, 2:]], axis=-1)


def locate_texels(
    vertices: Float[Array, "v 3"],
    pose: Pose,
    camera: Camera,
    faces: np.ndarray,
    size: tuple[int, int],
    triangles: Int[Array, "n 3"] | np.ndarray,
    weights: Float[Array, "n 3"] | np.ndarray,
) -> tuple[Float[Array, "n 2"], Float[Array, "n"]]:
    """(pixels, confidence) per texel: where in an image of `size` = (height, width) it is, and how well it is seen.

    vertices: head frame. Confidence is the squared cosine between normal and viewer: the texel's footprint in the
    picture is foreshortened once, and errors of its position are stretched once more. It is 0 off the picture and
    behind or next to a nearer surface, so that colour from behind a silhouette is not taken.
    """
    fragments = rasterise(on_image(vertices, pose, camera), faces, size)
    depth = jnp.where(fragments.triangle >= 0, fragments.depth, 10.0)
    normals = jnp.matmul(vertex_normals(vertices, faces), pose.rotation.T, precision=_HIGHEST)
    in_camera = to_camera_frame(vertices, pose)
    cosine = jnp.sum(normals * normalise(-in_camera), axis=-1, keepdims=True)
    value = at_texels(jnp.concatenate([in_camera, cosine], axis=-1), triangles, weights)
    xy, z, facing = project(value[:, :3], camera), value[:, 2], value[:, 3]
    # the nearest depth around the pixel: a texel next to an occlusion edge is not trusted. An eyeball lies a millimetre
    # behind the lid's margin, so the tolerance is no more than what the slope of the surface makes of two pixels
    near = -jax.lax.reduce_window(-depth, -jnp.inf, jax.lax.max, (3, 3), (1, 1), "SAME")
    front = sample_bilinear(near[..., None], xy)[:, 0]
    slope = jnp.sqrt(jnp.maximum(1 / jnp.clip(facing, 0.2, 1.0) ** 2 - 1, 0.0))
    inside = (xy[:, 0] > 1) & (xy[:, 1] > 1) & (xy[:, 0] < size[1] - 1) & (xy[:, 1] < size[0] - 1)
    seen = inside & (z < front + 0.0012 + 2.5 * slope * z / camera.focal[0])
    return xy, jnp.where(seen, jnp.clip(facing, 0.0, 1.0) ** 2, 0.0)


def unwrap_image(
    image: Float[Array, "h w c"],
    vertices: Float[Array, "v 3"],
    pose: Pose,
    camera: Camera,
    faces: np.ndarray,
    triangles: Int[Array, "n 3"] | np.ndarray,
    weights: Float[Array, "n 3"] | np.ndarray,
) -> tuple[Float[Array, "n c"], Float[Array, "n"]]:
    """(colour, confidence) per texel of a picture of a mesh, see `locate_texels`; no light is divided out."""
    size = (image.shape[0], image.shape[1])
    xy, confidence = locate_texels(vertices, pose, camera, faces, size, triangles, weights)
    return sample_bilinear(image, xy), confidence


# -- shading in UV ----------------------------------------------------------------------------------------------------


def face_at_texels(face: Face, faces: np.ndarray, chart: Chart) -> tuple[Face, Float[Array, "n 3"]]:
    """(face, normals) whose vertices are the chart's texels: what shades vertices shades texels with it.

    faces: the mesh's triangles. Positions in metres and unit normals in the head frame; the texture is multiplied into
    the albedo. A face made so has no triangles of its own.
    """
    stack = jnp.concatenate(
        [
            face.vertices,
            vertex_normals(face.vertices, faces),
            face.albedo,
            face.specular[:, None],
            face.roughness[:, None],
        ],
        axis=-1,
    )
    value = at_texels(stack, chart.triangles, chart.weights)
    made = Face(
        vertices=value[:, :3],
        albedo=value[:, 6:9] * sample_texture(face.texture, jnp.asarray(chart.uv)),
        texture=jnp.ones((1, 1, 3)),
        specular=value[:, 9],
        roughness=value[:, 10],
    )
    return made, normalise(value[:, 3:6])


def shade_chart(
    face: Face,
    light: Array,
    pose: Pose,
    faces: np.ndarray,
    chart: Chart,
    *,
    shade: Callable[..., tuple[Array, Array]] = vertex_light,
) -> Float[Array, "n 3"]:
    """Radiance that every texel of a chart sends to the camera, linear.

    light: camera frame. shade: as in `make_renderer`, (face, light, pose, normals_head) -> (irradiance / pi, specular
    radiance), here at texels.
    """
    at, normals = face_at_texels(face, faces, chart)
    diffuse, specular = shade(at, light, pose, normals)
    return at.albedo * diffuse + specular


def texture_from(chart: Chart, values: Float[Array, "n c"], background: float = 0.0) -> Float[Array, "h w c"]:
    """A texture with `values` at the chart's texels."""
    flat = jnp.full((chart.size * chart.size, values.shape[-1]), background, dtype=values.dtype)
    return flat.at[chart.texels].set(values).reshape(chart.size, chart.size, -1)


# -- borders and filtering --------------------------------------------------------------------------------------------


def fill_gutter(texture: Float[Array, "h w c"], chart: Chart, gutter: Chart) -> Float[Array, "h w c"]:
    """The same texture with the gutter's texels set to what lies across the seam; differentiable, and jit-able.

    A lookup across the seam may itself touch the gutter on that side, so values are found by iteration; each round
    leaves at most half of the error. Texels that are neither chart nor gutter count for nothing.
    """
    known = chart.covered
    both = jnp.asarray(known | gutter.covered, dtype=texture.dtype)[..., None]
    uv, shape = jnp.asarray(gutter.uv), texture.shape

    def look(flat: Array, mask: Array) -> Array:
        value = sample_texture(jnp.concatenate([flat.reshape(shape) * mask, mask], axis=-1), uv)
        found = value[:, -1:] > 1e-3
        filled = jnp.where(found, value[:, :-1] / jnp.where(found, value[:, -1:], 1.0), flat[gutter.texels])
        return flat.at[gutter.texels].set(filled)

    flat = look(texture.reshape(-1, shape[-1]), jnp.asarray(known, dtype=texture.dtype)[..., None])
    return jax.lax.fori_loop(0, _ROUNDS, lambda i, flat: look(flat, both), flat).reshape(shape)


def fill_holes(image: Float[np.ndarray, "h w c"], weight: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w c"]:
    """Texels of low weight from their surroundings, by pushing averages down a pyramid and pulling them back up.

    weight: in [0, 1], 1 keeps a texel as it is. Where there is no weight at all the result is 1, a factor of nothing.
    """
    height, width = weight.shape
    if height == 1 and width == 1:
        return np.where(weight[..., None] > 0, image, 1.0)
    pad = ((0, height % 2 * (height > 1)), (0, width % 2 * (width > 1)))
    colour, total = np.pad(image * weight[..., None], (*pad, (0, 0))), np.pad(weight, pad)
    tall, wide = min(2, height), min(2, width)
    h, w = total.shape[0] // tall, total.shape[1] // wide
    blocks = colour.reshape(h, tall, w, wide, -1).sum(axis=(1, 3))
    block_weight = total.reshape(h, tall, w, wide).sum(axis=(1, 3))
    coarse = blocks / np.maximum(block_weight, 1e-9)[..., None]
    filled = fill_holes(coarse, np.minimum(block_weight, 1.0))
    up = _smooth(filled.repeat(tall, axis=0).repeat(wide, axis=1))[:height, :width]
    keep = np.clip(weight, 0, 1)[..., None]
    return image * keep + up * (1 - keep)


def _smooth(image: np.ndarray) -> np.ndarray:
    """Binomial blur over three texels each way, so that a pulled-up level shows no blocks."""
    for axis in (0, 1):
        padded = np.pad(image, [(1, 1) if a == axis else (0, 0) for a in range(image.ndim)], mode="edge")
        low, mid, high = (np.take(padded, range(i, i + image.shape[axis]), axis=axis) for i in range(3))
        image = 0.25 * low + 0.5 * mid + 0.25 * high
    return image


def fill_outside(picture: Float[np.ndarray, "h w c"], covered: Bool[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w c"]:
    """Colours for texels that no triangle covers, continued from covered ones; unchanged if there are none.

    Two rings of texels, which filtering touches, repeat their neighbours; farther out colours fade into each other.
    """
    if not covered.any():
        return picture.astype(np.float32)
    picture, known = np.where(covered[..., None], picture, 0.0).astype(np.float32), covered.astype(np.float32)
    for _ in range(2):
        count, total = (_sum_3x3(x) for x in (known[..., None], picture * known[..., None]))
        ring = (known == 0) & (count[..., 0] > 0)
        picture[ring] = total[ring] / count[ring]
        known[ring] = 1.0
    filled = fill_holes(picture, known)
    return np.where(known[..., None] > 0, picture, filled).astype(np.float32)


def _sum_3x3(image: np.ndarray) -> np.ndarray:
    for axis in (0, 1):
        padded = np.pad(image, [(1, 1) if a == axis else (0, 0) for a in range(image.ndim)])
        low, mid, high = (np.take(padded, range(i, i + image.shape[axis]), axis=axis) for i in range(3))
        image = low + mid + high
    return image


def box_pyramid(
    texture: Float[Array, "h w c"], weight: Float[Array, "h w"] | np.ndarray | None = None
) -> tuple[Float[Array, "_ _ c"], ...]:
    """The texture and its halvings down to one texel, each the mean of 2 x 2 texels above it.

    weight: how much each texel counts, e.g. `chart.covered`, so that what lies between charts does not leak into coarse
    levels; a block in which nothing counts takes its plain mean.
    """
    height, width = texture.shape[:2]
    if height != width or height & (height - 1):
        raise InputError(f"A pyramid needs a square texture whose side is a power of two, got {height} x {width}.")
    total = jnp.ones(texture.shape[:2]) if weight is None else jnp.asarray(weight, dtype=texture.dtype)
    levels = [texture]
    while levels[-1].shape[0] > 1:
        level, side = levels[-1], levels[-1].shape[0] // 2
        w = total.reshape(side, 2, side, 2, 1)
        blocks = level.reshape(side, 2, side, 2, -1)
        mass = w.sum(axis=(1, 3))
        mean = jnp.where(mass > 0, (blocks * w).sum(axis=(1, 3)) / jnp.where(mass > 0, mass, 1.0), blocks.mean((1, 3)))
        levels.append(mean)
        total = mass[..., 0] / 4
    return tuple(levels)


def sample_pyramid(
    levels: tuple[Array, ...], uv: Float[Array, "*n 2"], footprint: Float[Array, "*n"]
) -> Float[Array, "*n c"]:
    """Trilinear lookup: bilinear in the two levels whose texels are just finer and just coarser than `footprint`.

    footprint: how far apart neighbouring samples lie, in texels of the finest level (`texel_footprint`).
    """
    level = jnp.clip(jnp.log2(jnp.maximum(footprint, 1e-6)), 0.0, len(levels) - 1.0)
    value = sample_texture(levels[0], uv) * jnp.clip(1 - level, 0.0, 1.0)[..., None]
    for i, texture in enumerate(levels[1:], start=1):
        value = value + sample_texture(texture, uv) * jnp.clip(1 - jnp.abs(level - i), 0.0, 1.0)[..., None]
    return value


def texel_footprint(
    drawn: Float[Array, "v 3"], topology: Topology, triangle: Int[Array, "h w"], size: int
) -> Float[Array, "h w"]:
    """Side in texels of the square that a pixel covers in a texture of `size`, by the areas of its triangle.

    drawn: vertices as `on_image` gives them. triangle: `Fragments.triangle`. 1 where nothing is drawn.
    """
    xy, uv = drawn[:, :2][topology.faces], jnp.asarray(topology.uv)[topology.uv_faces] * size
    on_picture, in_texture = (jnp.abs(_area(x)) for x in (xy, uv))
    ratio = in_texture / jnp.maximum(on_picture, 1e-6)
    side = jnp.sqrt(jnp.maximum(ratio, 1e-12))[jnp.maximum(triangle, 0)]
    return jnp.where(triangle >= 0, side, 1.0)


def _area(corners: Array) -> Array:
    ab, ac = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    return ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0]
