"""Steps before the roles are built: files on disk, determinism, a grader."""
