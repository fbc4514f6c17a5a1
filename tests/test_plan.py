"""Plans: shapes of a batch without data, cost of compiled programs, memory of traced steps, and plans made of them."""

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
from bandtok_jax.planning import hlo, memory, plan_text, planner, program_cost, search, tpu
from bandtok_jax.planning.collectives import HOP_SECONDS, Collective, Hosts, Torus
from bandtok_jax.planning.plan import Plan
from bandtok_jax.pretrained import model_folder
from bandtok_jax.runtime import accelerators
from bandtok_jax.training import sharding
from tests import tiny

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="the compiler for TPUs is not installed (bandtok-jax[tpu])"
)


# ---- shapes of a batch ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task_name", tiny.fast("mel_tokenizer", "language_model", "masked_prediction"))
def test_batch_spec_has_the_shapes_of_a_batch(task_name, tmp_path):
    config = tiny.config(task_name, tmp_path)
    task = tasks.create(config, model_folder.read_components)
    batch = tiny.batch(task.config)
    assert task.batch_spec() == {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()}
    assert task.frozen_spec() == jax.eval_shape(task.load_frozen)


def test_batch_spec_needs_tokens_with_embeddings(tmp_path):
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


def test_collectives_have_sizes_groups_and_runs():
    program = hlo.HloProgram(TEXT, devices=8)
    halves = ((0, 1, 2, 3), (4, 5, 6, 7))
    assert sorted(program_cost.collectives(program), key=lambda c: c.kind) == [
        Collective("all-gather", 128 * 4, (tuple(range(8)),), 1),  # hidden in two fusions, and counted once
        Collective("all-reduce", 64 * 128 * 4 + 512 * 256 * 2, halves, 24),
        Collective("collective-permute", 16 * 4, ((0, 1), (1, 0)), 1),
        Collective("reduce-scatter", 512 * 256 * 2, halves, 24),
    ]
    assert program_cost.cycles(program) == 24 * 15 and not program.unknown_trip_counts()


def test_trip_counts_are_known_or_reported():
    noted = hlo.HloProgram(TEXT.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"3"}}'), 8)
    assert {collective.runs for collective in program_cost.collectives(noted)} == {1, 3}
    unknown = hlo.HloProgram(TEXT.replace("direction=LT", "direction=GT"), 8)
    assert {collective.runs for collective in program_cost.collectives(unknown)} == {1}
    assert unknown.unknown_trip_counts() == ["loop"]


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
def test_replica_groups_of_each_notation(text, groups):
    assert hlo.replica_groups(text, 8) == tuple(map(tuple, groups))


def test_replica_groups_of_an_unknown_notation_are_refused():
    with pytest.raises(ValueError, match=r"unknown notation.*'a':\(1\)2"):
        hlo.replica_groups("mesh['a'=8] {'a':(1)2}, use", 8)


def _layers(weights, x):
    """Three layers in a loop, and a convolution."""
    x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)
    image = x.reshape(4, 8, 32, 2)
    kernel = weights[0, :3, :6].reshape(3, 3, 2, 1)
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(image, kernel, (2, 1), "SAME", dimension_numbers=numbers).sum()


def test_cost_of_a_compiled_program_counts_loops_in_full():
    shapes = jax.ShapeDtypeStruct((3, 64, 64), "float32"), jax.ShapeDtypeStruct((32, 64), "float32")
    compiled = jax.jit(_layers).lower(*shapes).compile()
    program, xla_cost = hlo.HloProgram(compiled.as_text()), compiled.cost_analysis()
    matmul = 2 * 32 * 64 * 64
    multiplies = (3 * 4 - 1) * (3 * 32 - 2)  # at stride 2, only one end is padded
    assert program_cost.matmul_flops(program) == 3 * matmul + 2 * 4 * 2 * multiplies
    assert not program.unknown_trip_counts()
    # XLA counts one matrix product and its memory for the loop, instead of three.
    assert xla_cost["flops"] < program_cost.matmul_flops(program)
    assert xla_cost["bytes accessed"] < program_cost.memory_traffic_bytes(program) < 3 * xla_cost["bytes accessed"]


def test_memory_traffic_without_loops_is_that_of_xla():
    def step(cache, x, w):
        y = jnp.tanh(x @ w)
        return jax.lax.dynamic_update_slice(cache, y[None], (2, 0, 0)), (y**2).sum(0)

    shapes = [jax.ShapeDtypeStruct(s, "float32") for s in ((8, 64, 128), (64, 256), (256, 128))]
    compiled = jax.jit(step, donate_argnums=0).lower(*shapes).compile()
    traffic = program_cost.memory_traffic_bytes(hlo.HloProgram(compiled.as_text()))
    assert traffic == pytest.approx(compiled.cost_analysis()["bytes accessed"], rel=0.1)


