"""Memory, computation, communication and time of a training step on devices that are not attached."""
