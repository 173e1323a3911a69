"""The `vaeprune` command; installed as `vaeprune.cli`. Nothing here imports torch before a command needs it."""