PARALLEL = """
import json
import jax, jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from bandtok_jax.planning import hlo, program_cost
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
collectives = program_cost.collectives(hlo.HloProgram(text, 4))
print(json.dumps([[c.kind, c.bytes * c.runs, len(c.groups[0])] for c in collectives]))
"""


def test_gradients_of_scanned_layers_are_exchanged_once():
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    run = subprocess.run([sys.executable, "-c", PARALLEL], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    collectives = json.loads(run.stdout.splitlines()[-1])
    assert all(kind == "all-reduce" and devices == 4 for kind, _, devices in collectives)
    assert sum(size for _, size, _ in collectives) == 5 * 64 * 64 * 4


# ---- times ----------------------------------------------------------------------------------------------------------


def _grid(*shape):
    return np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).reshape(-1, len(shape))


def test_times_on_a_torus():
    line, ring = Torus(_grid(4, 4), (4, 4), 16, 1e9), Torus(_grid(4, 4), (4, 4), 4, 1e9)
    row, all_devices = ((0, 1, 2, 3),), (tuple(range(16)),)

    def seconds(torus, *collective):
        return torus.seconds(Collective(*collective))

    hops = 4 * HOP_SECONDS
    assert seconds(line, "all-gather", 1e9, row, 1) == pytest.approx(0.75 + hops)
    assert seconds(ring, "all-gather", 1e9, row, 1) == pytest.approx(0.375 + hops)  # in both directions
    assert seconds(line, "all-reduce", 1e9, row, 2) == pytest.approx(4 * (0.75 + hops))
    assert seconds(line, "all-gather", 1e9, all_devices, 1) == pytest.approx(15 / 16 / 2 + 2 * hops)  # along both axes
    assert seconds(line, "all-gather", 1e9, ((0, 2), (1, 3)), 1) == pytest.approx(0.5 * 2, rel=1e-4)  # links are shared
    assert seconds(ring, "all-to-all", 1e9, row, 1) == pytest.approx(0.5 + hops)
    assert seconds(line, "collective-permute", 1e9, ((0, 3), (3, 0)), 1) == pytest.approx(3, rel=1e-4)
    assert seconds(ring, "collective-permute", 1e9, ((0, 3), (3, 0)), 1) == pytest.approx(1, rel=1e-4)


def test_times_on_hosts():
    hosts = Hosts(4, 1e9, 1e8)
    on_host, across = Collective("all-gather", 1e9, ((0, 1, 2, 3),), 1), Collective("all-gather", 1e9, ((0, 4),), 1)
    assert hosts.seconds(on_host) == pytest.approx(0.75)
    assert hosts.seconds(across) == pytest.approx(5)
    both = Collective("all-reduce", 1e9, (tuple(range(8)),), 1)
    assert hosts.seconds(both) == pytest.approx(2 * (0.75 + 0.25 / 0.1 / 2))


# ---- memory ---------------------------------------------------------------------------------------------------------


def test_arrays_take_memory_until_their_last_use():
    def step(x):
        a = x @ x
        b = a @ x  # the last use of a
        return jnp.tanh(b) @ x  # tanh is fused into the product

    square = 4 * 64 * 64
    assert memory.peak_bytes(jax.make_jaxpr(step)(jnp.zeros((64, 64))).jaxpr) == 2 * square


@pytest.mark.parametrize("remat, stored", [(False, 3), (True, 1)])
def test_a_loop_stores_the_activations_of_its_gradient(remat, stored):
    def layer(x, w):
        y = x @ w
        return y @ (y @ w).T @ w, None  # three matrix products and the carry

    layer = jax.checkpoint(layer) if remat else layer

    def loss(w, x):
        return jax.lax.scan(layer, x, w)[0].sum()

    sizes = [
        memory.peak_bytes(jax.make_jaxpr(jax.grad(loss))(jnp.zeros((layers, 64, 64)), jnp.zeros((64, 64))).jaxpr)
        for layers in (10, 20)
    ]
    gradients_and_stored = (1 + stored) * 10 * 4 * 64 * 64
    assert sizes[1] - sizes[0] == pytest.approx(gradients_and_stored, rel=0.35)


# ---- plans ----------------------------------------------------------------------------------------------------------


def _plan(**changes):
    settings = dict(
        machines="v5e:4x4", chips=16, mesh={"data": 16, "fsdp": 1, "tensor": 1}, batch_size=256, accumulation_steps=1,
        phase={}, compiled=True, quick=False, memory_gib=16, peak_flops=1e14, fits=False,
        bytes={"state": 2**30, "total": 40 * 2**30},
    )  # fmt: skip
    return Plan(**settings | changes)


