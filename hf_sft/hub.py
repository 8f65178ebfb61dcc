"""Publishing a run; nothing else writes to the Hub."""

from pathlib import Path

from huggingface_hub import HfApi

from hf_sft.errors import RecipeError


def publish(run: str | Path, repo_id: str, private: bool = False) -> str:
    """Push a finished run folder to the Hub in one commit; gives the commit's address.

    Raises `RecipeError` when there is no finished run, and whatever `huggingface_hub` raises when the Hub says no.
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
        ignore_patterns=["checkpoints/**", "*.tmp"],
    )
    return commit.commit_url
