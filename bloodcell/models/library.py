"""Models of torchvision and timm: building one by its name there, and what the library itself knows of it."""

from __future__ import annotations

from typing import Any

from torch import nn

from bloodcell.models.heads import set_dropout
from bloodcell.models.spec import Builder, ModelSpec, PublicWeights
from shards.errors import BadInput


def torchvision_builder(name: str) -> Builder:
    """Return the builder of torchvision's classification model `name`, random weights."""

    def build_torchvision(classes: int, dropout: float | None = None) -> nn.Module:
        from torchvision.models import get_model

        model = get_model(name, weights=None, num_classes=classes, **_torchvision_options(name))
        return model if dropout is None else set_dropout(model, dropout)

    return build_torchvision


def timm_builder(name: str, **fixed: Any) -> Builder:
    """Return the builder of timm's model `name`, random weights; `fixed` arguments are given to timm as they are."""

    def build_timm(classes: int, dropout: float | None = None, size: int | None = None) -> nn.Module:
        from timm import create_model

        options = fixed if size is None else {**fixed, "img_size": size}
        if dropout is None:
            return create_model(name, pretrained=False, num_classes=classes, **options)
        try:
            return create_model(name, pretrained=False, num_classes=classes, drop_rate=dropout, **options)
        except TypeError as error:
            if "drop_rate" not in str(error):
                raise
            return set_dropout(create_model(name, pretrained=False, num_classes=classes, **options), dropout)

    return build_timm


def torchvision_spec(name: str) -> ModelSpec | None:
    """Return what torchvision knows of its model `name`; None if it has no such classification model."""
    from torchvision.models import get_model_weights

    if name not in torchvision_names(prefix=""):
        return None
    public = get_model_weights(name).DEFAULT
    look = public.transforms()
    weights = PublicWeights(
        origin=f"torchvision:{public}",
        file=public.url.rpartition("/")[2],
        data="ImageNet-1k",
        licence="BSD-3-Clause; ImageNet's terms for the data",
    )
    return ModelSpec(
        name=f"torchvision:{name}",
        builder=torchvision_builder(name),
        size=int(look.crop_size[0]),
        mean=_three(look.mean),
        std=_three(look.std),
        source=str(public.meta.get("recipe", "")),
        weights=weights,
        notes="torchvision",
    )


def timm_spec(name: str) -> ModelSpec | None:
    """Return what timm knows of its model `name`, None if it has no such model.

    Raises:
        BadInput: the model is there, but not the tag of its weights.
    """
    import timm

    full = f"timm:{name}"
    if not timm.is_model(name):
        return None
    try:
        public = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise BadInput(str(error).rstrip("."), full, f"timm:{name.partition('.')[0]} names the model itself") from error
    if public is None:
        return ModelSpec(name=full, builder=timm_builder(name), notes="timm")
    return ModelSpec(
        name=full,
        builder=timm_builder(name),
        size=int(public.input_size[-1]),
        mean=_three(public.mean),
        std=_three(public.std),
        source=public.paper_name or public.origin_url or "",
        weights=_timm_weights(name, public) if public.has_weights else None,
        notes="timm",
    )


def torchvision_names(prefix: str = "torchvision:") -> list[str]:
    """Return the names of torchvision's classification models."""
    from torchvision import models

    return [prefix + name for name in models.list_models(module=models)]


def timm_names(prefix: str = "timm:") -> list[str]:
    """Return the names of timm's models."""
    import timm

    return [prefix + name for name in timm.list_models()]


def address(origin: str) -> tuple[str, str]:
    """Return where the weights of an `origin` (see `PublicWeights`) lie.

    Returns:
        ("url", address), or ("hf", OWNER/REPOSITORY/FILE) on the Hugging Face hub.

    Raises:
        BadInput: the library has no such weights.
    """
    library, _, name = origin.partition(":")
    if library == "torchvision":
        from torchvision.models import get_weight

        return "url", str(get_weight(name).url)
    if library == "timm":
        import timm

        public = timm.get_pretrained_cfg(name)
        if public is not None and public.hf_hub_id:
            return "hf", f"{public.hf_hub_id}/{public.hf_hub_filename or 'model.safetensors'}"
        if public is not None and public.url:
            return "url", str(public.url)
        raise BadInput("timm hands out no weights of this name", name)
    return ("hf", name) if library == "hf" else ("url", origin)


def _timm_weights(name: str, public: Any) -> PublicWeights:
    tagged = f"{name.partition('.')[0]}.{public.tag}" if public.tag else name
    file = f"{tagged}.safetensors" if public.hf_hub_id else str(public.url).rpartition("/")[2]
    licence = public.license or "no licence stated"
    return PublicWeights(origin=f"timm:{tagged}", file=file, data=public.tag or "see its page", licence=licence)


def _torchvision_options(name: str) -> dict[str, Any]:
    """Return what torchvision's constructor must be told so that the network is the one of the public weights."""
    if name in ("googlenet", "inception_v3"):
        # With auxiliary classifiers they return a tuple while training; the inputs are rescaled in the network.
        return {"aux_logits": False, "init_weights": True, "transform_input": True}
    known = torchvision_spec(name) if name.startswith("vit_") else None
    return {"image_size": known.size} if known else {}


def _three(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
