"""Plans: what a step looks like without data, what is read from compiled programs, and the numbers made of it."""

import importlib.util
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandtok_jax import cli, tasks
from bandtok_jax.planning import hlo, memory, plan, search
from bandtok_jax.planning import plan_text as plan_text
from bandtok_jax.planning.collectives import HOP_SECONDS, Collective, Hosts, Torus, replica_groups
from bandtok_jax.runtime import accelerators
from bandtok_jax.training import sharding
from tests import tiny

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="the compiler for TPUs is not installed (bandtok-jax[tpu])"
)


# ---- what a batch looks like ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("task_name", tiny.TASKS)
def test_the_spec_of_a_batch_is_that_of_a_batch(task_name, tmp_path):
    config = tiny.config(task_name, tmp_path)
    task, batch = tasks.create(config), tiny.batch(config)
    assert task.batch_spec() == {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()}
    assert task.frozen_spec() == jax.eval_shape(task.load_frozen)


def test_how_many_embeddings_a_text_has_is_read_from_the_tokens(tmp_path):
    config = tiny.config("language_model", tmp_path, **{"model.text": "embedding"})
    with pytest.raises(ValueError, match="have no embeddings"):
        tasks.create(config).batch_spec()


# ---- compiled programs as text --------------------------------------------------------------------------------------

TEXT = """HloModule sample, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%condition (p: (s32[], f32[64,128])) -> pred[] {
  %p = (s32[]{:T(128)}, f32[64,128]{1,0:T(8,128)}) parameter(0)
  %limit = s32[]{:T(128)} constant(24)
  %step = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %less = pred[]{:T(512)} compare(%step, %limit), direction=LT
}

%scatter (x: bf16[512,256]) -> bf16[128,256] {
  %x = bf16[512,256]{1,0} parameter(0)
  %whole = bf16[512,256]{1,0} all-reduce(%x), channel_id=7, replica_groups=[2,4]<=[8], to_apply=%add
  %zero = u32[] constant(0)
  ROOT %part = bf16[128,256]{1,0} dynamic-slice(%whole, %zero, %zero), dynamic_slice_sizes={128,256}
}

%body (q: (s32[], f32[64,128])) -> (s32[], f32[64,128]) {
  %q = (s32[]{:T(128)}, f32[64,128]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%q), index=0
  %v = f32[64,128]{1,0:T(8,128)} get-tuple-element(%q), index=1
  %g = bf16[512,256]{1,0:T(8,128)(2,1)S(1)} custom-call(), custom_call_target="AllocateBuffer"
  %ring = (f32[64,128]{1,0}, /*index=1*/bf16[512,256]{1,0}) all-reduce(%v, /*index=1*/%g), channel_id=1, \
replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add, backend_config={"estimated_cycles":"10"}
  %shard = bf16[128,256]{1,0} fusion(%g), kind=kCustom, calls=%scatter, backend_config={"estimated_cycles":"5"}
  %w = f32[64,128]{1,0:T(8,128)} get-tuple-element(%ring), index=0
  ROOT %next = (s32[]{:T(128)}, f32[64,128]{1,0:T(8,128)}) tuple(%i, %w)
}

%hidden_1 (h: f32[16]) -> f32[128] {
  %h = f32[16]{0} parameter(0)
  ROOT %gathered = f32[128]{0} all-gather(%h), channel_id=9, replica_groups=mesh['a'=8] {'a'}, dimensions={0}
}

%hidden_2 (h2: f32[16]) -> f32[128] {
  %h2 = f32[16]{0} parameter(0)
  ROOT %gathered2 = f32[128]{0} all-gather(%h2), channel_id=9, replica_groups=mesh['a'=8] {'a'}, dimensions={0}
}

ENTRY %main (x0: f32[64,128], y: f32[16]) -> f32[64,128] {
  %x0 = f32[64,128]{1,0:T(8,128)} parameter(0)
  %y = f32[16]{0} parameter(1)
  %start = s32[]{:T(128)} constant(0)
  %one = f32[128]{0} fusion(%y), kind=kCustom, calls=%hidden_1
  %two = f32[128]{0} fusion(%y), kind=kCustom, calls=%hidden_2
  %send = (f32[16]{0}, f32[16]{0}, u32[]{:S(2)}) collective-permute-start(%y), channel_id=3, \
source_target_pairs={{0,1},{1,0}}
  %sent = f32[16]{0} collective-permute-done(%send)
  %state = (s32[]{:T(128)}, f32[64,128]{1,0:T(8,128)}) tuple(%start, %x0)
  %loop = (s32[]{:T(128)}, f32[64,128]{1,0:T(8,128)}) while(%state), condition=%condition, body=%body
  ROOT %out = f32[64,128]{1,0:T(8,128)} get-tuple-element(%loop), index=1
}
"""


