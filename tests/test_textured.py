"""Drawing a texture as it is: against the renderer with even light, against finite differences, and what it refuses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_head import toy_head

from facejax.geometry.errors import InputError
from facejax.geometry.records import Camera, Face, Pose
from facejax.renderers import make_renderer
from facejax.renderers.textured import draw_texture

SIZE = (40, 48)
HEAD = toy_head(10, 12)
VERTICES = jnp.asarray(HEAD.params.mean)
POSE = Pose(rotation=jnp.diag(jnp.array([1.0, -1.0, -1.0])), translation=jnp.array([0.005, -0.01, 0.9]))
CAMERA = Camera(focal=jnp.array([150.0, 150.0]), principal_point=jnp.array([24.0, 20.0]))
TEXTURE = jnp.asarray(np.random.default_rng(0).uniform(0.2, 0.9, (16, 16, 3)), jnp.float32)


@pytest.mark.parametrize("antialiased", [False, True])
def test_it_is_the_renderer_under_a_light_that_changes_nothing(antialiased):
    """White skin, no gloss, and a `shade` that says 1 at every vertex."""
    n = len(VERTICES)
    face = Face(
        vertices=VERTICES, albedo=jnp.ones((n, 3)), texture=TEXTURE, specular=jnp.zeros(n), roughness=jnp.ones(n)
    )

    def even(face, light, pose, normals):
        return jnp.ones_like(face.albedo), jnp.zeros_like(face.albedo)

    render = make_renderer(HEAD.topology, SIZE, shade=even, antialiased=antialiased)
    expected = render(face, jnp.zeros((1, 3)), POSE, CAMERA)
    found = draw_texture(VERTICES, TEXTURE, POSE, CAMERA, HEAD.topology, SIZE, antialiased=antialiased)
    for name in ("colour", "coverage", "depth"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-6)
    assert 0.1 < float(found.coverage.mean()) < 0.9


def test_gradients_match_finite_differences():
    """Of the texture everywhere, of the pose with antialiased silhouettes."""
    y, x = jnp.meshgrid(jnp.linspace(0, 1, SIZE[0]), jnp.linspace(0, 1, SIZE[1]), indexing="ij")
    target = jnp.stack([x, y, x * y], axis=-1)  # smooth: where it jumps, so does the derivative

    def loss(texture, shift):
        pose = POSE.replace(translation=POSE.translation + jnp.array([shift, 0.0, 0.0]))
        return jnp.mean((draw_texture(VERTICES, texture, pose, CAMERA, HEAD.topology, SIZE).colour - target) ** 2)

    value = jax.jit(loss)
    smooth = jnp.broadcast_to(jnp.linspace(0.3, 0.8, 16)[:, None, None], TEXTURE.shape)
    by_texture = jax.jit(jax.grad(loss))(TEXTURE, 0.0)
    by_shift = jax.jit(jax.grad(loss, argnums=1))(smooth, 0.0)
    direction = jax.random.normal(jax.random.key(2), TEXTURE.shape)
    difference = (value(TEXTURE + 0.05 * direction, 0.0) - value(TEXTURE - 0.05 * direction, 0.0)) / 0.1
    assert float(jnp.sum(by_texture * direction)) == pytest.approx(float(difference), rel=2e-3)  # quadratic in it
    step = 5e-4
    difference = (value(smooth, step) - value(smooth, -step)) / (2 * step)
    assert float(by_shift) == pytest.approx(float(difference), rel=0.1)


def test_negative_texels_stay_and_nothing_is_drawn_beside_the_head():
    image = draw_texture(VERTICES, -TEXTURE, POSE, CAMERA, HEAD.topology, SIZE, antialiased=False)
    inside = np.asarray(image.coverage) > 0
    assert np.all(np.asarray(image.colour)[inside] < 0)
    assert not np.asarray(image.colour)[~inside].any()


def test_another_mesh_is_refused():
    with pytest.raises(InputError, match="for this topology"):
        draw_texture(VERTICES[:-1], TEXTURE, POSE, CAMERA, HEAD.topology, SIZE)
    torn = dataclasses.replace(HEAD.topology, faces=HEAD.topology.faces + 10_000)
    with pytest.raises(InputError, match="must name vertices"):
        draw_texture(VERTICES, TEXTURE, POSE, CAMERA, torn, SIZE)
