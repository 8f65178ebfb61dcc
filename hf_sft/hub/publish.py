"""Publish a run in one commit. Rights are checked before training; the saved model is checked before and after the upload."""

import fnmatch
import json
import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, get_token, snapshot_download
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from hf_sft.errors import HubError, RecipeError, first_line
from hf_sft.hub.retry import explained, with_retries
from hf_sft.models import reload_check
from hf_sft.models.checkpoint import Checkpoint, hash_weights
from hf_sft.redaction import hide_home, hide_secrets
from hf_sft.reports.model_card import CARD, PAGE, address_card
from hf_sft.storage.atomic_folder import hash_file
from hf_sft.storage.package_paths import path_of
from hf_sft.storage.run_folder import RECIPE, REPORT, read_facts
from hf_sft.storage.strict_json import dump_json

NEVER = ("checkpoints/*", "probes/*", "trained_on.npy", "*.tmp", ".*", "*/.*")
"""Files of a run folder that serve it alone."""
HELD_BACK = ("report.html", "predictions/*")
"""They hold texts of the data, which may not be the publisher's to give away."""
OURS = (REPORT, RECIPE, CARD, PAGE, "predictions/*")
ADAPTER = "adapter_config.json"
OF_A_CHECKPOINT = (
    *("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "*tokenizer*.json", "*.jinja"),
    *("vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model", "preprocessor_config.json"),
)
"""What of a base's folder is published: files that transformers loads."""
WEIGHTS = ("*.safetensors", "*.safetensors.index.json", ADAPTER)
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
    def summary(self) -> str:
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
    with_base: bool = False,
) -> Published:
    """Push a finished run folder to the Hub in one commit, pull it back into an empty cache, and ask it the run's probes.

    Only files that the run wrote are sent. With `report`, also report.html and the predictions, which hold texts of the data.
    To a branch (`revision`, made if there is none), or as a pull request to main. An adapter's base that is a folder of this
    machine goes into `REPO_ID-base` where that is wanted (`with_base`). Trouble that passes is waited for, a minute at most.

    Raises `RecipeError` when there is no finished run, `CheckpointError` when it does not answer as the trained model did
    (before anything is sent, if it shows before), and `HubError` when the Hub says no.
    """
    folder, files = path_of(run), [name for name, _ in list_files(run, report)]
    facts = _read(folder)
    base = local_base(facts)
    if base and not with_base:
        raise RecipeError(
            f"`{run}` is an adapter on `{facts['checkpoint']['name']}`, a folder of this machine: nobody else could load it.\n"
            f"  Publish the base too, as {repo_id}-base: --with-base; or train with method.merge=true."
        )
    _certify(folder, folder, trust_remote_code)
    _require_unchanged(folder, facts, files)
    repo_id = check_rights(repo_id, pull_request)
    api, title = HfApi(), f"hf_sft run {folder.absolute().name}"
    published = publish_base(api, base, f"{repo_id}-base", private, facts) if base else None

    def push() -> CommitInfo:
        made = _operations(api, folder, files, repo_id, revision, facts, published)
        return api.create_commit(repo_id, made, commit_message=title, revision=revision, create_pr=pull_request)

    with explained(repo_id):
        if not pull_request:
            make_room(api, repo_id, private, revision)
        # A commit whose answer was lost is there, and is not made twice; a pull request would be.
        made = with_retries(push, though_lost=not pull_request)
    address = made.pr_url or made.commit_url
    failure = f"it is published ({address}), but could not be pulled back: "
    with tempfile.TemporaryDirectory() as empty, explained(repo_id, failure):
        pulled = with_retries(lambda: snapshot_download(repo_id, revision=made.oid, cache_dir=empty))
        return Published(address, made.oid, _certify(Path(pulled), folder, trust_remote_code))


def list_files(run: str | Path, report: bool = False) -> list[tuple[str, int]]:
    """What of a run folder is published, with its size in bytes: files that the run wrote.

    Raises `RecipeError` when there is no finished run, or one that does not list its files.
    """
    folder = path_of(run)
    names = [name for name in (*_read(folder)["files"], REPORT) if not _is_held_back(name, report)]
    return [(name, (folder / name).stat().st_size) for name in sorted(names) if (folder / name).is_file()]


def list_left_out(run: str | Path, report: bool = False) -> list[str]:
    """The other files there, which the run did not write."""
    folder = path_of(run)
    written = {*_read(folder)["files"], REPORT}
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or path.is_file()]
    return sorted(name for name in names if name not in written)


def _is_held_back(name: str, report: bool) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in (NEVER if report else (*NEVER, *HELD_BACK)))


def _read(folder: Path) -> dict[str, Any]:
    """report.json with its list of files. Raises `RecipeError`."""
    facts = read_facts(folder)
    if facts is None:
        raise RecipeError(f"`{folder}` holds no finished run: there is no whole report.json in it.")
    if "files" not in facts:
        raise RecipeError(
            f"`{folder}` was made by an earlier version, and does not list its files.  Train it again to publish it."
        )
    return facts