def test_collectives_are_found_with_their_sizes_groups_and_runs():
    program = hlo.Program(TEXT, devices=8)
    halves = ((0, 1, 2, 3), (4, 5, 6, 7))
    assert sorted(program.collectives(), key=lambda c: c.kind) == [
        Collective("all-gather", 128 * 4, (tuple(range(8)),), 1),  # hidden in two fusions, and yet one
        Collective("all-reduce", 64 * 128 * 4 + 512 * 256 * 2, halves, 24),
        Collective("collective-permute", 16 * 4, ((0, 1), (1, 0)), 1),
        Collective("reduce-scatter", 512 * 256 * 2, halves, 24),
    ]
    assert program.cycles() == 24 * 15 and not program.endless


def test_a_noted_trip_count_is_taken_and_an_unknown_one_is_told():
    noted = TEXT.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"3"}}')
    assert {c.times for c in hlo.Program(noted, 8).collectives()} == {1, 3}
    unknown = hlo.Program(TEXT.replace("direction=LT", "direction=GT"), 8)
    assert {c.times for c in unknown.collectives()} == {1} and unknown.endless == ["loop"]


@pytest.mark.parametrize(
    "text, groups",
    [
        ("{{0,2},{1,3}}, use", [[0, 2], [1, 3]]),
        ("{}, use", [[0, 1, 2, 3, 4, 5, 6, 7]]),
        ("[2,4]<=[8], use", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("[4,2]<=[2,4]T(1,0), use", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("mesh['a'=2,'b'=1,'c'=4] {'a','b'}, use", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}, use", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("mesh['a'=2,'b'=4], device_ids=([8]) {'b'}, use", [[0, 1, 2, 3], [4, 5, 6, 7]]),
    ],
)
def test_groups_are_read_however_they_are_written(text, groups):
    assert replica_groups(text, 8) == tuple(map(tuple, groups))


def test_groups_in_a_new_way_are_refused():
    with pytest.raises(ValueError, match="new here"):
        replica_groups("mesh['a'=8] {'a':(1)2}, use", 8)


def _layers(weights, x):
    """Three layers in a loop, and a convolution."""
    x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)
    image = x.reshape(4, 8, 32, 2)
    kernel = weights[0, :3, :6].reshape(3, 3, 2, 1)
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(image, kernel, (2, 1), "SAME", dimension_numbers=numbers).sum()


def test_products_and_traffic_of_a_compiled_program_count_loops_in_full():
    shapes = jax.ShapeDtypeStruct((3, 64, 64), "float32"), jax.ShapeDtypeStruct((32, 64), "float32")
    compiled = jax.jit(_layers).lower(*shapes).compile()
    program, theirs = hlo.Program(compiled.as_text()), compiled.cost_analysis()
    product = 2 * 32 * 64 * 64
    meetings = (3 * 4 - 1) * (3 * 32 - 2)  # of taps and samples: at stride 2 the padding is at one end alone
    assert program.flops() == 3 * product + 2 * 4 * 2 * meetings
    assert not program.endless
    # XLA counts the loop's body once: one product and its memory, where there are three.
    assert theirs["flops"] < program.flops()
    assert theirs["bytes accessed"] < program.traffic() < 3 * theirs["bytes accessed"]


def test_traffic_is_what_xla_counts_where_there_is_no_loop():
    def step(cache, x, w):
        y = jnp.tanh(x @ w)
        return jax.lax.dynamic_update_slice(cache, y[None], (2, 0, 0)), (y**2).sum(0)

    shapes = [jax.ShapeDtypeStruct(s, "float32") for s in ((8, 64, 128), (64, 256), (256, 128))]
    compiled = jax.jit(step, donate_argnums=0).lower(*shapes).compile()
    theirs = compiled.cost_analysis()["bytes accessed"]
    assert hlo.Program(compiled.as_text()).traffic() == pytest.approx(theirs, rel=0.1)


PARALLEL = """
import json
import jax, jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from bandtok_jax.planning import hlo
from bandtok_jax.training import sharding

def loss(weights, x):
    x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)
    return (x ** 2).mean()

mesh = sharding.create_mesh({"data": 4, "fsdp": 1, "tensor": 1})
whole, rows = jax.NamedSharding(mesh, P()), jax.NamedSharding(mesh, P("data"))
with jax.set_mesh(mesh):
    step = jax.jit(jax.grad(loss), in_shardings=(whole, rows), out_shardings=whole)
    shapes = [jax.ShapeDtypeStruct(shape, "float32") for shape in ((5, 64, 64), (8, 64))]
    text = step.lower(*shapes).compile().as_text()
print(json.dumps([[c.kind, c.bytes * c.times, len(c.groups[0])] for c in hlo.Program(text, 4).collectives()]))
"""


def test_the_gradients_of_layers_in_a_loop_are_exchanged_once_each():
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    run = subprocess.run([sys.executable, "-c", PARALLEL], env=environment, capture_output=True, text=True)
    found = json.loads(run.stdout.splitlines()[-1])
    assert all(kind == "all-reduce" and size == 4 for kind, _, size in found), run.stderr[-2000:]
    assert sum(count for _, count, _ in found) == 5 * 64 * 64 * 4


# ---- times ----------------------------------------------------------------------------------------------------------


def _grid(*shape):
    return np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).reshape(-1, len(shape))