@pytest.mark.parametrize(
    "message, total",
    [
        ("RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (17.50G) exceeds "
         "available HBM (15.75G).", 17.5),
        ("RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 18.25G of "
         "15.75G hbm. Exceeded hbm capacity by 2.50G.", 18.25),
    ],
)  # fmt: skip
def test_memory_errors_of_xla_are_parsed(message, total):
    needed_bytes, problem = tpu.parse_memory_error(message)
    assert needed_bytes == total * 2**30
    assert f"needs {total:.2f} GiB" in problem and "15.75 GiB" in problem


def test_the_cheapest_fix_is_tried_first(tmp_path, monkeypatch):
    config, machines = tiny.config("language_model", tmp_path, batch_size=256), accelerators.parse("v5e:4x4")
    tried = []

    def plan_of(config, machines):
        settings = (config.model.remat, config.optimizer.accumulation_steps, config.mesh.fsdp)
        tried.append(settings)
        return _plan(accumulation_steps=settings[1], fits=settings[1] > 1)

    monkeypatch.setattr(search, "make_plan", plan_of)
    changes, fixed = search.suggest_fix(config, machines, _plan(), print)
    assert fixed and fixed.fits and changes == {"model.remat": True, "optimizer.accumulation_steps": 4}
    assert tried == [(True, 1, 1), (True, 4, 1)]
    changes, _ = search.suggest_fix(config, machines, _plan(bytes={"state": 15 * 2**30}), print)
    assert changes["mesh.fsdp"] == 4


def test_the_base_of_adapters_is_part_of_the_state(tmp_path):
    config = tiny.config("language_model", tmp_path, **{"lora.rank": 2, "model.text": "none"})
    base = tiny.config("language_model", tmp_path, **{"model.text": "none"})
    shapes = jax.eval_shape(tasks.create(base).network.init, jax.random.key(0))
    base_bytes = 4 * sum(leaf.size for leaf in jax.tree.leaves(shapes))
    state_bytes = planner.make_plan(config, accelerators.parse("h100:1x2")).bytes["state"]
    assert base_bytes < state_bytes < 2 * base_bytes


def test_json_and_exit_codes(monkeypatch, capsys):
    monkeypatch.setattr(planner, "make_plan", lambda *_, **__: _plan())
    monkeypatch.setattr(search, "suggest_fix", lambda *_, **__: ({"mesh.fsdp": 4}, _plan(fits=True)))
    flags = ["plan", "--config=language_model:tiny", "--topology=v5e:4x4", "--json"]
    assert cli.main(flags) == 1
    printed = capsys.readouterr()
    assert not json.loads(printed.out)["fits"] and "--config.mesh.fsdp=4" in printed.err
    for fits in (True, False):
        monkeypatch.setattr(search, "weak_scaling", lambda *_, **__: [_plan(fits=True), _plan(fits=fits)])
        assert cli.main([*flags, "--weak-scaling"]) == int(not fits)
        assert [json.loads(line)["fits"] for line in capsys.readouterr().out.splitlines()] == [True, fits]


