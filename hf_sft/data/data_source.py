"""The `data` block."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from hf_sft.block import Block
from hf_sft.data.data_files import exists
from hf_sft.storage.package_paths import absolute, path_of

FILES = ("csv", "json", "parquet", "arrow", "text", "conll")
FOLDERS = ("textfolder", "imagefolder")


class DataSource(Block):
    """Where the rows come from, and which of them are for training, for choosing, and for the score."""

    dataset: str
    """A Hub id; a file; csv, json, parquet, arrow, text or conll with `data_files`; textfolder or imagefolder with `data_dir`;
    a folder of such files, of the Hub's, or of save_to_disk."""
    config: str | None = None
    """The configuration of a Hub data set, like mrpc of nyu-mll/glue."""
    revision: str | None = None
    """Branch, tag or commit of a Hub data set."""
    data_files: str | tuple[str, ...] | dict[str, str | tuple[str, ...]] | None = None
    """Files, or files by split; package:NAME/PATH finds them in an installed package."""
    data_dir: str | None = None
    """A folder; for textfolder and imagefolder one with a sub-folder per label; package:NAME/PATH too."""
    encoding: str | None = None
    """Of text files; utf-8 when not given. What can't be read is replaced by U+FFFD, counted, and refused above 1% of rows."""
    sample_by: Literal["line", "paragraph", "document"] | None = None
    """Of files of text: what a row is; a line when not given."""
    delimiter: str | None = None
    """Between the cells of a csv; when not given a comma, semicolon, tab or |: by which the header has the task's columns."""
    quoting: bool | None = None
    """Whether quotation marks enclose cells of a csv; when not given: yes, but for .tsv, and refused where both may be."""
    label_delimiter: str | None = None
    """Between the classes of a cell that holds several, like | in bug|login."""
    splits: dict[Literal["train", "validation", "test"], str | float] = Field(default_factory=dict)
    """By split: a name, a `datasets` slice like train[:80%], or a fraction of train (0.1 or 10%). Without an entry: the
    split of that name, or 0.1 of train."""
    group: str | None = None
    """A column whose equal values never stand on two sides of a made split."""
    stratify: str | None = None
    """A column whose values made splits share evenly; the label, where a row has one class, when not given. A recipe without
    labels makes the same splits by it as one that has them."""
    keep: str | None = None
    """A column of booleans, or of 0 and 1; rows where it is false are left out."""
    drop_invalid: bool = False
    """Leave out rows that can't be learned from, counted in the report, instead of refusing them."""
    rows: int | None = Field(default=None, ge=1)
    """Train on this many rows; a smaller number draws a subset of a larger one's rows."""
    rows_per_label: int | None = Field(default=None, ge=1)
    """Train on this many rows of each class; nested like `rows`."""
    seed: int = Field(default=0, ge=0)
    """Draws made splits and subsets; apart from the recipe's `seed`, so that runs by other seeds share their test rows."""

    def seen_from(self, folder: Path) -> "DataSource":
        """Resolve relative paths against the recipe's folder if they don't exist in the working directory."""

        def seen(path: str) -> str:
            if path.startswith("~") or exists(path) or not exists(str(folder / path)):
                return path
            return str(folder / path)

        return self._with_paths(seen)

    def absolute(self) -> "DataSource":
        """The same with absolute paths: found from wherever one stands. What the Hub has keeps its name."""
        if self.dataset not in (*FILES, *FOLDERS) and not path_of(self.dataset).exists():
            return self
        return self._with_paths(lambda path: absolute(path) if exists(path) else path)

    def _with_paths(self, change: Callable[[str], str]) -> "DataSource":
        """With every relative path changed, and none of a URL or a package."""

        def changed(path: Any) -> Any:
            if isinstance(path, dict):
                return {name: changed(each) for name, each in path.items()}
            if isinstance(path, tuple):
                return tuple(changed(each) for each in path)
            return path if not isinstance(path, str) or ":" in path or Path(path).is_absolute() else change(path)

        where = {name: changed(getattr(self, name)) for name in ("data_files", "data_dir")}
        if self.dataset not in FILES:
            where["dataset"] = changed(self.dataset)
        return self.model_copy(update=where)
