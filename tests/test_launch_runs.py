"""Restarts, exit codes, signals and flags of the launchers, with fakes for the commands of the clusters."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from bandtok_jax.launch import check_flags, processes, submit
from bandtok_jax.runtime import accelerators
from tests import tiny

ROOT = pathlib.Path(__file__).parents[1]
TRAIN = ["--config=language_model:base", "--workdir=gs://mine/runs/lm", "--config.data.tokens=gs://mine/tokens"]


def fake(folder, name: str, program: str) -> None:
    """Writes a command `name` to `folder` that records its call and then runs `program`."""
    (folder / name).write_text(
        f"#!{sys.executable}\n"
        "import json, os, pathlib, subprocess, sys\n"
        f"folder, arguments = pathlib.Path({str(folder)!r}), sys.argv[1:]\n"
        "with open(folder / 'calls', 'a') as file:\n"
        f"    print(json.dumps([{name!r}, *arguments]), file=file)\n"
        "def following(file, default=''):  # the lines of a file, one a call\n"
        "    line, *rest = (folder / file).read_text().splitlines() or [default]\n"
        "    (folder / file).write_text('\\n'.join(rest))\n"
        "    return line\n" + program
    )
    (folder / name).chmod(0o755)


def calls(folder, *names) -> list[list[str]]:
    lines = (folder / "calls").read_text().splitlines() if (folder / "calls").exists() else []
    return [call for call in map(json.loads, lines) if call[0] in names]


def path(folder) -> dict[str, str]:
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}


# ---- SLURM ------------------------------------------------------------------------------------------------------
def run_job(capsys, folder, code: int, *, check: int = 0, state: str = "RUNNING", restarts: int = 0) -> int:
    """Renders the script of a job and runs it as SLURM does, with processes that exit with `code`."""
    machines = ["--accelerators=h100:2x8", "--name=lm", "--max-restarts=5", "--dry-run"]
    assert submit.main(["slurm", *machines, "--", "--config=bandtok:base", "--workdir=/shared/a run"]) == 0
    fake(folder, "srun", f"sys.exit({check} if 'bandtok_jax.launch.check_flags' in arguments else {code})\n")
    fake(folder, "squeue", f"print({state!r})\n")
    fake(folder, "scontrol", "")
    job = {"SLURM_NNODES": "2", "SLURM_CPUS_PER_TASK": "8", "SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restarts)}
    script = capsys.readouterr().out
    return subprocess.run(["bash", "-s"], input=script, text=True, env={**path(folder), **job}).returncode


def test_a_preempted_job_is_queued_again(capsys, tmp_path):
    assert run_job(capsys, tmp_path, 42) == 42
    check, training, queue = calls(tmp_path, "srun", "scontrol")
    assert check[1:] == [
        *("--ntasks-per-node=1", "--ntasks=2", "python", "-m", "bandtok_jax.launch.check_flags"),
        "--accelerators=h100:2x8",
    ]
    assert training[1:] == [
        *("--cpus-per-task=8", "--kill-on-bad-exit=0", "--wait=60"),
        *("bandtok", "train", "--config=bandtok:base", "--workdir=/shared/a run"),
    ]
    assert queue == ["scontrol", "requeue", "7"]


@pytest.mark.parametrize(
    "settings, code",
    [
        (dict(code=0), 0),
        (dict(code=1), 1),
        (dict(code=137), 137),
        (dict(code=42, state="CANCELLED"), 42),
        (dict(code=42, restarts=5), 1),
        (dict(code=42, check=1), 1),
    ],
    ids=str,
)
def test_other_jobs_are_not_queued_again(capsys, tmp_path, settings, code):
    assert run_job(capsys, tmp_path, **settings) == code
    assert not calls(tmp_path, "scontrol")
    trained = ["bandtok" in call for call in calls(tmp_path, "srun")]
    assert trained == ([False] if "check" in settings else [False, True])


def test_submit_writes_the_script_and_calls_sbatch(tmp_path, monkeypatch, capsys):
    fake(tmp_path, "sbatch", "sys.exit(3)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    job = ["slurm", "--accelerators=h100:8", "--name=lm"]
    train = ["--", "--config=bandtok:base", "--workdir=/shared/run"]
    assert submit.main([*job, "--env=XLA_FLAGS=--xla_nonsense=1", *train]) == 1
    assert "--xla_nonsense=1" in capsys.readouterr().err and not calls(tmp_path, "sbatch")
    assert submit.main([*job, *train]) == 3  # as sbatch left
    assert calls(tmp_path, "sbatch") == [["sbatch", "launched/lm.sbatch"]]
    written = (tmp_path / "launched" / "lm.sbatch").read_text()
    capsys.readouterr()
    assert submit.main([*job, "--dry-run", *train]) == 0
    assert capsys.readouterr().out == f"{written}# written to launched/lm.sbatch, then: sbatch launched/lm.sbatch\n"
    (tmp_path / "sbatch").unlink()
    assert submit.main([*job, *train]) == 1
    assert "there is no command sbatch here" in capsys.readouterr().err


# ---- TPU VM -----------------------------------------------------------------------------------------------------
GCLOUD = """
if "list" in arguments:
    print(following("states", "NO MORE STATES"))
