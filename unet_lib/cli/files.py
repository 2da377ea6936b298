"""Training on files of your own: what `train` reads, shows and records of them."""

import colorsys
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import tyro
from tyro.conf import FlagCreatePairsOff

from unet_lib import _messages
from unet_lib._files import write_text
from unet_lib.config import TrainConfig

if TYPE_CHECKING:
    from PIL import Image

    from unet_lib.augment import TileSampler
    from unet_lib.data.images import Images

MOST = 4  # images in the preview
SIDE, GAP, LINE = 320, 8, 16  # pixels of a panel, between panels, of a line of text
UNKNOWN_COLOR = (96, 96, 96)


@dataclass(frozen=True)
class Reading:
    """How pixels become gray values, for `train` and `predict`.

    Args:
        channel: the one channel or color to use, counted from 1.
        gray: convert colors to gray.
        value_range: LOW HIGH, the values that become 0 and 1; or auto, by percentiles.
    """

    channel: int | None = None
    gray: FlagCreatePairsOff[bool] = False
    value_range: Annotated[
        tuple[float, float] | Literal["auto"] | None, tyro.conf.arg(name="range")
    ] = None

    def read(self, path: Path) -> "Images":
        from unet_lib.data.images import read_images

        return read_images(path, self.channel, self.gray, self.value_range)


@dataclass(frozen=True)
class Files:
    """Which files to train on, and how to read them.

    Args:
        images: a TIFF, PNG or JPEG, one image or a stack, or a folder of them.
        labels: a TIFF or PNG, or a folder with a file for each of IMAGES.
        hold_out: the fraction of images to hold out for scoring, the last by name.
        unknown: the value that marks pixels without a label; -1 always does.
        reading: how pixels become gray values.
    """

    images: Path | None = None
    labels: Path | None = None
    hold_out: float | None = None
    unknown: int | None = None
    reading: Annotated[Reading, tyro.conf.arg(name="")] = Reading()

    def read(self, folder: Path, run: TrainConfig, channels: int | None) -> "Own":
        """Read the images and labels for a run.

        Args:
            folder: the folder of the run, which must not be one of these.
            run: its configuration.
            channels: how many the network takes; None takes those of the files.

        Raises:
            ValueError: if files do not match, or are not clear.
            OSError: if a file cannot be opened.
        """
        from unet_lib.data.labeled import read_labels_of
        from unet_lib.train.examples import check_held_out

        if self.images is None or self.labels is None:
            raise ValueError(
                "Expected both --images and --labels to train on files of your own, "
                "got one of them: give the other too."
            )
        paths = [path.resolve() for path in (folder, self.images, self.labels)]
        if len({*paths}) < 3:
            raise ValueError(
                "Expected the run, the images and the labels in places of their own, "
                f"got {folder}, {self.images} and {self.labels}: move the labels or "
                "name another folder for the run."
            )
        found = self.reading.read(self.images)
        try:
            pixels = found.for_channels(channels or 1)  # of equal colors too
        except ValueError:
            if channels is not None:
                raise
            pixels = found.pixels
        channels = 1 if pixels[0].ndim == 2 else pixels[0].shape[0]
        labels = read_labels_of(
            found, self.labels, run.instances, run.num_classes, self.unknown
        )
        held_out = run.held_out
        if self.hold_out is not None:
            if held_out:
                raise ValueError(
                    "--hold-out and --held-out both say what to hold out: give "
                    "only one."
                )
            held_out = _last(self.hold_out, found.names)
        check_held_out(held_out, [*labels.pixels])
        run = replace(run, in_channels=channels, held_out=held_out)
        return Own(replace(found, pixels=pixels), labels, run)


def _last(fraction: float, names: tuple[str, ...]) -> tuple[int, ...]:
    """The slices of the last files, or, of a single file, the last slices."""
    files = [*dict.fromkeys(names)]
    units = names if len(files) == 1 else files
    if len(units) < 2:
        raise ValueError(
            "--hold-out needs two images or more, got one: leave it out, or add images "
            "with their labels."
        )
    count = max(1, round(fraction * len(units))) if 0 < fraction < 1 else 0
    if not 0 < count < len(units):
        raise ValueError(
            f"--hold-out must be a fraction between 0 and 1 that leaves images to "
            f"train on, such as 0.2, got {fraction:g} of {len(units)} images."
        )
    if len(files) == 1:
        return tuple(range(len(names) - count, len(names)))
    kept = {*files[-count:]}
    return tuple(number for number, name in enumerate(names) if name in kept)


