"""The one gate for Python code that hf_sft does not bring: a recipe or a run folder may name it, the caller allows it.

Allowed without `--trust-remote-code` is what was installed, what lies in the folder that the caller names by `--plugins` or
HF_SFT_PLUGINS, and what the program has imported already.
"""

import json
import os
import site
import sys
import sysconfig
from functools import cache
from importlib import import_module, metadata, util
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlparse

PLUGINS = "HF_SFT_PLUGINS"
HOW = "If you trust it, say --trust-remote-code on the command line (Python: trust_remote_code=True)."


def import_allowed(name: str, trusted: bool) -> ModuleType:
    """Import a module by its dotted name. Raises `ValueError` for one that may not run, and `ImportError`."""
    plugins = plugin_folder()
    if plugins is not None and str(plugins) not in sys.path:
        sys.path.append(str(plugins))  # last: it hides nothing that is installed
    if name not in sys.modules and not trusted and not is_allowed(name) and _find(name):
        raise ValueError(
            f"names the module `{name}`, which is not part of an installed package: its code is not run. "
            f"{HOW} Or put it into a folder of its own and name that folder: --plugins FOLDER."
        )
    return import_module(name)


def is_allowed(name: str) -> bool:
    """Whether a module was installed, or lies in the plugin folder; nothing is imported to find out."""
    if name.rpartition(".")[2] == "__main__":  # a program
        return False
    spec = _find(name)
    places = [*(spec.submodule_search_locations or ()), spec.origin] if spec else []
    found = [Path(place).resolve() for place in places if place and Path(place).exists()]  # several of a namespace
    plugins = plugin_folder()
    roots = [*_installed(), *([plugins] if plugins else [])]
    return bool(found) and all(any(place.is_relative_to(root) for root in roots) for place in found)


def _find(name: str) -> ModuleSpec | None:
    """Where the first part of a dotted name lies; None where it is not there, or no module."""
    try:
        return util.find_spec(name.partition(".")[0])
    except (ImportError, ValueError):
        return None


def plugin_folder() -> Path | None:
    """The folder of tasks, methods and aids that the caller has named."""
    named = os.environ.get(PLUGINS)
    return Path(named).expanduser().resolve() if named else None


@cache
def _installed() -> tuple[Path, ...]:
    """The folders that installers write to, and those of projects that are installed in place (`pip install -e`)."""
    folders = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()}
    if site.ENABLE_USER_SITE:
        folders.add(site.getusersitepackages())
    for distribution in metadata.distributions():
        direct = distribution.read_text("direct_url.json")
        if direct and (read := json.loads(direct)).get("dir_info", {}).get("editable"):
            folders.add(unquote(urlparse(read["url"]).path))
    return tuple(Path(folder).resolve() for folder in folders)
