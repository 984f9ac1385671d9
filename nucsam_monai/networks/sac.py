"""Define SAC: SAM adapted by LoRA and prompted by points that a small U-Net proposes."""

import copy
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, get_args

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nucsam_monai.networks.compilation import refuse_export
from nucsam_monai.networks.dense.unet import OriginalUNet
from nucsam_monai.networks.fine_tuning import (
    FineTuning,
    LoRAOptions,
    MSAOptions,
    build_adapters,
    freeze_for,
    warn_of_frozen_encoder,
)
from nucsam_monai.networks.nucleus_prompts import MaskPrediction
from nucsam_monai.networks.options import read_options
from nucsam_monai.networks.sam import EncoderFeatures, build_sam
from nucsam_monai.networks.sam import sam_variant as find_variant
from nucsam_monai.networks.sam.layers import UnitRGB
from nucsam_monai.networks.samus import LocalBranch
from nucsam_monai.utils.errors import ConfigurationError

logger = logging.getLogger(__name__)


class UNetGenerator(OriginalUNet):
    """Predict nuclei with a U-Net with batch normalisation (SAC, section on the prompt generator).

    By default it has 32 to 256 channels on four levels and 512 at the bottom: the 7,763,041 parameters that SAC's
    parameter table adds to SAM.

    Args:
        in_channels: channels of the image.
        channels: channels of the finest level; every coarser level has twice as many.
        levels: number of downsamplings.

    Example:
        >>> UNetGenerator()(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 1, 64, 64])
    """

    def __init__(self, in_channels: int = 3, channels: int = 32, levels: int = 4) -> None:
        super().__init__(in_channels, 1, channels, levels)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits ``(B, 1, H, W)`` from RGB images ``(B, 3, H, W)`` in [0, 1].

        Raises:
            ConfigurationError: a side cannot be halved ``levels`` times.
        """
        step = 2 ** len(self.down)
        if image.shape[-2] % step or image.shape[-1] % step:
            raise ConfigurationError(
                f"generator: found an image of {image.shape[-2]} x {image.shape[-1]} px, expected sides that "
                f"are multiples of {step} px. Pad the image or set generator.input_size."
            )
        return super().forward(image)


SelectionRule = Literal["O", "R"]
"""``O`` takes the centres of components, ``R`` random pixels."""

_DEFAULT_TAU: dict[SelectionRule, float] = {"O": 0.5, "R": 0.9}
"""Probability from which on a pixel is a candidate; the paper does not give it."""

_PADDING = -1


class PointPrompts(NamedTuple):
    """Hold the points of B images, K in each.

    Attributes:
        coordinates: ``(B, K, 2)`` float32 as (x, y) in pixels.
        labels: ``(B, K)`` int64: 1 nucleus, 0 background, -1 padding.
    """

    coordinates: Tensor
    labels: Tensor


@torch.no_grad()
def select_points(
    probability: Tensor,
    count: int,
    rule: SelectionRule = "O",
    tau: float | None = None,
    *,
    seed: int | None = None,
) -> PointPrompts:
    """Choose ``count`` points on nuclei and ``count`` points on background in every image.

    Candidates are the pixels whose probability of nucleus or background, p or 1 - p, is at least ``tau``. If there are
    fewer candidates than points, the rest is padding. No pixel is chosen twice.

    - ``R`` draws candidates uniformly.
    - ``O`` takes one centroid per 8-connected component on nuclei; where it lies outside of its component,
      the component's pixel that is farthest from the outside. Of more components than points random ones are
      taken, with probability proportional to their area; fewer are filled up by ``R``. Background is mostly
      one component around the nuclei, and its centroid means nothing: there the pixel that is farthest
      from everything else is taken, then the one that is farthest from that and from the points so far.
      Beyond the image's border nothing is background.

    Args:
        probability: ``(B, 1, H, W)`` probability of nucleus.
        count: points of each label, 0 or more.
        rule: ``O`` or ``R``.
        tau: threshold in [0, 1]; 0.5 for ``O`` and 0.9 for ``R`` by default.
        seed: seed for every image, so that its points depend only on the image; None draws from
            PyTorch's global generator.

    Returns:
        K = 2 * ``count`` points, first those on nuclei, on the device of ``probability``.

    Raises:
        ConfigurationError: an unknown rule, ``count`` or ``tau`` out of range, or a call while
            a graph is exported.

    Example:
        >>> probability = torch.zeros(1, 1, 9, 9)
        >>> probability[..., 1:4, 5:8] = 1
        >>> select_points(probability, count=1).coordinates
        tensor([[[6., 2.],
                 [2., 2.]]])
    """
    if rule not in get_args(SelectionRule):
        raise ConfigurationError(f"selection '{rule}': expected 'O' (centroids) or 'R' (random).")
    tau = _DEFAULT_TAU[rule] if tau is None else tau
    if count < 0 or not 0 <= tau <= 1:
        raise ConfigurationError(
            f"{count} points with tau {tau}: expected 0 or more, and a probability from 0 to 1."
        )
    refuse_export(
        "the points are chosen from what the generator found in an image, which no graph can hold. Export the network "
        "without auto points (n_points_test 0) and give it the points as an input."
    )
    images = len(probability)
    nuclei = (probability[:, 0] >= tau).cpu().numpy()
    background = (1 - probability[:, 0] >= tau).cpu().numpy()
    seeds = torch.randint(2**62, (images,)).tolist() if seed is None else [seed] * images
    coordinates = np.zeros((images, 2, count, 2), dtype=np.float32)
    labels = np.full((images, 2, count), _PADDING, dtype=np.int64)
    for image in range(images):
        rng = np.random.default_rng(seeds[image])
        if rule == "R":
            found = [_random_pixels(mask[image], count, rng) for mask in (nuclei, background)]
        else:
            found = [_component_pixels(nuclei[image], count, rng), _farthest_pixels(background[image], count)]
        for side, (label, pixels) in enumerate(zip((1, 0), found, strict=True)):
            coordinates[image, side, : len(pixels)] = pixels
            labels[image, side, : len(pixels)] = label
    return PointPrompts(
        torch.from_numpy(coordinates).reshape(images, 2 * count, 2).to(probability.device),
        torch.from_numpy(labels).reshape(images, 2 * count).to(probability.device),
    )


def _random_pixels(candidates: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw at most ``count`` different pixels (x, y) of a ``(H, W)`` mask uniformly."""
    flat = np.flatnonzero(candidates)
    drawn = rng.choice(flat, size=min(count, len(flat)), replace=False)
    return np.stack([drawn % candidates.shape[1], drawn // candidates.shape[1]], axis=1)


def _component_pixels(candidates: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return at most ``count`` centres (x, y) of components, filled up with random pixels."""
    number, ids, stats, centroids = cv2.connectedComponentsWithStats(
        candidates.astype(np.uint8), connectivity=8
    )
    # The smallest of exponential times with rate `area`: draws in proportion to area without replacement.
    times = rng.exponential(size=number - 1) / stats[1:, cv2.CC_STAT_AREA]
    chosen = 1 + np.argsort(times)[:count]
    centres = [_centre(ids, int(component), stats, centroids) for component in chosen]
    pixels = np.array(centres, dtype=np.int64).reshape(-1, 2)
    left = candidates.copy()
    left[pixels[:, 1], pixels[:, 0]] = False
    return np.concatenate([pixels, _random_pixels(left, count - len(pixels), rng)])


def _centre(ids: np.ndarray, component: int, stats: np.ndarray, centroids: np.ndarray) -> tuple[int, int]:
    """Return the pixel (x, y) that stands for one component."""
    x, y = (math.floor(value + 0.5) for value in centroids[component])
    if ids[y, x] == component:
        return x, y
    left, top, width, height = stats[component, : cv2.CC_STAT_AREA].tolist()
    box = ids[top : top + height, left : left + width] == component
    y, x = np.unravel_index(_squared_distances(box).argmax(), box.shape)
    return int(x) + left, int(y) + top


def _farthest_pixels(candidates: np.ndarray, count: int) -> np.ndarray:
    """Return at most ``count`` pixels (x, y), each as far as possible from the outside and those before."""
    distances = _squared_distances(candidates)
    pixels: list[tuple[int, int]] = []
    while len(pixels) < count:
        y, x = (int(index) for index in np.unravel_index(distances.argmax(), distances.shape))
        if distances[y, x] == 0:
            break
        pixels.append((x, y))
        # No distance is larger than this one, so that none changes farther away.
        reach = math.isqrt(int(distances[y, x]))
        top, left = max(0, y - reach), max(0, x - reach)
        near = distances[top : y + reach + 1, left : x + reach + 1]
        rows = np.arange(top, top + near.shape[0], dtype=np.int32) - y
        columns = np.arange(left, left + near.shape[1], dtype=np.int32) - x
        np.minimum(near, rows[:, None] ** 2 + columns**2, out=near)
    return np.array(pixels, dtype=np.int64).reshape(-1, 2)


def _squared_distances(mask: np.ndarray) -> np.ndarray:
    """Return each pixel's squared distance to the nearest one outside of ``mask``, border included.

    Squared, distances are whole numbers, and equal ones stay equal.
    """
    padded = np.pad(mask.astype(np.uint8), 1)
    distances = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    return np.rint(np.square(distances)).astype(np.int32)


Stage = Literal["joint", "generator", "segmenter", "truth"]
"""What an epoch trains: both parts, one of them alone, or both with points chosen from the ground truth."""


@dataclass(frozen=True)
class GeneratorOptions:
    """Configure the auto-prompt generator, its points and its training.

    Attributes:
        n_points: number of points on nuclei and of points on background; 0 for no generator.
        n_points_test: number of points in evaluation if it differs. With 0, a network that was trained with automatic
            points takes the user's points, or none (SAC, Table 4).
        selection: ``O`` centroids, ``R`` random pixels.
        tau: least probability of a chosen pixel. Default: 0.5 for ``O`` and 0.9 for ``R``.
        input_size: side length in pixels of the generator's input. Default: that of the image.
        training: ``joint`` trains both parts from the start; ``pretrain`` first trains the generator alone for
            ``pretrain_epochs`` and then freezes it; ``warmup`` chooses points from the ground truth for
            ``warmup_epochs``, because the points of an untrained generator are random.
        pretrain_epochs: epochs of the first stage, see ``training``.
        warmup_epochs: epochs of the warm-up, see ``training``.
        seed: seed of the point selection in evaluation, so that an image always gets the same points.
    """

    n_points: int = 1
    n_points_test: int | None = None
    selection: Literal["O", "R"] = "O"
    tau: float | None = None
    input_size: int | None = None
    training: Literal["joint", "pretrain", "warmup"] = "joint"
    pretrain_epochs: int = 30
    warmup_epochs: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("n_points", "n_points_test", "input_size", "pretrain_epochs", "warmup_epochs", "seed"):
            value, least = getattr(self, name), int(name == "input_size")
            if value is not None and value < least:
                raise ConfigurationError(f"generator.{name} {value}: expected {least} or more.")
        if self.tau is not None and not 0 <= self.tau <= 1:
            raise ConfigurationError(f"generator.tau {self.tau}: expected a probability from 0 to 1.")
        if self.n_points_test and not self.n_points:
            raise ConfigurationError(
                f"generator.n_points_test {self.n_points_test}: a network without auto points "
                "(generator.n_points 0) has no generator that could propose any in evaluation."
            )

    @property
    def threshold(self) -> float:
        """Least probability of a chosen pixel."""
        return _DEFAULT_TAU[self.selection] if self.tau is None else self.tau

    def stage(self, epoch: int) -> Stage:
        """Return the training stage of the 0-based ``epoch``."""
        if self.n_points and self.training == "pretrain":
            return "generator" if epoch < self.pretrain_epochs else "segmenter"
        if self.n_points and self.training == "warmup" and epoch < self.warmup_epochs:
            return "truth"
        return "joint"


class AutoPrompter(nn.Module):
    """Locate nuclei with a small U-Net and choose points from its output (SAC, auto-prompting).

    Args:
        options: options of the generator.
    """

    def __init__(self, options: GeneratorOptions) -> None:
        super().__init__()
        self.options = options
        self.frozen = False
        self.unet = UNetGenerator()
        self.unit_rgb = UnitRGB()

    @property
    def count(self) -> int:
        """Points of each label that are chosen in the current mode."""
        options = self.options
        if self.training or options.n_points_test is None:
            return options.n_points
        return options.n_points_test

    def freeze(self, frozen: bool) -> None:
        """Freeze the generator, statistics included, or unfreeze it; its weights count as trained either way."""
        self.frozen = frozen
        self.train(self.training)

    def train(self, mode: bool = True) -> "AutoPrompter":
        """Switch to training or evaluation."""
        super().train(mode)
        if self.frozen:
            self.unet.eval()
        return self

    def forward(self, image: Tensor) -> Tensor:
        """Return logits of nucleus ``(B, 1, H, W)``, or at ``input_size``.

        Args:
            image: ``(B, 3, H, W)``, normalised with SAM's constants.
        """
        rgb = self.unit_rgb(image)
        if self.options.input_size is not None:
            size = (self.options.input_size, self.options.input_size)
            rgb = F.interpolate(rgb, size=size, mode="bilinear", align_corners=False)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self.unet(rgb)

    def choose(self, probability: Tensor, image_size: tuple[int, int]) -> PointPrompts:
        """Choose points without a gradient; in training they differ in every step.

        Args:
            probability: ``(B, 1, h, w)`` probability of nucleus, or the ground truth.
            image_size: height and width in pixels of the image that the points are for.
        """
        seed = None if self.training else self.options.seed
        points, labels = select_points(
            probability, self.count, self.options.selection, self.options.threshold, seed=seed
        )
        height, width = probability.shape[-2:]
        scale = points.new_tensor([image_size[1] / width, image_size[0] / height])
        return PointPrompts((points + 0.5) * scale - 0.5, labels)


@dataclass(frozen=True)
class SAMOptions:
    """Configure SAM itself; ``finetune: false`` is vanilla SAM, entirely frozen.

    Attributes:
        finetune: whether SAM is trained at all.
        train_prompt_encoder: whether the prompt encoder is trained too. SAC's text says that it is frozen, but its
            parameter table counts it as trained.
        activation_checkpointing: recompute activations of the encoder, which saves memory and takes more time.
    """

    finetune: bool = True
    train_prompt_encoder: bool = False
    activation_checkpointing: bool = False


class SACOutput(NamedTuple):
    """Hold the outputs that the losses need.

    Attributes:
        mask_logits: ``(B, outputs, 4g, 4g)``; None while the generator trains alone.
        generator_logits: ``(B, 1, H, W)``, or at ``generator.input_size``; None where the generator is not
            run, or no longer trains.
        prompts: the points that SAM was prompted with, those of the user first.
    """

    mask_logits: Tensor | None
    generator_logits: Tensor | None
    prompts: PointPrompts


class SAC(nn.Module):
    """Predict one mask of all nuclei from one prompt of many points ("Segment Any Cell", section on the method).

    The choice of points has no gradient, so the generator learns only from its own loss and SAM only from the mask
    loss.

    Args:
        sam_variant: name of the SAM variant, for example ``"vit_h"`` or the compact ``"vit_tiny"``.
        image_size: side length of the input image in pixels.
        adapter: the kind of fine-tuning, see :data:`~nucsam_monai.networks.fine_tuning.FineTuning`.
        sam: values of :class:`SAMOptions`.
        lora: values of :class:`~nucsam_monai.networks.fine_tuning.LoRAOptions`, for ``adapter: lora``.
        msa: values of :class:`~nucsam_monai.networks.fine_tuning.MSAOptions`, for ``adapter: msa``.
        generator: values of :class:`~nucsam_monai.networks.sac.GeneratorOptions`.
        sam_checkpoint: SAM weights in the official layout to start from. Default: random weights.
        outputs: masks per image. With 2, the second is a distance map that separates touching nuclei; its token and
            hyper-networks start as copies of those of SAM's mask.

    Raises:
        ConfigurationError: an option or its value is unknown.
        CheckpointError: the SAM weights are damaged or belong to another variant.

    Example:
        >>> network = SAC("vit_tiny", 256, adapter="full").eval()
        >>> network(torch.zeros(1, 3, 256, 256)).shape
        torch.Size([1, 1, 256, 256])
    """

    fixed_stages: tuple[Stage, ...] = ("generator", "truth")
    """Stages whose masks tell little about the trained parts: SAM is frozen, or the points differ."""

    def __init__(
        self,
        sam_variant: str,
        image_size: int = 1024,
        *,
        adapter: FineTuning = "lora",
        sam: Mapping[str, Any] | None = None,
        lora: Mapping[str, Any] | None = None,
        msa: Mapping[str, Any] | None = None,
        generator: Mapping[str, Any] | None = None,
        sam_checkpoint: str | None = None,
        outputs: int = 1,
    ) -> None:
        super().__init__()
        self.adapter = adapter
        self.outputs = outputs
        self.sam_options = read_options(SAMOptions, sam, "sam")
        self.lora_options = read_options(LoRAOptions, lora, "lora")
        self.msa_options = read_options(MSAOptions, msa, "msa")
        self.generator_options = read_options(GeneratorOptions, generator, "generator")
        self.variant = find_variant(sam_variant)
        adapter_options = self.lora_options if adapter == "lora" else self.msa_options
        self.samus = LocalBranch(self.variant) if adapter == "samus" else None
        self.adapters = None if self.samus else build_adapters(adapter, self.variant, adapter_options)
        self.sam = build_sam(
            self.variant,
            image_size,
            sam_checkpoint,
            activation_checkpointing=self.sam_options.activation_checkpointing,
        )
        self.distance_token, self.distance_hypernetwork, self.distance_outline = self._build_distance()
        self.generator = AutoPrompter(self.generator_options) if self.generator_options.n_points else None
        self._freeze(pretrained=sam_checkpoint is not None)
        self.begin_epoch(0)

    def begin_epoch(self, epoch: int) -> None:
        """Switch to what ``generator.training`` trains in the 0-based ``epoch``."""
        self.stage: Stage = self.generator_options.stage(epoch)
        if self.generator is not None:
            self.generator.freeze(self.stage == "segmenter")

    def check_epochs(self, epochs: int) -> None:
        """Check that a training has enough epochs for SAM after those of the generator.

        Raises:
            ConfigurationError: there are not enough epochs.
        """
        if self.generator_options.stage(epochs - 1) == "generator":
            raise ConfigurationError(
                f"generator.training 'pretrain': found {epochs} epochs, expected more than the "
                f"{self.generator_options.pretrain_epochs} of the generator alone (pretrain_epochs), as SAM learns "
                "after them. Raise epochs or lower pretrain_epochs."
            )

    def forward(
        self, image: Tensor, points: tuple[Tensor, Tensor] | None = None, truth: Tensor | None = None
    ) -> Tensor | SACOutput:
        """Segment a batch of images.

        Args:
            image: ``(B, 3, S, S)``, normalised with SAM's constants.
            points: coordinates ``(B, K, 2)`` in pixels (x, y) and labels ``(B, K)`` (1 nucleus,
                0 background, -1 padding): the clicks of an expert, simulated in training.
            truth: ``(B, 1, S, S)`` binary mask of all nuclei, used only by the warm-up of a training.

        Returns:
            Mask logits ``(B, outputs, S, S)``; in training mode :class:`SACOutput`, as the generator is trained too.

        Raises:
            ConfigurationError: ``truth`` is missing in the warm-up.
        """
        if self.training:
            return self._train_stage(image, points, truth)
        prompts, _ = self.prompts(image, points)
        size = (image.shape[-2], image.shape[-1])
        return F.interpolate(
            self.decode(image, prompts).float(), size=size, mode="bilinear", align_corners=False
        )

    def prompts(
        self, image: Tensor, points: tuple[Tensor, Tensor] | None = None, truth: Tensor | None = None
    ) -> tuple[PointPrompts, Tensor | None]:
        """Return the user's and the automatic points of each image, and the generator's logits.

        Args:
            image: see :meth:`forward`.
            points: see :meth:`forward`.
            truth: choose the automatic points from this mask.
        """
        found = [] if points is None else [PointPrompts(points[0].float(), points[1].long())]
        logits = None
        if self.generator is not None and self.generator.count:
            logits = self.generator(image)
            probability = torch.sigmoid(logits.detach().float()) if truth is None else truth.float()
            found.append(self.generator.choose(probability, (image.shape[-2], image.shape[-1])))
        if not found:
            none = image.new_zeros((len(image), 0), dtype=torch.long)
            found.append(PointPrompts(image.new_zeros((len(image), 0, 2), dtype=torch.float32), none))
        joined = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
        return PointPrompts(*joined), logits

    def decode(self, image: Tensor, prompts: PointPrompts) -> Tensor:
        """Return the mask logits of images prompted with all their points.

        They are ``(B, outputs, 4g, 4g)``, with a fine map ``(B, outputs, 8g, 8g)``.
        """
        features = self.encode(image)
        found = self.sam.decode(
            features,
            self._on_grid(prompts.coordinates),
            prompts.labels,
            [1] * len(image),
            is_local=False,
            return_upscaled=self.distance_token is not None,
            extra_tokens=self.distance_token,
        )
        if self.distance_hypernetwork is None or found.extra is None or found.upscaled is None:
            return found.logits
        # (B, 1, C / 8) with (B, C / 8, 4g, 4g)
        kernels = self.distance_hypernetwork(found.extra)
        distance = torch.einsum("bnc,bchw->bnhw", kernels, found.upscaled)
        if self.distance_outline is not None:
            # the same with a second kernel on the fine map (B, F, 8g, 8g)
            size = (found.logits.shape[-2], found.logits.shape[-1])
            distance = F.interpolate(distance.float(), size=size, mode="bilinear", align_corners=False)
            kernels = self.distance_outline(found.extra)
            distance = distance + torch.einsum("bnc,bchw->bnhw", kernels, features.pyramid[-1])
        return torch.cat([found.logits, distance], dim=1)

    def encode(self, image: Tensor) -> EncoderFeatures:
        """Encode ``(B, 3, S, S)`` images."""
        if self.samus is not None:
            return self.samus(self.sam.image_encoder, image)
        return self.sam.encode(image, adapters=self.adapters)

    def _on_grid(self, pixels: Tensor) -> Tensor:
        """Return points (x, y) as they lie in an image whose patches do not overlap, with the same grid of tokens."""
        return pixels if self.samus is None else (pixels + 0.5) * self.samus.overlap - 0.5

    def decode_clicks(self, features: EncoderFeatures, points: Tensor, labels: Tensor) -> MaskPrediction:
        """See :class:`~nucsam_monai.networks.nucleus_prompts.PromptableNetwork`."""
        masks = self.sam.decode_points(features, self._on_grid(points), labels)
        return MaskPrediction(masks.logits, masks.iou)

    def decode_boxes(self, features: EncoderFeatures, boxes: Tensor) -> MaskPrediction:
        """See :class:`~nucsam_monai.networks.nucleus_prompts.PromptableNetwork`."""
        masks = self.sam.decode_boxes(features, self._on_grid(boxes))
        return MaskPrediction(masks.logits, masks.iou)

    @property
    def header(self) -> dict[str, str]:
        """Return the header of a weights file, which must agree with the network that it is loaded into.

        Left out are settings of training or evaluation alone: the schedule and ``n_points_test``.
        """
        generator = self.generator_options
        options: dict[str, Any] = {
            "adapter": self.adapter,
            "finetune": self.sam_options.finetune,
            "train_prompt_encoder": self.sam_options.train_prompt_encoder,
            "n_points": generator.n_points,
        }
        if generator.n_points:
            options["selection"] = generator.selection
            options["tau"] = generator.threshold
            options["input_size"] = generator.input_size
        if self.outputs > 1:
            options["outputs"] = self.outputs
        if self.adapter == "lora":
            options["lora"] = asdict(self.lora_options)
        if self.adapter == "msa":
            options["msa"] = asdict(self.msa_options)
        return {
            "method": "sac",
            "sam_variant": self.variant.name,
            "options": json.dumps(options, sort_keys=True),
        }

    def _train_stage(
        self, image: Tensor, points: tuple[Tensor, Tensor] | None, truth: Tensor | None
    ) -> SACOutput:
        if self.stage == "truth" and truth is None:
            raise ConfigurationError(
                "generator.training 'warmup': found a batch without the ground truth, expected the binary mask "
                "as the network's argument 'truth', because the points of these epochs come from it."
            )
        prompts, logits = self.prompts(image, points, truth if self.stage == "truth" else None)
        return SACOutput(
            None if self.stage == "generator" else self.decode(image, prompts),
            None if self.stage == "segmenter" else logits,
            prompts,
        )

    def _build_distance(self) -> tuple[nn.Parameter | None, nn.Module | None, nn.Module | None]:
        """Build the distance map's output layers, if needed, as copies of the mask's.

        Returns:
            The token, its hyper-network for the upscaled embedding, and that for the fine map of variants that have
            one.
        """
        if self.outputs not in (1, 2) or (self.outputs == 2 and not self.sam_options.finetune):
            raise ConfigurationError(
                f"outputs {self.outputs}: expected 1, the mask, or 2 with its distance map, which has to be learned "
                f"and needs sam.finetune true; found {self.sam_options.finetune}."
            )
        if self.outputs == 1:
            return None, None, None
        decoder = self.sam.mask_decoder
        token = nn.Parameter(decoder.mask_tokens.weight[:1].detach().clone())
        fine = decoder.fine_hypernetworks_mlps[0] if self.variant.fine_channels else None
        return token, copy.deepcopy(decoder.output_hypernetworks_mlps[0]), copy.deepcopy(fine)

    def _freeze(self, *, pretrained: bool) -> None:
        """Freeze the parts that do not train; the generator always counts as trained."""
        if not self.sam_options.finetune:
            if self.adapter != "none" or self.sam_options.train_prompt_encoder:
                raise ConfigurationError(
                    f"sam.finetune false: found adapter '{self.adapter}' and sam.train_prompt_encoder "
                    f"{self.sam_options.train_prompt_encoder}, expected 'none' and false, as nothing of vanilla "
                    "SAM learns."
                )
            if self.generator is not None and self.generator_options.training == "pretrain":
                raise ConfigurationError(
                    "sam.finetune false: found generator.training 'pretrain', expected 'joint' or 'warmup', as "
                    "nothing is left to learn once the generator is frozen."
                )
            self.sam.requires_grad_(False)
            if not pretrained:
                warn_of_frozen_encoder("sam.finetune false", "train SAM with sam.finetune true")
            return
        freeze_for(
            self.adapter,
            self.sam,
            train_prompt_encoder=self.sam_options.train_prompt_encoder,
            pretrained=pretrained,
        )
