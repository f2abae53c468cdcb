"""Shading of vertices (Dib 2021) and texels (MoSAR): the papers' equations, their limits and their known faults."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.geometry.records import Face, Pose
from facejax.geometry.rotations import rotvec_to_matrix
from facejax.renderers.lights import sphere_directions
from facejax.renderers.microfacet import gather_light
from facejax.renderers.sh import irradiance, lobe_kernel, rotate_sh, roughness_kernel, sh_basis
from facejax.renderers.texel_shading import (
    TexelMaps,
    shade_texels,
    texel_diffuse,
    texel_radiance,
    texel_specular,
    texel_subsurface,
    translucency_kernel,
)
from facejax.renderers.vertex_shading import dib_vertex_light, vertex_diffuse, vertex_radiance, vertex_specular

COUNT = 40
WHITE = jnp.zeros((81, 3)).at[0].set(np.sqrt(4 * np.pi))


def units(n=COUNT, seed=0):
    d = np.random.default_rng(seed).normal(size=(n, 3))
    return jnp.asarray(d / np.linalg.norm(d, axis=1, keepdims=True), jnp.float32)


def some_light(bands=9, seed=0, white=0.0):
    light = np.random.default_rng(seed).normal(size=(bands**2, 3)) / bands
    light[0] += white
    return jnp.asarray(light, jnp.float32)


def skin(n=COUNT, seed=1):
    rng = np.random.default_rng(seed)
    normals = units(n, seed)
    eye = normals + 0.7 * units(n, seed + 1)
    return {
        "diffuse": jnp.asarray(rng.uniform(0.1, 0.9, (n, 3)), jnp.float32),
        "specular": jnp.asarray(rng.uniform(0.02, 0.3, n), jnp.float32),
        "occlusion": jnp.asarray(rng.uniform(0.3, 1, n), jnp.float32),
        "translucency": jnp.asarray(rng.uniform(0.6, 1, n), jnp.float32),
        "normals": normals,
        "to_eye": eye / jnp.linalg.norm(eye, axis=1, keepdims=True),
    }


def texels(light, kernel=None, **changes):
    kernel = lobe_kernel(0.3, 9, "beckmann") if kernel is None else kernel
    return texel_radiance(**{**skin(), **changes}, light=light, kernel=kernel)


def vertices(light, kernel=None, **changes):
    given = {**skin(), **changes}
    kernel = lobe_kernel(0.3, 9, "beckmann") if kernel is None else kernel
    return vertex_radiance(given["normals"], given["to_eye"], given["diffuse"], given["specular"], light, kernel)


SHADERS = pytest.mark.parametrize("shade", [texels, vertices])


def test_texels_are_the_sum_of_their_terms():
    s, light, kernel = skin(), some_light(), lobe_kernel(0.3, 9)
    total = (
        texel_diffuse(s["diffuse"], s["occlusion"], s["normals"], light)
        + texel_subsurface(s["diffuse"], s["translucency"], s["normals"], light)
        + texel_specular(s["specular"], s["normals"], s["to_eye"], light, kernel)
    )
    np.testing.assert_allclose(texels(light, kernel), total, atol=1e-6)


def test_vertices_are_a_blend_of_their_terms():
    s, light, kernel = skin(), some_light(), lobe_kernel(0.3, 9)
    share = s["specular"][:, None]
    total = (1 - share) * vertex_diffuse(s["normals"], s["diffuse"], light) + share * vertex_specular(
        s["normals"], s["to_eye"], light, kernel
    )
    np.testing.assert_allclose(vertices(light, kernel), total, atol=1e-6)


@SHADERS
def test_linear_in_the_light(shade):
    a, b = some_light(seed=1), some_light(seed=2)
    np.testing.assert_allclose(shade(2 * a - 3 * b), 2 * shade(a) - 3 * shade(b), atol=1e-5)


@SHADERS
def test_turning_light_surface_and_viewer_together_changes_nothing(shade):
    light, rotation = some_light(), rotvec_to_matrix(jnp.array([0.5, -1.0, 0.3]))
    turned = {k: skin()[k] @ rotation.T for k in ("normals", "to_eye")}
    np.testing.assert_allclose(shade(rotate_sh(light, rotation), **turned), shade(light), atol=2e-5)
    assert np.abs(np.asarray(shade(light, **turned) - shade(light))).max() > 0.03


@SHADERS
def test_compiled_is_eager_and_a_batch_is_a_loop(shade):
    lights = jnp.stack([some_light(seed=i) for i in range(3)])
    batch = jax.jit(jax.vmap(shade))(lights)
    for i, light in enumerate(lights):
        np.testing.assert_allclose(batch[i], shade(light), atol=1e-5)
    np.testing.assert_allclose(jax.jit(shade)(lights[0]), batch[0], atol=1e-5)


@SHADERS
def test_gradients_against_differences(shade):
    """In every argument, with viewers from face on to grazing and normals at the poles of the harmonics, too."""
    s = skin()
    eye = s["to_eye"].at[0].set(s["normals"][0])
    tangent = jnp.cross(s["normals"][1], jnp.array([0.3, 0.4, 0.5]))
    eye = eye.at[1].set(tangent / jnp.linalg.norm(tangent) * 0.99995 + 0.01 * s["normals"][1])
    normals = s["normals"].at[2:4].set(jnp.array([[0.0, 0, 1], [0, 0, -1]]))
    kernel = jnp.array([1.0, 0.8, 0.5, 0.3])
    weight = jnp.asarray(np.random.default_rng(3).normal(size=(COUNT, 3)), jnp.float32)

    @jax.jit
    def loss(args):
        light, given = args
        unit = {k: given[k] / jnp.linalg.norm(given[k], axis=1, keepdims=True) for k in ("normals", "to_eye")}
        return jnp.sum(shade(light, kernel, **{**given, **unit}) * weight)

    args = (some_light(4, white=3.0), {**s, "to_eye": eye, "normals": normals})
    slopes = jax.jit(jax.grad(loss))(args)
    leaves, tree = jax.tree.flatten(args)
    rng = np.random.default_rng(4)
    for i, slope in enumerate(jax.tree.leaves(slopes)):
        assert np.isfinite(np.asarray(slope)).all()
        change = jnp.asarray(rng.normal(size=leaves[i].shape), jnp.float32)
        change = change / jnp.linalg.norm(change)

        def at(step, i=i, change=change):
            moved = [x + step * change if j == i else x for j, x in enumerate(leaves)]
            return float(loss(jax.tree.unflatten(tree, moved)))

        np.testing.assert_allclose(
            float(jnp.sum(slope * change)),
            (at(1e-2) - at(-1e-2)) / 2e-2,
            rtol=0.02,
            atol=5e-3 * float(jnp.linalg.norm(slope)) + 1e-3,
        )


def test_matt_surfaces_are_what_an_integral_says():
    """Every term without gloss against sums over 2,048 directions of light of three bands; convex, so no shadows."""
    light, s = some_light(3, white=3.0), skin(seed=6)
    d = sphere_directions(2048)
    power = sh_basis(jnp.asarray(d), 3) @ light * (4 * np.pi / 2048)
    expected = s["diffuse"] * (np.maximum(np.asarray(s["normals"]) @ d.T, 0) @ power) / np.pi
    found = texel_diffuse(s["diffuse"], jnp.ones(COUNT), s["normals"], light)
    np.testing.assert_allclose(found, expected, atol=1e-3)
    np.testing.assert_allclose(vertex_diffuse(s["normals"], s["diffuse"], light), expected, atol=1e-3)


def test_three_bands_carry_nearly_all_irradiance_of_a_lamp():
    lamp = jnp.repeat(sh_basis(jnp.array([[0.0, 0.6, 0.8]]), 9).T, 3, axis=1)
    d = jnp.asarray(sphere_directions(256))
    all_bands, three = irradiance(d, lamp), irradiance(d, lamp[:9])
    lost = float(jnp.sum((all_bands - three) ** 2) / jnp.sum(all_bands**2))
    assert 0.007 < lost < 0.0085


def test_even_light_leaves_white_surfaces_white():
    s = skin()
    ones, white = jnp.ones(COUNT), jnp.ones((COUNT, 3))
    np.testing.assert_allclose(vertices(WHITE, diffuse=white, specular=0 * ones), 1, atol=1e-5)
    np.testing.assert_allclose(vertices(WHITE, diffuse=white), 1, atol=1e-5)  # blended, so nothing is created
    np.testing.assert_allclose(texel_diffuse(white, ones, s["normals"], WHITE), 1, atol=1e-5)
    np.testing.assert_allclose(texel_subsurface(white, ones, s["normals"], WHITE), 0, atol=1e-6)
    gloss = texel_specular(s["specular"], s["normals"], s["to_eye"], WHITE, lobe_kernel(0.3, 9))
    assert (np.asarray(gloss) <= 1 + 1e-5).all()
    # equation 5 is known to return up to albedo + Fresnel, no more
    total = texels(WHITE, translucency=ones)
    assert (np.asarray(total) <= np.asarray(skin()["diffuse"] + gloss) + 1e-5).all()


def test_thick_tissue_scatters_nothing_and_thin_tissue_more():
    t = jnp.array([0.0, 0.3, 0.6, 0.7, 0.8, 0.9, 1.0])
    kernel = np.asarray(translucency_kernel(t)) * np.pi
    np.testing.assert_array_equal(kernel[:, 0], 0)
    np.testing.assert_allclose(kernel[2:, 1], [0.0004, 0.016, 0.087, 0.218, 0.368], atol=6e-4)
    np.testing.assert_allclose(kernel[2:, 2], [0, 0, 0.0001, 0.0023, 0.0183], atol=6e-5)
    assert (np.diff(kernel[2:, 1]) > 0).all()
    assert kernel[:2].max() < 1e-6
    slopes = jax.vmap(jax.jacfwd(translucency_kernel))(jnp.linspace(0.0, 1, 101))
    assert np.isfinite(np.asarray(slopes)).all()


def test_subsurface_light_has_no_mean():
    d = jnp.asarray(sphere_directions(256))
    values = texel_subsurface(jnp.ones((256, 3)), jnp.full(256, 0.9), d, some_light())
    np.testing.assert_allclose(values.mean(axis=0), 0, atol=1e-5)
    assert np.abs(np.asarray(values)).max() > 0.003


def test_fresnel_from_face_on_to_grazing():
    n = units(2)
    across = jnp.cross(n, jnp.array([0.3, 0.4, 0.5]))
    across = across / jnp.linalg.norm(across, axis=1, keepdims=True)
    s, kernel = jnp.full(2, 0.05), jnp.ones(1)
    np.testing.assert_allclose(texel_specular(s, n, n, WHITE, kernel), 0.05, rtol=1e-4)
    np.testing.assert_allclose(texel_specular(s, n, across, WHITE, kernel), 1, rtol=1e-3)


@pytest.mark.parametrize("eq", ["texel", "vertex"])
def test_from_mirror_to_mean(eq):
    s, light = skin(), some_light(white=2.0)

    def gloss(kernel):
        if eq == "texel":  # of a perfect mirror, whose Fresnel term is 1
            return texel_specular(jnp.ones(COUNT), s["normals"], s["to_eye"], light, kernel)
        return vertex_specular(s["normals"], s["to_eye"], light, kernel)

    mirror = 2 * (s["normals"] * s["to_eye"]).sum(axis=1, keepdims=True) * s["normals"] - s["to_eye"]
    np.testing.assert_allclose(gloss(jnp.ones(9)), sh_basis(mirror, 9) @ light, atol=1e-5)
    mean = jnp.broadcast_to(light[0] / np.sqrt(4 * np.pi), (COUNT, 3))
    np.testing.assert_allclose(gloss(jnp.eye(9)[0]), mean, atol=1e-5)


def test_the_frequency_domain_nears_the_integral_as_the_lobe_narrows():
    """A glossy sphere seen from away, nearer than 60 degrees: the error against the pointwise surface falls."""
    light = some_light(6)
    d = sphere_directions(2048)
    power = sh_basis(jnp.asarray(d), 6) @ light * (4 * np.pi / 2048)
    n = units(400, 8)
    eye = jnp.broadcast_to(jnp.array([0.0, 0, 1]), n.shape)
    near = np.asarray(n[:, 2] > 0.5)
    errors = []
    for alpha in (0.6, 0.4, 0.2):
        count = len(n)
        full = gather_light(n, eye, jnp.ones(count), jnp.full(count, alpha), d, power)[1]
        blurred = vertex_specular(n, eye, light, lobe_kernel(alpha, 6, normalised=False))
        errors.append(np.abs(np.asarray(full - blurred))[near].mean() / np.abs(np.asarray(full))[near].mean())
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.15


def test_occlusion_and_albedo_can_be_exchanged_but_for_scattering():
    s, light = skin(), some_light()
    k = 0.7
    a = texel_diffuse(s["diffuse"], s["occlusion"], s["normals"], light)
    b = texel_diffuse(k * s["diffuse"], s["occlusion"] / k, s["normals"], light)
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    a = texel_subsurface(s["diffuse"], s["translucency"], s["normals"], light)
    b = texel_subsurface(k * s["diffuse"], s["translucency"], s["normals"], light)
    np.testing.assert_allclose(k * a, b, rtol=1e-4, atol=1e-7)


def head(n=COUNT):
    s = skin()
    face = Face(
        vertices=0.1 * units(n, 9),
        albedo=s["diffuse"],
        texture=jnp.ones((2, 2, 3)),
        specular=s["specular"],
        roughness=jnp.full(n, 0.3),
    )
    pose = Pose(rotation=rotvec_to_matrix(jnp.array([3.0, 0.2, 0.1])), translation=jnp.array([0.0, 0, 0.6]))
    return face, pose, s["normals"]


def test_vertices_of_a_head_are_lit_in_the_cameras_frame():
    face, pose, normals_head = head()
    light = some_light(white=8.0)
    diffuse, gloss = dib_vertex_light(face, light, pose, normals_head)
    normals = normals_head @ pose.rotation.T
    eye = -(face.vertices @ pose.rotation.T + pose.translation)
    eye = eye / jnp.linalg.norm(eye, axis=1, keepdims=True)
    expected = vertex_radiance(normals, eye, face.albedo, face.specular, light, roughness_kernel(jnp.float32(0.3), 9))
    np.testing.assert_allclose(face.albedo * diffuse + gloss, expected, atol=1e-5)
    constant = functools.partial(dib_vertex_light, kernel=lobe_kernel(0.3, 9))
    assert np.abs(np.asarray(constant(face, light, pose, normals_head)[1] - gloss)).max() > 1e-3


def test_texels_of_a_head_are_lit_in_the_cameras_frame_and_never_negative():
    face, pose, normals_head = head()
    s, light, kernel = skin(), some_light(), lobe_kernel(0.3, 9)
    maps = TexelMaps(
        position=face.vertices.reshape(5, 8, 3),
        normal=normals_head.reshape(5, 8, 3),
        diffuse=s["diffuse"].reshape(5, 8, 3),
        specular=s["specular"].reshape(5, 8),
        occlusion=s["occlusion"].reshape(5, 8),
        translucency=s["translucency"].reshape(5, 8),
    )
    eye = -(face.vertices @ pose.rotation.T + pose.translation)
    eye = eye / jnp.linalg.norm(eye, axis=1, keepdims=True)
    expected = texels(light, kernel, normals=normals_head @ pose.rotation.T, to_eye=eye)
    found = shade_texels(maps, light, pose, kernel)
    np.testing.assert_allclose(found.reshape(-1, 3), jnp.maximum(expected, 0), atol=1e-5)
    assert float(expected.min()) < 0
