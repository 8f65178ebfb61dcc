"""Folders of texts and pictures, whose names are classes."""

from pathlib import Path

from datasets import ClassLabel, Dataset, Features, Value

from hf_sft.data.data_files import is_label, label_folders, list_files
from hf_sft.data.data_source import DataSource
from hf_sft.data.replaced import explain_replaced
from hf_sft.errors import DataError, list_few


def load_textfolder(source: DataSource, top: Path | None) -> tuple[dict[str, Dataset], list[str]]:
    """One file per row, in one folder per label; below folders named as splits, if they hold such.

    And notes. Raises `DataError`.
    """
    if top is None:
        raise DataError("`data.dataset: textfolder` needs `data.data_dir`: a folder with one sub-folder per label.")
    parts, notes = _find_parts(top)
    names = sorted({folder.name for part in parts.values() for folder in part.iterdir() if is_label(folder)})
    if not names:
        raise DataError(f"`{source.data_dir}` has no sub-folders.  Expected one per label, with a text file per row in it.")
    features = Features(text=Value("string"), label=ClassLabel(names=names), file=Value("string"))
    splits, replaced, count = {}, [], 0
    for split, part in parts.items():
        files = sorted(path for name in names if (part / name).is_dir() for path in (part / name).iterdir() if path.is_file())
        files = [path for path in files if not path.name.startswith((".", "__"))]
        texts = [path.read_text(encoding=source.encoding or "utf-8", errors="replace") for path in files]
        columns = {"text": texts, "label": [path.parent.name for path in files]}
        columns["file"] = [path.relative_to(top).as_posix() for path in files]
        replaced += [name for name, text in zip(columns["file"], texts, strict=True) if "\ufffd" in text]
        count += len(files)
        splits[split] = Dataset.from_dict(columns, features=features)
    if replaced:
        notes.append(explain_replaced("files", replaced, count, source.encoding or "utf-8"))
    return splits, notes


def _find_parts(top: Path) -> tuple[dict[str, Path], list[str]]:
    """The folders of classes by split, and a note on those that are left out."""
    parts, notes = label_folders(top), []
    if top not in parts.values():
        out = [each.name for each in sorted(top.iterdir()) if is_label(each) and each not in parts.values()]
        if out:
            notes.append(f"`{top}` holds the splits {', '.join(parts)}; {len(out)} folder(s) left out: {list_few(out)}.")
    return parts, notes


def list_pictures(top: Path) -> tuple[dict[str, list[str]], list[str]]:
    """The files of an imagefolder by split: those in folders of classes, or all where there are none. And notes."""
    parts, notes = _find_parts(top)
    by_split = {}
    for split, part in parts.items():
        files = list_files(part)
        inside = [path for path in files if path.parent != part]
        if inside and (
            apart := [path.name for path in files if path.parent == part and not path.name.startswith("metadata.")]
        ):
            notes.append(f"`{part}` holds folders of classes; {len(apart)} file(s) beside them left out: {list_few(apart)}.")
            files = [path for path in files if path.name not in apart or path.parent != part]
        by_split[split] = [str(path) for path in files]
    return by_split, notes
