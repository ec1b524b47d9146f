"""What can be asked of an explanation; it loads no torch, so that the command line can read it."""

from __future__ import annotations

from dataclasses import dataclass, field

METHODS = ("auto", "gradcam", "rollout", "occlusion")


@dataclass(frozen=True)
class Options:
    """What to explain. The help of each flag is its field's."""

    split: str = field(default="test", metadata={"help": "split whose predictions are explained"})
    method: str = field(
        default="auto", metadata={"help": f"{', '.join(METHODS)}; auto is rollout for transformers, else gradcam"}
    )
    errors: int = field(default=24, metadata={"help": "surest errors that are shown with their maps"})
    samples: int = field(default=200, metadata={"help": "images, drawn by the seed, that the checks are made on"})
    points: int = field(default=3000, metadata={"help": "images in the map of the features, drawn by the seed"})
    seed: int = field(default=0, metadata={"help": "of the images that are drawn and of the random network"})
