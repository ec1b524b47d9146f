"""The one config tree: frozen dataclasses, every field with its help, its default and its limits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from msgspec import Meta

TORCHS_BUCKET = 25
"""MiB of engine.bucket_mb that stand for what torch does when it is told nothing: one of 1 MiB, then such ones."""

FUSABLE = ("adamw", "adam", "sgd")
"""Optimizers whose step on a group of weights can be one kernel."""

Fraction = Annotated[float, Meta(ge=0, le=1)]


def about(text: str, default: Any, runtime: bool = False) -> Any:
    """Declare a field: its help text, its default, and whether it may differ when a run is resumed."""
    return field(default=default, metadata={"help": text, "runtime": runtime})


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which network, and where its weights start."""

    name: str = about("zoo name, timm:NAME, torchvision:NAME or module:function", "mobilenet_v2")
    weights: str = about(
        "where weights start: a file (safetensors, or a state dict), pretrained (public ones: from the folders that "
        "BLOODCELL_WEIGHTS names, the caches, or the network) or none: from scratch",
        "none",
    )
    head: Literal["linear", "head512", "head3x512"] = about(
        "from features to classes: one layer, or one or three dense layers of 512 before it", "linear"
    )
    dropout: Fraction | None = about(
        "dropout before the linear head, or behind each dense layer; unset is the model's own, or none", None
    )
    freeze: Annotated[int, Meta(ge=0)] | str = about(
        "what keeps its weights: none, backbone (all but the head), or how many of the first blocks", "none"
    )
    unfreeze_after: Annotated[int, Meta(ge=0)] = about(
        "epochs after which the upper quarter of the frozen blocks is trained too, then the next; 0 is never", 0
    )
    freeze_norm: Literal["frozen", "always", "never"] = about(
        "which BatchNorm layers before the head use and keep their stored statistics: those of frozen blocks, all, "
        "or none",
        "frozen",
    )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What the network is shown."""

    set: str = about("folder of the shard set", "")
    fold: int = about("which fold of a cross-validation set; -1 where there are none", -1)
    size: Annotated[int, Meta(ge=8, le=4096)] = about("height and width of the network's input, pixels", 224)
    policy: str = about("augmentation: one that `bloodcell policies` lists, a .toml file or module:function", "light")
    sampling: Annotated[int, Meta(ge=1)] | str = about(
        "what an epoch deals: natural, balanced, a number of samples for each class, or weights: ALL=1,HEM=2", "natural"
    )
    micro_batch: Annotated[int, Meta(ge=0)] = about(
        "images that pass through the network at once; 0 is auto: the largest power of two that fits into the GPU (or "
        "into engine.memory) and leaves an epoch 20 steps, found once, by trial",
        32,
    )
    reader: Literal["plan", "stream", "webdataset"] = about(
        "how samples are found: plan (any sample at any time, shuffled over the whole split), stream (shards in a "
        "drawn order, from front to back, shuffled inside windows) or webdataset (the same order, read by that "
        "library, without DALI)",
        "plan",
    )
    window: Annotated[int, Meta(ge=1)] = about(
        "samples that stream and webdataset hold and shuffle for each of a rank's micro-batches in a step", 4096
    )
    threads: Annotated[int, Meta(ge=0)] = about("decoding threads of each rank; 0 is auto", 0)
    backend: Literal["auto", "dali", "cpu"] = about(
        "who decodes and augments: DALI, or a pool of threads on the CPU; auto is cpu where there is no GPU and it has "
        "every operation of the policy",
        "auto",
    )
    cache: Literal["auto", "device", "host", "encoded", "off"] = about(
        "where images stay after their first use (what the network sees is the same): decoded on each GPU (device) or "
        "once in the memory of each node (host), once on each node as the bytes of their files (encoded), or nowhere; "
        "auto takes the first of these that fits, encoded only for a set on a network file system",
        "auto",
        runtime=True,
    )
    cache_share: Annotated[float, Meta(gt=0, le=1)] = about(
        "part of the free memory (of the GPU or the node) that images, or windows, may take", 0.5, runtime=True
    )
    cache_side: Annotated[int, Meta(ge=0, le=4096)] = about(
        "training images with a larger shorter side are scaled down to it first, cached or not, so that more of them "
        "fit; 0 leaves them. Blood cells of 360 pixels kept at 256 and shown at 224 differ by 1.2 levels of 255 on "
        "average. Validation, test and predict see the images as they are",
        0,
    )
    roi_decode: bool = about(
        "DALI decodes only what the crop of each image shows (the same but for single levels on a CPU); no use to "
        "decoded images in memory, with cache_side, or to the CPU backend",
        False,
    )
    hw_decoder_load: Fraction = about(
        "share of the images that a GPU's JPEG unit decodes, the rest go to its kernels; nothing on a CPU", 0.65
    )
    decoder_hints: bool = about(
        "a GPU's decoder takes memory for the set's largest image at the start; nothing on a CPU", False
    )
    check: bool = about("compare the checksum of every image read with the index", True)
    on_error: Literal["stop", "skip"] = about(
        "what to do about a training sample that cannot be read: save and stop, or train without it (RUN/skipped.csv)",
        "stop",
        runtime=True,
    )
    timeout: Annotated[float, Meta(gt=0)] = about(
        "seconds that reading one sample may take (at most half of engine.timeout and engine.stall)", 60.0, runtime=True
    )
    mixup: Annotated[float, Meta(ge=0)] = about("alpha of mixup's Beta distribution; 0 is off", 0.0)
    cutmix: Annotated[float, Meta(ge=0)] = about("alpha of CutMix's; with mixup too, each image draws one of both", 0.0)


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How the weights move."""

    name: str = about("adamw, adam, sgd, rmsprop, or timm:NAME for one of timm's", "adamw")
    lr: Annotated[float, Meta(gt=0)] = about("peak learning rate", 1e-3)
    weight_decay: Annotated[float, Meta(ge=0)] = about(
        "decoupled (adamw) or L2 (adam, sgd, rmsprop); not on biases and norms", 0.05
    )
    l1: Annotated[float, Meta(ge=0)] = about("L1 penalty on what weight decay acts on", 0.0)
    momentum: Fraction = about("momentum of sgd and rmsprop; first beta of adam and adamw", 0.9)
    layer_decay: Annotated[float, Meta(gt=0, le=1)] = about(
        "factor of the learning rate from each layer to the one before it; 1 is off", 1.0
    )
    warmup: Fraction = about("share of all steps in which the learning rate rises", 0.1)
    schedule: Literal["cosine", "constant", "step", "onecycle", "plateau"] = about(
        "course of the learning rate after the warm-up", "cosine"
    )
    fall: Annotated[float, Meta(gt=0, lt=1)] = about("factor at each fall of the schedules step and plateau", 0.1)
    fall_after: Annotated[int, Meta(ge=1)] = about(
        "epochs between falls (step); validations without a better one before a fall (plateau)", 10
    )
    clip: Annotated[float, Meta(ge=0)] = about("largest gradient norm; 0 is off", 0.0)
    fused: Literal["auto", "off", "on"] = about(
        "one kernel for each group of weights in a step of adamw, adam or sgd; auto: on a GPU. On a CPU it is faster "
        "too, but ZeRO does not end with the bits of ddp then",
        "auto",
    )


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What is minimised."""

    name: Literal["cross_entropy", "focal"] = about("loss of logits and labels", "cross_entropy")
    gamma: Annotated[float, Meta(ge=0)] = about("focusing of the focal loss: how little easy samples count", 2.0)
    label_smoothing: Fraction = about("probability spread evenly over the classes in the target", 0.0)
    class_weights: str = about(
        "none, balanced (inverse to a class's samples), or a weight for every class: ALL=1,HEM=2.4", "none"
    )
    logit_adjustment: Annotated[float, Meta(ge=0)] = about(
        "tau: how much of the log of each class's share is added to the logits in training; 0 is off", 0.0
    )
    jsd: Annotated[float, Meta(ge=0)] = about(
        "weight of the Jensen-Shannon divergence between three views of each image, one without and two with what the "
        "policy chooses (AugMix: 12); 0 is off and shows one view",
        0.0,
    )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, and what counts."""

    epochs: Annotated[int, Meta(ge=1)] = about("passes over the training split (longer is allowed on resume)", 10)
    sizes: str = about(
        "side of the training images in pixels, growing: 96x0.4,128 is 96 for the first 0.4 of all steps, then 128; "
        "unset is data.size. Validation and test always see data.size",
        "",
    )
    micro_batches: Annotated[int, Meta(ge=1)] = about("micro-batches in a global batch (K); ranks must divide it", 2)
    seed: Annotated[int, Meta(ge=0)] = about("of sample order, augmentation, initial weights and dropout", 0)
    monitor: Literal["val/accuracy", "val/macro_recall", "val/macro_f1", "val/loss"] = about(
        "metric that chooses the best", "val/macro_f1"
    )
    average: Literal["none", "ema", "swa"] = about(
        "weights that are validated and kept: the trained ones, or their exponential or equal-weight average", "none"
    )
    ema_decay: Annotated[float, Meta(gt=0, lt=1)] = about("weight of the past in the exponential average", 0.999)
    swa_from: Fraction = about("share of all steps after which the equal-weight average begins", 0.75)
    patience: Annotated[int, Meta(ge=0)] = about("stop after so many epochs without a better one; 0 is off", 0)
    evaluate_every: Annotated[int, Meta(ge=1)] = about("epochs between validations", 1)
    save_every: Annotated[int, Meta(ge=0)] = about("steps between checkpoints; 0 is once an epoch", 0)
    keep: Annotated[int, Meta(ge=1)] = about("newest checkpoints to keep, beside the best", 2, runtime=True)


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How the machine is used."""

    strategy: Literal["ddp", "zero0", "zero1", "zero2", "zero3"] = about(
        "how ranks share the work: ddp, or DeepSpeed: zero0 (whole copies), zero1 (optimizer state shared out), zero2 "
        "(gradients too), zero3 (weights too)",
        "ddp",
    )
    offload: bool = about("zero1 to zero3 keep the optimizer state in the host's memory and step there", False)
    sync_norm: bool = about("BatchNorm sees the micro-batches of all ranks as one (GPU only)", False)
    compress: Literal["none", "bf16"] = about("how ddp sends gradients: as they are, or as bf16 (GPU only)", "none")
    precision: Literal["fp32", "bf16", "fp16", "auto"] = about(
        "autocast; auto is bf16 on a GPU and fp32 on CPU", "auto"
    )
    device: Literal["auto", "cpu", "cuda"] = about("where to compute; auto takes the GPU if there is one", "auto")
    compile: Literal["auto", "off", "on"] = about(
        "torch.compile for training steps; auto where that is expected to shorten the whole run", "off"
    )
    memory: Annotated[float, Meta(ge=0)] = about(
        "GiB that each rank may take in training, for data.micro_batch 0; 0 is all of the GPU's", 0.0, runtime=True
    )
    bucket_mb: Annotated[int, Meta(ge=0)] = about(
        "MiB of gradients that ddp sends together; 0 is auto, by the size of the network; 25 is torch's own layout", 0
    )
    cuda_graphs: bool = about("replay compiled steps as CUDA graphs (one image size, GPU only)", False)
    collect_every: Annotated[int, Meta(ge=0)] = about(
        "steps between collections of Python's garbage, on all ranks in the same steps; 0 leaves it to Python",
        50,
        runtime=True,
    )
    channels_last: bool = about("memory layout of images and convolutions", True)
    threads: Annotated[int, Meta(ge=0)] = about("torch threads of each rank; 0 is auto", 0)
    timeout: Annotated[float, Meta(gt=0)] = about("seconds after which a collective gives up", 600.0, runtime=True)
    stall: Annotated[float, Meta(gt=0)] = about(
        "seconds without a step or an evaluation batch after which a process ends itself", 180.0, runtime=True
    )
    max_attempts: Annotated[int, Meta(ge=0)] = about(
        "starts in a row that may save nothing new before the run is given up; 0 is any number", 10, runtime=True
    )
    max_deaths: Annotated[int, Meta(ge=0)] = about(
        "starts in a row that may die in the same step before the run is given up; 0 is any number", 3, runtime=True
    )
    deterministic: bool = about("refuse operations without a deterministic form", False)


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where the numbers go, beside metrics.jsonl."""

    wandb: Literal["auto", "online", "offline", "off"] = about("Weights & Biases mode", "auto", runtime=True)
    project: str = about("W&B project", "bloodcell", runtime=True)
    entity: str | None = about("W&B team or user; unset is the key's own", None, runtime=True)
    group: str | None = about("W&B group, such as one cross-validation", None, runtime=True)
    job_type: str | None = about("W&B job type", None, runtime=True)
    tensorboard: bool = about("also write TensorBoard events", False, runtime=True)
    artifacts: Literal["off", "names", "weights"] = about(
        "W&B artifacts of a finished run: set and model by names and hashes, or with the best weights",
        "names",
        runtime=True,
    )
    images: Annotated[int, Meta(ge=0)] = about(
        "test images to show in W&B, 1,000 at most: surest errors, then least sure ones; 0 sends none", 0, runtime=True
    )
    profile: bool = about(
        "trace a few steps at the start and account for where their time goes, in RUN/profile", False, runtime=True
    )
    log_every: Annotated[int, Meta(ge=1)] = about("steps between records", 10, runtime=True)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that decides a run. One tree, resolved once, stored in RUN/config.json."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
