"""A training and its machines -> the script or manifest of each launcher, from the templates beside this file.

In a template `{{name}}` stands for a value that is quoted for its place: by `shlex.quote` in shell, as JSON (which is
YAML) in YAML. Alone on its line it stands for any number of lines, indented alike; for none, the line goes.
"""

import dataclasses
import importlib.resources
import json
import re
import shlex

from bandtok_jax.runtime.accelerators import Accelerators

COORDINATOR_PORT = 8476
_BUCKETS = "/buckets"  # where buckets are mounted: the training knows files and folders only
# A checkpoint is a folder that is renamed when it is complete; by default gcsfuse renames no folder.
_MOUNT_OPTIONS = ("implicit-dirs", "rename-dir-limit=200000")


@dataclasses.dataclass(frozen=True)
class Job:
    """What to run where.

    arguments: of `bandtok train`, with `gs://BUCKET/` as it was typed; environment: of the type of machine and the
    user's own; options: the launcher's flags, see submit.py.
    """

    name: str
    machines: Accelerators
    arguments: tuple[str, ...]
    environment: dict[str, str]
    options: dict

    @property
    def buckets(self) -> dict[str, str]:
        """`{"/buckets/mine": "gs://mine"}` of all that the arguments name."""
        found = re.findall(r"\b(gs|s3)://([\w.-]+)", " ".join(self.arguments))
        return {f"{_BUCKETS}/{name}": f"{scheme}://{name}" for scheme, name in dict.fromkeys(found)}

    @property
    def mounted(self) -> tuple[str, ...]:
        """The arguments, with the folders at which the buckets are mounted."""
        return tuple(re.sub(r"\b(gs|s3)://([\w.-]+)", rf"{_BUCKETS}/\2", word) for word in self.arguments)

    @property
    def check(self) -> str:
        return shlex.join(["python", "-m", "bandtok_jax.launch.check_flags", f"--accelerators={self.asked}"])

    @property
    def asked(self) -> str:
        return f"{self.machines.name}:{self.machines.topology}"

    @property
    def is_gpu(self) -> bool:
        return self.machines.facts["kind"] == "gpu"


def slurm(job: Job) -> tuple[str, str, list[str]]:
    """-> (file name, text, command that takes the file)."""
    options = job.options
    extra = [f"--{name}={options[name]}" for name in ("partition", "account") if options[name]] + options["sbatch"]
    text = _fill(
        "slurm.sbatch",
        name=job.name,
        accelerators=job.asked,
        hosts=str(job.machines.hosts),
        gpus=str(job.machines.chips_on_host),
        cpus=str(options["cpus_per_process"]),
        time=options["time"],
        grace=str(options["grace_seconds"]),
        sbatch="\n".join(f"#SBATCH {line}" for line in extra),
        setup="\n".join(options["setup"]),
        environment="\n".join(_exports(job)),
        command=shlex.join(["bandtok", "train", *job.mounted]),
        max_restarts=str(options["max_restarts"]),
    )
    return f"{job.name}.sbatch", text, ["sbatch"]


def tpu_vm(job: Job) -> tuple[str, str, list[str]]:
    """-> (file name, text, command that takes the file)."""
    options, image = job.options, job.options["image"]
    container = [
        *("docker", "run", "--detach", "--name=bandtok", "--privileged", "--net=host", "--shm-size=16g"),
        *(f"--stop-timeout={options['grace_seconds']}", image, "bash", "-c", _one_line(job)),
    ]
    registry = image.split("/")[0]
    log_in = f"sudo gcloud auth configure-docker {shlex.quote(registry)} --quiet && "
    is_google = registry.endswith((".pkg.dev", "gcr.io"))
    start = f"sudo {shlex.join(container)}"
    text = _fill(
        "tpu_vm.sh",
        name=job.name,
        slice=job.machines.slice_name,
        project=shlex.quote(options["project"]),
        zone=shlex.quote(options["zone"]),
        runtime_version=job.machines.facts["runtime_version"],
        spot=" --spot" if options["spot"] else "",
        start=shlex.quote(
            f"sudo docker inspect bandtok >/dev/null 2>&1 || {{ {log_in if is_google else ''}{start}; }}"
        ),
        max_restarts=str(options["max_restarts"]),
    )
    return f"{job.name}.tpu-vm.sh", text, ["bash"]


