"""Publishing a run; nothing else writes to the Hub."""

from pathlib import Path

from huggingface_hub import HfApi

from hf_sft.errors import RecipeError

HELD_BACK = ("report.html", "predictions/**", "probes/**", "trained_on.npy")
"""They hold texts of the data, or tell which they were, which may not be the publisher's to give away."""


def publish(run: str | Path, repo_id: str, private: bool = False, report: bool = False) -> str:
    """Push a finished run folder to the Hub in one commit; gives the commit's address.

    With `report`, also report.html and the predictions, which hold texts of the data. Raises `RecipeError` when there is no
    finished run, and whatever `huggingface_hub` raises when the Hub says no.
    """
    folder = Path(run)
    if not (folder / "report.json").is_file():
        raise RecipeError(f"`{run}` holds no finished run: there is no report.json in it.")
    api = HfApi()
    api.create_repo(repo_id, private=private, exist_ok=True)
    commit = api.upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        commit_message=f"hf_sft run {folder.name}",
        ignore_patterns=["checkpoints/**", "*.tmp", *(() if report else HELD_BACK)],
    )
    return commit.commit_url
