"""The `training` block, and what a process is set to."""
