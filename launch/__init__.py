"""Where a training runs: the machine types, and what starts a training on each kind of cluster."""
