"""The networks of the papers, one system a file."""