def test_a_gpu_plan_adds_state_gradients_and_activations(tmp_path, capsys):
    flags = ["--topology=h100:2x4", "--config.batch_size=64", "--json"]
    flags += ["--config.model.num_layers=1", "--config.model.text=none"]
    assert cli.main(["plan", "--config=language_model:tiny", *flags]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["fits"] and not plan["compiled"] and plan["mesh"]["data"] == 8
    assert plan["bytes"]["total"] == plan["bytes"]["state"] + plan["bytes"]["temporaries"]
    assert plan["collectives"]["all-reduce"]["bytes"] == plan["gradient_bytes"]
    seconds = plan["seconds"]
    assert "step" not in seconds and min(seconds["arithmetic"], seconds["collectives"]) > 0


def test_fsdp_divides_the_state_on_gpus(tmp_path):
    sizes = {"model.dim": 256, "model.text": "none"}
    config = tiny.config("language_model", tmp_path, **sizes, **{"batch_size": 8, "mesh.fsdp": 8})
    machines = accelerators.parse("a100:1x8")
    sharded = planner.make_plan(config, machines)
    whole = planner.make_plan(search.with_changes(config, {"mesh.fsdp": 1}), machines)
    assert sharded.bytes["state"] < 0.2 * whole.bytes["state"]
    assert set(sharded.collectives) == {"all-reduce", "all-gather", "reduce-scatter"}


def test_a_step_whose_memory_traffic_is_not_modelled_has_no_time():
    settings = dict(machines="h100:2x8", phase={"adversarial": False}, fits=True, model_flops=1e12, program_flops=1e12)
    for compiled in (False, True):
        plan = _plan(compiled=compiled, **settings)
        plan.add_times({"memory_gbytes_per_second": 1000}, [], Hosts(8, 1e11, 1e10))
        text, row = plan_text.format_plan(plan, "a name"), plan_text.format_table([plan]).splitlines()[2]
        assert ("step" in plan.seconds) == ("examples/s" in text) == ("25600" in row) == compiled
        assert "arithmetic" in text and ("not modelled" in text) != compiled and "phase" not in text


def test_the_weak_scaling_table_keeps_the_examples_of_a_chip(tmp_path, monkeypatch):
    def plan_of(config, machines):
        mesh = dict(zip(("data", "fsdp", "tensor"), sharding.mesh_sizes(config.mesh, machines.chips)))
        seconds = {"arithmetic": 0.9, "memory": 0.5, "collectives": 0.1, "step": 1.0}
        return _plan(chips=machines.chips, mesh=mesh, batch_size=config.batch_size, fits=True, seconds=seconds)

    monkeypatch.setattr(search, "make_plan", plan_of)
    config = tiny.config("language_model", tmp_path, **{"batch_size": 32, "mesh.fsdp": 2, "mesh.tensor": 4})
    plans = search.weak_scaling(config, accelerators.parse("v5p:2x2x4"), print)
    assert [plan.batch_size for plan in plans] == [2, 8, 32, 128, 512]
    sizes = [tuple(plan.mesh.values()) for plan in plans]
    assert sizes == [(1, 1, 1), (1, 1, 4), (2, 2, 4), (8, 2, 4), (32, 2, 4)]
    assert [
        line.split("|")[1].strip() for line in plan_text.format_table(plans).splitlines()[2:]
    ] == "1 4 16 64 256".split()
    with pytest.raises(ValueError, match="multiple of 16"):
        search.weak_scaling(search.with_changes(config, {"batch_size": 8}), accelerators.parse("v5e:4x4"), print)


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


def test_a_missing_libtpu_is_an_error_with_its_package(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    assert cli.main(["plan", "--config=bandtok:tiny", "--topology=v5e:2x2"]) == 1
    assert "pip install 'bandtok-jax[tpu]'" in capsys.readouterr().err


def test_jax_has_the_option_of_quick_plans():
    compiled = jax.jit(jnp.sin).lower(0.0).compile(compiler_options=tpu.QUICK_OPTIONS)
    assert compiled(0.5) == jnp.sin(0.5)


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize("layout, infill_fraction", [("flat", 0.0), ("delay", 0.0), ("depth", 0.0), ("depth", 0.5)])
def test_a_language_model_is_compiled_for_sixteen_real_chips(layout, infill_fraction, tmp_path):
    changes = {
        "model.layout": layout,
        "loss.infill_fraction": infill_fraction,
        "batch_size": 32,
        "model.num_layers": 3,
        "model.scan_layers": True,
        "model.remat": True,
        "model.dim": 128,
    }
    changes |= {"dtype": "bfloat16", "model.text": "none", "data.columns": 120}
    config = tiny.config("language_model", tmp_path, **changes)
    plan = planner.make_plan(config, accelerators.parse("v5e:4x4"), quick=True)
    assert plan.fits and plan.compiled and plan.mesh["data"] == 16
    assert 0 < plan.bytes["state"] < plan.bytes["total"] < 2**30
    # Every gradient is exchanged once, and next to nothing else.
    assert set(plan.collectives) == {"all-reduce"}
    assert 1 <= plan.collectives["all-reduce"]["bytes"] / plan.gradient_bytes < 1.1
    # The program also contains rematerialisation, and matrix products that every chip repeats.
    assert 1 < plan.program_flops / plan.model_flops < 2
    assert plan.seconds["cycles"] > plan.seconds["step"] > plan.seconds["collectives"] > 0
    assert "16 chips" in plan_text.format_plan(plan, "a name") and "fits" in plan_text.format_plan(plan, "a name")
    assert not plan.notes


@pytest.mark.slow
@needs_libtpu
def test_a_step_that_is_too_large_for_a_chip_does_not_fit(tmp_path):
    config = tiny.config("language_model", tmp_path, **{"batch_size": 2**28, "model.text": "none"})
    plan = planner.make_plan(config, accelerators.parse("v5e:2x2"), quick=True)
    assert not plan.fits and plan.bytes["total"] > 16 * 2**30
    assert "does not fit: the program needs" in plan_text.format_plan(plan, "a name")
