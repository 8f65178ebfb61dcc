"""`hf-sft certify`: compare a finished run's saved model with the trained one, where training could not."""

import html
from pathlib import Path

from hf_sft.errors import RecipeError
from hf_sft.models import reload_check
from hf_sft.reports.html import say_certificate
from hf_sft.reports.model_card import CARD, FILTERS, PAGE
from hf_sft.reports.report import Report
from hf_sft.storage.atomic_folder import hash_file, write_file
from hf_sft.storage.package_paths import path_of
from hf_sft.storage.run_folder import read_facts, write_facts


def certify(run: str | Path, trust_remote_code: bool = False) -> Report:
    """Load a run's saved model in a fresh process, compare its answers with those of the trained model, and write the result
    into report.json, report.html and README.md.

    Raises `RecipeError` when it is no finished run, or one without probes; `CheckpointError` when the answers differ, or
    when it can't be loaded.
    """
    folder = path_of(run)
    facts = read_facts(folder)
    if facts is None or not (folder / reload_check.FOLDER).is_dir():
        raise RecipeError(f"`{run}` holds no finished run with probes: expected report.json and {reload_check.FOLDER}/ in it.")
    found = reload_check.start(folder, folder, "cpu", trusted=trust_remote_code)()
    if "not_done" not in found:
        then, now = say_certificate(facts["certificate"]), say_certificate(found)
        for name, shown in ((CARD, FILTERS["prose"]), (PAGE, html.escape)):
            page = folder / name
            unchanged = page.is_file() and hash_file(page) == facts["files"].get(name)
            if page.is_file():
                write_file(page, page.read_text(encoding="utf-8").replace(shown(then), shown(now)))
            if unchanged:
                facts["files"][name] = hash_file(page)
        facts["certificate"] = found
        write_facts(folder, facts)
    reload_check.require(found, folder)
    return Report(folder, facts)
