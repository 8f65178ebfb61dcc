"""From a checkpoint to a model with the task's head, and the check that what was saved is what was trained."""
