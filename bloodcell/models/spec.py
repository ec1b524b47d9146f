"""What is known of a model before it is built: sizes, normalisation, costs, source, public weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Builder = Callable[..., nn.Module]
"""`function(classes: int, **options)`: returns a freshly initialised network from float images [N, 3, H, W] to logits
[N, classes]. The options are `dropout`, given only where the user set one, and `size` for a model that is `sized`."""


@dataclass(frozen=True, kw_only=True)
class PublicWeights:
    """Weights that anybody can get, and under which name and terms."""

    origin: str
    """Who hands them out: torchvision:ENUM, timm:NAME.TAG, hf:OWNER/REPOSITORY/FILE, or the address of the file."""
    file: str
    """Name of the file as it is handed out; for timm's, whose files are all called alike, NAME.TAG.safetensors."""
    data: str
    """What they were trained on."""
    licence: str
    """Licence of the weights, as far as their publisher states one."""
    page: str = ""
    """Where a person finds them; empty where the origin says it."""
    note: str = ""
    """What to know before using them."""

    def describe(self) -> str:
        """Return data, licence, file and origin in one line."""
        where = f"; {self.page}" if self.page else ""
        return f"{self.data} ({self.licence}): {self.file} from {self.origin}{where}"


@dataclass(frozen=True)
class ModelSpec:
    """What is known of a model before it is built."""

    name: str
    """Name under which `zoo.build` makes it."""
    builder: Builder
    """Function that makes it."""
    size: int = 224
    """Native side of the square input, in pixels."""
    minimum: int | None = None
    """Smallest side that it can take, in pixels; None: not known, `zoo.check_size` tries it out."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Mean of the inputs by channel (red, green, blue), for values 0..1."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Standard deviation of the inputs by channel, for values 0..1."""
    source: str = ""
    """The paper that the model comes from."""
    weights: PublicWeights | None = None
    """The public weights; None if there are none."""
    notes: str = ""
    """Family and particulars."""
    aliases: tuple[str, ...] = ()
    """Other names. Upper case, hyphens and underscores make no difference, and need no alias."""
    parameters: int | None = None
    """Number of parameters with 1,000 classes; None: not known, `costs.measure` counts them."""
    flops: int | None = None
    """Floating-point operations of one image of the native size, a multiply-add being two; None: not known."""
    multiple: int = 1
    """The side of the input is a multiple of this, in pixels."""
    sized: bool = False
    """Whether the builder is told the side of the input (for position embeddings)."""