def gke(job: Job) -> tuple[str, str, list[str]]:
    """-> (file name, text, command that takes the file)."""
    options, machines, facts = job.options, job.machines, job.machines.facts
    if job.is_gpu:
        resource, pool = "nvidia.com/gpu", f"--machine-type={machines.machine_type}"
        selector = {"cloud.google.com/gke-accelerator": facts["gke_accelerator"]}
        annotations = {}
        address = f"{job.name}-hosts-0-0.{job.name}:{COORDINATOR_PORT}"
        run = _per_gpu(job, str(machines.chips_on_host), str(machines.hosts), '"$JOB_COMPLETION_INDEX"', address)
    else:
        resource, pool = "google.com/tpu", f"--machine-type={machines.machine_type} --tpu-topology={machines.topology}"
        selector = {
            "cloud.google.com/gke-tpu-accelerator": facts["gke_accelerator"],
            "cloud.google.com/gke-tpu-topology": machines.topology,
        }
        # A slice is a node pool: its hosts go to one job alone.
        annotations = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
        run = shlex.join(["bandtok", "train", *job.mounted])
    tolerated = [resource]
    if options["spot"]:
        selector["cloud.google.com/gke-spot"] = "true"
        tolerated.append("cloud.google.com/gke-spot")
        pool += " --spot"
    volumes = [{"name": "shared-memory", "emptyDir": {"medium": "Memory"}}]
    mounts = [{"name": "shared-memory", "mountPath": "/dev/shm"}]
    for number, (folder, bucket) in enumerate(job.buckets.items()):
        attributes = {
            "bucketName": bucket.removeprefix("gs://"),
            "mountOptions": "implicit-dirs,rename-dir-limit=200000",
        }
        csi = {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": attributes}
        volumes.append({"name": f"bucket-{number}", "csi": csi})
        mounts.append({"name": f"bucket-{number}", "mountPath": folder})
    values = dict(
        image=options["image"],
        service_account=options["service_account"],
        labels={"kueue.x-k8s.io/queue-name": options["queue"]} if options["queue"] else {},
        annotations=annotations,
        pod_annotations={"gke-gcsfuse/volumes": "true"} if job.buckets else {},
        node_selector=selector,
        tolerations=[{"key": key, "operator": "Exists"} for key in tolerated],
        environment=[{"name": name, "value": _kubernetes(value)} for name, value in job.environment.items()],
        limits={resource: machines.chips_on_host},
        volume_mounts=mounts,
        volumes=volumes,
    )
    text = _fill(
        "gke/jobset.yaml",
        name=job.name,
        accelerators=job.asked,
        node_pool=f"gcloud container node-pools create ... --num-nodes={machines.hosts} {pool}",
        max_restarts=str(options["max_restarts"]),
        hosts=str(machines.hosts),
        grace=str(options["grace_seconds"]),
        run=_kubernetes(f"{job.check} &&\nexec {run}"),
        **{name: _yaml(value) for name, value in values.items()},
    )
    return f"{job.name}.jobset.yaml", text, ["kubectl", "create", f"--namespace={options['namespace']}", "-f"]


def xpk(job: Job) -> tuple[str, str, list[str]]:
    """-> (file name, text, command that takes the file)."""
    if job.is_gpu:
        raise ValueError(f"{job.asked}: xpk is for TPUs here; GPUs of GKE are reached by `submit gke`")
    names = ("project", "zone", "cluster", "image")
    text = _fill(
        "gke/xpk.sh",
        name=job.name,
        slice=job.machines.slice_name,
        max_restarts=str(job.options["max_restarts"]),
        grace=str(job.options["grace_seconds"]),
        command=shlex.quote(_kubernetes(_one_line(job))),  # xpk lets Kubernetes read it
        **{name: shlex.quote(job.options[name]) for name in names},
    )
    return f"{job.name}.xpk.sh", text, ["bash"]


def skypilot(job: Job) -> tuple[str, str, list[str]]:
    """-> (file name, text, command that takes the file)."""
    machines, more = job.machines, {}
    if job.options["infra"]:
        more["infra"] = job.options["infra"]
    if job.is_gpu:
        accelerators = f"{machines.facts['skypilot']}:{machines.chips_on_host}"
        run = _per_gpu(
            job, '"$SKYPILOT_NUM_GPUS_PER_NODE"', '"$SKYPILOT_NUM_NODES"', '"$SKYPILOT_NODE_RANK"',
            f'"$(head -n1 <<< "$SKYPILOT_NODE_IPS"):{COORDINATOR_PORT}"',
        )  # fmt: skip
    else:
        accelerators = f"tpu-{machines.slice_name}"
        more["accelerator_args"] = {"tpu_vm": True, "runtime_version": machines.facts["runtime_version"]}
        run = shlex.join(["bandtok", "train", *job.mounted])
    text = _fill(
        "skypilot.yaml",
        name=job.name,
        accelerators=job.asked,
        nodes=str(machines.hosts if job.is_gpu else 1),
        sky_accelerators=json.dumps(accelerators),
        more_resources=_yaml(more) if more else "",
        image=json.dumps(f"docker:{job.options['image']}"),
        spot=json.dumps(job.options["spot"]),
        environment=_yaml(job.environment),
        mounts=_yaml({folder: {"source": bucket, "mode": "MOUNT"} for folder, bucket in job.buckets.items()}),
        run=f"{job.check} &&\nexec {run}",
    )
    return f"{job.name}.sky.yaml", text, ["sky", "jobs", "launch", "--yes"]


def _per_gpu(job: Job, processes: str, hosts: str, host: str, coordinator: str) -> str:
    """Starts a process for each GPU of a host; the numbers are words of shell."""
    return (
        f"python -m bandtok_jax.launch.processes --processes={processes} --hosts={hosts} --host={host} "
        f"--coordinator={coordinator} --grace-seconds={job.options['grace_seconds']} -- {shlex.join(job.mounted)}"
    )


def _exports(job: Job) -> list[str]:
    return [f"export {name}={shlex.quote(value)}" for name, value in job.environment.items()]


def _one_line(job: Job) -> str:
    """Variables, buckets, check and training, for a container that is given nothing but a line of shell."""
    options = " ".join(f"--{option}" for option in _MOUNT_OPTIONS)
    mounts = [
        f"mkdir -p {folder} && gcsfuse {options} {bucket.removeprefix('gs://')} {folder}"
        for folder, bucket in job.buckets.items()
    ]
    train = "exec " + shlex.join(["bandtok", "train", *job.mounted])
    return " && ".join([*_exports(job), *mounts, job.check, train])


def _kubernetes(text: str) -> str:
    """Kubernetes replaces $(NAME) in commands and variables, and reads $$ as $."""
    return re.sub(r"\$(?=[$(])", "$$", text)


def _yaml(value) -> str:
    """A block of YAML in which every string is quoted: no `no`, `1e3` or `~` is taken for something else."""
    if not isinstance(value, (dict, list)) or not value:
        return json.dumps(value)
    pairs = value.items() if isinstance(value, dict) else ((None, item) for item in value)
    lines = []
    for key, item in pairs:
        first, *rest = _yaml(item).splitlines()
        if key is None:
            lines += [f"- {first}", *(f"  {line}" for line in rest)]
        elif isinstance(item, (dict, list)) and item:
            lines += [f"{key}:", *(f"  {line}" for line in (first, *rest))]
        else:
            lines.append(f"{key}: {first}")
    return "\n".join(lines)


def _fill(template: str, **values: str) -> str:
    text = importlib.resources.files(__package__).joinpath(template).read_text()
    lines = []
    for line in text.splitlines():
        if alone := re.fullmatch(r"( *)\{\{(\w+)\}\}", line):
            lines += [alone[1] + part for part in values[alone[2]].splitlines()]
        else:
            lines.append(re.sub(r"\{\{(\w+)\}\}", lambda found: values[found[1]], line))
    return "\n".join(lines) + "\n"
