"""Which commit a revision of a Hub repository is."""

from transformers.utils.hub import resolve_revision


def find_commit(repo_id: str, revision: str | None, repo_type: str = "model") -> str | None:
    """The commit of a revision; the revision itself if the Hub is not reachable."""
    found = resolve_revision(repo_id, revision, repo_type=repo_type)
    return getattr(found, "resolved", found)