def test_times_on_a_torus():
    line, ring = Torus(_grid(4, 4), (4, 4), 16, 1e9), Torus(_grid(4, 4), (4, 4), 4, 1e9)
    row, everybody = ((0, 1, 2, 3),), (tuple(range(16)),)
    seconds = lambda torus, *collective: torus.seconds(Collective(*collective))
    hops = 4 * HOP_SECONDS
    assert seconds(line, "all-gather", 1e9, row, 1) == pytest.approx(0.75 + hops)
    assert seconds(ring, "all-gather", 1e9, row, 1) == pytest.approx(0.375 + hops)  # in both directions
    assert seconds(line, "all-reduce", 1e9, row, 2) == pytest.approx(4 * (0.75 + hops))
    assert seconds(line, "all-gather", 1e9, everybody, 1) == pytest.approx(15 / 16 / 2 + 2 * hops)  # along both axes
    assert seconds(line, "all-gather", 1e9, ((0, 2), (1, 3)), 1) == pytest.approx(0.5 * 2, rel=1e-4)  # links are shared
    assert seconds(ring, "all-to-all", 1e9, row, 1) == pytest.approx(0.5 + hops)
    assert seconds(line, "collective-permute", 1e9, ((0, 3), (3, 0)), 1) == pytest.approx(3, rel=1e-4)
    assert seconds(ring, "collective-permute", 1e9, ((0, 3), (3, 0)), 1) == pytest.approx(1, rel=1e-4)


def test_times_on_hosts():
    hosts = Hosts(4, 1e9, 1e8)
    inside, across = Collective("all-gather", 1e9, ((0, 1, 2, 3),), 1), Collective("all-gather", 1e9, ((0, 4),), 1)
    assert hosts.seconds(inside) == pytest.approx(0.75)
    assert hosts.seconds(across) == pytest.approx(5)
    both = Collective("all-reduce", 1e9, (tuple(range(8)),), 1)
    assert hosts.seconds(both) == pytest.approx(2 * (0.75 + 0.25 / 0.1 / 2))


# ---- memory ---------------------------------------------------------------------------------------------------------


def test_values_take_memory_while_they_live():
    def step(x):
        a = x @ x
        b = a @ x  # a ends
        return jnp.tanh(b) @ x  # tanh is made where it is used

    square = 4 * 64 * 64
    assert memory.peak_bytes(jax.make_jaxpr(step)(jnp.zeros((64, 64))).jaxpr) == 2 * square