@dataclass(frozen=True)
class Own:
    """Images with their labels, and the run that trains on them."""

    images: "Images"
    labels: "Images"
    run: TrainConfig

    def named(self, numbers: tuple[int, ...]) -> str:
        """The files of slices, with the numbers of the slices if they are not all."""
        said = []
        for name in dict.fromkeys(self.images.names[number] for number in numbers):
            own = [n for n, other in enumerate(self.images.names) if other == name]
            some = [str(k) for k, n in enumerate(own) if n in numbers]
            part = f" (slice{'s' * (len(some) > 1)} {', '.join(some)})"
            part *= len(some) < len(own)
            said.append(name + part)
        return ", ".join(said)

    def describe(self) -> None:
        """Say what was read, and what is held out."""
        (height, width), *more = {one.shape[-2:] for one in self.images.pixels}
        size = f"{1 + len(more)} sizes" if more else f"{height} × {width} pixels"
        channels = self.run.in_channels
        said = f"{len(self.images.names)} images of {size}, {channels} "
        said += "channel" + "s" * (channels > 1)
        if self.images.pixel_size:
            height, width = self.images.pixel_size[1:]
            said += f", a pixel {height:.4g} × {width:.4g} {self.images.unit or ''}"
        print(f"{said.rstrip()}.")
        empty = [n for n, one in enumerate(self.labels.pixels) if not (one > 0).any()]
        if 0 < len(empty) < len(self.labels.pixels):
            _messages.print_warning(
                f"no cell is labeled in {self.named(tuple(empty))}: check that it "
                "shows none."
            )
        if self.run.held_out:
            print(f"Held out: {self.named(self.run.held_out)}.")
        elif len(self.images.names) > 1:
            print("No image is held out for scoring; --hold-out 0.2 holds out a fifth.")

    def begin(self, folder: Path, sampler: "TileSampler") -> None:
        """Record what was read in a run's folder, and a preview of what is learned."""
        names, held_out = self.images.names, self.run.held_out
        pairs = dict.fromkeys(zip(names, self.labels.names, strict=True))
        record = {
            "files": [{"image": a, "labels": b} for a, b in pairs],
            "pixel_size": self.images.pixel_size,
            "unit": self.images.unit,
            "held_out": [*dict.fromkeys(names[n] for n in held_out)],
        }
        write_text(folder / "files.json", json.dumps(record, indent=1) + "\n")
        training = [name for n, name in enumerate(names) if n not in held_out]
        write_preview(folder / "preview.png", sampler, training)
        print(
            "Before you wait, look at the images, labels and weights in "
            f"{folder / 'preview.png'}."
        )


def write_preview(path: Path, sampler: "TileSampler", names: list[str]) -> None:
    """Draw images, labels and weights of up to four slices side by side, as a PNG.

    Args:
        path: the PNG to write.
        sampler: the sampler of the run's tiles.
        names: the names of its slices.
    """
    from PIL import Image, ImageDraw

    from unet_lib.train.folder import save_png

    maps = [one.cpu().numpy() for one in sampler.maps]
    chosen = sorted({*np.linspace(0, len(maps) - 1, MOST).astype(int).tolist()})
    largest = max(float(maps[n][-1].max()) for n in chosen)
    more = max(float(maps[n][-2].max()) for n in chosen) > 1
    titles = (
        "image",
        "labels, a color per " + ("class" if more else "connected cell"),
        f"weights, 0 (black) to {largest:.3g} (white)",
    )
    rows = []
    for n in chosen:
        *channels, classes, weights = maps[n]
        picture = np.stack(channels[:3] if len(channels) == 3 else channels[:1] * 3, -1)
        # The square root shows both the balance of the classes and the borders.
        parts = picture, _colored(classes, more), np.sqrt(weights / largest)
        rows.append([_fitted(one) for one in parts])
    tall = sum(LINE + GAP + row[0].height for row in rows)
    sheet = Image.new("RGB", (3 * (SIDE + GAP), LINE + tall), "white")
    draw, top = ImageDraw.Draw(sheet), LINE
    for column, title in enumerate(titles):
        draw.text((column * (SIDE + GAP), 0), title, "black")
    for n, row in zip(chosen, rows, strict=True):
        draw.text((0, top), names[n].encode("ascii", "replace").decode(), "black")
        for column, panel in enumerate(row):
            sheet.paste(panel, (column * (SIDE + GAP), top + LINE))
        top += LINE + GAP + row[0].height
    save_png(path, np.asarray(sheet))


def _colored(classes: np.ndarray, more: bool) -> np.ndarray:
    """Colors of classes, or of the connected cells; unknown is gray."""
    from unet_lib.weights import label_cells

    numbers = np.maximum(classes, 0).astype(np.int32)
    if not more:
        numbers = label_cells(numbers)
    hues = np.arange(1, numbers.max() + 1) * 0.618 % 1
    table = [(0.0, 0.0, 0.0), *(colorsys.hsv_to_rgb(hue, 0.65, 1) for hue in hues)]
    colors = np.rint(255 * np.array(table)).astype(np.uint8)[numbers]
    colors[classes < 0] = UNKNOWN_COLOR
    return colors


def _fitted(values: np.ndarray) -> "Image.Image":
    """A panel of colors, or of values from 0 to 1."""
    from PIL import Image

    factor, method = SIDE / max(values.shape[:2]), Image.Resampling.NEAREST
    if values.dtype != np.uint8:
        values = np.rint(255 * values).astype(np.uint8)
        method = Image.Resampling.BOX if factor < 1 else method
    height, width = (max(1, round(factor * side)) for side in values.shape[:2])
    return Image.fromarray(values).convert("RGB").resize((width, height), method)
