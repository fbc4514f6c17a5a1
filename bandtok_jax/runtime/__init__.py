"""The ground floor: storage, locks, progress, platform, accelerators."""
