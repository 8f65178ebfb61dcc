"""Which class, which classes, or which number does a picture have?

The data: a column of pictures (as the Hub and `imagefolder` bring them), of paths, or of the bytes of files; and a label, as
`hf_sft/tasks/common/classification.py` reads it. Pictures stay what they are, files, until the model is shown them: grey ones
and those with an alpha channel are read as RGB, and the checkpoint's own image processor makes them the size that the model
takes.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from datasets import Dataset, Image, Value
from PIL import Image as Picture
from transformers import AutoImageProcessor, AutoModelForImageClassification

from hf_sft.errors import CheckpointError, DataError
from hf_sft.storage.package_paths import path_of
from hf_sft.tasks import Batch, Labels, Task
from hf_sft.tasks.common.baselines import PIXELS, Features
from hf_sft.tasks.common.classification import Labelled
from hf_sft.tasks.common.images import AT_ONCE, Cell, find_files, find_flaws, hash_image, inline, name_of, open_image, shrink
from hf_sft.tasks.common.labels import SINGLE

PATCH = 16
"""A square of so many pixels costs what a token does."""


class ImageClassification(Labelled, Task):
    """Classify a picture, with one class, several classes, or a number."""

    auto_model: ClassVar[Any] = AutoModelForImageClassification
    auto_processor: ClassVar[Any] = AutoImageProcessor
    pipeline_tag: ClassVar[str] = "image-classification"
    peft_type: ClassVar[str | None] = None
    reads_files: ClassVar[bool] = True
    other_names: ClassVar[dict[str, str]] = dict.fromkeys(("vision", "images", "image_folder"), "image_classification")
    simple_features: ClassVar[Features] = PIXELS

    image: str = "image"
    """The column of the pictures, of their paths, or of the bytes of their files."""

    def columns(self) -> dict[str, tuple[str, ...]]:
        return {"image": (self.image,), "label": tuple(self.label_columns)}

    def input_columns(self) -> tuple[str, ...]:
        return (self.image,)

    def raw_columns(self) -> tuple[str, ...]:
        return (self.image,)

    def read(self, rows: Dataset, folder: Path) -> Dataset:
        feature = rows.features[self.image]
        if isinstance(feature, Value) and feature.dtype in ("string", "large_string"):
            cells = [{"path": _find(path, folder), "bytes": None} if path else None for path in rows[self.image]]
            add: Any = Dataset.add_column  # a decorator hides what it takes
            beside = f"{self.image}, found"  # rows without any column would have no number
            found = add(rows, beside, cells, feature=Image(decode=False))
            return found.remove_columns(self.image).rename_column(beside, self.image)
        if not isinstance(feature, Image) and not (isinstance(feature, Value) and "binary" in feature.dtype):
            raise DataError(
                f"column `{self.image}` holds {feature}, which are not pictures.\n"
                "  Expected pictures, the paths of files, or the bytes of files.  Point `task.image` at such a column."
            )
        return rows.cast_column(self.image, Image(decode=False))

    def from_words(self, words: Sequence[str | None]) -> Dataset:
        """Rows of files and of all pictures below folders, with their names."""
        try:
            files = [str(path) for path in find_files(word or "" for word in words)]
        except LookupError as error:
            raise DataError(f"{error.args[0]}  Expected pictures, or folders of them.") from None
        return Dataset.from_dict({self.image: files, "file": files})

    def invalid_rows(self, rows: Dataset, labels: Labels | None) -> dict[str, list[int]]:
        problems: dict[str, list[int]] = {}
        for row, (name, flaw) in enumerate(find_flaws(self._cells(rows))):
            if flaw is not None:
                problems.setdefault(f"column `{self.image}`: `{name}` can't be read ({flaw})", []).append(row)
        return problems | self.invalid_labels(rows, labels)

    def encode(self, rows: dict[str, list], processor: Any, labels: Labels | None) -> dict[str, list]:
        """Adds `labels`; the pictures stay with the rows."""
        count = len(rows[self.image])
        _, height, width = _shape(processor)
        examples: dict[str, list] = {"cost": [max(1, height * width // PATCH**2)] * count, "truncated": [False] * count}
        return {**examples, "labels": self.targets(rows, labels)} if set(self.label_columns) <= set(rows) else examples

    def collator(self, processor: Any) -> Callable[[list[dict[str, Any]]], Batch]:
        dtype = torch.long if self.problem_type == SINGLE else torch.float32

        def collate(examples: list[dict[str, Any]]) -> Batch:
            batch = {}
            if self.image in examples[0]:
                batch["pixel_values"] = _to_pixels([open_image(example[self.image]) for example in examples], processor)
            if "labels" in examples[0]:
                batch["labels"] = torch.tensor([example["labels"] for example in examples], dtype=dtype)
            return batch

        return collate

    def simple_inputs(self, rows: Dataset) -> np.ndarray:
        return np.array([shrink(cell) for cell in self._cells(rows)])

    def texts(self, rows: Dataset) -> list[str]:
        return [name_of(cell) for cell in rows[self.image]]

    def identities(self, rows: Dataset) -> list[str]:
        return [hash_image(cell) for cell in self._cells(rows)]

    def pictures(self, rows: Dataset) -> list[str | None]:
        return [inline(cell) for cell in rows[self.image]]

    def _cells(self, rows: Dataset) -> Iterator[Cell]:
        """The rows' pictures, some at a time: all of them may be more than there is memory."""
        pictures = rows.select_columns([self.image])
        for start in range(0, len(pictures), AT_ONCE):
            yield from pictures[start : start + AT_ONCE][self.image]

    def example_call(self) -> str:
        return self.in_own_units('answer("picture.jpg")')

    def show(self, example: dict[str, Any], processor: Any, labels: Labels | None) -> str:
        """The picture's size in its file and as the model gets it."""
        cell, target = example[self.image], example.get("labels")
        image, (channels, height, width) = open_image(cell), _shape(processor)
        called = labels.names[target] if labels is not None and isinstance(target, int) else target
        return f"{image.width}×{image.height} pixels -> {width}×{height}, {channels} channels  [labels {called}]"

    @classmethod
    def sample(cls) -> tuple[Self, Dataset]:
        cells = []
        for place, colour in enumerate(["red", "blue"] * 6):
            Picture.new("RGB", (20 + place, 12), colour).save(file := io.BytesIO(), "PNG")
            cells.append({"bytes": file.getvalue(), "path": None})
        rows = Dataset.from_dict({"image": cells, "label": ["red", "blue"] * 6})
        return cls(type="image_classification"), rows.cast_column("image", Image(decode=False))


def _find(path: str, folder: Path) -> str:
    """Where a path leads from where one stands, else from the folder of the data; as it is where it leads nowhere."""
    if "://" in path:
        return path
    seen = [path_of(path).absolute(), (folder / path).absolute()]
    return str(next((each for each in seen if each.is_file()), seen[-1]))


def _to_pixels(images: Sequence[Picture.Image], processor: Any) -> torch.Tensor:
    """float32, shape (images, channels, height, width)."""
    return processor(images=list(images), return_tensors="pt")["pixel_values"]


def _shape(processor: Any) -> tuple[int, int, int]:
    """Channels, height and width of what the processor makes of any picture. Raises `CheckpointError`."""
    blank = [_to_pixels([Picture.new("RGB", size)], processor)[0] for size in ((60, 90), (90, 60))]
    shapes = {(each.shape[0], each.shape[1], each.shape[2]) for each in blank}
    if len(shapes) > 1:
        raise CheckpointError(
            f"the checkpoint's image processor makes pictures of different sizes: {shapes}.\n"
            "  Expected one size for all: `size` with height and width, or a `crop_size`, in its preprocessor_config.json."
        )
    return shapes.pop()
