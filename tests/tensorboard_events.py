"""The scalars that TensorBoard shows of a run, read from its files without TensorBoard."""

import struct

from tensorboardX.proto.event_pb2 import Event, SessionLog


def tensorboard_steps(run, name: str) -> list[int]:
    """The steps of a scalar; a start of a session drops those that were written before, from its own step on."""
    steps = []
    for path in sorted((run / "tensorboard").iterdir()):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            if event.session_log.status == SessionLog.START:
                steps = [step for step in steps if step < event.step]
            steps += [event.step for value in event.summary.value if value.tag == name]
    return steps
