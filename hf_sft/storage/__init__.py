"""Files: caches, folders written in one go, run folders, strict JSON."""
