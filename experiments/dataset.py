"""A data set in memory, and how one prepared by tensorflow-datasets gets there."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aggregathor.errors import UserError
from lossympi.rng import generator


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels for training and for testing.

    Attributes:
      train_images, test_images: [N, height, width, channels], as stored.
      train_labels, test_labels: int32 [N], 0..num_classes-1.
      num_classes: how many labels there are.
      scale, offset: images * scale + offset is what a model sees; models begin with it.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    num_classes: int
    scale: float
    offset: float = 0.0

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Height, width and channels of an image."""
        return self.train_images.shape[1:]


def hold_out(dataset: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset | None]:
    """Takes a share of the training set out of it, at random.

    Args:
      dataset: stays as it is.
      share: 0 <= share < 1; what it comes to is rounded, to one example at least unless it is 0.
      seed: of the choice.

    Returns:
      The data set without them, and one that has them to train on, None for a share of 0: no
      example is in both.
    """
    if not share:
        return dataset, None
    count = len(dataset.train_labels)
    order = generator("validation", seed, 0).permutation(count)
    held_out, rest = np.split(order, [max(1, round(share * count))])
    parts = [
        dataclasses.replace(
            dataset,
            train_images=dataset.train_images[np.sort(part)],
            train_labels=dataset.train_labels[np.sort(part)],
        )
        for part in (rest, held_out)
    ]
    return parts[0], parts[1]


def load_tfds(name: str, version: str, data_dir: str, *, offset: float = 0.0) -> Dataset:
    """Loads an image data set of bytes that tensorflow-datasets has prepared in ``data_dir``.

    Args:
      name: as in the TFDS catalogue, with train and test splits, "image" and "label".
      version: the version to load.
      data_dir: where TFDS keeps its data; "" for TFDS_DATA_DIR, or TFDS's own default.
      offset: added after bytes are scaled to 0..1.

    Raises:
      UserError: the data set is not there.
    """
    import tensorflow_datasets as tfds

    where = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    if not (Path(where).expanduser() / name / version).is_dir():
        load = f"import tensorflow_datasets as tfds; tfds.load('{name}', data_dir='{where}')"
        raise UserError(
            f"the data set {name} {version} is not prepared in {where}. Name the folder that has "
            "it with --data_dir or TFDS_DATA_DIR, or prepare it where there is a network:\n"
            f'  python -c "{load}"'
        )
    builder = tfds.builder(f"{name}:{version}", data_dir=where)
    tfds.disable_progress_bar()
    parts = [
        tfds.as_numpy(builder.as_dataset(split=split, batch_size=-1)) for split in ("train", "test")
    ]
    (train, test), num_classes = parts, builder.info.features["label"].num_classes
    return Dataset(
        train["image"],
        train["label"].astype(np.int32),
        test["image"],
        test["label"].astype(np.int32),
        num_classes,
        scale=1 / 255,
        offset=offset,
    )
