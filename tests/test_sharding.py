"""The mesh and the table of shardings: the four loud checks, and the batch."""

import os
import subprocess
import sys

import jax
from jax.sharding import PartitionSpec as P
import pytest

from bandtok_jax import tasks
from bandtok_jax.config.load import load_config
from bandtok_jax.layers.attention import attention
from bandtok_jax.layers.precision import exact
from bandtok_jax.training import sharding


def _mesh(data=1, fsdp=1, tensor=1):
    """A mesh of shapes alone: the checks never touch a device."""
    return jax.sharding.AbstractMesh((data, fsdp, tensor), sharding.AXES)


def _tree(*shape):
    return {"layer": {"kernel": jax.ShapeDtypeStruct(shape, "float32")}}


RULES = ((r"kernel", P("fsdp", "tensor")),)


def test_a_large_leaf_gets_its_rule_and_a_small_one_stays_whole():
    tree = {"a": _tree(256, 256), "b": _tree(4, 4)}
    specs = sharding.shardings(tree, RULES, _mesh(fsdp=2, tensor=2))
    assert specs["a"]["layer"]["kernel"].spec == P("fsdp", "tensor")
    assert specs["b"]["layer"]["kernel"].spec == P()


def test_moments_and_averages_follow_their_parameter():
    optimizer = {
        "optimizer": {"mu": _tree(256, 256)},
        "ema": _tree(256, 256),
        "count": jax.ShapeDtypeStruct((), "int32"),
    }
    specs = sharding.shardings(optimizer, RULES, _mesh(fsdp=2))
    assert specs["optimizer"]["mu"]["layer"]["kernel"].spec == P("fsdp", "tensor")
    assert specs["count"].spec == P()


@pytest.mark.parametrize("kind", ["encodec", "mimi"])
def test_the_devices_share_the_parameters_of_networks_that_are_only_imported(kind):
    config = load_config("dac:base_24khz", {"data.clip_samples": "24960"})
    with config.unlocked():
        config.model = {"kind": kind}  # of the published size
    task = tasks.create(config)
    state = jax.eval_shape(task.init, jax.random.key(0))
    layout = sharding.shardings(state, task.SHARDING, _mesh(fsdp=2, tensor=2))
    parameters, places = state["model"]["parameters"], layout["model"]["parameters"]
    all_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(parameters))
    assert sharding.bytes_on_device(parameters, places) < 0.26 * all_bytes


@pytest.mark.parametrize(
    "tree, rules, message",
    [
        (_tree(256, 256), ((r"bias", P()),), r"no sharding rule matches layer/kernel"),
        (_tree(256, 256), (*RULES, (r"bias", P())), r"match nothing: 'bias'"),
        (_tree(256 * 256), RULES, r"longer than the rank of layer/kernel"),
        (_tree(255, 256), RULES, r"layer/kernel \(255, 256\).*do not divide the dimension 255"),
    ],
)
def test_the_four_checks_name_what_is_wrong(tree, rules, message):
    with pytest.raises(ValueError, match=message):
        sharding.shardings(tree, rules, _mesh(fsdp=2))


def test_a_large_leaf_that_stayed_whole_is_named():
    tree, mesh = {"model": _tree(2048, 2048), "small": _tree(256, 256)}, _mesh(fsdp=2)
    whole, cut = (jax.sharding.NamedSharding(mesh, spec) for spec in (P(), P("fsdp")))
    sharding.check_sharded(tree, jax.tree.map(lambda _: cut, tree), mesh)
    with pytest.raises(ValueError, match=r"holds the whole of model/layer/kernel \(2048, 2048\): give them a rule"):
        sharding.check_sharded(tree, jax.tree.map(lambda _: whole, tree), mesh)
    sharding.check_sharded(tree, jax.tree.map(lambda _: whole, tree), _mesh(data=2))  # nothing is to be shared there


def test_the_table_shows_what_each_device_holds():
    tree = {"blocks": {"0": _tree(256, 64), "1": _tree(256, 64)}, "scale": jax.ShapeDtypeStruct((64,), "float32")}
    places = sharding.shardings(tree, (*RULES, (r"scale", P())), _mesh(fsdp=2, tensor=4))
    lines = sharding.table(tree, places).splitlines()
    assert lines[1].split() == [
        "blocks/*/layer/kernel",
        "x",
        "2",
        "256x64",
        "P('fsdp',",
        "'tensor')",
        "32,768",
        "16,384",
    ]
    assert lines[2].split() == ["scale", "64", "P()", "64", "256"]
    assert lines[3].split() == ["together", "32,832", "16,640"]


