"""`bloodcell features`: the features of images under a network, as a table for `scan`, `probe` and your own tools."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.data import add_options, options_from
from shards.errors import BadInput
from shards.source_options import SourceOptions

if TYPE_CHECKING:
    from bloodcell.engine.encoder import Encoder
    from bloodcell.engine.feature_table import FeatureTable
    from bloodcell.ranks import Ranks

EPILOG = """\
A feature vector is what the last layer of the network is given; of maps the mean over places. The images are shown
without augmentation, each once, on any number of ranks (a plain folder: on one).

FILE.parquet has a row for each image: id, key, split, label, class, group, source, features (fixed-size list of
float32). `bloodcell scan DIR --features FILE` takes the table that --images DIR makes: it finds images by `source`.
--also, --table and the flags below it say what lies in DIR, as for scan; they are for --images.

--json: {table, model, weights, size, images, features, data}"""


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of features."""
    parser.add_argument("network", metavar="MODEL|RUN", help="any model that `train` takes, or a run folder")
    parser.add_argument("--data", type=Path, metavar="SET", help="shard set (of a run: its own)")
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of images in place of a set")
    parser.add_argument("--split", default="all", help="which samples of the set: train, fold0/test, … or all (all)")
    parser.add_argument("--out", type=Path, metavar="FILE", required=True, help="table to write, .parquet")
    add_network(parser)
    add_options(parser, SourceOptions)
    parser.epilog = EPILOG


def add_network(parser: argparse.ArgumentParser) -> None:
    """Declare what features and probe ask of a network."""
    parser.add_argument(
        "--weights", help="of a model: a file, pretrained, or none (random ones from seed 0); not of a run (pretrained)"
    )
    parser.add_argument("--size", type=int, help="side of the network's input, pixels; not of a run (the model's own)")
    parser.add_argument("--batch", type=int, default=32, help="images that pass through the network at once (32)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="where to compute (auto)")


def run(verb: str, parsed: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Compute and write the table; return the result and the lines for people."""
    import torch

    from bloodcell.engine.agree import on_first_rank
    from bloodcell.engine.feature_table import write_feature_table
    from bloodcell.ranks import discover, process_group, set_threads

    check(parsed)
    ranks = discover()
    encoder = _encoder(parsed, ranks)
    engine = encoder.config.engine
    set_threads(engine.threads)
    with process_group(ranks, torch.device(engine.device), engine.timeout):
        table = _of_folder(parsed, encoder) if parsed.images else _of_set(parsed, encoder)

        def write() -> None:
            assert table is not None
            write_feature_table(parsed.out, table)

        on_first_rank(ranks, write)
    if table is None:
        return {}, []
    images, width = table.features.shape
    value = {"table": str(parsed.out), **table.about, "images": images, "features": width}
    value["data"] = str(parsed.images or encoder.config.data.set)
    return value, [f"{images:,} images, {width:,} features each: {parsed.out}"]


def check(parsed: argparse.Namespace) -> None:
    """Raise BadInput for numbers that make no sense."""
    for name, least in (("size", 8), ("batch", 1)):
        value = getattr(parsed, name)
        if value is not None and value < least:
            raise BadInput(f"{value} will not do", f"--{name}", f"give {least} or more")


def _encoder(parsed: argparse.Namespace, ranks: Ranks) -> Encoder:
    from bloodcell.config import ModelConfig
    from bloodcell.engine.encoder import run_encoder, zoo_encoder

    if parsed.images and parsed.data:
        raise BadInput("a set and a folder are named", "--data, --images", "choose one")
    if parsed.images and parsed.split != "all":
        raise BadInput("a folder has no splits", "--split", "leave it out")
    if parsed.images and ranks.world > 1:
        raise BadInput("a folder is looked at by one process", "--images", "start one rank, or pack the folder")
    place, path = parsed.images or parsed.data, Path(parsed.network)
    if (path / "config.json").exists():
        given = [f"--{name}" for name in ("weights", "size") if getattr(parsed, name) is not None]
        if given:
            raise BadInput("a run has its own", given[0], "leave it out")
        return run_encoder(path, parsed.batch, place, parsed.device, ranks)
    if place is None:
        raise BadInput("no images are named", "command line", "add --data SET or --images DIR")
    model = ModelConfig(name=parsed.network, weights=parsed.weights or "pretrained")
    return zoo_encoder(model, 2, parsed.size, parsed.batch, place, parsed.device, ranks)


def _of_set(parsed: argparse.Namespace, encoder: Encoder) -> FeatureTable | None:
    from bloodcell.data.shardset import ShardSet
    from bloodcell.engine.encoder import encode_set
    from bloodcell.engine.inference import split_ids

    options = options_from(parsed, SourceOptions)
    if options != SourceOptions():
        raise BadInput("a set knows what lies in it", "command line", "--also, --table and the like are for --images")
    shards = ShardSet.open(Path(encoder.config.data.set))
    if parsed.split != "all" and not shards.info.count(parsed.split):
        raise BadInput(f"split {parsed.split!r} has no samples", shards.folder, "choose another split")
    return encode_set(encoder, shards, split_ids(shards, parsed.split))


def _of_folder(parsed: argparse.Namespace, encoder: Encoder) -> FeatureTable:
    from bloodcell.engine.encoder import encode_files
    from shards.sources.gather import gathered

    with (
        tempfile.TemporaryDirectory(prefix="bloodcell-features-") as scratch,
        gathered(options_from(parsed, SourceOptions).request(parsed.images, Path(scratch), any_splits=True)) as listing,
    ):
        return encode_files(encoder, listing.items)