elif "ssh" in arguments and "docker wait" in arguments[-1]:
    codes = following("codes")
    sys.exit(255) if codes == "lost" else print(codes.replace(" ", "\\n"))
elif "ssh" in arguments and "docker run" in arguments[-1]:
    sys.exit(int(following("starts", "0")))
"""


def run_tpu(
    capsys, folder, states: list[str], codes: list[str], starts: str = "", restarts: int = 5
) -> tuple[int, str]:
    """Runs the script with a Cloud TPU that passes through `states`; returns the exit code and the calls of gcloud."""
    machines = ["--accelerators=v5e:2x4", "--name=lm", "--project=p", "--zone=z", "--image=i:1", "--spot", "--dry-run"]
    assert submit.main(["tpu-vm", *machines, f"--max-restarts={restarts}", "--", *TRAIN]) == 0
    fake(folder, "gcloud", GCLOUD)
    for name, lines in (("states", states), ("codes", codes), ("starts", starts.split())):
        (folder / name).write_text("\n".join(lines))
    script = folder / "script.sh"
    script.write_text(capsys.readouterr().out)
    run = subprocess.run(
        ["bash", str(script)], env={**path(folder), "POLL_SECONDS": "0"}, capture_output=True, timeout=60
    )
    asked = [
        call[4] if call[3] == "queued-resources" else call[-1].split("docker ")[1].split()[0]
        for call in calls(folder, "gcloud")
    ]
    assert (folder / "states").read_text() == "", run.stderr
    return run.returncode, " ".join(word for word in asked if word != "list")


def test_a_tpu_is_requested_again_until_the_training_is_complete(capsys, tmp_path):
    states = ["", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE", "ACTIVE", "SUSPENDING", "SUSPENDED", "", "ACTIVE"]
    code, asked = run_tpu(capsys, tmp_path, states, ["42 42", "lost", "0 0"])
    started = "inspect wait"  # docker inspect || docker run; docker wait
    assert (code, asked) == (0, f"create {started} rm {started} delete create {started} delete")
    create = next(call for call in calls(tmp_path, "gcloud") if "create" in call)
    assert create[1:] == [
        *("compute", "tpus", "queued-resources", "create", "lm", "--node-id=lm", "--project=p", "--zone=z"),
        *("--accelerator-type=v5litepod-8", "--runtime-version=v2-alpha-tpuv5-lite", "--spot", "--quiet"),
    ]


@pytest.mark.parametrize(
    "states, codes, starts, restarts, asked",
    [
        (["ACTIVE"], ["134 1"], "", 5, "inspect wait logs delete"),
        (["ACTIVE"] * 2, ["42 134"] * 2, "", 1, "inspect wait rm inspect wait delete"),
        (["FAILED"], [], "", 0, "delete"),
        (["ACTIVE"] * 5, [], "125 125 125 125 125", 5, "inspect " * 5 + "delete"),
    ],
    ids=["error", "too many restarts", "no quota", "the container does not start"],
)
def test_a_tpu_is_deleted_when_the_training_cannot_continue(capsys, tmp_path, states, codes, starts, restarts, asked):
    assert run_tpu(capsys, tmp_path, states, codes, starts, restarts) == (1, asked)


# ---- many processes on one machine ------------------------------------------------------------------------------
def start_processes(script: str, *, grace_seconds: float = 20, linger_seconds: float = 20) -> subprocess.Popen:
    """Starts three processes of bash that run `script`."""
    program = (
        "import sys; from bandtok_jax.launch import processes\n"
        f"variables = processes.environments(3, hosts=2, host=1, coordinator='h:1', devices=2)\n"
        f"sys.exit(processes.run(['bash', '-c', {script!r}], variables, grace_seconds={grace_seconds}, "
        f"linger_seconds={linger_seconds}))"
    )
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)


def test_each_process_has_its_number_and_marks_its_lines():
    run = start_processes('printf "$JAX_PROCESS_ID of $JAX_NUM_PROCESSES at $JAX_COORDINATOR_ADDRESS\\rbar\\r\\n"')
    printed = sorted(run.communicate(timeout=60)[0].splitlines())
    assert printed == [line for i in (3, 4, 5) for line in (f"[{i}] {i} of 6 at h:1", f"[{i}] bar")]
    assert run.returncode == 0


def test_each_process_sees_all_gpus_and_uses_one(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--a=1 --xla_force_host_platform_device_count=8")
    first, second = processes.environments(2, hosts=1, host=0, coordinator="h:1")
    assert (first["JAX_LOCAL_DEVICE_IDS"], second["JAX_LOCAL_DEVICE_IDS"]) == ("0", "1")
    assert "CUDA_VISIBLE_DEVICES" not in second and "XLA_FLAGS" not in second
    (cpu,) = processes.environments(1, hosts=1, host=0, coordinator="h:1", devices=2)
    assert cpu["XLA_FLAGS"].split() == ["--a=1", "--xla_force_host_platform_device_count=2"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_all_save_and_leave(number):
    run = start_processes("trap 'echo saved; exit 42' TERM; echo ready; while true; do sleep 0.05; done")
    ready = [run.stdout.readline() for _ in range(3)]
    assert sorted(ready) == ["[3] ready\n", "[4] ready\n", "[5] ready\n"]
    run.send_signal(number)
    assert sorted(run.communicate(timeout=60)[0].splitlines()) == ["[3] saved", "[4] saved", "[5] saved"]
    assert run.returncode == 42


@pytest.mark.parametrize(
    "script, code",
    [
        ("[ $JAX_PROCESS_ID = 4 ] && exit 1; exec sleep 600", 1),  # the others are ended
        ("[ $JAX_PROCESS_ID = 4 ] && exit 1; exit 42", 1),
        ("[ $JAX_PROCESS_ID = 4 ] && exit 42; exit 0", 42),
        ("[ $JAX_PROCESS_ID = 4 ] && kill -KILL $$; exit 0", 137),
        ("sleep 600 & exit 0", 0),  # remaining child processes are ended
    ],
)
def test_the_exit_code_of_all(script, code):
    start = time.monotonic()
    run = start_processes(script, linger_seconds=1)
    run.communicate(timeout=60)
    assert run.returncode == code and time.monotonic() - start < 50


def test_a_process_that_ignores_the_signal_is_killed():
    run = start_processes("trap 'echo ignored' TERM; echo ready; while true; do sleep 0.05; done", grace_seconds=1)
    for _ in range(3):
        run.stdout.readline()
    run.terminate()
    run.communicate(timeout=60)
    assert run.returncode == 137


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    flags = [f"--config.{key}={value}" for key, value in tiny.settings("mel_tokenizer", total_steps=4).items()]
    command = ["bash", str(ROOT / "launch" / "processes.sh"), "2", "2", "--", "--config=bandtok:tiny"]
    run = subprocess.run([*command, f"--workdir={tmp_path / 'run'}", *flags], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:]
    assert "[1] " in run.stdout and (tmp_path / "run" / "checkpoints" / "4").is_dir()
    mistake = subprocess.run([*command[:3]], capture_output=True, text=True)
    assert mistake.returncode == 2 and mistake.stderr.startswith("bash launch/processes.sh N DEVICES_PER_PROCESS")


# ---- flags ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "variables, message",
    [
        ({"XLA_FLAGS": "--xla_nonsense=true"}, "XLA_FLAGS: this version of XLA does not know --xla_nonsense=true"),
        ({"XLA_FLAGS": "--xla_gpu_all_gather_combine_threshold_bytes=x"}, "combine_threshold_bytes cannot be 'x'"),
        ({"XLA_FLAGS": "nonsense"}, "'nonsense' is no flag"),
        ({"JAX_OPTIMIZATION_LEVEL": "O9"}, "jax_optimization_level cannot be 'O9'"),
    ],
    ids=str,
)
def test_a_wrong_flag_is_named_in_one_line(variables, message, monkeypatch, capsys):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert check_flags.main([]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("check_flags: error: ") and message in line


def test_flags_of_all_gpus_are_understood(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_all_gather_combine_threshold_bytes=1000")
    gpus = [machine for machine in accelerators.read().values() if machine["kind"] == "gpu"]
    chosen = {tuple(gpu["environment"].items()) for gpu in gpus}
    for environment in chosen:
        checked = check_flags.check(accelerators.parse("h100:8"), {**os.environ, **dict(environment)}, devices=False)
        assert checked.endswith("XLA_FLAGS")


def test_a_gpu_must_be_there(monkeypatch, capsys):
    monkeypatch.delenv("JAX_PLATFORMS")
    import jax

    if any(device.platform == "gpu" for device in jax.devices()):
        pytest.skip("there is a GPU here")
    assert check_flags.main(["--accelerators=h100:8"]) == 1
    assert "JAX finds no GPU here" in capsys.readouterr().err


def test_flags_of_tpus(monkeypatch, capsys):
    pytest.importorskip("libtpu", reason="libtpu is not installed: pip install bandtok-jax[tpu]")
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_tpu_scoped_vmem_limit_kib=98304")
    for machine in ("v5e:4x4", "v5p:2x2x1", "v6e:16x16"):
        assert check_flags.main([f"--accelerators={machine}"]) == 0, capsys.readouterr().err
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_tpu_nonsense=1")
    assert check_flags.main(["--accelerators=v5e:4x4"]) == 1
    assert "this libtpu does not know --xla_tpu_nonsense" in capsys.readouterr().err