def test_the_mesh_takes_all_devices_and_refuses_what_does_not_fit():
    devices = jax.devices()[:1]
    assert dict(sharding.create_mesh({"data": -1, "fsdp": 1, "tensor": 1}, devices).shape) == dict(
        data=1, fsdp=1, tensor=1
    )
    with pytest.raises(ValueError, match="needs 3 devices and there are 1.*-1"):
        sharding.create_mesh({"data": 3, "fsdp": 1, "tensor": 1}, devices)
    with pytest.raises(ValueError, match="only one axis"):
        sharding.create_mesh({"data": -1, "fsdp": -1, "tensor": 1}, devices)


@pytest.mark.parametrize("size", [0, -2, None])
def test_an_axis_of_no_devices_is_refused(size):
    with pytest.raises(ValueError, match="mesh is .*set every axis of config.mesh to 1 or more, or one to -1"):
        sharding.mesh_sizes({"data": -1, "fsdp": size, "tensor": 1}, 2)


def test_a_batch_that_the_mesh_does_not_divide_names_the_cure():
    sharding.check_batch(_mesh(data=2, fsdp=2), 8, 2)
    with pytest.raises(ValueError, match=r"batch_size 12 .* multiple of 8"):
        sharding.check_batch(_mesh(data=2, fsdp=2), 12, 2)


def test_the_tpu_kernel_of_attention_is_cut_by_devices():
    program = """
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from bandtok_jax.layers.attention import attention
from bandtok_jax.training import sharding

def loss(x, causal):
    return attention(x, x, x, causal=causal, implementation="splash").astype(jnp.float32).sum()

axes = {"data": 2, "fsdp": 2, "tensor": 2}, {"data": 1, "fsdp": 1, "tensor": -1}
for axes, causal, shape in zip(axes, (True, False), ((4, 200, 8, 64), (4, 256, 8, 72))):
    mesh = sharding.create_mesh(axes)
    with jax.set_mesh(mesh):
        x = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, P(("data", "fsdp"))))
        gradient = jax.jit(jax.grad(loss), static_argnums=1)
        text = gradient.trace(x, causal).lower(lowering_platforms=("tpu",)).as_text()
    print(text.count("tpu_custom_call"))
"""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert run.stdout.split() == ["3", "3"], run.stderr[-2000:]  # forward, and backward for queries and for keys


@pytest.mark.parametrize("dtype, highest", [("bfloat16", False), ("float32", True)])
def test_the_tpu_kernel_of_attention_has_no_higher_precision_in_16_bits(dtype, highest):
    """Its compiler refuses such products, and the encoder of a codec is traced with the highest precision."""
    x = jax.ShapeDtypeStruct((1, 128, 2, 64), dtype)
    traced = jax.make_jaxpr(exact(lambda x: attention(x, x, x, implementation="splash")))(x)
    assert ("HIGHEST" in str(traced)) == highest


def test_a_discriminators_gradients_are_right_on_a_mesh():
    """XLA's own choice of where the channels lie made them wrong by half a percent."""
    program = """
import jax, jax.numpy as jnp, numpy as np
from bandtok_jax.losses import adversarial
from bandtok_jax.layers.network import Network
from bandtok_jax.models.patchgan import MultiScalePatchGAN
from bandtok_jax.training import sharding

sharding.REPLICATED_BELOW_ELEMENTS = 256
discriminator = Network(lambda rngs: MultiScalePatchGAN(channels=8, num_scales=1, dtype=jnp.float64, rngs=rngs))
random = np.random.default_rng(0)
shapes, log_mels = discriminator.shapes()[0], random.normal(size=(2, 8, 32, 128))
scale = lambda leaf: 5 / np.sqrt(np.prod(leaf.shape[:-1])) if len(leaf.shape) > 1 else 0.5
weights = jax.tree.map(lambda leaf: scale(leaf) * random.normal(size=leaf.shape), shapes)

def loss(weights, real, fake):
    return adversarial.discriminator_loss(*(discriminator.apply(weights, {}, x)[0] for x in (real, fake)), "hinge")

expected = jax.jit(jax.grad(loss))(weights, *log_mels)
mesh = sharding.create_mesh({"data": 2, "fsdp": 2, "tensor": 2})
rules = MultiScalePatchGAN.SHARDING
places, batch = sharding.shardings(weights, rules, mesh), sharding.batch_sharding(mesh)
with jax.set_mesh(mesh):
    found = jax.jit(jax.grad(loss), in_shardings=(places, batch, batch), out_shardings=places)(weights, *log_mels)
assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(found))
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), found, expected)
"""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_X64": "1",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8",
    }
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
