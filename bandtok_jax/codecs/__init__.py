"""Codecs: components (networks with their weights) wired together and run over audio of any length."""