@pytest.mark.parametrize("remat, kept", [(False, 3), (True, 1)])
def test_a_loop_keeps_what_its_gradient_needs(remat, kept):
    def layer(x, w):
        y = x @ w
        return y @ (y @ w).T @ w, None  # three products beside the carry

    layer = jax.checkpoint(layer) if remat else layer
    loss = lambda w, x: jax.lax.scan(layer, x, w)[0].sum()
    sizes = [
        memory.peak_bytes(jax.make_jaxpr(jax.grad(loss))(jnp.zeros((layers, 64, 64)), jnp.zeros((64, 64))).jaxpr)
        for layers in (10, 20)
    ]
    gradients_and_kept = (1 + kept) * 10 * 4 * 64 * 64
    assert sizes[1] - sizes[0] == pytest.approx(gradients_and_kept, rel=0.35)


# ---- plans ----------------------------------------------------------------------------------------------------------


def _found(**changes):
    facts = dict(
        machines="v5e:4x4", chips=16, mesh={"data": 16, "fsdp": 1, "tensor": 1}, batch_size=256, accumulation_steps=1,
        phase={}, compiled=True, quick=False, memory_gib=16, peak_flops=1e14, fits=False,
        bytes={"state": 2**30, "total": 40 * 2**30},
    )  # fmt: skip
    return plan.Plan(**facts | changes)


@pytest.mark.parametrize(
    "message, total",
    [
        ("RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (17.50G) exceeds "
         "available HBM (15.75G).", 17.5),
        ("RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 18.25G of "
         "15.75G hbm. Exceeded hbm capacity by 2.50G.", 18.25),
    ],
)  # fmt: skip
def test_what_xla_says_of_a_program_that_is_too_large_is_understood(message, total):
    found = _found(bytes={})
    plan._does_not_fit(found, message)
    assert found.bytes["total"] == total * 2**30
    assert found.problem == f"the program needs {total:.2f} GiB, and 15.75 GiB are free for it"


def test_the_cure_is_what_costs_least_and_is_tried_out(tmp_path, monkeypatch):
    config = tiny.config("language_model", tmp_path, batch_size=256)
    tried = []

    def pretend(config, machines):
        settings = (config.model.remat, config.optimizer.accumulation_steps, config.mesh.fsdp)
        tried.append(settings)
        return _found(accumulation_steps=settings[1], fits=settings[1] > 1)

    monkeypatch.setattr(search, "plan", pretend)
    changes, found = search.cure(config, None, _found(), lambda what: None)
    assert found.fits and changes == {"model.remat": True, "optimizer.accumulation_steps": 4}
    assert tried == [(True, 1, 1), (True, 4, 1)]
    changes, _ = search.cure(config, None, _found(bytes={"state": 15 * 2**30}), lambda what: None)
    assert changes["mesh.fsdp"] == 4


def test_programs_read_one_plan_and_the_exit_code(monkeypatch, capsys):
    monkeypatch.setattr(plan, "plan", lambda *_, **__: _found())
    monkeypatch.setattr(search, "cure", lambda *_, **__: ({"mesh.fsdp": 4}, _found(fits=True)))
    flags = ["plan", "--config=language_model:tiny", "--topology=v5e:4x4", "--json"]
    assert cli.main(flags) == 1
    printed = capsys.readouterr()
    assert not json.loads(printed.out)["fits"] and "it fits with --config.mesh.fsdp=4" in printed.err
    for fits in (True, False):
        monkeypatch.setattr(search, "weak_scaling", lambda *_, **__: [_found(fits=True), _found(fits=fits)])
        assert cli.main([*flags, "--weak-scaling"]) == int(not fits)
        assert [json.loads(line)["fits"] for line in capsys.readouterr().out.splitlines()] == [True, fits]