def _require_unchanged(folder: Path, facts: dict[str, Any], files: list[str]) -> None:
    """Raises `RecipeError` where a file is not what the run wrote; the model card may have been edited, by its name only."""
    for name in files:
        path, known = folder / name, facts["files"].get(name)
        edited = name == CARD and not path.is_symlink()
        if known is not None and not edited and hash_file(path) != known:
            raise RecipeError(f"`{path}` is not what the run wrote: it has changed since.  Put it back, or train again.")


def local_base(facts: dict[str, Any]) -> Path | None:
    """The folder of an adapter's base, where it is one of this machine that is in no package."""
    named = facts["recipe"]["model"].get("checkpoint")
    is_adapter = facts.get("saved") == "adapter" and named and not named.startswith("package:")
    return Path(named) if is_adapter and Path(named).is_dir() else None


def publish_base(api: HfApi, base: Path, repo_id: str, private: bool, facts: dict[str, Any]) -> str:
    """Push the files of a checkpoint's folder; gives the repository's name, when its weights have come back as they are."""
    names = sorted(path.name for path in base.iterdir() if any(fnmatch.fnmatch(path.name, each) for each in OF_A_CHECKPOINT))
    with explained(repo_id), tempfile.TemporaryDirectory() as empty:
        make_room(api, repo_id, private, None)
        title = f"the base of {repo_id.removesuffix('-base')}"
        made = with_retries(
            lambda: api.create_commit(repo_id, [CommitOperationAdd(name, base / name) for name in names], commit_message=title)
        )
        pulled = with_retries(lambda: snapshot_download(repo_id, revision=made.oid, cache_dir=empty))
        if hash_weights(Checkpoint(checkpoint=pulled)) != facts["checkpoint"]["weights"]:
            raise HubError(f"the weights that came back from `{repo_id}` are not those that the adapter was trained on.")
    return repo_id


def check_rights(repo_id: str, pull_request: bool = False) -> str:
    """Ask whether one may write there, which is better known before a training than after; gives the name with its owner.

    Writes nothing. Raises `HubError`.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise HubError(f"`{repo_id}` is no name of a repository: {first_line(error)}  Expected user/name.") from None
    if not get_token():
        raise HubError(f"there is no token to write to `{repo_id}` with.  Log in: hf auth login; or set HF_TOKEN.")
    api = HfApi()
    with explained(repo_id):
        user = with_retries(api.whoami)
        owner, _, name = repo_id.rpartition("/")
        mine, whole = [user["name"], *(org["name"] for org in user.get("orgs", ()))], f"{owner or user['name']}/{name}"
        if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise HubError(f"your token may only read, and `{whole}` is to be written.  Log in with one that may write.")
        try:
            with_retries(lambda: api.auth_check(whole, write=not pull_request))
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
    with_retries(lambda: api.create_repo(repo_id, private=private or None, exist_ok=True))
    if private and not with_retries(lambda: api.model_info(repo_id)).private:
        raise HubError(
            f"`{repo_id}` is public, and you asked for a private one.  Make it private there, or give another name."
        )
    if revision:
        with_retries(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True))


def _certify(saved: Path, run: Path, trusted: bool) -> dict[str, Any] | None:
    if not (run / reload_check.FOLDER).is_dir():
        return None
    facts = reload_check.start(saved, run, "cpu", trusted=trusted)()
    reload_check.require(facts, saved)
    return facts


def _operations(
    api: HfApi, folder: Path, files: list[str], repo_id: str, revision: str | None, facts: dict[str, Any], base: str | None
) -> list[Any]:
    """New ones for each try: huggingface_hub marks those that it was given."""
    there = api.list_repo_files(repo_id, revision=revision)
    old = [name for name in there if name not in files and any(fnmatch.fnmatch(name, pattern) for pattern in WEIGHTS)]
    added = [CommitOperationAdd(name, _as_sent(folder, name, repo_id, facts, base)) for name in files]
    return [*added, *(CommitOperationDelete(name) for name in old)]


def _as_sent(folder: Path, name: str, repo_id: str, facts: dict[str, Any], base: str | None) -> bytes | Path:
    """A file as others get it: what we wrote ourselves without secrets, and with the names that the recipe has."""
    if name == ADAPTER:
        config = json.loads((folder / name).read_text(encoding="utf-8"))
        config["base_model_name_or_path"] = base or facts["checkpoint"]["name"]
        return dump_json(config, indent=2).encode()
    if not any(fnmatch.fnmatch(name, pattern) for pattern in OURS):
        return folder / name
    text = (folder / name).read_text(encoding="utf-8")
    for path, named in sorted(facts["names"].items(), key=lambda pair: len(pair[0]), reverse=True):
        text = text.replace(path, named)
    if name == CARD:
        text = address_card(text, repo_id, base)
    return hide_home(hide_secrets(text)).encode("utf-8", "replace")
