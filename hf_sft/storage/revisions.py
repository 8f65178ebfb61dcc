"""Which commit a revision of a Hub repository is."""

from transformers.utils.hub import resolve_revision


def find_commit(repo_id: str, revision: str | None, repo_type: str = "model") -> str | None:
    """The commit that a revision stands for now; the revision as it is, where the Hub can't be asked."""
    found = resolve_revision(repo_id, revision, repo_type=repo_type)
    return getattr(found, "resolved", found)
