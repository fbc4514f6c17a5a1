"""References, systems, and the runner that compares them."""
