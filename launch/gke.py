"""Google Kubernetes Engine: a JobSet."""

import argparse

from bandtok_jax.launch import launcher
from bandtok_jax.launch.job import COORDINATOR_PORT, MOUNT_OPTIONS, Job
from bandtok_jax.launch.launcher import kubernetes_text, yaml_block


class Gke(launcher.Launcher):
    """A JobSet on Google Kubernetes Engine, with one pod for each host."""

    name, summary = "gke", "a JobSet on Google Kubernetes Engine"
    template, suffix = "gke.yaml", "jobset.yaml"
    command = ("kubectl", "create")
    example_flags = "--image=IMAGE"

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        launcher.add_image(parser)
        parser.add_argument("--spot", action="store_true", help="on spot nodes")
        parser.add_argument("--namespace", default="default")
        parser.add_argument("--service-account", default="default", metavar="NAME", help="may write to the bucket")
        parser.add_argument("--queue", metavar="NAME", help="LocalQueue of Kueue")

    def full_command(self, job: Job) -> list[str]:
        return [*self.command, f"--namespace={job.options.namespace}", "-f"]

    def values(self, job: Job) -> dict[str, str]:
        options, machines, properties = job.options, job.machines, job.machines.properties
        if job.is_gpu:
            resource, pool = "nvidia.com/gpu", f"--machine-type={machines.machine_type}"
            selector = {"cloud.google.com/gke-accelerator": properties["gke_accelerator"]}
            annotations = {}
            address = f"{job.name}-hosts-0-0.{job.name}:{COORDINATOR_PORT}"
            processes, hosts = str(machines.chips_on_host), str(machines.hosts)
            run = job.process_per_gpu(processes, hosts, '"$JOB_COMPLETION_INDEX"', address)
        else:
            resource = "google.com/tpu"
            pool = f"--machine-type={machines.machine_type} --tpu-topology={machines.topology}"
            selector = {
                "cloud.google.com/gke-tpu-accelerator": properties["gke_accelerator"],
                "cloud.google.com/gke-tpu-topology": machines.topology,
            }
            # A slice is a node pool, and its hosts serve one job alone.
            annotations = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
            run = job.train
        tolerated = [resource]
        if options.spot:
            selector["cloud.google.com/gke-spot"] = "true"
            tolerated.append("cloud.google.com/gke-spot")
            pool += " --spot"
        volumes, mounts = _volumes(job)
        values = dict(
            image=options.image,
            service_account=options.service_account,
            labels={"kueue.x-k8s.io/queue-name": options.queue} if options.queue else {},
            annotations=annotations,
            pod_annotations={"gke-gcsfuse/volumes": "true"} if job.buckets else {},
            node_selector=selector,
            tolerations=[{"key": key, "operator": "Exists"} for key in tolerated],
            environment=[{"name": name, "value": kubernetes_text(value)} for name, value in job.environment.items()],
            limits={resource: machines.chips_on_host},
            volume_mounts=mounts,
            volumes=volumes,
        )
        return {name: yaml_block(value) for name, value in values.items()} | dict(
            name=job.name,
            accelerators=job.accelerators,
            node_pool=f"gcloud container node-pools create ... --num-nodes={machines.hosts} {pool}",
            max_restarts=str(options.max_restarts),
            hosts=str(machines.hosts),
            grace=str(options.grace_seconds),
            run=kubernetes_text(f"{job.check} &&\nexec {run}"),
        )


def _volumes(job: Job) -> tuple[list[dict], list[dict]]:
    """Returns the volumes of a pod, shared memory and buckets, and where they are mounted."""
    volumes: list[dict] = [{"name": "shared-memory", "emptyDir": {"medium": "Memory"}}]
    mounts = [{"name": "shared-memory", "mountPath": "/dev/shm"}]
    for number, (folder, bucket) in enumerate(job.buckets.items()):
        attributes = {"bucketName": bucket.removeprefix("gs://"), "mountOptions": ",".join(MOUNT_OPTIONS)}
        csi = {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": attributes}
        volumes.append({"name": f"bucket-{number}", "csi": csi})
        mounts.append({"name": f"bucket-{number}", "mountPath": folder})
    return volumes, mounts
