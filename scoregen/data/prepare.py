"""Make a checked image zip.

    python -m scoregen.data.prepare SRC --out OUT.zip [--resolution 32] [--crop center]

The zip holds lossless PNGs and a dataset.json with labels, class names and statistics; `data=folder` reads
it.
"""

import argparse
import io
import json
import os
import sys
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from scoregen.cli.entry import DONE, run_entry
from scoregen.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from scoregen.data.base import ArrayDataset
    from scoregen.data.decode import Fit
    from scoregen.data.sources import Listing, Source
    from scoregen.data.stats import Stats

PUBLISHED = ("digits", "cifar10", "mnist", "fashion_mnist", "kmnist")
WINDOW = 256  # images in flight between the decoding threads and the zip


class Item(NamedTuple):
    """One image to come, with its class id."""

    name: str
    image: Any  # () -> Image
    label: int | None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; exit code 0, or 2 with one message if the input is wrong."""
    return run_entry(_prepare, argv)


def _prepare(argv: Sequence[str]) -> int:
    print(prepare(_parser().parse_args(argv)))
    return DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scoregen.data.prepare", description=__doc__.partition("\n")[0]
    )
    parser.add_argument(
        "src", help=f"a folder or zip of images, an .npz or .npy file, or one of {', '.join(PUBLISHED)}"
    )
    parser.add_argument("--out", required=True, type=Path, help="the zip to write; it must not exist yet")
    parser.add_argument("--resolution", type=int, help="resize to N x N (Lanczos)")
    parser.add_argument(
        "--crop", choices=("center", "none"), default="none", help="center: cut to the middle square first"
    )
    parser.add_argument(
        "--labels",
        default="auto",
        help="auto: dataset.json or sub-folders; none; or a JSON file like dataset.json",
    )
    colour = parser.add_mutually_exclusive_group()
    colour.add_argument("--grey", dest="mode", action="store_const", const="L", help="convert to 1 channel")
    colour.add_argument(
        "--rgb",
        dest="mode",
        action="store_const",
        const="RGB",
        help="convert to 3 channels, transparency on white",
    )
    parser.add_argument("--split", choices=("train", "test"), default="train", help="of a published set")
    parser.add_argument("--root", help="where a published set lies (default: SCOREGEN_DATA, else data/)")
    return parser


def prepare(args: argparse.Namespace) -> str:
    """Write the zip beside its place, rename it when it is whole, and return the report."""
    if args.out.exists():
        raise UserError(f"{args.out} exists already: remove it or choose another --out")
    if args.resolution is not None and args.resolution < 1:
        raise UserError(f"--resolution {args.resolution}: a positive number of pixels is expected")
    from scoregen.data.decode import Fit

    fit = Fit(args.resolution, None if args.crop == "none" else args.crop, args.mode)
    items, class_names = _items(args)
    torn = args.out.with_name(args.out.name + ".part")
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with torn.open("wb") as file:
            stats = _write(file, items, class_names, fit)
            file.flush()
            os.fsync(file.fileno())
        os.replace(torn, args.out)
    except OSError as error:
        raise UserError(f"{args.out} cannot be written: {error}") from error
    finally:
        torn.unlink(missing_ok=True)
    return report(args.out, stats, class_names)


def _items(args: argparse.Namespace) -> tuple[list[Item], tuple[str, ...]]:
    """What to write, and the class names; () without labels."""
    path = Path(args.src).expanduser()
    if path.suffix in (".npz", ".npy") or (args.src in PUBLISHED and not path.exists()):
        return _from_arrays(args, path)
    from scoregen.data.sources import Listing, list_images, open_source

    source = open_source(path)
    listing = list_images(source)
    if args.labels == "none":
        listing = Listing(listing.names)
    elif args.labels != "auto":
        listing = _relabelled(listing, Path(args.labels))
    return _from_files(source, listing), listing.class_names


def _relabelled(listing: "Listing", file: Path) -> "Listing":
    from scoregen.data.sources import parse_labels

    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"--labels {file}: auto, none or a readable JSON file is expected ({error})"
        ) from error
    return parse_labels(content, str(file), listing.names)


def _from_files(source: "Source", listing: "Listing") -> list[Item]:
    from scoregen.data.decode import open_image

    def opener(name: str) -> Any:
        return lambda: open_image(source.read(name), f"{source.path}/{name}")

    labels = listing.labels or (None,) * len(listing.names)
    return [Item(name, opener(name), label) for name, label in zip(listing.names, labels, strict=True)]


def _from_arrays(args: argparse.Namespace, path: Path) -> tuple[list[Item], tuple[str, ...]]:
    import torch
    from PIL import Image

    data = _load(args, path)
    if data.x.dtype != torch.uint8:
        raise UserError(f"{path} holds float samples: only uint8 images can be stored without loss")

    def opener(index: int) -> Any:
        array = data.x[index].permute(1, 2, 0).squeeze(2).numpy()
        return lambda: Image.fromarray(array)

    labels = [None] * len(data) if data.label is None else data.label.tolist()
    names = data.class_names or tuple(map(str, range(data.num_classes)))
    return [Item(f"{data.name} {i}", opener(i), label) for i, label in enumerate(labels)], names


def _load(args: argparse.Namespace, path: Path) -> "ArrayDataset":
    from scoregen.data.arrays import load_arrays
    from scoregen.data.cifar10 import load_cifar10
    from scoregen.data.digits import load_digits
    from scoregen.data.idx import load_idx

    if args.labels not in ("auto", "none"):
        raise UserError(f"--labels {args.labels}: for {args.src} only auto and none are possible")
    conditional = args.labels == "auto"
    if path.suffix in (".npz", ".npy"):
        return load_arrays(path=str(path), conditional=conditional and "auto", test_fraction=0.0)
    if args.src == "digits":
        return load_digits(split=args.split, conditional=conditional)
    if args.src == "cifar10":
        return load_cifar10(split=args.split, root=args.root, conditional=conditional)
    return load_idx(name=args.src, split=args.split, root=args.root, conditional=conditional)


def _write(file: Any, items: Sequence[Item], class_names: Sequence[str], fit: "Fit") -> "Stats":
    """PNGs in order, then dataset.json; the same input gives the same bytes."""
    import torch

    from scoregen.data.base import Batch
    from scoregen.data.stats import Moments

    moments: Moments | None = None
    rows: list[tuple[str, int]] = []
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for index, (item, png, array) in enumerate(_encoded(items, fit)):
            moments = moments or Moments(array.shape, len(class_names))
            if array.shape != moments.shape:
                raise UserError(_mixed(item.name, array.shape, items[0].name, moments.shape))
            label = None if item.label is None else torch.tensor([item.label])
            moments.add(Batch(torch.from_numpy(array.copy())[None], label))
            name = f"{index // 1000:05d}/img{index:08d}.png"
            archive.writestr(zipfile.ZipInfo(name), png)
            if item.label is not None:
                rows.append((name, item.label))
        assert moments is not None
        stats = moments.result()
        content = {"labels": rows or None, "class_names": list(class_names), "statistics": vars(stats)}
        archive.writestr(zipfile.ZipInfo("dataset.json"), json.dumps(content))
    return stats


def _mixed(name: str, got: tuple[int, ...], first: str, expected: tuple[int, ...]) -> str:
    from scoregen.data.decode import describe

    fix = "--rgb or --grey" if got[0] != expected[0] else "--crop center --resolution N"
    return (
        f"{name} is {describe(got)} (channels x height x width), "
        f"the first image, {first}, is {describe(expected)}: give {fix}"
    )


def _encoded(items: Sequence[Item], fit: "Fit") -> Iterator[tuple[Item, bytes, "np.ndarray"]]:
    """Decode, convert and encode with threads, in order, a window at a time."""

    def encode(item: Item) -> tuple[Item, bytes, "np.ndarray"]:
        from scoregen.data.decode import pixels

        image = fit(item.image(), item.name)
        array, out = pixels(image, item.name), io.BytesIO()
        image.save(out, "PNG")
        return item, out.getvalue(), array

    with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
        for start in range(0, len(items), WINDOW):
            yield from pool.map(encode, items[start : start + WINDOW])


def report(out: Path, stats: "Stats", class_names: Sequence[str]) -> str:
    """What a user wants to know before training."""
    size = " x ".join(map(str, stats.shape))
    counts = ", ".join(f"{name} {n:,}" for name, n in zip(class_names, stats.class_counts, strict=True))
    return (
        f"{out}: {stats.count:,} images, {size} (channels x height x width), "
        f"{out.stat().st_size / 1e6:.1f} MB\n"
        f"mean {stats.mean:.4f}, sigma_data {stats.std:.4f} in [-1, 1]\n"
        f"classes: {f'{len(class_names)} ({counts})' if class_names else 'none'}\n"
        f"train on it: python train.py experiment=folder_edm data.root={out} sigma_data={stats.std:.2g}"
    )


if __name__ == "__main__":
    sys.exit(main())
