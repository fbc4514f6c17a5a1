"""What a training will need on machines that are not at hand."""
