"""Publishing a run: asked for before training, certified before and after, in one commit."""

import fnmatch
import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, get_token, snapshot_download
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from hf_sft import certificate
from hf_sft.card import CARD, address_card
from hf_sft.errors import HubError, RecipeError
from hf_sft.hub_trouble import explained, patiently

NEVER = ("checkpoints/*", "probes/*", "trained_on.npy", "*.tmp", ".*", "*/.*")
"""Files of a run folder that serve it alone."""
HELD_BACK = ("report.html", "predictions/*")
"""They hold texts of the data, which may not be the publisher's to give away."""
WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "adapter_config.json")
"""What an earlier run left in a repository and this one has not would be loaded in place of its own."""


@dataclass(frozen=True)
class Published:
    """A run on the Hub."""

    address: str
    """Of the commit, or of the pull request."""
    commit: str
    certificate: dict[str, Any] | None
    """How the model that was pulled back by its commit answers the probes; None for a run that has none."""

    @property
    def told(self) -> str:
        """A line for people."""
        again = self.certificate and f"; pulled back, it answers {self.certificate['rows']} rows of test as it did here"
        return f"published: {self.address}{again or ''}"


def publish(
    run: str | Path,
    repo_id: str,
    private: bool = False,
    report: bool = False,
    revision: str | None = None,
    pull_request: bool = False,
    trust_remote_code: bool = False,
) -> Published:
    """Push a finished run folder to the Hub in one commit, pull it back into an empty cache, and ask it the run's probes.

    With `report`, also report.html and the predictions, which hold texts of the data. To a branch (`revision`, made if there
    is none), or as a pull request to main. Trouble that passes is waited for, a minute at most.

    Raises `RecipeError` when there is no finished run, `CheckpointError` when it does not answer as the trained model did
    (before anything is sent, if it shows before), and `HubError` when the Hub says no.
    """
    folder, files = Path(run), [name for name, _ in list_files(run, report)]
    _certify(folder, folder, trust_remote_code)
    repo_id = check_rights(repo_id, pull_request)
    api, title = HfApi(), f"hf_sft run {folder.absolute().name}"

    def push() -> CommitInfo:
        made = _operations(api, folder, files, repo_id, revision)
        return api.create_commit(repo_id, made, commit_message=title, revision=revision, create_pr=pull_request)

    with explained(repo_id):
        if not pull_request:
            make_room(api, repo_id, private, revision)
        # A commit whose answer was lost is there, and is not made twice; a pull request would be.
        made = patiently(push, though_lost=not pull_request)
    address = made.pr_url or made.commit_url
    told = f"it is published ({address}), but could not be pulled back: "
    with tempfile.TemporaryDirectory() as empty, explained(repo_id, told):
        pulled = patiently(lambda: snapshot_download(repo_id, revision=made.oid, cache_dir=empty))
        return Published(address, made.oid, _certify(Path(pulled), folder, trust_remote_code))


def list_files(run: str | Path, report: bool = False) -> list[tuple[str, int]]:
    """What of a run folder is published, with its size in bytes. Raises `RecipeError` when there is no finished run."""
    folder = Path(run)
    if not (folder / "report.json").is_file():
        raise RecipeError(f"`{run}` holds no finished run: there is no report.json in it.")
    names = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    kept = NEVER if report else (*NEVER, *HELD_BACK)
    return [(name, names[name]) for name in sorted(names) if not any(fnmatch.fnmatch(name, pattern) for pattern in kept)]


def check_rights(repo_id: str, pull_request: bool = False) -> str:
    """Ask whether one may write there, which is better known before a training than after; gives the name with its owner.

    Writes nothing. Raises `HubError`.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise HubError(f"`{repo_id}` is no name of a repository: {str(error).splitlines()[0]}  Expected user/name.") from None
    if not get_token():
        raise HubError(f"there is no token to write to `{repo_id}` with.  Log in: hf auth login; or set HF_TOKEN.")
    api = HfApi()
    with explained(repo_id):
        user = patiently(api.whoami)
        owner, _, name = repo_id.rpartition("/")
        mine, whole = [user["name"], *(org["name"] for org in user.get("orgs", ()))], f"{owner or user['name']}/{name}"
        if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise HubError(f"your token may only read, and `{whole}` is to be written.  Log in with one that may write.")
        try:
            patiently(lambda: api.auth_check(whole, write=not pull_request))
        except RepositoryNotFoundError:
            if pull_request:
                raise HubError(f"there is no repository `{whole}` for a pull request, or you may not see it.") from None
            if owner and owner not in mine:
                others = f"`{owner}` is neither you nor an organisation of yours ({', '.join(mine)})"
                raise HubError(f"you may not make `{whole}`: {others}.") from None
    return whole


def say_how(run: str | Path, repo_id: str, revision: str | None = None, **switches: bool) -> str:
    """The command that publishes a run later; `switches` are those of `publish`."""
    flags = [f"--{name.replace('_', '-')}" for name, wanted in switches.items() if wanted]
    return shlex.join(["hf-sft", "publish", str(run), repo_id, *flags, *(["--revision", revision] if revision else [])])


def make_room(api: HfApi, repo_id: str, private: bool, revision: str | None) -> None:
    """The repository and the branch, if they are not there yet."""
    patiently(lambda: api.create_repo(repo_id, private=private or None, exist_ok=True))
    if private and not patiently(lambda: api.model_info(repo_id)).private:
        raise HubError(
            f"`{repo_id}` is public, and you asked for a private one.  Make it private there, or give another name."
        )
    if revision:
        patiently(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True))


def _certify(saved: Path, run: Path, trusted: bool) -> dict[str, Any] | None:
    if not (run / certificate.FOLDER).is_dir():
        return None
    facts = certificate.begin(saved, run, "cpu", trusted=trusted)()
    certificate.require(facts, saved)
    return facts


def _operations(api: HfApi, folder: Path, files: list[str], repo_id: str, revision: str | None) -> list[Any]:
    """New ones for each try: huggingface_hub marks those that it was given."""
    there = api.list_repo_files(repo_id, revision=revision)
    old = [name for name in there if name not in files and any(fnmatch.fnmatch(name, pattern) for pattern in WEIGHTS)]
    card = address_card((folder / CARD).read_text(encoding="utf-8"), repo_id).encode()
    added = [CommitOperationAdd(name, card if name == CARD else folder / name) for name in files]
    return [*added, *(CommitOperationDelete(name) for name in old)]