def test_a_gpu_plan_adds_state_gradients_and_activations(tmp_path, capsys):
    flags = ["--topology=h100:2x4", "--config.batch_size=64", "--config.model.num_layers=1", "--json"]
    assert cli.main(["plan", "--config=language_model:tiny", *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] and not found["compiled"] and found["mesh"]["data"] == 8
    assert found["bytes"]["total"] == found["bytes"]["state"] + found["bytes"]["temporaries"]
    assert found["collectives"]["all-reduce"]["bytes"] == found["gradient_bytes"]
    seconds = found["seconds"]
    assert seconds["step"] == pytest.approx(seconds["arithmetic"] + seconds["collectives"])


def test_fsdp_divides_the_state_on_gpus(tmp_path):
    config = tiny.config("language_model", tmp_path, **{"model.dim": 256, "batch_size": 8, "mesh.fsdp": 8})
    machines = accelerators.parse("a100:1x8")
    spread = plan.plan(config, machines)
    whole = plan.plan(search.changed(config, {"mesh.fsdp": 1}), machines)
    assert spread.bytes["state"] < 0.2 * whole.bytes["state"]
    assert set(spread.collectives) == {"all-reduce", "all-gather", "reduce-scatter"}


def test_the_weak_scaling_table_keeps_the_examples_of_a_chip(tmp_path, monkeypatch):
    def pretend(config, machines):
        mesh = dict(zip(("data", "fsdp", "tensor"), sharding.mesh_sizes(config.mesh, machines.chips)))
        seconds = {"step": 1.0, "collectives": 0.1}
        return _found(chips=machines.chips, mesh=mesh, batch_size=config.batch_size, fits=True, seconds=seconds)

    monkeypatch.setattr(search, "plan", pretend)
    config = tiny.config("language_model", tmp_path, **{"batch_size": 32, "mesh.fsdp": 2, "mesh.tensor": 4})
    plans = search.weak_scaling(config, accelerators.parse("v5p:2x2x4"), lambda what: None)
    assert [found.batch_size for found in plans] == [2, 8, 32, 128, 512]
    sizes = [tuple(found.mesh.values()) for found in plans]
    assert sizes == [(1, 1, 1), (1, 1, 4), (2, 2, 4), (8, 2, 4), (32, 2, 4)]
    assert [line.split("|")[1].strip() for line in plan_text.table(plans).splitlines()[2:]] == "1 4 16 64 256".split()
    with pytest.raises(ValueError, match="multiple of 16"):
        search.weak_scaling(search.changed(config, {"batch_size": 8}), accelerators.parse("v5e:4x4"), print)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--topology=v5f:4x4"], "no machine type 'v5f'; did you mean"),
        (["--topology=v5e:3x3"], "no slice of shape '3x3'"),
        (["--topology=h100:1x8", "--config.batch_size=12"], "batch_size 12 is not a multiple of 8"),
        (["--topology=h100:1x8", "--config.mesh.tensor=2"], "mesh.tensor is 2.*set --config.mesh.tensor=1"),
    ],
)
def test_mistakes_are_one_line_with_a_cure(flags, message, capsys):
    assert cli.main(["plan", "--config=language_model:tiny", *flags]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("bandtok: error: ")
    with pytest.raises(ValueError, match=message):
        raise ValueError(error)


def test_without_the_compiler_for_tpus_the_cure_is_named(monkeypatch, capsys):
    monkeypatch.setattr(plan.importlib.util, "find_spec", lambda name: None)
    assert cli.main(["plan", "--config=bandtok:tiny", "--topology=v5e:2x2"]) == 1
    assert "pip install 'bandtok-jax[tpu]'" in capsys.readouterr().err


@needs_libtpu
def test_a_language_model_is_compiled_for_sixteen_real_chips(tmp_path):
    changes = {
        "batch_size": 32,
        "model.num_layers": 3,
        "model.scan_layers": True,
        "model.remat": True,
        "model.dim": 128,
    }
    changes |= {"dtype": "bfloat16", "model.text": "none", "data.columns": 120}
    config = tiny.config("language_model", tmp_path, **changes)
    found = plan.plan(config, accelerators.parse("v5e:4x4"), quick=True)
    assert found.fits and found.compiled and found.mesh["data"] == 16
    assert 0 < found.bytes["state"] < found.bytes["total"] < 2**30
    # Every gradient is exchanged once, and next to nothing else.
    assert set(found.collectives) == {"all-reduce"}
    assert 1 <= found.collectives["all-reduce"]["bytes"] / found.gradient_bytes < 1.1
    # What is computed again, and products that one chip does for all.
    assert 1 < found.program_flops / found.model_flops < 2
    assert found.seconds["cycles"] > found.seconds["step"] > found.seconds["collectives"] > 0
    assert "16 chips" in plan_text.text(found, "a name") and "fits" in plan_text.text(found, "a name")
    assert not found.notes


@needs_libtpu
def test_a_step_that_is_too_large_for_a_chip_is_told_so(tmp_path):
    config = tiny.config("language_model", tmp_path, **{"batch_size": 2**28, "model.text": "none"})
    found = plan.plan(config, accelerators.parse("v5e:2x2"), quick=True)
    assert not found.fits and found.bytes["total"] > 16 * 2**30
    assert "does not fit: the program needs" in plan_text.text(found, "a name")
